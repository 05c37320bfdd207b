//! From an operator's file to what a store keeps of it.

use super::base::{self, ServedBase, checkpoint};
use super::source::{Given, Related};
use super::tuning::Said;
use super::{AddRequest, AdditionStage, Error, Tuning, defaults, share};
use crate::engine::{self, Sampling, SamplingParams};
use crate::model::tokenizer::GenerationConfig;
use crate::model::{Architecture, Regime};
use crate::store::{
    BaseFacts, CodedFile, Content, Keep, NewVariant, Options, SamplerDefaults, Scales,
    StoredProcess, check_name,
};
use crate::superposition::{CodedDelta, Delta, DeltaError, Encoding, Mismatch, Plan, Remarks};

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
    base: &ServedBase,
    options: Options,
    request: AddRequest,
    tell: &mut dyn FnMut(AdditionStage),
) -> Result<PreparedVariant, Error> {
    check_name(&request.name)?;
    let network = base.weights.facts();
    tell(AdditionStage::Reading);
    let origin = request.source.origin();
    let beside = request.source.beside(request.beside.clone())?;
    let given = request.source.open(base, &beside)?;
    let manner = beside.manner(base, &origin)?;
    let generation = beside.generation(&origin)?;
    let beside = beside.regime(base, &origin)?;
    let said = match &given {
        Given::Own(bytes) => Said::of_file(&origin, bytes, beside, network)?,
        Given::Whole(_) | Given::Adapter(_) => {
            Said::of(&origin, Remarks::default(), beside, network)?
        }
    };
    let regime = request.tuning.regime(&said, network)?;
    let sampling = sampling(&said, regime, &request.defaults, generation.as_ref(), base)?;
    let process = defaults::process_to_store(regime.process);
    let recorded = defaults::to_store(&sampling, regime, network);
    tell(AdditionStage::Comparing);
    let as_it_is = match &given {
        Given::Own(bytes) if CodedDelta::is_one(bytes) => {
            let file = CodedFile::read(bytes.to_vec()).map_err(checkpoint(&origin))?;
            let fits = file.delta().check(base.facts.digest, &base.facts.shapes);
            fits.map_err(|error| checkpoint(&origin)(error.into()))?;
            as_it_is(&base.facts, &file, &request, "the file is a coded delta")?;
            Some(file)
        }
        Given::Adapter(adapter) => {
            let mut adapter = adapter.clone();
            adapter.about.remarks = to_remarks(process, &recorded)?;
            let file = CodedFile::of(*adapter);
            as_it_is(&base.facts, &file, &request, "the file is an adapter")?;
            Some(file)
        }
        _ => None,
    };
    if request.check_text.is_none() && as_it_is.is_none() {
        share::enforce(&request.name, request.min_share, None)?;
    }
    let (mut fine_tune, mut moved) = (None, None);
    let content = match (as_it_is, request.keep.unwrap_or(options.keep)) {
        (Some(file), _) => Content::Coded(file),
        (None, Keep::Superposed) if request.bits.is_some() => {
            let reason = "a superposed variant shares its banks' bits".to_owned();
            return Err(bad_bits(reason));
        }
        (None, Keep::Superposed) => {
            let related = given.related(base, &origin, request.force)?;
            moved = moved_of(related.as_ref());
            let delta = given.delta(base, &origin, related.as_ref())?;
            fine_tune = request.check_text.is_some().then(|| delta.clone());
            Content::Superposed {
                delta: Box::new(delta),
                seed: request.seed,
            }
        }
        (None, Keep::Coded) => {
            tell(AdditionStage::Accumulating);
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
            let related = given.related(base, &origin, request.force)?;
            moved = moved_of(related.as_ref());
            if request.check_text.is_some() {
                fine_tune = Some(given.delta(base, &origin, related.as_ref())?);
            }
            Content::Coded(coded(base, &given, &encoding, &origin, related.as_ref())?)
        }
        (None, Keep::LowRank) => {
            let reason = "only an adapter is kept as thin factors alone; a checkpoint is coded, with factors where they pay";
            return Err(Error::BadField {
                field: "keep",
                reason: reason.to_owned(),
            });
        }
    };
    let variant = NewVariant {
        name: request.name,
        content,
        source: origin.clone(),
        process,
        defaults: recorded,
        manner: manner.map(|manner| serde_json::json!(manner)),
        moved,
        scales: Scales::all(request.scale.unwrap_or(1.0)),
    };
    Ok(PreparedVariant { variant, fine_tune })
}

