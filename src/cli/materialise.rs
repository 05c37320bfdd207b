//! Whether variants may be served from whole matrices of their own.

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
    /// Bytes of materialised variants, at most.
    pub fn bytes(&self, on_device: bool) -> Result<usize> {
        match self.deterministic {
            true if self.materialise_mib > 0 => {
                bail!(
                    "--deterministic and --materialise-mib contradict each other: a materialised variant rounds otherwise"
                )
            }
            true if on_device => {
                bail!("--deterministic holds on the CPU only: on a device texts depend on the batch's shape")
            }
            _ => match self.materialise_mib.checked_mul(1 << 20) {
                Some(bytes) => Ok(bytes),
                None => bail!("--materialise-mib {} is more than there can be", self.materialise_mib),
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
        assert_eq!(args(0, true).bytes(false).expect("as by default"), 0);
        assert_eq!(args(3, false).bytes(true).expect("three"), 3 << 20);
        for (bad, on_device, named) in [
            (args(1, true), false, "--materialise-mib"),
            (args(0, true), true, "--deterministic"),
            (args(usize::MAX, false), false, "--materialise-mib"),
        ] {
            let refused = bad.bytes(on_device).expect_err(named).to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
