//! The executor on a device: evaluates an architecture over a batch, one base and many variants, and draws tokens, in launches that
//! are recorded once for every shape of batch and replayed.
//!
//! The residual stream, products and logits are f32; what products and attention read is of the device's type. Rows of
//! modulation tables are made on the host, once for every mix and noise level, and kept in slots. What is recorded belongs to the
//! base: instances whose variants lie alike share it.

mod fused;
mod linear;
mod network;
mod pack;
mod parts;
mod plan;
mod room;
mod slots;
mod train;
mod variant;
pub mod weights;
mod work;
mod writer;

use super::architecture::{Architecture, MatrixRole};
use super::base::BaseWeights;
use super::batch::{Batch, Logits, Mix, StepOutcome};
use super::denoiser::Denoiser;
use super::error::{Error, Result};
use super::facts::NetworkFacts;
use super::kv_cache::{KvCache, PageLayout};
use super::modulation::Modulation;
pub use super::target::{GpuTarget, Matrix, padded};
use super::variant::{Placed, homes};
use super::weights::{ServedBank, VariantWeights};
use crate::ops::categorical::Drawn;
use crate::ops::gpu::Fault;
use crate::ops::gpu::attention::MAX_HEAD;
use crate::ops::gpu::draw::DrawnFacts;
use crate::ops::gpu::pointwise::MAX_WIDTH;
use linear::{GpuLinear, GpuSuperposed, materialise};
use network::{DeviceStep, Pages};
use pack::{PackedBatch, Packing};
use parts::{List, Routing, RowSet};
use plan::{Addresses, Prepared};
use room::StepBuffers;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
pub use train::{GpuTrainable, GpuTrainer};
pub use variant::GpuVariant;
pub use weights::{GpuBank, GpuBase};
use work::Needs;

#[derive(Debug)]
struct GpuLayer {
    qkv: GpuLinear,
    out: GpuLinear,
    up: GpuLinear,
    down: GpuLinear,
}

impl GpuLayer {
    fn linears(&self) -> [&GpuLinear; 4] {
        [&self.qkv, &self.out, &self.up, &self.down]
    }
}

/// One generation's model instance on a device.
pub struct GpuNetwork {
    base: Arc<GpuBase>,
    modulation: Modulation,
    embedding: GpuLinear,
    layers: Vec<GpuLayer>,
    /// The embedding's matrix where it is tied.
    head: GpuLinear,
    lists: Vec<List>,
    routing: Arc<Routing>,
    /// They keep their slots.
    _variants: Vec<Placed<GpuVariant>>,
    _banks: Vec<Arc<GpuBank>>,
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

impl GpuNetwork {
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
        GpuNetwork::of(base, banks, variants)
    }

