//! What clients ask of the models.

use super::*;

#[tokio::test]
async fn a_generation_streams_its_start_its_blocks_and_its_end() {
    let (client, _) = shared().await;
    for variant in ["", "kjv", "addition"] {
        let outcome = generate(&client, request(variant, 20, 7))
            .await
            .expect("finished");
        let Outcome {
            started,
            steps,
            blocks,
            finished,
        } = &outcome;
        assert_eq!(
            (started.seed, started.generation, started.request_id > 0),
            (7, 1, true)
        );
        let expected: Vec<_> = (!variant.is_empty())
            .then(|| part(variant, Some(1.0)))
            .into_iter()
            .collect();
        assert_eq!(started.mix, expected);
        assert!(steps.is_empty(), "none were asked for");
        assert!(!blocks.is_empty() && blocks.len() <= 4);
        let tokens = outcome.tokens();
        assert_eq!(tokens.len(), finished.generated_tokens as usize);
        assert!(tokens.iter().all(|&token| token < 1023), "{tokens:?}");
        let length = finished.reason() == pb::FinishReason::Length;
        assert_eq!(length, tokens.len() == 20, "{finished:?}");
        assert!(length || finished.reason() == pb::FinishReason::Stop);
        assert!(
            (2..20).contains(&finished.prompt_tokens) && finished.compute_us > 0,
            "{finished:?}"
        );
        assert!((1..=32).contains(&finished.nfe), "{finished:?}");
    }
}

