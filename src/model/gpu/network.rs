//! The launches of one step.

use super::linear::{GpuLinear, Waves};
use super::pack::{BatchShape, Places};
use super::room::MatrixTables;
use super::slots::TableSlots;
use super::work::{PieceAddresses, logits_pitch};
use super::{GpuLayer, GpuNetwork};
use crate::model::architecture::{Attention, Mlp};
use crate::ops::gpu::attention::Attend;
use crate::ops::gpu::draw::Categorical;
use crate::ops::gpu::heads::Heads;
use crate::ops::gpu::pointwise::{
    Angles, BiasGelu, GateResidual, NONE, NormFacts, NormModulate, RotaryLaunch, SwiGlu, Tables,
};
use crate::ops::gpu::products::GatherEmbedding;
use crate::ops::gpu::{Address, Dtype, Fault};
use crate::ops::norm::Norm;

/// The cache as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    pub address: Address,
    pub page_tokens: usize,
}

/// A step whose memory is settled.
pub struct DeviceStep<'a> {
    pub shape: &'a BatchShape,
    pub places: &'a Places,
    pub work: PieceAddresses,
    pub slots: &'a TableSlots,
    /// Address of the rotary embedding's frequencies.
    pub frequencies: Address,
    pub tables: &'a MatrixTables,
    pub pages: Pages,
}

impl DeviceStep<'_> {
    /// A matrix's parts.
    pub fn waves(&self, linear: &GpuLinear) -> Waves<'_> {
        Waves {
            of: &self.places.lists[linear.list],
            at: self.tables.of(linear.variants.name()),
        }
    }
}

/// Whether heads are as the DiT's: as many of keys as of queries, without biases and norms.
pub fn plain_heads(attention: &Attention) -> bool {
    attention.heads == attention.kv_heads && !attention.bias && attention.qk_norm.is_none()
}

/// Queries, and keys and values, in memory: address, and elements from one row to the next.
type Sides = [(Address, u32); 2];

/// Rows from which on memory is what a step waits for.
const MANY: usize = 257;

impl GpuNetwork {
    /// What products within layers give: as narrow as what they read where many rows have nothing added to them, else f32.
    fn gives(&self, shape: &BatchShape) -> Dtype {
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
        (x, y): (Address, Address),
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
        let architecture = &self.base.host.architecture;
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (rows, places, work) = (step.shape.rows, step.places, step.work);
        let embedded = step.waves(&self.embedding);
        let matrix = &self.embedding.base;
        let (levels, bits) = match matrix.few_bits {
            None => (Address::default(), 0),
            Some(form) => (matrix.levels(form), form.bits()),
        };
        GatherEmbedding {
            x: work.x,
            tokens: places.tokens,
            base: matrix.data.address(),
            banks: embedded.at.banks,
            parts: places.embedded,
            first_part: places.first_embedded,
            keys: embedded.at.keys,
            outputs: embedded.at.outputs,
            vocab: architecture.vocabulary.rows as u32,
            width: architecture.hidden as u32,
            levels,
            bits,
            unused: 0,
        }
        .launch(gpu, dtype, rows)?;
        self.embedding
            .embed(gpu, (work.x, places.tokens), embedded)?;
        Angles {
            cosines: work.cosines,
            sines: work.sines,
            positions: places.positions,
            frequencies: step.frequencies,
            rows: rows as u32,
            half: architecture.attention().head_dim as u32 / 2,
        }
        .launch(gpu)?;
        let layers = || self.layers.iter().enumerate();
        if self.fuses_layers(step) {
            return layers().try_for_each(|(number, layer)| self.fused_layer(step, number, layer));
        }
        self.norm(step, work.h, self.norm1(step, 0))?;
        layers().try_for_each(|(number, layer)| self.layer(step, number, layer))
    }

    /// The norm before a layer's attention.
    pub(super) fn norm1(&self, step: &DeviceStep, number: usize) -> NormFacts {
        let (at, layers) = (
            &step.slots.offsets.layers[number],
            &self.base.host.architecture.layers,
        );
        NormFacts::new(layers[number].norm, at.gain1, at.shift1)
    }

