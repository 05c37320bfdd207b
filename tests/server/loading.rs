//! A server whose base is still being read.

use super::web::get;
use super::*;
use choir::server::Open;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn what_loads_says_so_and_then_serves() {
    let doors = doors().await;
    let grpc: SocketAddr = doors.grpc.address().parse().expect("address");
    let listener = doors.http.as_ref().expect("a door");
    let http: SocketAddr = listener.address().parse().expect("address");
    let open = Open::new(doors, settings());

    let channel = channel(grpc).await;
    let mut health = HealthClient::new(channel.clone());
    let check = || HealthCheckRequest::default();
    let checked = health.check(check()).await.expect("health").into_inner();
    assert_eq!(checked.status(), ServingStatus::NotServing);
    let watched = health.watch(check()).await.expect("a watch");
    let mut watched = watched.into_inner();
    let first = watched.message().await.expect("health").expect("a word");
    assert_eq!(first.status(), ServingStatus::NotServing);
    let (client, mut admin) = (
        InferenceClient::new(channel.clone()),
        AdminClient::new(channel),
    );
    let refused = generate(&client, request("", 4, 1)).await;
    assert_eq!(refused.expect_err("loading").code(), Code::Unavailable);
    let listed = admin.list_variants(pb::ListVariantsRequest {});
    assert_eq!(listed.await.expect_err("loading").code(), Code::Unavailable);
    for (path, status) in [
        ("/health", 200),
        ("/ready", 503),
        ("/v1/models", 503),
        ("/", 503),
    ] {
        assert_eq!(get(http, path).await.status, status, "{path}");
    }

    let data = tempfile::tempdir_in(&ROOT.0).expect("directory");
    let store = data.path().join("data");
    let loaded = tokio::task::spawn_blocking(move || {
        link(&SEEDED, &store);
        let (catalog, generation) = Catalog::open(catalog_config(&store), |_| {}).expect("open");
        let engine = Engine::start(engine_config(), generation).expect("engine");
        catalog.attach(engine.clone());
        (Arc::new(catalog), engine)
    });
    let (catalog, engine) = loaded.await.expect("a catalog");
    let (shutdown, ending) = oneshot::channel();
    open.stand(catalog, &engine).expect("a server");
    let served = tokio::spawn(open.serve(engine, async {
        let _ = ending.await;
    }));
    let then = watched.message().await.expect("health").expect("a word");
    assert_eq!(then.status(), ServingStatus::Serving);
    // The connection is the one that was told to wait.
    generate(&client, request("kjv", 4, 1)).await.expect("text");
    assert_eq!(get(http, "/ready").await.status, 200);
    drop((client, admin, health, watched));
    shutdown.send(()).expect("it serves");
    served.await.expect("server").expect("an orderly end");
}
