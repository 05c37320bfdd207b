//! The bound of a text: its expectation, and its company in the engine.

use choir::engine::{EngineConfig, Error, Score, ScoreRequest};
use choir::model::kv_cache::KvCache;
use choir::model::{Denoiser, Grid, Mix, NetworkFacts, PageId, Process, Regime, Segment};
use choir::ops::UniformTerm;
use choir::sampler::schedule::LogLinear;
use choir::sampler::{ScoreSettings, Scorer};

use super::fake::*;
use super::requests::*;

fn settings(facts: &NetworkFacts, regime: Regime, given: usize, samples: usize) -> ScoreSettings {
    ScoreSettings {
        mask: facts.mask.filter(|_| regime.process == Process::Absorbing),
        tokens: facts.tokens,
        block: regime.block,
        context: facts.context,
        time_conditioned: regime.time_conditioned,
        given,
        samples,
        chunk: 16,
    }
}

fn wanted(text: &str, samples: usize, seed: u64) -> ScoreRequest {
    ScoreRequest {
        mix: Vec::new().into(),
        tokens: tokens(text),
        given: 0,
        samples,
        seed: Some(seed),
        deadline: None,
        client: None,
    }
}

fn score(engine: &choir::engine::EngineHandle, request: ScoreRequest) -> Score {
    engine
        .score(request)
        .expect("score")
        .blocking_recv()
        .expect("reply")
        .expect("score")
}

/// The bound without chance: for each block every set M of masked tokens, weighted by
/// integral of t^(|M|-1) (1-t)^(b-|M|) = 1 / (|M| C(b, |M|)).
fn exact(network: &Fake, text: &[u32]) -> f64 {
    let mask = network.facts().mask.expect("mask");
    let mut total = 0.0;
    for first in (0..text.len()).step_by(BLOCK) {
        let length = BLOCK.min(text.len() - first);
        for set in 1u32..1 << length {
            let rows: Vec<usize> = (0..length).filter(|row| set >> row & 1 == 1).collect();
            let mut tokens = text[..first + length].to_vec();
            rows.iter().for_each(|row| tokens[first + row] = mask);
            // The fake sees tokens, so the clean ones before the block may stand in the segment itself.
            let segment = Segment {
                mix: Mix::base(),
                block: Some(BLOCK),
                phase: 0,
                sigma: 0.0,
                tokens,
                first_position: 0,
                clean: first,
                rows: Vec::new(),
                draws: Vec::new(),
                pages: Vec::new(),
                pages_start: 0,
            };
            let cache = KvCache::new(network.facts().cache, 1, 0);
            let choose = (0..rows.len()).fold(1.0, |c, i| c * (length - i) as f64 / (i + 1) as f64);
            for &row in &rows {
                let logits =
                    network.logits(network.sees(&segment, first + row, &cache), first + row);
                let allowed = &logits[..mask as usize];
                let sum: f64 = allowed.iter().map(|&logit| f64::from(logit).exp()).sum();
                let nats = sum.ln() - f64::from(logits[text[first + row] as usize]);
                total += nats / (rows.len() as f64 * choose);
            }
        }
    }
    total / text.len() as f64
}

#[test]
fn the_estimate_converges_to_the_bound() {
    let text = "To be, or not"; // three blocks and one token
    let expected = exact(&Fake::new(1).letters(), &tokens(text));
    let engine = start(config(), Fake::new(1).letters());
    let mean = (0..8)
        .map(|seed| score(&engine, wanted(text, 1000, seed)).nats_per_token)
        .sum::<f64>()
        / 8.0;
    assert!(
        (mean / expected - 1.0).abs() < 0.01,
        "{mean} is not {expected}"
    );
}

#[test]
fn a_certain_text_costs_nothing() {
    let text = "certain beyond doubt";
    let engine = start(config(), Fake::new(2).script(&[], &tokens(text)));
    let certain = score(&engine, wanted(text, 4, 1));
    assert!(certain.nats_per_token.abs() < 1e-6, "{certain:?}");
    assert_eq!(
        (certain.tokens, certain.nfe, certain.generation),
        (20, 20, 1)
    );
}

#[test]
fn scores_and_texts_do_not_change_each_other() {
    let long =
        "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(3);
    for (page_tokens, step_tokens) in [(1, 8), (4, 64), (16, 512)] {
        let engine = start(
            EngineConfig {
                page_tokens,
                step_tokens,
                ..config()
            },
            Fake::new(3),
        );
        let requests = [
            wanted(&long, 3, 1),
            wanted("short", 5, 2),
            wanted(&long[7..90], 1, 3),
        ];
        let alone = requests
            .clone()
            .map(|request| score(&engine, request).nats_per_token);
        let texts: Vec<_> = (0..8)
            .map(|index| run(&engine, assorted(index)).1)
            .collect();
        let replies = requests.map(|request| engine.score(request).expect("score"));
        let streams: Vec<_> = (0..8)
            .map(|index| engine.submit(assorted(index)).expect("submit"))
            .collect();
        for (reply, alone) in replies.into_iter().zip(alone) {
            let together = reply
                .blocking_recv()
                .expect("reply")
                .expect("score")
                .nats_per_token;
            assert_eq!(together, alone);
        }
        for (stream, text) in streams.into_iter().zip(texts) {
            assert_eq!(outcome(&events(stream)).1, text);
        }
        drain(&engine);
        assert_eq!(engine.status().pages_used, 0);
    }
}

