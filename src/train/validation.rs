//! The NELBO of held-out contexts, and the exact match of held-out answers.

use super::Error;
use super::data::Contexts;
use super::noisy::Noisy;
use super::objective::{Corruption, Objective, early};
use crate::model::{Differentiable, TrainBatch};
use crate::rng::{Key, Stream};

/// Contexts evaluated at once.
const BATCH: usize = 16;

/// The NELBO in nats per scored token, over the whole range of t; `seed` fixes every draw.
pub fn nelbo(
    model: &impl Differentiable,
    objective: &Objective,
    contexts: &Contexts,
    draws: usize,
    seed: u64,
) -> Result<f64, Error> {
    let mut stream = Stream::new(Key::derive(&[b"choir/validation/1", &seed.to_le_bytes()]));
    let mut times = Times(stream.uniform());
    let (mut sum, mut tokens) = (0.0, 0.0);
    for start in (0..contexts.count).step_by(BATCH) {
        let part = contexts.slice(start..(start + BATCH).min(contexts.count));
        for draw in 0..draws {
            let noisy = match objective.corruption {
                Corruption::Mask(mask) => {
                    count_and_mask(objective, &part, mask, (draw, draws), &mut stream)
                }
                Corruption::Uniform(states) => {
                    let units = part.tokens.len().div_ceil(objective.unit(part.length));
                    let times: Vec<f64> = times.by_ref().take(units).collect();
                    early(objective.uniform(&part, states, &times, &mut stream))
                }
            };
            sum += noisy.per_token(&noisy.losses(model)?) * noisy.tokens.max(1.0);
            tokens += noisy.tokens;
        }
    }
    Ok(sum / tokens.max(1.0))
}

/// Squares of numbers that fill (0, 1) evenly, whatever their number: multiples of the golden ratio, modulo 1.
struct Times(f64);

impl Iterator for Times {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        self.0 = (self.0 + 0.618_033_988_749_894_9).fract();
        Some(self.0 * self.0)
    }
}

/// The number n of masked tokens of a unit of m is drawn instead of t: integrating (1/t) Binomial(n; m, t) over
/// t in (0, 1) gives 1/n, so NELBO = sum over n of E[sum of -log p | n masked] / n, the same quantity with less
/// variance. The values of n of every unit are stratified over the draws.
fn count_and_mask(
    objective: &Objective,
    part: &Contexts,
    mask: u32,
    (draw, draws): (usize, usize),
    stream: &mut Stream,
) -> Noisy {
    let unit = objective.unit(part.length);
    let units = part.tokens.len().div_ceil(unit);
    let (mut chosen, mut weights, mut times) = (
        vec![false; part.tokens.len()],
        vec![0f32; units],
        vec![0.0; units],
    );
    for (index, weight) in weights.iter_mut().enumerate() {
        let span = index * unit..((index + 1) * unit).min(part.tokens.len());
        let mut maskable: Vec<usize> = span.filter(|&i| part.importance[i] > 0.0).collect();
        let count = maskable.len();
        if count == 0 {
            continue;
        }
        let quantile = (draw as f64 + stream.uniform()) / draws as f64;
        let masked = 1 + ((quantile * count as f64) as usize).min(count - 1);
        *weight = count as f32 / masked as f32;
        times[index] = masked as f64 / count as f64;
        for _ in 0..masked {
            chosen[maskable.swap_remove(stream.below(maskable.len()))] = true;
        }
    }
    objective.masked(
        part,
        mask,
        &chosen,
        |i| weights[i / unit] * part.importance[i],
        &times,
    )
}

/// How many contexts' scored tokens come back exactly when they are decoded greedily, block after
/// block, the surest position first. The end of a context that follows the answer is masked as well. An error for the
/// uniform process, which decides nothing for good.
pub fn exact_matches(
    model: &impl Differentiable,
    objective: &Objective,
    contexts: &Contexts,
) -> Result<usize, Error> {
    let Corruption::Mask(mask) = objective.corruption else {
        return Err(Error::Objective(
            "the uniform process has no mask to decode from",
        ));
    };
    let mut right = 0;
    for start in (0..contexts.count).step_by(4 * BATCH) {
        let part = contexts.slice(start..(start + 4 * BATCH).min(contexts.count));
        right += decode(model, objective, mask, &part)?;
    }
    Ok(right)
}

fn decode(
    model: &impl Differentiable,
    objective: &Objective,
    mask: u32,
    part: &Contexts,
) -> Result<usize, Error> {
    let (length, unit) = (part.length, objective.unit(part.length));
    let mut tokens = part.tokens.clone();
    let mut open = vec![false; tokens.len()];
    for context in 0..part.count {
        let span = context * length..(context + 1) * length;
        if let Some(first) = span.clone().find(|&i| part.importance[i] > 0.0) {
            open[first..span.end].fill(true);
            tokens[first..span.end].fill(mask);
        }
    }
    for block in (0..length).step_by(unit) {
        // Nothing later than the block is seen, and contexts that are done need no evaluation.
        let seen = (block + unit).min(length);
        loop {
            let rows_of =
                |context: usize| (block..seen).map(move |position| context * length + position);
            let (mut xt, mut within, mut rows) = (Vec::new(), Vec::new(), Vec::new());
            for context in 0..part.count {
                let wanted: Vec<usize> = rows_of(context).filter(|&row| open[row]).collect();
                if wanted.is_empty() {
                    continue;
                }
                let start = context * length;
                within.extend(wanted.iter().map(|row| (xt.len() + row - start) as u32));
                xt.extend_from_slice(&tokens[start..start + seen]);
                rows.extend(wanted);
            }
            if rows.is_empty() {
                break;
            }
            let batch = xt.len() / seen;
            let input = TrainBatch {
                batch,
                length: seen,
                block: objective.block,
                x0: objective.block.map(|_| xt.clone()),
                xt,
                sigma: vec![0.0; batch],
                soft: None,
                rows: within,
            };
            let logits: Vec<Vec<f32>> = model.forward(&input)?.to_vec2()?;
            let mut best: Vec<Option<(f32, usize, u32)>> = vec![None; part.count];
            for (&row, logits) in rows.iter().zip(&logits) {
                let (token, sure) = surest(logits, mask);
                let slot = &mut best[row / length];
                if slot.is_none_or(|(other, ..)| sure > other) {
                    *slot = Some((sure, row, token));
                }
                // Near-certain positions need no turn of their own.
                if sure > 0.98 {
                    tokens[row] = token;
                    open[row] = false;
                }
            }
            for (_, row, token) in best.into_iter().flatten() {
                tokens[row] = token;
                open[row] = false;
            }
        }
    }
    let matches = |context: usize| {
        (context * length..(context + 1) * length)
            .all(|i| part.importance[i] == 0.0 || tokens[i] == part.tokens[i])
    };
    Ok((0..part.count).filter(|&context| matches(context)).count())
}

/// The likeliest token and its probability, the mask ruled out.
fn surest(logits: &[f32], mask: u32) -> (u32, f32) {
    let mut best = (0u32, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 && token as u32 != mask {
            best = (token as u32, logit);
        }
    }
    let total: f32 = logits.iter().map(|&l| (l - best.1).exp()).sum();
    (best.0, 1.0 / total)
}
