//! How tokens are drawn, as options.

use crate::pb;
use crate::sampler::{Kappa, TimeProfile};
use crate::server::choir::convert::{kappa_to_wire, profile_to_wire};
use clap::{Args, ValueEnum};

/// How tokens are drawn. What is not given is the variant's default. Which of the options a variant has depends on the
/// process it was tuned for; `choir variants show` tells.
#[derive(Args, Debug)]
#[command(next_help_heading = "How tokens are drawn")]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token [default: the variant's].
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from the most likely tokens that hold this share [default: the variant's].
    #[arg(long, allow_negative_numbers = true)]
    nucleus_p: Option<f32>,
    /// Draw from this many most likely tokens.
    #[arg(long)]
    top_k: Option<u32>,
    /// How noise becomes text [default: the variant's].
    #[arg(long, value_enum, conflicts_with = "first_hitting")]
    predictor: Option<Kind>,
    /// Steps for each block, or for a whole text: fewer are faster, more are better.
    #[arg(long)]
    steps: Option<u32>,
    /// Reveal whatever is surer than this probability (the confidence predictor).
    #[arg(long, allow_negative_numbers = true, conflicts_with = "first_hitting")]
    threshold: Option<f32>,
    /// The same as --predictor first-hitting.
    #[arg(long, conflicts_with = "steps")]
    first_hitting: bool,
    /// Confidence and static: what a token's certainty is.
    #[arg(long, value_enum)]
    certainty: Option<By>,
    /// Absorbing variants that denoise whole texts: reveal the answer in windows of this many tokens, from left to right.
    #[arg(long)]
    window: Option<u32>,
    /// Uniform variants: how the last step turns what is left of the noise into text.
    #[arg(long, value_enum)]
    noise_removal: Option<Removal>,
    /// Uniform variants: the time, 1 being all noise, at which that happens [usually 1e-5].
    #[arg(long, allow_negative_numbers = true)]
    eps: Option<f64>,
    /// Psi: how time runs: linear, linear-constant-linear-TIME, or linear-constant-linear-ALPHA-inv.
    #[arg(long)]
    profile: Option<TimeProfile>,
    /// Psi: share of the steps that is the first part.
    #[arg(long, allow_negative_numbers = true)]
    high_fraction: Option<f64>,
    /// Psi: share of the steps that is the second part; the rest is the third.
    #[arg(long, allow_negative_numbers = true)]
    middle_fraction: Option<f64>,
    /// Psi, first part: pure-posterior (ancestral), pure-corrector, constant-K, constant-remdm-ETA, max-capped-ETA,
    /// max-rescale-ETA or max-rescale-once-ETA: the less of the posterior, the more often settled tokens change again.
    #[arg(long)]
    kappa_high: Option<Kappa>,
    /// Psi, second part: as --kappa-high.
    #[arg(long)]
    kappa_middle: Option<Kappa>,
    /// Psi, third part: as --kappa-high.
    #[arg(long)]
    kappa_low: Option<Kappa>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Kind {
    /// Absorbing variants: one position a step; exact, and slow.
    FirstHitting,
    /// Any variant: --steps equal steps.
    Ancestral,
    /// Absorbing variants: all positions that are sure by --threshold at once; at least as many as static with --steps.
    Confidence,
    /// Absorbing variants: the surest positions, an equal share in each of --steps.
    Static,
    /// Absorbing variants: from left to right, an equal share in each of --steps.
    Sequential,
    /// Uniform variants: steps that also correct, see --profile and --kappa-high.
    Psi,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum By {
    /// The most likely token's probability, at temperature 1.
    Best,
    /// The drawn token's, at temperature 1.
    Drawn,
    /// The drawn token's, after temperature, top-k and nucleus.
    Filtered,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Removal {
    /// Draw.
    Ancestral,
    /// Take the most likely token everywhere.
    Greedy,
}

impl SamplingArgs {
    /// `None` where nothing was chosen.
    pub fn wire(&self) -> Option<pb::Sampling> {
        let kind = match self.predictor {
            None if !self.first_hitting => pb::PredictorKind::Unspecified,
            None | Some(Kind::FirstHitting) => pb::PredictorKind::FirstHitting,
            Some(Kind::Ancestral) => pb::PredictorKind::Ancestral,
            Some(Kind::Confidence) => pb::PredictorKind::Confidence,
            Some(Kind::Static) => pb::PredictorKind::Static,
            Some(Kind::Sequential) => pb::PredictorKind::Sequential,
            Some(Kind::Psi) => pb::PredictorKind::Psi,
        };
        let certainty = match self.certainty {
            None => pb::Certainty::Unspecified,
            Some(By::Best) => pb::Certainty::Best,
            Some(By::Drawn) => pb::Certainty::Drawn,
            Some(By::Filtered) => pb::Certainty::Filtered,
        };
        let noise_removal = match self.noise_removal {
            None => pb::NoiseRemoval::Unspecified,
            Some(Removal::Ancestral) => pb::NoiseRemoval::Ancestral,
            Some(Removal::Greedy) => pb::NoiseRemoval::Greedy,
        };
        let psi = pb::Psi {
            profile: self.profile.map(profile_to_wire),
            high_fraction: self.high_fraction,
            middle_fraction: self.middle_fraction,
            high: self.kappa_high.map(kappa_to_wire),
            middle: self.kappa_middle.map(kappa_to_wire),
            low: self.kappa_low.map(kappa_to_wire),
        };
        let predictor = pb::Predictor {
            kind: kind.into(),
            steps: self.steps,
            threshold: self.threshold,
            eps: self.eps,
            noise_removal: noise_removal.into(),
            psi: (psi != pb::Psi::default()).then_some(psi),
            certainty: certainty.into(),
        };
        let wire = pb::Sampling {
            predictor: (predictor != pb::Predictor::default()).then_some(predictor),
            block_size: self.window,
            temperature: self.temperature,
            nucleus_p: self.nucleus_p,
            top_k: self.top_k,
        };
        (wire != pb::Sampling::default()).then_some(wire)
    }
}

/// Sampling settings as one line.
pub fn line(sampling: &pb::Sampling) -> String {
    let predictor = sampling.predictor.unwrap_or_default();
    let name = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    let mut line = name(predictor.kind().as_str_name(), "PREDICTOR_KIND_");
    let removal =
        Some(predictor.noise_removal()).filter(|removal| *removal != pb::NoiseRemoval::Unspecified);
    let psi = predictor.psi.unwrap_or_default();
    let kappa = |kappa: Option<pb::Kappa>| {
        kappa.map(|kappa| {
            let value = kappa
                .value
                .map_or(String::new(), |value| format!(" {value}"));
            name(kappa.kind().as_str_name(), "KAPPA_KIND_") + &value
        })
    };
    let fields = [
        ("steps", predictor.steps.map(|v| v.to_string())),
        ("threshold", predictor.threshold.map(|v| v.to_string())),
        (
            "certainty",
            Some(predictor.certainty())
                .filter(|by| *by != pb::Certainty::Unspecified)
                .map(|by| name(by.as_str_name(), "CERTAINTY_")),
        ),
        ("window", sampling.block_size.map(|v| v.to_string())),
        (
            "noise removal",
            removal.map(|v| name(v.as_str_name(), "NOISE_REMOVAL_")),
        ),
        ("eps", predictor.eps.map(|v| v.to_string())),
        (
            "profile",
            psi.profile.map(|profile| {
                let at = profile.at.map_or(String::new(), |at| format!(" {at}"));
                name(profile.kind().as_str_name(), "TIME_PROFILE_KIND_") + &at
            }),
        ),
        ("kappa", kappa(psi.high)),
        ("then", kappa(psi.middle)),
        ("then", kappa(psi.low)),
        ("temperature", sampling.temperature.map(|v| v.to_string())),
        ("nucleus_p", sampling.nucleus_p.map(|v| v.to_string())),
        ("top_k", sampling.top_k.map(|v| v.to_string())),
    ];
    for (name, value) in fields {
        line += &value.map_or(String::new(), |value| format!(", {name} {value}"));
    }
    line
}
