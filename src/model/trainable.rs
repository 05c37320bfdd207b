//! The network with weights that change: forward over whole sequences, and its gradient.
//!
//! The large products are differentiated by hand, layer by layer; the small part that makes modulation
//! tables out of sigma, adaLN and the vectors is left to candle's differentiation.

use super::DitConfig;
use super::conditioning::{ModulationTables, tables};
use super::train_batch::{SoftTokens, TrainBatch};
use crate::model::error::{Error, Result};
use crate::ops::{self, Pattern, PerRow};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;

/// What evaluates weights that change, and their gradient.
pub trait Differentiable {
    /// Logits [rows, vocab] at the wanted positions.
    fn forward(&self, input: &TrainBatch) -> Result<Tensor>;

    /// Runs forward, asks `loss` for a loss and its gradient with respect to the logits, and returns the
    /// loss and the gradient of every weight.
    fn gradients<L>(
        &self,
        input: &TrainBatch,
        loss: impl FnOnce(&Tensor) -> Result<(L, Tensor)>,
    ) -> Result<(L, BTreeMap<String, Tensor>)>;
}

/// Weights under their internal names (the published ones without `backbone.`).
pub struct Trainable {
    config: DitConfig,
    vars: BTreeMap<String, Var>,
}

/// What the backward pass needs of one layer.
struct LayerState {
    x: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    projected: Tensor,
    middle: Tensor,
    normed_middle: Tensor,
    intermediate: Tensor,
    activated: Tensor,
    mlp_out: Tensor,
}

/// What a batch is to the network, but for its rows.
pub(super) struct Reading {
    pub tokens: SoftTokens,
    pub tables: ModulationTables,
    /// Modulation line of every row; `None` while there is one line.
    pub full: Option<Vec<u32>>,
    /// The same of the noisy tokens, and of the wanted ones.
    pub noisy: Option<Vec<u32>>,
    pub wanted: Option<Vec<u32>>,
}

struct State {
    reading: Reading,
    layers: Vec<LayerState>,
    last: Tensor,
    normed: Tensor,
}

/// x [rows, in] times w [out, in] transposed.
fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    Ok(x.matmul(&w.t()?)?)
}

impl Trainable {
    /// Fresh weights as the papers' code draws them: uniform in +-1/sqrt(in), adaLN and the head zero.
    pub fn random(config: DitConfig, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensors() {
            let count: usize = shape.iter().product();
            let mut noise = crate::rng::Stream::new(crate::rng::Key::derive(&[
                b"choir/initial/1",
                &seed.to_le_bytes(),
                name.as_bytes(),
            ]));
            let fan_in = match (shape.as_slice(), name.as_str()) {
                ([_, input], _) => *input,
                (_, n) if n.starts_with("sigma_map.mlp.0") => config.frequency_dim(),
                (_, n) if n.starts_with("sigma_map") => config.cond_dim,
                (_, n) if n.contains("mlp.2") => 4 * config.hidden_dim,
                _ => config.hidden_dim,
            };
            let bound = 1.0 / (fan_in as f64).sqrt();
            let data = if name.contains("norm") {
                vec![1.0; count]
            } else if name.contains("adaLN") || name.starts_with("output_layer.linear") {
                vec![0.0; count]
            } else {
                (0..count)
                    .map(|_| ((noise.uniform() * 2.0 - 1.0) * bound) as f32)
                    .collect()
            };
            tensors.insert(name, (shape, data));
        }
        Self::from_tensors(config, &tensors)
    }

