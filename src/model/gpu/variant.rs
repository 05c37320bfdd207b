//! What a variant keeps for itself on a device: a slot in tables that all generations read, written once.

use super::room::{OfMatrix, Slot};
use super::weights::GpuBase;
use crate::model::architecture::shapes;
use crate::model::error::{Error, Result};
use crate::model::variant::{self, ServedVariant};
use crate::model::weights::VariantWeights;
use crate::ops::gpu::draw::key_words;
use crate::ops::gpu::own::{GpuOwn, OwnFacts};
use crate::transform::{self, Rotation, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A variant but for its share of the banks.
#[derive(Debug)]
pub struct GpuVariant {
    /// Of the matrices that are not on the device, and its vectors.
    pub host: Arc<ServedVariant>,
    pub slot: Slot,
    /// Matrices on the device that it keeps by itself.
    pub own: BTreeMap<String, Arc<GpuOwn>>,
    /// Matrices on the device of which it has a delta in a bank.
    matrices: BTreeSet<String>,
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
            shapes(&base.host.architecture).partition(|(name, _)| base.matrices.contains_key(name));
        let own = own(base, weights, &there)?;
        let signed_gains = variant::signed_gains(weights, there)?;
        let host = Arc::new(ServedVariant::new(weights, here)?);
        let of_matrix = |name| OfMatrix {
            name,
            rotation: signed_gains.get(name).map(|rotation| {
                let key = transform::key(weights.seed, name, Side::Input);
                (key_words(&key), &rotation.output[..])
            }),
            own: own.get(name).map_or(OwnFacts::default(), |own| own.facts()),
        };
        let matrices = base.matrices.keys().map(|name| of_matrix(name));
        let matrices: Vec<OfMatrix> = matrices.collect();
        let slot = base.room.hold().tables.add_variant(&matrices)?;
        Ok(Self {
            host,
            slot,
            matrices: signed_gains.keys().cloned().collect(),
            own,
        })
    }

    /// Whether it has a delta of this matrix in a bank.
    pub fn has(&self, name: &str) -> bool {
        self.matrices.contains(name)
    }
}
