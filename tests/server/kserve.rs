//! The Open Inference Protocol over gRPC, as its clients speak it.

use super::endings::until;
use super::*;
use choir::kserve as oip;
use oip::grpc_inference_service_client::GrpcInferenceServiceClient;
use oip::infer_parameter::ParameterChoice;
use oip::model_infer_request::InferInputTensor;

type Client = GrpcInferenceServiceClient<Channel>;

async fn client() -> Client {
    Client::new(channel(shared_address().await).await)
}

/// Bytes with their length before them.
fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tensor(name: &str, datatype: &str) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        ..InferInputTensor::default()
    }
}

/// A request as Triton's clients send it: raw.
pub fn infer(model: &str, max_tokens: i32) -> oip::ModelInferRequest {
    oip::ModelInferRequest {
        model_name: model.into(),
        id: "mine".into(),
        inputs: vec![
            tensor("text_input", "BYTES"),
            tensor("max_tokens", "INT32"),
            tensor("seed", "UINT64"),
        ],
        raw_input_contents: vec![
            string("And it came to pass"),
            max_tokens.to_le_bytes().into(),
            5u64.to_le_bytes().into(),
        ],
        ..oip::ModelInferRequest::default()
    }
}

fn text(response: &oip::ModelInferResponse) -> String {
    let raw = response.raw_output_contents.first().expect("an output");
    assert_eq!(response.outputs[0].name, "text_output");
    let (length, text) = raw.split_first_chunk().expect("a length");
    assert_eq!(u32::from_le_bytes(*length) as usize, text.len());
    String::from_utf8(text.to_vec()).expect("text")
}

fn last(response: &oip::ModelInferResponse) -> bool {
    let last = &response.parameters["triton_final_response"];
    last.parameter_choice == Some(ParameterChoice::BoolParam(true))
}

#[tokio::test]
async fn inferences_give_what_choirs_own_protocol_gives() {
    let (ours, _) = shared().await;
    let ours = generate(&ours, request("kjv", 12, 5)).await.expect("text");
    let mut client = client().await;
    let raw = client
        .model_infer(infer("kjv", 12))
        .await
        .expect("text")
        .into_inner();
    assert_eq!(text(&raw), ours.text());
    assert_eq!((raw.id.as_str(), raw.model_version.as_str()), ("mine", "1"));
    assert!(last(&raw));
    // The same with lists, and parameters for what has no tensor.
    let contents = oip::InferTensorContents {
        bytes_contents: vec![b"And it came to pass".to_vec()],
        ..Default::default()
    };
    let number = |number| oip::InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(number)),
    };
    let lists = oip::ModelInferRequest {
        inputs: vec![InferInputTensor {
            contents: Some(contents),
            ..tensor("text_input", "BYTES")
        }],
        raw_input_contents: Vec::new(),
        parameters: [
            ("max_tokens".to_owned(), number(12)),
            ("seed".to_owned(), number(5)),
        ]
        .into(),
        ..infer("kjv", 12)
    };
    let lists = client.model_infer(lists).await.expect("text").into_inner();
    let contents = lists.outputs[0].contents.as_ref().expect("contents");
    assert_eq!(contents.bytes_contents, [ours.text().into_bytes()]);
    let statistics = oip::ModelStatisticsRequest {
        name: "kjv".into(),
        ..Default::default()
    };
    let statistics = client
        .model_statistics(statistics)
        .await
        .expect("statistics")
        .into_inner();
    assert!(
        statistics.model_stats[0].inference_count >= 2,
        "{statistics:?}"
    );
}

#[tokio::test]
async fn streams_answer_many_requests_and_failures_end_none() {
    let mut client = client().await;
    let whole = client
        .model_infer(infer("kjv", 12))
        .await
        .expect("text")
        .into_inner();
    let flag = |flag| oip::InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(flag)),
    };
    let mut streamed = infer("kjv", 12);
    streamed.id = "streamed".into();
    streamed.parameters = [
        ("stream".to_owned(), flag(true)),
        ("triton_enable_empty_final_response".to_owned(), flag(true)),
    ]
    .into();
    let mut unknown = infer("nobody", 12);
    unknown.id = "unknown".into();
    let requests = vec![streamed, unknown, infer("kjv", 12)];
    let answers = client
        .model_stream_infer(tokio_stream::iter(requests))
        .await;
    let mut answers = answers.expect("a stream").into_inner();
    let (mut blocks, mut ended, mut refused, mut single) = (String::new(), false, 0, 0);
    while let Some(answer) = answers.message().await.expect("an orderly end") {
        let response = answer.infer_response.expect("a response");
        match response.id.as_str() {
            "unknown" => {
                assert!(
                    answer.error_message.contains("nobody"),
                    "{}",
                    answer.error_message
                );
                refused += 1;
            }
            "mine" => {
                assert_eq!(text(&response), text(&whole));
                single += 1;
            }
            _ if response.outputs.is_empty() => ended = last(&response),
            _ => {
                assert!(!ended && !last(&response), "a block after the end");
                blocks.push_str(&text(&response));
            }
        }
    }
    assert_eq!(blocks, text(&whole));
    assert_eq!((ended, refused, single), (true, 1, 1));
}

