//! Every protocol beside choir.v1 over gRPC: clients that ask again as soon as they are answered, the first block of an idle server,
//! and clients that leave. `cargo bench --bench protocols`, with `-- --leave N` for the last alone.

use choir::catalog::{BaseSource, Catalog, CatalogConfig};
use choir::engine::{Engine, EngineConfig, EngineHandle};
use choir::kserve as oip;
use choir::pb;
use choir::pb::generate_response::Event;
use choir::pb::inference_client::InferenceClient;
use choir::rng::{Key, Stream as Chance};
use choir::server::{self, Doors, ServerSettings};
use oip::grpc_inference_service_client::GrpcInferenceServiceClient;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::transport::Channel;

const CLIENTS: u64 = 32;
const REQUESTS: u64 = 12;
const ROUNDS: usize = 5;
const TOKENS: u32 = 64;
const VARIANTS: [&str; 4] = ["kjv", "holmes", "shakespeare", "quijote"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Choir,
    OpenAi,
    KServe,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Choir, Protocol::OpenAi, Protocol::KServe];

/// One connection of one client.
enum Client {
    Choir(InferenceClient<Channel>),
    OpenAi(BufReader<TcpStream>),
    KServe(GrpcInferenceServiceClient<Channel>),
}

impl Client {
    async fn connect(protocol: Protocol, grpc: SocketAddr, http: SocketAddr) -> Client {
        let channel = async || {
            let endpoint = Channel::from_shared(format!("http://{grpc}")).expect("address");
            endpoint.connect().await.expect("connect")
        };
        match protocol {
            Protocol::Choir => Client::Choir(InferenceClient::new(channel().await)),
            Protocol::KServe => Client::KServe(GrpcInferenceServiceClient::new(channel().await)),
            Protocol::OpenAi => {
                let stream = TcpStream::connect(http).await.expect("connect");
                stream.set_nodelay(true).expect("a socket");
                Client::OpenAi(BufReader::new(stream))
            }
        }
    }

