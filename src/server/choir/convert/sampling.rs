//! Sampling settings between the wire and the domain.

use super::small;
use crate::engine::{Predictor, PredictorKind, PsiParams, Sampling, SamplingParams};
use crate::model::Process;
use crate::pb;
use crate::sampler::{self, Certainty, Kappa, NoiseRemoval, Psi, TimeProfile};
use crate::server::status::BadField;

/// What is set in `wire`.
///
/// # Errors
/// A number that no enumeration has, or a value that its kind lacks or does not have.
pub fn choice(wire: Option<pb::Sampling>) -> Result<SamplingParams, BadField> {
    let wire = wire.unwrap_or_default();
    let predictor = wire.predictor.unwrap_or_default();
    let psi = predictor.psi.unwrap_or_default();
    Ok(SamplingParams {
        kind: kind(predictor.kind)?,
        steps: predictor.steps,
        threshold: predictor.threshold,
        eps: predictor.eps,
        noise_removal: noise_removal(predictor.noise_removal)?,
        psi: PsiParams {
            profile: psi.profile.map(profile).transpose()?,
            high_fraction: psi.high_fraction,
            middle_fraction: psi.middle_fraction,
            high: kappa("sampling.predictor.psi.high", psi.high)?,
            middle: kappa("sampling.predictor.psi.middle", psi.middle)?,
            low: kappa("sampling.predictor.psi.low", psi.low)?,
        },
        block_size: wire.block_size.map(|size| size as usize),
        temperature: wire.temperature,
        nucleus_p: wire.nucleus_p,
        top_k: wire.top_k.map(|k| k as usize),
        certainty: certainty(predictor.certainty)?,
    })
}

/// Where a request has what the engine calls `field`.
pub fn path(field: &'static str) -> &'static str {
    match field {
        "block_size" => "sampling.block_size",
        "temperature" => "sampling.temperature",
        "nucleus_p" => "sampling.nucleus_p",
        "top_k" => "sampling.top_k",
        "predictor" => "sampling.predictor.kind",
        "steps" => "sampling.predictor.steps",
        "threshold" => "sampling.predictor.threshold",
        "eps" => "sampling.predictor.eps",
        "noise_removal" => "sampling.predictor.noise_removal",
        "certainty" => "sampling.predictor.certainty",
        "psi" => "sampling.predictor.psi",
        "profile_time" | "profile_alpha" => "sampling.predictor.psi.profile.at",
        "high_fraction" => "sampling.predictor.psi.high_fraction",
        "middle_fraction" => "sampling.predictor.psi.middle_fraction",
        "kappa_high" => "sampling.predictor.psi.high.value",
        "kappa_middle" => "sampling.predictor.psi.middle.value",
        "kappa_low" => "sampling.predictor.psi.low.value",
        other => other,
    }
}

/// A process that is set, in an addition's header.
pub fn process(wire: i32) -> Result<Option<Process>, BadField> {
    match pb::Process::try_from(wire) {
        Ok(pb::Process::Unspecified) => Ok(None),
        Ok(pb::Process::Absorbing) => Ok(Some(Process::Absorbing)),
        Ok(pb::Process::Uniform) => Ok(Some(Process::Uniform)),
        Err(_) => Err(unknown("header.process", wire)),
    }
}

fn kind(wire: i32) -> Result<Option<PredictorKind>, BadField> {
    use pb::PredictorKind as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Unspecified) => Ok(None),
        Ok(Wire::FirstHitting) => Ok(Some(PredictorKind::FirstHitting)),
        Ok(Wire::Ancestral) => Ok(Some(PredictorKind::Ancestral)),
        Ok(Wire::Confidence) => Ok(Some(PredictorKind::Confidence)),
        Ok(Wire::Static) => Ok(Some(PredictorKind::Static)),
        Ok(Wire::Sequential) => Ok(Some(PredictorKind::Sequential)),
        Ok(Wire::Psi) => Ok(Some(PredictorKind::Psi)),
        Err(_) => Err(unknown("sampling.predictor.kind", wire)),
    }
}

