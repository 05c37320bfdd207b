//! Connections that ask for nothing, for too much, or in another protocol, beside neighbours that do nothing wrong.

use super::*;
use choir::server::listener::Bounds;
use prost::bytes::Bytes;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// A call as HTTP/2 has it.
pub fn call(address: SocketAddr, kind: &str) -> http::Request<()> {
    http::Request::post(format!("http://{address}/choir.v1.Inference/Generate"))
        .header("content-type", kind)
        .header("te", "trailers")
        .body(())
        .expect("a request")
}

pub async fn h2(address: SocketAddr) -> (h2::client::SendRequest<Bytes>, JoinHandle<()>) {
    let tcp = TcpStream::connect(address).await.expect("connect");
    tcp.set_nodelay(true).expect("an option");
    let (client, connection) = h2::client::handshake(tcp).await.expect("handshake");
    let driven = tokio::spawn(async move {
        let _ = connection.await;
    });
    (client.ready().await.expect("ready"), driven)
}

/// A gRPC message as a call's body has it.
pub fn message(request: &pb::GenerateRequest) -> Bytes {
    let bytes = prost::Message::encode_to_vec(request);
    let mut body = vec![0];
    body.extend((bytes.len() as u32).to_be_bytes());
    body.extend(bytes);
    body.into()
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The headers of a call, each a literal or an entry of the static table (RFC 7541).
fn headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    let literals: [(&[u8], &str); 4] = [
        (&[0x04], "/choir.v1.Inference/Generate"), // :path
        (&[0x01], "here"),                         // :authority
        (&[0x0f, 0x10], "application/grpc"),       // content-type
        (&[0x00, 2, b't', b'e'], "trailers"),
    ];
    for (name, value) in literals {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

#[tokio::test]
async fn calls_that_are_reset_leave_their_neighbour_on_the_connection_alone() {
    let server = Server::start(engine_config()).await;
    let mut tcp = TcpStream::connect(server.address).await.expect("connect");
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend(frame(SETTINGS, 0, 0, &[]));
    said.extend(frame(HEADERS, END_HEADERS, 1, &headers()));
    said.extend(frame(DATA, END_STREAM, 1, &message(&request("kjv", 48, 1))));
    for call in 1..=512 {
        said.extend(frame(HEADERS, END_HEADERS, 2 * call + 1, &headers()));
        let cancel = 8u32.to_be_bytes();
        said.extend(frame(RST_STREAM, 0, 2 * call + 1, &cancel));
    }
    tcp.write_all(&said).await.expect("written");
    loop {
        let mut header = [0; 9];
        tcp.read_exact(&mut header).await.expect("not cut off");
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let stream = u32::from_be_bytes(header[5..].try_into().expect("four bytes"));
        let mut payload = vec![0; length as usize];
        tcp.read_exact(&mut payload).await.expect("not cut off");
        match (header[3], stream) {
            (GOAWAY, _) => panic!("the connection ends: {payload:?}"),
            (RST_STREAM, 1) => panic!("the neighbour ends: {payload:?}"),
            (HEADERS, 1) if header[4] & END_STREAM != 0 => break,
            _ => {}
        }
    }
    drop(tcp);
    server.stop().await;
}

async fn with_four_connections() -> Server {
    let mut settings = settings();
    settings.limits = Limits {
        connections: Bounds {
            connections: 4,
            ..Bounds::default()
        },
        ..settings.limits
    };
    Server::start_within(engine_config(), settings, |generation| generation).await
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let server = with_four_connections().await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut tcp = TcpStream::connect(server.address).await.expect("connect");
        // Half of them say what any client says first, and then nothing.
        if silent.len() % 2 == 0 {
            tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .expect("written");
        }
        silent.push(tcp);
    }
    let (client, _admin) = server.clients().await;
    generate(&client, request("kjv", 8, 1))
        .await
        .expect("served");
    drop((silent, client, _admin));
    server.stop().await;
}

/// That every address of 127.0.0.0/8 is this machine is so on Linux.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_of_one_client_keep_no_other_out() {
    let server = with_four_connections().await;
    let ask = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(from.parse().expect("address")).expect("bind");
        let mut tcp = socket.connect(server.http).await.expect("connect");
        let asks = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut answer = [0; 12];
        let _ = tcp.write_all(asks).await;
        match tcp.read_exact(&mut answer).await {
            Ok(_) => Some((tcp, String::from_utf8_lossy(&answer).into_owned())),
            Err(_) => None, // closed
        }
    };
    // They have asked for something, and stay.
    let first = ask("127.0.0.1:0").await.expect("an answer");
    let second = ask("127.0.0.1:0").await.expect("an answer");
    assert!(ask("127.0.0.1:0").await.is_none(), "it has two of four");
    let other = ask("127.0.0.2:0").await.expect("an answer");
    for (_, answer) in [&first, &second, &other] {
        assert_eq!(answer, "HTTP/1.1 200");
    }
    drop(first);
    while ask("127.0.0.1:0").await.is_none() {}
    drop((second, other));
    server.stop().await;
}

