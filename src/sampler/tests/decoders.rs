//! The block sampler as decoder families use it: shares of a block, answer windows, blocks counted from the prompt's end.

use proptest::prelude::*;

use super::block::{MASK, VOCAB, counted, counting, flat, run, seeded, settings, step};
use crate::sampler::{
    AbsorbingPredictor, BlockSettings, Certainty, Convention, Crossing, Evaluation, LastBlock,
    Progress, Reason, StepSplit,
};

fn with(predictor: AbsorbingPredictor) -> BlockSettings {
    BlockSettings {
        predictor,
        certainty: Certainty::Drawn,
        temperature: 0.0,
        ..settings()
    }
}

/// Surer of a token the further right it stands.
fn rising(_: &Evaluation, position: usize) -> Vec<f32> {
    let mut row = vec![0.0; VOCAB];
    row[position % 11] = 3.0 + position as f32 / 8.0;
    row
}

/// What each step revealed.
fn revealed(settings: BlockSettings, prompt: usize) -> Vec<Vec<usize>> {
    let mut sampler = seeded(settings, &counted(0, prompt), 1);
    let mut steps = Vec::new();
    while sampler.finished().is_none() {
        let (evaluation, _) = step(&mut sampler, rising);
        if !evaluation.rows.is_empty() {
            steps.push(
                sampler
                    .revealed()
                    .iter()
                    .map(|&(position, _)| position)
                    .collect(),
            );
        }
    }
    steps
}

#[test]
fn static_steps_take_the_surest_and_sequential_ones_the_leftmost() {
    let block = |predictor| BlockSettings {
        block_size: 8,
        max_tokens: 8,
        ..with(predictor)
    };
    let surest = revealed(block(AbsorbingPredictor::Static { steps: 3 }), 0);
    assert_eq!(surest, [vec![5, 6, 7], vec![2, 3, 4], vec![0, 1]]);
    let leftmost = revealed(block(AbsorbingPredictor::Sequential { steps: 3 }), 0);
    assert_eq!(leftmost, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    // Part of the prompt in the block: no more than there are masks.
    let rest = revealed(block(AbsorbingPredictor::Static { steps: 2 }), 6);
    assert_eq!(rest[0], [6, 7]);
}

#[test]
fn confidence_reveals_at_least_a_share() {
    let block = |threshold, steps| BlockSettings {
        block_size: 8,
        max_tokens: 8,
        ..with(AbsorbingPredictor::Confidence { threshold, steps })
    };
    // Position p is sure by 1 / (1 + 10 e^-(3 + p/8)): 0.67 to 0.83.
    assert_eq!(revealed(block(0.99, None), 0).len(), 8);
    assert_eq!(revealed(block(0.99, Some(4)), 0).len(), 4);
    let some = revealed(block(0.75, Some(8)), 0);
    assert_eq!((some[0].len() > 1, some[1].len()), (true, 1), "{some:?}");
}

#[test]
fn windows_are_whole_from_left_to_right_and_delivered_so() {
    let settings = BlockSettings {
        block_size: 13,
        window: Some(4),
        max_tokens: 10,
        ..with(AbsorbingPredictor::Static { steps: 2 })
    };
    let mut sampler = seeded(settings, &counted(0, 3), 1);
    let mut delivered = Vec::new();
    loop {
        let (evaluation, progress) = step(&mut sampler, counting);
        assert_eq!(
            (evaluation.first_position, evaluation.tokens.len()),
            (0, 13)
        );
        match progress {
            Progress::Continue => {}
            Progress::BlockDone => delivered.push(sampler.generated().len()),
            Progress::Finished(reason) => {
                assert_eq!(reason, Reason::Length);
                break;
            }
        }
    }
    assert_eq!(delivered, [4, 8]);
    assert_eq!(sampler.generated(), counted(3, 13));
}

#[test]
fn rows_without_text_are_never_drawn() {
    let settings = BlockSettings {
        tokens: 5,
        temperature: 1.0,
        ..with(AbsorbingPredictor::Static { steps: 4 })
    };
    // Sure of rows that stand for nothing.
    let network = |_: &Evaluation, position: usize| {
        let mut row = vec![0.0; VOCAB];
        row[5 + position % 6] = 60.0;
        row
    };
    let mut sampler = seeded(settings, &[], 3);
    run(&mut sampler, network);
    assert!(sampler.generated().iter().all(|&token| token < 5));
    assert_eq!(sampler.generated().len(), 10);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn invariants(
        seed: u64, block_size in 1usize..9, max_tokens in 1usize..30, prompt in 0usize..30, prefill_chunk in 1usize..20,
        steps in 1u32..12, kind in 0usize..4, window in prop::option::of(1usize..9), from_end: bool,
        stop in prop::option::of(0u32..11), cut: bool, rounded: bool, greedy: bool,
    ) {
        let predictor = [
            AbsorbingPredictor::Static { steps },
            AbsorbingPredictor::Sequential { steps },
            AbsorbingPredictor::Confidence { threshold: 0.3, steps: Some(steps) },
            AbsorbingPredictor::Confidence { threshold: 0.05, steps: None },
        ][kind];
        let whole = window.is_some();
        let block_size = if whole { prompt + max_tokens } else { block_size };
        let first_block = if from_end && !whole { prompt % block_size } else { 0 };
        let settings = BlockSettings {
            block_size, first_block, window, max_tokens, prefill_chunk,
            temperature: if greedy { 0.0 } else { 1.0 },
            stop_ids: stop.into_iter().collect(),
            convention: Convention {
                crossing: Crossing::Kept,
                share: if rounded { StepSplit::Rounded } else { StepSplit::Equal },
                last_block: if cut { LastBlock::Cut } else { LastBlock::Whole },
            },
            ..with(predictor)
        };
        let mut sampler = seeded(settings, &counted(0, prompt), seed);
        let (evaluations, reason) = run(&mut sampler, flat);
        let mut written = 0;
        for evaluation in &evaluations {
            prop_assert_eq!(evaluation.first_position, written);
            prop_assert!(written == 0 || (written - first_block).is_multiple_of(block_size));
            prop_assert!(evaluation.tokens[..evaluation.clean].iter().all(|&token| token != MASK));
            prop_assert!(evaluation.rows.iter().all(|&row| evaluation.tokens[row] == MASK));
            prop_assert!(!evaluation.rows.is_empty() || evaluation.clean == evaluation.tokens.len());
            written += evaluation.clean;
        }
        let text = sampler.generated();
        prop_assert!(text.iter().all(|&token| token < MASK && Some(token) != stop));
        prop_assert_eq!(reason == Reason::Length, text.len() == max_tokens);
        // A step reveals something.
        prop_assert!(sampler.nfe() as usize <= max_tokens + block_size);
    }
}
