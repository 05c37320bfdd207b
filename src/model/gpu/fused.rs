//! A layer of a step of few rows: what lies between its products goes into their launches, five instead of nine.
//!
//! What banks give goes through the same nonlinearities as the base's product, so it is there first, and so is the norm of what
//! they read; the product adds it.

use super::linear::GpuLinear;
use super::network::Step;
use super::slots::Vector;
use super::work::logits_pitch;
use super::{GpuDit, GpuLayer};
use crate::ops::gpu::pointwise::{NONE, NormModulate};
use crate::ops::gpu::product::{After, Product};
use crate::ops::gpu::{Dtype, Fault};

impl GpuDit {
    /// Whether there are kernels for a product of so many rows; what dense banks give is not kept apart.
    fn fuses(&self, step: &Step, linear: &GpuLinear, (after, rows): (After, usize)) -> bool {
        let dense = !linear.variants.tiled && !step.places.lists[linear.list].is_empty();
        let takes = after.takes(rows, linear.base.out, linear.base.input);
        self.base.device.dtype == Dtype::Bf16 && takes && !dense
    }

    pub(super) fn fuses_layers(&self, step: &Step) -> bool {
        let takes = |linear: &GpuLinear, after| self.fuses(step, linear, (after, step.shape.rows));
        let layer = |l: &GpuLayer| {
            let attention = takes(&l.qkv, After::Rotated) && takes(&l.out, After::Residual);
            attention && takes(&l.expand, After::Gelu) && takes(&l.contract, After::Residual)
        };
        self.base.host.config.head_dim().is_multiple_of(16) && self.layers.iter().all(layer)
    }

    /// Of `rows` rows of x that are not normed, with nothing after it.
    fn plain(&self, step: &Step, linear: &GpuLinear, (x, rows): (u64, usize)) -> Product {
        Product {
            w: linear.base.data.address(),
            x,
            banked: step.work.y,
            tables: self.tables(step),
            rows: rows as u32,
            out: linear.base.out as u32,
            input: linear.base.input as u32,
            pitch: linear.base.out as u32,
            gain: NONE,
            bias: NONE,
            ..Product::default()
        }
    }

    /// Where rows have parts of banks, these come first. A norm that is a launch of its own goes to `normed`.
    fn launch(
        &self,
        step: &Step,
        linear: &GpuLinear,
        (product, after): (Product, After),
        normed: u64,
    ) -> Result<(), Fault> {
        let (device, waves) = (&self.base.device, &step.places.lists[linear.list]);
        let (machine, rows, pitch) = (&*device.machine, product.rows as usize, product.pitch as usize);
        let mut product = product;
        if product.gain != NONE && !(waves.is_empty() && after.norms(rows)) {
            NormModulate {
                x: product.x,
                out: normed,
                rows: product.gathered,
                tables: product.tables,
                gain: product.gain,
                shift: product.shift,
                width: product.input,
                unused: 0,
            }
            .launch(machine, device.dtype, rows)?;
            (product.x, product.gain) = (normed, NONE);
        }
        if waves.is_empty() {
            return product.launch(machine, after);
        }
        machine.clear(product.banked, rows * pitch * size_of::<f32>())?;
        linear.add_banks(device, (product.x, product.banked, pitch), waves, step.work.scratch)?;
        product.parted = step.places.parted[linear.list];
        product.launch(machine, after)
    }

    pub(super) fn fused_layer(&self, step: &Step, number: usize, layer: &GpuLayer) -> Result<(), Fault> {
        let (rows, work, offsets) = (step.shape.rows, step.work, &step.slots.offsets);
        let qkv = Product {
            gain: offsets.line(number, Vector::Gain1),
            shift: offsets.line(number, Vector::Shift1),
            rotary: self.rotary(step, number),
            ..self.plain(step, &layer.qkv, (work.x, rows))
        };
        self.launch(step, &layer.qkv, (qkv, After::Rotated), work.h)?;
        self.attend(step, number)?;
        let out = Product {
            y: work.x,
            gate: offsets.line(number, Vector::Gate1),
            ..self.plain(step, &layer.out, (work.h, rows))
        };
        self.launch(step, &layer.out, (out, After::Residual), NONE.into())?;
        let expand = Product {
            y: work.h,
            gain: offsets.line(number, Vector::Gain2),
            shift: offsets.line(number, Vector::Shift2),
            bias: offsets.bias0(number),
            ..self.plain(step, &layer.expand, (work.x, rows))
        };
        // Queries are done with, and as wide.
        self.launch(step, &layer.expand, (expand, After::Gelu), work.q)?;
        let contract = Product {
            y: work.x,
            gate: offsets.line(number, Vector::Gate2),
            bias: offsets.bias2(number),
            ..self.plain(step, &layer.contract, (work.h, rows))
        };
        self.launch(step, &layer.contract, (contract, After::Residual), NONE.into())
    }

    pub(super) fn fuses_head(&self, step: &Step) -> bool {
        self.fuses(step, &self.head, (After::Keep, step.shape.wanted))
    }

    /// Logits of the wanted rows.
    pub(super) fn fused_head(&self, step: &Step) -> Result<(), Fault> {
        let (work, pitch) = (step.work, logits_pitch(self.base.host.config.vocab_size) as u32);
        let (gain, shift) = step.slots.offsets.last();
        let head = Product {
            gathered: step.places.wanted,
            banked: work.logits,
            y: work.logits,
            out: pitch, // with the rows of zeros after the last
            pitch,
            gain,
            shift,
            ..self.plain(step, &self.head, (work.x, step.shape.wanted))
        };
        self.launch(step, &self.head, (head, After::Keep), work.last)
    }
}
