//! What the block sampler makes: against samples of BD3-LM's own code, and against the law of the first block as enumerated
//! with the network. (The published ancestral sampler is defective at its last step, so ours has only its own law to meet.)

use crate::chi_square::{LEVEL, against_law, joint, marginal, two_samples};
use crate::drive::{evaluate, facts, network, reference, sample};
use crate::fixtures::{self, Case};
use choir::model::Denoiser;
use choir::sampler::{AbsorbingPredictor, BlockSampler, BlockSettings, Sampler};
use std::collections::HashMap;

const SEQUENCES: u64 = 5000;
const STEPS: usize = 8;

/// The token that begins every text.
fn begin() -> u32 {
    facts("bd3lm.json")["bos"].as_u64().expect("bos") as u32
}

/// Sequences that begin with the token that begins every text, that token included.
fn make(
    case: &Case,
    network: &dyn Denoiser,
    predictor: AbsorbingPredictor,
    length: usize,
) -> Vec<Vec<u32>> {
    let (vocab_size, mask_id) = (case.config.vocab_size, case.config.mask_id().expect("mask"));
    let first = begin();
    let block = case.config.block().expect("block");
    let settings = BlockSettings {
        time_conditioned: case.config.time_conditioned(),
        prefill_chunk: 32,
        ..BlockSettings::new(block, length - 1, predictor, mask_id, vocab_size)
    };
    let start = |seed| {
        Sampler::Block(BlockSampler::new(settings.clone(), &[first], seed).expect("settings"))
    };
    let mut made = sample(network, length, SEQUENCES, start);
    made.iter_mut().for_each(|tokens| tokens.insert(0, first));
    made
}

/// Which holes are revealed next, given the distribution at each masked one (empty elsewhere) and the steps taken.
type Choose<'a> = dyn FnMut(&[Vec<f64>], usize) -> Vec<usize> + 'a;

/// What the network makes of the first block: for each of its states (the tokens after the first one, with masks), the
/// distribution at each masked position.
struct Conditionals {
    /// Real tokens, the mask being the next id.
    vocab: usize,
    holes: usize,
    rows: HashMap<Vec<u32>, Vec<Vec<f64>>>,
}

impl Conditionals {
    fn new(case: &Case, network: &dyn Denoiser) -> Self {
        let (mask, first) = (case.config.mask_id().expect("mask"), begin());
        let (vocab, holes) = (mask as usize, case.config.block().expect("block") - 1);
        let state = |number: usize| -> Vec<u32> {
            (0..holes as u32)
                .map(|digit| (number / (vocab + 1).pow(digit) % (vocab + 1)) as u32)
                .collect()
        };
        let states: Vec<_> = (0..(vocab + 1).pow(holes as u32))
            .map(state)
            .filter(|s| s.contains(&mask))
            .collect();
        let mut rows = HashMap::new();
        for states in states.chunks(1000) {
            let sequence = |state: &Vec<u32>| {
                let tokens = [&[first], &state[..]].concat();
                let masked = (0..tokens.len()).filter(|&at| tokens[at] == mask).collect();
                (tokens, masked)
            };
            let sequences: Vec<(Vec<u32>, Vec<usize>)> = states.iter().map(sequence).collect();
            let logits = evaluate(network, &sequences, 0.0);
            let mut next = logits.data.chunks(logits.vocab);
            for (state, (_, masked)) in states.iter().zip(&sequences) {
                let mut of_state = vec![Vec::new(); holes];
                for at in masked {
                    of_state[at - 1] = softmax(&next.next().expect("row")[..vocab]);
                }
                rows.insert(state.clone(), of_state);
            }
        }
        Self { vocab, holes, rows }
    }

    /// The law of the block, [vocab; holes], where its positions are revealed in one of `orders`.
    fn law(&self, orders: &[(f64, Vec<Vec<usize>>)]) -> Vec<f64> {
        let mut law = vec![0.0; self.vocab.pow(self.holes as u32)];
        for (chance, order) in orders {
            self.spread(
                &mut vec![self.vocab as u32; self.holes],
                &mut |_, at| order[at].clone(),
                0,
                *chance,
                &mut law,
            );
        }
        law
    }

    /// Adds `chance` times the law of what follows from `state`, `choose` naming the positions revealed next.
    fn spread(
        &self,
        state: &mut Vec<u32>,
        choose: &mut Choose,
        step: usize,
        chance: f64,
        law: &mut [f64],
    ) {
        let Some(rows) = self.rows.get(state) else {
            law[state
                .iter()
                .fold(0, |index, &token| index * self.vocab + token as usize)] += chance;
            return;
        };
        let positions = choose(rows, step);
        let outcomes = self.vocab.pow(positions.len() as u32);
        for outcome in 0..outcomes {
            let (mut chance, mut digits) = (chance, outcome);
            for &position in &positions {
                state[position] = (digits % self.vocab) as u32;
                chance *= rows[position][digits % self.vocab];
                digits /= self.vocab;
            }
            self.spread(state, choose, step + 1, chance, law);
        }
        positions
            .iter()
            .for_each(|&position| state[position] = self.vocab as u32);
    }

