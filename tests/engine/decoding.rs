//! The families' decode traces from end to end: the golden weights, through the engine, many texts at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use choir::checkpoint::Checkpoint;
use choir::engine::{Engine, EngineConfig, Generation, Request, Sampling};
use choir::model::architecture::{Architecture, published};
use choir::model::tokenizer::Tokenizer;
use choir::model::{BaseWeights, HostNetwork};
use choir::ops::quantized::Quantisation;
use choir::sampler::{AbsorbingPredictor, Certainty};
use serde_json::{Value, json};
use std::borrow::Cow;

use super::fake::{config, drain};
use super::fixtures::traces::{Traces, count, until};
use super::requests::{events, outcome};

/// The golden network in blocks of this size, and a tokenizer that knows all of its rows.
fn generation(family: &Traces, block: Option<usize>) -> Generation {
    let text = std::fs::read(family.folder.join("config.json")).expect("config.json");
    let mut architecture = Architecture::read(&text).expect("a network");
    architecture.regime.block = block;
    let mask = family.cases["mask_token_id"].as_u64().expect("mask");
    architecture.vocabulary.mask = Some(mask as u32);
    let rows = architecture.vocabulary.rows;
    let checkpoint = Checkpoint::open(&family.folder).expect("a checkpoint");
    let checkpoint = architecture.unwrapped(checkpoint);
    let base = BaseWeights::load(architecture, Quantisation::F32, |spec| {
        let data = published::read(&checkpoint, spec)
            .map_err(|error| choir::model::Error::Unread(error.into()))?;
        Ok(Some(Cow::Owned(data)))
    });
    let network = HostNetwork::new(Arc::new(base.expect("weights")), &[], Vec::new());
    Generation {
        number: 1,
        denoiser: Arc::new(network.expect("a network")),
        tokenizer: Arc::new(tokenizer(rows)),
        defaults: Sampling::default(),
        variants: BTreeMap::new(),
        memory: Vec::new(),
    }
}

/// One piece for each row, and nothing that ends a text.
fn tokenizer(rows: usize) -> Tokenizer {
    let vocab: BTreeMap<String, usize> = (0..rows).map(|id| (format!("t{id}"), id)).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "t0", "vocab": vocab},
    });
    Tokenizer::from_bytes(file.to_string().as_bytes()).expect("a tokenizer")
}

fn greedy(predictor: AbsorbingPredictor) -> Sampling {
    Sampling {
        temperature: 0.0,
        certainty: Certainty::Drawn,
        ..Sampling::plain(predictor.into())
    }
}

/// A trace's request, and the text that the reference made of it, or how it begins.
type Expected = (String, Request, Text);

struct Text {
    tokens: Vec<u32>,
    /// What follows is not compared.
    open: bool,
}

impl Text {
    fn whole(tokens: Vec<u32>) -> Self {
        let open = false;
        Text { tokens, open }
    }
}

/// All at once, on a network in blocks of this size.
fn decode(family: &Traces, block: Option<usize>, traces: Vec<Expected>) {
    assert!(!traces.is_empty(), "no trace in blocks of {block:?}");
    let generation = generation(family, block);
    let config = EngineConfig {
        kv_bytes: 170 * generation.denoiser.page_bytes(config().page()),
        ..config()
    };
    let engine = Engine::start(config, generation).expect("engine");
    let submit = |(name, request, text): Expected| {
        let stream = engine
            .submit(request)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, stream, text)
    };
    let streams: Vec<_> = traces.into_iter().map(submit).collect();
    for (name, stream, text) in streams {
        let mut made = outcome(&events(stream)).1;
        if text.open {
            made.truncate(text.tokens.len());
        }
        assert_eq!(made, text.tokens, "{name}");
    }
    drain(&engine);
}

