//! From the noise level and the small tensors to what modulates the layers: one line for every mix and noise level.

use super::architecture::{Architecture, Conditioning, MatrixRole};
use crate::model::error::{Error, Result};
use crate::ops::gemm::{self, MatrixView};
use crate::ops::norm::Affine;
use crate::ops::slice;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// One layer's tables, [lines, hidden] but for the biases, [1, width].
#[derive(Clone, Debug)]
pub struct LayerTables {
    pub gain1: Tensor,
    pub shift1: Tensor,
    pub gate1: Tensor,
    pub gain2: Tensor,
    pub shift2: Tensor,
    pub gate2: Tensor,
    pub bias0: Tensor,
    pub bias2: Tensor,
}

/// All layers' tables and the final layer's.
#[derive(Clone, Debug)]
pub struct ModulationTables {
    pub layers: Vec<LayerTables>,
    pub gain: Tensor,
    pub shift: Tensor,
    /// Bias of the output head, [1, vocab].
    pub bias: Tensor,
}

/// A vector of a line.
pub type Vector = Arc<[f32]>;

/// What a normalised row is multiplied by, and what is added where something is.
#[derive(Clone, Debug)]
pub struct NormLine {
    pub gain: Vector,
    pub shift: Option<Vector>,
}

impl NormLine {
    fn vectors(&self) -> [Option<&Vector>; 2] {
        [Some(&self.gain), self.shift.as_ref()]
    }

    pub fn affine(&self) -> Affine<'_> {
        Affine {
            gain: &self.gain,
            shift: self.shift.as_deref(),
        }
    }
}

/// One layer's vectors, those that the architecture has.
#[derive(Clone, Debug)]
pub struct LayerLine {
    /// Before attention.
    pub norm1: NormLine,
    /// Of attention's residual branch.
    pub gate1: Option<Vector>,
    /// Before the MLP.
    pub norm2: NormLine,
    /// Of the MLP's.
    pub gate2: Option<Vector>,
    pub qkv_bias: Option<Vector>,
    /// Of a head's query and key.
    pub query_gain: Option<Vector>,
    pub key_gain: Option<Vector>,
    pub up_bias: Option<Vector>,
    pub down_bias: Option<Vector>,
}

/// All vectors of one mix at one noise level, as serving reads them.
#[derive(Clone, Debug)]
pub struct ModulationRow {
    pub layers: Vec<LayerLine>,
    /// Behind the last layer.
    pub norm: NormLine,
    /// Of the output head, [vocab].
    pub bias: Option<Vector>,
}

fn flat(tensor: &Tensor) -> Result<Vector> {
    Ok(Arc::from(&*slice::f32(tensor)?))
}

impl ModulationTables {
    /// The numbers of tables of one line.
    fn line(&self) -> Result<ModulationRow> {
        let norm = |gain: &Tensor, shift: &Tensor| -> Result<NormLine> {
            let (gain, shift) = (flat(gain)?, Some(flat(shift)?));
            Ok(NormLine { gain, shift })
        };
        let layers = self.layers.iter().map(|t| {
            Ok(LayerLine {
                norm1: norm(&t.gain1, &t.shift1)?,
                gate1: Some(flat(&t.gate1)?),
                norm2: norm(&t.gain2, &t.shift2)?,
                gate2: Some(flat(&t.gate2)?),
                qkv_bias: None,
                query_gain: None,
                key_gain: None,
                up_bias: Some(flat(&t.bias0)?),
                down_bias: Some(flat(&t.bias2)?),
            })
        });
        Ok(ModulationRow {
            layers: layers.collect::<Result<_>>()?,
            norm: norm(&self.gain, &self.shift)?,
            bias: Some(flat(&self.bias)?),
        })
    }
}

/// The line of a network whose tensors `get` returns by internal name, at a noise level.
pub fn line(
    architecture: &Architecture,
    get: impl Fn(&str) -> Result<Tensor>,
    sigma: f32,
) -> Result<ModulationRow> {
    if let Some(conditioning) = architecture.conditioning {
        let layers = architecture.layers.len();
        return tables(layers, conditioning, get, &[sigma], &Device::Cpu)?.line();
    }
    let optional = |role: MatrixRole, layer: Option<usize>| -> Result<Option<Vector>> {
        let spec = architecture.tensor(role, layer);
        spec.map(|spec| flat(&get(&spec.name)?)).transpose()
    };
    let norm = |role: MatrixRole, layer: Option<usize>| -> Result<NormLine> {
        match optional(role, layer)? {
            Some(gain) => Ok(NormLine { gain, shift: None }),
            None => Err(Error::MissingRole { role, layer }),
        }
    };
    let layer = |number: usize| {
        let of = |role| optional(role, Some(number));
        Ok(LayerLine {
            norm1: norm(MatrixRole::AttentionNorm, Some(number))?,
            gate1: None,
            norm2: norm(MatrixRole::MlpNorm, Some(number))?,
            gate2: None,
            qkv_bias: of(MatrixRole::QkvBias)?,
            query_gain: of(MatrixRole::QueryNorm)?,
            key_gain: of(MatrixRole::KeyNorm)?,
            up_bias: of(MatrixRole::UpBias)?,
            down_bias: of(MatrixRole::DownBias)?,
        })
    };
    Ok(ModulationRow {
        layers: (0..architecture.layers.len())
            .map(layer)
            .collect::<Result<_>>()?,
        norm: norm(MatrixRole::FinalNorm, None)?,
        bias: optional(MatrixRole::HeadBias, None)?,
    })
}

