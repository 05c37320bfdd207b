//! The DiT over a batch of segments: one base, many variants, cached keys and values.

use super::NetworkFacts;
use super::attention::{Shape, attend, keep, rotate};
use super::batch::{Batch, Denoiser, Logits, Mix, VariantId};
use super::kv_cache::KvCache;
use super::linear::{Superposed, SuperposedLinear};
use super::modulation::Modulation;
use super::plan::Rows;
use super::profile::{Stage, StageHook};
use super::variant::{Placed, ServedVariant, homes};
use super::weights::{BaseWeights, HEAD, ServedBank, VariantWeights, layer_products};
use super::workspace::{Workspace, sized};
use crate::ops::norm::Residual;
use crate::ops::{self, Rotary, slice};
use candle_core::{Result, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

struct Layer {
    qkv: SuperposedLinear,
    out: SuperposedLinear,
    expand: SuperposedLinear,
    contract: SuperposedLinear,
}

/// One generation's model instance: the base's tensors and the variants read from their banks.
pub struct Dit {
    base: Arc<BaseWeights>,
    layers: Vec<Layer>,
    head: SuperposedLinear,
    modulation: Modulation,
    rotary: Rotary,
}

impl Dit {
    /// An instance of `base` with `variants`, whose [`VariantId`] is their index, read from `banks`.
    pub fn new(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<VariantWeights>,
    ) -> Result<Self> {
        let place = |weights: VariantWeights| {
            Ok(Placed {
                own: Arc::new(ServedVariant::new(&weights, base.config.tensors())?),
                banks: weights.banks,
            })
        };
        let variants = variants.into_iter().map(place).collect::<Result<_>>()?;
        Dit::of(base, banks, variants)
    }

    /// As [`Dit::new`], of variants that other instances may share.
    pub fn of(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<Placed<ServedVariant>>,
    ) -> Result<Self> {
        let config = &base.config;
        let linear = |name: &str| -> Result<SuperposedLinear> {
            Ok(SuperposedLinear {
                base: base.product(name)?.clone(),
                variants: Superposed::of(name, banks, &variants)?,
            })
        };
        let mut layers = Vec::with_capacity(config.n_blocks);
        for layer in 0..config.n_blocks {
            let [qkv, out, expand, contract] = layer_products(layer);
            layers.push(Layer {
                qkv: linear(&qkv)?,
                out: linear(&out)?,
                expand: linear(&expand)?,
                contract: linear(&contract)?,
            });
        }
        let head = linear(HEAD)?;
        let rotary = Rotary::new(config.head_dim(), 0..2 * config.model_length);
        let homes = homes(banks.len(), &variants, |own| !own.own.is_empty());
        Ok(Self {
            modulation: Modulation::new(base.clone(), banks, variants, homes)?,
            base,
            layers,
            head,
            rotary,
        })
    }

    /// Bytes of the tables that belong to no weight: cosines and sines of positions.
    pub fn table_bytes(&self) -> usize {
        self.rotary.bytes()
    }

    /// An instance whose base is W_0 plus the mix's retrieved deltas, with no variants: one pass over W_0 and S,
    /// after which every product costs what the base's does.
    pub fn materialise(&self, mix: &Mix) -> Result<Dit> {
        let config = self.base.config.clone();
        let mut products = BTreeMap::new();
        let mut add = |name: String, linear: &SuperposedLinear| -> Result<()> {
            products.insert(name, Arc::new(linear.materialise(mix)?));
            Ok(())
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let matrices = [&layer.qkv, &layer.out, &layer.expand, &layer.contract];
            for (name, linear) in layer_products(index).into_iter().zip(matrices) {
                add(name, linear)?;
            }
        }
        add(HEAD.to_owned(), &self.head)?;
        let plain = self.modulation.retrieve_all(mix)?;
        Dit::new(
            Arc::new(BaseWeights {
                facts: config.facts(),
                config,
                products,
                plain,
                tables: Default::default(),
            }),
            &[],
            Vec::new(),
        )
    }

    /// The embeddings of all tokens, [rows, hidden].
    fn embed(&self, batch: &Batch, x: &mut [f32]) -> Result<()> {
        let name = "vocab_embed.embedding";
        let table = self.base.plain(name)?;
        let (vocab, hidden) = table.dims2()?;
        let table = slice::floats(table)?;
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
                if index >= vocab {
                    bail!("token {token} is outside the vocabulary of {vocab}")
                }
                table.read(index * hidden, x);
                for &part in &segment.mix.0 {
                    self.modulation.add_row(name, part, index, x)?;
                }
            }
            Ok(())
        })
    }

    fn logits(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        work: &mut Workspace,
        ended: &mut StageHook,
    ) -> Result<Vec<f32>> {
        let config = &self.base.config;
        let (hidden, vocab) = (config.hidden_dim, config.vocab_size);
        work.plan.fill(batch, &self.modulation)?;
        ended(Stage::Plan, 0);
        let mut data = work.logits(work.plan.wanted.len() * vocab);
        let plan = &work.plan;
        let mut rows = &plan.all;
        if rows.len() == 0 {
            return Ok(data);
        }
        let shape = Shape {
            heads: config.n_heads,
            head_dim: config.head_dim(),
            window: config.model_length,
        };
        let first_positions = batch
            .segments
            .iter()
            .map(|s| (s.first_position, s.tokens.len()));
        let positions = first_positions.flat_map(|(first, count)| first..first + count);
        self.rotary.pick(positions, &mut work.rotary);
        ended(Stage::Rotary, 0);

        let count = rows.len();
        let mut x = sized(&mut work.x, count * hidden);
        let mut normed = sized(&mut work.normed, count * hidden);
        self.embed(batch, x)?;
        ended(Stage::Embedding, 0);
        ops::norm_modulate_into(x, normed, hidden, |row| {
            let t = &plan.line(rows, row).layers[0];
            (&t.gain1, &t.shift1)
        });
        ended(Stage::Norm, 0);
        let qkv = sized(&mut work.qkv, count * 3 * hidden);
        for (number, layer) in self.layers.iter().enumerate() {
            product(ended, Stage::Qkv, &layer.qkv, normed, rows, qkv)?;
            rotate(qkv, shape, &work.rotary);
            keep(qkv, &batch.segments, shape, number, cache);
            ended(Stage::Rotary, 0);
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
            let attended = sized(&mut work.attended, count * hidden);
            attend(
                qkv,
                &batch.segments,
                (&plan.all, rows),
                (shape, number),
                cache,
                &work.heads,
                attended,
            );
            ended(Stage::Attention, 0);
            let narrow = sized(&mut work.narrow, count * hidden);
            product(ended, Stage::Out, &layer.out, attended, rows, narrow)?;
            ops::residual_norm(x, narrow, normed, hidden, |row| {
                let t = &plan.line(rows, row).layers[number];
                Residual {
                    gate: &t.gate1,
                    bias: None,
                    gain: &t.gain2,
                    shift: &t.shift2,
                }
            });
            ended(Stage::Norm, 0);
            let wide = sized(&mut work.wide, count * 4 * hidden);
            product(ended, Stage::Expand, &layer.expand, normed, rows, wide)?;
            ops::bias_gelu_in_place(wide, 4 * hidden, |row| {
                &plan.line(rows, row).layers[number].bias0
            });
            ended(Stage::Gelu, 0);
            product(ended, Stage::Contract, &layer.contract, wide, rows, narrow)?;
            ops::residual_norm(x, narrow, normed, hidden, |row| {
                let line = plan.line(rows, row);
                let t = &line.layers[number];
                let next = line.layers.get(number + 1);
                let (gain, shift) = next.map_or((&line.gain, &line.shift), |next| {
                    (&next.gain1, &next.shift1)
                });
                Residual {
                    gate: &t.gate2,
                    bias: Some(&t.bias2),
                    gain,
                    shift,
                }
            });
            ended(Stage::Norm, 0);
        }
        product(ended, Stage::Head, &self.head, normed, rows, &mut data)?;
        ops::add_bias_in_place(&mut data, vocab, |row| &plan.line(rows, row).bias);
        ended(Stage::Bias, 0);
        Ok(data)
    }
}

