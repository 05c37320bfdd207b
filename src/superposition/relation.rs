//! Whether a checkpoint is a fine-tune of a base: seen tensor by tensor before anything is made of it.

use rayon::prelude::*;

use super::delta::check_shapes;
use super::digest::TensorDigest;
use super::source::first_odd;
use super::{DeltaError, Digest, Mismatch, TensorSource};

/// Below this cosine with the base's a matrix has nothing in common with it: two separate trainings give about 0, and so does a
/// matrix against its own transpose; a fine-tune that moved as far as the base's own norm gives 0.7.
const RELATED: f64 = 0.1;
/// A tensor's largest element may be so many times the base's largest; where that is small, as of biases that begin at 0, the bound is
/// `LEAST_BOUND`.
const OUTLIER: f32 = 16.0;
const LEAST_BOUND: f32 = 16.0;
/// Where the delta of nearly every matrix is larger than this part of the base's, another training run lies between them: of fine-tunes
/// it is so of a quarter at most, of those matrices that the base left near 0.
const REVISION: f64 = 0.5;
const NEARLY_EVERY: f64 = 0.9;

/// What was found of a fine-tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relation {
    /// Of the base that was read.
    pub base: Digest,
    /// |delta| / |base| over all matrices.
    pub moved: f64,
    /// Whether it looks like another revision of the base, or a training run of its own, and not like a fine-tune.
    pub revision: bool,
}

/// Sums over one tensor's elements.
#[derive(Clone, Copy, Default)]
struct Sums {
    dot: f64,
    base: f64,
    tuned: f64,
    delta: f64,
    largest_base: f32,
}

impl Sums {
    fn of(base: &[f32], tuned: &[f32]) -> Self {
        let mut sums = Sums::default();
        for (&base, &tuned) in base.iter().zip(tuned) {
            let (b, t) = (f64::from(base), f64::from(tuned));
            sums.dot += b * t;
            sums.base += b * b;
            sums.tuned += t * t;
            sums.delta += (t - b) * (t - b);
            sums.largest_base = sums.largest_base.max(base.abs());
        }
        sums
    }

    fn add(self, other: Sums) -> Self {
        Sums {
            dot: self.dot + other.dot,
            base: self.base + other.base,
            tuned: self.tuned + other.tuned,
            delta: self.delta + other.delta,
            largest_base: self.largest_base.max(other.largest_base),
        }
    }

    /// Whether a matrix has nothing in common with the base's, though it is about as large. One that the base left near 0 may grow into
    /// anything.
    fn is_foreign(&self) -> bool {
        self.cosine() < RELATED && self.tuned < 4.0 * self.base
    }

    /// 1 where one of the two is all zeros: nothing is known of it then.
    fn cosine(&self) -> f64 {
        match self.base > 0.0 && self.tuned > 0.0 {
            true => self.dot / (self.base * self.tuned).sqrt(),
            false => 1.0,
        }
    }
}

impl Relation {
    /// Compares all tensors, one after the other.
    ///
    /// # Errors
    /// Names the first tensor, in order of name, that is missing, extra, misshapen, not finite, or holds a number out of all proportion;
    /// then what has nothing in common with the base, all of it or a matrix; then a checkpoint that is the base.
    pub fn of(base: &dyn TensorSource, tuned: &dyn TensorSource) -> Result<Relation, DeltaError> {
        let shapes = base.shapes();
        check_shapes(&shapes, &tuned.shapes())?;
        let (mut digest, mut matrices) = (TensorDigest::default(), Vec::new());
        let mut same = true;
        for (name, shape) in shapes {
            let (base, tuned) = rayon::join(|| base.values(&name), || tuned.values(&name));
            let (base, tuned) = (base?, tuned?);
            let ((), sums) = rayon::join(
                || digest.add(&name, &shape, &base),
                || {
                    // Summed in order of pieces, so that the outcome does not depend on threads.
                    let pieces = base.par_chunks(1 << 16).zip(tuned.par_chunks(1 << 16));
                    let pieces = pieces.map(|(base, tuned)| Sums::of(base, tuned));
                    let pieces: Vec<Sums> = pieces.collect();
                    pieces.into_iter().fold(Sums::default(), Sums::add)
                },
            );
            if let Some(index) = first_odd(&tuned, |value| !value.is_finite()) {
                let tensor = name;
                return Err(Mismatch::NotFinite { tensor, index }.into());
            }
            let bound = (OUTLIER * sums.largest_base).max(LEAST_BOUND);
            if let Some(index) = first_odd(&tuned, |value| value.abs() > bound) {
                let (tensor, value) = (name, tuned[index]);
                return Err(Mismatch::Outlier {
                    tensor,
                    index,
                    value,
                }
                .into());
            }
            same &= sums.delta == 0.0;
            if shape.len() == 2 {
                matrices.push((name, sums));
            }
        }
        let all = matrices.iter().map(|(_, sums)| *sums);
        let all = all.fold(Sums::default(), Sums::add);
        let cosine = all.cosine();
        if cosine < RELATED {
            return Err(Mismatch::Unrelated { cosine }.into());
        }
        if let Some((tensor, sums)) = matrices.iter().find(|(_, sums)| sums.is_foreign()) {
            let (tensor, cosine) = (tensor.clone(), sums.cosine());
            return Err(Mismatch::UnrelatedTensor { tensor, cosine }.into());
        }
        if same {
            return Err(Mismatch::Same.into());
        }
        let known = matrices.iter().filter(|(_, sums)| sums.base > 0.0);
        let far = known
            .clone()
            .filter(|(_, sums)| sums.delta > REVISION * REVISION * sums.base);
        let (far, known) = (far.count() as f64, known.count() as f64);
        Ok(Relation {
            base: digest.finish(),
            moved: match all.base > 0.0 {
                true => (all.delta / all.base).sqrt(),
                false => 0.0,
            },
            revision: known > 0.0 && far >= NEARLY_EVERY * known,
        })
    }
}
