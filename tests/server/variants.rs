//! Variants over HTTP: put, listed and deleted by operators, and by nobody else.

use super::web::{Answered, ask, exchange, get};
use super::*;
use choir::server::access::ApiKeys;
use serde_json::Value;

const ROUTE: &str = "/choir/v1/variants";

/// Puts a file; `said` is the query.
async fn put(address: SocketAddr, name: &str, said: &str, headers: &str, file: &[u8]) -> Answered {
    let head = format!(
        "PUT {ROUTE}/{name}?{said} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        file.len()
    );
    exchange(address, &[head.as_bytes(), file].concat()).await
}

async fn names(address: SocketAddr, path: &str) -> Vec<String> {
    let (list, name) = match path {
        ROUTE => ("variants", "name"),
        _ => ("data", "id"),
    };
    let headers = "host: localhost\r\n";
    let all = local(address, "GET", path, headers).await.json();
    let all = all[list].as_array().expect("a list").iter();
    all.map(|one| one[name].as_str().expect("a name").to_owned())
        .collect()
}

/// A request without a body.
async fn local(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answered {
    let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    exchange(address, request.as_bytes()).await
}

#[tokio::test]
async fn variants_are_put_with_their_progress_and_deleted() {
    let server = Server::start(engine_config()).await;
    let address = server.http;
    let events = "accept: text/event-stream\r\n";
    let said = "seed=99&scale=0.5&expected_generation=1";
    let added = put(address, "uploaded", said, events, packed("kjv")).await;
    assert_eq!(added.status, 200, "{added:?}");
    assert_eq!(added.headers["content-type"], "text/event-stream");
    let mut told: Vec<Value> = added
        .body
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").expect("an event"))
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let variant = told.pop().expect("an end")["variant"].clone();
    assert_eq!(variant["name"], "uploaded");
    assert_eq!(
        (&variant["seed"], &variant["scale"]),
        (&99.into(), &0.5.into())
    );
    assert!(
        told.iter().any(|event| event["stage"] == "reading"),
        "{told:?}"
    );
    let fractions: Vec<f64> = told
        .iter()
        .filter_map(|event| event["fraction"].as_f64())
        .collect();
    assert!(
        fractions.is_sorted() && fractions.len() == told.len(),
        "{told:?}"
    );
    for path in [ROUTE, "/v1/models"] {
        let names = names(address, path).await;
        assert!(names.contains(&"uploaded".to_owned()), "{path}: {names:?}");
    }
    let (client, _) = server.clients().await;
    generate(&client, request("uploaded", 4, 1))
        .await
        .expect("text");

    let taken = put(address, "uploaded", "", "", packed("kjv")).await;
    assert_eq!(taken.status, 409, "{taken:?}");
    let moved = put(address, "late", "expected_generation=1", "", packed("kjv")).await;
    assert_eq!(moved.status, 409, "{moved:?}");
    let dry = put(address, "dry", "dry_run=true", "", packed("kjv")).await;
    assert_eq!(dry.status, 200, "{dry:?}");
    assert!(dry.json()["dry_run"]["disk_bytes"].is_i64(), "{dry:?}");
    let again = put(address, "again", "keep=coded&bits=4", "", packed("kjv")).await;
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(again.json()["variant"]["keep"], "coded");

    let host = "host: localhost\r\n";
    let path = format!("{ROUTE}/uploaded");
    let moved = local(
        address,
        "DELETE",
        &format!("{path}?expected_generation=1"),
        host,
    )
    .await;
    assert_eq!(moved.status, 409, "{moved:?}");
    let removed = local(address, "DELETE", &path, host).await;
    assert_eq!(removed.status, 200, "{removed:?}");
    assert_eq!(removed.json()["generation"], 4);
    let gone = local(address, "DELETE", &path, host).await;
    assert_eq!(gone.status, 404, "{gone:?}");
    let names = names(address, ROUTE).await;
    assert!(!names.contains(&"uploaded".to_owned()), "{names:?}");
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn variants_that_cannot_be_are_refused_by_what_is_wrong() {
    let address = shared_http().await;
    let file = packed("kjv");
    let mut damaged = include_bytes!("../../models/variants/reverse.safetensors").to_vec();
    *damaged.last_mut().expect("a byte") ^= 8;
    for (name, said, file, status, part) in [
        ("new", "", &damaged[..], 400, "body: "),
        ("base", "", file, 400, "name: "),
        ("-", "", file, 400, "name: "),
        ("new", "seed=many", file, 400, "seed"),
        ("new", "unheard_of=1", file, 400, "unheard_of"),
        ("new", "keep=somehow", file, 400, "keep: "),
        ("new", "process=somehow", file, 400, "process: "),
        ("new", "replaces=abc", file, 400, "replaces: "),
        ("new", "scale=inf", file, 400, "scale: "),
        ("new", "bits=99", file, 400, "bits"),
        ("new", "", &[], 400, "upload_bytes: "),
        ("new", "", &[7; 1000], 400, "body: "),
        ("new", "", &file[..1000], 400, "body: "),
        ("new", "", &vec![0; (4 << 20) + 1], 400, "upload_bytes: "),
    ] {
        let refused = put(address, name, said, "", file).await;
        assert_eq!(refused.status, status, "{name}?{said}: {refused:?}");
        let message = refused.error()["message"].clone();
        assert!(
            message.as_str().is_some_and(|said| said.contains(part)),
            "{name}?{said}: {message}"
        );
    }
    let events = put(
        address,
        "new",
        "",
        "accept: text/event-stream\r\n",
        &[7; 1000],
    )
    .await;
    assert!(events.body.contains("\"error\""), "{events:?}");
    let chunked = format!(
        "PUT {ROUTE}/new HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    let endless = exchange(address, chunked.as_bytes()).await;
    assert_eq!(endless.status, 411, "{endless:?}");
    let names = names(address, ROUTE).await;
    assert!(!names.contains(&"new".to_owned()), "{names:?}");
}

#[tokio::test]
async fn what_stands_beside_a_variant_comes_before_it() {
    let address = shared_http().await;
    let with = async |length: u64, beside: &str, file: &[u8]| {
        let body = [&length.to_le_bytes()[..], beside.as_bytes(), file].concat();
        let kind = "content-type: application/vnd.choir.variant\r\n";
        put(address, "beside", "dry_run=true", kind, &body).await
    };
    let beside = async |files: Value| {
        let files = files.to_string();
        with(files.len() as u64, &files, packed("kjv")).await
    };
    let config = include_str!("../../models/base/config.json");
    let good = beside(serde_json::json!({ "config.json": config })).await;
    assert_eq!(good.status, 200, "{good:?}");
    let none = beside(serde_json::json!({})).await;
    assert_eq!(none.status, 200, "{none:?}");
    for bad in [
        serde_json::json!({"config.json": "{"}),
        serde_json::json!({"tokenizer.json": "{}"}),
        serde_json::json!({"config.json": 3}),
        serde_json::json!(["config.json"]),
    ] {
        let refused = beside(bad.clone()).await;
        assert_eq!(refused.status, 400, "{bad}: {refused:?}");
        refused.error();
    }
    for (length, text, file) in [
        (u64::MAX, "{}", packed("kjv")),
        (1000, "{}", &[][..]),
        (2, "{}", &[][..]),
    ] {
        let refused = with(length, text, file).await;
        assert_eq!(refused.status, 400, "{length}: {refused:?}");
    }
}

#[tokio::test]
async fn variants_are_changed_by_admins_alone() {
    let (infer, admin) = ("infer-secret-of-nobody", "admin-secret-of-nobody");
    let keys = ApiKeys::read(&format!("ann infer {infer}\nops admin {admin}")).expect("keys");
    let settings = ServerSettings {
        keys: Some(Arc::new(keys)),
        ..settings()
    };
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    let one = format!("{ROUTE}/kjv");
    for (method, path) in [
        ("GET", ROUTE),
        ("PUT", one.as_str()),
        ("DELETE", one.as_str()),
    ] {
        let with = async |headers: &str| ask(server.http, method, path, headers, None).await.status;
        assert_eq!(with("").await, 401, "{method}");
        assert_eq!(
            with(&format!("authorization: Bearer {infer}\r\n")).await,
            403,
            "{method}"
        );
        let admitted = with(&format!("authorization: Bearer {admin}\r\n")).await;
        let expected = if method == "PUT" { 409 } else { 200 };
        assert_eq!(admitted, expected, "{method}");
    }
    server.stop().await;
}

/// Whoever owns a name can have it point here, and a browser then takes their page for one of this server's.
#[tokio::test]
async fn without_keys_operators_ask_by_address() {
    let address = shared_http().await;
    for (host, status) in [
        ("host: 127.0.0.1:8080\r\n", 200),
        ("host: [::1]:8080\r\n", 200),
        ("host: localhost\r\n", 200),
        ("host: page.example:8080\r\n", 403),
        ("host: localhost.page.example\r\n", 403),
        ("host: \u{1}\r\n", 400),
    ] {
        let answered = local(address, "GET", ROUTE, host).await;
        assert_eq!(answered.status, status, "{host}: {answered:?}");
    }
    let anybody = local(address, "GET", "/v1/models", "host: page.example\r\n").await;
    assert_eq!(anybody.status, 200, "{anybody:?}");
    let preflight =
        "host: localhost\r\norigin: https://page.example\r\naccess-control-request-method: PUT\r\n";
    let preflight = local(address, "OPTIONS", &format!("{ROUTE}/kjv"), preflight).await;
    assert_eq!(preflight.status, 405, "{preflight:?}");
    assert_eq!(get(address, ROUTE).await.status, 403, "by a name");
}
