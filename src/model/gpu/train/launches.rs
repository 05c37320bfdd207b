//! What an evaluation launches, and the memory that it takes for that.

use super::memory::Seen;
use super::{FLOAT, Layer, TrainStep};
use crate::model::conditioning::ModulationTables;
use crate::model::error::{Error, Result};
use crate::model::gpu::slots::side_by_side;
use crate::ops::gpu::pointwise::{self, GateResidual, NormFacts, NormModulate};
use crate::ops::gpu::train::{
    AttentionBatch, GateBackward, NormBackward, PickRows, SumRows, TrainAttend,
    TrainAttendBackward, Transpose, TurnHeads,
};
use crate::ops::gpu::{Address, Dtype, Gemm, Plain, bytes_of, bytes_of_mut};
use crate::ops::norm::Norm;
use crate::ops::slice;
use candle_core::Tensor;
use std::sync::Arc;

/// Rows that one thread adds up.
const GROUP: usize = 64;

/// Rows of one number, and what adds them up by their modulation line; addresses on the device.
#[derive(Clone, Copy, Debug)]
pub struct TrainRows {
    pub count: usize,
    pub tables: pointwise::Tables,
    pub by_line: Groups,
    /// As if all had one line.
    pub all: Groups,
}

/// Groups of rows that are added up, and groups of these, one to a line.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    order: Address,
    starts: Address,
    count: usize,
    of_lines: Address,
    lines: usize,
}

/// Modulation tables line by line, and biases, as [`Offsets`](crate::model::gpu::slots::Offsets) says.
fn packed(tables: &ModulationTables) -> Result<(Vec<f32>, Vec<f32>)> {
    let vectors = tables
        .modulations()
        .map(slice::f32)
        .collect::<crate::ops::error::Result<Vec<_>>>()?;
    let (lines, hidden) = tables.gain.dims2()?;
    let lines = (0..lines).flat_map(|line| {
        vectors
            .iter()
            .map(move |all| &all[line * hidden..][..hidden])
    });
    let biases = tables
        .biases()
        .map(slice::f32)
        .collect::<crate::ops::error::Result<Vec<_>>>()?;
    Ok((
        side_by_side(lines),
        side_by_side(biases.iter().map(|bias| &**bias)),
    ))
}

impl<'a> TrainStep<'a> {
    /// Memory for some floats.
    pub fn floats(&mut self, count: usize) -> Result<Address> {
        self.room.memory.take(count * FLOAT)
    }

    pub fn zeros(&mut self, count: usize) -> Result<Address> {
        let at = self.floats(count)?;
        self.gpu.clear(at, count * FLOAT)?;
        Ok(at)
    }

    pub fn copied(&mut self, from: Address, count: usize) -> Result<Address> {
        let at = self.floats(count)?;
        self.gpu.copy(at, from, count * FLOAT)?;
        Ok(at)
    }

    pub fn put<T: Plain>(&mut self, data: &[T]) -> Result<Address> {
        let at = self.room.memory.take(size_of_val(data))?;
        self.gpu.upload(at, bytes_of(data))?;
        Ok(at)
    }

    pub fn get(&self, from: Address, shape: (usize, usize)) -> Result<Tensor> {
        let mut data = vec![0f32; shape.0 * shape.1];
        self.gpu.download(from, bytes_of_mut(&mut data))?;
        Ok(slice::tensor(data, shape.0, shape.1)?)
    }

    pub fn put_tables(&mut self) -> Result<()> {
        let (lines, biases) = packed(&self.reading.tables)?;
        self.lines = self.put(&lines)?;
        self.biases = self.put(&biases)?;
        Ok(())
    }

    /// `count` rows, whose modulation lines are `index`, or all the first.
    pub fn rows(&mut self, index: Option<Vec<u32>>, count: usize) -> Result<TrainRows> {
        let all = self.groups(Address::default(), &[count])?;
        let by_line = match &index {
            None => all,
            Some(index) => {
                let mut order: Vec<u32> = (0..count as u32).collect();
                order.sort_by_key(|&row| index[row as usize]);
                let mut sizes = vec![0; self.reading.tables.gain.dim(0)?];
                index.iter().for_each(|&line| sizes[line as usize] += 1);
                let order = self.put(&order)?;
                self.groups(order, &sizes)?
            }
        };
        let zeros = vec![0u32; count];
        let mix = self.put(&zeros)?;
        let line = match index {
            Some(index) => self.put(&index)?,
            None => mix,
        };
        Ok(TrainRows {
            count,
            by_line,
            all,
            tables: pointwise::Tables {
                lines: self.lines,
                biases: self.biases,
                line,
                mix,
                line_stride: self.offsets.line_floats() as u32,
                bias_stride: 0,
            },
        })
    }