    /// That before a layer's MLP.
    pub(super) fn norm2(&self, step: &DeviceStep, number: usize) -> NormFacts {
        let (at, layers) = (
            &step.slots.offsets.layers[number],
            &self.base.host.architecture.layers,
        );
        NormFacts::new(layers[number].norm, at.gain2, at.shift2)
    }

    /// A norm of the residual stream.
    pub(super) fn norm(
        &self,
        step: &DeviceStep,
        out: Address,
        norm: NormFacts,
    ) -> Result<(), Fault> {
        self.norm_of(step, (Address::default(), step.shape.rows), out, norm)
    }

    /// The same of `rows` rows of it, which an address says; that of nothing for all in order.
    fn norm_of(
        &self,
        step: &DeviceStep,
        (picked, rows): (Address, usize),
        out: Address,
        norm: NormFacts,
    ) -> Result<(), Fault> {
        NormModulate {
            x: step.work.x,
            out,
            rows: picked,
            tables: self.tables(step),
            norm,
            width: self.base.host.architecture.hidden as u32,
            unused: 0,
        }
        .launch(&*self.base.device.gpu, self.base.device.dtype, rows)
    }

    /// Where queries lie, and keys and values: products in bf16 are rotated where they are.
    fn sides(&self, step: &DeviceStep) -> Sides {
        let (work, attention) = (step.work, self.base.host.architecture.attention());
        let (queries, keys) = (
            (attention.heads * attention.head_dim) as u32,
            (attention.kv_heads * attention.head_dim) as u32,
        );
        match self.gives(step.shape) {
            Dtype::F32 => [(work.q, queries), (work.current, 2 * keys)],
            Dtype::Bf16 => {
                let width = attention.width() as u32;
                [
                    (work.y, width),
                    (work.y + queries as usize * Dtype::Bf16.size(), width),
                ]
            }
        }
    }

    /// Of a layer's queries and keys.
    pub(super) fn rotary(&self, step: &DeviceStep, number: usize) -> RotaryLaunch {
        let (architecture, work) = (&self.base.host.architecture, step.work);
        let attention = architecture.layers[number].attention;
        let [(q, q_pitch), (current, current_pitch)] = self.sides(step);
        RotaryLaunch {
            qkv: work.y,
            cosines: work.cosines,
            sines: work.sines,
            q,
            current,
            cache: step.pages.address,
            slots: step.places.slots,
            heads: attention.heads as u32,
            head_dim: attention.head_dim as u32,
            layer: number as u32,
            layers: architecture.layers.len() as u32,
            page_tokens: step.pages.page_tokens as u32,
            scale: 1.0 / (attention.head_dim as f32).sqrt(),
            q_pitch,
            current_pitch,
        }
    }

    /// Makes what attention reads of a layer's product.
    fn prepare(&self, step: &DeviceStep, number: usize) -> Result<(), Fault> {
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (rows, y) = (step.shape.rows, self.gives(step.shape));
        let attention = self.base.host.architecture.layers[number].attention;
        let rotary = self.rotary(step, number);
        if plain_heads(&attention) {
            return rotary.launch(gpu, dtype, y, rows);
        }
        let at = &step.slots.offsets.layers[number];
        let norm = |gain| NormFacts::new(attention.qk_norm.unwrap_or(Norm::DIT), gain, NONE);
        Heads {
            rotary,
            tables: self.tables(step),
            query: norm(at.query_gain),
            key: norm(at.key_gain),
            kv_heads: attention.kv_heads as u32,
            bias: at.qkv_bias,
        }
        .launch(gpu, dtype, y, rows)
    }

