//! Everything a client can get wrong, each with its status code and the field's name.

use super::*;
use pb::PredictorKind as Kind;

async fn refused(client: &InferenceClient<Channel>, request: pb::GenerateRequest) -> Status {
    generate(client, request).await.expect_err("refused")
}

#[tokio::test]
async fn variants_that_are_not_there_are_not_found() {
    let (client, mut admin) = shared().await;
    let long = "x".repeat(10_000);
    let bells = "\u{7}".repeat(10_000);
    for name in [
        "nobody",
        "base",
        "KJV",
        "../kjv",
        "a/b",
        "a.b",
        "a\u{0}b",
        "\u{1F409}",
        &long,
        &bells,
    ] {
        let status = refused(&client, request(name, 8, 1)).await;
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(
            status.message().contains("variant") && status.message().len() < 2000,
            "{status}"
        );
        // Also where it could not be asked for so.
        let predictor = pb::Predictor {
            kind: pb::PredictorKind::Psi.into(),
            ..pb::Predictor::default()
        };
        let sampling = Some(pb::Sampling {
            predictor: Some(predictor),
            ..pb::Sampling::default()
        });
        let status = refused(
            &client,
            pb::GenerateRequest {
                sampling,
                ..request(name, 8, 1)
            },
        )
        .await;
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let score = pb::ScoreRequest {
            mix: vec![part("kjv", None), part(name, None)],
            text: "x".into(),
            ..pb::ScoreRequest::default()
        };
        let status = client.clone().score(score).await.expect_err("refused");
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let name = name.to_owned();
        let status = admin
            .get_variant(pb::GetVariantRequest { name: name.clone() })
            .await
            .expect_err("refused");
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let removal = pb::RemoveVariantRequest {
            name,
            ..pb::RemoveVariantRequest::default()
        };
        let status = admin.remove_variant(removal).await.expect_err("refused");
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    let status = refused(
        &client,
        pb::GenerateRequest {
            mix: vec![part("", None)],
            ..request("", 8, 1)
        },
    );
    assert_eq!(status.await.code(), Code::NotFound);
}

#[tokio::test]
async fn names_that_no_variant_may_have_are_refused_before_the_file_is_read() {
    let (_, admin) = shared().await;
    let long = "x".repeat(10_000);
    for name in [
        "", ".", "..", "../kjv", "a/b", "a\\b", ".a", "-a", "a\u{0}b", "a\nb", "a b", "\u{e9}",
        "base", &long,
    ] {
        for source in ["/no/such/file", "/"] {
            let status =
                uploads::add(&admin, vec![uploads::by_path(name, Path::new(source))]).await;
            let status = status.expect_err(name);
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(status.message().starts_with("header.name: "), "{status}");
        }
        let status = uploads::add(&admin, uploads::upload(name, packed("kjv")))
            .await
            .expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with("header.name: "), "{status}");
    }
    for taken in ["kjv", "KJV"] {
        let status = uploads::add(&admin, uploads::upload(taken, packed("kjv")))
            .await
            .expect_err("taken");
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    }
    let path = format!("/{}", "x".repeat(500_000));
    let status = uploads::add(&admin, vec![uploads::by_path("new", Path::new(&path))])
        .await
        .expect_err("no file");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn bad_fields_are_named() {
    let (client, _) = shared().await;
    let field = async |field: &str, change: &dyn Fn(&mut pb::GenerateRequest)| {
        let mut request = request("kjv", 8, 1);
        change(&mut request);
        let status = refused(&client, request).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().starts_with(&format!("{field}: ")),
            "{field}: {status}"
        );
    };
    field("prompt", &|r| r.prompt.clear()).await;
    field("prompt", &|r| r.prompt = "q7".repeat(1000)).await;
    field("prompt", &|r| r.prompt = "q".repeat(10_001)).await;
    for max_tokens in [0, 4097, u32::MAX] {
        field("max_tokens", &|r| r.max_tokens = Some(max_tokens)).await;
    }
    field("mix", &|r| {
        r.mix = vec![part("kjv", Some(0.5)), part("kjv", Some(0.5))]
    })
    .await;
    for weight in [f32::NAN, f32::INFINITY, 17.0, -17.0] {
        field("mix", &|r| r.mix = vec![part("kjv", Some(weight))]).await;
    }
    field("stop", &|r| r.stop = vec![String::new()]).await;
    field("stop", &|r| r.stop = vec!["x".into(); 17]).await;
    field("stop", &|r| r.stop = vec!["x".repeat(257)]).await;
    field("stop_ids", &|r| r.stop_ids = vec![1; 257]).await;
    field("stop_ids", &|r| r.stop_ids = vec![u32::MAX]).await;

    let sampling = async |name: &str, sampling: pb::Sampling| {
        let name = format!("sampling.{name}");
        field(&name, &|request| request.sampling = Some(sampling)).await;
    };
    let default = pb::Sampling::default;
    for temperature in [f32::NAN, -0.5, f32::INFINITY, 100.5] {
        let temperature = Some(temperature);
        sampling(
            "temperature",
            pb::Sampling {
                temperature,
                ..default()
            },
        )
        .await;
    }
    for nucleus_p in [f32::NAN, -0.5, 0.0, 1.5] {
        let nucleus_p = Some(nucleus_p);
        sampling(
            "nucleus_p",
            pb::Sampling {
                nucleus_p,
                ..default()
            },
        )
        .await;
    }
    sampling(
        "top_k",
        pb::Sampling {
            top_k: Some(0),
            ..default()
        },
    )
    .await;
    for block_size in [0, 7, u32::MAX] {
        let block_size = Some(block_size);
        sampling(
            "block_size",
            pb::Sampling {
                block_size,
                ..default()
            },
        )
        .await;
    }
    let predictor = async |name: &str, kind: i32, steps: Option<u32>, threshold: Option<f32>| {
        let predictor = Some(pb::Predictor {
            kind,
            steps,
            threshold,
            ..pb::Predictor::default()
        });
        let name = format!("predictor.{name}");
        sampling(
            &name,
            pb::Sampling {
                predictor,
                ..default()
            },
        )
        .await;
    };
    for unknown in [7, 77, -1, i32::MAX] {
        predictor("kind", unknown, None, None).await;
    }
    let (steps, threshold) = ("steps", "threshold");
    predictor(steps, Kind::Ancestral.into(), None, None).await;
    predictor(threshold, Kind::Ancestral.into(), Some(4), Some(0.5)).await;
    predictor("steps", Kind::Ancestral.into(), Some(0), None).await;
    predictor("steps", Kind::Ancestral.into(), Some(8193), None).await;
    predictor(threshold, Kind::Confidence.into(), None, None).await;
    predictor(steps, Kind::Confidence.into(), Some(0), Some(0.5)).await;
    for share in [Kind::Static, Kind::Sequential] {
        predictor(steps, share.into(), None, None).await;
        predictor(steps, share.into(), Some(8193), None).await;
        predictor(threshold, share.into(), Some(4), Some(0.5)).await;
    }
    for bad in [f32::NAN, 0.0, -1.0, 1.5] {
        predictor("threshold", Kind::Confidence.into(), None, Some(bad)).await;
    }
    predictor(steps, Kind::FirstHitting.into(), Some(4), None).await;
    predictor(threshold, Kind::FirstHitting.into(), None, Some(0.5)).await;
    let certainty = async |kind: Kind, certainty: i32| {
        let predictor = Some(pb::Predictor {
            kind: kind.into(),
            steps: Some(4).filter(|_| kind != Kind::FirstHitting),
            certainty,
            ..pb::Predictor::default()
        });
        sampling(
            "predictor.certainty",
            pb::Sampling {
                predictor,
                ..default()
            },
        )
        .await;
    };
    certainty(Kind::Static, 77).await;
    for without in [Kind::FirstHitting, Kind::Ancestral, Kind::Sequential] {
        certainty(without, pb::Certainty::Drawn.into()).await;
    }
}

