//! The launches of one step.

use super::linear::{GpuLinear, Waves};
use super::pack::{Places, Shape};
use super::slots::{TableSlots, Vector};
use super::work::{Pieces, logits_pitch};
use super::{GpuDit, GpuLayer};
use crate::ops::gpu::attention::Attend;
use crate::ops::gpu::draw::Categorical;
use crate::ops::gpu::pointwise::{
    Angles, BiasGelu, GateResidual, NONE, NormModulate, RotaryLaunch, Tables,
};
use crate::ops::gpu::products::GatherEmbedding;
use crate::ops::gpu::{Dtype, Fault};

/// The cache as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    pub address: u64,
    pub page_tokens: usize,
}

/// A step whose memory is settled.
pub struct DeviceStep<'a> {
    pub shape: &'a Shape,
    pub places: &'a Places,
    pub work: Pieces,
    pub slots: &'a TableSlots,
    pub pages: Pages,
}

impl DeviceStep<'_> {
    /// A matrix's parts.
    pub fn waves(&self, linear: &GpuLinear) -> Waves<'_> {
        Waves {
            banks: &self.places.lists[linear.list],
            own: &self.places.own[linear.list],
        }
    }
}

/// Rows from which on memory is what a step waits for.
const MANY: usize = 257;

impl GpuDit {
    /// What products within layers give: as narrow as what they read where many rows have nothing added to them, else f32.
    fn gives(&self, shape: &Shape) -> Dtype {
        if shape.rows < MANY || !shape.bare() {
            return Dtype::F32;
        }
        self.base.device.dtype
    }

    pub(super) fn tables(&self, step: &DeviceStep) -> Tables {
        let offsets = &step.slots.offsets;
        let (lines, biases) = step.slots.addresses();
        Tables {
            lines,
            biases,
            line: step.places.line,
            mix: step.places.mix,
            line_stride: offsets.line_floats() as u32,
            bias_stride: offsets.bias_floats() as u32,
        }
    }

    fn product(
        &self,
        step: &DeviceStep,
        linear: &GpuLinear,
        (x, y): (u64, u64),
    ) -> Result<(), Fault> {
        let waves = step.waves(linear);
        let rows = (x, y, step.shape.rows, linear.base.out);
        linear.forward(
            &self.base.device,
            rows,
            self.gives(step.shape),
            waves,
            step.work.scratch,
        )
    }

    /// Everything up to the last layer's residual stream.
    pub(super) fn layers(&self, step: &DeviceStep) -> Result<(), Fault> {
        let config = &self.base.host.architecture;
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (rows, places, work) = (step.shape.rows, step.places, step.work);
        let (hidden, head_dim) = (config.hidden as u32, config.attention().head_dim as u32);
        GatherEmbedding {
            x: work.x,
            tokens: places.tokens,
            base: self.embedding.base.data.address(),
            banks: self.embedding.variants.addresses.address(),
            parts: places.embedded,
            first_part: places.first_embedded,
            keys: self.embedding.variants.keys(),
            outputs: self.embedding.variants.outputs(),
            vocab: config.vocabulary.rows as u32,
            width: hidden,
            tiles: self.embedding.variants.tiled.into(),
            unused: 0,
        }
        .launch(gpu, dtype, rows)?;
        self.embedding.variants.embed(
            gpu,
            (work.x, places.tokens),
            (config.vocabulary.rows, config.hidden),
            step.waves(&self.embedding).own,
        )?;
        Angles {
            cosines: work.cosines,
            sines: work.sines,
            positions: places.positions,
            frequencies: self.frequencies.address(),
            rows: rows as u32,
            half: head_dim / 2,
        }
        .launch(gpu)?;
        let layers = || self.layers.iter().enumerate();
        if self.fuses_layers(step) {
            return layers().try_for_each(|(number, layer)| self.fused_layer(step, number, layer));
        }
        let first = |vector| step.slots.offsets.line(0, vector);
        self.norm(step, work.h, (first(Vector::Gain1), first(Vector::Shift1)))?;
        layers().try_for_each(|(number, layer)| self.layer(step, number, layer))
    }

    /// A norm of the residual stream.
    pub(super) fn norm(
        &self,
        step: &DeviceStep,
        out: u64,
        (gain, shift): (u32, u32),
    ) -> Result<(), Fault> {
        self.norm_of(step, (0, step.shape.rows), out, (gain, shift))
    }

    /// The same of `rows` rows of it, which an address says; 0 for all in order.
    fn norm_of(
        &self,
        step: &DeviceStep,
        (picked, rows): (u64, usize),
        out: u64,
        (gain, shift): (u32, u32),
    ) -> Result<(), Fault> {
        NormModulate {
            x: step.work.x,
            out,
            rows: picked,
            tables: self.tables(step),
            gain,
            shift,
            width: self.base.host.architecture.hidden as u32,
            unused: 0,
        }
        .launch(&*self.base.device.gpu, self.base.device.dtype, rows)
    }