#[test]
fn a_score_is_the_same_without_an_engine() {
    let network = Fake::new(4);
    let text = "The quick brown fox jumps over the lazy dog, twice over.";
    let with_engine = score(&start(config(), Fake::new(4)), wanted(text, 6, 5)).nats_per_token;

    let mut cache = KvCache::new(network.facts().cache, 4, 64);
    let pages: Vec<PageId> = (0..64).map(PageId).collect();
    let settings = settings(network.facts(), network.facts().regime, 0, 6);
    let mut scorer = Scorer::new(settings, tokens(text), 5).expect("scorer");
    let alone = loop {
        let left = scorer.tokens_left();
        let segment = |evaluation: &choir::sampler::Evaluation| Segment {
            mix: Mix::base(),
            block: Some(BLOCK),
            phase: 0,
            sigma: evaluation.sigma,
            tokens: evaluation.tokens.clone(),
            first_position: evaluation.first_position,
            clean: evaluation.clean,
            rows: evaluation.rows.clone(),
            draws: Vec::new(),
            pages: pages.clone(),
            pages_start: 0,
        };
        let segments: Vec<Segment> = scorer.next(100).iter().map(segment).collect();
        let offered: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        let logits = network
            .forward(&choir::model::Batch { segments }, &mut cache)
            .expect("forward");
        let rows: Vec<&[f32]> = logits.data.chunks(VOCAB).collect();
        let nats = scorer.accept(&rows);
        assert_eq!(left - scorer.tokens_left(), offered);
        if let Some(nats) = nats {
            assert_eq!(scorer.tokens_left(), 0);
            break nats;
        }
    };
    assert!((alone - with_engine).abs() < 1e-9);
}

#[test]
fn a_dropped_score_stops_and_bad_ones_are_refused() {
    let (network, gate) = Fake::new(5).gated();
    let engine = start(config(), network);
    let reply = engine
        .score(wanted(&"long ".repeat(50), 100, 1))
        .expect("score");
    gate.wait();
    drop(reply);
    gate.pass();
    drain_behind(&engine, gate);
    assert_eq!(
        (engine.status().cancelled, engine.status().pages_used),
        (1, 0)
    );

    let engine = start(config(), Fake::new(5));
    let field = |request| match engine.score(request).expect_err("refused") {
        Error::BadField { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(wanted("", 1, 1)), "tokens");
    assert_eq!(field(wanted("x", 0, 1)), "samples");
    assert_eq!(field(wanted("x", 1 << 20, 1)), "samples");
    assert_eq!(
        field(ScoreRequest {
            tokens: vec![VOCAB as u32 - 1],
            ..wanted("x", 1, 1)
        }),
        "tokens"
    );
    assert_eq!(
        field(ScoreRequest {
            mix: vec![("a".into(), f32::INFINITY)].into(),
            ..wanted("x", 1, 1)
        }),
        "mix"
    );
}

fn drain_behind(engine: &choir::engine::EngineHandle, gate: Gate) {
    drop(gate);
    drain(engine);
}

/// Under a network that looks at nothing, the bound is an integral over the time of a sum over what may stand there.
#[test]
fn the_estimate_converges_to_the_bound_of_the_uniform_process() {
    let network = Fake::new(4);
    let states = network.facts().tokens;
    let logits: Vec<f32> = (0..VOCAB).map(|token| (token % 5) as f32).collect();
    let text = tokens("some text");
    const TIMES: usize = 100;
    let bound = |clean: u32| -> f64 {
        let at = |index: usize| {
            let u = (index as f64 + 0.5) / TIMES as f64;
            let t = u * u;
            let moved = LogLinear::UNIFORM.move_chance(t);
            let rate = |present| {
                let term = UniformTerm {
                    x0: clean,
                    xt: present,
                    move_chance: moved,
                    rate: LogLinear::UNIFORM.alpha_rate(),
                };
                term.nelbo(&logits[..states])
            };
            let anything: f64 = (0..states as u32).map(rate).sum::<f64>() / states as f64;
            2.0 * u * ((1.0 - moved) * rate(clean) + moved * anything)
        };
        (0..TIMES).map(at).sum::<f64>() / TIMES as f64
    };
    let exact = text[1..].iter().map(|&token| bound(token)).sum::<f64>() / (text.len() - 1) as f64;
    for (block, evaluations) in [(None, 1), (Some(BLOCK), 3)] {
        let regime = Regime {
            process: Process::Uniform,
            grid: Grid::Start,
            block,
            time_conditioned: true,
        };
        let samples = 4000;
        let settings = settings(network.facts(), regime, 1, samples);
        let mut scorer = Scorer::new(settings, text.clone(), 5).expect("scorer");
        let found = loop {
            let next = scorer.next(1000);
            assert!(
                next.iter()
                    .all(|one| (one.sigma > 0.0) != one.rows.is_empty())
            );
            let rows: usize = next.iter().map(|one| one.rows.len()).sum();
            if let Some(nats) = scorer.accept(&vec![&logits[..]; rows]) {
                break nats;
            }
        };
        assert_eq!(scorer.nfe() as usize, evaluations * samples);
        // Three standard deviations.
        assert!((found / exact - 1.0).abs() < 0.03, "{found} for {exact}");
    }
}
