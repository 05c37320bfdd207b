//! Conversations: written as the model's chat template does, and refused where there is none or it fails.

use super::*;
use choir::model::tokenizer::Tokenizer;

const TEMPLATE: &str = "<|endoftext|>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:\
    {% if enable_thinking is defined and not enable_thinking %} (at once){% endif %}";

/// A server whose model has this chat template.
async fn with_template(template: &str) -> Server {
    let config = serde_json::json!({
        "add_bos_token": true, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "chat_template": template,
    });
    let config = config.to_string();
    Server::start_with(engine_config(), |mut generation| {
        let pieces = BaseSource::Embedded.tokenizer_json().expect("tokenizer");
        let tokenizer = Tokenizer::from_files(|name| match name {
            "tokenizer.json" => Some(pieces.clone().into_bytes()),
            "tokenizer_config.json" => Some(config.clone().into_bytes()),
            _ => None,
        });
        generation.tokenizer = Arc::new(tokenizer.expect("tokenizer"));
        generation
    })
    .await
}

fn turn(role: pb::Role, content: &str) -> pb::Message {
    pb::Message {
        role: role.into(),
        content: content.into(),
    }
}

fn conversation(messages: Vec<pb::Message>) -> pb::GenerateRequest {
    pb::GenerateRequest {
        prompt: String::new(),
        messages,
        ..request("", 12, 5)
    }
}

#[tokio::test]
async fn a_conversation_is_the_prompt_that_the_template_makes_of_it() {
    let server = with_template(TEMPLATE).await;
    let (client, _) = server.clients().await;
    let messages = vec![
        turn(pb::Role::System, "Be brief."),
        turn(pb::Role::User, "Who came to pass? <|endoftext|>"),
        turn(pb::Role::Assistant, "It."),
        turn(pb::Role::User, "When?"),
    ];
    let prompt = "system: Be brief.\nuser: Who came to pass? <|endoftext|>\nassistant: It.\nuser: When?\nassistant:";
    for (enable_thinking, rest) in [(None, ""), (Some(true), ""), (Some(false), " (at once)")] {
        let chat = pb::GenerateRequest {
            enable_thinking,
            ..conversation(messages.clone())
        };
        let plain = pb::GenerateRequest {
            prompt: format!("{prompt}{rest}"),
            ..request("", 12, 5)
        };
        let chat = generate(&client, chat).await.expect("an answer");
        let plain = generate(&client, plain).await.expect("a text");
        assert_eq!(chat.tokens(), plain.tokens());
        assert_eq!(chat.finished.prompt_tokens, plain.finished.prompt_tokens);
    }
    // As tokens they are fewer.
    let (text, control) = (
        request("", 4, 1),
        pb::GenerateRequest {
            control_tokens: true,
            ..request("", 4, 1)
        },
    );
    let with_end = |request: pb::GenerateRequest| pb::GenerateRequest {
        prompt: "one<|endoftext|>two".into(),
        ..request
    };
    let text = generate(&client, with_end(text)).await.expect("a text");
    let control = generate(&client, with_end(control)).await.expect("a text");
    assert!(control.finished.prompt_tokens < text.finished.prompt_tokens);
    server.stop().await;
}

