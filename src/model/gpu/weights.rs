//! Weights on a device: the matrices that rows go through and the embedding; all else stays on the host.

use super::plan::Prepared;
use super::room::{Room, Slot};
use crate::model::architecture::{Architecture, TensorSpec};
use crate::model::base::{BaseWeights, Dense, read};
use crate::model::error::Result;
use crate::model::target::{GpuTarget, Matrix};
use crate::model::weights::ServedBank;
use crate::ops::gpu::Buffer;
use crate::ops::gpu::tiles::tiles;
use crate::ops::quantized::Quantisation;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The base: shared by all generations.
#[derive(Debug)]
pub struct GpuBase {
    pub device: GpuTarget,
    /// Everything that is not on the device.
    pub host: Arc<BaseWeights>,
    /// What rows go through or are looked up in, by name.
    pub matrices: BTreeMap<String, Arc<Matrix>>,
    pub(super) room: Arc<Room>,
    pub(super) prepared: Mutex<Prepared>,
}

impl GpuBase {
    /// Takes every tensor of the architecture; an error names the first missing or misshapen one.
    pub fn new(device: GpuTarget, architecture: Architecture, tensors: &Dense) -> Result<Self> {
        Self::load(device, architecture, |spec| read(tensors, spec))
    }

    /// The same of tensors that `read` gives one after another, in order of name.
    pub fn load<'a>(
        device: GpuTarget,
        architecture: Architecture,
        mut read: impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>>,
    ) -> Result<Self> {
        let mut matrices = BTreeMap::new();
        let host = BaseWeights::load(architecture, Quantisation::F32, |spec| {
            let data = read(spec)?;
            if let (&[out, input], true) = (&spec.shape[..], spec.role.is_matrix()) {
                let matrix = device.of_base(&data, out, input)?;
                matrices.insert(spec.name.clone(), Arc::new(matrix));
                return Ok(None);
            }
            Ok(Some(data))
        })?;
        Self::of(device, Arc::new(host), matrices)
    }

    /// Of tensors that are those of the host's architecture.
    pub fn of(
        device: GpuTarget,
        host: Arc<BaseWeights>,
        matrices: BTreeMap<String, Arc<Matrix>>,
    ) -> Result<Self> {
        let outputs = matrices.iter().map(|(name, matrix)| (name, matrix.out));
        let room = Arc::new(Room::new(&device.gpu, outputs)?);
        Self::within(room, device, host, matrices)
    }

    /// As [`of`](Self::of), in the room of another whose variants' weights these are.
    pub(super) fn within(
        room: Arc<Room>,
        device: GpuTarget,
        host: Arc<BaseWeights>,
        matrices: BTreeMap<String, Arc<Matrix>>,
    ) -> Result<Self> {
        let prepared = Mutex::new(Prepared::new(&device.gpu, &host.architecture)?);
        Ok(Self {
            device,
            host,
            matrices,
            room,
            prepared,
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
    pub(super) slot: Slot,
}

impl GpuBank {
    /// Brings every matrix (name, rows, columns, S_b by rows) to `form`: the forms of at most four bits to tiles with the numbers of `q4_K`,
    /// the others to the device's own type.
    pub fn build(
        base: &GpuBase,
        form: Quantisation,
        tensors: impl IntoIterator<Item = (String, usize, usize, Vec<f32>)>,
    ) -> Result<Self> {
        let tiled = matches!(
            form,
            Quantisation::Q4K | Quantisation::Q4_0 | Quantisation::Q2K
        );
        let device = &base.device;
        let (mut host, mut matrices) = (Vec::new(), BTreeMap::new());
        for (name, out, input, data) in tensors {
            if !base.matrices.contains_key(&name) {
                host.push((name, out, input, data));
                continue;
            }
            let matrix = match tiled {
                true => Matrix {
                    out,
                    input,
                    few_bits: None,
                    data: Buffer::from(&device.gpu, &tiles(&data, out, input))?,
                },
                false => device.dense(&data, out, input)?,
            };
            matrices.insert(name, Arc::new(matrix));
        }
        Self::of(base, ServedBank::build(form, host)?, matrices, tiled)
    }

    /// Of matrices that lie on the base's device, all in tiles or none.
    pub fn of(
        base: &GpuBase,
        host: ServedBank,
        matrices: BTreeMap<String, Arc<Matrix>>,
        tiled: bool,
    ) -> Result<Self> {
        let addresses = matrices.iter();
        let addresses = addresses.map(|(name, matrix)| (name, matrix.data.address()));
        let slot = base.room.hold().tables.add_bank(addresses)?;
        Ok(Self {
            host: Arc::new(host),
            matrices,
            tiled,
            slot,
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
