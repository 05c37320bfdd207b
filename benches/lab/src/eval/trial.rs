//! The ways to keep variants that are measured.

use choir::catalog::Forms;
use choir::cli::capacity::Capacity;
use choir::ops::quantized::Quantisation;
use choir::store::Options;
use choir::superposition::Scheme;
use clap::ValueEnum;
use serde::{Serialize, Serializer};
use std::fmt;

/// How deltas are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaScheme {
    /// Signs on both sides and gains: what a store does.
    Choir,
    Compared(Comparison),
}

/// What it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Comparison {
    /// The plain sum of the deltas.
    PlainSum,
    /// Signs on the input side (arXiv 2505.11204).
    Randes,
    /// Signs on both sides, no gains.
    BothSigns,
    /// One bit a weight and variant, nothing superposed (arXiv 2402.10193).
    Bitdelta,
    /// The same with a scale for each row.
    BitdeltaRow,
    /// The leading directions of each matrix, in 16 bits.
    LowRank,
    /// More of them, the later ones in fewer bits (in the manner of arXiv 2406.08903).
    MixedRank,
    /// Codes alone, as a store keeps variants.
    Codes,
    /// Codes and thin factors.
    CodesAndFactors,
}

impl Comparison {
    /// Whether each variant is kept by itself.
    pub fn alone(self) -> bool {
        use Comparison::*;
        !matches!(self, PlainSum | Randes | BothSigns)
    }
}

impl DeltaScheme {
    /// `None` where nothing is superposed.
    pub fn scheme(self) -> Option<Scheme> {
        Some(match self {
            DeltaScheme::Choir => Scheme::default(),
            DeltaScheme::Compared(Comparison::PlainSum) => Scheme::PLAIN_SUM,
            DeltaScheme::Compared(Comparison::Randes) => Scheme::RANDES,
            DeltaScheme::Compared(Comparison::BothSigns) => Scheme {
                gains: false,
                ..Scheme::default()
            },
            DeltaScheme::Compared(_) => return None,
        })
    }

    /// The scales c to choose from. Gains make 1 the right one; the others are given their best.
    pub fn scales(self) -> &'static [f32] {
        match self {
            DeltaScheme::Choir => &[1.0],
            DeltaScheme::Compared(comparison) if comparison.alone() => &[1.0],
            DeltaScheme::Compared(_) => &[0.5, 0.7, 1.0],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DeltaScheme::Choir => "choir",
            DeltaScheme::Compared(Comparison::PlainSum) => "plain sum",
            DeltaScheme::Compared(Comparison::Randes) => "RanDeS",
            DeltaScheme::Compared(Comparison::BothSigns) => "both signs, no gains",
            DeltaScheme::Compared(Comparison::Bitdelta) => "BitDelta",
            DeltaScheme::Compared(Comparison::BitdeltaRow) => "BitDelta by row",
            DeltaScheme::Compared(Comparison::LowRank) => "low rank",
            DeltaScheme::Compared(Comparison::MixedRank) => "low rank, mixed precision",
            DeltaScheme::Compared(Comparison::Codes) => "codes",
            DeltaScheme::Compared(Comparison::CodesAndFactors) => "codes and thin factors",
        }
    }
}

impl Serialize for DeltaScheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One way to keep all variants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    pub scheme: DeltaScheme,
    pub capacity: Capacity,
    #[serde(serialize_with = "forms")]
    pub forms: Forms,
}

fn forms<S: Serializer>(forms: &Forms, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(forms)
}

/// What is to be measured beside base and fine-tunes.
#[derive(Clone, Debug)]
pub struct TrialPlan {
    /// At least one; the first stands for the default.
    pub trials: Vec<Trial>,
    /// Also what each group of tensors costs.
    pub tensors: bool,
}

impl TrialPlan {
    /// The store's own capacity first, every capacity in every form, and the comparisons in the last form at the store's
    /// capacity and with all `variants` in one bank. Heads are in `head`; where that is absent the last form's are as a
    /// store serves them, and as the body too.
    pub fn new(
        capacities: &[Capacity],
        (forms, head): (&[Quantisation], Option<Quantisation>),
        comparisons: &[Comparison],
        variants: usize,
    ) -> Self {
        let all = [&[of_store()], capacities].concat();
        let mut trials = Vec::new();
        let mut add = |scheme, capacity, forms| {
            let trial = Trial {
                scheme,
                capacity,
                forms,
            };
            if !trials.contains(&trial) {
                trials.push(trial);
            }
        };
        // The last form, the smallest, is the one that the others are compared in.
        let last = forms.last().copied().unwrap_or(Quantisation::Q2K);
        let served = |capacity: Capacity| Forms::new(last, head, capacity.head);
        add(DeltaScheme::Choir, of_store(), served(of_store()));
        for capacity in all {
            add(DeltaScheme::Choir, capacity, served(capacity));
            for &body in forms {
                let head = head.unwrap_or(body);
                add(DeltaScheme::Choir, capacity, Forms { body, head });
            }
        }
        for &comparison in comparisons {
            let capacities = match comparison {
                alone if alone.alone() => vec![same(1)],
                _ => vec![of_store(), same(variants)],
            };
            for capacity in capacities {
                add(
                    DeltaScheme::Compared(comparison),
                    capacity,
                    served(capacity),
                );
            }
        }
        Self {
            trials,
            tensors: false,
        }
    }
}

/// So many variants to every bank.
pub fn same(capacity: usize) -> Capacity {
    Capacity {
        body: capacity,
        head: capacity,
    }
}

/// What a store is made with.
fn of_store() -> Capacity {
    let options = Options::default();
    Capacity {
        body: options.bank_capacity,
        head: options.head_capacity,
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            DeltaScheme::Compared(scheme) if scheme.alone() => f.write_str(self.scheme.name()),
            _ => write!(f, "{} {} {}", self.scheme.name(), self.capacity, self.forms),
        }
    }
}