#[tokio::test]
async fn steps_are_sent_where_they_are_asked_for_and_reveal_the_text() {
    let (client, _) = shared().await;
    let wanted = pb::GenerateRequest {
        want_steps: true,
        ..request("holmes", 24, 3)
    };
    let outcome = generate(&client, wanted).await.expect("finished");
    let mut revealed: Vec<_> = outcome
        .steps
        .iter()
        .flat_map(|step| step.revealed.clone())
        .collect();
    assert!(outcome.steps.len() <= outcome.finished.nfe as usize);
    assert!(revealed.iter().any(|one| !one.text.is_empty()));
    revealed.sort_by_key(|one| one.position);
    let first = outcome.finished.prompt_tokens;
    let positions: Vec<u32> = revealed.iter().map(|one| one.position).collect();
    assert!(
        positions.windows(2).all(|pair| pair[0] < pair[1]),
        "{positions:?}"
    );
    for (index, token) in (first..).zip(outcome.tokens()) {
        let found = revealed.iter().find(|one| one.position == index);
        assert_eq!(found.map(|one| one.token), Some(token), "position {index}");
    }
    let plain = generate(&client, request("holmes", 24, 3))
        .await
        .expect("finished");
    assert_eq!(plain.text(), outcome.text());
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_in_any_company() {
    let (client, _) = shared().await;
    let alone = generate(&client, request("kjv", 32, 5))
        .await
        .expect("finished");
    let neighbours = (0..9).map(|seed| {
        let (client, variant) = (client.clone(), ["shakespeare", "quijote", ""][seed % 3]);
        tokio::spawn(async move {
            generate(&client, request(variant, 24, seed as u64))
                .await
                .expect("finished")
        })
    });
    let neighbours: Vec<_> = neighbours.collect();
    let together = generate(&client, request("kjv", 32, 5))
        .await
        .expect("finished");
    assert_eq!(
        (together.text(), together.tokens()),
        (alone.text(), alone.tokens())
    );
    for neighbour in neighbours {
        neighbour.await.expect("neighbour");
    }
    // A seed that the server draws is told, and makes the text again.
    let drawn = pb::GenerateRequest {
        seed: None,
        ..request("kjv", 32, 0)
    };
    let first = generate(&client, drawn).await.expect("finished");
    let again = generate(&client, request("kjv", 32, first.started.seed))
        .await
        .expect("finished");
    assert_eq!(again.tokens(), first.tokens());
}

#[tokio::test]
async fn mixes_are_weighed_and_the_order_does_not_matter() {
    let (client, _) = shared().await;
    let mixed = |parts: &[(&str, f32)]| pb::GenerateRequest {
        mix: parts
            .iter()
            .map(|(name, weight)| part(name, Some(*weight)))
            .collect(),
        sampling: Some(pb::Sampling {
            temperature: Some(1.0),
            nucleus_p: Some(1.0),
            predictor: Some(pb::Predictor {
                kind: pb::PredictorKind::FirstHitting.into(),
                ..pb::Predictor::default()
            }),
            ..pb::Sampling::default()
        }),
        ..request("", 24, 11)
    };
    let of = async |parts: &[(&str, f32)]| generate(&client, mixed(parts)).await.expect("finished");
    let both = of(&[("kjv", 0.75), ("holmes", 0.25)]).await;
    assert_eq!(
        both.started.mix,
        [part("kjv", Some(0.75)), part("holmes", Some(0.25))]
    );
    let turned = of(&[("holmes", 0.25), ("kjv", 0.75)]).await;
    assert_eq!(both.tokens(), turned.tokens());
    // Nothing of a variant is the base.
    assert_eq!(of(&[("kjv", 0.0)]).await.tokens(), of(&[]).await.tokens());
}

#[tokio::test]
async fn every_predictor_and_every_filter_is_understood() {
    let (client, _) = shared().await;
    let predictors = [
        (pb::PredictorKind::Unspecified, None, None),
        (pb::PredictorKind::FirstHitting, None, None),
        (pb::PredictorKind::Ancestral, Some(4), None),
        (pb::PredictorKind::Confidence, None, Some(0.5)),
    ];
    for (kind, steps, threshold) in predictors {
        let sampling = pb::Sampling {
            predictor: Some(pb::Predictor {
                kind: kind.into(),
                steps,
                threshold,
                ..pb::Predictor::default()
            }),
            block_size: Some(8),
            temperature: Some(0.5),
            nucleus_p: Some(0.9),
            top_k: Some(1),
        };
        let request = pb::GenerateRequest {
            sampling: Some(sampling),
            stop: vec!["\u{2603}".into()],
            stop_ids: vec![3],
            ..request("kjv", 16, 1)
        };
        let outcome = generate(&client, request).await.expect("finished");
        assert!(!outcome.tokens().contains(&3), "{kind:?}");
        assert!(
            steps.is_none() || outcome.finished.nfe <= 4 * 4,
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_score_is_finite_repeatable_and_says_what_it_took() {
    let (client, _) = shared().await;
    let score = async |mix: Vec<pb::VariantWeight>, seed| {
        let request = pb::ScoreRequest {
            mix,
            text: "And God said, Let there be light: and there was light.".into(),
            samples: Some(8),
            seed,
        };
        client
            .clone()
            .score(request)
            .await
            .expect("score")
            .into_inner()
    };
    let base = score(Vec::new(), Some(1)).await;
    assert!((0.0..12.0).contains(&base.nats_per_token), "{base:?}");
    assert!(
        base.tokens > 5 && base.nfe > 0 && base.generation == 1 && base.seed == 1,
        "{base:?}"
    );
    assert_eq!(score(Vec::new(), Some(1)).await, base);
    let drawn = score(vec![part("kjv", None)], None).await;
    assert_eq!(
        score(vec![part("kjv", Some(1.0))], Some(drawn.seed)).await,
        drawn
    );
    let mixed = score(
        vec![part("kjv", Some(0.5)), part("roman", Some(0.5))],
        Some(1),
    )
    .await;
    assert!(
        mixed.nats_per_token.is_finite() && mixed.nats_per_token != base.nats_per_token,
        "{mixed:?}"
    );
}

#[tokio::test]
async fn shares_of_a_block_take_as_many_evaluations_as_steps() {
    let (client, _) = shared().await;
    let with = |kind: pb::PredictorKind, threshold, seed| pb::GenerateRequest {
        sampling: Some(pb::Sampling {
            predictor: Some(pb::Predictor {
                kind: kind.into(),
                steps: Some(2),
                threshold,
                ..pb::Predictor::default()
            }),
            ..pb::Sampling::default()
        }),
        ..request("kjv", 32, seed)
    };
    use pb::PredictorKind::{Confidence, Sequential, Static};
    for (kind, threshold) in [
        (Static, None),
        (Sequential, None),
        (Confidence, Some(0.999)),
    ] {
        let made = generate(&client, with(kind, threshold, 3))
            .await
            .expect("text");
        let again = generate(&client, with(kind, threshold, 3))
            .await
            .expect("text");
        assert_eq!(made.tokens(), again.tokens(), "{kind:?}");
        // 32 tokens lie in five blocks of 8 at most.
        assert!(
            (1..=10).contains(&made.finished.nfe),
            "{kind:?}: {:?}",
            made.finished
        );
    }
}