    /// Weights given by internal name; an error names the first that is missing or misshapen.
    pub fn from_tensors(
        config: DitConfig,
        tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    ) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for (name, shape) in config.tensors() {
            match tensors.get(&name) {
                Some((found, data)) if *found == shape => {
                    let tensor = Tensor::from_slice(data, shape, &Device::Cpu)?;
                    vars.insert(name, Var::from_tensor(&tensor)?);
                }
                Some((found, _)) => {
                    return Err(Error::TensorShape {
                        name,
                        found: found.clone(),
                        expected: shape,
                    });
                }
                None => return Err(Error::MissingTensor { name }),
            }
        }
        Ok(Self { config, vars })
    }

    /// A second network with weights of its own, now equal.
    pub fn copy(&self) -> Result<Self> {
        let copied = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&var.as_tensor().copy()?)?))
        };
        Ok(Self {
            config: self.config.clone(),
            vars: self.vars.iter().map(copied).collect::<Result<_>>()?,
        })
    }

    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    pub(super) fn var(&self, name: &str) -> Result<&Tensor> {
        match self.vars.get(name) {
            Some(var) => Ok(var.as_tensor()),
            None => Err(Error::MissingTensor {
                name: name.to_owned(),
            }),
        }
    }

    fn weight(&self, layer: usize, name: &str) -> Result<Tensor> {
        Ok(self.var(&format!("blocks.{layer}.{name}.weight"))?.detach())
    }

    pub(super) fn pattern(&self, input: &TrainBatch, last: bool) -> Pattern {
        let (heads, dim, length) = (self.config.n_heads, self.config.head_dim(), input.length);
        match (input.block, &input.x0) {
            (None, _) => Pattern::bidirectional(heads, dim, length),
            (Some(block), None) => Pattern::block_causal(heads, dim, length, block),
            (Some(block), Some(_)) => Pattern::block_diffusion(heads, dim, length, block, last),
        }
    }

    /// Checks a batch, and makes its modulation tables: differentiable in the weights that they come from.
    pub(super) fn read(&self, input: &TrainBatch) -> Result<Reading> {
        let (batch, length) = (input.batch, input.length);
        if input.xt.len() != batch * length
            || input.x0.as_ref().is_some_and(|x| x.len() != batch * length)
        {
            return Err(Error::Sequences { batch, length });
        }
        let doubled = input.x0.is_some();
        let (mut sigma, mut full, mut noisy, mut wanted) = (vec![0.0], None, None, None);
        if self.config.time_conditioned() {
            let clean = input.sigma.len() as u32;
            if clean as usize != batch * length.div_ceil(input.unit()) {
                return Err(Error::NoiseLevels {
                    found: clean as usize,
                    batch,
                    length,
                    unit: input.unit(),
                });
            }
            let lines: Vec<u32> = (0..batch * length)
                .map(|row| input.noise_line(row) as u32)
                .collect();
            let pick = |&row: &u32| lines.get(row as usize).copied().unwrap_or(clean);
            wanted = Some(input.rows.iter().map(pick).collect::<Vec<_>>());
            full = Some(match doubled {
                true => lines
                    .chunks(length)
                    .flat_map(|lines| [lines, &vec![clean; length]].concat())
                    .collect(),
                false => lines.clone(),
            });
            noisy = Some(lines);
            sigma = [&input.sigma[..], &[0.0]].concat();
        }
        Ok(Reading {
            tokens: input.read(),
            tables: tables(
                self.config.n_blocks,
                self.config.conditioning(),
                |name| self.var(name).cloned(),
                &sigma,
                &Device::Cpu,
            )?,
            full,
            noisy,
            wanted,
        })
    }

    fn run(&self, input: &TrainBatch) -> Result<(Tensor, State)> {
        let (batch, length, doubled) = (input.batch, input.length, input.x0.is_some());
        let reading = self.read(input)?;
        let Reading {
            tokens: read,
            tables,
            full,
            noisy,
            wanted,
        } = &reading;
        let table = self.var("vocab_embed.embedding")?;
        let mut x = ops::embedding_mix(table, read.choices, &read.tokens, &read.weights)?;
        let mut layers = Vec::with_capacity(self.config.n_blocks);
        for layer in 0..self.config.n_blocks {
            let last = layer + 1 == self.config.n_blocks;
            let t = &tables.layers[layer];
            let line = full.as_deref();
            let normed = ops::norm_modulate(
                &x,
                PerRow::new(&t.gain1, line),
                PerRow::new(&t.shift1, line),
            )?;
            let qkv = linear(&normed, &self.weight(layer, "attn_qkv")?)?;
            let attended = ops::attention(&qkv, &self.pattern(input, last))?;
            let projected = linear(&attended, &self.weight(layer, "attn_out")?)?;
            // The last layer's output is wanted for noisy tokens only.
            let (residual, line) = if last && doubled {
                (noisy_half(&x, batch, length)?, noisy.as_deref())
            } else {
                (x.clone(), line)
            };
            let middle =
                ops::gate_residual(&residual, &projected, PerRow::new(&t.gate1, line), None)?;
            let normed_middle = ops::norm_modulate(
                &middle,
                PerRow::new(&t.gain2, line),
                PerRow::new(&t.shift2, line),
            )?;
            let intermediate = linear(&normed_middle, &self.weight(layer, "mlp.0")?)?;
            let activated = ops::bias_gelu(&intermediate, PerRow::new(&t.bias0, None))?;
            let mlp_out = linear(&activated, &self.weight(layer, "mlp.2")?)?;
            let bias = PerRow::new(&t.bias2, None);
            let out =
                ops::gate_residual(&middle, &mlp_out, PerRow::new(&t.gate2, line), Some(bias))?;
            let before = std::mem::replace(&mut x, out);
            layers.push(LayerState {
                x: before,
                normed,
                qkv,
                attended,
                projected,
                middle,
                normed_middle,
                intermediate,
                activated,
                mlp_out,
            });
        }
        let last = ops::embedding(&x, &input.rows)?;
        let line = wanted.as_deref();
        let normed = ops::norm_modulate(
            &last,
            PerRow::new(&tables.gain, line),
            PerRow::new(&tables.shift, line),
        )?;
        let head = self.var("output_layer.linear.weight")?.detach();
        let logits = ops::add_bias(&linear(&normed, &head)?, PerRow::new(&tables.bias, None))?;
        Ok((
            logits,
            State {
                reading,
                layers,
                last,
                normed,
            },
        ))
    }

    fn backward(
        &self,
        input: &TrainBatch,
        state: State,
        gradient: Tensor,
    ) -> Result<BTreeMap<String, Tensor>> {
        let State {
            reading:
                Reading {
                    tokens: read,
                    tables,
                    full,
                    noisy,
                    wanted,
                },
            mut layers,
            last,
            normed,
        } = state;
        let mut found = BTreeMap::new();
        // Pairs (table, its gradient) to hand to candle in the end.
        let mut small = vec![(tables.bias.clone(), ops::column_sums(&gradient)?)];

        found.insert(
            "output_layer.linear.weight".to_owned(),
            gradient.t()?.matmul(&normed)?,
        );
        let d = gradient.matmul(&self.var("output_layer.linear.weight")?.detach())?;
        let (d, dgain, dshift) =
            ops::norm_modulate_backward(&last, PerRow::new(&tables.gain, wanted.as_deref()), &d)?;
        small.extend([(tables.gain.clone(), dgain), (tables.shift.clone(), dshift)]);
        let shape = Tensor::zeros(
            (input.batch * input.length, self.config.hidden_dim),
            d.dtype(),
            &Device::Cpu,
        )?;
        let mut dx = ops::embedding_backward(&shape, &input.rows, &d)?;

        for layer in (0..self.config.n_blocks).rev() {
            let Some(s) = layers.pop() else {
                return Err(Error::NotKept("a layer's state"));
            };
            let is_last = layer + 1 == self.config.n_blocks;
            let halved = is_last && input.x0.is_some();
            let t = &tables.layers[layer];
            let line = if halved {
                noisy.as_deref()
            } else {
                full.as_deref()
            };
            let mut keep = |name: &str, dy: &Tensor, x: &Tensor| -> Result<()> {
                found.insert(format!("blocks.{layer}.{name}.weight"), dy.t()?.matmul(x)?);
                Ok(())
            };

            let (dy, dgate, dbias) = ops::gate_residual_backward(
                &s.mlp_out,
                PerRow::new(&t.gate2, line),
                Some(&t.bias2),
                &dx,
            )?;
            small.push((t.gate2.clone(), dgate));
            small.extend(dbias.map(|dbias| (t.bias2.clone(), dbias)));
            keep("mlp.2", &dy, &s.activated)?;
            let dy = dy.matmul(&self.weight(layer, "mlp.2")?)?;
            let (dy, dbias) =
                ops::bias_gelu_backward(&s.intermediate, PerRow::new(&t.bias0, None), &dy)?;
            small.push((t.bias0.clone(), dbias));
            keep("mlp.0", &dy, &s.normed_middle)?;
            let dy = dy.matmul(&self.weight(layer, "mlp.0")?)?;
            let (dy, dgain, dshift) =
                ops::norm_modulate_backward(&s.middle, PerRow::new(&t.gain2, line), &dy)?;
            small.extend([(t.gain2.clone(), dgain), (t.shift2.clone(), dshift)]);
            let dmiddle = (dx + dy)?;

            let (dy, dgate, _) = ops::gate_residual_backward(
                &s.projected,
                PerRow::new(&t.gate1, line),
                None,
                &dmiddle,
            )?;
            small.push((t.gate1.clone(), dgate));
            keep("attn_out", &dy, &s.attended)?;
            let dy = dy.matmul(&self.weight(layer, "attn_out")?)?;
            let dy = ops::attention_backward(&s.qkv, &self.pattern(input, is_last), &dy)?;
            keep("attn_qkv", &dy, &s.normed)?;
            let dy = dy.matmul(&self.weight(layer, "attn_qkv")?)?;
            let line = full.as_deref();
            let (dy, dgain, dshift) =
                ops::norm_modulate_backward(&s.x, PerRow::new(&t.gain1, line), &dy)?;
            small.extend([(t.gain1.clone(), dgain), (t.shift1.clone(), dshift)]);
            let dresidual = if halved {
                with_clean_zeros(&dmiddle, input.batch, input.length)?
            } else {
                dmiddle
            };
            dx = (dresidual + dy)?;
        }
        let table = self.var("vocab_embed.embedding")?.detach();
        found.insert(
            "vocab_embed.embedding".to_owned(),
            ops::embedding::embedding_mix_backward(
                &table,
                read.choices,
                &read.tokens,
                &read.weights,
                &dx,
            )?,
        );

        self.through_tables(small, &mut found)?;
        Ok(found)
    }

    /// Adds the gradients of the weights that modulation tables come from, given those of the tables.
    pub(super) fn through_tables(
        &self,
        tables: Vec<(Tensor, Tensor)>,
        found: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let mut surrogate = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for (table, gradient) in tables {
            surrogate = (surrogate + (table * gradient)?.sum_all()?)?;
        }
        let mut rest = surrogate.backward()?;
        for (name, var) in &self.vars {
            if let Some(gradient) = rest.remove(var.as_tensor()) {
                found.insert(name.clone(), gradient);
            }
        }
        Ok(())
    }
}

