//! Attacks on the real process beside a neighbour's stream: what they are told, and what memory they get. How long the neighbour is
//! paused and how soon they are refused is printed, for `scripts/attack.sh`.

use super::connections::message;
use super::storm::Process;
use super::uploads::upload;
use super::web::exchange;
use super::*;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What all that is admitted may hold at once: texts being read, requests waiting and running, pieces of uploads.
const ADMITTED: u64 = 192 << 20;

/// How calls ended, and after how long.
type Ends = Vec<(String, Duration)>;

/// So many calls at once, each on a connection of its own. `call` makes what is sent, before any of them begins.
async fn at_once<F: Future<Output = String> + Send + 'static>(
    count: u64,
    call: impl Fn(u64) -> F,
) -> Ends {
    let made: Vec<F> = (0..count).map(call).collect();
    let mut calls = JoinSet::new();
    for call in made {
        calls.spawn(async move {
            let begun = Instant::now();
            (call.await, begun.elapsed())
        });
    }
    calls.join_all().await
}

fn code(outcome: Result<(), Status>) -> String {
    outcome.map_or_else(|status| format!("{:?}", status.code()), |()| "Ok".into())
}

async fn prompt(address: SocketAddr, prompt: String) -> String {
    let request = pb::GenerateRequest {
        prompt,
        max_tokens: Some(1),
        ..pb::GenerateRequest::default()
    };
    asked(address, request).await
}

async fn asked(address: SocketAddr, request: pb::GenerateRequest) -> String {
    let (client, _) = clients(address).await;
    code(generate(&client, request).await.map(drop))
}

/// How a call of `Generate` ends whose message is written already: an attacker spends nothing on it, and sends what is taken of it.
async fn send(address: SocketAddr, message: Bytes) -> String {
    let (mut client, connection) = connections::h2(address).await;
    let call = connections::call(address, "application/grpc");
    let (answer, mut body) = client.send_request(call, false).expect("a call");
    let _ = body.send_data(message, true); // refused before it is all sent
    let (mut head, mut body) = answer.await.expect("an answer").into_parts();
    if !head.headers.contains_key("grpc-status") {
        while body.data().await.is_some() {}
        head.headers = body.trailers().await.expect("an end").expect("trailers");
    }
    connection.abort();
    format!(
        "{:?}",
        Code::from_bytes(head.headers["grpc-status"].as_bytes())
    )
}

/// Reads a stream and notes the longest pause and the most memory, until it is told to end.
async fn neighbour(
    process: Arc<Process>,
    ready: oneshot::Sender<()>,
    mut over: oneshot::Receiver<()>,
) -> (Duration, u64) {
    let (client, _) = clients(process.address).await;
    let (mut longest, mut most, mut ready) = (Duration::ZERO, 0, Some(ready));
    for seed in 0.. {
        let long = pb::GenerateRequest {
            want_steps: true,
            ..request("kjv", 4000, seed)
        };
        let mut stream = match client.clone().generate(long).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                // Its text was over, and others were first in the queue.
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                match over.try_recv() {
                    Ok(()) => return (longest, most),
                    Err(_) => continue,
                }
            }
        };
        let _ = ready.take().map(|ready| ready.send(()));
        let mut last = Instant::now();
        while let Some(message) = stream.message().await.expect("the neighbour's stream") {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            most = most.max(process.held().0);
            if over.try_recv().is_ok() {
                return (longest, most);
            }
            if let Some(Event::Finished(_)) = message.event {
                break;
            }
        }
    }
    unreachable!("texts end")
}

