//! The uniform process's NELBO of each row of logits, and its gradient.

use super::math;
use super::slice;
use crate::error::{Error, Result};
use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

/// One position of a text that the uniform process has noised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UniformTerm {
    /// The true token.
    pub x0: u32,
    /// The noisy one.
    pub xt: u32,
    /// The chance that noise has replaced it, 1 - alpha, in (0, 1): small ones keep their digits so.
    pub move_chance: f64,
    /// d alpha / d t, negative.
    pub rate: f64,
}

impl UniformTerm {
    /// [`uniform_nelbo`] of one row, of which `logits` [tokens] are the vocabulary's.
    pub fn nelbo(&self, logits: &[f32]) -> f64 {
        let mut p = logits.to_vec();
        math::softmax(&mut p);
        Row::new(&p, self).loss(&p)
    }
}

fn check(logits: &Tensor, tokens: usize, terms: &[UniformTerm]) -> Result<()> {
    let (rows, width) = logits.dims2()?;
    if terms.len() != rows || !(1..=width).contains(&tokens) {
        return Err(Error::Logits {
            tokens,
            logits: (rows, width),
            other: vec![terms.len()],
        });
    }
    match terms
        .iter()
        .find(|term| term.x0.max(term.xt) as usize >= tokens)
    {
        Some(term) => Err(Error::Token {
            token: term.x0.max(term.xt),
            vocab: tokens,
        }),
        None => Ok(()),
    }
}

/// The continuous-time NELBO's integrand at each row, in nats: its mean over t uniform in (0, 1) and x_t given x_0 bounds
/// -ln p(x_0). logits [rows, width], of which the first `tokens` columns are the vocabulary -> [rows].
///
/// With x̄ = V alpha x + 1 - alpha, the Rao-Blackwellised form of Duo (arXiv 2506.10892, its `nll_per_token`):
/// -alpha' / (V alpha) [V/x̄θ(x_t) - V/x̄(x_t) + sum over j of x̄(j)/x̄(x_t) ln (x̄θ(x_t) x̄(j) / (x̄θ(j) x̄(x_t)))].
pub fn uniform_nelbo(logits: &Tensor, tokens: usize, terms: &[UniformTerm]) -> Result<Vec<f32>> {
    check(logits, tokens, terms)?;
    let (input, width) = (slice::f32(logits)?, logits.dim(1)?);
    let rows = input.par_chunks(width).zip(terms);
    let losses = rows.map_init(
        || vec![0f32; tokens],
        |p, (row, term)| {
            p.copy_from_slice(&row[..tokens]);
            math::softmax(p);
            Row::new(p, term).loss(p) as f32
        },
    );
    Ok(losses.collect())
}

/// [`uniform_nelbo`], and the gradient [rows, width] of the sum over rows of weight * NELBO.
pub fn uniform_nelbo_backward(
    logits: &Tensor,
    tokens: usize,
    terms: &[UniformTerm],
    weights: &[f32],
) -> Result<(Vec<f32>, Tensor)> {
    check(logits, tokens, terms)?;
    if weights.len() != terms.len() {
        return Err(Error::PerRow {
            what: "weights",
            found: weights.len(),
            rows: terms.len(),
        });
    }
    let (rows, width) = logits.dims2()?;
    let mut out = slice::f32(logits)?.to_vec();
    let jobs = out.par_chunks_mut(width).zip(terms).zip(weights);
    let losses = jobs.map(|((row, term), &weight)| {
        let (p, rest) = row.split_at_mut(tokens);
        rest.fill(0.0);
        math::softmax(p);
        let row = Row::new(p, term);
        let loss = row.loss(p);
        row.slope(p, f64::from(weight));
        loss as f32
    });
    let losses = losses.collect();
    Ok((losses, slice::tensor(out, rows, width)?))
}

/// What of a row's loss does not run over the vocabulary.
struct Row<'a> {
    term: &'a UniformTerm,
    /// V alpha and 1 - alpha: x̄ = own x + rest.
    own: f64,
    rest: f64,
    /// x̄θ at x_t and at x_0.
    at_xt: f64,
    at_x0: f64,
    /// How much each token j other than x_0 counts: x̄(j) / x̄(x_t).
    share: f64,
}

impl<'a> Row<'a> {
    fn new(p: &[f32], term: &'a UniformTerm) -> Self {
        let (own, rest) = (p.len() as f64 * (1.0 - term.move_chance), term.move_chance);
        let at = |token: u32| own * f64::from(p[token as usize]) + rest;
        let share = if term.x0 == term.xt {
            rest / (own + rest)
        } else {
            1.0
        };
        Self {
            term,
            own,
            rest,
            at_xt: at(term.xt),
            at_x0: at(term.x0),
            share,
        }
    }

