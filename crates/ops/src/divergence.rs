//! How far each row of logits is from another network's, and the gradient of that.

use super::math;
use super::slice;
use crate::error::{Error, Result};
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Which of the two distributions the Kullback-Leibler divergence is an expectation under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// KL(teacher || student): the student covers all that the teacher holds possible.
    Forward,
    /// KL(student || teacher): the student keeps to what the teacher holds likely.
    Backward,
}

fn check(student: &Tensor, teacher: &Tensor, tokens: usize) -> Result<()> {
    let (rows, width) = student.dims2()?;
    if teacher.dims() != student.dims() || !(1..=width).contains(&tokens) {
        return Err(Error::Logits {
            tokens,
            logits: (rows, width),
            other: teacher.dims().to_vec(),
        });
    }
    Ok(())
}

/// The divergence at each row in nats, over the first `tokens` columns, and the gradient of the sum over rows of
/// weight * divergence with respect to the student's logits. Both logits [rows, width] -> [rows], [rows, width].
pub fn divergence_backward(
    student: &Tensor,
    teacher: &Tensor,
    tokens: usize,
    kind: Divergence,
    weights: &[f32],
) -> Result<(Vec<f32>, Tensor)> {
    check(student, teacher, tokens)?;
    let (rows, width) = student.dims2()?;
    if weights.len() != rows {
        return Err(Error::PerRow {
            what: "weights",
            found: weights.len(),
            rows,
        });
    }
    let (own, theirs) = (slice::f32(student)?, slice::f32(teacher)?);
    let mut out = own.to_vec();
    let jobs = out
        .par_chunks_mut(width)
        .zip(own.par_chunks(width))
        .zip(theirs.par_chunks(width))
        .zip(weights);
    let losses = jobs.map_init(
        || vec![0f32; tokens],
        |q, (((row, own), theirs), &weight)| {
            let (p, rest) = row.split_at_mut(tokens);
            rest.fill(0.0);
            q.copy_from_slice(&theirs[..tokens]);
            let shift = math::softmax(q) - math::softmax(p);
            // ln(p / q), p the student's.
            let log_ratio = |at: usize| own[at] - theirs[at] + shift;
            let under = match kind {
                Divergence::Forward => &*q,
                Divergence::Backward => &*p,
            };
            let mean: f32 = under
                .iter()
                .enumerate()
                .map(|(at, under)| under * log_ratio(at))
                .sum();
            for at in 0..tokens {
                p[at] = weight
                    * match kind {
                        Divergence::Forward => p[at] - q[at],
                        Divergence::Backward => p[at] * (log_ratio(at) - mean),
                    };
            }
            match kind {
                Divergence::Forward => -mean,
                Divergence::Backward => mean,
            }
        },
    );
    let losses = losses.collect();
    Ok((losses, slice::tensor(out, rows, width)?))
}

/// The slow twin's divergence: [rows].
pub fn divergence_slow(
    student: &Tensor,
    teacher: &Tensor,
    tokens: usize,
    kind: Divergence,
) -> Result<Tensor> {
    let log_softmax = |logits: &Tensor| -> Result<Tensor> {
        let logits = logits.narrow(1, 0, tokens)?;
        Ok(logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?)?)
    };
    let (student, teacher) = (log_softmax(student)?, log_softmax(teacher)?);
    match kind {
        Divergence::Forward => Ok((teacher.exp()? * (&teacher - student)?)?.sum(1)?),
        Divergence::Backward => Ok((student.exp()? * (&student - teacher)?)?.sum(1)?),
    }
}
