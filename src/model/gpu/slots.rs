//! Modulation tables and biases on the device, in slots that rows pick from.

use crate::model::architecture::{Architecture, Mlp};
use crate::model::batch::Batch;
use crate::model::error::Result;
use crate::model::modulation::Modulation;
use crate::model::tables::{BYTES, Mixed};
use crate::ops::gpu::pointwise::NONE;
use crate::ops::gpu::{Address, Buffer, GpuDevice};
use std::collections::HashMap;
use std::sync::Arc;

/// Slots of tables at first: the grids of two sequences of 128 steps.
const LINES: usize = 258;
/// The same of a network that no noise level modulates.
const FEW_LINES: usize = 16;
/// Slots of biases at first.
const MIXES: usize = 16;

/// Where a layer's vectors lie in a slot, in floats: [`NONE`] where the layer has none.
#[derive(Clone, Copy, Debug)]
pub struct LayerOffsets {
    pub gain1: u32,
    pub shift1: u32,
    pub gate1: u32,
    pub gain2: u32,
    pub shift2: u32,
    pub gate2: u32,
    pub qkv_bias: u32,
    pub query_gain: u32,
    pub key_gain: u32,
    pub up_bias: u32,
    pub down_bias: u32,
}

/// The same of a network, in the order of [`ModulationRow`](crate::model::conditioning::ModulationRow)'s vectors.
#[derive(Clone, Debug)]
pub struct Offsets {
    pub layers: Vec<LayerOffsets>,
    /// Of the last norm.
    pub gain: u32,
    pub shift: u32,
    /// Of the output head.
    pub bias: u32,
    line: usize,
    biases: usize,
    /// The output head's row, filled up.
    vocab: usize,
    conditioned: bool,
}

/// Vectors begin at multiples of sixteen bytes.
fn filled_up(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// Vectors side by side, each filled up with zeros.
pub fn side_by_side<'a>(vectors: impl IntoIterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut all = Vec::new();
    for vector in vectors {
        all.extend_from_slice(vector);
        all.resize(filled_up(all.len()), 0.0);
    }
    all
}

/// The place of a vector of that width behind those before it, if there is one.
fn put(end: &mut usize, width: Option<usize>) -> u32 {
    let Some(width) = width else { return NONE };
    let at = *end;
    *end += filled_up(width);
    at as u32
}

impl Offsets {
    pub fn of(architecture: &Architecture) -> Self {
        let hidden = Some(architecture.hidden);
        let modulated = hidden.filter(|_| architecture.conditioning.is_some());
        let (mut line, mut biases) = (0, 0);
        let layers = architecture.layers.iter().map(|layer| {
            let attention = &layer.attention;
            let head = attention.qk_norm.map(|_| attention.head_dim);
            let (up, down) = match layer.mlp {
                Mlp::Gelu { width } => (Some(width), hidden),
                Mlp::SwiGlu { .. } => (None, None),
            };
            LayerOffsets {
                gain1: put(&mut line, hidden),
                shift1: put(&mut line, modulated),
                gate1: put(&mut line, modulated),
                gain2: put(&mut line, hidden),
                shift2: put(&mut line, modulated),
                gate2: put(&mut line, modulated),
                qkv_bias: put(&mut biases, attention.bias.then(|| attention.width())),
                query_gain: put(&mut biases, head),
                key_gain: put(&mut biases, head),
                up_bias: put(&mut biases, up),
                down_bias: put(&mut biases, down),
            }
        });
        let layers = layers.collect();
        let vocab = architecture.vocabulary.rows;
        Self {
            layers,
            gain: put(&mut line, hidden),
            shift: put(&mut line, modulated),
            bias: put(&mut biases, architecture.head.bias.then_some(vocab)),
            line,
            biases,
            vocab: filled_up(vocab),
            conditioned: modulated.is_some(),
        }
    }

    pub fn line_floats(&self) -> usize {
        self.line
    }

    pub fn bias_floats(&self) -> usize {
        self.biases
    }
}

/// Slots of one size, by key.
#[derive(Debug)]
struct Slots<K> {
    floats: usize,
    capacity: usize,
    memory: Buffer,
    kept: HashMap<K, u32>,
}

impl<K: std::hash::Hash + Eq + Clone> Slots<K> {
    fn new(gpu: &Arc<dyn GpuDevice>, floats: usize, capacity: usize) -> Result<Self> {
        let memory = Buffer::zeros(gpu, capacity * floats * size_of::<f32>())?;
        Ok(Self {
            floats,
            capacity,
            memory,
            kept: HashMap::new(),
        })
    }

    /// Makes room for these keys: more of it while that is little, else that of all others.
    fn reserve(&mut self, gpu: &Arc<dyn GpuDevice>, keys: &[K]) -> Result<()> {
        let new = keys
            .iter()
            .filter(|key| !self.kept.contains_key(*key))
            .count();
        let (wanted, bytes) = (self.kept.len() + new, self.floats * size_of::<f32>());
        if wanted <= self.capacity {
            return Ok(());
        }
        let little = BYTES / bytes.max(1);
        if wanted <= little
            && let Ok(more) = Self::new(gpu, self.floats, wanted.next_power_of_two().min(little))
        {
            let kept = std::mem::take(&mut self.kept);
            if kept.len() * bytes > 0 {
                gpu.copy(
                    more.memory.address(),
                    self.memory.address(),
                    kept.len() * bytes,
                )?;
            }
            *self = Self { kept, ..more };
            return Ok(());
        }
        self.kept.clear();
        if keys.len() > self.capacity {
            *self = Self::new(gpu, self.floats, keys.len().next_power_of_two())?;
        }
        Ok(())
    }

