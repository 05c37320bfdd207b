//! HTTP as clients write it: OpenAI's interface, health, and all that is no request.

use super::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, read to the end of its connection.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `error` object, which every refusal has.
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "no {field}: {error}");
        }
        error
    }

    /// What server-sent events hold, but for the last one, which is `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self
            .body
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect("an event"))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        let read = |event| serde_json::from_str(event).expect("JSON");
        events.into_iter().map(read).collect()
    }
}

/// Sends bytes as they are and reads what comes until the server closes the connection.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Answered {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let (mut answers, mut sends) = stream.split();
    let mut answer = Vec::new();
    // Where not all was read that was sent, the connection ends with an error after the answer, in both directions.
    let _ = tokio::join!(sends.write_all(bytes), answers.read_to_end(&mut answer));
    parse(&answer)
}

pub fn parse(answer: &[u8]) -> Answered {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().expect("a status line");
    let headers: HashMap<String, String> = lines
        .map(|line| line.split_once(':').expect("a header"))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let body = match headers.get("transfer-encoding").map(String::as_str) {
        Some("chunked") => dechunk(body),
        _ => body.to_owned(),
    };
    Answered {
        status: status
            .split(' ')
            .nth(1)
            .expect("a status")
            .parse()
            .expect("a number"),
        headers,
        body,
    }
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        let Some((chunk, rest)) = rest.split_at_checked(size) else {
            panic!("a chunk ends early: {body:?}");
        };
        whole.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap_or(rest);
    }
    whole
}

/// One request with a body, if any.
pub async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: Option<&Value>,
) -> Answered {
    let body = body.map_or_else(String::new, Value::to_string);
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: choir\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    exchange(address, request.as_bytes()).await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Answered {
    ask(address, "POST", path, "", Some(body)).await
}

pub async fn get(address: SocketAddr, path: &str) -> Answered {
    ask(address, "GET", path, "", None).await
}

async fn complete(body: Value) -> Answered {
    let answered = post(shared_http().await, "/v1/completions", &body).await;
    assert_eq!(answered.status, 200, "{answered:?}");
    answered
}

fn simple(model: &str) -> Value {
    json!({"model": model, "prompt": "And it came to pass", "max_tokens": 12, "seed": 5})
}

#[tokio::test]
async fn completions_are_what_grpc_gives() {
    let (client, _) = shared().await;
    for (model, variant) in [("base", ""), ("kjv", "kjv")] {
        let ours = generate(&client, request(variant, 12, 5))
            .await
            .expect("text");
        let theirs = complete(simple(model)).await.json();
        let choice = &theirs["choices"][0];
        assert_eq!(choice["text"], ours.text(), "{model}");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(theirs["object"], "text_completion");
        assert_eq!(theirs["model"], model);
        let usage = &theirs["usage"];
        assert_eq!(usage["prompt_tokens"], ours.finished.prompt_tokens);
        assert_eq!(usage["completion_tokens"], ours.finished.generated_tokens);
        assert_eq!(usage["nfe"], ours.finished.nfe);
        assert_eq!(choice["choir"]["seed"], 5);
    }
    let mixed = generate(
        &client,
        pb::GenerateRequest {
            mix: vec![part("kjv", Some(0.5)), part("holmes", Some(0.5))],
            ..request("", 12, 5)
        },
    );
    let mixed = mixed.await.expect("text");
    let theirs = complete(simple("kjv:0.5+holmes:0.5")).await.json();
    assert_eq!(theirs["choices"][0]["text"], mixed.text());
}

#[tokio::test]
async fn completions_stream_the_same_text_with_its_usage_at_the_end() {
    let whole = complete(simple("kjv")).await.json();
    let mut body = simple("kjv");
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body["choir"] = json!({"want_steps": true});
    let answered = complete(body).await;
    assert_eq!(answered.headers["content-type"], "text/event-stream");
    let mut events = answered.events();
    let usage = events.pop().expect("usage");
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(usage["choices"], json!([]));
    let text: String = events
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().expect("text"))
        .collect();
    assert_eq!(whole["choices"][0]["text"], text);
    let last = events.last().expect("an event");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let revealed = |event: &&Value| event["choices"][0]["choir"]["revealed"].is_array();
    assert!(events.iter().filter(revealed).count() >= 12, "steps");
}

