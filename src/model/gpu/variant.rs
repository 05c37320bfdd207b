//! What a variant keeps for itself on a device: a slot in tables that all generations read, written once.

use super::weights::{GpuBase, on_device};
use crate::model::architecture::shapes;
use crate::model::error::{Error, Result};
use crate::model::variant::{self, ServedVariant};
use crate::model::weights::VariantWeights;
use crate::ops::gpu::Buffer;
use crate::ops::gpu::draw::key_words;
use crate::ops::gpu::own::GpuOwn;
use crate::transform::{self, Rotation, Side};
use half::bf16;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots at first; twice as many whenever they run out.
const FIRST: usize = 16;

/// One matrix of the variants of every slot.
#[derive(Debug)]
pub struct MatrixSlots {
    /// [slots][8] u32: keys of the input side's signs.
    pub keys: Buffer,
    /// [slots][out] bf16: c a l.
    pub outputs: Buffer,
}

/// The tables of a base's variants. A generation keeps those it was built with; a slot that it knows is never written again.
#[derive(Debug, Default)]
pub struct VariantSlots(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    capacity: usize,
    /// Slots of no variant.
    free: Vec<u32>,
    tables: BTreeMap<String, Arc<MatrixSlots>>,
}

impl VariantSlots {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of a matrix; none where there never was a variant.
    pub fn table(&self, name: &str) -> Option<Arc<MatrixSlots>> {
        self.lock().tables.get(name).cloned()
    }

    /// A slot of no variant.
    fn take(&self, base: &GpuBase) -> Result<u32> {
        let (mut slots, gpu) = (self.lock(), &base.device.gpu);
        if let Some(slot) = slots.free.pop() {
            return Ok(slot);
        }
        let (before, capacity) = (slots.capacity, (2 * slots.capacity).max(FIRST));
        let mut tables = BTreeMap::new();
        for (name, matrix) in &base.matrices {
            let grown = MatrixSlots {
                keys: Buffer::zeros(gpu, capacity * 8 * size_of::<u32>())?,
                outputs: Buffer::zeros(gpu, capacity * matrix.out * size_of::<bf16>())?,
            };
            if let Some(table) = slots.tables.get(name) {
                gpu.copy(
                    grown.keys.address(),
                    table.keys.address(),
                    table.keys.bytes(),
                )?;
                gpu.copy(
                    grown.outputs.address(),
                    table.outputs.address(),
                    table.outputs.bytes(),
                )?;
            }
            tables.insert(name.clone(), Arc::new(grown));
        }
        (slots.tables, slots.capacity) = (tables, capacity);
        slots.free = (before as u32 + 1..capacity as u32).rev().collect();
        Ok(before as u32)
    }
}

/// A variant but for its share of the banks. Its slot is free again when no generation has it any more.
#[derive(Debug)]
pub struct GpuVariant {
    /// Of the matrices that are not on the device, and its vectors.
    pub host: Arc<ServedVariant>,
    pub slot: u32,
    /// Matrices on the device that it keeps by itself.
    pub own: BTreeMap<String, Arc<GpuOwn>>,
    /// Matrices on the device of which it has a delta in a bank.
    matrices: BTreeSet<String>,
    slots: Arc<VariantSlots>,
}

/// What `weights` keeps by itself of the matrices among `tensors` (name, shape).
fn own(
    base: &GpuBase,
    weights: &VariantWeights,
    tensors: &[(String, Vec<usize>)],
) -> Result<BTreeMap<String, Arc<GpuOwn>>> {
    let mut own = BTreeMap::new();
    for (name, shape) in tensors {
        let (&[out, input], Some(kept)) = (&shape[..], weights.kept.get(name)) else {
            continue;
        };
        let refused = |reason| Error::Kept {
            name: name.clone(),
            reason,
        };
        kept.check([out, input]).map_err(refused)?;
        let rotation = Rotation::new(weights.seed, name, input);
        let (gpu, shape) = (&base.device.gpu, [out, input]);
        let matrix = GpuOwn::new(gpu, kept, shape, &rotation, weights.scale)?;
        own.insert(name.clone(), Arc::new(matrix));
    }
    Ok(own)
}

impl GpuVariant {
    pub fn new(base: &GpuBase, weights: &VariantWeights) -> Result<Self> {
        let (there, here): (Vec<_>, Vec<_>) =
            (shapes(&base.host.architecture)).partition(|(name, _)| on_device(name));
        let own = own(base, weights, &there)?;
        let signed_gains = variant::signed_gains(weights, there)?;
        let made = Self {
            host: Arc::new(ServedVariant::new(weights, here)?),
            slot: base.slots.take(base)?,
            matrices: signed_gains.keys().cloned().collect(),
            own,
            slots: base.slots.clone(),
        };
        for (name, rotation) in signed_gains {
            let Some(table) = base.slots.table(&name) else {
                return Err(Error::MissingTensor { name });
            };
            let (slot, key) = (
                made.slot as usize,
                transform::key(weights.seed, &name, Side::Input),
            );
            table
                .keys
                .write(slot * 8 * size_of::<u32>(), &key_words(&key))?;
            table
                .outputs
                .write(slot * size_of_val(&rotation.output[..]), &rotation.output)?;
        }
        Ok(made)
    }

    /// Whether it has a delta of this matrix in a bank.
    pub fn has(&self, name: &str) -> bool {
        self.matrices.contains(name)
    }
}

impl Drop for GpuVariant {
    fn drop(&mut self) {
        self.slots.lock().free.push(self.slot);
    }
}