    /// The law of one hole, or of the first two: [vocab] or [vocab, vocab].
    fn marginal(&self, law: &[f64], holes: &[usize]) -> Vec<f64> {
        let mut sums = vec![0.0; self.vocab.pow(holes.len() as u32)];
        for (index, chance) in law.iter().enumerate() {
            let token =
                |hole: usize| index / self.vocab.pow((self.holes - 1 - hole) as u32) % self.vocab;
            sums[holes
                .iter()
                .fold(0, |sum, &hole| sum * self.vocab + token(hole))] += chance;
        }
        sums
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit - top).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Every way in which `holes` positions may each be revealed at one of `steps` equally likely times, as orders with their
/// chances; with `distinct`, never two at once.
fn orders(holes: usize, steps: usize, distinct: bool) -> Vec<(f64, Vec<Vec<usize>>)> {
    let mut chances: HashMap<Vec<Vec<usize>>, f64> = HashMap::new();
    for outcome in 0..steps.pow(holes as u32) {
        let time = |hole: usize| outcome / steps.pow(hole as u32) % steps;
        let at = |step: usize| {
            (0..holes)
                .filter(|&hole| time(hole) == step)
                .collect::<Vec<usize>>()
        };
        let order: Vec<_> = (0..steps)
            .map(at)
            .filter(|revealed| !revealed.is_empty())
            .collect();
        if !distinct || order.len() == holes {
            *chances.entry(order).or_default() += 1.0;
        }
    }
    let total: f64 = chances.values().sum();
    chances
        .into_iter()
        .map(|(order, count)| (count / total, order))
        .collect()
}

/// Our samples' first block against a law: every position, and the first two together.
fn meets(conditionals: &Conditionals, law: &[f64], made: &[Vec<u32>], what: &str) {
    let vocab = conditionals.vocab;
    for hole in 0..conditionals.holes {
        let p = against_law(
            &marginal(made, hole + 1, vocab),
            &conditionals.marginal(law, &[hole]),
        );
        assert!(p > LEVEL, "{what}, position {}: p = {p}", hole + 1);
    }
    let p = against_law(
        &joint(made, [1, 2], vocab),
        &conditionals.marginal(law, &[0, 1]),
    );
    assert!(p > LEVEL, "{what}, positions 1 and 2: p = {p}");
}

#[test]
fn first_hitting_has_the_reference_law() {
    let case = Case::load("bd3lm-tiny");
    let network = network(&case);
    let theirs = reference("bd3lm.safetensors", "bd3lm.first_hitting.samples");
    let (length, vocab) = (theirs[0].len(), case.config.vocab_size);
    let ours = make(&case, &network, AbsorbingPredictor::FirstHitting, length);
    for position in 1..length {
        let p = two_samples(
            &marginal(&ours, position, vocab),
            &marginal(&theirs, position, vocab),
        );
        assert!(p > LEVEL, "position {position}: p = {p}");
        let pair = [position - 1, position];
        let p = two_samples(&joint(&ours, pair, vocab), &joint(&theirs, pair, vocab));
        assert!(p > LEVEL, "positions {pair:?}: p = {p}");
    }
}

#[test]
fn the_first_block_has_its_enumerated_law() {
    let case = Case::load("bd3lm-tiny");
    let block = case.config.block().expect("block");
    let states = |holes: usize| case.config.vocab_size.saturating_pow(holes as u32);
    if block < 3 || states(block - 1) > 1_000_000 {
        return; // No pair, or too many states to enumerate.
    }
    let network = network(&case);
    let conditionals = Conditionals::new(&case, &network);
    let first_hitting = conditionals.law(&orders(block - 1, block - 1, true));
    let golden = fixtures::read(&fixtures::folder("samples-stats").join("bd3lm.safetensors"));
    if let Some((_, theirs)) = golden.get("exact.first_hitting.joint12") {
        let ours = conditionals.marginal(&first_hitting, &[0, 1]);
        let worst = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(
            worst < 1e-7,
            "our enumeration differs from the reference's by {worst}"
        );
    }
    meets(
        &conditionals,
        &first_hitting,
        &make(&case, &network, AbsorbingPredictor::FirstHitting, block),
        "first-hitting",
    );

    let ancestral = conditionals.law(&orders(block - 1, STEPS, false));
    let predictor = AbsorbingPredictor::Ancestral {
        steps: STEPS as u32,
    };
    meets(
        &conditionals,
        &ancestral,
        &make(&case, &network, predictor, block),
        "ancestral",
    );

    // The threshold lies in the midst of the confidences at the start, so that some steps reveal one and some several.
    let best = |row: &Vec<f64>| row.iter().copied().fold(0.0, f64::max);
    let start = &conditionals.rows[&vec![conditionals.vocab as u32; block - 1]];
    let threshold = (start.iter().map(best).sum::<f64>() / start.len() as f64) as f32;
    let mut confident = vec![0.0; first_hitting.len()];
    let mut choose = |rows: &[Vec<f64>], _| {
        let masked: Vec<usize> = (0..rows.len())
            .filter(|&hole| !rows[hole].is_empty())
            .collect();
        let sure: Vec<usize> = masked
            .iter()
            .copied()
            .filter(|&hole| best(&rows[hole]) > f64::from(threshold))
            .collect();
        let surest = masked
            .iter()
            .copied()
            .max_by(|&a, &b| best(&rows[a]).total_cmp(&best(&rows[b])));
        if sure.is_empty() {
            surest.into_iter().collect()
        } else {
            sure
        }
    };
    conditionals.spread(
        &mut vec![conditionals.vocab as u32; block - 1],
        &mut choose,
        0,
        1.0,
        &mut confident,
    );
    let predictor = AbsorbingPredictor::Confidence {
        threshold,
        steps: None,
    };
    meets(
        &conditionals,
        &confident,
        &make(&case, &network, predictor, block),
        "confidence",
    );
}
