//! Fixed tokens anywhere, and blocks of the uniform process: both samplers under a scripted network.

use super::block;
use crate::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, NoiseRemoval, Progress, Reason, Sampler,
    UniformPredictor, UniformSampler, UniformSettings,
};

const BLOCK: usize = 4;

fn uniform(time_conditioned: bool) -> UniformSettings {
    UniformSettings {
        block_size: Some(BLOCK),
        max_tokens: 1,
        predictor: UniformPredictor {
            steps: 3,
            ..UniformPredictor::default()
        },
        temperature: 1.0,
        nucleus_p: 1.0,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: 7,
        time_conditioned,
        prefill_chunk: 2 * BLOCK,
    }
}

fn absorbing() -> BlockSettings {
    BlockSettings {
        block_size: BLOCK,
        predictor: AbsorbingPredictor::FirstHitting,
        ..block::settings()
    }
}

/// The token the network is sure of.
fn sure(position: usize) -> u32 {
    (position % 3) as u32
}

/// One step; checks that what is fixed is in view and that only blocks before the last are clean.
fn step(sampler: &mut Sampler, template: &[Option<u32>], vocab: usize) -> Progress {
    let evaluation = sampler.next().clone();
    for (index, token) in evaluation.tokens.iter().enumerate() {
        let position = evaluation.first_position + index;
        if let Some(Some(fixed)) = template.get(position) {
            assert_eq!(token, fixed, "position {position}");
            assert!(
                !evaluation.rows.contains(&index),
                "position {position} is fixed"
            );
        }
    }
    let row = |row: &usize| -> Vec<f32> {
        let wanted = sure(evaluation.first_position + row) as usize;
        (0..vocab)
            .map(|token| if token == wanted { 40.0 } else { 0.0 })
            .collect()
    };
    let rows: Vec<Vec<f32>> = evaluation.rows.iter().map(row).collect();
    sampler.accept(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Text at the end, by block, and why it ended.
fn run(sampler: &mut Sampler, template: &[Option<u32>], vocab: usize) -> (Vec<Vec<u32>>, Reason) {
    let (mut blocks, mut delivered) = (Vec::new(), 0);
    loop {
        let progress = step(sampler, template, vocab);
        let new = sampler.generated()[delivered..].to_vec();
        delivered += new.len();
        match progress {
            Progress::Continue => assert!(new.is_empty()),
            Progress::BlockDone => blocks.push(new),
            Progress::Finished(reason) => {
                blocks.push(new);
                return (blocks, reason);
            }
        }
    }
}

fn samplers(template: &[Option<u32>]) -> Vec<Sampler> {
    let mut samplers: Vec<Sampler> = [true, false]
        .map(|conditioned| UniformSampler::fill(uniform(conditioned), template, 5).unwrap())
        .map(Sampler::Uniform)
        .into();
    for predictor in [
        AbsorbingPredictor::FirstHitting,
        AbsorbingPredictor::Ancestral { steps: 3 },
        AbsorbingPredictor::Confidence {
            threshold: 0.9,
            steps: None,
        },
    ] {
        let settings = BlockSettings {
            predictor,
            ..absorbing()
        };
        samplers.push(Sampler::Block(
            BlockSampler::fill(settings, template, 5).unwrap(),
        ));
    }
    samplers
}

fn vocab(sampler: &Sampler) -> usize {
    match sampler {
        Sampler::Block(_) => block::VOCAB,
        Sampler::Uniform(_) => 7,
    }
}

#[test]
fn fixed_tokens_stay_in_their_places_and_whole_blocks_of_them_are_skipped() {
    let fixed = |token: u32, count| std::iter::repeat_n(Some(token), count);
    let holes = |count| std::iter::repeat_n(None, count);
    let template: Vec<Option<u32>> = fixed(5, 6)
        .chain(holes(1))
        .chain(fixed(4, 1)) // to position 8
        .chain(fixed(3, 8)) // two blocks without a hole
        .chain(holes(3))
        .chain(fixed(6, 6))
        .collect();
    let expected: Vec<u32> = (6..template.len())
        .map(|position| template[position].unwrap_or(sure(position)))
        .collect();
    for mut sampler in samplers(&template) {
        let vocab = vocab(&sampler);
        let (blocks, reason) = run(&mut sampler, &template, vocab);
        assert_eq!(
            (blocks.concat(), reason),
            (expected.clone(), Reason::Length)
        );
        // The hole's block and the skipped ones, then the rest at once: its last block has no hole.
        assert_eq!(blocks.iter().map(Vec::len).collect::<Vec<_>>(), [10, 9]);
        if let Sampler::Uniform(_) = sampler {
            assert_eq!(sampler.nfe(), 2 * 4, "noise removal counts");
        }
    }
}

#[test]
fn a_stop_token_that_is_given_does_not_end_the_text_and_one_that_is_made_does() {
    let template = [Some(2), None, Some(1), None, None, Some(5)];
    let settings = UniformSettings {
        stop_ids: vec![sure(4), 1],
        ..uniform(true)
    };
    let mut sampler = Sampler::Uniform(UniformSampler::fill(settings, &template, 1).unwrap());
    // Position 1 is sure to be 1, a stop token, before the given one.
    assert_eq!(
        run(&mut sampler, &template, 7),
        (vec![vec![]], Reason::Stop)
    );
    let template = [Some(2), Some(1), None, Some(1), None, Some(5)];
    let settings = UniformSettings {
        stop_ids: vec![1],
        ..uniform(true)
    };
    let mut sampler = Sampler::Uniform(UniformSampler::fill(settings, &template, 1).unwrap());
    assert_eq!(
        run(&mut sampler, &template, 7),
        (vec![vec![2, 1], vec![]], Reason::Stop)
    );
}

#[test]
fn blocks_of_the_uniform_process_see_clean_ones_at_no_noise() {
    for conditioned in [true, false] {
        let settings = UniformSettings {
            max_tokens: 9,
            predictor: UniformPredictor {
                noise_removal: NoiseRemoval::Ancestral,
                ..uniform(true).predictor
            },
            ..uniform(conditioned)
        };
        let prompt = [3u32; 18];
        let mut sampler = Sampler::Uniform(UniformSampler::new(settings, &prompt, 9).unwrap());
        let (mut evaluations, mut progress) = (Vec::new(), Progress::Continue);
        while !matches!(progress, Progress::Finished(_)) {
            let next = sampler.next();
            evaluations.push((
                next.first_position,
                next.clean,
                next.tokens.len(),
                next.rows.len(),
                next.sigma,
            ));
            progress = step(&mut sampler, &[], 7);
        }
        let shapes: Vec<_> = evaluations
            .iter()
            .map(|&(first, clean, all, rows, _)| (first, clean, all, rows))
            .collect();
        let steps = |first: usize, rows: usize, fused: usize| {
            let mut steps = vec![(first, 0, BLOCK, rows); 4];
            if fused > 0 {
                steps[0] = (first - fused, fused, BLOCK + fused, rows);
            }
            steps
        };
        let expected = match conditioned {
            true => [
                vec![(0, 8, 8, 0), (8, 8, 8, 0)],
                steps(16, 2, 0),
                vec![(16, 4, 4, 0)],
                steps(20, 4, 0),
                vec![(20, 4, 4, 0)],
                steps(24, 4, 0),
            ]
            .concat(),
            false => [
                vec![(0, 8, 8, 0)],
                steps(16, 2, 8),
                steps(20, 4, 4),
                steps(24, 4, 4),
            ]
            .concat(),
        };
        assert_eq!(shapes, expected);
        for (_, _, _, rows, sigma) in evaluations {
            assert_eq!(sigma > 0.0, conditioned && rows > 0);
        }
        assert_eq!(
            (sampler.nfe(), sampler.prefills()),
            (12, if conditioned { 4 } else { 1 })
        );
        assert_eq!(sampler.generated().len(), 9);
    }
}
