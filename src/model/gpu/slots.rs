//! Modulation tables and biases on the device, in slots that rows pick from.

use crate::model::batch::MixKey;
use crate::model::batch::{Batch, Mix};
use crate::model::error::Result;
use crate::model::modulation::Modulation;
use crate::model::tables::BYTES;
use crate::ops::gpu::{Buffer, GpuDevice};
use std::collections::HashMap;
use std::sync::Arc;

/// Slots of tables at first: the grids of two sequences of 128 steps.
const LINES: usize = 258;
/// Slots of biases at first.
const MIXES: usize = 16;

/// Where vectors lie in a slot, in floats; widths are those that they are filled up to.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    vocab: usize,
}

/// The six vectors of a layer's tables.
#[derive(Clone, Copy, Debug)]
pub enum Vector {
    Gain1,
    Shift1,
    Gate1,
    Gain2,
    Shift2,
    Gate2,
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

impl Offsets {
    pub fn new(hidden: usize, intermediate: usize, layers: usize, vocab: usize) -> Self {
        Self {
            hidden: filled_up(hidden),
            intermediate: filled_up(intermediate),
            layers,
            vocab: filled_up(vocab),
        }
    }

    pub fn line(&self, layer: usize, vector: Vector) -> u32 {
        ((6 * layer + vector as usize) * self.hidden) as u32
    }

    /// Gain and shift of the last norm.
    pub fn last(&self) -> (u32, u32) {
        let gain = 6 * self.layers * self.hidden;
        (gain as u32, (gain + self.hidden) as u32)
    }

    pub fn line_floats(&self) -> usize {
        (6 * self.layers + 2) * self.hidden
    }

    pub fn bias0(&self, layer: usize) -> u32 {
        (layer * (self.intermediate + self.hidden)) as u32
    }

    pub fn bias2(&self, layer: usize) -> u32 {
        self.bias0(layer) + self.intermediate as u32
    }

    /// Of the output head.
    pub fn bias(&self) -> u32 {
        self.bias0(self.layers)
    }

    pub fn bias_floats(&self) -> usize {
        self.bias() as usize + self.vocab
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
        let little = BYTES / bytes;
        if wanted <= little
            && let Ok(more) = Self::new(gpu, self.floats, wanted.next_power_of_two().min(little))
        {
            let kept = std::mem::take(&mut self.kept);
            if !kept.is_empty() {
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

/// All slots of an instance.
#[derive(Debug)]
pub struct TableSlots {
    pub offsets: Offsets,
    lines: Slots<(MixKey, u32)>,
    mixes: Slots<MixKey>,
}

impl TableSlots {
    pub fn new(gpu: &Arc<dyn GpuDevice>, offsets: Offsets) -> Result<Self> {
        Ok(Self {
            offsets,
            lines: Slots::new(gpu, offsets.line_floats(), LINES)?,
            mixes: Slots::new(gpu, offsets.bias_floats(), MIXES)?,
        })
    }

    pub fn bytes(&self) -> usize {
        self.lines.memory.bytes() + self.mixes.memory.bytes()
    }

    /// Addresses of the slots of tables and of biases.
    pub fn addresses(&self) -> (u64, u64) {
        (self.lines.memory.address(), self.mixes.memory.address())
    }

    /// The slots that every segment of a batch uses, filled. Their memory may be another one than before.
    pub fn of(
        &mut self,
        gpu: &Arc<dyn GpuDevice>,
        modulation: &Modulation,
        batch: &Batch,
    ) -> Result<Vec<(u32, u32)>> {
        let wanted: Vec<(MixKey, u32, &Mix, f32)> = batch
            .segments
            .iter()
            .map(|segment| {
                (
                    segment.mix.key(),
                    segment.sigma.to_bits(),
                    &segment.mix,
                    segment.sigma,
                )
            })
            .collect();
        let mut lines: Vec<(MixKey, u32)> = wanted
            .iter()
            .map(|(mix, sigma, ..)| (mix.clone(), *sigma))
            .collect();
        lines.sort();
        lines.dedup();
        let mut mixes: Vec<MixKey> = lines.iter().map(|(mix, _)| mix.clone()).collect();
        mixes.dedup();
        self.lines.reserve(gpu, &lines)?;
        self.mixes.reserve(gpu, &mixes)?;
        let mut slots = Vec::with_capacity(wanted.len());
        for (mix_key, bits, mix, sigma) in wanted {
            let line = self.lines.get(&(mix_key.clone(), bits), || {
                Ok(side_by_side(
                    modulation
                        .tables(mix, sigma)?
                        .modulations()
                        .map(|vector| &**vector),
                ))
            })?;
            let bias = self.mixes.get(&mix_key, || {
                Ok(side_by_side(
                    modulation
                        .tables(mix, sigma)?
                        .biases()
                        .map(|vector| &**vector),
                ))
            })?;
            slots.push((line, bias));
        }
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_any_width_begin_at_multiples_of_sixteen_bytes() {
        let offsets = Offsets::new(6, 25, 3, 31);
        let lines = (0..3).flat_map(|layer| {
            [Vector::Gain1, Vector::Gate2].map(|vector| offsets.line(layer, vector))
        });
        let biases = (0..3).flat_map(|layer| [offsets.bias0(layer), offsets.bias2(layer)]);
        let (gain, shift) = offsets.last();
        let ends = [offsets.line_floats(), offsets.bias_floats()].map(|floats| floats as u32);
        let all = lines
            .chain(biases)
            .chain([gain, shift, offsets.bias()])
            .chain(ends);
        assert!(all.into_iter().all(|offset| offset.is_multiple_of(4)));
        let vectors: [&[f32]; 3] = [&[1.0], &[2.0; 4], &[3.0; 5]];
        let filled = [&[1.0, 0.0, 0.0, 0.0][..], &[2.0; 4], &[3.0; 5], &[0.0; 3]].concat();
        assert_eq!(side_by_side(vectors), filled);
    }
}
