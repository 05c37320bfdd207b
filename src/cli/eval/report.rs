//! What was measured, as a table and as JSON.

use super::measure::{mean, recovered};
use crate::superposition::Sensitivities;
use serde::Serialize;
use std::fmt;

/// What weights make of what a variant is measured on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reached {
    pub nats_per_token: f64,
    /// Right answers, of a skill.
    pub right: Option<usize>,
}

/// One variant by itself.
#[derive(Debug, Serialize)]
pub struct Reference {
    pub name: String,
    /// Scored tokens.
    pub tokens: usize,
    pub base: Reached,
    pub fine_tuned: Reached,
}

/// One way to keep all variants.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub way: String,
    /// What all variants take in memory, and that in bits for each parameter of a matrix of each variant.
    pub bytes: u64,
    pub bits: f64,
    /// By variant: what is reached, and the share of the fine-tune's gain that is left.
    pub reached: Vec<Reached>,
    pub shares: Vec<Option<f64>>,
    pub mean: Option<f64>,
    pub worst: Option<f64>,
    /// Of the fine-tunes' right answers, all skills together, and of the skill that keeps least of its own.
    pub right: Option<f64>,
    pub worst_right: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub struct EvalReport {
    pub variants: Vec<Reference>,
    pub kept: Vec<Kept>,
    /// What noise costs by role, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivities: Option<Sensitivities>,
}

impl EvalReport {
    /// Adds a way to keep all variants, by what it reaches.
    pub fn add(&mut self, way: String, (bytes, bits): (u64, f64), reached: Vec<Reached>) {
        let each = || self.variants.iter().zip(&reached);
        let share = |(of, kept): (&Reference, &Reached)| {
            let [base, tuned] = [of.base, of.fine_tuned].map(|reached| reached.nats_per_token);
            recovered(base, tuned, kept.nats_per_token)
        };
        let shares: Vec<Option<f64>> = each().map(share).collect();
        let known = || shares.iter().flatten().copied();
        let right: Vec<_> = each()
            .filter_map(|(of, kept)| Some((kept.right?, of.fine_tuned.right?)))
            .collect();
        let sum = |part: fn(&(usize, usize)) -> usize| right.iter().map(part).sum::<usize>() as f64;
        let of = |kept: f64, all: f64| (all > 0.0).then(|| kept / all);
        let one = |&(kept, all): &(usize, usize)| of(kept as f64, all as f64);
        self.kept.push(Kept {
            way,
            bytes,
            bits,
            mean: mean(known()),
            worst: known().min_by(f64::total_cmp),
            right: of(sum(|one| one.0), sum(|one| one.1)),
            worst_right: right.iter().filter_map(one).min_by(f64::total_cmp),
            reached,
            shares,
        });
    }

    /// Adds what comes of two ways, of which each variant has the one that leaves it more.
    pub fn add_better(&mut self, way: String, [first, second]: [usize; 2]) {
        let [first, second] = [first, second].map(|index| self.kept[index].clone());
        let pairs = first.reached.iter().zip(&second.reached);
        let better = pairs.map(|(a, b)| match a.nats_per_token <= b.nats_per_token {
            true => *a,
            false => *b,
        });
        let reached = better.collect();
        let most = (first.bytes.max(second.bytes), first.bits.max(second.bits));
        self.add(way, most, reached);
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{s:.3}"));
        let answers = |reached: &Reached| match reached.right {
            Some(right) => format!(" ({right} right)"),
            None => String::new(),
        };
        for Reference {
            name,
            tokens,
            base,
            fine_tuned,
        } in &self.variants
        {
            writeln!(
                f,
                "{name}: {:.4} nats per token under the base{}, {:.4} tuned{} ({tokens} tokens)",
                base.nats_per_token,
                answers(base),
                fine_tuned.nats_per_token,
                answers(fine_tuned)
            )?;
        }
        writeln!(
            f,
            "\nshare of that gain which is left, by how they are kept:"
        )?;
        for kept in &self.kept {
            let mib = kept.bytes as f64 / f64::from(1 << 20);
            let (mean, worst, bits) = (number(kept.mean), number(kept.worst), kept.bits);
            let right = match (kept.right, kept.worst_right) {
                (Some(right), Some(worst)) => format!(
                    ", {:.1} % of right answers (worst {:.1} %)",
                    100.0 * right,
                    100.0 * worst
                ),
                _ => String::new(),
            };
            let each = self.variants.iter().zip(&kept.shares).zip(&kept.reached);
            let each = each.map(|((of, share), reached)| {
                format!("{} {}{}", of.name, number(*share), answers(reached))
            });
            writeln!(
                f,
                "{:30} {bits:5.2} bits a parameter, {mib:.2} MiB: mean {mean}, worst {worst}{right}\n  {}",
                kept.way,
                each.collect::<Vec<_>>().join(", ")
            )?;
        }
        if let Some(found) = &self.sensitivities {
            writeln!(f, "\nwhat noise costs by role, an MLP's mean 1:")?;
            for (role, number) in found.iter() {
                writeln!(f, "{role}: {number:.2}")?;
            }
        }
        Ok(())
    }
}
