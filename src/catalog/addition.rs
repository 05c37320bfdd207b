//! From an operator's file to what a store keeps of it.

use super::base::{self, Base, checkpoint};
use super::tuning::Said;
use super::{AddRequest, Error, Stage, Tuning, defaults, share};
use crate::engine::{self, Choice, Sampling};
use crate::model::Regime;
use crate::store::{Content, Keep, NewVariant, Options, Scales, check_name};
use crate::superposition::Delta;

/// A variant that is ready to be kept.
pub(super) struct Prepared {
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
) -> Result<Prepared, Error> {
    check_name(&request.name)?;
    if request.check_text.is_none() {
        share::enforce(&request.name, request.min_share, None)?;
    }
    let network = base.weights.facts();
    tell(Stage::Reading);
    let origin = request.source.origin();
    let (bytes, beside) = request.source.read(base)?;
    let said = Said::of(&origin, &bytes, beside, network)?;
    let regime = request.tuning.regime(&said, network)?;
    let sampling = sampling(&said, regime, &request.defaults, base)?;
    tell(Stage::Comparing);
    let keep = request.keep.unwrap_or(options.keep);
    let tensors = base.tensors()?;
    let delta = base.delta(&tensors, &bytes).map_err(checkpoint(&origin))?;
    drop((bytes, tensors));
    let fine_tune = request.check_text.is_some().then(|| delta.clone());
    let content = match keep {
        Keep::Superposed => Content::Superposed {
            delta: Box::new(delta),
            seed: request.seed,
        },
        keep @ (Keep::Coded | Keep::LowRank) => {
            let reason = format!("{keep}: only superposed ones can be added so far");
            return Err(Error::BadField {
                field: "keep",
                reason,
            });
        }
    };
    let variant = NewVariant {
        name: request.name,
        content,
        source: origin,
        process: defaults::process_to_store(regime.process),
        defaults: defaults::to_store(&sampling, regime, network),
        scales: Scales::all(request.scale.unwrap_or(1.0)),
    };
    Ok(Prepared { variant, fine_tune })
}

/// The variants compiled in, as a new store keeps them.
pub(super) fn shipped(base: &Base) -> Result<Vec<NewVariant>, Error> {
    let tensors = base.tensors()?;
    let network = base.weights.facts();
    let variant = |base::Shipped {
                       name,
                       about,
                       packed,
                   }| {
        let said = Said::of(name, packed, None, network)?;
        let regime = Tuning::default().regime(&said, network)?;
        let sampling = sampling(&said, regime, &Choice::default(), base)?;
        Ok(NewVariant {
            name: name.to_owned(),
            content: Content::Superposed {
                delta: Box::new(Delta::read(&tensors, packed).map_err(checkpoint(name))?),
                seed: None,
            },
            process: defaults::process_to_store(regime.process),
            defaults: defaults::to_store(&sampling, regime, network),
            source: about.about,
            scales: Scales::default(),
        })
    };
    base::shipped()?.into_iter().map(variant).collect()
}

/// A variant's sampling defaults: what is chosen, else what its file says, else what is usual for its process.
fn sampling(said: &Said, regime: Regime, chosen: &Choice, base: &Base) -> Result<Sampling, Error> {
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