    /// Groups of rows of which so many belong to each line.
    pub fn groups(&mut self, order: Address, sizes: &[usize]) -> Result<Groups> {
        let (mut starts, mut of_lines, mut row) = (vec![0u32], vec![0u32], 0);
        for size in sizes {
            let end = row + size;
            while row < end {
                row = (row + GROUP).min(end);
                starts.push(row as u32);
            }
            of_lines.push(starts.len() as u32 - 1);
        }
        Ok(Groups {
            order,
            count: starts.len() - 1,
            starts: self.put(&starts)?,
            of_lines: self.put(&of_lines)?,
            lines: sizes.len(),
        })
    }

    /// Sums [lines, width] of rows [.., width].
    pub fn sums(&mut self, x: Address, width: usize, groups: Groups) -> Result<Address> {
        let (partial, out) = (
            self.floats(groups.count * width)?,
            self.floats(groups.lines * width)?,
        );
        let first = SumRows {
            x,
            out: partial,
            order: groups.order,
            starts: groups.starts,
            width: width as u32,
            unused: 0,
        };
        first.launch(&*self.gpu, groups.count)?;
        let second = SumRows {
            x: partial,
            out,
            order: Address::default(),
            starts: groups.of_lines,
            ..first
        };
        second.launch(&*self.gpu, groups.lines)?;
        Ok(out)
    }

    pub fn weight(&self, name: &str) -> Result<Address> {
        match self.room.weights.get(name) {
            Some(weight) => Ok(weight.address()),
            None => Err(Error::MissingTensor {
                name: name.to_owned(),
            }),
        }
    }

    /// Those of a layer: queries, keys and values; attention's output; the wide and the narrow half of the MLP.
    pub fn layer_weights(&self, names: &[String; 4]) -> Result<[Address; 4]> {
        let [qkv, out, up, down] = names;
        Ok([
            self.weight(qkv)?,
            self.weight(out)?,
            self.weight(up)?,
            self.weight(down)?,
        ])
    }

    /// x [rows, input] W [out, input]^T.
    pub fn product(
        &mut self,
        x: Address,
        w: Address,
        [rows, out, input]: [usize; 3],
    ) -> Result<Address> {
        let y = self.floats(rows * out)?;
        self.gpu.gemm(Gemm {
            x,
            w,
            y,
            rows,
            out,
            input,
            pitch: out,
            dtype: Dtype::F32,
            gives: Dtype::F32,
        })?;
        Ok(y)
    }

    pub fn transposed(&mut self, x: Address, rows: usize, columns: usize) -> Result<Address> {
        let out = self.floats(rows * columns)?;
        let (rows, columns) = (rows as u32, columns as u32);
        Transpose {
            x,
            out,
            rows,
            columns,
        }
        .launch(&*self.gpu)?;
        Ok(out)
    }

    /// The gradients of x [rows, input] and of W [out, input], given that of their product.
    pub fn product_backward(
        &mut self,
        dy: Address,
        (x, w): (Address, Address),
        [rows, out, input]: [usize; 3],
    ) -> Result<(Address, Address)> {
        let turned = self.transposed(w, out, input)?;
        let dx = self.product(dy, turned, [rows, input, out])?;
        let (dy, x) = (
            self.transposed(dy, rows, out)?,
            self.transposed(x, rows, input)?,
        );
        Ok((dx, self.product(dy, x, [out, input, rows])?))
    }

    pub fn norm(
        &mut self,
        x: Address,
        rows: &TrainRows,
        (gain, shift): (u32, u32),
    ) -> Result<Address> {
        let hidden = self.config().hidden_dim;
        let out = self.floats(rows.count * hidden)?;
        let norm = NormModulate {
            x,
            out,
            rows: Address::default(),
            tables: rows.tables,
            norm: NormFacts::new(Norm::DIT, gain, shift),
            width: hidden as u32,
            unused: 0,
        };
        norm.launch(&*self.gpu, Dtype::F32, rows.count)?;
        Ok(out)
    }

    /// Adds the gradient of a norm's x to `dx`; gives those of gain and shift.
    pub fn norm_backward(
        &mut self,
        (x, dy, dx): (Address, Address, Address),
        rows: &TrainRows,
        gain: u32,
    ) -> Result<(Address, Address)> {
        let hidden = self.config().hidden_dim;
        let along = self.floats(rows.count * hidden)?;
        let norm = NormBackward {
            x,
            dy,
            dx,
            along,
            tables: rows.tables,
            gain,
            width: hidden as u32,
        };
        norm.launch(&*self.gpu, rows.count)?;
        let dgain = self.sums(along, hidden, rows.by_line)?;
        Ok((dgain, self.sums(dy, hidden, rows.by_line)?))
    }