fn noise_removal(wire: i32) -> Result<Option<NoiseRemoval>, BadField> {
    match pb::NoiseRemoval::try_from(wire) {
        Ok(pb::NoiseRemoval::Unspecified) => Ok(None),
        Ok(pb::NoiseRemoval::Ancestral) => Ok(Some(NoiseRemoval::Ancestral)),
        Ok(pb::NoiseRemoval::Greedy) => Ok(Some(NoiseRemoval::Greedy)),
        Err(_) => Err(unknown("sampling.predictor.noise_removal", wire)),
    }
}

fn certainty(wire: i32) -> Result<Option<Certainty>, BadField> {
    match pb::Certainty::try_from(wire) {
        Ok(pb::Certainty::Unspecified) => Ok(None),
        Ok(pb::Certainty::Best) => Ok(Some(Certainty::Best)),
        Ok(pb::Certainty::Drawn) => Ok(Some(Certainty::Drawn)),
        Ok(pb::Certainty::Filtered) => Ok(Some(Certainty::Filtered)),
        Err(_) => Err(unknown("sampling.predictor.certainty", wire)),
    }
}

fn certainty_to_wire(certainty: Certainty) -> pb::Certainty {
    match certainty {
        Certainty::Best => pb::Certainty::Best,
        Certainty::Drawn => pb::Certainty::Drawn,
        Certainty::Filtered => pb::Certainty::Filtered,
    }
}

fn profile(wire: pb::TimeProfile) -> Result<TimeProfile, BadField> {
    use pb::TimeProfileKind as Kind;
    const FIELD: &str = "sampling.predictor.psi.profile";
    let kind = Kind::try_from(wire.kind).map_err(|_| unknown(FIELD, wire.kind))?;
    match (kind, wire.at) {
        (Kind::Linear, None) => Ok(TimeProfile::Linear),
        (Kind::Pause, Some(time)) => Ok(TimeProfile::Pause { time }),
        (Kind::PauseAtAlpha, Some(alpha)) => Ok(TimeProfile::PauseAtAlpha { alpha }),
        (Kind::Unspecified, _) => Err(BadField::new(FIELD, "its kind is not set")),
        (_, at) => Err(BadField::new(FIELD, odd("at", at))),
    }
}

fn kappa(field: &'static str, wire: Option<pb::Kappa>) -> Result<Option<Kappa>, BadField> {
    use pb::KappaKind as Kind;
    let Some(wire) = wire else { return Ok(None) };
    let kind = Kind::try_from(wire.kind).map_err(|_| unknown(field, wire.kind))?;
    let kappa = match (kind, wire.value) {
        (Kind::PurePosterior, None) => Ok(Kappa::PurePosterior),
        (Kind::PureCorrector, None) => Ok(Kappa::PureCorrector),
        (Kind::Constant, Some(kappa)) => Ok(Kappa::Constant(kappa)),
        (Kind::ConstantRemdm, Some(eta)) => Ok(Kappa::ConstantRemdm { eta }),
        (Kind::MaxCapped, Some(eta)) => Ok(Kappa::MaxCapped { eta }),
        (Kind::MaxRescale, Some(eta)) => Ok(Kappa::MaxRescale { eta }),
        (Kind::MaxRescaleOnce, Some(eta)) => Ok(Kappa::MaxRescaleOnce { eta }),
        (Kind::Unspecified, _) => Err(BadField::new(field, "its kind is not set")),
        (_, value) => Err(BadField::new(field, odd("value", value))),
    };
    kappa.map(Some)
}

fn unknown(field: &'static str, number: i32) -> BadField {
    BadField::new(field, format!("there is no number {number}"))
}

fn odd(field: &str, value: Option<f64>) -> String {
    let why = if value.is_some() {
        "has no"
    } else {
        "needs its"
    };
    format!("this kind {why} {field}")
}

