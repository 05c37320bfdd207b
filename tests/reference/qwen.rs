//! The Qwen3 body of SDAR and A2D, uncached: no block structure but what the mask says.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_slow;
use candle_nn::{Embedding, Linear, Module, RmsNorm, VarBuilder};
use candle_nn::{embedding, linear_no_bias, ops, rms_norm};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Config {
    pub vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    tie_word_embeddings: bool,
}

struct Layer {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

pub struct Qwen {
    config: Config,
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
}

impl Qwen {
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        let c = &config;
        let (hidden, width, dim, eps) = (
            c.hidden_size,
            c.intermediate_size,
            c.head_dim,
            c.rms_norm_eps,
        );
        let (queries, keys) = (c.num_attention_heads * dim, c.num_key_value_heads * dim);
        let layer = |index| {
            let vb = vb.pp(format!("model.layers.{index}"));
            let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
            Ok(Layer {
                norm1: rms_norm(hidden, eps, vb.pp("input_layernorm"))?,
                q: linear_no_bias(hidden, queries, attention.pp("q_proj"))?,
                k: linear_no_bias(hidden, keys, attention.pp("k_proj"))?,
                v: linear_no_bias(hidden, keys, attention.pp("v_proj"))?,
                o: linear_no_bias(queries, hidden, attention.pp("o_proj"))?,
                q_norm: rms_norm(dim, eps, attention.pp("q_norm"))?,
                k_norm: rms_norm(dim, eps, attention.pp("k_norm"))?,
                norm2: rms_norm(hidden, eps, vb.pp("post_attention_layernorm"))?,
                gate: linear_no_bias(hidden, width, mlp.pp("gate_proj"))?,
                up: linear_no_bias(hidden, width, mlp.pp("up_proj"))?,
                down: linear_no_bias(width, hidden, mlp.pp("down_proj"))?,
            })
        };
        let embed = embedding(c.vocab_size, hidden, vb.pp("model.embed_tokens"))?;
        let head = match c.tie_word_embeddings {
            true => Linear::new(embed.embeddings().clone(), None),
            false => linear_no_bias(hidden, c.vocab_size, vb.pp("lm_head"))?,
        };
        Ok(Qwen {
            layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: rms_norm(hidden, eps, vb.pp("model.norm"))?,
            embed,
            head,
            config,
        })
    }

    /// Logits [length, vocab] of ids [length] at these positions, where `mask` [length, length] is 0 for what a row sees and
    /// -infinity for the rest.
    pub fn forward(&self, ids: &Tensor, positions: &[f32], mask: &Tensor) -> Result<Tensor> {
        let (c, length) = (&self.config, positions.len());
        let half = c.head_dim / 2;
        let angle = |i: usize| (c.rope_theta.powf(-(i as f64) / half as f64)) as f32;
        let frequencies = Tensor::from_iter((0..half).map(angle), &Device::Cpu)?;
        let positions = Tensor::new(positions, &Device::Cpu)?.unsqueeze(1)?;
        let angles = positions.matmul(&frequencies.unsqueeze(0)?)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        // [1, heads, length, head_dim]
        let heads =
            |x: Tensor, heads: usize| x.reshape((1, length, heads, c.head_dim))?.transpose(1, 2);
        let group = c.num_attention_heads / c.num_key_value_heads;
        let grouped = |x: Tensor| -> Result<Tensor> {
            let copies = vec![&x; group];
            Tensor::stack(&copies, 2)?.flatten(1, 2)
        };
        let mut x = self.embed.forward(ids)?;
        for layer in &self.layers {
            let y = layer.norm1.forward(&x)?;
            let q = layer
                .q_norm
                .forward(&heads(layer.q.forward(&y)?, c.num_attention_heads)?.contiguous()?)?;
            let k = layer
                .k_norm
                .forward(&heads(layer.k.forward(&y)?, c.num_key_value_heads)?.contiguous()?)?;
            let v = grouped(heads(layer.v.forward(&y)?, c.num_key_value_heads)?)?;
            let (q, k) = (
                rope_slow(&q, &cos, &sin)?,
                grouped(rope_slow(&k, &cos, &sin)?)?,
            );
            let scores =
                (q.contiguous()?.matmul(&k.t()?.contiguous()?)? / (c.head_dim as f64).sqrt())?;
            let weights = ops::softmax(&scores.broadcast_add(mask)?, 3)?;
            let y = weights.matmul(&v.contiguous()?)?.transpose(1, 2)?;
            x = (x + layer.o.forward(&y.reshape((length, ()))?)?)?;
            let y = layer.norm2.forward(&x)?;
            let y = (layer.gate.forward(&y)?.silu()? * layer.up.forward(&y)?)?;
            x = (x + layer.down.forward(&y)?)?;
        }
        self.head
            .forward(&self.norm.forward(&x)?)?
            .to_dtype(DType::F32)
    }
}
