//! From an operator's file to what a store keeps of it.

use super::base::{self, Base, checkpoint};
use super::tuning::Said;
use super::{AddRequest, Error, Stage, Tuning, defaults, share};
use crate::engine::{self, Sampling, SamplingParams};
use crate::model::{Architecture, Regime};
use crate::store::{
    BaseFacts, CodedFile, Content, Keep, NewVariant, Options, Process, SamplerDefaults, Scales,
    check_name,
};
use crate::superposition::{
    CodedDelta, Delta, Encoding, Mismatch, NamedTensors, Plan, Refused, Remarks, is_own,
};

/// How near the bits that are asked for must be to those of a coded file.
const SAME_BITS: f32 = 0.005;

/// A variant that is ready to be kept.
pub(super) struct PreparedVariant {
    pub variant: NewVariant,
    /// What to measure its share against, where that is asked for.
    pub fine_tune: Option<Delta>,
}

/// Reads a checkpoint and brings it into the form in which it will be kept. Nothing of the store changes.
pub(super) fn prepare(
    base: &Base,
    options: Options,
    request: AddRequest,
    tell: &mut dyn FnMut(Stage),
) -> Result<PreparedVariant, Error> {
    check_name(&request.name)?;
    let network = base.weights.facts();
    tell(Stage::Reading);
    let origin = request.source.origin();
    let (bytes, beside) = request.source.clone().read(base)?;
    let said = Said::of(&origin, &bytes, beside, network)?;
    let regime = request.tuning.regime(&said, network)?;
    let sampling = sampling(&said, regime, &request.defaults, base)?;
    let process = defaults::process_to_store(regime.process);
    let recorded = defaults::to_store(&sampling, regime, network);
    tell(Stage::Comparing);
    let tensors = base.tensors()?;
    let delta = || base.delta(&tensors, &bytes).map_err(checkpoint(&origin));
    let is_coded = CodedDelta::is_one(&bytes);
    if request.check_text.is_none() && !is_coded {
        share::enforce(&request.name, request.min_share, None)?;
    }
    let content = match request.keep.unwrap_or(options.keep) {
        _ if is_coded => {
            let file = CodedFile::read(bytes.clone()).map_err(checkpoint(&origin))?;
            let fits = file.delta().check(base.facts.digest, &base.facts.shapes);
            fits.map_err(|error| checkpoint(&origin)(error.into()))?;
            as_it_is(&base.facts, &file, &request)?;
            Content::Coded(file)
        }
        Keep::Superposed if request.bits.is_some() => {
            let reason = "a superposed variant shares its banks' bits".to_owned();
            return Err(bad_bits(reason));
        }
        Keep::Superposed => Content::Superposed {
            delta: Box::new(delta()?),
            seed: request.seed,
        },
        Keep::Coded => {
            tell(Stage::Accumulating);
            let mut encoding = Encoding {
                plan: plan(
                    base.weights.architecture(),
                    request.bits.unwrap_or(options.bits),
                )?,
                seed: request.seed,
                remarks: to_remarks(process, &recorded)?,
            };
            // What nobody asked for is no reason to refuse: much of a small network is kept whole.
            encoding.plan.at_least = request.bits.is_none();
            Content::Coded(coded(base, &tensors, &bytes, &encoding, &origin)?)
        }
        Keep::LowRank => {
            let reason = "only an adapter is kept as thin factors alone; a checkpoint is coded, with factors where they pay";
            return Err(Error::BadField {
                field: "keep",
                reason: reason.to_owned(),
            });
        }
    };
    let fine_tune = match request.check_text {
        Some(_) => Some(delta()?),
        None => None,
    };
    let variant = NewVariant {
        name: request.name,
        content,
        source: origin.clone(),
        process,
        defaults: recorded,
        scales: Scales::all(request.scale.unwrap_or(1.0)),
    };
    Ok(PreparedVariant { variant, fine_tune })
}

/// A checkpoint's delta in a code, before anything is rounded; that of an archived or a packed one as it is there.
fn coded(
    base: &Base,
    tensors: &NamedTensors,
    bytes: &[u8],
    encoding: &Encoding,
    origin: &str,
) -> Result<CodedFile, Error> {
    let refused = |error| match error {
        Refused::TooFewBits(error) => bad_bits(error.to_string()),
        other => checkpoint(origin)(other),
    };
    if is_own(bytes) {
        let delta = Delta::read(tensors, bytes).map_err(checkpoint(origin))?;
        return code(&base.facts, &delta, encoding).map_err(refused);
    }
    let tuned = base.whole(bytes);
    let coded = tuned.and_then(|tuned| CodedDelta::between(tensors, &tuned, encoding));
    Ok(CodedFile::of(coded.map_err(refused)?))
}