impl Differentiable for Trainable {
    fn forward(&self, input: &TrainBatch) -> Result<Tensor> {
        Ok(self.run(input)?.0)
    }

    /// Source of the layout: the published DiT.
    fn gradients<L>(
        &self,
        input: &TrainBatch,
        loss: impl FnOnce(&Tensor) -> Result<(L, Tensor)>,
    ) -> Result<(L, BTreeMap<String, Tensor>)> {
        let (logits, state) = self.run(input)?;
        let (value, gradient) = loss(&logits)?;
        Ok((value, self.backward(input, state, gradient)?))
    }
}

/// The noisy rows of [batch * 2 * length, hidden], whose sequences are [x_t, x_0].
fn noisy_half(x: &Tensor, batch: usize, length: usize) -> Result<Tensor> {
    let hidden = x.dim(1)?;
    Ok(x.reshape((batch, 2 * length, hidden))?
        .narrow(1, 0, length)?
        .contiguous()?
        .reshape((batch * length, hidden))?)
}

/// The reverse of [`noisy_half`], with zeros for the clean rows.
fn with_clean_zeros(x: &Tensor, batch: usize, length: usize) -> Result<Tensor> {
    let hidden = x.dim(1)?;
    let noisy = x.reshape((batch, length, hidden))?;
    Ok(Tensor::cat(&[&noisy, &noisy.zeros_like()?], 1)?.reshape((batch * 2 * length, hidden))?)
}
