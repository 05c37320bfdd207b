//! A variant of the uniform process over the wire, beside absorbing ones; texts to fill in.

use super::*;
use choir::catalog::defaults::{process_to_store, to_store};
use choir::engine::Sampling;
use choir::model::{Grid, Process, Regime};
use choir::pb::piece::Piece;
use choir::rng::{Key, Stream};
use choir::sampler::UniformPredictor;
use choir::superposition::{Remarks, pack_with};

/// The base compiled in, moved a little, as a packed delta that says what it was tuned for.
fn uniform(block: Option<usize>) -> Vec<u8> {
    let base = BaseSource::Embedded.tensors().expect("base");
    let mut tuned = base.clone();
    let mut noise = Stream::new(Key::derive(&[b"server test"]));
    for tensor in tuned.0.values_mut() {
        tensor
            .data
            .iter_mut()
            .for_each(|value| *value += 0.01 * noise.normal() as f32);
    }
    let regime = Regime {
        process: Process::Uniform,
        grid: Grid::Start,
        block,
        time_conditioned: true,
    };
    let sampling = Sampling {
        predictor: UniformPredictor {
            steps: 4,
            ..UniformPredictor::default()
        }
        .into(),
        ..Sampling::of(Process::Uniform)
    };
    let network = BaseSource::Embedded
        .architecture()
        .expect("a network")
        .facts();
    let remarks = Remarks {
        process: Some(serde_json::to_string(&process_to_store(regime.process)).expect("json")),
        defaults: Some(
            serde_json::to_string(&to_store(&sampling, regime, &network)).expect("json"),
        ),
    };
    pack_with(&base, &tuned, 64, remarks).expect("pack")
}

fn pieces(pieces: Vec<Piece>) -> Vec<pb::Piece> {
    pieces
        .into_iter()
        .map(|piece| pb::Piece { piece: Some(piece) })
        .collect()
}

fn text(text: &str) -> Piece {
    Piece::Text(text.into())
}

fn template(variant: &str, template: Vec<Piece>) -> pb::GenerateRequest {
    pb::GenerateRequest {
        template: pieces(template),
        prompt: String::new(),
        max_tokens: None,
        ..request(variant, 0, 5)
    }
}

