//! What operators ask: lists, figures, health and reflection, and changes while others are served.

use super::endings::until;
use super::*;
use choir::catalog::base::shipped;
use std::collections::BTreeSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// What the health service says of a name; `None` where it knows none such.
pub async fn health(address: SocketAddr, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    match HealthClient::new(channel(address).await)
        .check(request)
        .await
    {
        Ok(response) => Some(response.into_inner().status()),
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            None
        }
    }
}

#[tokio::test]
async fn variants_and_figures_are_told() {
    let (client, mut admin) = shared().await;
    let listed = admin
        .list_variants(pb::ListVariantsRequest {})
        .await
        .expect("list")
        .into_inner()
        .variants;
    let names: Vec<_> = listed.iter().map(|variant| variant.name.as_str()).collect();
    let mut shipped: Vec<_> = shipped()
        .expect("shipped")
        .into_iter()
        .map(|one| one.name)
        .collect();
    shipped.sort();
    assert_eq!(names, shipped);
    for variant in &listed {
        assert!(
            variant.archived && variant.banks.len() == 2 && variant.delta_digest.len() == 64,
            "{variant:?}"
        );
        assert!(
            (0.0..=1.0).contains(&variant.cosine) && variant.relative_error >= 0.0,
            "{variant:?}"
        );
        assert!(
            variant.added_unix > 0 && variant.scale == 1.0 && !variant.source.is_empty(),
            "{variant:?}"
        );
        let defaults = variant.defaults.as_ref().expect("defaults");
        assert!(
            defaults.temperature.is_some() && defaults.predictor.is_some(),
            "{variant:?}"
        );
        let name = variant.name.clone();
        let got = admin
            .get_variant(pb::GetVariantRequest { name })
            .await
            .expect("get")
            .into_inner();
        assert_eq!(got.variant.as_ref(), Some(variant));
    }
    generate(&client, request("kjv", 8, 1))
        .await
        .expect("finished");
    let status = until(&admin, |status| status.finished > 0).await;
    assert_eq!(
        (status.generation, status.variants as usize),
        (1, names.len())
    );
    let banks: BTreeSet<_> = listed
        .iter()
        .flat_map(|variant| variant.banks.clone())
        .collect();
    assert_eq!(status.banks as usize, banks.len());
    let parts: Vec<_> = status
        .memory
        .iter()
        .map(|part| part.part.as_str())
        .collect();
    for expected in ["base", "private tensors", "tokenizer", "key-value cache"] {
        assert_eq!(
            parts.iter().filter(|part| **part == expected).count(),
            1,
            "{parts:?}"
        );
    }
    assert!(
        banks
            .iter()
            .all(|bank| parts.contains(&format!("bank {bank}").as_str())),
        "{parts:?}"
    );
    assert!(
        status.memory.iter().all(|part| part.bytes > 0),
        "{status:?}"
    );
    assert_eq!((status.queue_limit, status.max_running), (64, 32));
    assert!(status.pages_total > 0 && status.steps > 0, "{status:?}");
    assert!(
        status.tokens_generated >= 1 && !status.draining,
        "{status:?}"
    );
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel(shared_address().await).await);
    let stream = client
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = stream
        .expect("reflection")
        .into_inner()
        .message()
        .await
        .expect("answer")
        .expect("answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: BTreeSet<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for expected in [
        "choir.v1.Inference",
        "choir.v1.Admin",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(expected), "{names:?}");
    }
}

#[tokio::test]
async fn health_follows_the_variants() {
    let server = Server::start(engine_config()).await;
    let (client, mut admin) = server.clients().await;
    for name in ["", "kjv", "sort"] {
        assert_eq!(
            health(server.address, name).await,
            Some(ServingStatus::Serving),
            "{name}"
        );
    }
    assert_eq!(health(server.address, "nobody").await, None);

    // A request on the variant is under way when it goes, and finishes.
    let running = started(&client, request("sort", 64, 1)).await;
    let before = status(&admin).await;
    let removal = pb::RemoveVariantRequest {
        name: "sort".into(),
        path: None,
        expected_generation: Some(before.generation),
    };
    let removed = admin
        .remove_variant(removal.clone())
        .await
        .expect("remove")
        .into_inner();
    assert_eq!(removed.generation, before.generation + 1);
    assert_eq!(health(server.address, "sort").await, None);
    assert_eq!(
        health(server.address, "kjv").await,
        Some(ServingStatus::Serving)
    );
    let refused = generate(&client, request("sort", 8, 1))
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let gone = admin.remove_variant(pb::RemoveVariantRequest {
        expected_generation: None,
        ..removal.clone()
    });
    let gone = gone.await.expect_err("refused");
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    let moved = admin.remove_variant(pb::RemoveVariantRequest {
        name: "kjv".into(),
        ..removal
    });
    let moved = moved.await.expect_err("refused");
    assert_eq!(moved.code(), Code::Aborted, "{moved}");
    let mut last = None;
    let mut running = running;
    while let Some(response) = running.message().await.expect("not cut off") {
        last = response.event;
    }
    assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");

    let added = uploads::add(&admin, uploads::upload("sort", packed("sort")))
        .await
        .expect("add");
    assert_eq!(
        added.last().map(|variant| variant.name.as_str()),
        Some("sort")
    );
    assert_eq!(
        health(server.address, "sort").await,
        Some(ServingStatus::Serving)
    );
    let outcome = generate(&client, request("sort", 8, 1))
        .await
        .expect("finished");
    assert_eq!(outcome.started.generation, before.generation + 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants_come_and_go_while_others_answer() {
    let server = Server::start(engine_config()).await;
    let (client, mut admin) = server.clients().await;
    let before = status(&admin).await;
    let alone = generate(&client, request("kjv", 24, 0))
        .await
        .expect("finished");
    let busy = ["kjv", "shakespeare", "roman"].map(|variant| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut generations = Vec::new();
            for seed in 0..6 {
                let outcome = generate(&client, request(variant, 24, seed))
                    .await
                    .expect("none fails");
                generations.push(outcome.started.generation);
            }
            generations
        })
    });
    let removal = pb::RemoveVariantRequest {
        name: "sort".into(),
        ..pb::RemoveVariantRequest::default()
    };
    admin.remove_variant(removal).await.expect("remove");
    let file = server._data.path().join("new.safetensors");
    fs::write(&file, packed("sort")).expect("file");
    let added = uploads::add(&admin, vec![uploads::by_path("new", &file)])
        .await
        .expect("add");
    let variant = added.last().expect("variant");
    assert_eq!(
        (variant.name.as_str(), variant.source.as_str()),
        ("new", file.to_str().expect("path"))
    );
    for one in busy {
        let generations = one.await.expect("none fails");
        assert!(
            generations.is_sorted() && generations.iter().all(|number| (1..=3).contains(number))
        );
    }
    let outcome = generate(&client, request("new", 8, 0))
        .await
        .expect("finished");
    assert_eq!(outcome.started.generation, 3);
    // Nobody's bank but the new one's has changed in the end, and the new one is the old one.
    let again = generate(&client, request("kjv", 24, 0))
        .await
        .expect("finished");
    assert_eq!(again.tokens(), alone.tokens());
    let now = status(&admin).await;
    assert_eq!(
        (now.generation, now.variants, now.failed),
        (3, before.variants, 0)
    );
    server.stop().await;
}
