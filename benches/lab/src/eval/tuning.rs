//! The scale c for schemes without gains.

use super::share::{mean, recovered};
use super::subjects::{Subject, Subjects};
use anyhow::Result;
use choir::train::folder::Tensors;
use choir::train::run::Validation;

/// A quarter of each variant's held-out data, and what base and fine-tune reach on it.
pub struct Tuning(Vec<(Validation, f64, f64)>);

impl Tuning {
    pub fn new(subjects: &Subjects) -> Result<Self> {
        let base = subjects.weights(|_| None);
        let quarter = |variant: &Subject| {
            let contexts = &variant.test.contexts;
            let test = Validation {
                contexts: contexts.slice(0..contexts.count.div_ceil(4)),
                exact: false,
                ..variant.test
            };
            let tuned = subjects.weights(|tensor| variant.delta.dense(tensor));
            let [base, tuned] = [
                subjects.score(variant, &base, &test)?,
                subjects.score(variant, &tuned, &test)?,
            ];
            Ok((test, base.nats_per_token, tuned.nats_per_token))
        };
        Ok(Self(
            subjects
                .variants
                .iter()
                .map(quarter)
                .collect::<Result<_>>()?,
        ))
    }

    /// The scale of the best mean recovered share.
    pub fn best(
        &self,
        subjects: &Subjects,
        scales: &[f32],
        retrieved: impl Fn(usize, &Subject, f32) -> Tensors,
    ) -> Result<f32> {
        let mut best = (f64::NEG_INFINITY, 1.0);
        for &scale in scales {
            let mut shares = Vec::new();
            for (index, (variant, (test, base, tuned))) in
                subjects.variants.iter().zip(&self.0).enumerate()
            {
                let score = subjects.score(variant, &retrieved(index, variant, scale), test)?;
                shares.extend(recovered(*base, *tuned, score.nats_per_token));
            }
            let share = mean(shares.into_iter()).unwrap_or(f64::NEG_INFINITY);
            if share > best.0 {
                best = (share, scale);
            }
        }
        Ok(best.1)
    }
}
