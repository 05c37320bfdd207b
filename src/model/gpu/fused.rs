//! A layer of a step of few rows, where it is as the DiT's: what follows a product goes into its launch.
//!
//! What banks give goes through the same nonlinearities as the base's product, so it is there first, and the product adds it.

use super::linear::GpuLinear;
use super::network::{DeviceStep, plain_heads};
use super::work::logits_pitch;
use super::{GpuLayer, GpuNetwork};
use crate::model::architecture::Mlp;
use crate::ops::gpu::pointwise::NONE;
use crate::ops::gpu::product::{After, Product};
use crate::ops::gpu::{Address, Dtype, Fault};

impl GpuNetwork {
    /// Whether there is a kernel for a product of so many rows. What dense banks give is not kept apart.
    fn fuses(&self, step: &DeviceStep, linear: &GpuLinear, (after, rows): (After, usize)) -> bool {
        let dense = !step.places.lists[linear.list].dense.is_empty();
        let takes = after.takes(rows, linear.base.out, linear.base.input);
        let plain = linear.base.few_bits.is_none();
        self.base.device.dtype == Dtype::Bf16 && plain && takes && !dense
    }

    pub(super) fn fuses_layers(&self, step: &DeviceStep) -> bool {
        let takes = |linear: &GpuLinear, after| self.fuses(step, linear, (after, step.shape.rows));
        let layer = |l: &GpuLayer| {
            let attention = takes(&l.qkv, After::Rope) && takes(&l.out, After::Residual);
            attention && takes(&l.up, After::Gelu) && takes(&l.down, After::Residual)
        };
        let architecture = &self.base.host.architecture;
        let kernels = architecture.layers.iter().all(|layer| {
            let heads = plain_heads(&layer.attention);
            heads && matches!(layer.mlp, Mlp::Gelu { .. })
        });
        let modulated = architecture.conditioning.is_some();
        let dim = architecture.attention().head_dim;
        kernels && modulated && dim.is_multiple_of(16) && self.layers.iter().all(layer)
    }

    pub(super) fn fuses_head(&self, step: &DeviceStep) -> bool {
        self.fuses(step, &self.head, (After::Keep, step.shape.wanted))
    }

    fn fused(
        &self,
        step: &DeviceStep,
        linear: &GpuLinear,
        after: After,
        (x, rows): (Address, usize),
        of: impl FnOnce(Product) -> Product,
    ) -> Result<(), Fault> {
        let (device, waves, out) = (
            &self.base.device,
            step.waves(linear),
            linear.base.out as u32,
        );
        let bare = waves.is_empty();
        let product = of(Product {
            w: linear.base.data.address(),
            x,
            banked: step.work.y,
            parted: match bare {
                true => Address::default(),
                false => step.places.parted[linear.list],
            },
            tables: self.tables(step),
            rows: rows as u32,
            out,
            input: linear.base.input as u32,
            pitch: out,
            bias: NONE,
            ..Product::default()
        });
        let banked = (x, product.banked, product.pitch as usize);
        // What variants keep by themselves is added to what is there: to zeros, where that may be nothing.
        let writes = waves.of.own.is_empty();
        if !writes {
            let bytes = rows * product.pitch as usize * size_of::<f32>();
            device.gpu.clear(product.banked, bytes)?;
        }
        linear.tiled(device, banked, (waves, writes), step.work.scratch)?;
        linear.own(device, banked, waves, step.work.scratch)?;
        product.launch(&*device.gpu, after)
    }

    pub(super) fn fused_layer(
        &self,
        step: &DeviceStep,
        number: usize,
        layer: &GpuLayer,
    ) -> Result<(), Fault> {
        let (rows, work, at) = (
            step.shape.rows,
            step.work,
            &step.slots.offsets.layers[number],
        );
        self.norm(step, work.h, self.norm1(step, number))?;
        self.fused(step, &layer.qkv, After::Rope, (work.h, rows), |product| {
            Product {
                rotary: self.rotary(step, number),
                ..product
            }
        })?;
        self.attend(step, number)?;
        self.fused(
            step,
            &layer.out,
            After::Residual,
            (work.h, rows),
            |product| Product {
                y: work.x,
                gate: at.gate1,
                ..product
            },
        )?;
        // Queries are done with, and as wide.
        let normed = work.q;
        self.norm(step, normed, self.norm2(step, number))?;
        self.fused(step, &layer.up, After::Gelu, (normed, rows), |product| {
            Product {
                y: work.h,
                bias: at.up_bias,
                ..product
            }
        })?;
        self.fused(
            step,
            &layer.down,
            After::Residual,
            (work.h, rows),
            |product| Product {
                y: work.x,
                gate: at.gate2,
                bias: at.down_bias,
                ..product
            },
        )
    }

    /// Logits of the wanted rows, normed already.
    pub(super) fn fused_head(&self, step: &DeviceStep) -> Result<(), Fault> {
        let (work, pitch) = (
            step.work,
            logits_pitch(self.base.host.architecture.vocabulary.rows) as u32,
        );
        let rows = (work.last, step.shape.wanted);
        self.fused(step, &self.head, After::Keep, rows, |product| Product {
            banked: work.logits,
            y: work.logits,
            out: pitch, // with the rows of zeros after the last
            pitch,
            ..product
        })
    }
}