    /// x + gate * (y + bias), and the norm of that where one follows.
    pub fn gate(
        &mut self,
        (x, y): (Address, Address),
        rows: &TrainRows,
        (gate, bias): (u32, u32),
        next: Option<(u32, u32)>,
    ) -> Result<(Address, Address)> {
        let hidden = self.config().hidden_dim;
        let x = self.copied(x, rows.count * hidden)?;
        let out = match next {
            Some(_) => self.floats(rows.count * hidden)?,
            None => Address::default(),
        };
        let norm = next.map(|(gain, shift)| NormFacts::new(Norm::DIT, gain, shift));
        let residual = GateResidual {
            x,
            y,
            out,
            tables: rows.tables,
            norm: norm.unwrap_or(NormFacts::none()),
            gate,
            bias,
            width: hidden as u32,
            unused: 0,
        };
        residual.launch(&*self.gpu, Dtype::F32, Dtype::F32, rows.count)?;
        Ok((x, out))
    }

    /// The gradients of y and of the gate.
    pub fn gate_backward(
        &mut self,
        (dx, y): (Address, Address),
        rows: &TrainRows,
        (gate, bias): (u32, u32),
    ) -> Result<(Address, Address)> {
        let hidden = self.config().hidden_dim;
        let (dy, along) = (
            self.floats(rows.count * hidden)?,
            self.floats(rows.count * hidden)?,
        );
        let backward = GateBackward {
            dx,
            y,
            dy,
            along,
            tables: rows.tables,
            gate,
            bias,
            width: hidden as u32,
            unused: 0,
        };
        backward.launch(&*self.gpu, rows.count)?;
        Ok((dy, self.sums(along, hidden, rows.by_line)?))
    }

    pub fn pick(
        &mut self,
        x: Address,
        (rows, picked, back): (Address, usize, bool),
        out: Address,
    ) -> Result<()> {
        let pick = PickRows {
            x,
            out,
            rows,
            width: self.config().hidden_dim as u32,
            back: back.into(),
        };
        Ok(pick.launch(&*self.gpu, picked)?)
    }

    pub fn seen(&mut self, last: bool) -> Result<Arc<Seen>> {
        let input = self.input;
        let shape = (
            self.config().head_dim(),
            input.length,
            input.block,
            input.x0.is_some(),
        );
        let key = (shape, last);
        if let Some(seen) = self.room.patterns.get(&key) {
            return Ok(seen.clone());
        }
        let seen = Arc::new(Seen::new(&self.gpu, &self.model.pattern(input, last))?);
        self.room.patterns.insert(key, seen.clone());
        Ok(seen)
    }

    pub fn turn(&mut self, qkv: Address, rows: usize, seen: &Seen, back: bool) -> Result<()> {
        let config = self.config();
        let turn = TurnHeads {
            qkv,
            cosines: seen.cosines.address(),
            sines: seen.sines.address(),
            positions: seen.rows as u32,
            heads: config.n_heads as u32,
            head_dim: config.head_dim() as u32,
            back: back.into(),
            scale: 1.0 / (config.head_dim() as f32).sqrt(),
            unused: 0,
        };
        Ok(turn.launch(&*self.gpu, rows)?)
    }

    pub fn heads(&self) -> AttentionBatch {
        AttentionBatch {
            sequences: self.input.batch,
            heads: self.config().n_heads,
            head_dim: self.config().head_dim(),
        }
    }

    /// The output of attention over `qkv`, and what its gradient needs.
    pub fn attend(&mut self, qkv: Address, seen: &Seen) -> Result<[Address; 3]> {
        let of = self.heads();
        let count = of.sequences * seen.queries * of.heads;
        let (out, peaks, shares) = (
            self.floats(count * of.head_dim)?,
            self.floats(count)?,
            self.floats(count)?,
        );
        let attend = TrainAttend {
            qkv,
            out,
            peaks,
            shares,
            chunks: seen.chunks.0.address(),
            rows: seen.rows as u32,
            queries: seen.queries as u32,
            heads: of.heads as u32,
            head_dim: of.head_dim as u32,
        };
        attend.launch(&*self.gpu, of, seen.chunks.1)?;
        Ok([out, peaks, shares])
    }

    pub fn attend_backward(&mut self, layer: &Layer, dout: Address) -> Result<Address> {
        let (of, seen) = (self.heads(), &layer.seen);
        let rows = of.sequences * seen.rows;
        let along = self.floats(of.sequences * seen.queries * of.heads)?;
        let dqkv = self.zeros(3 * rows * self.config().hidden_dim)?;
        let backward = TrainAttendBackward {
            qkv: layer.qkv,
            out: layer.attended,
            dout,
            peaks: layer.peaks,
            shares: layer.shares,
            along,
            dqkv,
            chunks: seen.chunks.0.address(),
            key_chunks: seen.key_chunks.0.address(),
            seeing: seen.seeing.address(),
            rows: seen.rows as u32,
            queries: seen.queries as u32,
            heads: of.heads as u32,
            head_dim: of.head_dim as u32,
        };
        backward.launch(&*self.gpu, of, seen.chunks.1, seen.key_chunks.1)?;
        self.turn(dqkv, rows, seen, true)?;
        Ok(dqkv)
    }
}
