//! Between tensors and requests, both ways.

use super::tensors::{INPUTS, Inputs};
use crate::engine::SamplingParams;
use crate::kserve as pb;
use crate::server::access::Caller;
use crate::server::metrics::Protocol;
use crate::server::mix;
use crate::server::requests::{Ask, InputText, RequestInput};
use crate::server::status::BadField;
use pb::infer_parameter::ParameterChoice;
use std::collections::HashMap;
use std::time::{Duration, Instant};

pub const OUTPUT: &str = "text_output";
/// The version that every model has.
pub const VERSION: &str = "1";
const WANTS_LAST: &str = "triton_enable_empty_final_response";
const LAST: &str = "triton_final_response";

/// How the answers to one request are to be sent.
#[derive(Clone, Debug)]
pub struct InferForm {
    model: String,
    id: String,
    /// An answer for each block.
    pub stream: bool,
    /// An empty answer after the last block.
    pub wants_last: bool,
    /// Bytes as clients with tensors send them, and not as lists.
    raw: bool,
}

/// What is asked, and how it is to be shown.
pub fn read(
    mut request: pb::ModelInferRequest,
    deadline: Option<Instant>,
    caller: Caller,
) -> Result<(Ask, InferForm), BadField> {
    check_version(&request.model_version)?;
    if let Some(other) = request.outputs.iter().find(|output| output.name != OUTPUT) {
        let named: String = other.name.chars().take(64).collect();
        return Err(BadField::new(
            "outputs",
            format!("there is no output {named:?}"),
        ));
    }
    let raw = !request.raw_input_contents.is_empty();
    let mut inputs = Inputs::read(&mut request)?;
    let mut texts = inputs.texts("text_input")?;
    let text = match (texts.pop(), texts.is_empty()) {
        (Some(text), true) => text,
        (None, _) => return Err(BadField::new("text_input", "it is missing")),
        (Some(_), false) => return Err(BadField::new("text_input", "it has more than one text")),
    };
    let timeout = match flag(&request.parameters, "timeout") {
        Some(ParameterChoice::Int64Param(micros)) => u64::try_from(*micros).ok(),
        Some(ParameterChoice::Uint64Param(micros)) => Some(*micros),
        _ => None,
    };
    let within = |micros| Instant::now().checked_add(Duration::from_micros(micros));
    let timeout = timeout.filter(|&micros| micros > 0).and_then(within);
    let shown = InferForm {
        stream: inputs.flag("stream")?.unwrap_or(false),
        wants_last: matches!(
            flag(&request.parameters, WANTS_LAST),
            Some(ParameterChoice::BoolParam(true))
        ),
        raw,
        id: request.id,
        model: request.model_name,
    };
    let ask = Ask {
        protocol: Protocol::kserve,
        mix: mix::named("model_name", &shown.model)?,
        given: RequestInput::Prompt {
            prompt: InputText::Written(text),
            suffix: None,
            max_tokens: inputs.whole("max_tokens")?,
        },
        choice: SamplingParams {
            temperature: inputs.real("temperature")?,
            nucleus_p: inputs.real("top_p")?,
            ..SamplingParams::default()
        },
        stop: inputs.texts("stop")?,
        seed: inputs.whole("seed")?,
        deadline: deadline.into_iter().chain(timeout).min(),
        caller,
        ..Ask::default()
    };
    Ok((ask, shown))
}

fn flag<'a>(
    parameters: &'a HashMap<String, pb::InferParameter>,
    name: &str,
) -> Option<&'a ParameterChoice> {
    parameters.get(name)?.parameter_choice.as_ref()
}

/// Every model has one version.
pub fn check_version(version: &str) -> Result<(), BadField> {
    match version {
        "" | VERSION => Ok(()),
        _ => Err(BadField::new("model_version", "there is only version 1")),
    }
}