#[tokio::test]
async fn completions_of_several_prompts_are_in_order() {
    let mut body = simple("kjv");
    body["prompt"] = json!(["And he said,", "In the beginning"]);
    body["n"] = 2.into();
    body["echo"] = true.into();
    let whole = complete(body.clone()).await.json();
    let texts: Vec<&str> = (0..4)
        .map(|index| {
            let choice = &whole["choices"][index];
            assert_eq!(choice["index"], index);
            choice["text"].as_str().expect("text")
        })
        .collect();
    assert!(
        texts[..2]
            .iter()
            .all(|text| text.starts_with("And he said,"))
    );
    assert!(
        texts[2..]
            .iter()
            .all(|text| text.starts_with("In the beginning"))
    );
    assert_ne!(texts[0], texts[1], "each choice has a seed of its own");
    assert_eq!(whole["usage"]["completion_tokens"], 48);
    body["stream"] = true.into();
    let mut streamed = [const { String::new() }; 4];
    for event in complete(body).await.events() {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        streamed[index].push_str(choice["text"].as_str().expect("text"));
    }
    assert_eq!(streamed, *texts);
    // Token ids are a prompt, too; a suffix is filled in before; text ends before what stops it.
    let mut body = simple("base");
    body["prompt"] = json!([5, 6, 7]);
    body["suffix"] = " night.".into();
    body["stop"] = "zzzz".into();
    body["unheard_of"] = json!({"is": "ignored"});
    complete(body).await;
    let mut body = json!({"model": "base", "seed": 3});
    body["choir"] =
        json!({"template": ["In the ", 3, " there was a ", 2, "."], "priority": "batch"});
    complete(body).await;
}

#[tokio::test]
async fn models_are_the_base_and_its_variants() {
    let address = shared_http().await;
    let models = get(address, "/v1/models").await.json();
    let ids: Vec<&str> = models["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| model["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids[0], "base");
    assert!(ids.contains(&"kjv") && ids.contains(&"holmes"), "{ids:?}");
    let one = get(address, "/v1/models/kjv").await.json();
    assert_eq!(
        (&one["object"], &one["owned_by"]),
        (&"model".into(), &"choir".into())
    );
    assert!(
        one["created"]
            .as_u64()
            .is_some_and(|created| created > 1_600_000_000)
    );
    assert_eq!(one["choir"]["base"], "base");
    assert!(
        one["choir"].get("source").is_none(),
        "no path of the server"
    );
    let none = get(address, "/v1/models/nobody").await;
    assert_eq!(none.status, 404);
    assert_eq!(none.error()["code"], "model_not_found");
}

#[tokio::test]
async fn health_and_metrics_are_told_and_answers_have_ids() {
    let address = shared_http().await;
    complete(simple("kjv")).await;
    for path in ["/health", "/ready"] {
        let answered = get(address, path).await;
        assert_eq!((answered.status, answered.body.as_str()), (200, "ok\n"));
        assert!(answered.headers["x-request-id"].starts_with("req-"));
    }
    let own = ask(address, "GET", "/health", "x-request-id: mine-7\r\n", None).await;
    assert_eq!(own.headers["x-request-id"], "mine-7");
    let text = get(address, "/metrics").await.body;
    for series in [
        "choir_build_info{version=",
        "choir_requests_total{variant=\"kjv\",protocol=\"openai\",outcome=\"finished\"}",
        "choir_request_first_block_seconds_bucket{protocol=\"openai\",le=\"0.001\"}",
        "choir_request_queue_seconds_count{protocol=\"openai\"}",
        "choir_cache_pages{state=\"free\"}",
        "choir_memory_bytes{part=\"base\"}",
        "choir_variant_tokens_generated_total{variant=\"kjv\"}",
        "# TYPE choir_steps_total counter",
        "# TYPE choir_request_duration_seconds histogram",
    ] {
        assert!(text.contains(series), "no {series} in:\n{text}");
    }
}

