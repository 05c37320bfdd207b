//! Where a network lies: on the host, or on a device. The one place that chooses; who builds instances needs only this.

use super::architecture::{Architecture, TensorSpec, shapes};
use super::base::{BaseWeights, Dense, read};
use super::denoiser::Denoiser;
use super::error::{Error, Result};
use super::facts::NetworkFacts;
use super::gpu::{GpuBank, GpuBase, GpuNetwork, GpuTarget, GpuVariant};
use super::host::HostNetwork;
use super::variant::{Placed, ServedVariant};
use super::weights::{ServedBank, VariantWeights};
use crate::ops::gpu::{Dtype, Fault};
use crate::ops::quantized::Quantisation;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Where to build.
#[derive(Clone, Debug)]
pub enum Place {
    /// With the base's matrices in this form.
    Host(Quantisation),
    Device(GpuTarget),
}

impl Place {
    /// The CUDA device that the driver counts as `ordinal`, with weights in `dtype`, but for a base's matrices where `base` is of few bits.
    ///
    /// # Errors
    /// `NotBuilt` without the feature `cuda`; otherwise whatever the driver lacks.
    pub fn cuda(
        ordinal: usize,
        dtype: Dtype,
        base: Quantisation,
    ) -> std::result::Result<Self, Fault> {
        #[cfg(feature = "cuda")]
        return Ok(Place::Device(GpuTarget {
            gpu: Arc::new(crate::ops::gpu::cuda::Cuda::open(ordinal)?),
            dtype,
            base,
        }));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (ordinal, dtype, base);
            Err(Fault::NotBuilt)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host(_) => f.write_str("the CPU"),
            Place::Device(device) => f.write_str(&device.gpu.name()),
        }
    }
}

/// Bytes held on either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBytes {
    pub host: usize,
    pub device: usize,
}

impl HeldBytes {
    fn on_host(host: usize) -> Self {
        HeldBytes { host, device: 0 }
    }
}

/// The base, shared by all generations.
#[derive(Clone, Debug)]
pub enum ResidentBase {
    Host(Arc<BaseWeights>),
    Device(Arc<GpuBase>),
}

/// One bank in the form it is served in.
#[derive(Clone, Debug)]
pub enum ResidentBank {
    Host(Arc<ServedBank>),
    Device(Arc<GpuBank>),
}

/// What a variant keeps for itself, in served form.
#[derive(Clone, Debug)]
pub enum Variant {
    Host(Arc<ServedVariant>),
    Device(Arc<GpuVariant>),
}

/// A model instance, and what it holds besides its base and its banks.
pub struct Instance {
    pub denoiser: Arc<dyn Denoiser>,
    /// Seeds' signs, gains and private tensors.
    pub variants: HeldBytes,
    pub tables: HeldBytes,
}

impl ResidentBase {
    /// Takes every tensor of the architecture; an error names the first missing or misshapen one.
    pub fn new(place: &Place, architecture: Architecture, tensors: &Dense) -> Result<Self> {
        Self::load(place, architecture, |spec| read(tensors, spec))
    }

