//! Where a command runs the network.

use crate::model::Place;
use crate::ops::gpu::{Dtype, GpuDevice};
use crate::ops::quantized::Quantisation;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::str::FromStr;
use std::sync::Arc;

/// Where the network runs and what its base is made of there.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// Where the network runs: cpu, cuda, or cuda:N for the driver's device number N. Needs a build with --features cuda.
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// What the base's matrices are kept in [default: on the CPU f32, or q4k where that is more than a sixteenth of the memory; bf16 on a
    /// device].
    #[arg(long, value_enum)]
    base_form: Option<BaseForm>,
}

/// `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceName {
    Cpu,
    Cuda(usize),
}

impl DeviceName {
    /// The device; none for the CPU.
    pub fn gpu(self) -> Result<Option<Arc<dyn GpuDevice>>> {
        let DeviceName::Cuda(ordinal) = self else {
            return Ok(None);
        };
        match Place::cuda(ordinal, Dtype::F32, Quantisation::F32).context("--device")? {
            Place::Device(device) => Ok(Some(device.gpu)),
            Place::Host(_) => Ok(None),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum BaseForm {
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4k", alias = "q4_k")]
    Q4K,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let ordinal = match name {
            "cpu" => return Ok(DeviceName::Cpu),
            "cuda" => Some(0),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok()),
        };
        ordinal
            .map(DeviceName::Cuda)
            .ok_or_else(|| "one of cpu, cuda, cuda:N".to_owned())
    }
}

impl PlaceArgs {
    /// Opens the device. `usual` is what a base's matrices are kept in on the CPU where nobody says it.
    pub fn open(&self, usual: impl FnOnce() -> Result<Quantisation>) -> Result<Place> {
        let ordinal = match self.device {
            DeviceName::Cpu => {
                return Ok(Place::Host(match self.base_form {
                    None => usual()?,
                    Some(BaseForm::F32) => Quantisation::F32,
                    Some(BaseForm::Bf16) => Quantisation::Bf16,
                    Some(BaseForm::Q8_0) => Quantisation::Q8_0,
                    Some(BaseForm::Q4K) => Quantisation::Q4K,
                }));
            }
            DeviceName::Cuda(ordinal) => ordinal,
        };
        let (dtype, base) = match self.base_form {
            Some(BaseForm::F32) => (Dtype::F32, Quantisation::F32),
            Some(BaseForm::Bf16) | None => (Dtype::Bf16, Quantisation::Bf16),
            Some(BaseForm::Q8_0) => (Dtype::Bf16, Quantisation::Q8_0),
            Some(BaseForm::Q4K) => (Dtype::Bf16, Quantisation::Q4K),
        };
        Place::cuda(ordinal, dtype, base).context("--device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(device: &str, base_form: Option<BaseForm>) -> Result<Place> {
        let device = device.parse().map_err(anyhow::Error::msg)?;
        PlaceArgs { device, base_form }.open(|| Ok(Quantisation::F32))
    }

    #[test]
    fn names_of_devices_are_read() {
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda3", "CPU"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (form, expected) in [
            (None, Quantisation::F32),
            (Some(BaseForm::F32), Quantisation::F32),
            (Some(BaseForm::Bf16), Quantisation::Bf16),
            (Some(BaseForm::Q8_0), Quantisation::Q8_0),
            (Some(BaseForm::Q4K), Quantisation::Q4K),
        ] {
            let place = open("cpu", form).expect("the CPU has every form");
            assert!(
                matches!(place, Place::Host(form) if form == expected),
                "{place}"
            );
        }
        if cfg!(not(feature = "cuda")) {
            for form in [None, Some(BaseForm::F32), Some(BaseForm::Q4K)] {
                let refused = format!("{:#}", open("cuda", form).expect_err("no device"));
                assert!(refused.contains("build with --features cuda"), "{refused}");
            }
        }
    }
}