    /// Where queries lie, and keys and values, and how far one row is from the next: in bf16, rotary embedding is applied to queries and keys where
    /// they are.
    fn heads(&self, step: &DeviceStep) -> [(u64, u32); 2] {
        let (work, hidden) = (step.work, self.base.host.architecture.hidden as u32);
        match self.gives(step.shape) {
            Dtype::F32 => [(work.q, hidden), (work.current, 2 * hidden)],
            Dtype::Bf16 => [
                (work.y, 3 * hidden),
                (work.y + u64::from(hidden) * 2, 3 * hidden),
            ],
        }
    }

    /// Of a layer's queries and keys.
    pub(super) fn rotary(&self, step: &DeviceStep, number: usize) -> RotaryLaunch {
        let (config, work) = (&self.base.host.architecture, step.work);
        let head_dim = config.attention().head_dim;
        let [(q, q_pitch), (current, current_pitch)] = self.heads(step);
        RotaryLaunch {
            qkv: work.y,
            cosines: work.cosines,
            sines: work.sines,
            q,
            current,
            cache: step.pages.address,
            slots: step.places.slots,
            heads: config.attention().heads as u32,
            head_dim: head_dim as u32,
            layer: number as u32,
            layers: config.layers.len() as u32,
            page_tokens: step.pages.page_tokens as u32,
            scale: 1.0 / (head_dim as f32).sqrt(),
            q_pitch,
            current_pitch,
        }
    }

    pub(super) fn attend(&self, step: &DeviceStep, number: usize) -> Result<(), Fault> {
        let (config, places, shape) = (&self.base.host.architecture, step.places, step.shape);
        let [(q, q_pitch), (current, current_pitch)] = self.heads(step);
        Attend {
            q,
            current,
            cache: step.pages.address,
            out: step.work.h,
            segment: places.segment,
            segments: places.segments,
            pages: places.pages,
            heads: config.attention().heads as u32,
            head_dim: config.attention().head_dim as u32,
            layer: number as u32,
            layers: config.layers.len() as u32,
            page_tokens: step.pages.page_tokens as u32,
            window: config.context as u32,
            q_pitch,
            current_pitch,
        }
        .launch_tiles(
            &*self.base.device.gpu,
            self.base.device.dtype,
            shape.rows,
            (places.tiles, shape.tiles, shape.cut),
        )
    }

    fn layer(&self, step: &DeviceStep, number: usize, layer: &GpuLayer) -> Result<(), Fault> {
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (rows, work) = (step.shape.rows, step.work);
        let (offsets, tables, y) = (
            &step.slots.offsets,
            self.tables(step),
            self.gives(step.shape),
        );
        self.product(step, &layer.qkv, (work.h, work.y))?;
        self.rotary(step, number).launch(gpu, dtype, y, rows)?;
        self.attend(step, number)?;
        self.product(step, &layer.out, (work.h, work.y))?;
        let residual = GateResidual {
            x: work.x,
            y: work.y,
            out: work.h,
            tables,
            gate: offsets.line(number, Vector::Gate1),
            bias: NONE,
            gain: offsets.line(number, Vector::Gain2),
            shift: offsets.line(number, Vector::Shift2),
            width: self.base.host.architecture.hidden as u32,
            unused: 0,
        };
        residual.launch(gpu, dtype, y, rows)?;
        self.product(step, &layer.up, (work.h, work.y))?;
        BiasGelu {
            y: work.y,
            out: work.h,
            tables,
            bias: offsets.bias0(number),
            width: layer.up.base.out as u32,
        }
        .launch(gpu, dtype, y, rows)?;
        self.product(step, &layer.down, (work.h, work.y))?;
        let next = number + 1 < self.layers.len();
        let of_next = |vector| {
            if next {
                offsets.line(number + 1, vector)
            } else {
                NONE
            }
        };
        GateResidual {
            gate: offsets.line(number, Vector::Gate2),
            bias: offsets.bias2(number),
            gain: of_next(Vector::Gain1),
            shift: of_next(Vector::Shift1),
            ..residual
        }
        .launch(gpu, dtype, y, rows)
    }

    /// Logits of the wanted rows, and what is drawn from them.
    pub(super) fn head(&self, step: &DeviceStep) -> Result<(), Fault> {
        let config = &self.base.host.architecture;
        let (gpu, wanted) = (&*self.base.device.gpu, step.shape.wanted);
        let pitch = logits_pitch(config.vocabulary.rows);
        let picked = (step.places.wanted, wanted);
        self.norm_of(step, picked, step.work.last, step.slots.offsets.last())?;
        if self.fuses_head(step) {
            self.fused_head(step)?;
        } else {
            let (waves, rows) = (
                step.waves(&self.head),
                (step.work.last, step.work.logits, wanted, pitch),
            );
            self.head.forward(
                &self.base.device,
                rows,
                Dtype::F32,
                waves,
                step.work.scratch,
            )?;
        }
        let (_, biases) = step.slots.addresses();
        Categorical {
            logits: step.work.logits,
            biases,
            mix: step.places.mix,
            rows: step.places.wanted,
            draws: step.places.draws,
            drawn: step.work.drawn,
            looks: step.work.looks,
            vocab: config.vocabulary.rows as u32,
            pitch: pitch as u32,
            bias_stride: step.slots.offsets.bias_floats() as u32,
            bias: step.slots.offsets.bias(),
        }
        .launch(gpu, wanted)
    }
}
