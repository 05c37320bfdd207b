//! Time profiles and kappas as text, in the notation of the Psi-samplers' published code where it has one.

use std::fmt;
use std::str::FromStr;

use super::psi::{Kappa, TimeProfile};

const PAUSE: &str = "linear-constant-linear-";

impl fmt::Display for TimeProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::Pause { time } => write!(f, "{PAUSE}{time}"),
            Self::PauseAtAlpha { alpha } => write!(f, "{PAUSE}{alpha}-inv"),
        }
    }
}

impl FromStr for TimeProfile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok();
        let parsed = match text.strip_prefix(PAUSE) {
            None => (text == "linear").then_some(Self::Linear),
            Some(rest) => match rest.strip_suffix("-inv") {
                Some(alpha) => number(alpha).map(|alpha| Self::PauseAtAlpha { alpha }),
                None => number(rest).map(|time| Self::Pause { time }),
            },
        };
        parsed.ok_or_else(|| {
            format!("{text:?} is none of linear, linear-constant-linear-TIME, linear-constant-linear-ALPHA-inv")
        })
    }
}

impl fmt::Display for Kappa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PurePosterior => f.write_str("pure-posterior"),
            Self::PureCorrector => f.write_str("pure-corrector"),
            Self::Constant(kappa) => write!(f, "constant-{kappa}"),
            Self::ConstantRemdm { eta } => write!(f, "constant-remdm-{eta}"),
            Self::MaxCapped { eta } => write!(f, "max-capped-{eta}"),
            Self::MaxRescale { eta } => write!(f, "max-rescale-{eta}"),
            Self::MaxRescaleOnce { eta } => write!(f, "max-rescale-once-{eta}"),
        }
    }
}

impl FromStr for Kappa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |prefix: &str| text.strip_prefix(prefix).and_then(|rest| rest.parse().ok());
        let eta = |prefix, with: fn(f64) -> Self| number(prefix).map(with);
        match text {
            "pure-posterior" => Some(Self::PurePosterior),
            "pure-corrector" => Some(Self::PureCorrector),
            _ => eta("constant-remdm-", |eta| Self::ConstantRemdm { eta })
                .or_else(|| eta("constant-", Self::Constant))
                .or_else(|| eta("max-capped-", |eta| Self::MaxCapped { eta }))
                .or_else(|| eta("max-rescale-once-", |eta| Self::MaxRescaleOnce { eta }))
                .or_else(|| eta("max-rescale-", |eta| Self::MaxRescale { eta })),
        }
        .ok_or_else(|| {
            format!(
                "{text:?} is none of pure-posterior, pure-corrector, constant-K, constant-remdm-ETA, max-capped-ETA, \
                 max-rescale-ETA, max-rescale-once-ETA"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for kappa in [
            Kappa::PurePosterior,
            Kappa::PureCorrector,
            Kappa::Constant(0.5),
            Kappa::ConstantRemdm { eta: 0.01 },
            Kappa::MaxCapped { eta: 0.02 },
            Kappa::MaxRescale { eta: 0.04 },
            Kappa::MaxRescaleOnce { eta: 0.04 },
        ] {
            assert_eq!(kappa.to_string().parse(), Ok(kappa));
        }
        for profile in [
            TimeProfile::Linear,
            TimeProfile::Pause { time: 0.5 },
            TimeProfile::PauseAtAlpha { alpha: 0.9 },
        ] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        for bad in [
            "",
            "linear-",
            "constant",
            "constant-x",
            "max-rescale-",
            "linear-constant-linear-x-inv",
        ] {
            assert!(
                bad.parse::<Kappa>().is_err() && bad.parse::<TimeProfile>().is_err(),
                "{bad}"
            );
        }
    }
}
