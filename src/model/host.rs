//! The executor on the host: evaluates an architecture over a batch of segments, one base and many variants.

use super::architecture::{Architecture, Layer, MatrixRole, Mlp, shapes};
use super::attention::{AttentionShape, attend, keep, prepare};
use super::base::BaseWeights;
use super::batch::{Batch, Logits, Mix};
use super::denoiser::Denoiser;
use super::facts::NetworkFacts;
use super::kv_cache::KvCache;
use super::linear::{Superposed, SuperposedLinear};
use super::modulation::Modulation;
use super::plan::BatchRows;
use super::profile::{ForwardStage, StageHook};
use super::variant::{Placed, ServedVariant, homes};
use super::weights::{ServedBank, VariantWeights};
use super::workspace::{ForwardWorkspace, sized};
use crate::model::error::{Error, Result};
use crate::ops::attend::QUERIES;
use crate::ops::norm::Residual;
use crate::ops::{self, Rotary};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Positions whose angles are kept; those of later ones are computed as they come.
const ANGLES: usize = 4096;

/// A layer's matrices.
struct Matrices {
    qkv: SuperposedLinear,
    out: SuperposedLinear,
    up: SuperposedLinear,
    down: SuperposedLinear,
}

/// One generation's model instance: the base's tensors and what its variants add to them.
pub struct HostNetwork {
    base: Arc<BaseWeights>,
    embedding: SuperposedLinear,
    layers: Vec<Matrices>,
    /// The embedding's matrix where it is tied.
    head: SuperposedLinear,
    modulation: Modulation,
    rotary: Rotary,
}

impl HostNetwork {
    /// An instance of `base` with `variants`, whose [`VariantId`](super::batch::VariantId) is their index, read from `banks`.
    pub fn new(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<VariantWeights>,
    ) -> Result<Self> {
        let place = |weights: VariantWeights| {
            let shapes = shapes(&base.architecture);
            Ok(Placed {
                own: Arc::new(ServedVariant::new(&weights, shapes)?),
                banks: weights.banks,
            })
        };
        let variants = variants.into_iter().map(place).collect::<Result<_>>()?;
        HostNetwork::of(base, banks, variants)
    }