    /// As [`GpuNetwork::new`], of variants that other instances may share. Takes the memory that steps as large as those so far
    /// need for them.
    ///
    /// # Errors
    /// Where a bank or a variant does not fit, and where there is no such memory; what other instances have stays as it is.
    pub fn of(
        base: Arc<GpuBase>,
        banks: &[Arc<GpuBank>],
        variants: Vec<Placed<GpuVariant>>,
    ) -> Result<Self> {
        let architecture = &base.host.architecture;
        check_widths(architecture.attention().head_dim, architecture.hidden)?;
        let slots = banks.iter().map(|bank| &bank.slot);
        let mut slots = slots.chain(variants.iter().map(|variant| &variant.own.slot));
        let held = base.room.hold();
        if !slots.all(|slot| held.tables.has(slot)) {
            return Err(Error::Elsewhere);
        }
        drop(held);
        let mut lists: Vec<List> = Vec::new();
        let mut linear =
            |role: MatrixRole, layer: Option<usize>, rows: RowSet| -> Result<GpuLinear> {
                let name = name(architecture, role, layer)?;
                let Some(matrix) = base.matrices.get(name) else {
                    return Err(Error::MissingTensor {
                        name: name.to_owned(),
                    });
                };
                let shape = (name, matrix.out, matrix.input);
                let superposed = GpuSuperposed::of(shape, banks, &variants)?;
                let list = List {
                    placement: superposed.placement.clone(),
                    rows,
                    most: match rows {
                        RowSet::All if architecture.hidden <= SMALL => 16,
                        _ => 64,
                    },
                };
                let known = lists.iter().position(|known| *known == list);
                Ok(GpuLinear {
                    base: matrix.clone(),
                    variants: Arc::new(superposed),
                    list: known.unwrap_or_else(|| {
                        lists.push(list);
                        lists.len() - 1
                    }),
                })
            };
        let layers = (0..architecture.layers.len()).map(Some).map(|layer| {
            Ok(GpuLayer {
                qkv: linear(MatrixRole::Qkv, layer, RowSet::All)?,
                out: linear(MatrixRole::AttentionOut, layer, RowSet::All)?,
                up: linear(MatrixRole::Up, layer, RowSet::All)?,
                down: linear(MatrixRole::Down, layer, RowSet::All)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let head = match architecture.head.tied {
            true => MatrixRole::Embedding,
            false => MatrixRole::Head,
        };
        let head = linear(head, None, RowSet::Wanted)?;
        let embedding = linear(MatrixRole::Embedding, None, RowSet::All)?;
        let host: Vec<Arc<ServedBank>> = banks.iter().map(|bank| bank.host.clone()).collect();
        let on_host = |variant: &Placed<GpuVariant>| Placed {
            own: variant.own.host.clone(),
            banks: variant.banks.clone(),
        };
        let homes = homes(banks.len(), &variants, |own| {
            !own.own.is_empty() || !own.host.own.is_empty()
        });
        let on_host = variants.iter().map(on_host).collect();
        let mut network = Self {
            modulation: Modulation::new(base.host.clone(), &host, on_host, homes)?,
            embedding,
            layers,
            head,
            lists,
            routing: Arc::default(),
            _variants: variants,
            _banks: banks.to_vec(),
            base,
        };
        let products = network.linears().map(|(linear, _)| linear);
        let matrices = products.chain([&network.embedding]);
        let matrices = matrices.map(|linear| (linear.list, linear.variants.ranks()));
        network.routing = Arc::new(Routing {
            matrices: matrices.collect(),
        });
        network.take_memory()?;
        Ok(network)
    }

    /// What steps as large as those so far need, whatever their rows' variants.
    fn take_memory(&self) -> Result<()> {
        let mut held = self.base.room.hold();
        let (rows, wanted) = held.work.most();
        let of = |list: &List| match list.rows {
            RowSet::All => list.largest(rows),
            RowSet::Wanted => list.largest(wanted),
        };
        let waves: Vec<_> = self.lists.iter().map(of).collect();
        let needs = self.needs((rows, wanted), &waves);
        Ok(held.work.reserve(&self.base.device.gpu, needs)?)
    }

    fn needs(
        &self,
        rows: (usize, usize),
        waves: &[parts::Sources<Vec<parts::WaveShape>>],
    ) -> Needs {
        let GpuBase { device, host, .. } = &*self.base;
        Needs::of(device, &host.architecture, rows, waves, self.linears())
    }

    /// The matrices that rows go through.
    fn linears(&self) -> impl Iterator<Item = (&GpuLinear, RowSet)> {
        let layers = self.layers.iter().flat_map(|layer| layer.linears());
        let layers = layers.map(|linear| (linear, RowSet::All));
        layers.chain([(&self.head, RowSet::Wanted)])
    }

    /// Bytes of what the variants keep by themselves on the device, and of tables of all variants of the base.
    pub fn device_variant_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| layer.linears());
        let head = (!self.base.host.architecture.head.tied).then_some(&self.head);
        let matrices = layers.chain(head).chain([&self.embedding]);
        let own: usize = matrices.map(|linear| linear.variants.own_bytes()).sum();
        own + self.base.room.hold().tables.bytes()
    }

    /// Bytes of the tables on the device: modulation by slots, frequencies of positions.
    pub fn table_bytes(&self) -> usize {
        self.prepared().bytes()
    }

    /// How many shapes of batches are recorded for instances of its base.
    pub fn recorded(&self) -> usize {
        self.prepared().plans.recorded()
    }

    /// An instance whose base is W_0 plus the mix's retrieved deltas, with no variants.
    pub fn materialise(&self, mix: &Mix) -> Result<GpuNetwork> {
        let GpuBase {
            device, host, room, ..
        } = &*self.base;
        let architecture = &host.architecture;
        let mut matrices = BTreeMap::new();
        let all = self.linears().map(|(linear, _)| linear);
        let held = room.hold(); // tables stay where they are
        for linear in all.chain([&self.embedding]) {
            let name = linear.variants.name();
            if matrices.contains_key(name) {
                continue;
            }
            let tables = held.tables.of(name);
            let matrix = materialise(device, &linear.base, (&linear.variants, tables), mix)?;
            matrices.insert(name.to_owned(), Arc::new(matrix));
        }
        drop(held);
        let plain = self.modulation.retrieve_all(mix)?;
        let host = BaseWeights::of(architecture.clone(), BTreeMap::new(), plain);
        let base = GpuBase::within(room.clone(), device.clone(), Arc::new(host), matrices)?;
        GpuNetwork::new(Arc::new(base), &[], Vec::new())
    }

    fn prepared(&self) -> MutexGuard<'_, Prepared> {
        let prepared = self.base.prepared.lock();
        prepared.unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a batch; afterwards logits and draws lie on the device.
    fn run(&self, held: &mut StepBuffers, batch: &Batch, cache: &KvCache) -> Result<()> {
        cache.check(batch)?;
        let (architecture, gpu) = (&self.base.host.architecture, &self.base.device.gpu);
        let Some(buffer) = cache.on_device() else {
            return Err(Error::CacheElsewhere);
        };
        let pages = Pages {
            address: buffer.address(),
            page_tokens: cache.page_tokens(),
        };
        let attention = architecture.attention();
        let Prepared {
            tables,
            frequencies,
            plans,
        } = &mut *self.prepared();
        let slots = tables.of(gpu, &self.modulation, batch)?;
        let packing = Packing {
            lists: &self.lists,
            routing: &self.routing,
            embedding: &self.embedding.variants.placement,
            page_tokens: cache.page_tokens(),
            vocab: architecture.vocabulary.rows,
            group: attention.heads / attention.kv_heads,
        };
        let PackedBatch {
            shape,
            bytes,
            places,
        } = PackedBatch::new(std::mem::take(&mut held.memory), batch, &slots, &packing)?;
        held.work.expect(shape.rows, shape.wanted);
        let needs = || self.needs((shape.rows, shape.wanted), &shape.waves);
        let plan = plans.of(gpu, (&shape, bytes.len()), needs)?;
        held.work.reserve(gpu, plan.needs)?;
        plan.memory.write(0, &bytes)?;
        held.memory = bytes;
        let addresses = Addresses {
            pages,
            slots: tables.addresses(),
            tables: held.tables.sizes(),
            work: held.work.pieces(),
        };
        // A recorded step holds addresses.
        plan.graph.take_if(|(of, _)| *of != addresses);
        if let Some((_, graph)) = &plan.graph {
            return Ok(graph.replay()?);
        }
        let places = places.within(&plan.memory);
        let step = DeviceStep {
            shape: &shape,
            places: &places,
            work: held.work.pieces(),
            slots: tables,
            frequencies: frequencies.address(),
            tables: &held.tables,
            pages,
        };
        let mut launch = || -> std::result::Result<(), Fault> {
            self.layers(&step)?;
            match shape.wanted {
                0 => Ok(()),
                _ => self.head(&step),
            }
        };
        // The first time, libraries load what they need; the second time, a shape is worth recording.
        if plan.seen < 2 || !shape.recordable() {
            return Ok(launch()?);
        }
        if let Some(graph) = gpu.record(&mut launch)? {
            graph.replay()?;
            plan.graph = Some((addresses, graph));
        }
        Ok(())
    }

    /// Downloads what a step left: draws, and logits of the rows of segments without draws.
    fn outcome(&self, held: &StepBuffers, batch: &Batch) -> Result<StepOutcome> {
        let (vocab, pieces) = (
            self.base.host.architecture.vocabulary.rows,
            held.work.pieces(),
        );
        let gpu = &self.base.device.gpu;
        if batch.logit_rows() == 0 {
            // Else what fails in this step would be told of another, which would be charged for it, too.
            gpu.synchronise()?;
        }
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
            let at = pieces.logits + rows.start * pitch * size_of::<f32>();
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
        Ok(StepOutcome {
            logits: Logits { vocab, data },
            drawn,
        })
    }
}

/// What the tensor of this role is called.
fn name(architecture: &Architecture, role: MatrixRole, layer: Option<usize>) -> Result<&str> {
    match architecture.tensor(role, layer) {
        Some(spec) => Ok(&spec.name),
        None => Err(Error::MissingRole { role, layer }),
    }
}

impl Denoiser for GpuNetwork {
    fn facts(&self) -> &NetworkFacts {
        &self.base.host.facts
    }

    fn cache(&self, page: PageLayout, pages: usize) -> Result<KvCache> {
        KvCache::device(&self.base.device, self.facts().cache, page.tokens, pages)
    }

    fn page_bytes(&self, page: PageLayout) -> usize {
        KvCache::device_page_bytes(&self.base.device, self.facts().cache, page.tokens)
    }

    fn bytes(&self) -> usize {
        let on_device = self.base.device_bytes() + self.table_bytes();
        on_device
            + self.base.room.hold().work.bytes()
            + self.base.host.bytes()
            + self.modulation.table_bytes()
    }

    fn materialise(&self, mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(Some(Arc::new(GpuNetwork::materialise(self, mix)?)))
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Logits> {
        let mut batch = batch.clone();
        batch
            .segments
            .iter_mut()
            .for_each(|segment| segment.draws.clear());
        Ok(self.step(&batch, cache)?.logits)
    }

    fn step(&self, batch: &Batch, cache: &mut KvCache) -> Result<StepOutcome> {
        let mut held = self.base.room.hold();
        if batch
            .segments
            .iter()
            .any(|segment| !segment.tokens.is_empty())
        {
            self.run(&mut held, batch, cache)?;
        }
        self.outcome(&held, batch)
    }
}
