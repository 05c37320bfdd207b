//! Whether variants may be served from whole matrices of their own.

use crate::ops::quantized::Quantisation;
use anyhow::{Result, bail};
use clap::Args;

/// Whether the engine may trade the same text for the same request against speed.
#[derive(Args, Clone, Debug, Default)]
pub struct MaterialiseArgs {
    /// Memory for the whole weights of variants that carry much work, in MiB: those are then as fast as the base. Their texts can
    /// differ by rounding, depending on when that happens; with 0 every variant is read from its bank, always.
    #[arg(long, default_value_t = 0, value_name = "MIB")]
    materialise_mib: usize,
    /// Insist that the same seed, request and generation give the same text: refuse whatever would trade that for speed.
    #[arg(long)]
    deterministic: bool,
}

impl MaterialiseArgs {
    /// Bytes of materialised variants, at most. `base` is the base's form on the CPU, and absent on a device.
    pub fn bytes(&self, base: Option<Quantisation>) -> Result<usize> {
        match self.deterministic {
            false
                if self.materialise_mib > 0
                    && !matches!(base, None | Some(Quantisation::F32 | Quantisation::Bf16)) =>
            {
                bail!(
                    "--materialise-mib needs a base in f32 or bf16: one in fewer bits would be rounded a second time"
                )
            }
            true if self.materialise_mib > 0 => {
                bail!(
                    "--deterministic and --materialise-mib contradict each other: a materialised variant rounds otherwise"
                )
            }
            true if base.is_none() => {
                bail!(
                    "--deterministic holds on the CPU only: on a device texts depend on the batch's shape"
                )
            }
            _ => match self.materialise_mib.checked_mul(1 << 20) {
                Some(bytes) => Ok(bytes),
                None => bail!(
                    "--materialise-mib {} is more than there can be",
                    self.materialise_mib
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let args = |materialise_mib, deterministic| MaterialiseArgs {
            materialise_mib,
            deterministic,
        };
        let f32 = Some(Quantisation::F32);
        assert_eq!(args(0, true).bytes(f32).expect("as by default"), 0);
        assert_eq!(
            args(0, false)
                .bytes(Some(Quantisation::Q4K))
                .expect("as by default"),
            0
        );
        assert_eq!(args(3, false).bytes(None).expect("three"), 3 << 20);
        for (bad, base, named) in [
            (args(1, true), f32, "--materialise-mib"),
            (
                args(1, false),
                Some(Quantisation::Q8_0),
                "--materialise-mib",
            ),
            (args(0, true), None, "--deterministic"),
            (args(usize::MAX, false), f32, "--materialise-mib"),
        ] {
            let refused = bad.bytes(base).expect_err(named).to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