    /// As [`HostNetwork::new`], of variants that other instances may share.
    pub fn of(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<Placed<ServedVariant>>,
    ) -> Result<Self> {
        let architecture = &base.architecture;
        let attention = architecture.attention();
        let queries = attention.heads / attention.kv_heads;
        if queries > QUERIES {
            return Err(Error::TooLarge {
                what: "a number of queries to a key",
                found: queries,
                limit: QUERIES,
            });
        }
        let linear = |role: MatrixRole, layer: Option<usize>| -> Result<SuperposedLinear> {
            let name = name(architecture, role, layer)?;
            Ok(SuperposedLinear {
                base: base.matrix(name)?.clone(),
                variants: Superposed::of(name, banks, &variants)?,
            })
        };
        let layers = (0..architecture.layers.len()).map(Some).map(|layer| {
            Ok(Matrices {
                qkv: linear(MatrixRole::Qkv, layer)?,
                out: linear(MatrixRole::AttentionOut, layer)?,
                up: linear(MatrixRole::Up, layer)?,
                down: linear(MatrixRole::Down, layer)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let embedding = linear(MatrixRole::Embedding, None)?;
        let head = match architecture.head.tied {
            true => embedding.clone(),
            false => linear(MatrixRole::Head, None)?,
        };
        let angles = (2 * architecture.context).min(ANGLES);
        let rotary = Rotary::new(attention.head_dim, attention.rotary.theta, 0..angles);
        let homes = homes(banks.len(), &variants, |own| !own.own.is_empty());
        Ok(Self {
            modulation: Modulation::new(base.clone(), banks, variants, homes)?,
            base,
            embedding,
            layers,
            head,
            rotary,
        })
    }

    /// Bytes of the tables that belong to no weight: cosines and sines of positions.
    pub fn table_bytes(&self) -> usize {
        self.rotary.bytes()
    }

    /// Bytes of the matrices that every step's rows go through: all but an embedding that is looked up only.
    pub fn product_bytes(&self) -> usize {
        let layers = self.layers.iter();
        let matrices = layers.flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
        let all = matrices.chain([&self.head]);
        all.map(|linear| linear.base.bytes()).sum()
    }

    /// An instance whose base is W_0 plus the mix's retrieved deltas, with no variants: one pass over W_0 and S,
    /// after which every product costs what the base's does.
    pub fn materialise(&self, mix: &Mix) -> Result<HostNetwork> {
        let architecture = &self.base.architecture;
        let mut matrices = BTreeMap::new();
        let mut add = |role, layer, linear: &SuperposedLinear| -> Result<()> {
            let name = name(architecture, role, layer)?.to_owned();
            matrices.insert(name, Arc::new(linear.materialise(mix)?));
            Ok(())
        };
        add(MatrixRole::Embedding, None, &self.embedding)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let number = Some(number);
            add(MatrixRole::Qkv, number, &layer.qkv)?;
            add(MatrixRole::AttentionOut, number, &layer.out)?;
            add(MatrixRole::Up, number, &layer.up)?;
            add(MatrixRole::Down, number, &layer.down)?;
        }
        if !architecture.head.tied {
            add(MatrixRole::Head, None, &self.head)?;
        }
        let plain = self.modulation.retrieve_all(mix)?;
        let base = BaseWeights::of(architecture.clone(), matrices, plain);
        HostNetwork::new(Arc::new(base), &[], Vec::new())
    }

    /// The embeddings of all tokens, [rows, hidden].
    fn embed(&self, batch: &Batch, x: &mut [f32]) -> Result<()> {
        let SuperposedLinear { base, variants } = &self.embedding;
        let (rows, hidden) = base.shape();
        let (mut rest, mut work) = (x, Vec::with_capacity(batch.segments.len()));
        for segment in &batch.segments {
            let own;
            (own, rest) = rest.split_at_mut(segment.tokens.len() * hidden);
            work.push((segment, own));
        }
        // Reading a variant's rows back takes time enough to share it out.
        work.into_par_iter().try_for_each(|(segment, x)| {
            for (&token, x) in segment.tokens.iter().zip(x.chunks_mut(hidden)) {
                let index = token as usize;
                if index >= rows {
                    return Err(Error::Token { token, rows });
                }
                base.row(index, x);
                for &(variant, weight) in &segment.mix.0 {
                    variants.add_row(variant, weight, index, x)?;
                }
            }
            Ok(())
        })
    }

    fn logits(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        work: &mut ForwardWorkspace,
        ended: &mut StageHook,
    ) -> Result<Vec<f32>> {
        let architecture = &self.base.architecture;
        let (hidden, vocab) = (architecture.hidden, architecture.vocabulary.rows);
        work.plan.fill(batch, &self.modulation)?;
        ended(ForwardStage::Plan, 0);
        let mut data = work.logits(work.plan.wanted.len() * vocab);
        let plan = &work.plan;
        let mut rows = &plan.all;
        if rows.len() == 0 {
            return Ok(data);
        }
        let shape = AttentionShape {
            of: architecture.attention(),
            window: architecture.context,
        };
        let first_positions = batch
            .segments
            .iter()
            .map(|s| (s.first_position, s.tokens.len()));
        let positions = first_positions.flat_map(|(first, count)| first..first + count);
        self.rotary.pick(positions, &mut work.rotary);
        ended(ForwardStage::Rotary, 0);

        let count = rows.len();
        let mut x = sized(&mut work.x, count * hidden);
        let mut normed = sized(&mut work.normed, count * hidden);
        self.embed(batch, x)?;
        ended(ForwardStage::Embedding, 0);
        ops::norm_into(architecture.layers[0].norm, x, normed, hidden, |row| {
            plan.line(rows, row).layers[0].norm1.affine()
        });
        ended(ForwardStage::Norm, 0);
        let attended_width = shape.of.heads * shape.of.head_dim;
        let qkv = sized(&mut work.qkv, count * shape.of.width());
        for (number, layer) in self.layers.iter().enumerate() {
            let Layer { norm, mlp, .. } = architecture.layers[number];
            product(ended, ForwardStage::Qkv, &layer.qkv, normed, rows, qkv)?;
            prepare(qkv, shape, &work.rotary, |row| {
                &plan.line(rows, row).layers[number]
            });
            keep(qkv, &batch.segments, shape, number, cache);
            ended(ForwardStage::Rotary, 0);
            if number + 1 == self.layers.len() {
                // Of the last layer others need keys and values at most: the rest is for rows of logits only.
                rows = &plan.wanted;
                for (to, &from) in rows.tokens.iter().enumerate() {
                    x.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
                }
                (x, normed) = (
                    &mut x[..rows.len() * hidden],
                    &mut normed[..rows.len() * hidden],
                );
            }
            let count = rows.len();
            let attended = sized(&mut work.attended, count * attended_width);
            attend(
                qkv,
                &batch.segments,
                (&plan.all, rows),
                (shape, number),
                cache,
                attended,
            );
            ended(ForwardStage::Attention, 0);
            let narrow = sized(&mut work.narrow, count * hidden);
            product(ended, ForwardStage::Out, &layer.out, attended, rows, narrow)?;
            ops::residual_norm(norm, x, narrow, normed, hidden, |row| {
                let line = &plan.line(rows, row).layers[number];
                Residual {
                    gate: line.gate1.as_deref(),
                    bias: None,
                    affine: line.norm2.affine(),
                }
            });
            ended(ForwardStage::Norm, 0);
            let wide = sized(&mut work.wide, count * mlp.intermediate());
            product(ended, ForwardStage::Up, &layer.up, normed, rows, wide)?;
            let wide = match mlp {
                Mlp::Gelu { width } => {
                    ops::bias_gelu_in_place(wide, width, |row| {
                        plan.line(rows, row).layers[number]
                            .up_bias
                            .as_deref()
                            .unwrap_or(&[])
                    });
                    wide
                }
                Mlp::SwiGlu { width } => {
                    let gated = sized(&mut work.gated, count * width);
                    ops::swiglu(wide, width, gated);
                    gated
                }
            };
            ended(ForwardStage::Gelu, 0);
            product(ended, ForwardStage::Down, &layer.down, wide, rows, narrow)?;
            let next = match architecture.layers.get(number + 1) {
                Some(next) => next.norm,
                None => architecture.norm,
            };
            ops::residual_norm(next, x, narrow, normed, hidden, |row| {
                let line = plan.line(rows, row);
                let own = &line.layers[number];
                let next = line.layers.get(number + 1);
                Residual {
                    gate: own.gate2.as_deref(),
                    bias: own.down_bias.as_deref(),
                    affine: next.map_or(&line.norm, |next| &next.norm1).affine(),
                }
            });
            ended(ForwardStage::Norm, 0);
        }
        product(
            ended,
            ForwardStage::Head,
            &self.head,
            normed,
            rows,
            &mut data,
        )?;
        if architecture.head.bias {
            ops::add_bias_in_place(&mut data, vocab, |row| {
                plan.line(rows, row).bias.as_deref().unwrap_or(&[])
            });
        }
        ended(ForwardStage::Bias, 0);
        Ok(data)
    }
}

/// What the tensor of this role is called.
fn name(architecture: &Architecture, role: MatrixRole, layer: Option<usize>) -> Result<&str> {
    match architecture.tensor(role, layer) {
        Some(spec) => Ok(&spec.name),
        None => Err(Error::MissingRole { role, layer }),
    }
}

/// y [rows, out] of x [rows, in]: one product of the base, and what the banks add to it.
fn product(
    ended: &mut StageHook,
    stage: ForwardStage,
    linear: &SuperposedLinear,
    x: &[f32],
    rows: &BatchRows,
    y: &mut [f32],
) -> Result<()> {
    let (out, input) = linear.base.shape();
    let flops = |rows: usize| 2 * rows * out * input;
    linear.base.product(x, rows.len(), y)?;
    ended(stage, flops(rows.len()));
    if !rows.parts.is_empty() {
        linear.variants.add_products(x, &rows.parts, y)?;
        ended(ForwardStage::Banks, flops(rows.parts.len()));
    }
    Ok(())
}

impl Denoiser for HostNetwork {
    fn facts(&self) -> &NetworkFacts {
        &self.base.facts
    }

    fn bytes(&self) -> usize {
        self.base.bytes() + self.table_bytes() + self.modulation.table_bytes()
    }

    fn materialise(&self, mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(Some(Arc::new(HostNetwork::materialise(self, mix)?)))
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Logits> {
        self.profiled(batch, cache, &mut |_, _| ())
    }

    fn profiled(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        ended: &mut StageHook,
    ) -> Result<Logits> {
        cache.check(batch)?;
        if cache.on_device().is_some() {
            return Err(Error::CacheElsewhere);
        }
        let mut work = std::mem::take(&mut cache.workspace);
        let data = self.logits(batch, cache, &mut work, ended);
        cache.workspace = work;
        Ok(Logits {
            vocab: self.base.facts.rows,
            data: data?,
        })
    }
}