    /// One text, streamed; the time to its first block. Leaves after `patience` blocks.
    async fn text(&mut self, seed: u64, tokens: u32, patience: usize) -> Duration {
        let (begun, mut first, mut blocks) = (Instant::now(), None, 0);
        let mut block = || {
            first.get_or_insert_with(|| begun.elapsed());
            blocks += 1;
            blocks < patience
        };
        let model = VARIANTS[(seed % 4) as usize];
        match self {
            Client::Choir(client) => {
                let request = pb::GenerateRequest {
                    mix: vec![pb::VariantWeight {
                        name: model.into(),
                        weight: None,
                    }],
                    prompt: "And he said,".into(),
                    max_tokens: Some(tokens),
                    seed: Some(seed),
                    ..pb::GenerateRequest::default()
                };
                let mut events = client
                    .generate(request)
                    .await
                    .expect("accepted")
                    .into_inner();
                while let Some(response) = events.message().await.expect("an event") {
                    if matches!(response.event, Some(Event::Block(_))) && !block() {
                        break;
                    }
                }
            }
            Client::KServe(client) => {
                let parameter = |choice| oip::InferParameter {
                    parameter_choice: Some(choice),
                };
                use oip::infer_parameter::ParameterChoice::{BoolParam, Int64Param};
                let request = oip::ModelInferRequest {
                    model_name: model.into(),
                    inputs: vec![oip::model_infer_request::InferInputTensor {
                        name: "text_input".into(),
                        datatype: "BYTES".into(),
                        shape: vec![1],
                        ..Default::default()
                    }],
                    raw_input_contents: vec![[&12u32.to_le_bytes()[..], b"And he said,"].concat()],
                    parameters: [
                        (
                            "max_tokens".to_owned(),
                            parameter(Int64Param(tokens.into())),
                        ),
                        ("seed".to_owned(), parameter(Int64Param(seed as i64))),
                        ("stream".to_owned(), parameter(BoolParam(true))),
                    ]
                    .into(),
                    ..oip::ModelInferRequest::default()
                };
                let answers = client
                    .model_stream_infer(tokio_stream::iter([request]))
                    .await;
                let mut answers = answers.expect("accepted").into_inner();
                while let Some(answer) = answers.message().await.expect("an answer") {
                    assert_eq!(answer.error_message, "");
                    if !block() {
                        break;
                    }
                }
            }
            Client::OpenAi(stream) => {
                let body = format!(
                    "{{\"model\":\"{model}\",\"prompt\":\"And he said,\",\"max_tokens\":{tokens},\"seed\":{seed},\"stream\":true}}"
                );
                let head = format!(
                    "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let request = head + &body;
                stream
                    .get_mut()
                    .write_all(request.as_bytes())
                    .await
                    .expect("write");
                let mut line = String::new();
                loop {
                    line.clear();
                    stream.read_line(&mut line).await.expect("a line");
                    if line == "0\r\n" {
                        stream.read_line(&mut line).await.expect("a line");
                        break;
                    }
                    assert!(!line.is_empty() && !line.contains("\"error\""), "{line}");
                    if line.starts_with("data: {") && !block() {
                        break;
                    }
                }
            }
        }
        first.unwrap_or_else(|| begun.elapsed())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How long all clients take for their requests.
async fn closed_loop(protocol: Protocol, grpc: SocketAddr, http: SocketAddr) -> Duration {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(protocol, grpc, http).await);
    }
    let begun = Instant::now();
    let tasks = clients.into_iter().zip(0..).map(|(mut client, number)| {
        tokio::spawn(async move {
            for request in 0..REQUESTS {
                client
                    .text(number * REQUESTS + request, TOKENS, usize::MAX)
                    .await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
    begun.elapsed()
}

/// Clients that leave after some blocks: what is left behind must be nothing.
async fn leave(
    count: u64,
    protocol: Protocol,
    grpc: SocketAddr,
    http: SocketAddr,
    engine: &EngineHandle,
) {
    let begun = Instant::now();
    let tasks = (0..CLIENTS).map(|number| {
        tokio::spawn(async move {
            for request in (number..count).step_by(CLIENTS as usize) {
                let mut chance = Chance::new(Key::derive(&[&request.to_le_bytes()]));
                let mut client = Client::connect(protocol, grpc, http).await;
                let tokens = 1 + chance.below(64) as u32;
                let patience = 1 + chance.below(64);
                let text = client.text(request, tokens, patience);
                match chance.below(4) {
                    0 => drop(
                        tokio::time::timeout(
                            Duration::from_micros(chance.below(3000) as u64),
                            text,
                        )
                        .await,
                    ),
                    _ => drop(text.await),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
    let took = begun.elapsed();
    let zero = || {
        let now = engine.status();
        now.waiting + now.running + now.streams + now.leases + now.pages_used + now.paused == 0
    };
    while !zero() {
        assert!(
            begun.elapsed() < took + Duration::from_secs(30),
            "{:?}",
            engine.status()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let now = engine.status();
    println!(
        "{protocol:?}: {count} requests, many left early, in {took:.1?}: counters are zero; {} finished, {} cancelled so far",
        now.finished, now.cancelled
    );
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (catalog, generation) = Catalog::open(
        CatalogConfig::new(folder.path().join("store"), BaseSource::Embedded),
        |_| {},
    )
    .expect("a store");
    let engine = Engine::start(EngineConfig::default(), generation).expect("an engine");
    catalog.attach(engine.clone());
    runtime.block_on(async {
        let free = async || {
            let address = "127.0.0.1:0".parse().expect("address");
            server::bind(address, false).await.expect("bind")
        };
        let doors = Doors {
            grpc: free().await,
            http: Some(free().await),
            admin: None,
        };
        let grpc = doors.grpc.address().parse().expect("address");
        let http = doors.http.as_ref().expect("a door").address().parse().expect("address");
        let forever = std::future::pending();
        tokio::spawn(server::serve(
            doors,
            Arc::new(catalog),
            engine.clone(),
            ServerSettings::default(),
            forever,
        ));
        let arguments: Vec<String> = std::env::args().collect();
        let leaving = arguments.iter().position(|argument| argument == "--leave");
        if let Some(count) = leaving.and_then(|at| arguments.get(at + 1)) {
            let count = count.parse().expect("a number");
            for protocol in PROTOCOLS {
                leave(count, protocol, grpc, http, &engine).await;
            }
            return;
        }
        let mut whole = PROTOCOLS.map(|_| Vec::new());
        let mut first = PROTOCOLS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (protocol, (whole, first)) in PROTOCOLS.into_iter().zip(whole.iter_mut().zip(&mut first)) {
                whole.push(closed_loop(protocol, grpc, http).await);
                let mut client = Client::connect(protocol, grpc, http).await;
                for seed in 0..100 {
                    first.push(client.text(seed, 8, usize::MAX).await);
                }
            }
        }
        let ours = median(whole[0].clone()).as_secs_f64();
        for (protocol, (whole, first)) in PROTOCOLS.into_iter().zip(whole.into_iter().zip(first)) {
            let (whole, first) = (median(whole), median(first));
            println!(
                "{protocol:?}: {CLIENTS} clients, {} texts of {TOKENS} tokens in {whole:.2?}, {:.3} of gRPC's speed; first block of an idle server after {first:.2?}",
                CLIENTS * REQUESTS,
                ours / whole.as_secs_f64(),
            );
        }
    });
}