    fn get(&mut self, key: &K, make: impl FnOnce() -> Result<Vec<f32>>) -> Result<u32> {
        if let Some(&slot) = self.kept.get(key) {
            return Ok(slot);
        }
        let slot = self.kept.len();
        let at = slot * self.floats * size_of::<f32>();
        self.memory.write(at, &make()?)?;
        self.kept.insert(key.clone(), slot as u32);
        Ok(slot as u32)
    }
}

/// All slots of a base, whatever the generation.
#[derive(Debug)]
pub struct TableSlots {
    pub offsets: Offsets,
    lines: Slots<(Mixed, u32)>,
    mixes: Slots<Mixed>,
    /// The bias of an output head that has none.
    zeros: Buffer,
}

impl TableSlots {
    pub fn new(gpu: &Arc<dyn GpuDevice>, architecture: &Architecture) -> Result<Self> {
        let offsets = Offsets::of(architecture);
        let (lines, zeros) = (
            if offsets.conditioned {
                LINES
            } else {
                FEW_LINES
            },
            if offsets.bias == NONE {
                offsets.vocab
            } else {
                0
            },
        );
        Ok(Self {
            lines: Slots::new(gpu, offsets.line_floats(), lines)?,
            mixes: Slots::new(gpu, offsets.bias_floats(), MIXES)?,
            zeros: Buffer::zeros(gpu, zeros * size_of::<f32>())?,
            offsets,
        })
    }

    pub fn bytes(&self) -> usize {
        self.lines.memory.bytes() + self.mixes.memory.bytes() + self.zeros.bytes()
    }

    /// Addresses of the slots of tables and of biases.
    pub fn addresses(&self) -> (Address, Address) {
        (self.lines.memory.address(), self.mixes.memory.address())
    }

    /// Of the output head: slots of biases, floats to a slot, and the offset in one.
    pub fn head_bias(&self) -> (Address, u32, u32) {
        match self.offsets.bias {
            NONE => (self.zeros.address(), 0, 0),
            bias => {
                let biases = self.mixes.memory.address();
                (biases, self.offsets.bias_floats() as u32, bias)
            }
        }
    }

    /// The slots that every segment of a batch uses, filled. Their memory may be another one than before.
    pub fn of(
        &mut self,
        gpu: &Arc<dyn GpuDevice>,
        modulation: &Modulation,
        batch: &Batch,
    ) -> Result<Vec<(u32, u32)>> {
        let keys = batch.segments.iter().map(|segment| {
            let mixed = modulation.mixed(&segment.mix);
            (mixed, segment.sigma.to_bits())
        });
        let wanted: Vec<(Mixed, u32)> = keys.collect();
        let mut lines = wanted.clone();
        lines.sort();
        lines.dedup();
        let mut mixes: Vec<Mixed> = lines.iter().map(|(mix, _)| mix.clone()).collect();
        mixes.dedup();
        self.lines.reserve(gpu, &lines)?;
        self.mixes.reserve(gpu, &mixes)?;
        let mut slots = Vec::with_capacity(wanted.len());
        for (key, segment) in wanted.into_iter().zip(&batch.segments) {
            let tables = || modulation.tables(&segment.mix, segment.sigma);
            let line = self.lines.get(&key, || {
                let tables = tables()?;
                Ok(side_by_side(tables.modulations().map(|vector| &**vector)))
            })?;
            let mix = self.mixes.get(&key.0, || {
                let tables = tables()?;
                Ok(side_by_side(tables.constants().map(|vector| &**vector)))
            })?;
            slots.push((line, mix));
        }
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::architecture::dit::DitConfig;
    use serde_json::{from_value, json};

    #[test]
    fn vectors_of_any_width_begin_at_multiples_of_sixteen_bytes() {
        let config = json!({"model_type": "mdlm", "vocab_size": 31, "model_length": 16, "hidden_dim": 6, "cond_dim": 4,
            "n_blocks": 3, "n_heads": 3});
        let config: DitConfig = from_value(config).expect("a configuration");
        let offsets = Offsets::of(&config.architecture().expect("a network"));
        let layers = offsets.layers.iter();
        let layers = layers.flat_map(|at| {
            let biases = [at.up_bias, at.down_bias];
            [at.gain1, at.gate2].into_iter().chain(biases)
        });
        let ends = [offsets.line_floats(), offsets.bias_floats()].map(|floats| floats as u32);
        let last = [offsets.gain, offsets.shift, offsets.bias];
        let mut all = layers.chain(last).chain(ends);
        assert!(all.all(|offset| offset != NONE && offset.is_multiple_of(4)));
        let vectors: [&[f32]; 3] = [&[1.0], &[2.0; 4], &[3.0; 5]];
        let filled = [&[1.0, 0.0, 0.0, 0.0][..], &[2.0; 4], &[3.0; 5], &[0.0; 3]].concat();
        assert_eq!(side_by_side(vectors), filled);
    }
}
