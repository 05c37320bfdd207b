//! The DiT on a device: one base, many variants, and the drawing of tokens, in launches that are recorded once for every
//! shape of batch and replayed.
//!
//! The residual stream, products and logits are f32; what products and attention read is of the device's type. Rows of
//! modulation tables are made on the host, once for every mix and noise level, and kept in slots.

mod fused;
mod linear;
mod network;
mod pack;
mod slots;
mod train;
mod variant;
pub mod weights;
mod work;

use super::architecture::dit::{EMBEDDING, HEAD, layer_products};
use super::base::BaseWeights;
use super::batch::{Batch, Logits, Mix, Outcome};
use super::denoiser::Denoiser;
use super::facts::NetworkFacts;
use super::kv_cache::KvCache;
use super::modulation::Modulation;
pub use super::target::{GpuTarget, Matrix, padded};
use super::variant::{Placed, homes};
use super::weights::{ServedBank, VariantWeights};
use crate::model::error::{Error, Result};
use crate::ops::categorical::Drawn;
use crate::ops::gpu::attention::MAX_HEAD;
use crate::ops::gpu::draw::DrawnFacts;
use crate::ops::gpu::pointwise::MAX_WIDTH;
use crate::ops::gpu::{Buffer, Fault, Graph};
use linear::{GpuLinear, GpuSuperposed, materialise};
use network::{DeviceStep, Pages};
use pack::{List, Packed, Places, RowSet, Shape};
use slots::{Offsets, TableSlots};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
pub use train::{GpuTrainable, GpuTrainer};
pub use variant::GpuVariant;
pub use weights::{GpuBank, GpuBase, on_device};
use work::{Pieces, StepMemory};

/// Shapes of batches that are remembered.
const PLANS: usize = 128;

#[derive(Debug)]
struct GpuLayer {
    qkv: GpuLinear,
    out: GpuLinear,
    up: GpuLinear,
    down: GpuLinear,
}

/// One generation's model instance on a device.
pub struct GpuDit {
    base: Arc<GpuBase>,
    modulation: Modulation,
    embedding: GpuLinear,
    layers: Vec<GpuLayer>,
    head: GpuLinear,
    lists: Vec<List>,
    /// They keep their slots.
    _variants: Vec<Placed<GpuVariant>>,
    /// Of the rotary embedding, [head_dim / 2] f64.
    frequencies: Buffer,
    state: Mutex<State>,
}

struct State {
    work: StepMemory,
    slots: TableSlots,
    /// What steps were recorded with: the cache, the slots, the memory they work in.
    addresses: Option<(Pages, (u64, u64), Pieces)>,
    plans: HashMap<Shape, Recording>,
    /// What batches are packed into.
    memory: Vec<u8>,
}

/// A shape of batch that was seen before.
struct Recording {
    /// What batches of this shape are copied to.
    memory: Buffer,
    graph: Option<Box<dyn Graph>>,
    seen: u64,
}

/// What kernels hold of a row and of a head has its limits.
fn check_widths(head: usize, hidden: usize) -> Result<()> {
    for (what, found, limit) in [("a head", head, MAX_HEAD), ("a row", hidden, MAX_WIDTH)] {
        if found > limit {
            return Err(Error::TooLarge { what, found, limit });
        }
    }
    Ok(())
}

/// Width of networks whose layers' matrices are small: four groups of sixteen parts take 8 to 10 µs of one of 768 x 3072 on an H200,
/// one of sixty-four 14.
const SMALL: usize = 1024;

impl GpuDit {
    /// An instance of `base` with `variants`, whose [`VariantId`](super::batch::VariantId) is their index, read from `banks`.
    pub fn new(
        base: Arc<GpuBase>,
        banks: &[Arc<GpuBank>],
        variants: Vec<VariantWeights>,
    ) -> Result<Self> {
        let place = |weights: VariantWeights| {
            Ok(Placed {
                own: Arc::new(GpuVariant::new(&base, &weights)?),
                banks: weights.banks,
            })
        };
        let variants = variants.into_iter().map(place).collect::<Result<_>>()?;
        GpuDit::of(base, banks, variants)
    }