#[tokio::test]
async fn bad_scores_are_named() {
    let (client, _) = shared().await;
    let good = || pb::ScoreRequest {
        text: "In the beginning".into(),
        ..pb::ScoreRequest::default()
    };
    let bad: [(&str, pb::ScoreRequest); 8] = [
        // Each by itself is within its limits.
        (
            "samples: that takes",
            pb::ScoreRequest {
                text: "q7".repeat(1_000),
                samples: Some(4096),
                ..good()
            },
        ),
        (
            "text",
            pb::ScoreRequest {
                text: String::new(),
                ..good()
            },
        ),
        (
            "text",
            pb::ScoreRequest {
                text: "q".repeat(10_001),
                ..good()
            },
        ),
        (
            "text",
            pb::ScoreRequest {
                text: "q7".repeat(4_999),
                ..good()
            },
        ),
        (
            "samples",
            pb::ScoreRequest {
                samples: Some(0),
                ..good()
            },
        ),
        (
            "samples",
            pb::ScoreRequest {
                samples: Some(4097),
                ..good()
            },
        ),
        (
            "mix",
            pb::ScoreRequest {
                mix: vec![part("kjv", Some(f32::NAN))],
                ..good()
            },
        ),
        (
            "mix",
            pb::ScoreRequest {
                mix: vec![part("kjv", None), part("kjv", None)],
                ..good()
            },
        ),
    ];
    for (field, request) in bad {
        let status = client.clone().score(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().starts_with(field), "{field}: {status}");
    }
}

