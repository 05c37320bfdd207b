//! The DiT over a batch of segments: one base, many variants, cached keys and values.

use super::DitConfig;
use super::attention::{Shape, attend};
use super::batch::{Batch, Denoiser, Logits, Mix, VariantId};
use super::conditioning::{LayerTables, Tables};
use super::kv_cache::KvCache;
use super::linear::{Part, Parts, Superposed, SuperposedLinear};
use super::modulation::Modulation;
use super::variant::{Placed, ServedVariant};
use super::weights::{BaseWeights, HEAD, ServedBank, VariantWeights, layer_products};
use crate::ops::{self, PerRow, Rotary, slice};
use candle_core::{Result, Tensor, bail};
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
    /// The banks that hold each variant.
    homes: Vec<Vec<usize>>,
}

impl Dit {
    /// An instance of `base` with `variants`, whose [`VariantId`] is their index, read from `banks`.
    pub fn new(base: Arc<BaseWeights>, banks: &[Arc<ServedBank>], variants: Vec<VariantWeights>) -> Result<Self> {
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
    pub fn of(base: Arc<BaseWeights>, banks: &[Arc<ServedBank>], variants: Vec<Placed<ServedVariant>>) -> Result<Self> {
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
        Ok(Self {
            homes: variants.iter().map(|variant| variant.banks.clone()).collect(),
            modulation: Modulation::new(base.clone(), banks, variants)?,
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
                config,
                products,
                plain,
            }),
            &[],
            Vec::new(),
        )
    }

    fn embed(&self, batch: &Batch) -> Result<Vec<f32>> {
        let name = "vocab_embed.embedding";
        let table = self.base.plain(name)?;
        let (vocab, hidden) = table.dims2()?;
        let table = slice::f32(table)?;
        let mut x = Vec::new();
        for segment in &batch.segments {
            for &token in &segment.tokens {
                let index = token as usize;
                if index >= vocab {
                    bail!("token {token} is outside the vocabulary of {vocab}")
                }
                let start = x.len();
                x.extend_from_slice(&table[index * hidden..][..hidden]);
                for &part in &segment.mix.0 {
                    self.modulation.add_row(name, part, index, &mut x[start..])?;
                }
            }
        }
        Ok(x)
    }
}

/// Refuses a batch that does not fit its cache or itself.
pub(super) fn check(batch: &Batch, cache: &KvCache) -> Result<()> {
    for segment in &batch.segments {
        let needed = match (segment.clean, segment.first_position) {
            (0, 0) => 0,
            (clean, first) => (first + clean).saturating_sub(segment.pages_start),
        };
        if segment.pages.len() * cache.page_tokens() < needed || segment.clean > segment.tokens.len() {
            bail!("{} pages do not hold {needed} positions", segment.pages.len())
        }
        if segment.pages.iter().any(|page| page.0 as usize >= cache.pages()) {
            bail!("a page outside the cache of {}", cache.pages())
        }
        if segment.rows.iter().any(|&row| row >= segment.tokens.len()) {
            bail!("a row outside the segment's {} tokens", segment.tokens.len())
        }
        if ![0, segment.rows.len()].contains(&segment.draws.len()) {
            bail!("{} draws for {} rows", segment.draws.len(), segment.rows.len())
        }
    }
    Ok(())
}

