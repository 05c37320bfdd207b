//! How requests end that do not finish: deadlines, clients that leave, a full queue, a server that drains.

use super::*;
use choir::model::kv_cache::KvCache;
use choir::model::{Batch, Denoiser, Logits, NetworkFacts};
use choir::ops::gpu::Fault;
use std::sync::Mutex;
use std::time::Duration;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Asks for the status until it is as wished: the engine writes it down between two steps.
pub async fn until(
    admin: &AdminClient<Channel>,
    wish: impl Fn(&pb::GetStatusResponse) -> bool,
) -> pb::GetStatusResponse {
    for _ in 0..100_000 {
        let now = status(admin).await;
        if wish(&now) {
            return now;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come to that: {:?}", status(admin).await);
}

/// A call that is given two seconds.
fn soon<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(2));
    request
}

#[tokio::test]
async fn a_deadline_that_passes_is_told() {
    let (client, _) = shared().await;
    // Texts may end early, but not all of these.
    let texts = (0..8).map(|seed| {
        let mut client = client.clone();
        tokio::spawn(async move {
            match client.generate(soon(request("", 4096, seed))).await {
                Ok(stream) => read(stream.into_inner()).await.err(),
                Err(status) => Some(status),
            }
        })
    });
    let texts: Vec<_> = texts.collect();
    let score = soon(pb::ScoreRequest {
        text: "In the beginning God created the heaven and the earth. ".repeat(100),
        samples: Some(120),
        ..pb::ScoreRequest::default()
    });
    let mut statuses = vec![client.clone().score(score).await.expect_err("late")];
    for text in texts {
        statuses.extend(text.await.expect("call"));
    }
    // On a busy machine the clock of tonic's own client may be first; it says CANCELLED.
    let by_tonic =
        |status: &Status| status.code() == Code::Cancelled && status.message() == "Timeout expired";
    let (by_tonic, ours): (Vec<_>, Vec<_>) = statuses.iter().partition(|status| by_tonic(status));
    assert!(!ours.is_empty(), "{by_tonic:?}");
    for status in ours {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
}

#[tokio::test]
async fn rows_of_a_client_that_left_are_freed() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    let mut streams = Vec::new();
    for seed in 0..4 {
        streams.push(started(&client, request("", 4096, seed)).await);
    }
    drop(streams);
    // A client may also leave as a whole.
    let (leaving, _) = server.clients().await;
    let stream = started(&leaving, request("", 4096, 9)).await;
    drop((stream, leaving));
    let ended = |now: &pb::GetStatusResponse| now.cancelled + now.finished == 5;
    let after = until(&admin, |now| {
        ended(now) && now.running == 0 && now.pages_used == 0
    })
    .await;
    assert!(after.cancelled > 0 && after.failed == 0, "{after:?}");
    generate(&client, request("", 8, 1))
        .await
        .expect("it still answers");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_finish_or_are_told_to_come_back() {
    let config = EngineConfig {
        max_running: 8,
        queue: 64,
        ..engine_config()
    };
    let server = Server::start(config).await;
    let (client, admin) = server.clients().await;
    let calls = (0..1000).map(|seed| {
        let client = client.clone();
        tokio::spawn(async move { generate(&client, request("", 4, seed)).await })
    });
    let (mut finished, mut refused) = (0, 0);
    for call in calls.collect::<Vec<_>>() {
        match call.await.expect("call") {
            Ok(_) => finished += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let after = status.metadata().get("retry-after-ms").expect("a hint");
                let after: u64 = after.to_str().expect("digits").parse().expect("a number");
                assert!((1..=60_000).contains(&after), "{after}");
                refused += 1;
            }
        }
    }
    assert_eq!(finished + refused, 1000);
    assert!(finished >= 64 && refused > 0, "{finished} finished");
    let now = until(&admin, |now| now.running == 0 && now.waiting == 0).await;
    assert_eq!((now.finished, now.failed, now.pages_used), (finished, 0, 0));
    generate(&client, request("", 8, 1))
        .await
        .expect("it still answers");
    server.stop().await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let config = EngineConfig {
        max_running: 2,
        ..engine_config()
    };
    let server = Server::start(config).await;
    let (client, admin) = server.clients().await;
    let mut running = Vec::new();
    for seed in 0..2 {
        running.push(started(&client, request("", 240, seed)).await);
    }
    let waiting = client
        .clone()
        .generate(request("", 8, 9))
        .await
        .expect("accepted");
    let address = server.address;
    let Server {
        shutdown,
        served,
        _data,
        ..
    } = server;
    shutdown.send(()).expect("it runs");
    let now = until(&admin, |now| now.draining).await;
    assert!(now.running > 0, "{now:?}");
    let refused = generate(&client, request("", 8, 1))
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let score = pb::ScoreRequest {
        text: "late".into(),
        ..pb::ScoreRequest::default()
    };
    let refused = client.clone().score(score).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(
        admin::health(address, "").await,
        Some(ServingStatus::NotServing)
    );
    assert_eq!(
        admin::health(address, "kjv").await,
        Some(ServingStatus::NotServing)
    );
    for mut stream in running {
        let mut last = None;
        while let Some(response) = stream.message().await.expect("not cut off") {
            last = response.event;
        }
        assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");
    }
    read(waiting.into_inner()).await.expect("it was accepted");
    drop((client, admin));
    served.await.expect("server").expect("an orderly end");
}

