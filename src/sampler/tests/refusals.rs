//! Settings that the block sampler refuses, by field.

use super::block::{MASK, VOCAB, settings};
use crate::sampler::{AbsorbingPredictor, BlockSampler, BlockSettings, Error, MAX_STEPS};

fn refused(change: impl FnOnce(&mut BlockSettings), prompt: &[u32]) -> Error {
    let mut settings = settings();
    change(&mut settings);
    BlockSampler::new(settings, prompt, 0).unwrap_err()
}

fn field(change: impl FnOnce(&mut BlockSettings)) -> &'static str {
    refused(change, &[1]).field()
}

#[test]
fn bad_settings_are_named() {
    for temperature in [f32::NAN, -0.1, 100.5, f32::INFINITY] {
        assert_eq!(
            field(|settings| settings.temperature = temperature),
            "temperature"
        );
    }
    for share in [f32::NAN, 0.0, -1.0, 1.01, f32::INFINITY] {
        assert_eq!(field(|settings| settings.nucleus_p = share), "nucleus_p");
        let predictor = AbsorbingPredictor::Confidence {
            threshold: share,
            steps: None,
        };
        assert_eq!(
            field(|settings| settings.predictor = predictor),
            "threshold"
        );
    }
    for steps in [0, MAX_STEPS + 1] {
        let predictor = AbsorbingPredictor::Ancestral { steps };
        assert_eq!(field(|settings| settings.predictor = predictor), "steps");
    }
    for max_tokens in [0, 1 << 31, usize::MAX] {
        assert_eq!(
            field(|settings| settings.max_tokens = max_tokens),
            "max_tokens"
        );
    }
    for block_size in [0, usize::MAX] {
        assert_eq!(
            field(|settings| settings.block_size = block_size),
            "block_size"
        );
    }
    assert_eq!(field(|settings| settings.top_k = Some(0)), "top_k");
    assert_eq!(
        field(|settings| settings.prefill_chunk = 0),
        "prefill_chunk"
    );
    assert_eq!(
        refused(|settings| settings.vocab_size = 1, &[]).field(),
        "vocab_size"
    );
    assert_eq!(field(|settings| settings.mask_id = 12), "mask_id");
    assert_eq!(
        field(|settings| settings.stop_ids = vec![3, 12]),
        "stop_ids"
    );
}

#[test]
fn bad_prompts_are_named_by_token() {
    let unknown = Error::UnknownToken {
        field: "prompt",
        index: 1,
        token: 12,
        vocab_size: VOCAB,
    };
    assert_eq!(refused(|_| {}, &[0, 12]), unknown);
    let mask = Error::Mask {
        field: "prompt",
        index: 2,
    };
    assert_eq!(refused(|_| {}, &[0, 1, MASK]), mask);
}

#[test]
fn errors_name_the_field_once_and_say_what_it_may_be() {
    let told = |change: fn(&mut BlockSettings)| refused(change, &[1]).to_string();
    assert_eq!(
        told(|s| s.top_k = Some(0)),
        "top_k: it is 0, but must be at least 1"
    );
    assert_eq!(
        told(|s| s.temperature = 200.0),
        "temperature: it is 200, but must be within 0 and 100"
    );
    assert_eq!(
        told(|s| s.nucleus_p = 0.0),
        "nucleus_p: it is 0, but must be above 0 and at most 1"
    );
}
