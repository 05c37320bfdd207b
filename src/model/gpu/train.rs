//! The gradient of the network on a device: what [`Trainable`] computes on the host, in launches of f32.
//!
//! The host keeps the weights, looks tokens up, makes modulation tables and knows the loss, all of which is small beside the
//! layers: weights and embeddings go to the device at every evaluation, logits and gradients come back.

mod launches;
mod memory;

use super::slots::Offsets;
use crate::model::architecture::dit::{EMBEDDING, HEAD, is_product, layer_products};
use crate::model::error::{Error, Result};
use crate::model::trainable::Reading;
use crate::model::{Differentiable, DitConfig, TrainBatch, Trainable};
use crate::ops::gpu::pointwise::{BiasGelu, NONE};
use crate::ops::gpu::train::GeluBackward;
use crate::ops::gpu::{Address, Buffer, Dtype, GpuDevice};
use crate::ops::{self, PerRow, slice};
use candle_core::Tensor;
use launches::TrainRows;
use memory::{Memory, Seen};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const FLOAT: usize = size_of::<f32>();

/// Memory on a device for one network at a time.
pub struct GpuTrainer {
    gpu: Arc<dyn GpuDevice>,
    room: Mutex<Room>,
}

/// What evaluations leave behind.
struct Room {
    weights: BTreeMap<String, Buffer>,
    memory: Memory,
    patterns: HashMap<(TrainShape, bool), Arc<Seen>>,
}

/// Width of a head, length, block, and whether clean tokens follow the noisy ones.
type TrainShape = (usize, usize, Option<usize>, bool);

/// A network whose weights are the host's and whose layers run on a device.
pub struct GpuTrainable<'a> {
    trainer: &'a GpuTrainer,
    model: &'a Trainable,
}

impl GpuTrainer {
    pub fn new(gpu: Arc<dyn GpuDevice>) -> Self {
        let room = Room {
            weights: BTreeMap::new(),
            memory: Memory::new(&gpu),
            patterns: HashMap::new(),
        };
        Self {
            gpu,
            room: Mutex::new(room),
        }
    }

    pub fn of<'a>(&'a self, model: &'a Trainable) -> GpuTrainable<'a> {
        GpuTrainable {
            trainer: self,
            model,
        }
    }

    /// An evaluation that failed leaves memory taken, which the next gives back.
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Differentiable for GpuTrainable<'_> {
    fn forward(&self, input: &TrainBatch) -> Result<Tensor> {
        Ok(TrainStep::begin(self, &mut self.trainer.room(), input)?
            .forward()?
            .0)
    }

    fn gradients<L>(
        &self,
        input: &TrainBatch,
        loss: impl FnOnce(&Tensor) -> Result<(L, Tensor)>,
    ) -> Result<(L, BTreeMap<String, Tensor>)> {
        let mut room = self.trainer.room();
        let mut step = TrainStep::begin(self, &mut room, input)?;
        let (logits, kept) = step.forward()?;
        let (value, gradient) = loss(&logits)?;
        Ok((value, step.backward(kept, &gradient)?))
    }
}

/// What the backward pass needs of one layer.
struct Layer {
    seen: Arc<Seen>,
    x: Address,
    normed: Address,
    /// Turned and scaled.
    qkv: Address,
    attended: Address,
    peaks: Address,
    shares: Address,
    projected: Address,
    middle: Address,
    normed_middle: Address,
    intermediate: Address,
    activated: Address,
    mlp_out: Address,
}

struct Activations {
    full: TrainRows,
    noisy: TrainRows,
    wanted: TrainRows,
    /// The noisy rows of [x_t, x_0], and the wanted ones of the noisy.
    halves: Address,
    picks: Address,
    layers: Vec<Layer>,
    last: Address,
    normed: Address,
}

/// One evaluation.
struct TrainStep<'a> {
    gpu: Arc<dyn GpuDevice>,
    room: &'a mut Room,
    model: &'a Trainable,
    input: &'a TrainBatch,
    reading: Reading,
    offsets: Offsets,
    /// Modulation tables by line, and biases.
    lines: Address,
    biases: Address,
}

impl<'a> TrainStep<'a> {
    fn begin(of: &GpuTrainable<'a>, room: &'a mut Room, input: &'a TrainBatch) -> Result<Self> {
        let (gpu, model) = (&of.trainer.gpu, of.model);
        let config = model.config();
        super::check_widths(config.head_dim(), config.hidden_dim)?;
        if input.rows.is_empty() {
            return Err(Error::NoRows);
        }
        room.memory.give_back();
        for (name, var) in model.vars().iter().filter(|(name, _)| is_product(name)) {
            let values = slice::f32(var.as_tensor())?;
            match room
                .weights
                .get(name)
                .filter(|kept| kept.bytes() == size_of_val(&values[..]))
            {
                Some(kept) => kept.write(0, &values)?,
                None => drop(
                    room.weights
                        .insert(name.clone(), Buffer::from(gpu, &values)?),
                ),
            }
        }
        let mut step = Self {
            gpu: gpu.clone(),
            room,
            model,
            input,
            reading: model.read(input)?,
            offsets: Offsets::of(&config.described()),
            lines: Address::default(),
            biases: Address::default(),
        };
        step.put_tables()?;
        Ok(step)
    }