#[tokio::test]
async fn requests_with_bad_fields_are_refused_by_their_names() {
    let address = shared_http().await;
    let long = "q".repeat(10_001);
    for (field, change) in [
        ("model", json!({"model": null})),
        ("model", json!({"model": 3})),
        ("model", json!({"model": ""})),
        ("model", json!({"model": "kjv:x"})),
        ("model", json!({"model": "kjv+kjv"})),
        ("model", json!({"model": "kjv:99"})),
        ("prompt", json!({"prompt": null})),
        ("prompt", json!({"prompt": ""})),
        ("prompt", json!({"prompt": []})),
        ("prompt", json!({"prompt": {}})),
        ("prompt", json!({"prompt": [1, "a"]})),
        ("prompt", json!({"prompt": [-1]})),
        ("prompt", json!({"prompt": [4_000_000_000_u32]})),
        ("prompt", json!({"prompt": long})),
        ("prompt", json!({"prompt": vec!["a"; 129]})),
        ("max_tokens", json!({"max_tokens": 0})),
        ("max_tokens", json!({"max_tokens": -1})),
        ("max_tokens", json!({"max_tokens": "many"})),
        ("max_tokens", json!({"max_tokens": 100_000})),
        ("n", json!({"n": 0})),
        ("n", json!({"n": 129})),
        ("temperature", json!({"temperature": -1})),
        ("temperature", json!({"temperature": "hot"})),
        ("top_p", json!({"top_p": 0})),
        ("seed", json!({"seed": 0.5})),
        ("stop", json!({"stop": [1]})),
        ("stop", json!({"stop": [""]})),
        ("stream", json!({"stream": "yes"})),
        ("logprobs", json!({"logprobs": 3})),
        ("best_of", json!({"best_of": 3})),
        ("presence_penalty", json!({"presence_penalty": 0.5})),
        ("logit_bias", json!({"logit_bias": {"5": 1}})),
        ("choir", json!({"choir": {"unheard_of": 1}})),
        ("choir.predictor", json!({"choir": {"predictor": "guess"}})),
        ("choir.steps", json!({"choir": {"predictor": "ancestral"}})),
        ("choir.steps", json!({"choir": {"steps": 0}})),
        (
            "choir.threshold",
            json!({"choir": {"predictor": "confidence", "threshold": 2}}),
        ),
        ("choir.priority", json!({"choir": {"priority": "now"}})),
        ("choir.template", json!({"choir": {"template": ["a", 3]}})),
        (
            "choir.template",
            json!({"prompt": null, "max_tokens": null, "choir": {"template": [3]}}),
        ),
        (
            "choir.template",
            json!({"prompt": null, "max_tokens": null, "choir": {"template": ["a", -3]}}),
        ),
    ] {
        let mut body = simple("kjv");
        for (name, value) in change.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let answered = post(address, "/v1/completions", &body).await;
        assert_eq!(answered.status, 400, "{change}: {answered:?}");
        let error = answered.error();
        assert_eq!(error["param"], field, "{change}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let unknown = post(address, "/v1/completions", &simple("nobody")).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.error()["code"], "model_not_found");
    let mut late = simple("kjv");
    late["choir"] = json!({"timeout_ms": 0});
    let late = post(address, "/v1/completions", &late).await;
    assert!([408, 429].contains(&late.status), "{late:?}");
    late.error();
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused() {
    let address = shared_http().await;
    let send = async |head: &str, body: &[u8]| {
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{head}\r\n");
        exchange(address, &[head.as_bytes(), body].concat()).await
    };
    for body in [
        "",
        "{",
        "[]",
        "3",
        "\"model\"",
        "{\"model\": \"kjv\"",
        "nonsense",
        "{\"a\":\u{0}}",
    ] {
        let answered = send(
            &format!("content-length: {}\r\n", body.len()),
            body.as_bytes(),
        )
        .await;
        assert_eq!(answered.status, 400, "{body}: {answered:?}");
        answered.error();
    }
    let deep = "[".repeat(100_000);
    let answered = send(
        &format!("content-length: {}\r\n", deep.len()),
        deep.as_bytes(),
    )
    .await;
    assert!([400, 413].contains(&answered.status), "{answered:?}");
    // More than there may be: said before it is read.
    let answered = send("content-length: 10485760\r\nexpect: 100-continue\r\n", b"").await;
    assert_eq!(answered.status, 413, "{answered:?}");
    answered.error();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(4);
    let answered = send("transfer-encoding: chunked\r\n", chunk.as_bytes()).await;
    assert_eq!(answered.status, 413, "chunks without an end: {answered:?}");
    let answered = send("transfer-encoding: chunked\r\n", b"nonsense\r\n").await;
    assert_eq!(answered.status, 400, "{answered:?}");
}

#[tokio::test]
async fn routes_and_methods_that_are_not_there_are_said() {
    let address = shared_http().await;
    for (method, path, status) in [
        ("GET", "/page.html", 404),
        ("POST", "/", 405),
        ("GET", "/v1", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/v1/models/%FF", 400),
        ("GET", "/v1/models/..%2F..%2Fetc", 404),
    ] {
        let answered = ask(address, method, path, "origin: https://a.example\r\n", None).await;
        assert_eq!(answered.status, status, "{method} {path}: {answered:?}");
        let allowed = answered.headers.contains_key("access-control-allow-origin");
        assert!(!allowed, "no origin is named: {answered:?}");
    }
    let head = ask(address, "HEAD", "/v1/models", "", None).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let old = exchange(address, b"GET /health HTTP/1.0\r\n\r\n").await;
    assert_eq!((old.status, old.body.as_str()), (200, "ok\n"));
    let nonsense = exchange(address, b"nonsense\r\n\r\n").await;
    assert_eq!(nonsense.status, 400);
}

#[tokio::test]
async fn pages_run_nothing_but_their_own_files() {
    let address = shared_http().await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/ask.js", "text/javascript"),
        ("/denoise.js", "text/javascript"),
        ("/status.js", "text/javascript"),
        ("/variants.js", "text/javascript"),
    ] {
        let answered = get(address, path).await;
        assert_eq!(answered.status, 200, "{path}");
        assert!(answered.headers["content-type"].starts_with(kind), "{path}");
        let policy = &answered.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for inline in [
            "<style", "style=\"", "onclick", "<script>", "http://", "https://",
        ] {
            assert!(!answered.body.contains(inline), "{path} has {inline}");
        }
    }
}

#[tokio::test]
async fn completions_whose_clients_leave_are_cancelled() {
    let server = Server::start(engine_config()).await;
    let (_, admin) = server.clients().await;
    for stream in [true, false] {
        let mut body = simple("kjv");
        body["max_tokens"] = 4000.into();
        body["stream"] = stream.into();
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut connection = TcpStream::connect(server.http).await.expect("connect");
        connection.write_all(head.as_bytes()).await.expect("write");
        connection.write_all(body.as_bytes()).await.expect("write");
        endings::until(&admin, |status| status.running == 1).await;
        drop(connection);
        endings::until(&admin, |status| {
            status.running + status.waiting == 0 && status.open_streams == 0 && status.leases == 0
        })
        .await;
    }
    let text = get(server.http, "/metrics").await.body;
    let cancelled =
        "choir_requests_total{variant=\"kjv\",protocol=\"openai\",outcome=\"cancelled\"} 2";
    assert!(text.contains(cancelled), "{text}");
    server.stop().await;
}