    /// The same of tensors that `read` gives one after another, in order of name: at no time are all of them there in f32.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load<'a>(
        place: &Place,
        architecture: Architecture,
        mut read: impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>>,
    ) -> Result<Self> {
        Ok(match place {
            Place::Host(form) => {
                let read = |spec: &TensorSpec| read(spec).map(Some);
                ResidentBase::Host(Arc::new(BaseWeights::load(architecture, *form, read)?))
            }
            Place::Device(device) => {
                ResidentBase::Device(Arc::new(GpuBase::load(device.clone(), architecture, read)?))
            }
        })
    }

    pub fn architecture(&self) -> &Architecture {
        match self {
            ResidentBase::Host(base) => &base.architecture,
            ResidentBase::Device(base) => &base.host.architecture,
        }
    }

    pub fn facts(&self) -> &NetworkFacts {
        match self {
            ResidentBase::Host(base) => &base.facts,
            ResidentBase::Device(base) => &base.host.facts,
        }
    }

    pub fn bytes(&self) -> HeldBytes {
        match self {
            ResidentBase::Host(base) => HeldBytes::on_host(base.bytes()),
            ResidentBase::Device(base) => HeldBytes {
                host: base.host.bytes(),
                device: base.device_bytes(),
            },
        }
    }

    /// Bytes of modulation tables on the host, which come with requests, whatever the generation.
    pub fn table_bytes(&self) -> usize {
        match self {
            ResidentBase::Host(base) => base.tables.bytes(),
            ResidentBase::Device(base) => base.host.tables.bytes(),
        }
    }

    /// Brings every matrix (name, rows, columns, S_b by rows) of a bank to `form`, beside this base.
    pub fn bank(
        &self,
        form: Quantisation,
        tensors: impl IntoIterator<Item = (String, usize, usize, Vec<f32>)>,
    ) -> Result<ResidentBank> {
        Ok(match self {
            ResidentBase::Host(_) => {
                ResidentBank::Host(Arc::new(ServedBank::build(form, tensors)?))
            }
            ResidentBase::Device(base) => {
                ResidentBank::Device(Arc::new(GpuBank::build(base, form, tensors)?))
            }
        })
    }

    /// What a variant keeps for itself, beside this base.
    pub fn variant(&self, weights: &VariantWeights) -> Result<Variant> {
        Ok(match self {
            ResidentBase::Host(base) => Variant::Host(Arc::new(ServedVariant::new(
                weights,
                shapes(&base.architecture),
            )?)),
            ResidentBase::Device(base) => {
                Variant::Device(Arc::new(GpuVariant::new(base, weights)?))
            }
        })
    }

    /// An instance of this base with `variants`, whose [`VariantId`](super::VariantId) is their index and who say which of `banks`
    /// they are read from.
    pub fn instance<'a>(
        &self,
        banks: impl IntoIterator<Item = &'a ResidentBank>,
        variants: impl IntoIterator<Item = (&'a Variant, Vec<usize>)>,
    ) -> Result<Instance> {
        let (banks, variants) = (banks.into_iter(), variants.into_iter());
        Ok(match self {
            ResidentBase::Host(base) => {
                let banks = banks.map(|bank| match bank {
                    ResidentBank::Host(bank) => Ok(bank.clone()),
                    ResidentBank::Device(_) => Err(Error::Elsewhere),
                });
                let variants = variants.map(|(variant, banks)| match variant {
                    Variant::Host(own) => Ok(Placed {
                        own: own.clone(),
                        banks,
                    }),
                    Variant::Device(_) => Err(Error::Elsewhere),
                });
                let (banks, variants) = (
                    banks.collect::<Result<Vec<_>>>()?,
                    variants.collect::<Result<Vec<_>>>()?,
                );
                let bytes = variants.iter().map(|variant| variant.own.bytes()).sum();
                let network = HostNetwork::of(base.clone(), &banks, variants)?;
                Instance {
                    variants: HeldBytes::on_host(bytes),
                    tables: HeldBytes::on_host(network.table_bytes()),
                    denoiser: Arc::new(network),
                }
            }
            ResidentBase::Device(base) => {
                let banks = banks.map(|bank| match bank {
                    ResidentBank::Device(bank) => Ok(bank.clone()),
                    ResidentBank::Host(_) => Err(Error::Elsewhere),
                });
                let variants = variants.map(|(variant, banks)| match variant {
                    Variant::Device(own) => Ok(Placed {
                        own: own.clone(),
                        banks,
                    }),
                    Variant::Host(_) => Err(Error::Elsewhere),
                });
                let (banks, variants) = (
                    banks.collect::<Result<Vec<_>>>()?,
                    variants.collect::<Result<Vec<_>>>()?,
                );
                let host = variants
                    .iter()
                    .map(|variant| variant.own.host.bytes())
                    .sum();
                let network = GpuNetwork::of(base.clone(), &banks, variants)?;
                Instance {
                    variants: HeldBytes {
                        host,
                        device: network.device_variant_bytes(),
                    },
                    tables: HeldBytes {
                        host: 0,
                        device: network.table_bytes(),
                    },
                    denoiser: Arc::new(network),
                }
            }
        })
    }
}

impl ResidentBank {
    pub fn bytes(&self) -> HeldBytes {
        match self {
            ResidentBank::Host(bank) => HeldBytes::on_host(bank.bytes()),
            ResidentBank::Device(bank) => HeldBytes {
                host: bank.host.bytes(),
                device: bank.device_bytes(),
            },
        }
    }
}