    pub(super) fn attend(&self, step: &DeviceStep, number: usize) -> Result<(), Fault> {
        let (architecture, places, shape) = (&self.base.host.architecture, step.places, step.shape);
        let attention = architecture.layers[number].attention;
        let [(q, q_pitch), (current, current_pitch)] = self.sides(step);
        Attend {
            q,
            current,
            cache: step.pages.address,
            out: step.work.h,
            segment: places.segment,
            segments: places.segments,
            pages: places.pages,
            heads: attention.heads as u32,
            head_dim: attention.head_dim as u32,
            layer: number as u32,
            layers: architecture.layers.len() as u32,
            page_tokens: step.pages.page_tokens as u32,
            window: architecture.context as u32,
            q_pitch,
            current_pitch,
            kv_heads: attention.kv_heads as u32,
            unused: 0,
        }
        .launch_tiles(
            &*self.base.device.gpu,
            self.base.device.dtype,
            shape.rows,
            (places.tiles, shape.tiles, shape.cut),
        )
    }

    /// What an MLP's narrow half reads, of what its wide half gave.
    fn activate(&self, step: &DeviceStep, number: usize) -> Result<(), Fault> {
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (y, out, rows) = (step.work.y, step.work.h, step.shape.rows);
        let gives = self.gives(step.shape);
        match self.base.host.architecture.layers[number].mlp {
            Mlp::Gelu { width } => BiasGelu {
                y,
                out,
                tables: self.tables(step),
                bias: step.slots.offsets.layers[number].up_bias,
                width: width as u32,
            }
            .launch(gpu, dtype, gives, rows),
            Mlp::SwiGlu { width } => SwiGlu {
                y,
                out,
                width: width as u32,
                unused: 0,
            }
            .launch(gpu, dtype, gives, rows),
        }
    }

    fn layer(&self, step: &DeviceStep, number: usize, layer: &GpuLayer) -> Result<(), Fault> {
        let (gpu, dtype) = (&*self.base.device.gpu, self.base.device.dtype);
        let (rows, work) = (step.shape.rows, step.work);
        let (at, y) = (&step.slots.offsets.layers[number], self.gives(step.shape));
        let residual = |gate, bias, norm| {
            GateResidual {
                x: work.x,
                y: work.y,
                out: work.h,
                tables: self.tables(step),
                norm,
                gate,
                bias,
                width: self.base.host.architecture.hidden as u32,
                unused: 0,
            }
            .launch(gpu, dtype, y, rows)
        };
        self.product(step, &layer.qkv, (work.h, work.y))?;
        self.prepare(step, number)?;
        self.attend(step, number)?;
        self.product(step, &layer.out, (work.h, work.y))?;
        residual(at.gate1, NONE, self.norm2(step, number))?;
        self.product(step, &layer.up, (work.h, work.y))?;
        self.activate(step, number)?;
        self.product(step, &layer.down, (work.h, work.y))?;
        let next = match number + 1 < self.layers.len() {
            true => self.norm1(step, number + 1),
            false => NormFacts::none(), // of the wanted rows alone
        };
        residual(at.gate2, at.down_bias, next)
    }

    /// Logits of the wanted rows, and what is drawn from them.
    pub(super) fn head(&self, step: &DeviceStep) -> Result<(), Fault> {
        let architecture = &self.base.host.architecture;
        let (gpu, wanted) = (&*self.base.device.gpu, step.shape.wanted);
        let (vocab, offsets) = (architecture.vocabulary.rows, &step.slots.offsets);
        let pitch = logits_pitch(vocab);
        let norm = NormFacts::new(architecture.norm, offsets.gain, offsets.shift);
        self.norm_of(step, (step.places.wanted, wanted), step.work.last, norm)?;
        if self.fuses_head(step) {
            self.fused_head(step)?;
        } else {
            let rows = (step.work.last, step.work.logits, wanted, pitch);
            let waves = step.waves(&self.head);
            let (device, scratch) = (&self.base.device, step.work.scratch);
            self.head
                .forward(device, rows, Dtype::F32, waves, scratch)?;
        }
        let (biases, bias_stride, bias) = step.slots.head_bias();
        Categorical {
            logits: step.work.logits,
            biases,
            mix: step.places.mix,
            rows: step.places.wanted,
            draws: step.places.draws,
            drawn: step.work.drawn,
            looks: step.work.looks,
            vocab: vocab as u32,
            pitch: pitch as u32,
            bias_stride,
            bias,
        }
        .launch(gpu, wanted)
    }
}
