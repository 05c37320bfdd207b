//! Decode traces of the families' own code, replayed: from the tokens and certainties that were recorded at every step, the
//! state machines must reveal the same positions, and end with the same text.

use choir::ops::categorical::{Certainty, Draw, DrawKind, Drawn, Filter, FilterWorkspace};
use choir::rng::Noise;
use choir::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, Convention, Crossing, Progress, Sampler,
};

use crate::fixtures::traces::{Traces, count, until};

/// What a sampler asked for and was told in one step.
struct Recorded<'a> {
    tokens: &'a [f64],
    certainties: &'a [f64],
    /// Position of the first of both.
    first: usize,
    /// Logits of the same positions, where they were recorded.
    logits: Option<&'a [f64]>,
}

fn settings(
    family: &Traces,
    block: usize,
    max_tokens: usize,
    predictor: AbsorbingPredictor,
) -> BlockSettings {
    let (mask, vocab) = (family.number("mask_token_id"), family.number("vocab_size"));
    BlockSettings {
        temperature: 0.0,
        convention: Convention::of(family.cases["family"].as_str().expect("family")),
        ..BlockSettings::new(block, max_tokens, predictor, mask as u32, vocab)
    }
}

/// One step with what was recorded; the positions that it revealed.
fn step(sampler: &mut Sampler, recorded: &Recorded) -> (Vec<usize>, Progress) {
    while sampler.next().rows.is_empty() {
        sampler.take(&[]); // the prompt
    }
    let first = sampler.next().first_position;
    let rows = sampler.next().rows.clone();
    let drawn: Vec<Drawn> = rows
        .iter()
        .zip(sampler.draws())
        .map(|(row, draw)| {
            let at = first + row - recorded.first;
            let told = Drawn {
                token: recorded.tokens[at] as u32,
                certainty: recorded.certainties[at],
            };
            if let Some(logits) = recorded.logits {
                let vocab = logits.len() / recorded.tokens.len();
                let row: Vec<f32> = logits[at * vocab..][..vocab]
                    .iter()
                    .map(|&x| x as f32)
                    .collect();
                let ours = draw.apply(&row, &mut FilterWorkspace::default());
                assert_eq!(ours.token, told.token, "at {}", first + rows[0]);
                if matches!(draw.kind, DrawKind::Sure(_)) {
                    // The reference counts the share of the mask, which it could draw; ours never does, and leaves it out: here up to 0.02.
                    let with_mask = Draw {
                        filter: Filter {
                            forbidden: None,
                            ..draw.filter
                        },
                        ..draw
                    };
                    let ours = with_mask.apply(&row, &mut FilterWorkspace::default());
                    let off = (ours.certainty - told.certainty).abs();
                    assert!(
                        off < 1e-5,
                        "certainty {} for {}",
                        ours.certainty,
                        told.certainty
                    );
                }
            }
            told
        })
        .collect();
    let progress = sampler.take(&drawn);
    let revealed = sampler.revealed().iter().map(|&(position, _)| position);
    (revealed.collect(), progress)
}

