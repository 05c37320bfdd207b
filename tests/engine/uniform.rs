//! The uniform process beside the absorbing one: whole sequences and blocks, variants of both in one batch, infilling.

use choir::engine::{
    Engine, EngineConfig, EngineHandle, Error, Event, Generation, Predictor, PredictorKind,
    PsiParams, Reason, Request, Sampling, SamplingParams, ScoreRequest, VariantFacts,
};
use choir::model::{Denoiser, Grid, Process, Regime, VariantId};
use choir::sampler::{self, Kappa, NoiseRemoval, Psi, TimeProfile, UniformPredictor};

use super::fake::*;
use super::requests::*;

fn tuned(id: u32, block: Option<usize>, time_conditioned: bool) -> VariantFacts {
    VariantFacts {
        id: VariantId(id),
        regime: Regime {
            process: Process::Uniform,
            grid: Grid::Start,
            block,
            time_conditioned,
        },
        defaults: Sampling {
            predictor: UniformPredictor {
                steps: 5,
                ..UniformPredictor::default()
            }
            .into(),
            ..Sampling::of(Process::Uniform)
        },
        tokenizer: None,
    }
}

/// The absorbing variants of every generation, and three of the uniform process.
pub fn both(network: impl Denoiser + 'static) -> Generation {
    let mut generation = generation(1, network);
    for (name, facts) in [
        ("whole", tuned(3, None, true)),
        ("blocks", tuned(4, Some(BLOCK), true)),
        ("untold", tuned(5, Some(2 * BLOCK), false)),
    ] {
        generation.variants.insert(name.into(), facts);
    }
    generation
}

fn serve(config: EngineConfig) -> EngineHandle {
    Engine::start(config, both(Fake::new(21).letters())).expect("engine")
}

fn predictor(index: usize) -> UniformPredictor {
    let psi = [
        Psi::ANCESTRAL,
        Psi {
            profile: TimeProfile::Pause { time: 0.5 },
            high_fraction: 0.3,
            middle_fraction: 0.4,
            middle: Kappa::Constant(0.3),
            ..Psi::ANCESTRAL
        },
    ];
    UniformPredictor {
        steps: 1 + 3 * index as u32 % 7,
        psi: psi[index % 2],
        noise_removal: [NoiseRemoval::Greedy, NoiseRemoval::Ancestral][index / 2 % 2],
        ..UniformPredictor::default()
    }
}

/// A request of the uniform process for every third index, absorbing ones between; holes in every other.
pub fn mixed(index: usize) -> Request {
    let mut request = assorted(index);
    let name = ["whole", "blocks", "untold"][index / 2 % 3];
    if index.is_multiple_of(2) {
        request.mix = vec![(name.into(), 1.0)].into();
        request.sampling.predictor = predictor(index).into();
        if name == "whole" {
            request.prompt.truncate(9);
            request.max_tokens = request.max_tokens.min(12);
        }
    }
    if index % 4 > 1 {
        let suffix = tokens(" the end").into_iter().map(Some);
        request.after = suffix.chain([None, Some(33)]).collect();
    }
    request
}

#[test]
fn the_same_tokens_alone_and_in_a_batch_of_both_processes() {
    let alone: Vec<_> = {
        let engine = serve(config());
        (0..24).map(|index| run(&engine, mixed(index)).1).collect()
    };
    for (threads, step_tokens, page_tokens) in [(1, 512, 4), (2, 512, 3), (1, 40, 16), (2, 40, 4)] {
        let engine = serve(EngineConfig {
            threads,
            step_tokens,
            page_tokens,
            ..config()
        });
        let streams: Vec<_> = (0..24)
            .map(|index| engine.submit(mixed(index)).expect("submit"))
            .collect();
        for (index, stream) in streams.into_iter().enumerate() {
            assert_eq!(
                outcome(&events(stream)).1,
                alone[index],
                "request {index}, {threads} threads"
            );
        }
        drain(&engine);
        assert_eq!((engine.status().pages_used, engine.status().failed), (0, 0));
    }
}

