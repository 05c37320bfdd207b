//! Which tensors cost most: everything as it is kept by default, but for one group that is exact.

use super::arrangement::Arrangement;
use super::evaluate::{Spared, all};
use super::share::{Reached, Summary};
use super::subjects::Subjects;
use super::trial::Trial;
use anyhow::Result;
use serde::Serialize;

/// The matrices by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Group {
    #[serde(rename = "embedding")]
    Embedding,
    #[serde(rename = "head")]
    Head,
    #[serde(rename = "attn_qkv")]
    AttnQkv,
    #[serde(rename = "attn_out")]
    AttnOut,
    #[serde(rename = "mlp.0")]
    Mlp0,
    #[serde(rename = "mlp.2")]
    Mlp2,
    #[serde(rename = "adaLN")]
    AdaLn,
    #[serde(rename = "sigma_map")]
    SigmaMap,
}

impl Group {
    pub const ALL: [Group; 8] = [
        Group::Embedding,
        Group::Head,
        Group::AttnQkv,
        Group::AttnOut,
        Group::Mlp0,
        Group::Mlp2,
        Group::AdaLn,
        Group::SigmaMap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Group::Embedding => "embedding",
            Group::Head => "head",
            Group::AttnQkv => "attn_qkv",
            Group::AttnOut => "attn_out",
            Group::Mlp0 => "mlp.0",
            Group::Mlp2 => "mlp.2",
            Group::AdaLn => "adaLN",
            Group::SigmaMap => "sigma_map",
        }
    }

    /// The group of a matrix of the network.
    pub fn of(tensor: &str) -> Option<Group> {
        let (scope, rest) = tensor.split_once('.')?;
        Some(
            match (
                scope,
                rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'),
            ) {
                ("vocab_embed", _) => Group::Embedding,
                ("sigma_map", _) => Group::SigmaMap,
                ("output_layer", "linear.weight") => Group::Head,
                ("blocks" | "output_layer", "adaLN_modulation.weight") => Group::AdaLn,
                ("blocks", "attn_qkv.weight") => Group::AttnQkv,
                ("blocks", "attn_out.weight") => Group::AttnOut,
                ("blocks", "mlp.0.weight") => Group::Mlp0,
                ("blocks", "mlp.2.weight") => Group::Mlp2,
                _ => return None,
            },
        )
    }
}

/// `trial` with each group exact in turn.
pub fn spared(
    subjects: &Subjects,
    trial: Trial,
    references: &[(Reached, Reached)],
    tick: &mut dyn FnMut(&str),
) -> Result<Vec<Spared>> {
    let scheme = trial.scheme.scheme().unwrap_or_default();
    let arrangement = Arrangement::new(subjects, scheme, trial.capacity, trial.forms)?;
    let matrices = || {
        subjects
            .base
            .0
            .iter()
            .filter(|(_, tensor)| tensor.matrix().is_some())
    };
    let mut found = Vec::new();
    for exact in Group::ALL {
        let what = format!("{} exact", exact.name());
        let reached = all(subjects, &what, tick, |index, variant| {
            Ok(
                subjects.weights(|tensor| match Group::of(tensor) == Some(exact) {
                    true => variant.delta.dense(tensor),
                    false => arrangement.retrieve(index, variant, tensor, 1.0),
                }),
            )
        })?;
        let members = matrices().filter(|(name, _)| Group::of(name) == Some(exact));
        found.push(Spared {
            exact,
            parameters: members.map(|(_, tensor)| tensor.data.len()).sum(),
            summary: Summary::new(references, reached),
        });
    }
    Ok(found)
}
