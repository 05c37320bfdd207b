//! From sigma and the small tensors to modulation tables: one line per noise level.

use super::DitConfig;
use crate::ops::gemm::{self, View};
use crate::ops::slice;
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// One layer's tables, [lines, hidden] but for the biases, [1, width].
#[derive(Clone, Debug)]
pub struct LayerTables<T = Tensor> {
    pub gain1: T,
    pub shift1: T,
    pub gate1: T,
    pub gain2: T,
    pub shift2: T,
    pub gate2: T,
    pub bias0: T,
    pub bias2: T,
}

/// All layers' tables and the final layer's.
#[derive(Clone, Debug)]
pub struct Tables<T = Tensor> {
    pub layers: Vec<LayerTables<T>>,
    pub gain: T,
    pub shift: T,
    /// Bias of the output head, [1, vocab].
    pub bias: T,
}

/// Tables of one line, as serving reads them.
pub type Line = Tables<Arc<[f32]>>;

impl Tables {
    /// The numbers of tables of one line.
    pub fn line(&self) -> Result<Line> {
        let flat = |tensor: &Tensor| -> Result<Arc<[f32]>> { Ok(Arc::from(&*slice::f32(tensor)?)) };
        let layers = self.layers.iter().map(|t| {
            Ok(LayerTables {
                gain1: flat(&t.gain1)?,
                shift1: flat(&t.shift1)?,
                gate1: flat(&t.gate1)?,
                gain2: flat(&t.gain2)?,
                shift2: flat(&t.shift2)?,
                gate2: flat(&t.gate2)?,
                bias0: flat(&t.bias0)?,
                bias2: flat(&t.bias2)?,
            })
        });
        Ok(Tables {
            layers: layers.collect::<Result<_>>()?,
            gain: flat(&self.gain)?,
            shift: flat(&self.shift)?,
            bias: flat(&self.bias)?,
        })
    }
}

impl<T> Tables<T> {
    /// All but the biases, as they lie side by side on a device.
    pub fn modulations(&self) -> impl Iterator<Item = &T> {
        let layers = self.layers.iter();
        let layers =
            layers.flat_map(|t| [&t.gain1, &t.shift1, &t.gate1, &t.gain2, &t.shift2, &t.gate2]);
        layers.chain([&self.gain, &self.shift])
    }

    /// The biases, likewise.
    pub fn biases(&self) -> impl Iterator<Item = &T> {
        let layers = self.layers.iter().flat_map(|t| [&t.bias0, &t.bias2]);
        layers.chain([&self.bias])
    }
}

impl Line {
    fn biases_mut(&mut self) -> impl Iterator<Item = &mut Arc<[f32]>> {
        let layers = self.layers.iter_mut();
        layers
            .flat_map(|t| [&mut t.bias0, &mut t.bias2])
            .chain([&mut self.bias])
    }

    /// Takes another line's biases for its own, which are equal; returns the bytes that this spares.
    pub fn share_biases(&mut self, other: &Line) -> usize {
        let mut other = other.clone();
        let pairs = self.biases_mut().zip(other.biases_mut());
        pairs
            .map(|(bias, shared)| {
                *bias = shared.clone();
                size_of_val(&bias[..])
            })
            .sum()
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        let all = self.modulations().chain(self.biases());
        all.map(|numbers| size_of_val(&numbers[..])).sum()
    }
}

/// Sinusoidal features of sigma, [lines, frequencies]: cosines first, `exp(-ln(10000) i / half)`.
pub fn timestep_features(sigma: &[f32], frequencies: usize, device: &Device) -> Result<Tensor> {
    let half = frequencies / 2;
    let mut data = Vec::with_capacity(sigma.len() * frequencies);
    for &sigma in sigma {
        // In f32, as the papers' code computes it.
        let angles = (0..half).map(|i| sigma * (-(10000f32.ln()) * i as f32 / half as f32).exp());
        data.extend(angles.clone().map(f32::cos));
        data.extend(angles.map(f32::sin));
    }
    Tensor::from_vec(data, (sigma.len(), frequencies), device)
}

/// x W^T of x [lines, in] and W [out, in], both f32 on the host, on this thread.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (lines, (out, input)) = (x.dim(0)?, weight.dims2()?);
    let mut y = vec![0.0; lines * out];
    let (x, weight) = (slice::f32(x)?, slice::f32(weight)?);
    let (x, weight) = (View::rows(&x, input), View::rows(&weight, input));
    gemm::product((lines, out, input), &mut y, out, false, x, weight.t());
    slice::tensor(y, lines, out)
}

/// Builds the tables for these noise levels from the tensors that `get` returns by internal name;
/// differentiable in them. Conventions of the published DiT: c = SiLU(sigma_map(sigma)), no second
/// SiLU before adaLN; six chunks shift, scale, gate (attention), shift, scale, gate (MLP).
pub fn tables(
    config: &DitConfig,
    get: impl Fn(&str) -> Result<Tensor>,
    sigma: &[f32],
    device: &Device,
) -> Result<Tables> {
    let affine = |x: &Tensor, name: &str| -> Result<Tensor> {
        let weight = get(&format!("{name}.weight"))?;
        // candle's product asks the system for its processors every time, which takes longer the more there are.
        let product = match weight.track_op() || x.track_op() {
            true => x.matmul(&weight.t()?)?,
            false => product(x, &weight)?,
        };
        product.broadcast_add(&get(&format!("{name}.bias"))?)
    };
    let features = timestep_features(sigma, config.frequency_dim(), device)?;
    let c = affine(
        &affine(&features, "sigma_map.mlp.0")?.silu()?,
        "sigma_map.mlp.2",
    )?
    .silu()?;
    let gain = |norm: &str, scale: &Tensor| -> Result<Tensor> {
        (scale + 1.0)?
            .broadcast_mul(&get(&format!("{norm}.weight"))?)?
            .contiguous()
    };
    let mut layers = Vec::with_capacity(config.n_blocks);
    for layer in 0..config.n_blocks {
        let chunks = affine(&c, &format!("blocks.{layer}.adaLN_modulation"))?.chunk(6, 1)?;
        let row = |name: &str| get(&format!("blocks.{layer}.{name}"))?.unsqueeze(0);
        layers.push(LayerTables {
            shift1: chunks[0].contiguous()?,
            gain1: gain(&format!("blocks.{layer}.norm1"), &chunks[1])?,
            gate1: chunks[2].contiguous()?,
            shift2: chunks[3].contiguous()?,
            gain2: gain(&format!("blocks.{layer}.norm2"), &chunks[4])?,
            gate2: chunks[5].contiguous()?,
            bias0: row("mlp.0.bias")?,
            bias2: row("mlp.2.bias")?,
        });
    }
    let chunks = affine(&c, "output_layer.adaLN_modulation")?.chunk(2, 1)?;
    Ok(Tables {
        layers,
        shift: chunks[0].contiguous()?,
        gain: gain("output_layer.norm_final", &chunks[1])?,
        bias: get("output_layer.linear.bias")?.unsqueeze(0)?,
    })
}
