//! Weights on a device: the matrices that rows go through and the embedding; all else stays on the host.

use super::variant::VariantSlots;
use crate::model::architecture::dit::{EMBEDDING, is_product};
use crate::model::architecture::{Architecture, TensorSpec};
use crate::model::base::{BaseWeights, Dense, read};
use crate::model::error::{Error, Result};
use crate::model::target::{GpuTarget, Matrix};
use crate::model::weights::ServedBank;
use crate::ops::gpu::Buffer;
use crate::ops::gpu::tiles::tiles;
use crate::ops::quantized::Quantisation;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether a tensor lies on the device.
pub fn on_device(name: &str) -> bool {
    is_product(name) || name == EMBEDDING
}

/// The base: shared by all generations.
#[derive(Debug)]
pub struct GpuBase {
    pub device: GpuTarget,
    /// Everything that is not on the device.
    pub host: Arc<BaseWeights>,
    pub matrices: BTreeMap<String, Arc<Matrix>>,
    /// What its variants keep for themselves.
    pub slots: Arc<VariantSlots>,
}

impl GpuBase {
    /// Takes every tensor of the architecture, which is a DiT's; an error names the first missing or misshapen one.
    pub fn new(device: GpuTarget, architecture: Architecture, tensors: &Dense) -> Result<Self> {
        Self::load(device, architecture, |spec| read(tensors, spec))
    }

    /// The same of tensors that `read` gives one after another, in order of name.
    pub fn load<'a>(
        device: GpuTarget,
        architecture: Architecture,
        mut read: impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>>,
    ) -> Result<Self> {
        if architecture.conditioning.is_none() {
            return Err(Error::HostOnly {
                family: architecture.family,
            });
        }
        let mut matrices = BTreeMap::new();
        let host = BaseWeights::load(architecture, Quantisation::F32, |spec| {
            let data = read(spec)?;
            if let (&[out, input], true) = (&spec.shape[..], on_device(&spec.name)) {
                let matrix = device.dense(&data, out, input)?;
                matrices.insert(spec.name.clone(), Arc::new(matrix));
                return Ok(None);
            }
            Ok(Some(data))
        })?;
        Ok(Self {
            device,
            host: Arc::new(host),
            matrices,
            slots: Arc::default(),
        })
    }

    /// Bytes held on the device.
    pub fn device_bytes(&self) -> usize {
        self.matrices
            .values()
            .map(|matrix| matrix.data.bytes())
            .sum()
    }
}

/// One bank in the form it is served in, by tensor name.
#[derive(Debug)]
pub struct GpuBank {
    /// Tensors that are not on the device.
    pub host: Arc<ServedBank>,
    /// In tiles, or dense in the device's type.
    pub matrices: BTreeMap<String, Arc<Matrix>>,
    pub tiled: bool,
}

impl GpuBank {
    /// Brings every matrix (name, rows, columns, S_b by rows) to `form`: the forms of at most four bits to tiles with the numbers of `q4_K`,
    /// the others to the device's own type.
    pub fn build(
        device: &GpuTarget,
        form: Quantisation,
        tensors: impl IntoIterator<Item = (String, usize, usize, Vec<f32>)>,
    ) -> Result<Self> {
        let tiled = matches!(
            form,
            Quantisation::Q4K | Quantisation::Q4_0 | Quantisation::Q2K
        );
        let (mut host, mut matrices) = (Vec::new(), BTreeMap::new());
        for (name, out, input, data) in tensors {
            if !on_device(&name) {
                host.push((name, out, input, data));
                continue;
            }
            let matrix = match tiled {
                true => Matrix {
                    out,
                    input,
                    data: Buffer::from(&device.gpu, &tiles(&data, out, input))?,
                },
                false => device.dense(&data, out, input)?,
            };
            matrices.insert(name, Arc::new(matrix));
        }
        Ok(Self {
            host: Arc::new(ServedBank::build(form, host)?),
            matrices,
            tiled,
        })
    }

    /// Bytes held on the device.
    pub fn device_bytes(&self) -> usize {
        self.matrices
            .values()
            .map(|matrix| matrix.data.bytes())
            .sum()
    }
}
