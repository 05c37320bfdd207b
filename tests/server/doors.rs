//! Doors of their own, and who may knock from a browser.

use super::web::{ask, exchange, get};
use super::*;
use tonic::transport::Endpoint;

/// A server whose doors and settings are given.
pub async fn start(doors: Doors, settings: ServerSettings) -> Server {
    let data = tempfile::tempdir_in(&ROOT.0).expect("directory");
    let store = data.path().join("data");
    let open = tokio::task::spawn_blocking(move || {
        link(&SEEDED, &store);
        Catalog::open(catalog_config(&store), |_| {}).expect("open")
    });
    let (catalog, generation) = open.await.expect("open");
    Server::behind(doors, data, catalog, generation, engine_config(), settings).await
}

#[tokio::test]
async fn operators_can_have_a_socket_of_their_own() {
    let folder = tempfile::tempdir_in(&ROOT.0).expect("folder");
    let path = folder.path().join("admin");
    let stale = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    drop(stale); // nobody listens there any more
    let doors = Doors {
        admin: Some(server::Listener::unix(&path).expect("a socket")),
        ..doors().await
    };
    let error = server::Listener::unix(&path).expect_err("somebody listens");
    assert!(matches!(error, server::Error::Listen { .. }), "{error}");
    let server = start(doors, settings()).await;
    let mode = fs::metadata(&path).expect("a socket").permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
    assert_eq!(mode & 0o777, 0o600);

    let (client, mut admin) = server.clients().await;
    let elsewhere = admin.list_variants(pb::ListVariantsRequest {}).await;
    assert_eq!(elsewhere.expect_err("not here").code(), Code::Unimplemented);
    let list = b"GET /choir/v1/variants HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(server.http, list).await.status, 404);
    let socket = Endpoint::from_shared(format!("unix://{}", path.display())).expect("address");
    let mut own = AdminClient::new(socket.connect().await.expect("connect"));
    let listed = own.list_variants(pb::ListVariantsRequest {}).await;
    assert!(!listed.expect("variants").into_inner().variants.is_empty());
    let text = generate(&client, request("kjv", 4, 1)).await;
    text.expect("the others are where they were");
    drop((client, admin, own));
    server.stop().await;
    for _ in 0..100_000 {
        if !path.exists() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the socket goes with the server");
}

#[tokio::test]
async fn pages_of_origins_that_are_named_may_ask() {
    let settings = ServerSettings {
        origins: vec!["https://a.example".parse().expect("an origin")],
        ..settings()
    };
    let server = start(doors().await, settings).await;
    let header = "origin: https://a.example\r\naccess-control-request-method: POST\r\n";
    let before = ask(server.http, "OPTIONS", "/v1/completions", header, None).await;
    assert_eq!(before.status, 204, "{before:?}");
    assert_eq!(
        before.headers["access-control-allow-origin"],
        "https://a.example"
    );
    let allowed = &before.headers["access-control-allow-headers"];
    assert!(allowed.contains("authorization"), "{allowed}");
    let models = ask(server.http, "GET", "/v1/models", header, None).await;
    assert_eq!(models.status, 200);
    assert_eq!(
        models.headers["access-control-allow-origin"],
        "https://a.example"
    );
    let other = "origin: https://b.example\r\n";
    let other = ask(server.http, "GET", "/v1/models", other, None).await;
    assert!(
        !other.headers.contains_key("access-control-allow-origin"),
        "{other:?}"
    );
    assert!(
        !get(server.http, "/v1/models")
            .await
            .headers
            .contains_key("access-control-allow-origin")
    );
    server.stop().await;
}