#[test]
fn whole_sequences_come_at_once_and_blocks_as_they_are_made() {
    let engine = serve(config());
    for (name, block) in [("whole", 26), ("blocks", BLOCK), ("untold", 2 * BLOCK)] {
        let request = Request {
            mix: vec![(name.into(), 1.0)].into(),
            sampling: defaults(&engine, &[(name, 1.0)]),
            steps_wanted: true,
            ..request("ab", 24, 3)
        };
        let events = events(engine.submit(request).expect("submit"));
        let blocks = 26_usize.div_ceil(block);
        let count = |which: fn(&Event) -> bool| events.iter().filter(|event| which(event)).count();
        assert_eq!(
            count(|event| matches!(event, Event::Block { .. })),
            blocks,
            "{name}"
        );
        assert!(count(|event| matches!(event, Event::Step { .. })) > blocks);
        let (text, tokens, summary) = outcome(&events);
        assert_eq!((tokens.len(), summary.reason), (24, Reason::Length));
        assert_eq!(
            summary.nfe as usize,
            blocks * 6,
            "five steps and noise removal"
        );
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase()), "{text}");
    }
}

#[test]
fn blocks_have_no_length_limit_and_slide_over_the_window() {
    let engine = serve(config());
    let long = |name: &str| Request {
        mix: vec![(name.into(), 1.0)].into(),
        sampling: Sampling {
            predictor: predictor(1).into(),
            ..Sampling::of(Process::Uniform)
        },
        ..request(&"x".repeat(100), 150, 3)
    };
    assert_eq!(run(&engine, long("blocks")).1.len(), 150);
    assert_eq!(run(&engine, long("untold")).1.len(), 150);
    let error = engine.submit(long("whole")).expect_err("refused");
    assert!(
        matches!(
            error,
            Error::BadField {
                field: "max_tokens",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn fixed_tokens_keep_their_places_under_both_processes() {
    let engine = serve(config());
    let after: Vec<Option<u32>> = tokens("XYZ")
        .into_iter()
        .map(Some)
        .chain([None; 5])
        .chain(tokens("END").into_iter().map(Some))
        .collect();
    for name in ["a", "whole", "blocks", "untold"] {
        let mix = vec![(name.to_owned(), 1.0)];
        let request = Request {
            sampling: defaults(&engine, &[(name, 1.0)]),
            mix: mix.into(),
            after: after.clone(),
            steps_wanted: true,
            ..request("pq", 3, 8)
        };
        let events = events(engine.submit(request).expect("submit"));
        let (text, tokens, summary) = outcome(&events);
        assert_eq!((tokens.len(), summary.prompt_tokens), (14, 2), "{name}");
        assert_eq!((&text[3..6], &text[11..]), ("XYZ", "END"), "{name}: {text}");
        for event in &events {
            let Event::Step { positions } = event else {
                continue;
            };
            assert!(
                positions
                    .iter()
                    .all(|one| matches!(one.position, 2..=4 | 8..=12)),
                "{name}"
            );
        }
    }
}

#[test]
fn text_after_a_hole_is_seen_as_far_as_it_reaches() {
    let engine = serve(config());
    let mut made = Vec::new();
    for (name, near, far) in [
        ("a", true, false),
        ("blocks", true, false),
        ("whole", true, true),
    ] {
        let mix = vec![(name.to_owned(), 1.0)];
        let mut filled = |after: &str| {
            let request = Request {
                sampling: defaults(&engine, &[(name, 1.0)]),
                mix: mix.clone().into(),
                after: tokens(after).into_iter().map(Some).collect(),
                ..request("pq", 1, 8)
            };
            run(&engine, request).1[0]
        };
        // One hole, at position 2: 3 ends its block, 4 does not belong to it.
        let differs = |texts: [&str; 6], filled: &mut dyn FnMut(&str) -> u32| {
            let tokens = texts.map(filled);
            tokens.iter().any(|token| *token != tokens[0])
        };
        assert_eq!(
            differs(["ax", "bx", "cx", "dx", "ex", "fx"], &mut filled),
            near,
            "{name}"
        );
        assert_eq!(
            differs(["xa", "xb", "xc", "xd", "xe", "xf"], &mut filled),
            far,
            "{name}"
        );
        made.push(filled("ax"));
    }
}

#[test]
fn the_end_of_text_cuts_the_output_and_says_so() {
    let script = |text: &str| {
        tokens(text)
            .into_iter()
            .chain([END_OF_TEXT])
            .collect::<Vec<u32>>()
    };
    let engine = Engine::start(
        config(),
        both(Fake::new(22).script(&tokens("pq"), &script("rst"))),
    )
    .expect("engine");
    for name in ["whole", "blocks", "untold"] {
        let mix = vec![(name.to_owned(), 1.0)];
        let request = Request {
            sampling: defaults(&engine, &[(name, 1.0)]),
            mix: mix.into(),
            ..request("pq", 20, 4)
        };
        let (text, _, summary) = run(&engine, request);
        assert_eq!(
            (&text[..], summary.reason, summary.generated_tokens),
            ("rst", Reason::Stop, 3)
        );
    }
}

#[test]
fn a_uniform_base_is_served_as_well() {
    let engine = start(config(), Fake::new(11).uniform());
    let defaults = defaults(&engine, &[]);
    assert_eq!(defaults, Sampling::of(Process::Uniform));
    let request = Request {
        sampling: defaults,
        ..request("ab", 9, 1)
    };
    assert_eq!(run(&engine, request).1.len(), 9);
    let score = ScoreRequest {
        mix: Vec::new().into(),
        tokens: tokens("some text"),
        given: 1,
        samples: 3,
        seed: Some(1),
        deadline: None,
        client: None,
    };
    let score = engine
        .score(score)
        .expect("score")
        .blocking_recv()
        .expect("reply")
        .expect("score");
    assert!(
        score.nats_per_token.is_finite() && score.nfe == 3,
        "{score:?}"
    );
}

#[test]
fn what_does_not_fit_the_process_is_named() {
    let engine = serve(config());
    let refused = |name: &str, change: &dyn Fn(&mut Request)| {
        let mix = vec![(name.to_owned(), 1.0)];
        let mut request = Request {
            sampling: defaults(&engine, &[(name, 1.0)]),
            mix: mix.into(),
            ..request("ab", 4, 1)
        };
        change(&mut request);
        match engine.submit(request).expect_err("refused") {
            Error::BadField { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    let with = |name: &str, predictor: Predictor| {
        refused(name, &|request| request.sampling.predictor = predictor)
    };
    let default = UniformPredictor::default;
    for absorbing in [
        sampler::AbsorbingPredictor::FirstHitting,
        sampler::AbsorbingPredictor::Ancestral { steps: 4 },
    ] {
        assert_eq!(with("whole", absorbing.into()), "predictor");
    }
    assert_eq!(with("a", default().into()), "predictor");
    for name in ["whole", "blocks"] {
        for steps in [0, 8193, u32::MAX] {
            assert_eq!(
                with(name, UniformPredictor { steps, ..default() }.into()),
                "steps"
            );
        }
        for eps in [f64::NAN, 0.0, 0.6] {
            assert_eq!(
                with(name, UniformPredictor { eps, ..default() }.into()),
                "eps"
            );
        }
        let psi = |psi| with(name, UniformPredictor { psi, ..default() }.into());
        for bad in [f64::NAN, -0.1, 1.1] {
            let high = Kappa::MaxCapped { eta: bad };
            assert_eq!(
                psi(Psi {
                    high,
                    ..Psi::ANCESTRAL
                }),
                "kappa_high"
            );
            let profile = TimeProfile::Pause { time: bad };
            assert_eq!(
                psi(Psi {
                    profile,
                    ..Psi::ANCESTRAL
                }),
                "profile_time"
            );
        }
        let mask = VOCAB as u32 - 1;
        assert_eq!(refused(name, &|r| r.prompt = vec![mask]), "prompt");
        for token in [mask, u32::MAX] {
            assert_eq!(refused(name, &|r| r.after = vec![Some(token)]), "template");
        }
        assert_eq!(refused(name, &|r| r.stop_ids = vec![mask]), "stop_ids");
        assert_eq!(
            refused(name, &|r| r.sampling.block_size = Some(3)),
            "block_size"
        );
    }
    assert_eq!(
        refused("a", &|r| r.after = vec![Some(VOCAB as u32 - 1)]),
        "template"
    );
    assert_eq!(
        refused("whole", &|r| r.after = vec![Some(7); WINDOW - 5]),
        "template"
    );
    let holes = |r: &mut Request| (r.prompt, r.after) = (Vec::new(), vec![None; 3]);
    assert_eq!(refused("whole", &holes), "template");
    assert_eq!(refused("blocks", &|r| r.max_tokens = 0), "max_tokens");
    assert_eq!(
        refused("blocks", &|r| r.after = vec![None; 253]),
        "max_tokens"
    );
    for other in ["a", "whole", "untold"] {
        assert_eq!(
            refused("blocks", &|r| {
                r.mix = vec![("blocks".into(), 1.0), (other.into(), 0.5)].into()
            }),
            "mix"
        );
    }
}

#[test]
fn choices_are_laid_over_the_defaults() {
    let uniform = Sampling::of(Process::Uniform);
    let field = |choice: SamplingParams, defaults: &Sampling| {
        let refused = choice.over(defaults.clone()).expect_err("refused");
        refused.field()
    };
    let kind = |kind| SamplingParams {
        kind: Some(kind),
        ..SamplingParams::default()
    };
    let eta = Kappa::MaxRescale { eta: 0.1 };
    let psi = PsiParams {
        middle: Some(eta),
        ..PsiParams::default()
    };
    let chosen = SamplingParams {
        steps: Some(9),
        noise_removal: Some(NoiseRemoval::Ancestral),
        psi,
        ..SamplingParams::default()
    };
    let expected = UniformPredictor {
        steps: 9,
        noise_removal: NoiseRemoval::Ancestral,
        psi: Psi {
            middle: eta,
            ..Psi::ANCESTRAL
        },
        ..UniformPredictor::default()
    };
    let sampling = chosen.over(uniform.clone()).expect("chosen");
    assert_eq!(sampling.predictor, expected.into());
    let back = kind(PredictorKind::Ancestral)
        .over(sampling)
        .expect("ancestral");
    assert_eq!(
        back.predictor,
        UniformPredictor {
            psi: Psi::ANCESTRAL,
            ..expected
        }
        .into()
    );
    let absorbing = Sampling::default();
    let steps = SamplingParams {
        steps: Some(9),
        ..SamplingParams::default()
    };
    let ancestral = sampler::AbsorbingPredictor::Ancestral { steps: 9 };
    assert_eq!(
        steps.over(absorbing.clone()).expect("steps").predictor,
        ancestral.into()
    );
    assert_eq!(
        field(kind(PredictorKind::FirstHitting), &uniform),
        "predictor"
    );
    assert_eq!(
        field(kind(PredictorKind::Confidence), &uniform),
        "predictor"
    );
    assert_eq!(field(kind(PredictorKind::Psi), &absorbing), "predictor");
    assert_eq!(field(kind(PredictorKind::Ancestral), &absorbing), "steps");
    assert_eq!(
        field(
            SamplingParams {
                psi,
                ..kind(PredictorKind::Ancestral)
            },
            &uniform
        ),
        "psi"
    );
    let threshold = Some(0.5);
    assert_eq!(
        field(
            SamplingParams {
                threshold,
                ..SamplingParams::default()
            },
            &uniform
        ),
        "threshold"
    );
    let eps = Some(0.5);
    assert_eq!(
        field(
            SamplingParams {
                eps,
                ..SamplingParams::default()
            },
            &absorbing
        ),
        "eps"
    );
}