#[tokio::test]
async fn conversations_that_nobody_can_answer_are_refused() {
    let server = with_template(TEMPLATE).await;
    let (client, _) = server.clients().await;
    let hello = || turn(pb::Role::User, "hello");
    let cases = [
        (
            conversation(vec![turn(pb::Role::User, "")]),
            "message 0 is empty",
        ),
        (
            conversation(vec![turn(pb::Role::Unspecified, "x"), hello()]),
            "message 0 has no role",
        ),
        (
            conversation(vec![
                pb::Message {
                    role: 77,
                    content: "x".into(),
                },
                hello(),
            ]),
            "message 0 has no role",
        ),
        (
            conversation(vec![hello(), turn(pb::Role::Assistant, "x")]),
            "the last one is the assistant's",
        ),
        (conversation(vec![hello(); 1025]), "more than 1024"),
        (
            conversation(vec![turn(pb::Role::User, &"x".repeat(10_001))]),
            "bytes",
        ),
        (
            conversation(vec![turn(pb::Role::User, &"x y ".repeat(500))]),
            "more tokens than the 200",
        ),
        (
            pb::GenerateRequest {
                messages: vec![hello()],
                ..request("", 4, 1)
            },
            "instead of prompt",
        ),
        (
            pb::GenerateRequest {
                enable_thinking: Some(true),
                ..request("", 4, 1)
            },
            "no messages",
        ),
    ];
    for (request, part) in cases {
        let status = generate(&client, request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{part}: {status}");
        assert!(status.message().contains(part), "{part}: {status}");
    }
    server.stop().await;
}

#[tokio::test]
async fn templates_that_fail_are_told_as_what_they_are() {
    let ask = || conversation(vec![turn(pb::Role::User, "hello")]);
    let (client, _) = shared().await;
    let status = generate(&client, ask()).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("no chat template"), "{status}");
    for (template, code, part) in [
        ("{% for %}", Code::FailedPrecondition, "cannot be read"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            Code::FailedPrecondition,
            "does not come to an end",
        ),
        (
            "{{ raise_exception('nobody speaks') }}",
            Code::InvalidArgument,
            "nobody speaks",
        ),
    ] {
        let server = with_template(template).await;
        let (client, _) = server.clients().await;
        let status = generate(&client, ask()).await.expect_err("refused");
        assert_eq!(status.code(), code, "{template}: {status}");
        assert!(status.message().contains(part), "{template}: {status}");
        server.stop().await;
    }
}

#[tokio::test]
async fn chats_over_http_are_the_same_conversations() {
    use serde_json::json;
    let server = with_template(TEMPLATE).await;
    let (client, _) = server.clients().await;
    let ours = conversation(vec![
        turn(pb::Role::System, "Be brief."),
        turn(pb::Role::User, "When?"),
    ]);
    let ours = generate(&client, ours).await.expect("text");
    let mut body = json!({
        "model": "base",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "When?"}]},
        ],
        "max_tokens": 12,
        "seed": 5,
    });
    let path = "/v1/chat/completions";
    let whole = web::post(server.http, path, &body).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["content"], ours.text());
    assert_eq!(whole["usage"]["prompt_tokens"], ours.finished.prompt_tokens);
    body["stream"] = true.into();
    let streamed = web::post(server.http, path, &body).await;
    let mut text = String::new();
    for event in streamed.events() {
        assert_eq!(event["object"], "chat.completion.chunk");
        text.push_str(
            event["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default(),
        );
    }
    assert_eq!(text, ours.text());
    for bad in [
        json!(null),
        json!([]),
        json!("hello"),
        json!(["hello"]),
        json!([{"content": "hello"}]),
        json!([{"role": "tool", "content": "hello"}]),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": ""}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]),
        json!([{"role": "assistant", "content": "hello"}]),
        json!(vec![json!({"role": "user", "content": "a"}); 1025]),
    ] {
        body["messages"] = bad;
        let refused = web::post(server.http, path, &body).await;
        assert_eq!(refused.status, 400, "{body}");
        assert_eq!(refused.error()["param"], "messages", "{body}");
    }
    body["messages"] = json!([{"role": "user", "content": "When?"}]);
    for (field, value) in [
        ("tools", json!([{"type": "function"}])),
        ("logprobs", json!(true)),
        ("response_format", json!({"type": "json_object"})),
        ("choir.template", json!({"template": ["a", 3]})),
    ] {
        let mut body = body.clone();
        body[field.split('.').next().expect("a field")] = value;
        let refused = web::post(server.http, path, &body).await;
        assert_eq!(refused.status, 400, "{field}");
        assert_eq!(refused.error()["param"], field);
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn chats_with_a_model_that_has_no_template_are_refused() {
    let body =
        serde_json::json!({"model": "base", "messages": [{"role": "user", "content": "When?"}]});
    let refused = web::post(shared_http().await, "/v1/chat/completions", &body).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let error = refused.error();
    assert_eq!(error["param"], "messages");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|said| said.contains("no chat template")),
        "{error}"
    );
}
