//! Clients over HTTP that begin and do not go on, and those that leave whenever they like.

use super::endings::until;
use super::tenants::of;
use super::web::{exchange, get};
use super::*;
use choir::rng::{Key, Stream as Chance};
use choir::server::access::CLIENT_ID;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn clients_that_do_not_go_on_are_not_waited_for() {
    let mut settings = settings();
    settings.limits.patience = Duration::from_millis(100);
    settings.limits.connections.first = Duration::from_millis(100);
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    for half in [
        "",
        "GET /health HT",
        "GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ",
    ] {
        let mut slow = TcpStream::connect(server.http).await.expect("connect");
        slow.write_all(half.as_bytes()).await.expect("write");
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer).await; // it ends
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{half:?}");
    }
    let endless = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n";
    let answered = exchange(server.http, endless.as_bytes()).await;
    assert_eq!(answered.status, 408, "{answered:?}");
    answered.error();
    let short = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 90\r\n\r\n{";
    let answered = exchange(server.http, short.as_bytes()).await;
    assert_eq!(answered.status, 408, "{answered:?}");
    let upload = "PUT /choir/v1/variants/new HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 90\r\n\r\n{";
    let answered = exchange(server.http, upload.as_bytes()).await;
    assert_eq!(answered.status, 408, "{answered:?}");
    assert_eq!(get(server.http, "/health").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn messages_of_one_client_leave_room_for_those_of_others() {
    let mut settings = settings();
    settings.trust_client_id = true;
    settings.limits.incoming_bytes = 40_000;
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    let post = |client: &str, bytes: usize| {
        let body = r#"{"model": "base", "prompt": "And", "max_tokens": 1}"#;
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: a\r\n{CLIENT_ID}: {client}\r\ncontent-length: {bytes}\r\n\r\n{body:<6000}"
        )
    };
    let health = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let ask = async |client: &str| {
        let sent = post(client, 6000) + health;
        let mut connection = TcpStream::connect(server.http).await.expect("connect");
        connection.write_all(sent.as_bytes()).await.expect("write");
        let mut answers = String::new();
        connection.read_to_string(&mut answers).await.expect("read");
        assert!(answers.ends_with("ok\n"), "it goes on: {answers}");
        answers
    };
    let mut half = TcpStream::connect(server.http).await.expect("connect");
    half.write_all(post("one", 9000).as_bytes())
        .await
        .expect("write");
    let told = loop {
        let answers = ask("one").await;
        if !answers.starts_with("HTTP/1.1 200") {
            break answers; // the half is there
        }
    };
    assert!(told.starts_with("HTTP/1.1 429"), "{told}");
    assert!(told.contains("retry-after"), "{told}");
    assert!(told.contains("this client's other messages"), "{told}");
    assert!(ask("two").await.starts_with("HTTP/1.1 200"));
    let (client, admin) = server.clients().await;
    let call = async |id: &str| {
        let asked = pb::GenerateRequest {
            stop: vec!["x".repeat(256); 16],
            ..request("", 1, 1)
        };
        client.clone().generate(of(id, asked)).await.map(drop)
    };
    let status = call("one").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("this client's"), "{status}");
    call("two").await.expect("room");
    drop(half);
    while call("one").await.is_err() {}
    drop((client, admin));
    server.stop().await;
}

/// Asks and reads a random part of the answer.
pub async fn leave_early(address: SocketAddr, seed: u64) {
    let mut chance = Chance::new(Key::derive(&[&seed.to_le_bytes()]));
    let body = json!({
        "model": if seed.is_multiple_of(2) { "kjv" } else { "base" },
        "prompt": "And he said,",
        "max_tokens": 1 + chance.next_u64() % 300,
        "n": 1 + chance.next_u64() % 3,
        "stream": chance.next_u64().is_multiple_of(2),
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(address).await.expect("connect");
    let whole = [head.as_bytes(), body.as_bytes()].concat();
    let cut = match chance.next_u64() % 4 {
        0 => (chance.next_u64() as usize) % whole.len(),
        _ => whole.len(),
    };
    let _ = connection.write_all(&whole[..cut]).await;
    let mut part = vec![0; (chance.next_u64() % 2000) as usize];
    if cut == whole.len() && !part.is_empty() {
        let _ = connection.read(&mut part).await;
    }
}

#[tokio::test]
async fn completions_that_many_clients_leave_leave_nothing_behind() {
    let server = Server::start(engine_config()).await;
    let (_, admin) = server.clients().await;
    let address = server.http;
    let clients = (0..8).map(|client| {
        tokio::spawn(async move {
            for request in 0..25 {
                leave_early(address, client * 1000 + request).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client");
    }
    let end = until(&admin, |now| {
        now.running + now.waiting == 0 && now.open_streams == 0 && now.leases == 0
    })
    .await;
    assert_eq!((end.pages_used, end.paused), (0, 0));
    assert_eq!(get(address, "/health").await.status, 200);
    drop(admin);
    server.stop().await;
}