/// A network whose device is lost in the second step, which waits until it is told.
struct Loses {
    network: Arc<dyn Denoiser>,
    steps: Mutex<(usize, mpsc::Receiver<()>)>,
}

impl Denoiser for Loses {
    fn facts(&self) -> &NetworkFacts {
        self.network.facts()
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<Logits> {
        let mut steps = self.steps.lock().expect("one step at a time");
        steps.0 += 1;
        if steps.0 < 2 {
            return self.network.forward(batch, cache);
        }
        let _ = steps.1.recv(); // until the other end is dropped
        let detail = "it fell off the bus".to_owned();
        Err(Fault::Lost { detail }.into())
    }
}

#[tokio::test]
async fn a_lost_device_fails_every_request_and_ends_the_server() {
    let (hold, lose) = mpsc::channel();
    let config = EngineConfig {
        max_running: 1,
        ..engine_config()
    };
    let server = Server::start_with(config, |generation| Generation {
        denoiser: Arc::new(Loses {
            network: generation.denoiser.clone(),
            steps: Mutex::new((0, lose)),
        }),
        ..generation
    })
    .await;
    let (client, _) = server.clients().await;
    let mut health = HealthClient::new(channel(server.address).await);
    let mut watched = Vec::new();
    for service in ["", "kjv"] {
        let service = service.to_owned();
        let watch = health.watch(HealthCheckRequest { service }).await;
        let mut watch = watch.expect("health").into_inner();
        let first = watch.message().await.expect("health").expect("health");
        assert_eq!(first.status(), ServingStatus::Serving);
        watched.push(watch);
    }
    let running = started(&client, request("", 40, 1)).await;
    let waiting = client
        .clone()
        .generate(request("kjv", 40, 2))
        .await
        .expect("accepted");
    drop::<mpsc::Sender<()>>(hold);
    for mut stream in [running, waiting.into_inner()] {
        let failed = loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "an end without an error"),
                Err(status) => break status,
            }
        };
        assert_eq!(failed.code(), Code::Internal, "{failed}");
    }
    for mut watch in watched {
        let next = watch.message().await.expect("health").expect("health");
        assert_eq!(next.status(), ServingStatus::NotServing);
    }
    drop((client, health));
    let ended = server
        .served
        .await
        .expect("server")
        .expect_err("no orderly end");
    assert!(ended.to_string().contains("it fell off the bus"), "{ended}");
}