impl ModulationRow {
    /// What depends on the noise level, as it lies side by side on a device.
    pub fn modulations(&self) -> impl Iterator<Item = &Vector> {
        let layers = self.layers.iter().flat_map(|t| {
            let ([gain1, shift1], [gain2, shift2]) = (t.norm1.vectors(), t.norm2.vectors());
            let (gate1, gate2) = (t.gate1.as_ref(), t.gate2.as_ref());
            [gain1, shift1, gate1, gain2, shift2, gate2]
        });
        layers.chain(self.norm.vectors()).flatten()
    }

    /// What no noise level changes, likewise.
    pub fn constants(&self) -> impl Iterator<Item = &Vector> {
        let layers = self.layers.iter().flat_map(|t| {
            [
                &t.qkv_bias,
                &t.query_gain,
                &t.key_gain,
                &t.up_bias,
                &t.down_bias,
            ]
        });
        layers.chain([&self.bias]).flatten()
    }

    /// Takes what no noise level changes of another line of the same mix.
    pub fn share_constants(&mut self, other: &ModulationRow) {
        for (own, other) in self.layers.iter_mut().zip(&other.layers) {
            own.qkv_bias.clone_from(&other.qkv_bias);
            own.query_gain.clone_from(&other.query_gain);
            own.key_gain.clone_from(&other.key_gain);
            own.up_bias.clone_from(&other.up_bias);
            own.down_bias.clone_from(&other.down_bias);
        }
        self.bias.clone_from(&other.bias);
    }

    /// Bytes of its numbers: of those of its noise level, and of those that no noise level changes.
    pub fn bytes(&self) -> [usize; 2] {
        let bytes = |numbers: &Vector| size_of_val(&numbers[..]);
        [
            self.modulations().map(bytes).sum(),
            self.constants().map(bytes).sum(),
        ]
    }
}

impl ModulationTables {
    /// All but the biases, as they lie side by side on a device.
    pub fn modulations(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter();
        let layers =
            layers.flat_map(|t| [&t.gain1, &t.shift1, &t.gate1, &t.gain2, &t.shift2, &t.gate2]);
        layers.chain([&self.gain, &self.shift])
    }

    /// The biases, likewise.
    pub fn biases(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(|t| [&t.bias0, &t.bias2]);
        layers.chain([&self.bias])
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
    Ok(Tensor::from_vec(data, (sigma.len(), frequencies), device)?)
}

/// x W^T of x [lines, in] and W [out, in], both f32 on the host, on this thread.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (lines, (out, input)) = (x.dim(0)?, weight.dims2()?);
    let mut y = vec![0.0; lines * out];
    let (x, weight) = (slice::f32(x)?, slice::f32(weight)?);
    let (x, weight) = (
        MatrixView::rows(&x, input),
        MatrixView::rows(&weight, input),
    );
    gemm::product((lines, out, input), &mut y, out, false, x, weight.t());
    Ok(slice::tensor(y, lines, out)?)
}

/// Builds the tables of `count` layers for these noise levels from the tensors that `get` returns by internal name;
/// differentiable in them. Conventions of the published DiT: c = SiLU(sigma_map(sigma)), no second
/// SiLU before adaLN; six chunks shift, scale, gate (attention), shift, scale, gate (MLP).
pub fn tables(
    count: usize,
    conditioning: Conditioning,
    get: impl Fn(&str) -> Result<Tensor>,
    sigma: &[f32],
    device: &Device,
) -> Result<ModulationTables> {
    let affine = |x: &Tensor, name: &str| -> Result<Tensor> {
        let weight = get(&format!("{name}.weight"))?;
        // candle's product asks the system for its processors every time, which takes longer the more there are.
        let product = match weight.track_op() || x.track_op() {
            true => x.matmul(&weight.t()?)?,
            false => product(x, &weight)?,
        };
        Ok(product.broadcast_add(&get(&format!("{name}.bias"))?)?)
    };
    let features = timestep_features(sigma, conditioning.frequencies, device)?;
    let c = affine(
        &affine(&features, "sigma_map.mlp.0")?.silu()?,
        "sigma_map.mlp.2",
    )?
    .silu()?;
    let gain = |norm: &str, scale: &Tensor| -> Result<Tensor> {
        Ok((scale + 1.0)?
            .broadcast_mul(&get(&format!("{norm}.weight"))?)?
            .contiguous()?)
    };
    let mut layers = Vec::with_capacity(count);
    for layer in 0..count {
        let chunks = affine(&c, &format!("blocks.{layer}.adaLN_modulation"))?.chunk(6, 1)?;
        let row = |name: &str| -> Result<Tensor> {
            Ok(get(&format!("blocks.{layer}.{name}"))?.unsqueeze(0)?)
        };
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
    Ok(ModulationTables {
        layers,
        shift: chunks[0].contiguous()?,
        gain: gain("output_layer.norm_final", &chunks[1])?,
        bias: get("output_layer.linear.bias")?.unsqueeze(0)?,
    })
}