#[tokio::test]
async fn additions_with_bad_numbers_are_refused() {
    let (_, admin) = shared().await;
    let refused = async |change: &dyn Fn(&mut pb::AddVariantHeader)| {
        let mut requests = uploads::upload("new", packed("kjv"));
        if let Some(pb::add_variant_request::Part::Header(header)) = &mut requests[0].part {
            change(header);
        }
        let status = uploads::add(&admin, requests).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        status.message().to_owned()
    };
    for scale in [f32::NAN, f32::NEG_INFINITY] {
        let message = refused(&|header| header.scale = Some(scale)).await;
        assert!(message.starts_with("header.scale: "), "{message}");
    }
    let unheard = pb::Predictor {
        kind: 9,
        ..pb::Predictor::default()
    };
    let hot = pb::Sampling {
        temperature: Some(f32::NAN),
        ..pb::Sampling::default()
    };
    let unknown = pb::Sampling {
        predictor: Some(unheard),
        ..pb::Sampling::default()
    };
    for (defaults, field) in [(hot, "temperature"), (unknown, "predictor.kind")] {
        let message = refused(&|header| header.defaults = Some(defaults)).await;
        assert!(
            message.starts_with(&format!("header.defaults: {field}: ")),
            "{message}"
        );
    }
    let message = refused(&|header| header.process = 9).await;
    assert!(message.starts_with("header.process: "), "{message}");
    let message = refused(&|header| header.process = pb::Process::Uniform.into()).await;
    assert!(message.starts_with("header.process: "), "{message}");
    let message = refused(&|header| header.block_size = Some(3)).await;
    assert!(message.starts_with("header.block_size: "), "{message}");
}

#[tokio::test]
async fn a_removal_by_a_file_that_is_none_names_its_path() {
    let (_, mut admin) = shared().await;
    for path in ["", "/no/such/file", "/"] {
        let removal = pb::RemoveVariantRequest {
            name: "kjv".into(),
            path: Some(path.into()),
            ..pb::RemoveVariantRequest::default()
        };
        let status = admin.remove_variant(removal).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with("path: "), "{status}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_senders_mistake() {
    const GENERATE: &str = "/choir.v1.Inference/Generate";
    // Field 2, the prompt, of three bytes that are not UTF-8.
    let status = raw::call(GENERATE, vec![0x12, 3, 0xFF, 0xFE, 0x80]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("prompt"), "{status}");
    for message in [&[0x12, 100, b'a'][..], &[0xFF; 20], &[0x0A, 2, 0x0A, 9]] {
        let status = raw::call(GENERATE, message.to_vec()).await;
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{message:?}: {status}"
        );
    }
    let status = raw::call("/choir.v1.Inference/Guess", Vec::new()).await;
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    // More than any message may have: not read to its end.
    let status = raw::call(GENERATE, vec![0; 200_000]).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let (client, _) = shared().await;
    generate(&client, request("", 8, 1))
        .await
        .expect("it still answers");
}

#[tokio::test]
async fn the_network_does_not_reach_the_server_by_accident() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let address = address.parse().expect("address");
        let error = server::bind(address, false).await.expect_err("refused");
        assert!(
            matches!(error, server::Error::NotLoopback { address: named } if named == address),
            "{error}"
        );
    }
    server::bind("0.0.0.0:0".parse().expect("address"), true)
        .await
        .expect("allowed");
    let listener = server::bind("127.0.0.1:0".parse().expect("address"), false)
        .await
        .expect("bind");
    let taken = listener.address().parse().expect("address");
    let error = server::bind(taken, false).await.expect_err("taken");
    assert!(matches!(error, server::Error::Listen { .. }), "{error}");
}

#[tokio::test]
async fn timeout_that_cannot_be_read_is_refused() {
    let (client, _) = shared().await;
    for timeout in ["soon", "20", "-1S", "123456789S"] {
        let mut request = tonic::Request::new(request("", 4, 1));
        let value = timeout.parse().expect("ASCII");
        request.metadata_mut().insert("grpc-timeout", value);
        let status = client.clone().generate(request).await.expect_err(timeout);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("grpc-timeout"), "{status}");
    }
}

#[tokio::test]
async fn mix_of_too_many_variants_is_refused() {
    let (client, _) = shared().await;
    let mixed = pb::GenerateRequest {
        mix: (0..9).map(|one| part(&format!("v{one}"), None)).collect(),
        ..request("", 4, 1)
    };
    let status = refused(&client, mixed).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(
        status.message().contains("mix: it has 9 variants"),
        "{status}"
    );
}
