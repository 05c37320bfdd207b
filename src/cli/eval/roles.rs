//! What noise in the matrices of one role costs one's own fine-tunes, by which bits are then divided.

use super::report::EvalReport;
use super::{Subject, Subjects, Way};
use crate::model::Architecture;
use crate::ops::coded::Rate;
use crate::superposition::{MatrixRole, Plan, Sensitivities, is_by_token, noise};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rate of the role that is looked at, and that of all others. One bit costs less than chance in the roles that feel least.
pub const NOISY: Rate = Rate::Half;
const CLEAR: Rate = Rate::Four;
/// No sensitivity is found to be a smaller part of the largest: what is left of a measurement below it is chance.
const LEAST: f64 = 1e-3;

/// Sensitivities of a file, or the usual ones.
pub fn read(file: Option<&Path>) -> Result<Sensitivities> {
    let Some(file) = file else {
        return Ok(Sensitivities::default());
    };
    let named = || format!("--sensitivities {}", file.display());
    let text = std::fs::read(file).with_context(named)?;
    Sensitivities::from_json(&text).with_context(named)
}

/// All matrices in four bits but those of `noisy`, whatever that takes.
pub fn plan(network: &Architecture, noisy: Option<MatrixRole>) -> Plan {
    let rate = |role| if Some(role) == noisy { NOISY } else { CLEAR };
    let rates = network.roles();
    let rates = rates.map(|(name, role)| (name.to_owned(), rate(role)));
    Plan {
        rates: rates.collect(),
        ..Plan::of(f64::INFINITY, network.roles())
    }
}

impl Subjects<'_> {
    /// What noise costs by role: the share that is lost by it, over the sum of sqrt(weights · power) of the role's matrices and of
    /// the noise, the mean over the variants; an MLP's mean is 1.
    pub fn by_role(&self, report: &mut EvalReport) -> Result<Sensitivities> {
        let network = self.base.config.architecture()?;
        let shares = |role, report: &mut EvalReport| -> Result<Vec<f64>> {
            self.measure(Way::Noise(role), report)?;
            let found = report.kept.last().map(|kept| kept.shares.clone());
            let found: Option<Vec<f64>> = found.unwrap_or_default().into_iter().collect();
            found.context("--by-role: a variant gains too little to measure a share of")
        };
        let clear = shares(None, report)?;
        // What modulates the layers is a small part of the weights, and noise in it is below chance.
        let roles = network.roles().map(|(_, role)| role);
        let roles: BTreeSet<MatrixRole> = roles.filter(|role| role.is_matrix()).collect();
        let more = noise(NOISY) - noise(CLEAR);
        let mut found = BTreeMap::new();
        for role in roles {
            let weighed = |subject| self.weighed(&network, role, subject);
            let weighed: Vec<f64> = self.variants.iter().map(weighed).collect();
            if weighed.contains(&0.0) {
                continue;
            }
            let noisy = shares(Some(role), report)?;
            let each = clear.iter().zip(noisy).zip(&weighed);
            let costs = each.map(|((clear, noisy), weighed)| (clear - noisy) / (weighed * more));
            found.insert(role, costs.sum::<f64>() / weighed.len() as f64);
        }
        let largest = found.values().copied().fold(0.0, f64::max);
        if largest <= 0.0 {
            bail!("--by-role: noise costs nothing that can be measured; give more --contexts");
        }
        for cost in found.values_mut() {
            *cost = cost.max(LEAST * largest);
        }
        let mlp = [MatrixRole::Up, MatrixRole::Down].map(|role| found.get(&role).copied());
        if let [Some(up), Some(down)] = mlp {
            found
                .values_mut()
                .for_each(|cost| *cost /= (up + down) / 2.0);
        }
        Ok(Sensitivities::new(found)?)
    }

    /// The sum of sqrt(weights · power) over a role's matrices that are kept in codes, as [`Plan`] weighs them.
    fn weighed(&self, network: &Architecture, role: MatrixRole, subject: &Subject) -> f64 {
        let tuned = &subject.tuned.folder.tensors;
        let matrices = network.roles().filter(|(_, found)| *found == role);
        let one = |(name, _): (&str, MatrixRole)| {
            let ((shape, base), (_, tuned)) = (self.base.tensors.get(name)?, tuned.get(name)?);
            let &[rows, cols] = &shape[..] else {
                return None;
            };
            let square = |(base, tuned): (&f32, &f32)| f64::from(tuned - base).powi(2);
            let power: f64 = base.iter().zip(tuned).map(square).sum();
            let by_token = match is_by_token(role) {
                true => cols as f64 / rows as f64,
                false => 1.0,
            };
            Some(by_token * (base.len() as f64 * power).sqrt())
        };
        matrices.filter_map(one).sum()
    }
}