#[tokio::test]
async fn a_connection_without_a_request_is_ended() {
    let mut settings = settings();
    settings.limits = Limits {
        connections: Bounds {
            first: Duration::from_millis(20),
            ..Bounds::default()
        },
        ..settings.limits
    };
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    for said in [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut tcp = TcpStream::connect(server.address).await.expect("connect");
        let _ = tcp.write_all(said).await;
        let mut rest = Vec::new();
        // Ends, in an orderly way or by a reset, though nothing ends it from here.
        let _ = tcp.read_to_end(&mut rest).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn other_content_types_are_unsupported() {
    let address = shared_address().await;
    for kind in [
        "application/json",
        "application/grpc-web+proto",
        "text/html",
    ] {
        let (mut client, driven) = h2(address).await;
        let (answer, _body) = client
            .send_request(call(address, kind), true)
            .expect("a call");
        assert_eq!(answer.await.expect("an answer").status(), 415, "{kind}");
        drop((client, _body));
        driven.await.expect("a connection");
    }
}

#[tokio::test]
async fn a_drain_that_lasts_too_long_ends_what_is_left() {
    let mut settings = settings();
    settings.limits = Limits {
        drain: Duration::from_millis(200),
        ..settings.limits
    };
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    let (client, _admin) = server.clients().await;
    // One that nobody reads: it would not end by itself.
    let mut left = started(&client, request("", 4096, 3)).await;
    let Server {
        shutdown,
        served,
        _data,
        ..
    } = server;
    shutdown.send(()).expect("it runs");
    served.await.expect("server").expect("an orderly end");
    let status = loop {
        match left.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Status::ok(""), // it was shorter than the drain
            Err(status) => break status,
        }
    };
    let expected = [Code::Unavailable, Code::Ok];
    assert!(expected.contains(&status.code()), "{status}");
}

#[tokio::test]
async fn health_watches_names_that_come_and_go() {
    let server = Server::start(engine_config()).await;
    let (_client, mut admin) = server.clients().await;
    let mut health = HealthClient::new(channel(server.address).await);
    for service in ["choir.v1.Inference", "choir.v1.Admin"] {
        let now = admin::health(server.address, service).await;
        assert_eq!(now, Some(ServingStatus::Serving), "{service}");
    }
    let service = "sort".to_owned();
    let watch = health.watch(HealthCheckRequest { service }).await;
    let mut watch = watch.expect("health").into_inner();
    let mut next = async || {
        let message = watch.message().await.expect("it stays open");
        message.map(|message| message.status())
    };
    assert_eq!(next().await, Some(ServingStatus::Serving));
    let removal = pb::RemoveVariantRequest {
        name: "sort".into(),
        ..pb::RemoveVariantRequest::default()
    };
    admin.remove_variant(removal).await.expect("removed");
    assert_eq!(next().await, Some(ServingStatus::ServiceUnknown));
    uploads::add(&admin, uploads::upload("sort", packed("sort")))
        .await
        .expect("added");
    assert_eq!(next().await, Some(ServingStatus::Serving));
    server.shutdown.send(()).expect("it runs");
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    drop((health, admin, _client));
    server
        .served
        .await
        .expect("server")
        .expect("an orderly end");
}