#[test]
fn sdar_reveals_as_its_own_code_does() {
    let family = Traces::load("sdar-tiny");
    for (name, trace) in family.traces("c.") {
        let args = &trace["args"];
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
        let prompt = family.ids(&format!("{name}.prompt"));
        let max_tokens = count(args, "gen_length");
        let stops = args["stopping_criteria_idx"]
            .as_array()
            .into_iter()
            .flatten();
        let stops: Vec<u32> = stops.map(|id| id.as_u64().expect("id") as u32).collect();
        let settings = BlockSettings {
            certainty: Certainty::Drawn, // greedily; at temperature 1 the same as Filtered
            stop_ids: stops.clone(),
            ..settings(&family, block, max_tokens, predictor)
        };
        let mut sampler = Sampler::Block(BlockSampler::new(settings, &prompt, 0).expect(name));
        let forwards = trace["forwards"].as_array().expect("forwards");
        let logits = family
            .tensors
            .get(&format!("{name}.logits"))
            .map(|(shape, _)| shape[0]);
        let (mut progress, mut end) = (Progress::Continue, prompt.len() + max_tokens);
        for (at, forward) in forwards.iter().enumerate() {
            if forward["kind"] != "denoise" {
                continue;
            }
            let recorded = Recorded {
                tokens: family.row(&format!("{name}.x0"), at),
                certainties: family.row(&format!("{name}.confidence"), at),
                first: count(forward, "start"),
                logits: logits
                    .map(|many| family.row(&format!("{name}.logits"), at + many - forwards.len())),
            };
            let (revealed, now) = step(&mut sampler, &recorded);
            let theirs = forward["revealed"].as_array().expect("revealed");
            let mut theirs: Vec<usize> = theirs
                .iter()
                .map(|position| position.as_u64().expect("position") as usize)
                .collect();
            // Theirs goes on past a stop token to the block's end; ours tells of nothing from it on.
            for &position in &theirs {
                let token = recorded.tokens[position - recorded.first] as u32;
                if stops.contains(&token) {
                    end = end.min(position);
                }
            }
            theirs.retain(|&position| position < end);
            progress = now;
            match now {
                // Nothing past the stop counts.
                Progress::Finished(_) => {
                    assert!(theirs.starts_with(&revealed) || !stops.is_empty())
                }
                _ => assert_eq!(revealed, theirs, "{name}, forward {at}"),
            }
            if let Progress::Finished(_) = now {
                break;
            }
        }
        assert!(
            matches!(progress, Progress::Finished(_)),
            "{name}: {progress:?}"
        );
        let text = &family.ids(&format!("{name}.final"))[prompt.len()..];
        let text = until(&text[..max_tokens.min(text.len())], &stops);
        assert_eq!(sampler.generated(), text, "{name}");
    }
}

#[test]
fn a2d_reveals_as_its_own_code_does() {
    let family = Traces::load("a2d-qwen3-tiny");
    let traces = [family.traces("c.bd3lm"), family.traces("c.mdlm")].concat();
    for (name, trace) in traces
        .into_iter()
        .filter(|(name, _)| !name.ends_with(".cfg"))
    {
        let args = &trace["args"];
        let (block, max_tokens) = (count(args, "block_size"), count(args, "max_new_tokens"));
        let blocks = max_tokens.div_ceil(block);
        let steps = count(args, "steps").div_ceil(blocks) as u32;
        let prompt = family.ids(&format!("{name}.prompt"));
        let whole = name.starts_with("c.mdlm");
        // Pads before the prompt make it whole blocks.
        let pads = if whole {
            0
        } else {
            (block - prompt.len() % block) % block
        };
        let stops: Vec<u32> = trace["eos"]
            .as_u64()
            .into_iter()
            .map(|id| id as u32)
            .collect();
        let predictor = AbsorbingPredictor::Static { steps };
        let settings = BlockSettings {
            certainty: Certainty::Drawn,
            stop_ids: stops.clone(),
            ..match whole {
                true => BlockSettings {
                    window: Some(block),
                    ..settings(&family, prompt.len() + max_tokens, max_tokens, predictor)
                },
                false => BlockSettings {
                    first_block: prompt.len() % block,
                    ..settings(&family, block, max_tokens, predictor)
                },
            }
        };
        let mut sampler = Sampler::Block(BlockSampler::new(settings, &prompt, 0).expect(name));
        let states = format!("{name}.states");
        let mut progress = Progress::Continue;
        for at in 0..count(trace, "denoise_forwards") {
            let (before, after) = (family.row(&states, at), family.row(&states, at + 1));
            // What was recorded begins with the block, or with the text where that is one block. -1: not there yet.
            let padded = pads + prompt.len();
            let there = after.iter().filter(|&&token| token != -1.0).count();
            let first = match whole {
                true => 0,
                false => padded + (there - padded - 1) / block * block - pads,
            };
            let recorded = Recorded {
                tokens: family.row(&format!("{name}.x0"), at),
                certainties: family.row(&format!("{name}.confidence"), at),
                first,
                logits: None,
            };
            let (revealed, now) = step(&mut sampler, &recorded);
            let mask = family.number("mask_token_id") as f64;
            let changed = |&position: &usize| {
                let unknown = [mask, -1.0].contains(&before[pads + position]);
                unknown && ![mask, -1.0].contains(&after[pads + position])
            };
            // Theirs goes on past a stop token to the block's end; ours tells of nothing from it on.
            let stop = |&position: &usize| stops.contains(&(after[pads + position] as u32));
            let positions = prompt.len()..after.len() - pads;
            let end = positions.clone().find(stop).unwrap_or(positions.end);
            let theirs: Vec<usize> = (prompt.len()..end).filter(changed).collect();
            progress = now;
            match now {
                Progress::Finished(_) if !stops.is_empty() => {}
                _ => assert_eq!(revealed, theirs, "{name}, step {at}"),
            }
            if let Progress::Finished(_) = now {
                break;
            }
        }
        assert!(
            matches!(progress, Progress::Finished(_)),
            "{name}: {progress:?}"
        );
        let text = &family.ids(&format!("{name}.final"))[pads + prompt.len()..];
        assert_eq!(
            sampler.generated(),
            until(&text[..max_tokens.min(text.len())], &stops),
            "{name}"
        );
    }
}