#[test]
fn sdar_writes_what_its_own_code_writes() {
    let family = Traces::load("sdar-tiny");
    let mut by_block: BTreeMap<usize, Vec<Expected>> = BTreeMap::new();
    for (name, trace) in family.cases["traces"].as_object().expect("traces") {
        let args = &trace["args"];
        // The references have no temperature 0: greedy traces rank by the distribution at the temperature they are given.
        let plain = args["temperature"]
            .as_f64()
            .is_none_or(|temperature| temperature == 1.0);
        if !name.starts_with("c.") || !plain {
            continue;
        }
        let (block, steps) = (
            count(args, "block_length"),
            count(args, "denoising_steps") as u32,
        );
        let threshold = args["confidence_threshold"]
            .as_f64()
            .or(args["threshold"].as_f64());
        let predictor = match (args["remasking_strategy"].as_str(), threshold) {
            (Some("sequential"), _) => AbsorbingPredictor::Sequential { steps },
            (Some("low_confidence_static"), _) | (None, None) => {
                AbsorbingPredictor::Static { steps }
            }
            (_, Some(threshold)) => AbsorbingPredictor::Confidence {
                threshold: threshold as f32,
                steps: Some(steps),
            },
            other => panic!("{name}: {other:?}"),
        };
        let (_, prompt) = family.shaped(&format!("{name}.prompt")).expect("prompt");
        let (_, made) = family.shaped(&format!("{name}.final")).expect("final");
        let stops = args["stopping_criteria_idx"]
            .as_array()
            .into_iter()
            .flatten();
        let stops: Vec<u32> = stops.map(|id| id.as_u64().expect("id") as u32).collect();
        let max_tokens = count(args, "gen_length");
        let text = &made[prompt.len()..];
        let text = until(&text[..max_tokens.min(text.len())], &stops).to_vec();
        let request = Request {
            stop_ids: stops,
            ..Request::new(prompt, max_tokens, greedy(predictor))
        };
        by_block
            .entry(block)
            .or_default()
            .push((name.clone(), request, Text::whole(text)));
    }
    for (block, traces) in by_block {
        decode(&family, Some(block), traces);
    }
}

#[test]
fn a2d_writes_what_its_own_code_writes() {
    let family = Traces::load("a2d-qwen3-tiny");
    let mut by_block: BTreeMap<Option<usize>, Vec<Expected>> = BTreeMap::new();
    for (name, trace) in family.cases["traces"].as_object().expect("traces") {
        if name.ends_with(".cfg") {
            continue;
        }
        let args = &trace["args"];
        let (block, max_tokens) = (count(args, "block_size"), count(args, "max_new_tokens"));
        let steps = count(args, "steps").div_ceil(max_tokens.div_ceil(block)) as u32;
        let whole = name.starts_with("c.mdlm");
        let (shape, made) = family.shaped(&format!("{name}.final")).expect("final");
        let length = shape[shape.len() - 1];
        let stops: Vec<u32> = trace["eos"]
            .as_u64()
            .into_iter()
            .map(|id| id as u32)
            .collect();
        for row in 0..made.len() / length {
            let prompt = family.shaped(&format!("{name}.prompt"));
            let prompt = prompt.or_else(|| family.shaped(&format!("{name}.prompt.{row}")));
            let (_, prompt) = prompt.expect("prompt");
            // Blocks: padded before the prompt to the longest one's whole blocks. Whole texts: padded behind the answer.
            let lengths = trace["prompt_lens"].as_array().expect("prompt_lens").iter();
            let longest = lengths.filter_map(Value::as_u64).max().expect("a length") as usize;
            let begin = if whole {
                prompt.len()
            } else {
                longest.next_multiple_of(block)
            };
            let text = &made[row * length + begin..(row + 1) * length];
            let text = until(&text[..max_tokens.min(text.len())], &stops).to_vec();
            let mut text = Text::whole(text);
            // Its block sampler takes every pad in the text for padding, one that it has made itself, too: hidden from all
            // blocks after it, and no position counted for it. To us it is a token, so there the two part.
            let pad = family.cases["pad_token_id"].as_u64().map(|id| id as u32);
            let made = text.tokens.iter().position(|&token| Some(token) == pad);
            if let Some(made) = made.filter(|_| !whole) {
                let end = (made + 1).next_multiple_of(block);
                text.open = end < text.tokens.len();
                text.tokens.truncate(end);
            }
            let sampling = Sampling {
                block_size: whole.then_some(block),
                ..greedy(AbsorbingPredictor::Static { steps })
            };
            let request = Request {
                stop_ids: stops.clone(),
                ..Request::new(prompt, max_tokens, sampling)
            };
            let expected = (format!("{name}, row {row}"), request, text);
            by_block
                .entry((!whole).then_some(block))
                .or_default()
                .push(expected);
        }
    }
    for (block, traces) in by_block {
        decode(&family, block, traces);
    }
}