/// |delta| against |base|, where that can be seen.
fn moved_of(related: Option<&Related>) -> Option<f32> {
    related.map(|(_, relation)| relation.moved as f32)
}

/// A checkpoint's delta in a code, before anything is rounded; that of an archived or a packed one as it is there.
fn coded(
    base: &ServedBase,
    given: &Given,
    encoding: &Encoding,
    origin: &str,
    related: Option<&Related>,
) -> Result<CodedFile, Error> {
    let file = match (given, related) {
        (Given::Whole(tuned), Some((weights, relation))) => {
            CodedDelta::differences(relation.base, weights, &**tuned, encoding).map(CodedFile::of)
        }
        _ => code(&base.facts, &given.delta(base, origin, related)?, encoding),
    };
    file.map_err(|error| match error {
        DeltaError::TooFewBits(error) => bad_bits(error.to_string()),
        other => checkpoint(origin)(other),
    })
}

/// A delta as it is archived, in a code.
pub(super) fn code(
    facts: &BaseFacts,
    delta: &Delta,
    encoding: &Encoding,
) -> Result<CodedFile, DeltaError> {
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

/// Refuses what is asked for beside a coded file or an adapter and is not what the file says.
fn as_it_is(
    facts: &BaseFacts,
    file: &CodedFile,
    request: &AddRequest,
    what: &str,
) -> Result<(), Error> {
    let (bits, keep, seed) = (file.bits(facts), file.keep(), file.delta().seed);
    let other_bits = |asked: f32| asked.is_nan() || (asked - bits).abs() > SAME_BITS;
    let bad = |field, reason: String| Err(Error::BadField { field, reason });
    let is = format!("{what}, which is kept as it is:");
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
        return bad(
            "check_text",
            format!("{is} there is nothing to measure it against"),
        );
    }
    Ok(())
}

/// What a file says of its variant's process and sampling.
pub(super) fn to_remarks(
    process: StoredProcess,
    defaults: &SamplerDefaults,
) -> Result<Remarks, Error> {
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
pub(super) fn shipped(base: &ServedBase, options: Options) -> Result<Vec<NewVariant>, Error> {
    let network = base.weights.facts();
    let own = |name: &str, packed: &'static [u8]| {
        let delta = Delta::from_own(base.facts.digest, &base.facts.shapes, packed);
        delta.map_err(checkpoint(name))
    };
    let variant = |base::Shipped {
                       name,
                       about,
                       packed,
                   }| {
        let said = Said::of_file(name, packed, None, network)?;
        let regime = Tuning::default().regime(&said, network)?;
        let sampling = sampling(&said, regime, &SamplingParams::default(), None, base)?;
        let process = defaults::process_to_store(regime.process);
        let recorded = defaults::to_store(&sampling, regime, network);
        let content = match options.keep {
            Keep::Superposed => Content::Superposed {
                delta: Box::new(own(name, packed)?),
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
                let given = Given::Own(packed.into());
                Content::Coded(coded(base, &given, &encoding, name, None)?)
            }
        };
        Ok(NewVariant {
            name: name.to_owned(),
            content,
            process,
            defaults: recorded,
            source: about.about,
            manner: None,
            moved: None,
            scales: Scales::default(),
        })
    };
    base::shipped()?.into_iter().map(variant).collect()
}

/// A variant's sampling defaults: what is chosen, else what its file says, else what is usual for its process, with what the
/// `generation_config.json` beside it says, or the base's.
fn sampling(
    said: &Said,
    regime: Regime,
    chosen: &SamplingParams,
    generation: Option<&GenerationConfig>,
    base: &ServedBase,
) -> Result<Sampling, Error> {
    let usual = match &said.defaults {
        Some(recorded) => recorded.sampling(),
        None if generation.is_some() => defaults::usual(base.weights.facts(), regime, generation),
        None => base.usual(regime),
    };
    let chosen = chosen.over(usual).map_err(engine::Error::from);
    let sampling = chosen.and_then(|sampling| {
        engine::check_sampling(base.weights.facts(), regime, &sampling)?;
        Ok(sampling)
    });
    sampling.map_err(|error| Error::BadField {
        field: "defaults",
        reason: error.to_string(),
    })
}