    /// As [`GpuDit::new`], of variants that other instances may share.
    pub fn of(
        base: Arc<GpuBase>,
        banks: &[Arc<GpuBank>],
        variants: Vec<Placed<GpuVariant>>,
    ) -> Result<Self> {
        let (config, device) = (&base.host.architecture, &base.device);
        check_widths(config.attention().head_dim, config.hidden)?;
        let mut lists: Vec<List> = Vec::new();
        let mut linear = |name: &str, rows: RowSet| -> Result<GpuLinear> {
            let Some(matrix) = base.matrices.get(name) else {
                return Err(Error::MissingTensor {
                    name: name.to_owned(),
                });
            };
            let superposed =
                GpuSuperposed::of(&base, (name, matrix.out, matrix.input), banks, &variants)?;
            let list = List {
                placement: superposed.placement.clone(),
                own: superposed.own_placement(),
                rows,
                most: if rows == RowSet::All && config.hidden <= SMALL {
                    16
                } else {
                    64
                },
            };
            let at = lists
                .iter()
                .position(|known| *known == list)
                .unwrap_or_else(|| {
                    lists.push(list);
                    lists.len() - 1
                });
            Ok(GpuLinear {
                base: matrix.clone(),
                variants: superposed,
                list: at,
            })
        };
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in 0..config.layers.len() {
            let [qkv, out, up, down] = layer_products(layer);
            layers.push(GpuLayer {
                qkv: linear(&qkv, RowSet::All)?,
                out: linear(&out, RowSet::All)?,
                up: linear(&up, RowSet::All)?,
                down: linear(&down, RowSet::All)?,
            });
        }
        let (head, embedding) = (
            linear(HEAD, RowSet::Wanted)?,
            linear(EMBEDDING, RowSet::All)?,
        );
        let intermediate = layers.first().map_or(0, |layer| layer.up.base.out);
        let offsets = Offsets::new(
            config.hidden,
            intermediate,
            config.layers.len(),
            config.vocabulary.rows,
        );
        let half = config.attention().head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| 10000f64.powf(-(i as f64) / half as f64))
            .collect();
        let host: Vec<Arc<ServedBank>> = banks.iter().map(|bank| bank.host.clone()).collect();
        let on_host = |variant: &Placed<GpuVariant>| Placed {
            own: variant.own.host.clone(),
            banks: variant.banks.clone(),
        };
        let homes = homes(banks.len(), &variants, |own| {
            !own.own.is_empty() || !own.host.own.is_empty()
        });
        Ok(Self {
            modulation: Modulation::new(
                base.host.clone(),
                &host,
                variants.iter().map(on_host).collect(),
                homes,
            )?,
            embedding,
            layers,
            head,
            lists,
            _variants: variants,
            frequencies: Buffer::from(&device.gpu, &frequencies)?,
            state: Mutex::new(State {
                work: StepMemory::new(),
                slots: TableSlots::new(&device.gpu, offsets)?,
                addresses: None,
                plans: HashMap::new(),
                memory: Vec::new(),
            }),
            base,
        })
    }

    fn linears(&self) -> impl Iterator<Item = (&GpuLinear, RowSet)> {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
        layers
            .map(|linear| (linear, RowSet::All))
            .chain([(&self.head, RowSet::Wanted)])
    }

    /// Bytes of the variants' keys and gains on the device.
    pub fn device_variant_bytes(&self) -> usize {
        let matrices = self
            .linears()
            .map(|(linear, _)| linear)
            .chain([&self.embedding]);
        matrices.map(|linear| linear.variants.variant_bytes()).sum()
    }

    /// Bytes of the tables on the device: modulation by slots, frequencies of positions.
    pub fn table_bytes(&self) -> usize {
        self.state().slots.bytes() + self.frequencies.bytes()
    }

    /// An instance whose base is W_0 plus the mix's retrieved deltas, with no variants.
    pub fn materialise(&self, mix: &Mix) -> Result<GpuDit> {
        let device = &self.base.device;
        let mut matrices = BTreeMap::new();
        let mut add = |name: String, linear: &GpuLinear| -> Result<()> {
            let matrix = materialise(device, &linear.base, &linear.variants, mix)?;
            matrices.insert(name, Arc::new(matrix));
            Ok(())
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let matrices = [&layer.qkv, &layer.out, &layer.up, &layer.down];
            for (name, linear) in layer_products(index).into_iter().zip(matrices) {
                add(name, linear)?;
            }
        }
        add(HEAD.to_owned(), &self.head)?;
        add(EMBEDDING.to_owned(), &self.embedding)?;
        let host = BaseWeights::of(
            self.base.host.architecture.clone(),
            BTreeMap::new(),
            self.modulation.retrieve_all(mix)?,
        );
        let base = GpuBase {
            device: device.clone(),
            host: Arc::new(host),
            matrices,
            slots: Arc::default(),
        };
        GpuDit::new(Arc::new(base), &[], Vec::new())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a batch; afterwards logits and draws lie on the device.
    fn run(&self, state: &mut State, batch: &Batch, cache: &KvCache) -> Result<()> {
        cache.check(batch)?;
        let (config, gpu) = (&self.base.host.architecture, &self.base.device.gpu);
        let Some(buffer) = cache.on_device() else {
            return Err(Error::CacheElsewhere);
        };
        let pages = Pages {
            address: buffer.address(),
            page_tokens: cache.page_tokens(),
        };
        let slots = state.slots.of(gpu, &self.modulation, batch)?;
        let packed = Packed::new(
            std::mem::take(&mut state.memory),
            batch,
            &slots,
            (&self.lists, &self.embedding.variants.placement),
            (cache.page_tokens(), config.vocabulary.rows),
        )?;
        // A shape that is remembered has its room.
        if !state.plans.contains_key(&packed.shape) {
            let room = state
                .work
                .reserve(&self.base.device, config, &packed.shape, self.linears());
            if room.is_err() {
                state.plans.clear(); // their memory is gone
            }
            room?;
        }
        // A recorded step holds addresses.
        let addresses = (pages, state.slots.addresses(), state.work.pieces());
        if state.addresses.replace(addresses) != Some(addresses) || state.plans.len() >= PLANS {
            state.plans.clear();
        }
        let State {
            work,
            slots,
            plans,
            memory,
            ..
        } = state;
        if !plans.contains_key(&packed.shape) {
            let plan = Recording {
                memory: Buffer::new(gpu, packed.bytes.len())?,
                graph: None,
                seen: 0,
            };
            plans.insert(packed.shape.clone(), plan);
        }
        let Some(plan) = plans.get_mut(&packed.shape) else {
            return Err(Error::NotKept("a plan for the batch"));
        };
        plan.memory.write(0, &packed.bytes)?;
        *memory = packed.bytes;
        plan.seen += 1;
        if let Some(graph) = &plan.graph {
            return Ok(graph.replay()?);
        }
        let places: Places = packed.places.at(plan.memory.address());
        let step = DeviceStep {
            shape: &packed.shape,
            places: &places,
            work: work.pieces(),
            slots,
            pages,
        };
        let mut launch = || -> std::result::Result<(), Fault> {
            self.layers(&step)?;
            match packed.shape.wanted {
                0 => Ok(()),
                _ => self.head(&step),
            }
        };
        // The first time, libraries load what they need; the second time, a shape is worth recording.
        let dense = |(linear, _): (&GpuLinear, RowSet)| {
            !linear.variants.tiled && !linear.variants.banks.is_empty()
        };
        if plan.seen < 2 || !packed.shape.recordable() || self.linears().any(dense) {
            return Ok(launch()?);
        }
        match gpu.record(&mut launch)? {
            Some(graph) => {
                graph.replay()?;
                plan.graph = Some(graph);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Downloads what a step left: draws, and logits of the rows of segments without draws.
    fn outcome(&self, state: &State, batch: &Batch) -> Result<Outcome> {
        let (vocab, pieces) = (
            self.base.host.architecture.vocabulary.rows,
            state.work.pieces(),
        );
        let gpu = &self.base.device.gpu;
        let (mut drawn, mut data, mut first) = (Vec::new(), Vec::new(), 0);
        let all: Vec<DrawnFacts> = match batch.drawn_rows() {
            0 => Vec::new(),
            _ => work::read(gpu, pieces.drawn, batch.logit_rows())?,
        };
        for segment in &batch.segments {
            let rows = first..first + segment.rows.len();
            first = rows.end;
            if !segment.draws.is_empty() {
                drawn.extend(all[rows].iter().map(|&facts| Drawn::from(facts)));
                continue;
            }
            if rows.is_empty() {
                continue;
            }
            let pitch = work::logits_pitch(vocab);
            let at = pieces.logits + (rows.start * pitch * size_of::<f32>()) as u64;
            let padded: Vec<f32> = work::read(gpu, at, rows.len() * pitch)?;
            let mut logits: Vec<f32> = padded
                .chunks(pitch)
                .flat_map(|row| &row[..vocab])
                .copied()
                .collect();
            let tables = self.modulation.tables(&segment.mix, segment.sigma)?;
            for row in logits.chunks_mut(vocab) {
                row.iter_mut()
                    .zip(tables.bias.iter().flat_map(|bias| bias.iter()))
                    .for_each(|(logit, bias)| *logit += bias);
            }
            data.extend(logits);
        }
        Ok(Outcome {
            logits: Logits { vocab, data },
            drawn,
        })
    }
}

impl Denoiser for GpuDit {
    fn facts(&self) -> &NetworkFacts {
        &self.base.host.facts
    }

    fn cache(&self, page_tokens: usize, pages: usize) -> Result<KvCache> {
        KvCache::device(&self.base.device, self.facts().cache, page_tokens, pages)
    }

    fn page_bytes(&self, page_tokens: usize) -> usize {
        KvCache::device_page_bytes(&self.base.device, self.facts().cache, page_tokens)
    }

    fn bytes(&self) -> usize {
        let State { work, slots, .. } = &*self.state();
        let on_device =
            self.base.device_bytes() + slots.bytes() + self.frequencies.bytes() + work.bytes();
        on_device + self.base.host.bytes() + self.modulation.table_bytes()
    }

    fn materialise(&self, mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(Some(Arc::new(GpuDit::materialise(self, mix)?)))
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Logits> {
        let mut batch = batch.clone();
        batch
            .segments
            .iter_mut()
            .for_each(|segment| segment.draws.clear());
        Ok(self.step(&batch, cache)?.logits)
    }

    fn step(&self, batch: &Batch, cache: &mut KvCache) -> Result<Outcome> {
        let mut state = self.state();
        if batch
            .segments
            .iter()
            .any(|segment| !segment.tokens.is_empty())
        {
            self.run(&mut state, batch, cache)?;
        }
        self.outcome(&state, batch)
    }
}