/// The lines' tables one under the other; a single line is not copied.
fn stack(lines: &[Arc<Tables>]) -> Result<Tables> {
    if let [only] = lines {
        return Ok(Tables::clone(only));
    }
    let cat = |pick: &dyn Fn(&Tables) -> &Tensor| {
        let parts: Vec<&Tensor> = lines.iter().map(|tables| pick(tables)).collect();
        Tensor::cat(&parts, 0)
    };
    let layers = (0..lines.first().map_or(0, |tables| tables.layers.len()))
        .map(|layer| {
            Ok(LayerTables {
                gain1: cat(&|t| &t.layers[layer].gain1)?,
                shift1: cat(&|t| &t.layers[layer].shift1)?,
                gate1: cat(&|t| &t.layers[layer].gate1)?,
                gain2: cat(&|t| &t.layers[layer].gain2)?,
                shift2: cat(&|t| &t.layers[layer].shift2)?,
                gate2: cat(&|t| &t.layers[layer].gate2)?,
                bias0: cat(&|t| &t.layers[layer].bias0)?,
                bias2: cat(&|t| &t.layers[layer].bias2)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Tables {
        layers,
        gain: cat(&|t| &t.gain)?,
        shift: cat(&|t| &t.shift)?,
        bias: cat(&|t| &t.bias)?,
    })
}

impl Denoiser for Dit {
    fn config(&self) -> &DitConfig {
        &self.base.config
    }

    fn bytes(&self) -> usize {
        self.base.bytes() + self.table_bytes() + self.modulation.table_bytes()
    }

    fn banks(&self, variant: VariantId) -> &[usize] {
        self.homes.get(variant.0 as usize).map_or(&[], Vec::as_slice)
    }

    fn materialise(&self, mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(Some(Arc::new(Dit::materialise(self, mix)?)))
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Logits> {
        check(batch, cache)?;
        if cache.on_device().is_some() {
            bail!("a cache on a device for a network on the host")
        }
        let config = &self.base.config;
        let (hidden, vocab) = (config.hidden_dim, config.vocab_size);
        let mut x = self.embed(batch)?;
        let rows = x.len() / hidden;
        if rows == 0 {
            return Ok(Logits {
                vocab,
                data: Vec::new(),
            });
        }

        // Which tables and which variants every row, and every row of logits, takes.
        let mut lines: Vec<Arc<Tables>> = Vec::new();
        let (mut line_of, mut parts) = (Vec::with_capacity(rows), Vec::new());
        let (mut wanted, mut wanted_line, mut wanted_parts) = (Vec::new(), Vec::new(), Vec::new());
        for segment in &batch.segments {
            let tables = self.modulation.tables(&segment.mix, segment.sigma)?;
            let line = lines
                .iter()
                .position(|known| Arc::ptr_eq(known, &tables))
                .unwrap_or_else(|| {
                    lines.push(tables);
                    lines.len() - 1
                }) as u32;
            let start = line_of.len();
            for row in start..start + segment.tokens.len() {
                line_of.push(line);
                parts.extend(
                    segment
                        .mix
                        .0
                        .iter()
                        .map(|&(variant, weight)| Part { row, variant, weight }),
                );
            }
            for row in &segment.rows {
                let position = wanted.len();
                wanted.push((start + row) as u32);
                wanted_line.push(line);
                let part = |&(variant, weight): &(VariantId, f32)| Part {
                    row: position,
                    variant,
                    weight,
                };
                wanted_parts.extend(segment.mix.0.iter().map(part));
            }
        }
        let parts = Parts::of(&parts, &self.homes)?;
        let wanted_parts = Parts::of(&wanted_parts, &self.homes)?;
        let tables = stack(&lines)?;
        let many = lines.len() > 1;
        let index = many.then_some(&line_of[..]);

        let positions = batch
            .segments
            .iter()
            .flat_map(|s| s.first_position..s.first_position + s.tokens.len());
        let rotary = self.rotary.pick(positions);
        let shape = Shape {
            heads: config.n_heads,
            head_dim: config.head_dim(),
            window: config.model_length,
        };
        for (number, (layer, t)) in self.layers.iter().zip(&tables.layers).enumerate() {
            // What is not needed any more is dropped at once: activations and logits are all the memory of a step.
            let before = slice::tensor(x, rows, hidden)?;
            let middle = {
                let normed = ops::norm_modulate(&before, PerRow::new(&t.gain1, index), PerRow::new(&t.shift1, index))?;
                let mut qkv = layer.qkv.forward(&slice::f32(&normed)?, rows, &parts)?;
                let attended = attend(&mut qkv, &batch.segments, shape, number, &rotary, cache);
                drop(qkv);
                let projected = slice::tensor(layer.out.forward(&attended, rows, &parts)?, rows, hidden)?;
                ops::gate_residual(&before, &projected, PerRow::new(&t.gate1, index), None)?
            };
            drop(before);
            let contracted = {
                let normed = ops::norm_modulate(&middle, PerRow::new(&t.gain2, index), PerRow::new(&t.shift2, index))?;
                let mut expanded = layer.expand.forward(&slice::f32(&normed)?, rows, &parts)?;
                ops::bias_gelu_in_place(&mut expanded, PerRow::new(&t.bias0, index))?;
                slice::tensor(layer.contract.forward(&expanded, rows, &parts)?, rows, hidden)?
            };
            let (bias, gate) = (PerRow::new(&t.bias2, index), PerRow::new(&t.gate2, index));
            let out = ops::gate_residual(&middle, &contracted, gate, Some(bias))?;
            x = slice::f32(&out)?.to_vec();
        }
        if wanted.is_empty() {
            return Ok(Logits {
                vocab,
                data: Vec::new(),
            });
        }
        let index = many.then_some(&wanted_line[..]);
        let last = ops::embedding(&slice::tensor(x, rows, hidden)?, &wanted)?;
        let normed = ops::norm_modulate(
            &last,
            PerRow::new(&tables.gain, index),
            PerRow::new(&tables.shift, index),
        )?;
        let mut data = self.head.forward(&slice::f32(&normed)?, wanted.len(), &wanted_parts)?;
        ops::add_bias_in_place(&mut data, PerRow::new(&tables.bias, index))?;
        Ok(Logits { vocab, data })
    }
}