    fn loss(&self, p: &[f32]) -> f64 {
        let vocab = p.len() as f64;
        // Few logarithms: a product of eight factors of at most V and at least 1 - alpha stays within f64.
        let product = |chunk: &[f32]| {
            chunk
                .iter()
                .map(|&p| self.own * f64::from(p) + self.rest)
                .product::<f64>()
        };
        let logs: f64 = p.chunks(8).map(|chunk| product(chunk).ln()).sum();
        let others = vocab * self.at_xt.ln() - logs;
        // ln (x̄(not x_0) / x̄(x_0)).
        let true_share = (self.rest / (self.own + self.rest)).ln();
        let (true_xt, relative_entropy) = if self.term.x0 == self.term.xt {
            let entropy = self.share * (others + (vocab - 1.0) * true_share);
            (self.own + self.rest, entropy)
        } else {
            let more = self.own / self.rest;
            let entropy =
                others + more * (self.at_xt / self.at_x0).ln() - (1.0 + more) * true_share;
            (self.rest, entropy)
        };
        -self.term.rate / self.own * (vocab / self.at_xt - vocab / true_xt + relative_entropy)
    }

    /// Replaces x̂0 by the gradient of weight * loss with respect to the logits.
    fn slope(&self, p: &mut [f32], weight: f64) {
        let (vocab, same) = (p.len() as f64, self.term.x0 == self.term.xt);
        let more = if same { 0.0 } else { self.own / self.rest };
        let (xt, x0) = (self.term.xt as usize, self.term.x0 as usize);
        // p(j) dL/dp(j), up to a factor: every token's part, and what x_t and x_0 have beyond it.
        let beyond_xt =
            f64::from(p[xt]) * (vocab / self.at_xt - self.share * vocab - more) / self.at_xt;
        let beyond_x0 = f64::from(p[x0]) * more / self.at_x0;
        let (own, rest, share) = (self.own as f32, self.rest as f32, self.share as f32);
        let part = |p: f32| share * p / (own * p + rest);
        let mut lanes = [0f32; 8];
        for chunk in p.chunks(8) {
            for (lane, &p) in lanes.iter_mut().zip(chunk) {
                *lane += part(p);
            }
        }
        let total = (f64::from(lanes.iter().sum::<f32>()) + beyond_xt + beyond_x0) as f32;
        let factor = weight * self.term.rate;
        p.iter_mut()
            .for_each(|p| *p = factor as f32 * (part(*p) - *p * total));
        p[xt] += (factor * beyond_xt) as f32;
        p[x0] += (factor * beyond_x0) as f32;
    }
}

/// The slow twin, in f32 or f64.
pub fn uniform_nelbo_slow(logits: &Tensor, tokens: usize, terms: &[UniformTerm]) -> Result<Tensor> {
    let (device, vocab) = (logits.device(), tokens as f64);
    let column = |value: &dyn Fn(&UniformTerm) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = terms.iter().map(value).collect();
        let rows = values.len();
        Ok(Tensor::from_vec(values, (rows, 1), &Device::Cpu)?
            .to_dtype(logits.dtype())?
            .to_device(device)?)
    };
    let index = |token: &dyn Fn(&UniformTerm) -> u32| -> Result<Tensor> {
        Ok(Tensor::from_vec(
            terms.iter().map(token).collect(),
            (terms.len(), 1),
            device,
        )?)
    };
    let logits = logits.narrow(1, 0, tokens)?;
    let p = logits
        .broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?)?
        .exp()?;
    let (own, rest) = (
        column(&|t| vocab * (1.0 - t.move_chance))?,
        column(&|t| t.move_chance)?,
    );
    let bar = p.broadcast_mul(&own)?.broadcast_add(&rest)?;
    // x̄ of the truth is `rest` everywhere but at x_0, where it is `own + rest`.
    let true_xt = column(&|t| {
        if t.x0 == t.xt {
            vocab * (1.0 - t.move_chance) + t.move_chance
        } else {
            t.move_chance
        }
    })?;
    let true_x0 = (&own + &rest)?;
    let (bar_xt, bar_x0) = (
        bar.gather(&index(&|t| t.xt)?, 1)?,
        bar.gather(&index(&|t| t.x0)?, 1)?,
    );
    let scaled = |truth: &Tensor, bar: &Tensor| -> Result<Tensor> {
        let ratio = truth.broadcast_div(&true_xt)?;
        let log = bar_xt
            .log()?
            .broadcast_sub(&bar.log()?)?
            .broadcast_add(&ratio.log()?)?;
        Ok(log.broadcast_mul(&ratio)?)
    };
    let everywhere = scaled(&rest, &bar)?.sum_keepdim(1)?;
    let entropy = ((everywhere - scaled(&rest, &bar_x0)?)? + scaled(&true_x0, &bar_x0)?)?;
    let inverse = ((bar_xt.recip()? - true_xt.recip()?)? * vocab)?;
    Ok(
        ((inverse + entropy)? * column(&|t| -t.rate / (vocab * (1.0 - t.move_chance)))?)?
            .squeeze(1)?,
    )
}