    fn config(&self) -> &'a DitConfig {
        self.model.config()
    }

    fn forward(&mut self) -> Result<(Tensor, Activations)> {
        let (input, config, offsets) = (self.input, self.config(), self.offsets.clone());
        let (hidden, intermediate, vocab) =
            (config.hidden_dim, 4 * config.hidden_dim, config.vocab_size);
        let (noisy_rows, doubled) = (input.batch * input.length, input.x0.is_some());
        let all_rows = if doubled { 2 * noisy_rows } else { noisy_rows };
        let full = self.rows(self.reading.full.clone(), all_rows)?;
        let noisy = self.rows(self.reading.noisy.clone(), noisy_rows)?;
        let wanted = self.rows(self.reading.wanted.clone(), input.rows.len())?;
        let half = |row: usize| (row / input.length * 2 * input.length + row % input.length) as u32;
        let halves: Vec<u32> = (0..noisy_rows).map(half).collect();
        let (halves, picks) = (self.put(&halves)?, self.put(&input.rows)?);

        let tokens = &self.reading.tokens;
        let table = self.model.var(EMBEDDING)?;
        let x = ops::embedding_mix(table, tokens.choices, &tokens.tokens, &tokens.weights)?;
        let mut x = self.put(&slice::f32(&x)?)?;
        let mut layers = Vec::with_capacity(config.n_blocks);
        for layer in 0..config.n_blocks {
            let last = layer + 1 == config.n_blocks;
            let seen = self.seen(last)?;
            let [qkv, out, up, down] = self.layer_weights(&layer_products(layer))?;
            let at = offsets.layers[layer];
            let normed = self.norm(x, &full, (at.gain1, at.shift1))?;
            let qkv = self.product(normed, qkv, [all_rows, 3 * hidden, hidden])?;
            self.turn(qkv, all_rows, &seen, false)?;
            let [attended, peaks, shares] = self.attend(qkv, &seen)?;
            // The last layer's output is wanted for noisy tokens only.
            let rows = if last { &noisy } else { &full };
            let projected = self.product(attended, out, [rows.count, hidden, hidden])?;
            let residual = match last && doubled {
                false => x,
                true => {
                    let residual = self.floats(noisy_rows * hidden)?;
                    self.pick(x, (halves, noisy_rows, false), residual)?;
                    residual
                }
            };
            let next = (at.gain2, at.shift2);
            let (middle, normed_middle) =
                self.gate((residual, projected), rows, (at.gate1, NONE), Some(next))?;
            let wide = self.product(normed_middle, up, [rows.count, intermediate, hidden])?;
            let activated = self.floats(rows.count * intermediate)?;
            let gelu = BiasGelu {
                y: wide,
                out: activated,
                tables: rows.tables,
                bias: at.up_bias,
                width: intermediate as u32,
            };
            gelu.launch(&*self.gpu, Dtype::F32, Dtype::F32, rows.count)?;
            let mlp_out = self.product(activated, down, [rows.count, hidden, intermediate])?;
            let gate = (at.gate2, at.down_bias);
            let (after, _) = self.gate((middle, mlp_out), rows, gate, None)?;
            layers.push(Layer {
                seen,
                x: std::mem::replace(&mut x, after),
                normed,
                qkv,
                attended,
                peaks,
                shares,
                projected,
                middle,
                normed_middle,
                intermediate: wide,
                activated,
                mlp_out,
            });
        }
        let last = self.floats(wanted.count * hidden)?;
        self.pick(x, (picks, wanted.count, false), last)?;
        let normed = self.norm(last, &wanted, (offsets.gain, offsets.shift))?;
        let head = self.weight(HEAD)?;
        let logits = self.product(normed, head, [wanted.count, vocab, hidden])?;
        let logits = self.get(logits, (wanted.count, vocab))?;
        let logits = ops::add_bias(&logits, PerRow::new(&self.reading.tables.bias, None))?;
        let kept = Activations {
            full,
            noisy,
            wanted,
            halves,
            picks,
            layers,
            last,
            normed,
        };
        Ok((logits, kept))
    }

    fn backward(
        &mut self,
        kept: Activations,
        gradient: &Tensor,
    ) -> Result<BTreeMap<String, Tensor>> {
        let Activations {
            full,
            noisy,
            wanted,
            halves,
            picks,
            mut layers,
            last,
            normed,
        } = kept;
        let (config, offsets) = (self.config(), self.offsets.clone());
        let (hidden, intermediate, vocab) =
            (config.hidden_dim, 4 * config.hidden_dim, config.vocab_size);
        // Addresses of gradients: of matrices, and of tables with as many lines as these have.
        let (mut matrices, mut tables) = (Vec::new(), Vec::new());

        let dlogits = self.put(&slice::f32(gradient)?)?;
        let head = self.weight(HEAD)?;
        let (dy, dhead) =
            self.product_backward(dlogits, (normed, head), [wanted.count, vocab, hidden])?;
        matrices.push((HEAD.to_owned(), dhead));
        let dlast = self.zeros(wanted.count * hidden)?;
        let (dgain, dshift) = self.norm_backward((last, dy, dlast), &wanted, offsets.gain)?;
        let of = self.reading.tables.clone();
        tables.extend([(of.gain, dgain), (of.shift, dshift)]);
        let mut dx = self.zeros(noisy.count * hidden)?;
        self.pick(dlast, (picks, wanted.count, true), dx)?;

        for index in (0..config.n_blocks).rev() {
            let Some(layer) = layers.pop() else {
                return Err(Error::NotKept("a layer's state"));
            };
            let is_last = index + 1 == config.n_blocks;
            let (rows, t) = (if is_last { &noisy } else { &full }, &of.layers[index]);
            let names = layer_products(index);
            let [qkv, out, up, down] = self.layer_weights(&names)?;
            let at = offsets.layers[index];

            let gate = (at.gate2, at.down_bias);
            let (dy, dgate) = self.gate_backward((dx, layer.mlp_out), rows, gate)?;
            tables.push((t.gate2.clone(), dgate));
            tables.push((t.bias2.clone(), self.sums(dy, hidden, rows.all)?));
            let (dy, dcontract) = self.product_backward(
                dy,
                (layer.activated, down),
                [rows.count, hidden, intermediate],
            )?;
            let gelu = GeluBackward {
                y: layer.intermediate,
                dy,
                tables: rows.tables,
                bias: at.up_bias,
                width: intermediate as u32,
            };
            gelu.launch(&*self.gpu, rows.count)?;
            tables.push((t.bias0.clone(), self.sums(dy, intermediate, rows.all)?));
            let (dy, dexpand) = self.product_backward(
                dy,
                (layer.normed_middle, up),
                [rows.count, intermediate, hidden],
            )?;
            let (dgain, dshift) = self.norm_backward((layer.middle, dy, dx), rows, at.gain2)?;
            tables.extend([(t.gain2.clone(), dgain), (t.shift2.clone(), dshift)]);

            let (dy, dgate) = self.gate_backward((dx, layer.projected), rows, (at.gate1, NONE))?;
            tables.push((t.gate1.clone(), dgate));
            let (dy, dout) =
                self.product_backward(dy, (layer.attended, out), [rows.count, hidden, hidden])?;
            let dqkv = self.attend_backward(&layer, dy)?;
            let (dy, dweight) =
                self.product_backward(dqkv, (layer.normed, qkv), [full.count, 3 * hidden, hidden])?;
            if full.count != rows.count {
                let whole = self.zeros(full.count * hidden)?;
                self.pick(dx, (halves, noisy.count, true), whole)?;
                dx = whole;
            }
            let (dgain, dshift) = self.norm_backward((layer.x, dy, dx), &full, at.gain1)?;
            tables.extend([(t.gain1.clone(), dgain), (t.shift1.clone(), dshift)]);
            matrices.extend(names.into_iter().zip([dweight, dout, dexpand, dcontract]));
        }

        let mut found = BTreeMap::new();
        for (name, address) in matrices {
            let shape = self.model.var(&name)?.dims2()?;
            found.insert(name, self.get(address, shape)?);
        }
        let tokens = &self.reading.tokens;
        let table = self.model.var(EMBEDDING)?.detach();
        let dx = self.get(dx, (full.count, hidden))?;
        let embedding = ops::embedding::embedding_mix_backward(
            &table,
            tokens.choices,
            &tokens.tokens,
            &tokens.weights,
            &dx,
        )?;
        found.insert(EMBEDDING.to_owned(), embedding);
        let mut small = vec![(of.bias, ops::column_sums(gradient)?)];
        for (table, address) in tables {
            let gradient = self.get(address, table.dims2()?)?;
            small.push((table, gradient));
        }
        self.model.through_tables(small, &mut found)?;
        Ok(found)
    }
}