/// Runs an attack beside a neighbour, prints its figures and returns how often each end came.
async fn beside(
    process: &Arc<Process>,
    name: &str,
    attack: impl Future<Output = Ends>,
) -> BTreeMap<String, usize> {
    let (ready, is_ready) = oneshot::channel();
    let (over, is_over) = oneshot::channel();
    let neighbour = tokio::spawn(neighbour(process.clone(), ready, is_over));
    is_ready.await.expect("a neighbour");
    let idle = process.held().0;
    let mut ends = attack.await;
    over.send(()).expect("a neighbour");
    let (pause, most) = neighbour.await.expect("a neighbour");
    let mut counts = BTreeMap::new();
    for (end, _) in &ends {
        *counts.entry(end.clone()).or_default() += 1;
    }
    ends.retain(|(end, _)| end != "Ok");
    ends.sort_by_key(|(_, after)| *after);
    let p99 = ends.get(ends.len() * 99 / 100).map(|(_, after)| *after);
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{name}: {counts:?}; memory {} -> {} MiB; neighbour's longest pause {pause:.0?}; refusals' p99 {:.0?}",
        mib(idle),
        mib(most),
        p99.unwrap_or_default()
    );
    assert!(
        most <= idle + idle / 5 + ADMITTED,
        "{name}: {idle}, then {most} bytes"
    );
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attacks_are_refused_and_take_no_more_than_is_admitted() {
    let folder = tempfile::tempdir_in(&ROOT.0).expect("directory");
    let process = Arc::new(Process::start(&folder.path().join("store")));
    let (address, http) = (process.address, process.http);
    beside(&process, "nothing", async {
        at_once(1, move |_| prompt(address, "And".into())).await
    })
    .await;

    // What so many connections at once take by themselves.
    let unknown = at_once(64, move |seed| asked(address, request("nobody", 1, seed)));
    let counts = beside(&process, "64 requests of no variant", unknown).await;
    assert_eq!(counts, BTreeMap::from([("NotFound".to_owned(), 64)]));
    for (name, bytes) in [
        ("64 prompts of 1 MiB", 1 << 20),
        ("64 prompts of 128 KiB", 128 << 10),
    ] {
        let sent = message(&pb::GenerateRequest {
            prompt: "1".repeat(bytes),
            ..pb::GenerateRequest::default()
        });
        let attack = at_once(64, move |_| send(address, sent.clone()));
        let counts = beside(&process, name, attack).await;
        assert!(!counts.contains_key("Ok"), "{counts:?}");
    }
    // Asked and left at once: what was begun for them ends.
    let left = at_once(64, move |seed| {
        let text = "In the beginning God created the heaven. ".repeat(3000 + seed as usize);
        async move {
            let asked = tokio::spawn(prompt(address, text));
            tokio::task::yield_now().await;
            asked.abort();
            "Left".into()
        }
    });
    beside(&process, "64 prompts that are left", left).await;
    let scores = at_once(16, move |_| {
        let score = pb::ScoreRequest {
            text: "In the beginning. ".repeat(2222),
            samples: Some(4096),
            ..pb::ScoreRequest::default()
        };
        async move {
            let (client, _) = clients(address).await;
            code(client.clone().score(score).await.map(drop))
        }
    });
    let counts = beside(&process, "16 scores of 40 kB, 4096 samples", scores).await;
    let refused = counts
        .keys()
        .all(|end| ["InvalidArgument", "ResourceExhausted"].contains(&&**end));
    assert!(refused, "{counts:?}");
    let ones = "1,".repeat(219_000);
    for (name, body) in [
        ("ids", format!(r#"{{"prompt": [{ones}1]}}"#)),
        ("lists", format!(r#"{{"prompt": [[{ones}1]]}}"#)),
        ("what nobody knows", format!(r#"{{"x": [{ones}1]}}"#)),
        (
            "objects",
            format!(r#"{{"messages": [{}0]}}"#, r#"{"":1},"#.repeat(62_000)),
        ),
        ("fields", format!("{{{}\"\":1}}", "\"\":1,".repeat(87_000))),
        ("depth", "[".repeat(438_000)),
        (
            "a string",
            format!(r#"{{"x": "{}"}}"#, "\\n".repeat(219_000)),
        ),
    ] {
        let bodies = at_once(64, move |_| {
            let head = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: choir\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let sent = [head.as_str(), body.as_str()].concat();
            async move { exchange(http, sent.as_bytes()).await.status.to_string() }
        });
        let name = format!("64 bodies of 440 kB of {name}");
        let counts = beside(&process, &name, bodies).await;
        assert_eq!(counts, BTreeMap::from([("400".to_owned(), 64)]), "{name}");
    }
    let uploads = at_once(64, move |number| {
        let mut parts = upload(&format!("n{number}"), &vec![0; 4 << 20]);
        parts.truncate(8);
        async move {
            let (_, admin) = clients(address).await;
            code(uploads::add(&admin, parts).await.map(drop))
        }
    });
    let counts = beside(&process, "64 uploads that end early", uploads).await;
    assert!(!counts.contains_key("Ok"), "{counts:?}");
    let process = Arc::into_inner(process).expect("nobody else has it");
    assert_eq!(process.end(libc::SIGTERM), Some(0));
}