#[test]
fn sdar_filters_and_certainties_are_its_own() {
    let family = Traces::load("sdar-tiny");
    let (shape, logits) = &family.tensors["d.logits"];
    let vocab = shape[1];
    let mut workspace = FilterWorkspace::default();
    for case in family.cases["d_cases"].as_array().expect("d_cases") {
        let index = count(case, "index");
        let number = |name: &str| case[name].as_f64().expect(name) as f32;
        let filter = Filter {
            temperature: number("temperature"),
            top_k: Some(count(case, "top_k")).filter(|&k| k > 0),
            nucleus_p: number("top_p"),
            crossing: Convention::of("sdar").crossing,
            forbidden: None, // the reference draws the mask, too
        };
        assert_eq!(filter.crossing, Crossing::Kept);
        let column = |name: &str, row: usize| family.row(&format!("d.{index}.{name}"), row)[0];
        for row in 0..shape[0] {
            let logits: Vec<f32> = logits[row * vocab..][..vocab]
                .iter()
                .map(|&x| x as f32)
                .collect();
            let distribution = filter.distribution(&logits, &mut workspace);
            let expected = family.row(&format!("d.{index}.probs"), row);
            for (token, &probability) in expected.iter().enumerate() {
                let ours = distribution.probability(token as u32);
                assert!(
                    (ours - probability).abs() < 1e-5,
                    "d.{index} row {row} token {token}: {ours}"
                );
            }
            let token = column("token", row) as u32;
            let filtered = distribution.probability(token);
            assert!(
                (filtered - column("confidence_filtered", row)).abs() < 1e-5,
                "d.{index} row {row}"
            );
            let draw = |temperature, certainty| Draw {
                filter: Filter {
                    temperature,
                    ..filter
                },
                tokens: vocab,
                noise: Noise::new(0),
                step: 1,
                position: 0,
                kind: DrawKind::Sure(certainty),
            };
            if filter.temperature == 1.0 {
                // The recorded token was drawn at random: seldom the best one.
                let plain = filter.plain(&logits, &mut workspace, Some(token));
                assert!(
                    (plain - column("confidence_unfiltered", row)).abs() < 1e-5,
                    "d.{index} row {row}"
                );
                let best = draw(0.0, Certainty::Drawn).apply(&logits, &mut workspace);
                let plain = filter.plain(&logits, &mut workspace, Some(best.token));
                assert_eq!(best.certainty, plain, "d.{index} row {row}");
            }
            let drawn =
                draw(filter.temperature, Certainty::Filtered).apply(&logits, &mut workspace);
            let expected = expected[drawn.token as usize];
            assert!(
                (drawn.certainty - expected).abs() < 1e-5,
                "d.{index} row {row}: {drawn:?}"
            );
        }
    }
}