/// y [rows, out] of x [rows, in]: one product of the base, and what the banks add to it.
fn product(
    ended: &mut StageHook,
    stage: Stage,
    linear: &SuperposedLinear,
    x: &[f32],
    rows: &Rows,
    y: &mut [f32],
) -> Result<()> {
    let (out, input) = linear.base.shape();
    let flops = |rows: usize| 2 * rows * out * input;
    linear.base.product(x, rows.len(), y)?;
    ended(stage, flops(rows.len()));
    if !rows.parts.is_empty() {
        linear.variants.add_products(x, &rows.parts, y)?;
        ended(Stage::Banks, flops(rows.parts.len()));
    }
    Ok(())
}

/// Refuses a batch that does not fit its cache or itself.
pub(super) fn check(batch: &Batch, cache: &KvCache) -> Result<()> {
    for segment in &batch.segments {
        let needed = match (segment.clean, segment.first_position) {
            (0, 0) => 0,
            (clean, first) => (first + clean).saturating_sub(segment.pages_start),
        };
        if segment.pages.len() * cache.page_tokens() < needed
            || segment.clean > segment.tokens.len()
        {
            bail!(
                "{} pages do not hold {needed} positions",
                segment.pages.len()
            )
        }
        if segment
            .pages
            .iter()
            .any(|page| page.0 as usize >= cache.pages())
        {
            bail!("a page outside the cache of {}", cache.pages())
        }
        if segment.rows.iter().any(|&row| row >= segment.tokens.len()) {
            bail!(
                "a row outside the segment's {} tokens",
                segment.tokens.len()
            )
        }
        if ![0, segment.rows.len()].contains(&segment.draws.len()) {
            bail!(
                "{} draws for {} rows",
                segment.draws.len(),
                segment.rows.len()
            )
        }
    }
    Ok(())
}

impl Denoiser for Dit {
    fn facts(&self) -> &NetworkFacts {
        &self.base.facts
    }

    fn bytes(&self) -> usize {
        self.base.bytes() + self.table_bytes() + self.modulation.table_bytes()
    }

    fn banks(&self, variant: VariantId) -> &[usize] {
        self.modulation.home(variant)
    }

    fn materialise(&self, mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(Some(Arc::new(Dit::materialise(self, mix)?)))
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
        check(batch, cache)?;
        if cache.on_device().is_some() {
            bail!("a cache on a device for a network on the host")
        }
        let mut work = std::mem::take(&mut cache.workspace);
        let data = self.logits(batch, cache, &mut work, ended);
        cache.workspace = work;
        Ok(Logits {
            vocab: self.base.config.vocab_size,
            data: data?,
        })
    }
}