/// A delta as it is archived, in a code.
pub(super) fn code(
    facts: &BaseFacts,
    delta: &Delta,
    encoding: &Encoding,
) -> Result<CodedFile, Refused> {
    let dense = |name: &str| {
        let tensor = name.to_owned();
        Ok(delta.dense(name).ok_or(Mismatch::Missing { tensor })?)
    };
    let coded = CodedDelta::encode(facts.digest, &facts.shapes, encoding, dense)?;
    Ok(CodedFile::of(coded))
}

fn bad_bits(reason: String) -> Error {
    Error::BadField {
        field: "bits",
        reason,
    }
}

/// A plan that keeps to so many bits.
pub(super) fn plan(network: &Architecture, bits: f32) -> Result<Plan, Error> {
    match bits.is_finite() && bits > 0.0 {
        false => Err(bad_bits(format!("there is no code of {bits} bits"))),
        true => Ok(Plan::of(bits.into(), network.roles())),
    }
}

/// Refuses what is asked for beside a coded file and is not what the file says.
fn as_it_is(facts: &BaseFacts, file: &CodedFile, request: &AddRequest) -> Result<(), Error> {
    let (bits, keep, seed) = (file.bits(facts), file.keep(), file.delta().seed);
    let other_bits = |asked: f32| asked.is_nan() || (asked - bits).abs() > SAME_BITS;
    let bad = |field, reason: String| Err(Error::BadField { field, reason });
    let is = "the file is a coded delta, which is kept as it is:";
    if request.keep.is_some_and(|asked| asked != keep) {
        return bad("keep", format!("{is} {keep}"));
    }
    if request.bits.is_some_and(other_bits) {
        return bad("bits", format!("{is} {bits:.3}"));
    }
    if request.seed.is_some_and(|asked| asked != seed) {
        return bad("seed", format!("{is} {seed}"));
    }
    if request.check_text.is_some() {
        let reason = "a coded file is measured against its fine-tune when it is packed";
        return bad("check_text", reason.to_owned());
    }
    Ok(())
}

/// What a file says of its variant's process and sampling.
pub(super) fn to_remarks(process: Process, defaults: &SamplerDefaults) -> Result<Remarks, Error> {
    let json = |value: serde_json::Result<String>| {
        value.map_err(|error| Error::BadField {
            field: "defaults",
            reason: error.to_string(),
        })
    };
    Ok(Remarks {
        process: Some(json(serde_json::to_string(&process))?),
        defaults: Some(json(serde_json::to_string(defaults))?),
    })
}

/// The variants compiled in, as a new store keeps them.
pub(super) fn shipped(base: &Base, options: Options) -> Result<Vec<NewVariant>, Error> {
    let tensors = base.tensors()?;
    let network = base.weights.facts();
    let variant = |base::Shipped {
                       name,
                       about,
                       packed,
                   }| {
        let said = Said::of(name, packed, None, network)?;
        let regime = Tuning::default().regime(&said, network)?;
        let sampling = sampling(&said, regime, &SamplingParams::default(), base)?;
        let process = defaults::process_to_store(regime.process);
        let recorded = defaults::to_store(&sampling, regime, network);
        let content = match options.keep {
            Keep::Superposed => Content::Superposed {
                delta: Box::new(Delta::read(&tensors, packed).map_err(checkpoint(name))?),
                seed: None,
            },
            _ if CodedDelta::is_one(packed) => {
                Content::Coded(CodedFile::read(packed.to_vec()).map_err(checkpoint(name))?)
            }
            _ => {
                let encoding = Encoding {
                    plan: plan(base.weights.architecture(), options.bits)?,
                    seed: None,
                    remarks: to_remarks(process, &recorded)?,
                };
                Content::Coded(coded(base, &tensors, packed, &encoding, name)?)
            }
        };
        Ok(NewVariant {
            name: name.to_owned(),
            content,
            process,
            defaults: recorded,
            source: about.about,
            scales: Scales::default(),
        })
    };
    base::shipped()?.into_iter().map(variant).collect()
}

/// A variant's sampling defaults: what is chosen, else what its file says, else what is usual for its process.
fn sampling(
    said: &Said,
    regime: Regime,
    chosen: &SamplingParams,
    base: &Base,
) -> Result<Sampling, Error> {
    let usual = match &said.defaults {
        Some(recorded) => recorded.sampling(),
        None => base.usual(regime),
    };
    let sampling = chosen.over(usual).and_then(|sampling| {
        engine::check_sampling(base.weights.facts(), regime, &sampling)?;
        Ok(sampling)
    });
    sampling.map_err(|error| Error::BadField {
        field: "defaults",
        reason: error.to_string(),
    })
}