#[tokio::test]
async fn servers_and_models_are_described() {
    let mut client = client().await;
    let server = client.server_metadata(oip::ServerMetadataRequest {}).await;
    assert_eq!(server.expect("metadata").into_inner().name, "choir");
    let named = |name: &str| oip::ModelMetadataRequest {
        name: name.into(),
        version: "1".into(),
    };
    for model in ["base", "kjv", "kjv:0.5+holmes:0.5"] {
        let metadata = client
            .model_metadata(named(model))
            .await
            .expect(model)
            .into_inner();
        assert_eq!(metadata.inputs[0].name, "text_input");
        assert_eq!(metadata.outputs[0].datatype, "BYTES");
        let config = oip::ModelConfigRequest {
            name: model.into(),
            ..Default::default()
        };
        let config = client.model_config(config).await.expect(model).into_inner();
        assert_eq!(config.config.expect("config").max_batch_size, 0);
    }
    let status = client
        .model_metadata(named("nobody"))
        .await
        .expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    let second = oip::ModelMetadataRequest {
        name: "kjv".into(),
        version: "2".into(),
    };
    let status = client
        .model_metadata(second)
        .await
        .expect_err("one version");
    assert_eq!(status.code(), Code::InvalidArgument);
    for (name, ready) in [("kjv", true), ("nobody", false), ("", false)] {
        let asked = oip::ModelReadyRequest {
            name: name.into(),
            ..Default::default()
        };
        let told = client
            .model_ready(asked)
            .await
            .expect("an answer")
            .into_inner();
        assert_eq!(told.ready, ready, "{name}");
    }
    let index = client
        .repository_index(oip::RepositoryIndexRequest::default())
        .await;
    let index = index.expect("an index").into_inner().models;
    assert!(
        index
            .iter()
            .any(|model| model.name == "kjv" && model.state == "READY")
    );
    let all = client
        .model_statistics(oip::ModelStatisticsRequest::default())
        .await;
    assert_eq!(
        all.expect("statistics").into_inner().model_stats.len(),
        index.len()
    );
}

#[tokio::test]
async fn inferences_with_bad_tensors_are_refused_by_name() {
    let mut client = client().await;
    let change = |change: &dyn Fn(&mut oip::ModelInferRequest)| {
        let mut request = infer("kjv", 12);
        change(&mut request);
        request
    };
    for (field, request) in [
        (
            "text_input",
            change(&|r| {
                r.inputs.remove(0);
                r.raw_input_contents.remove(0);
            }),
        ),
        ("text_input", change(&|r| r.inputs[0].shape = vec![2])),
        (
            "text_input",
            change(&|r| r.inputs[0].shape = vec![i64::MAX, i64::MAX]),
        ),
        (
            "text_input",
            change(&|r| r.inputs[0].datatype = "INT32".into()),
        ),
        (
            "text_input",
            change(&|r| r.raw_input_contents[0] = vec![9, 0, 0, 0, b'a']),
        ),
        (
            "text_input",
            change(&|r| r.raw_input_contents[0] = string("")),
        ),
        (
            "text_input",
            change(&|r| r.inputs[0].contents = Some(Default::default())),
        ),
        (
            "text_input",
            change(&|r| r.raw_input_contents[0] = string(&"q".repeat(10_001))),
        ),
        (
            "raw_input_contents",
            change(&|r| {
                r.raw_input_contents.pop();
            }),
        ),
        ("inputs", change(&|r| r.inputs[1].name = "logits".into())),
        ("seed", change(&|r| r.inputs[1] = tensor("seed", "UINT64"))),
        (
            "max_tokens",
            change(&|r| r.raw_input_contents[1] = (-1i32).to_le_bytes().into()),
        ),
        (
            "max_tokens",
            change(&|r| r.raw_input_contents[1] = 0i32.to_le_bytes().into()),
        ),
        (
            "max_tokens",
            change(&|r| r.inputs[1].datatype = "FP32".into()),
        ),
        (
            "outputs",
            change(&|r| {
                r.outputs
                    .push(oip::model_infer_request::InferRequestedOutputTensor {
                        name: "logits".into(),
                        ..Default::default()
                    })
            }),
        ),
        ("model_version", change(&|r| r.model_version = "2".into())),
        ("model_name", change(&|r| r.model_name = String::new())),
        ("model_name", change(&|r| r.model_name = "kjv:x".into())),
        (
            "stream",
            change(&|r| {
                let flag = ParameterChoice::BoolParam(true);
                let flag = oip::InferParameter {
                    parameter_choice: Some(flag),
                };
                r.parameters.insert("stream".into(), flag);
            }),
        ),
    ] {
        let status = client.model_infer(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().starts_with(field), "{field}: {status}");
    }
    let status = client
        .model_infer(infer("nobody", 4))
        .await
        .expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn streams_whose_clients_leave_are_cancelled() {
    let server = Server::start(engine_config()).await;
    let (_, admin) = server.clients().await;
    let mut client = Client::new(channel(server.address).await);
    let (sender, requests) = tokio::sync::mpsc::channel(4);
    for _ in 0..3 {
        sender.send(infer("kjv", 4000)).await.expect("room");
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let answers = client.model_stream_infer(requests).await.expect("a stream");
    until(&admin, |now| now.running == 3).await;
    drop((answers, sender, client));
    until(&admin, |now| {
        now.running == 0 && now.open_streams == 0 && now.leases == 0
    })
    .await;
    drop(admin);
    server.stop().await;
}