#[tokio::test]
async fn variants_of_both_processes_are_served_listed_and_come_back() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    for (name, block) in [("whole", None), ("blocks", Some(16))] {
        let added = uploads::add(&admin, uploads::upload(name, &uniform(block))).await;
        let added = added.expect("added").remove(0);
        assert_eq!(
            (added.process(), added.block_size, added.time_conditioning),
            (pb::Process::Uniform, block.map(|block| block as u32), true)
        );
        let predictor = added
            .defaults
            .expect("defaults")
            .predictor
            .expect("predictor");
        assert_eq!(
            (predictor.kind(), predictor.steps, predictor.noise_removal()),
            (
                pb::PredictorKind::Ancestral,
                Some(4),
                pb::NoiseRemoval::Greedy
            )
        );
        let wanted = || pb::GenerateRequest {
            want_steps: true,
            ..request(name, 40, 3)
        };
        let first = generate(&client, wanted()).await.expect("finished");
        let blocks = first.blocks.len() as u32;
        assert_eq!(
            first.finished.nfe % 5,
            0,
            "four steps and noise removal: {:?}",
            first.finished
        );
        assert!(
            first.finished.nfe >= 5 && first.steps.len() > 1 && (block.is_some() || blocks == 1)
        );
        // Beside an absorbing one, and with other steps.
        let few = || pb::GenerateRequest {
            sampling: Some(pb::Sampling {
                predictor: Some(pb::Predictor {
                    steps: Some(1),
                    noise_removal: pb::NoiseRemoval::Ancestral.into(),
                    ..pb::Predictor::default()
                }),
                ..pb::Sampling::default()
            }),
            ..request(name, 40, 3)
        };
        let (again, beside, few) = tokio::join!(
            generate(&client, wanted()),
            generate(&client, request("kjv", 40, 3)),
            generate(&client, few())
        );
        assert_eq!(again.expect("finished").tokens(), first.tokens());
        assert!(!beside.expect("finished").tokens().is_empty());
        assert!(few.expect("finished").finished.nfe < first.finished.nfe);
        let score = pb::ScoreRequest {
            mix: vec![part(name, None)],
            text: "And God said, Let there be light".into(),
            seed: Some(1),
            ..pb::ScoreRequest::default()
        };
        let score = client
            .clone()
            .score(score)
            .await
            .expect("score")
            .into_inner();
        assert!(
            score.nats_per_token.is_finite() && score.nats_per_token > 0.0,
            "{score:?}"
        );

        let remove = pb::RemoveVariantRequest {
            name: name.into(),
            ..pb::RemoveVariantRequest::default()
        };
        admin.clone().remove_variant(remove).await.expect("removed");
        let back = uploads::add(&admin, uploads::upload(name, &uniform(block))).await;
        let back = back.expect("added").remove(0);
        assert_eq!(
            (back.process, back.block_size, back.defaults),
            (added.process, added.block_size, added.defaults)
        );
        assert_eq!(
            generate(&client, wanted())
                .await
                .expect("finished")
                .tokens(),
            first.tokens()
        );
    }
    let list = admin
        .clone()
        .list_variants(pb::ListVariantsRequest {})
        .await
        .expect("list");
    let list = list.into_inner().variants;
    let of = |name: &str| {
        list.iter()
            .find(|variant| variant.name == name)
            .expect(name)
    };
    assert_eq!(of("kjv").process(), pb::Process::Absorbing);
    assert_eq!(of("whole").process(), pb::Process::Uniform);

    // A variant has the predictors of its own process, and goes into no mix with the other's.
    let with = |name: &str, predictor: pb::Predictor| pb::GenerateRequest {
        sampling: Some(pb::Sampling {
            predictor: Some(predictor),
            ..pb::Sampling::default()
        }),
        ..request(name, 8, 1)
    };
    let kind = |kind: pb::PredictorKind| pb::Predictor {
        kind: kind.into(),
        ..pb::Predictor::default()
    };
    let psi = |high: pb::Kappa| pb::Predictor {
        psi: Some(pb::Psi {
            high: Some(high),
            high_fraction: Some(1.0),
            ..pb::Psi::default()
        }),
        ..kind(pb::PredictorKind::Psi)
    };
    let kappa = |kind: pb::KappaKind, value| pb::Kappa {
        kind: kind.into(),
        value,
    };
    let steps = |steps| pb::Predictor {
        steps: Some(steps),
        ..kind(pb::PredictorKind::Ancestral)
    };
    use pb::KappaKind::{Constant, PurePosterior, Unspecified};
    let mut mixed = request("blocks", 8, 1);
    mixed.mix.push(part("kjv", None));
    for (field, request) in [
        (
            "sampling.predictor.kind",
            with("whole", kind(pb::PredictorKind::FirstHitting)),
        ),
        (
            "sampling.predictor.kind",
            with("whole", kind(pb::PredictorKind::Static)),
        ),
        (
            "sampling.predictor.certainty",
            with(
                "whole",
                pb::Predictor {
                    certainty: pb::Certainty::Drawn.into(),
                    ..pb::Predictor::default()
                },
            ),
        ),
        (
            "sampling.predictor.kind",
            with("kjv", kind(pb::PredictorKind::Psi)),
        ),
        ("sampling.predictor.steps", with("whole", steps(0))),
        ("sampling.predictor.steps", with("blocks", steps(8193))),
        (
            "sampling.predictor.psi.high.value",
            with("whole", psi(kappa(Constant, Some(1.5)))),
        ),
        (
            "sampling.predictor.psi.high",
            with("whole", psi(kappa(Constant, None))),
        ),
        (
            "sampling.predictor.psi.high",
            with("whole", psi(kappa(PurePosterior, Some(0.5)))),
        ),
        (
            "sampling.predictor.psi.high",
            with("whole", psi(kappa(Unspecified, None))),
        ),
        ("mix", mixed),
        ("max_tokens", request("whole", 4000, 1)),
        (
            "template",
            template("whole", vec![text("a"), Piece::Hole(4000)]),
        ),
        (
            "suffix",
            pb::GenerateRequest {
                suffix: Some("the end".into()),
                ..request("whole", 4000, 1)
            },
        ),
    ] {
        let status = generate(&client, request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().starts_with(&format!("{field}: ")),
            "{field}: {status}"
        );
    }
    let good = with("whole", psi(kappa(Constant, Some(0.5))));
    generate(&client, good).await.expect("finished");

    // What is given stays, whichever the process.
    for name in ["kjv", "whole", "blocks"] {
        let filled = template(
            name,
            vec![
                text("In the beginning"),
                Piece::Hole(3),
                text(" heaven"),
                Piece::Hole(2),
            ],
        );
        let filled = generate(&client, filled).await.expect("finished");
        let ended = filled.finished.reason() == pb::FinishReason::Stop;
        assert!(
            ended || filled.text().contains(" heaven"),
            "{name}: {:?}",
            filled.text()
        );
        let suffixed = pb::GenerateRequest {
            suffix: Some(" and it was so.".into()),
            ..request(name, 4, 2)
        };
        let suffixed = generate(&client, suffixed).await.expect("finished");
        let ended = suffixed.finished.reason() == pb::FinishReason::Stop;
        assert!(
            ended || suffixed.text().ends_with(" and it was so."),
            "{name}: {:?}",
            suffixed.text()
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn bad_templates_are_named() {
    let (client, _) = shared().await;
    let long = "word ".repeat(300);
    for (field, request) in [
        ("template", template("", vec![text("no hole")])),
        (
            "template",
            template("", vec![Piece::Hole(3), Piece::Hole(2)]),
        ),
        ("template", template("", vec![text("a"), Piece::Hole(0)])),
        ("template", template("", vec![text(""), Piece::Hole(3)])),
        ("template", template("", vec![text("a"), Piece::Hole(4097)])),
        (
            "template",
            template(
                "",
                vec![text("a"), Piece::Hole(u32::MAX), Piece::Hole(u32::MAX)],
            ),
        ),
        ("template", template("", vec![Piece::Hole(1); 1025])),
        (
            "template",
            template("", vec![text(&"a".repeat(10_001)), Piece::Hole(1)]),
        ),
        (
            "template",
            template("", vec![text("a"), Piece::Hole(1), text(&long)]),
        ),
        (
            "template",
            pb::GenerateRequest {
                template: vec![pb::Piece { piece: None }],
                ..template("", Vec::new())
            },
        ),
        (
            "template",
            pb::GenerateRequest {
                template: pieces(vec![text("a"), Piece::Hole(1)]),
                ..request("", 8, 1)
            },
        ),
        (
            "suffix",
            pb::GenerateRequest {
                suffix: Some(String::new()),
                ..request("", 8, 1)
            },
        ),
    ] {
        let status = generate(&client, request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().starts_with(&format!("{field}: ")),
            "{field}: {status}"
        );
    }
}
