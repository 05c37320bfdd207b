//! Where it is said what a variant was tuned for: by the operator, in a packed delta's metadata, in a config.json beside
//! the checkpoint. They must not contradict each other; where nobody says anything, it is what the base was tuned for.

use super::defaults::{process_from_store, recorded};
use super::{Error, base};
use crate::engine::Sampling;
use crate::model::{NetworkFacts, Process, Regime};
use crate::sampler::MAX_BLOCK;
use crate::store::{self, SamplerDefaults};
use crate::superposition::{Remarks, Unreadable};

/// What an operator says of a variant's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    pub process: Option<Process>,
    /// Tokens denoised together; a uniform variant without it denoises whole sequences, and an absorbing one is as its configuration
    /// says, else as the base.
    pub block_size: Option<usize>,
    /// Whether the network is told the noise level; a uniform variant's is, unless this says otherwise.
    pub time_conditioning: Option<bool>,
}

/// What a variant's file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Said {
    /// Where nothing else is said of the regime.
    pub process: Option<Process>,
    pub regime: Option<Regime>,
    pub defaults: Option<SamplerDefaults>,
}

impl Said {
    /// From the metadata of one of this program's own files, and the regime of the configuration beside it.
    ///
    /// # Errors
    /// Metadata that cannot be read, or that the configuration contradicts.
    pub fn of_file(
        origin: &str,
        bytes: &[u8],
        beside: Option<Regime>,
        network: &NetworkFacts,
    ) -> Result<Said, Error> {
        let remarks = Remarks::read(bytes);
        let remarks = remarks.map_err(|error| base::checkpoint(origin)(error.into()))?;
        Said::of(origin, remarks, beside, network)
    }

    /// The same of a file's remarks.
    ///
    /// # Errors
    /// Likewise.
    pub fn of(
        origin: &str,
        remarks: Remarks,
        beside: Option<Regime>,
        network: &NetworkFacts,
    ) -> Result<Said, Error> {
        let process: Option<store::StoredProcess> = parse(origin, "process", remarks.process)?;
        let defaults: Option<SamplerDefaults> = parse(origin, "defaults", remarks.defaults)?;
        let inside = defaults.map(|defaults| {
            let process = process.unwrap_or(store::StoredProcess::Absorbing);
            recorded(process, &defaults, network)
        });
        let process = process.map(process_from_store);
        // A decoder's configuration need not say in which blocks.
        let silent = |inside: Regime, beside: Regime| {
            let block = beside.block.or(inside.block.filter(|_| !network.slides));
            Regime { block, ..beside }
        };
        let field = match (inside, beside) {
            (Some(inside), Some(beside)) if inside != silent(inside, beside) => {
                differing(inside, beside)
            }
            (None, Some(beside)) if process.is_some_and(|process| process != beside.process) => {
                "model_type"
            }
            _ => {
                return Ok(Said {
                    process,
                    regime: inside.or(beside),
                    defaults,
                });
            }
        };
        Err(Error::OtherConfig {
            origin: origin.to_owned(),
            field,
        })
    }
}

/// What a packed or a coded delta of a variant of `network` was tuned for, and how it is sampled where it says so.
///
/// # Errors
/// A file that says something that no variant of the network can be.
pub fn of_file(
    origin: &str,
    bytes: &[u8],
    network: &NetworkFacts,
) -> Result<(Regime, Option<Sampling>), Error> {
    let said = Said::of_file(origin, bytes, None, network)?;
    let regime = Tuning::default().regime(&said, network)?;
    Ok((regime, said.defaults.map(|defaults| defaults.sampling())))
}

fn parse<T: serde::de::DeserializeOwned>(
    origin: &str,
    key: &str,
    text: Option<String>,
) -> Result<Option<T>, Error> {
    let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
    parsed.map_err(|error| {
        let detail = format!("{key} in its metadata: {error}");
        base::checkpoint(origin)(Unreadable::Malformed { detail }.into())
    })
}

/// The first field, by its name in config.json, in which two regimes differ.
pub(super) fn differing(a: Regime, b: Regime) -> &'static str {
    if a.process != b.process {
        "model_type"
    } else if a.block != b.block {
        "block_size"
    } else {
        "time_conditioning"
    }
}

impl Tuning {
    /// What the variant was tuned for, in all.
    ///
    /// # Errors
    /// `BadField` where the operator contradicts the file, or no variant of this network can be such.
    pub(super) fn regime(&self, said: &Said, network: &NetworkFacts) -> Result<Regime, Error> {
        let own = network.regime;
        let recorded = said.regime.map(|regime| regime.process).or(said.process);
        let process = recorded.or(self.process).unwrap_or(own.process);
        let regime = match said.regime {
            // A configuration that does not say in which blocks leaves it to the operator.
            Some(said) if said.process == Process::Absorbing && said.block.is_none() => Regime {
                block: self.block_size.filter(|_| !network.slides),
                ..said
            },
            Some(said) => said,
            None if process == own.process && process == Process::Absorbing => Regime {
                block: match network.slides {
                    true => own.block,
                    false => self.block_size.or(own.block),
                },
                ..own
            },
            None if process == own.process => Regime {
                block: self.block_size.or(own.block),
                time_conditioned: self.time_conditioning.unwrap_or(own.time_conditioned),
                ..own
            },
            None => Regime {
                process,
                block: self.block_size,
                grid: own.grid,
                time_conditioned: self.time_conditioning.unwrap_or(true),
            },
        };
        let asked = Regime {
            process: self.process.unwrap_or(process),
            block: self.block_size.or(regime.block),
            grid: regime.grid,
            time_conditioned: self.time_conditioning.unwrap_or(regime.time_conditioned),
        };
        if asked != regime {
            let field = match differing(asked, regime) {
                "model_type" => "process",
                field => field,
            };
            let reason = "what is asked for is not what the variant was tuned for".to_owned();
            return Err(Error::BadField { field, reason });
        }
        check(regime, network)?;
        Ok(regime)
    }
}

/// Refuses what no variant of this network can have been tuned for.
pub(super) fn check(regime: Regime, network: &NetworkFacts) -> Result<(), Error> {
    let bad = |field, reason: String| Err(Error::BadField { field, reason });
    let length = network.context;
    match (regime.process, regime.block) {
        (Process::Absorbing, _) if network.mask.is_none() => bad(
            "process",
            "the base has no mask, so no variant of it can be absorbing".into(),
        ),
        (Process::Absorbing, Some(block))
            if block != network.regime.block.unwrap_or(0)
                && !(1..=MAX_BLOCK.min(length)).contains(&block) =>
        {
            bad(
                "block_size",
                format!("it is {block}, not within 1 and {}", MAX_BLOCK.min(length)),
            )
        }
        (Process::Uniform, Some(block))
            if !(1..=MAX_BLOCK).contains(&block) || !length.is_multiple_of(block) =>
        {
            bad(
                "block_size",
                format!("the context of {length} is not whole blocks of {block}"),
            )
        }
        _ => Ok(()),
    }
}
