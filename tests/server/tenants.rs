//! Clients beside each other: caps, who they are, priorities, and one that does not read.

use super::endings::until;
use super::*;
use choir::server::access::CLIENT_ID;

/// A request of somebody who says who they are.
pub fn of(client: &str, request: pb::GenerateRequest) -> tonic::Request<pb::GenerateRequest> {
    let mut request = tonic::Request::new(request);
    let id = client.parse().expect("a header");
    request.metadata_mut().insert(CLIENT_ID, id);
    request
}

#[tokio::test]
async fn caps_are_named_and_say_when_to_come_back() {
    let config = EngineConfig {
        max_per_variant: Some(1),
        max_per_client: Some(2),
        ..engine_config()
    };
    let server = Server::start(config).await;
    let (client, admin) = server.clients().await;
    // Streams of long texts, unread: they stay.
    let long = |variant| pb::GenerateRequest {
        want_steps: true,
        ..request(variant, 4000, 1)
    };
    let mut held = vec![started(&client, long("kjv")).await];
    let refused = async |request, cap: &str| {
        let status = client.clone().generate(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains(cap), "{status}");
        assert!(status.metadata().contains_key("retry-after-ms"), "{status}");
    };
    refused(tonic::Request::new(request("kjv", 8, 1)), "kjv").await;
    held.push(started(&client, long("holmes")).await);
    refused(tonic::Request::new(request("", 8, 1)), "this client").await;
    // Nobody is believed: all come from one address.
    refused(of("another", request("", 8, 1)), "this client").await;
    // Nothing is done for it first: that its prompt is too long is not found.
    let long_prompt = pb::GenerateRequest {
        prompt: "1".repeat(9000),
        ..request("", 8, 1)
    };
    refused(tonic::Request::new(long_prompt), "this client").await;
    let counts = status(&admin).await.refused.expect("counts");
    assert_eq!(
        (counts.variant, counts.client, counts.queue, counts.deadline),
        (1, 3, 0, 0)
    );
    drop(held);
    until(&admin, |now| now.leases == 0).await;
    generate(&client, request("kjv", 8, 1))
        .await
        .expect("room again");
    drop((client, admin));
    server.stop().await;
}

#[tokio::test]
async fn clients_are_who_they_say_where_they_are_believed() {
    let config = EngineConfig {
        max_per_client: Some(1),
        ..engine_config()
    };
    let settings = ServerSettings {
        trust_client_id: true,
        ..settings()
    };
    let server = Server::start_within(config, settings, |generation| generation).await;
    let (client, admin) = server.clients().await;
    let long = || pb::GenerateRequest {
        want_steps: true,
        ..request("", 4000, 1)
    };
    let ask = async |id: &str| client.clone().generate(of(id, long())).await;
    let held = [
        ask("one").await.expect("accepted"),
        ask("two").await.expect("accepted"),
    ];
    assert_eq!(
        ask("one").await.expect_err("refused").code(),
        Code::ResourceExhausted
    );
    for id in ["", &"x".repeat(129)] {
        let status = ask(id).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(CLIENT_ID), "{status}");
    }
    // Without an id it is the address, which nobody's id can be.
    drop(client.clone().generate(long()).await.expect("accepted"));
    drop(held);
    until(&admin, |now| now.leases == 0 && now.open_streams == 0).await;
    drop((client, admin));
    server.stop().await;
}

#[tokio::test]
async fn priorities_are_known_by_number() {
    let (client, admin) = shared().await;
    for priority in [0, 1, 2] {
        let request = pb::GenerateRequest {
            priority,
            ..request("", 8, 1)
        };
        generate(&client, request).await.expect("accepted");
    }
    let request = pb::GenerateRequest {
        priority: 3,
        ..request("", 8, 1)
    };
    let status = generate(&client, request).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("priority:"), "{status}");
    let loads = super::status(&admin).await.variant_loads;
    assert!(
        loads
            .iter()
            .any(|load| load.name == "kjv" && load.weight == 1.0)
    );
    let base = loads
        .iter()
        .find(|load| load.name == "base")
        .expect("the base");
    assert!(base.tokens_evaluated > base.tokens_generated && base.tokens_generated > 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up_and_misses_nothing() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    // HTTP/2 lets the server send a kilobyte before it is read.
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).expect("address");
    let narrow = endpoint
        .initial_stream_window_size(1024)
        .connect()
        .await
        .expect("connect");
    let long = || pb::GenerateRequest {
        want_steps: true,
        ..request("quijote", 600, 7)
    };
    let lazy = InferenceClient::new(narrow)
        .generate(long())
        .await
        .expect("accepted");
    let prompt = generate(&client, long()).await.expect("finished");
    let now = until(&admin, |now| now.paused == 1 && now.finished == 1).await;
    assert_eq!((now.running, now.open_streams, now.generations), (1, 1, 1));
    let lazy = read(lazy.into_inner()).await.expect("finished");
    assert_eq!(
        (lazy.text(), lazy.tokens(), lazy.steps),
        (prompt.text(), prompt.tokens(), prompt.steps)
    );
    let now = until(&admin, |now| {
        now.running == 0 && now.open_streams == 0 && now.leases == 0
    })
    .await;
    assert_eq!(
        (now.paused, now.pages_used, now.leases, now.stalled),
        (0, 0, 0, 0)
    );
    drop((client, admin));
    server.stop().await;
}
