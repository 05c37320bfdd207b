//! The block sampler's machine, driven by a scripted network.

use proptest::prelude::*;

use crate::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, Convention, Evaluation, LastBlock, MAX_STEPS,
    Progress, Reason, Sampler,
};

pub const VOCAB: usize = 12;
pub const MASK: u32 = 11;

pub fn settings() -> BlockSettings {
    BlockSettings {
        prefill_chunk: 8,
        ..BlockSettings::new(4, 10, AbsorbingPredictor::FirstHitting, MASK, VOCAB)
    }
}

/// A network sure of the token `position mod 11`, and surer still of the mask.
pub fn counting(_: &Evaluation, position: usize) -> Vec<f32> {
    let mut row = vec![0.0; VOCAB];
    row[position % 11] = 60.0;
    row[MASK as usize] = 90.0;
    row
}

pub fn flat(_: &Evaluation, _: usize) -> Vec<f32> {
    vec![0.0; VOCAB]
}

/// One evaluation and what became of it.
pub fn step(
    sampler: &mut Sampler,
    network: impl Fn(&Evaluation, usize) -> Vec<f32>,
) -> (Evaluation, Progress) {
    let evaluation = sampler.next().clone();
    let rows: Vec<Vec<f32>> = evaluation
        .rows
        .iter()
        .map(|row| network(&evaluation, evaluation.first_position + row))
        .collect();
    let progress = sampler.accept(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    (evaluation, progress)
}

pub fn run(
    sampler: &mut Sampler,
    network: impl Fn(&Evaluation, usize) -> Vec<f32>,
) -> (Vec<Evaluation>, Reason) {
    let mut evaluations = Vec::new();
    for _ in 0..10_000 {
        let (evaluation, progress) = step(sampler, &network);
        evaluations.push(evaluation);
        if let Progress::Finished(reason) = progress {
            return (evaluations, reason);
        }
    }
    panic!("the sampler does not finish");
}

fn start(settings: BlockSettings, prompt: &[u32]) -> Sampler {
    seeded(settings, prompt, 42)
}

pub fn seeded(settings: BlockSettings, prompt: &[u32], seed: u64) -> Sampler {
    Sampler::Block(BlockSampler::new(settings, prompt, seed).unwrap())
}

pub fn counted(from: usize, to: usize) -> Vec<u32> {
    (from..to).map(|position| position as u32 % 11).collect()
}

#[test]
fn first_hitting_asks_for_one_row_a_step() {
    let mut sampler = start(settings(), &[]);
    let (evaluations, reason) = run(&mut sampler, counting);
    assert_eq!(reason, Reason::Length);
    assert_eq!(sampler.generated(), counted(0, 10));
    assert!(
        evaluations
            .iter()
            .all(|evaluation| evaluation.rows.len() == 1 && evaluation.sigma == 0.0)
    );
    assert_eq!(
        (sampler.nfe() as usize, sampler.prefills()),
        (evaluations.len(), 0)
    );
    assert!(
        (10..=12).contains(&sampler.nfe()),
        "the last block may be left once its first two tokens are known"
    );
}

#[test]
fn a_finished_block_is_written_by_the_next_ones_first_step() {
    let (evaluations, _) = run(&mut start(settings(), &[]), counting);
    let written: Vec<_> = evaluations
        .iter()
        .filter(|e| e.clean > 0)
        .map(|e| (e.first_position, e.clean, e.tokens.len()))
        .collect();
    assert_eq!(
        written,
        [(0, 4, 8), (4, 4, 8)],
        "the last block is never written"
    );
    let fused = &evaluations[4];
    assert_eq!(fused.tokens, [&counted(0, 4)[..], &[MASK; 4]].concat());
    assert!(fused.rows[0] >= 4);
    let alone = &evaluations[5];
    assert_eq!(
        (alone.first_position, alone.clean, alone.tokens.len()),
        (4, 0, 4)
    );
}

#[test]
fn a_network_that_is_told_sigma_writes_blocks_apart() {
    let mut sampler = start(
        BlockSettings {
            time_conditioned: true,
            ..settings()
        },
        &[],
    );
    let (evaluations, _) = run(&mut sampler, counting);
    for evaluation in &evaluations {
        assert!(if evaluation.clean > 0 {
            evaluation.sigma == 0.0
        } else {
            evaluation.sigma > 0.0 && evaluation.sigma < 7.0
        });
        assert_eq!(evaluation.rows.is_empty(), evaluation.clean > 0);
    }
    let within_block: Vec<f32> = evaluations[..4]
        .iter()
        .map(|evaluation| evaluation.sigma)
        .collect();
    assert!(within_block.is_sorted_by(|a, b| a > b), "{within_block:?}");
    assert_eq!(sampler.prefills(), 2);
}

#[test]
fn prompts_of_every_length() {
    for length in 0..=27 {
        let prompt = counted(0, length);
        let mut sampler = start(settings(), &prompt);
        let (evaluations, _) = run(&mut sampler, counting);
        assert_eq!(
            sampler.generated(),
            counted(length, length + 10),
            "prompt of {length}"
        );
        let mut written = 0;
        for evaluation in &evaluations {
            assert_eq!(evaluation.first_position, written);
            assert!(evaluation.clean <= 8 && evaluation.clean % 4 == 0);
            written += evaluation.clean;
            let clean = evaluation.first_position
                ..length.min(evaluation.first_position + evaluation.tokens.len());
            assert!(
                clean
                    .clone()
                    .all(|position| evaluation.tokens[position - clean.start] == prompt[position])
            );
            assert_eq!(
                evaluation.rows.is_empty(),
                evaluation.clean == evaluation.tokens.len()
            );
        }
        assert_eq!(
            sampler.prefills() as usize,
            (length / 4 * 4).div_ceil(8).saturating_sub(1),
            "prompt of {length}"
        );
    }
}

#[test]
fn ancestral_steps_that_reveal_nothing_cost_nothing() {
    for (steps, most) in [(1, 1), (2, 2), (1000, 4), (MAX_STEPS, 4)] {
        let mut sampler = start(
            BlockSettings {
                predictor: AbsorbingPredictor::Ancestral { steps },
                max_tokens: 12,
                ..settings()
            },
            &[],
        );
        let (evaluations, _) = run(&mut sampler, counting);
        assert_eq!(sampler.generated(), counted(0, 12));
        assert!(
            evaluations
                .iter()
                .all(|evaluation| !evaluation.rows.is_empty())
        );
        assert!(
            sampler.nfe() <= 3 * most,
            "{} evaluations for {steps} steps",
            sampler.nfe()
        );
        assert_eq!(
            evaluations
                .iter()
                .map(|evaluation| evaluation.rows.len())
                .sum::<usize>(),
            12
        );
    }
}

#[test]
fn ancestral_reveal_times_are_uniform_over_the_grid() {
    // With alpha_t = 1 - t every position is revealed at each of the T steps with the same chance.
    let (steps, blocks) = (5u32, 2000);
    let settings = BlockSettings {
        predictor: AbsorbingPredictor::Ancestral { steps },
        block_size: 1,
        max_tokens: blocks,
        time_conditioned: true,
        ..settings()
    };
    let mut counts = [0.0; 5];
    let (evaluations, _) = run(&mut start(settings, &[]), flat);
    for evaluation in evaluations
        .iter()
        .filter(|evaluation| evaluation.clean == 0)
    {
        // sigma = -ln(1 - t) tells the time at which the row was asked for.
        let t = 1.0 - f64::from(-evaluation.sigma).exp();
        counts[((1.0 - t) * f64::from(steps)).round() as usize] += 1.0;
    }
    let expected = blocks as f64 / f64::from(steps);
    let statistic: f64 = counts
        .iter()
        .map(|count| (count - expected).powi(2) / expected)
        .sum();
    assert!(statistic < 18.47, "{counts:?}");
}

#[test]
fn first_hitting_chooses_positions_uniformly() {
    let mut counts = [0.0f64; 24];
    let sequences = 4800;
    for seed in 0..sequences {
        let mut sampler = seeded(
            BlockSettings {
                max_tokens: 4,
                ..settings()
            },
            &[],
            seed,
        );
        let (evaluations, _) = run(&mut sampler, flat);
        let order: Vec<usize> = evaluations
            .iter()
            .map(|evaluation| evaluation.rows[0])
            .collect();
        // The permutation's number in the factorial base.
        let digit = |at: usize| {
            order[at + 1..]
                .iter()
                .filter(|&&later| later < order[at])
                .count()
        };
        counts[digit(0) * 6 + digit(1) * 2 + digit(2)] += 1.0;
    }
    let expected = sequences as f64 / 24.0;
    let statistic: f64 = counts
        .iter()
        .map(|count| (count - expected).powi(2) / expected)
        .sum();
    assert!(
        statistic < 49.73,
        "chi-square with 23 degrees of freedom, 1e-3 level: {statistic}"
    );
}

#[test]
fn confidence_reveals_what_is_sure_and_always_something() {
    // Positions 1 and 2 of a block are sure from the start, the others once both are known, 3 before 0.
    let network = |evaluation: &Evaluation, position: usize| {
        let block = &evaluation.tokens[evaluation.tokens.len() - 4..];
        let sure = match position % 4 {
            1 | 2 => 9.0,
            3 => 1.0,
            _ if block[3] != MASK => 0.5,
            _ => 0.4,
        };
        let mut row = vec![0.0; VOCAB];
        row[position % 11] = sure;
        row[MASK as usize] = 20.0;
        row
    };
    let predictor = AbsorbingPredictor::Confidence {
        threshold: 0.9,
        steps: None,
    };
    let mut sampler = start(
        BlockSettings {
            predictor,
            temperature: 0.0,
            max_tokens: 8,
            ..settings()
        },
        &[],
    );
    let mut revealed = Vec::new();
    while sampler.finished().is_none() {
        let (evaluation, _) = step(&mut sampler, network);
        assert!(
            evaluation
                .rows
                .iter()
                .all(|&row| evaluation.tokens[row] == MASK)
        );
        revealed.push(sampler.revealed().to_vec());
    }
    let block = |start: usize| {
        let at = |position: usize| (start + position, (start + position) as u32 % 11);
        [vec![at(1), at(2)], vec![at(3)], vec![at(0)]]
    };
    assert_eq!(revealed, [block(0), block(4)].concat());
    assert_eq!(sampler.nfe(), 6);
}

#[test]
fn a_stop_token_ends_the_text_when_all_before_it_is_final() {
    for (stop, prompt, text) in [
        (6, 0, counted(0, 6)),
        (0, 0, vec![]),
        (3, 2, vec![2]),
        (1, 2, counted(2, 12)),
        (9, 9, vec![]),
    ] {
        let mut sampler = start(
            BlockSettings {
                stop_ids: vec![stop],
                ..settings()
            },
            &counted(0, prompt),
        );
        let (_, reason) = run(&mut sampler, counting);
        assert_eq!(sampler.generated(), text, "stop at {stop}");
        assert_eq!(
            reason,
            if text.len() < 10 {
                Reason::Stop
            } else {
                Reason::Length
            }
        );
        assert_eq!(sampler.finished(), Some(reason));
    }
}

#[test]
fn nothing_past_the_text_is_reported_or_waited_for() {
    let mut shortest = u32::MAX;
    for seed in 0..40 {
        let mut sampler = seeded(
            BlockSettings {
                max_tokens: 5,
                stop_ids: vec![9],
                ..settings()
            },
            &[],
            seed,
        );
        let mut seen = Vec::new();
        while sampler.finished().is_none() {
            step(&mut sampler, counting);
            seen.extend_from_slice(sampler.revealed());
        }
        seen.sort_unstable();
        assert_eq!(
            seen,
            (0..5)
                .map(|position| (position, position as u32))
                .collect::<Vec<_>>()
        );
        shortest = shortest.min(sampler.nfe());
    }
    assert_eq!(
        shortest, 5,
        "some sequence has its fifth token first in its block"
    );
}

#[test]
fn the_last_block_may_be_cut() {
    for (last_block, length) in [(LastBlock::Whole, 4), (LastBlock::Cut, 2)] {
        let (evaluations, _) = run(
            &mut start(
                BlockSettings {
                    convention: Convention {
                        last_block,
                        ..Convention::default()
                    },
                    ..settings()
                },
                &[],
            ),
            counting,
        );
        let last = evaluations.last().unwrap();
        assert_eq!((last.first_position + last.tokens.len()) - 8, length);
    }
}

#[test]
fn the_machine_is_patient() {
    let mut sampler = start(settings(), &[]);
    assert_eq!(
        sampler.accept(&[]),
        Progress::Continue,
        "nothing was asked for"
    );
    assert_eq!(sampler.next().clone(), sampler.next().clone());
    run(&mut sampler, counting);
    assert_eq!(sampler.accept(&[]), Progress::Finished(Reason::Length));
    assert_eq!(sampler.generated().len(), 10);
}

#[test]
fn text_depends_on_the_seed_and_not_on_neighbours() {
    let alone = |seed| {
        let mut sampler = seeded(settings(), &[1, 2], seed);
        run(&mut sampler, flat);
        sampler.generated().to_vec()
    };
    let mut pair = [5, 6].map(|seed| seeded(settings(), &[1, 2], seed));
    while pair.iter().any(|sampler| sampler.finished().is_none()) {
        for sampler in &mut pair {
            step(sampler, flat);
        }
    }
    assert_eq!(
        [alone(5), alone(6)],
        pair.map(|sampler| sampler.generated().to_vec())
    );
    assert_ne!(alone(5), alone(6));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn invariants(
        seed: u64, block_size in 1usize..9, max_tokens in 1usize..30, prompt in 0usize..30, prefill_chunk in 1usize..20,
        predictor in prop_oneof![
            Just(AbsorbingPredictor::FirstHitting),
            (1u32..20).prop_map(|steps| AbsorbingPredictor::Ancestral { steps }),
            (0.05f32..=1.0).prop_map(|threshold| AbsorbingPredictor::Confidence { threshold, steps: None }),
        ],
        stop in prop::option::of(0u32..11), cut: bool, nucleus_p in 0.05f32..=1.0,
    ) {
        let settings = BlockSettings {
            block_size, max_tokens, predictor, nucleus_p, prefill_chunk, stop_ids: stop.into_iter().collect(),
            convention: Convention {
                last_block: if cut { LastBlock::Cut } else { LastBlock::Whole }, ..Convention::default()
            }, ..settings()
        };
        let mut sampler = seeded(settings, &counted(0, prompt), seed);
        let (evaluations, reason) = run(&mut sampler, flat);
        let mut written = 0;
        for evaluation in &evaluations {
            prop_assert_eq!(evaluation.first_position, written);
            prop_assert_eq!(written % block_size, 0);
            prop_assert!(evaluation.tokens[..evaluation.clean].iter().all(|&token| token != MASK));
            prop_assert!(evaluation.rows.iter().all(|&row| evaluation.tokens[row] == MASK));
            prop_assert!(evaluation.rows.is_sorted_by(|a, b| a < b));
            prop_assert!(!evaluation.rows.is_empty() || evaluation.clean == evaluation.tokens.len());
            written += evaluation.clean;
        }
        let text = sampler.generated();
        prop_assert!(text.iter().all(|&token| token < MASK && Some(token) != stop));
        prop_assert_eq!(reason == Reason::Length, text.len() == max_tokens);
        prop_assert!(sampler.nfe() as usize <= (max_tokens / block_size + 2) * block_size);
    }
}