/// Sampling settings in full.
pub fn sampling_to_wire(sampling: &Sampling) -> pb::Sampling {
    use pb::PredictorKind as Kind;
    let with = |kind: Kind, steps, threshold| pb::Predictor {
        kind: kind.into(),
        steps,
        threshold,
        ..pb::Predictor::default()
    };
    let by = |predictor| pb::Predictor {
        certainty: certainty_to_wire(sampling.certainty).into(),
        ..predictor
    };
    let predictor = match sampling.predictor {
        Predictor::Absorbing(sampler::AbsorbingPredictor::FirstHitting) => {
            with(Kind::FirstHitting, None, None)
        }
        Predictor::Absorbing(sampler::AbsorbingPredictor::Ancestral { steps }) => {
            with(Kind::Ancestral, Some(steps), None)
        }
        Predictor::Absorbing(sampler::AbsorbingPredictor::Confidence { threshold, steps }) => {
            by(with(Kind::Confidence, steps, Some(threshold)))
        }
        Predictor::Absorbing(sampler::AbsorbingPredictor::Static { steps }) => {
            by(with(Kind::Static, Some(steps), None))
        }
        Predictor::Absorbing(sampler::AbsorbingPredictor::Sequential { steps }) => {
            with(Kind::Sequential, Some(steps), None)
        }
        Predictor::Uniform(uniform) => {
            let ancestral = uniform.psi == Psi::ANCESTRAL;
            pb::Predictor {
                eps: Some(uniform.eps),
                noise_removal: match uniform.noise_removal {
                    NoiseRemoval::Ancestral => pb::NoiseRemoval::Ancestral,
                    NoiseRemoval::Greedy => pb::NoiseRemoval::Greedy,
                }
                .into(),
                psi: (!ancestral).then(|| psi_to_wire(&uniform.psi)),
                ..with(
                    if ancestral {
                        Kind::Ancestral
                    } else {
                        Kind::Psi
                    },
                    Some(uniform.steps),
                    None,
                )
            }
        }
    };
    pb::Sampling {
        predictor: Some(predictor),
        block_size: sampling.block_size.map(small),
        temperature: Some(sampling.temperature),
        nucleus_p: Some(sampling.nucleus_p),
        top_k: sampling.top_k.map(small),
    }
}

fn psi_to_wire(psi: &Psi) -> pb::Psi {
    pb::Psi {
        profile: Some(profile_to_wire(psi.profile)),
        high_fraction: Some(psi.high_fraction),
        middle_fraction: Some(psi.middle_fraction),
        high: Some(kappa_to_wire(psi.high)),
        middle: Some(kappa_to_wire(psi.middle)),
        low: Some(kappa_to_wire(psi.low)),
    }
}

/// A time profile on the wire.
pub fn profile_to_wire(profile: TimeProfile) -> pb::TimeProfile {
    use pb::TimeProfileKind as Kind;
    let (kind, at) = match profile {
        TimeProfile::Linear => (Kind::Linear, None),
        TimeProfile::Pause { time } => (Kind::Pause, Some(time)),
        TimeProfile::PauseAtAlpha { alpha } => (Kind::PauseAtAlpha, Some(alpha)),
    };
    pb::TimeProfile {
        kind: kind.into(),
        at,
    }
}

/// A kappa on the wire.
pub fn kappa_to_wire(kappa: Kappa) -> pb::Kappa {
    use pb::KappaKind as Kind;
    let (kind, value) = match kappa {
        Kappa::PurePosterior => (Kind::PurePosterior, None),
        Kappa::PureCorrector => (Kind::PureCorrector, None),
        Kappa::Constant(kappa) => (Kind::Constant, Some(kappa)),
        Kappa::ConstantRemdm { eta } => (Kind::ConstantRemdm, Some(eta)),
        Kappa::MaxCapped { eta } => (Kind::MaxCapped, Some(eta)),
        Kappa::MaxRescale { eta } => (Kind::MaxRescale, Some(eta)),
        Kappa::MaxRescaleOnce { eta } => (Kind::MaxRescaleOnce, Some(eta)),
    };
    pb::Kappa {
        kind: kind.into(),
        value,
    }
}