/// What a request has in the place of what the engine calls `field`.
pub fn path(field: &'static str) -> &'static str {
    match field {
        "prompt" => "text_input",
        "nucleus_p" => "top_p",
        "mix" => "model_name",
        other => other,
    }
}

impl InferForm {
    /// An answer with a piece of the text, or the whole of it.
    pub fn text(&self, text: String, last: bool) -> pb::ModelInferResponse {
        let bytes = text.into_bytes();
        let (contents, raw_output_contents) = match self.raw {
            true => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX); // never so long
                (None, vec![[&length.to_le_bytes()[..], &bytes].concat()])
            }
            false => {
                let contents = pb::InferTensorContents {
                    bytes_contents: vec![bytes],
                    ..pb::InferTensorContents::default()
                };
                (Some(contents), Vec::new())
            }
        };
        let output = pb::model_infer_response::InferOutputTensor {
            name: OUTPUT.into(),
            datatype: "BYTES".into(),
            shape: vec![1],
            contents,
            ..Default::default()
        };
        pb::ModelInferResponse {
            outputs: vec![output],
            raw_output_contents,
            ..self.empty(last)
        }
    }

    /// An answer without a text.
    pub fn empty(&self, last: bool) -> pb::ModelInferResponse {
        let last = pb::InferParameter {
            parameter_choice: Some(ParameterChoice::BoolParam(last)),
        };
        pb::ModelInferResponse {
            model_name: self.model.clone(),
            model_version: VERSION.into(),
            id: self.id.clone(),
            parameters: HashMap::from([(LAST.to_owned(), last)]),
            ..pb::ModelInferResponse::default()
        }
    }

    /// What is told of a request that failed, where others of the stream go on.
    pub fn failed(id: String, message: &str) -> pb::ModelStreamInferResponse {
        pb::ModelStreamInferResponse {
            error_message: message.to_owned(),
            infer_response: Some(pb::ModelInferResponse {
                id,
                ..pb::ModelInferResponse::default()
            }),
        }
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn is_mix(&self) -> bool {
        self.model.contains(['+', ':'])
    }

    pub fn id(&self) -> String {
        self.id.clone()
    }
}

fn datatype(kind: pb::DataType) -> &'static str {
    match kind {
        pb::DataType::TypeBool => "BOOL",
        pb::DataType::TypeInt32 => "INT32",
        pb::DataType::TypeUint64 => "UINT64",
        pb::DataType::TypeFp32 => "FP32",
        _ => "BYTES",
    }
}

/// What every model takes and gives.
pub fn metadata(name: String) -> pb::ModelMetadataResponse {
    let tensor = |name: &str, kind, length| pb::model_metadata_response::TensorMetadata {
        name: name.to_owned(),
        datatype: datatype(kind).to_owned(),
        shape: vec![length],
    };
    let inputs = INPUTS.map(|(name, kind)| tensor(name, kind, dims(name)));
    pb::ModelMetadataResponse {
        name,
        versions: vec![VERSION.into()],
        platform: PLATFORM.into(),
        inputs: inputs.into(),
        outputs: vec![tensor(OUTPUT, pb::DataType::TypeString, 1)],
    }
}

/// The same as Triton has it.
pub fn config(name: String) -> pb::ModelConfig {
    let input = |(name, kind): (&str, pb::DataType)| pb::ModelInput {
        name: name.to_owned(),
        data_type: kind.into(),
        dims: vec![dims(name)],
        optional: name != "text_input",
    };
    let output = pb::ModelOutput {
        name: OUTPUT.into(),
        data_type: pb::DataType::TypeString.into(),
        dims: vec![1],
    };
    pb::ModelConfig {
        name,
        platform: PLATFORM.into(),
        max_batch_size: 0,
        input: INPUTS.map(input).into(),
        output: vec![output],
        backend: PLATFORM.into(),
        model_transaction_policy: Some(pb::ModelTransactionPolicy { decoupled: true }),
    }
}

const PLATFORM: &str = "choir";

/// Any number of strings may stop a text; of all else there is one.
fn dims(name: &str) -> i64 {
    if name == "stop" { -1 } else { 1 }
}
