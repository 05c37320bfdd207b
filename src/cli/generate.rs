//! `choir generate`: a prompt continued, block by block as the server sends it.

use super::client::{MixArgs, ServerArgs, block_on, refused};
use super::sampling::SamplingArgs;
use crate::client::Connection;
use crate::pb;
use crate::pb::generate_response::Event;
use crate::pb::inference_client::InferenceClient;
use crate::pb::piece::Piece;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::io::{Read, Write};

/// Continue a prompt, or fill in a text.
///
/// The text goes to standard output as it comes, a line of figures to standard error at the end. A variant of the absorbing
/// process reveals token by token; one of the uniform process refines all tokens together, so that few --steps give a
/// whole text: `choir variants list` says which is which.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// Text to continue; "-" reads it from standard input.
    #[arg(required_unless_present = "template")]
    prompt: Option<String>,
    #[command(flatten)]
    mix: MixArgs,
    /// Tokens to make at most [default: 128].
    #[arg(long, short = 'n')]
    max_tokens: Option<u32>,
    /// Text that stands after what is made, --max-tokens later.
    #[arg(long)]
    suffix: Option<String>,
    /// Text with holes instead of a prompt: [[5]] is a hole of five tokens, as in "It was a [[3]] night, and [[8]].".
    #[arg(long, conflicts_with_all = ["prompt", "suffix", "max_tokens"])]
    template: Option<Template>,
    /// The same seed, request and generation give the same text.
    #[arg(long)]
    seed: Option<u64>,
    /// End before this text; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// The prompt is what a user says to the model: it is written as the model's chat template does.
    #[arg(long, conflicts_with_all = ["suffix", "template", "control_tokens"])]
    chat: bool,
    #[command(flatten)]
    turns: TurnArgs,
    /// The text of a control token in the prompt, as <|im_end|>, is that token.
    #[arg(long)]
    control_tokens: bool,
    /// Show every denoising step: what it revealed, and where.
    #[arg(long)]
    show_steps: bool,
    /// Take what interactive requests leave.
    #[arg(long)]
    batch: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON object per event.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What a conversation begins with.
#[derive(Args, Clone, Debug)]
pub struct TurnArgs {
    /// Chat: what the model is told before anything else.
    #[arg(long)]
    pub system: Option<String>,
    /// Chat: whether a model that can think aloud first does [default: as its template says].
    #[arg(long, value_name = "WHETHER")]
    pub thinking: Option<bool>,
}

/// A turn of a conversation.
pub fn turn(role: pb::Role, content: impl Into<String>) -> pb::Message {
    pb::Message {
        role: role.into(),
        content: content.into(),
    }
}

/// Pieces of text and holes.
#[derive(Clone, Debug)]
struct Template(Vec<pb::Piece>);

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut add = |piece| pieces.push(pb::Piece { piece: Some(piece) });
        while let Some((before, after)) = rest.split_once("[[") {
            let (count, after) = after
                .split_once("]]")
                .ok_or("a hole begins with [[ and does not end with ]]")?;
            let count = count
                .trim()
                .parse()
                .map_err(|_| format!("[[{count}]] is no hole: it must hold a number"))?;
            if !before.is_empty() {
                add(Piece::Text(before.to_owned()));
            }
            add(Piece::Hole(count));
            rest = after;
        }
        if !rest.is_empty() {
            add(Piece::Text(rest.to_owned()));
        }
        Ok(Template(pieces))
    }
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input")?;
            text
        }
        text => text.unwrap_or_default().to_owned(),
    };
    if !args.chat && (args.turns.system.is_some() || args.turns.thinking.is_some()) {
        bail!("--system and --thinking are for --chat");
    }
    let (prompt, messages) = match args.chat {
        false => (prompt, Vec::new()),
        true => {
            let system = args.turns.system.iter();
            let system = system.map(|text| turn(pb::Role::System, text));
            let user = turn(pb::Role::User, prompt);
            (String::new(), system.chain([user]).collect())
        }
    };
    let request = pb::GenerateRequest {
        mix: args.mix.wire(),
        prompt,
        messages,
        enable_thinking: args.turns.thinking,
        control_tokens: args.control_tokens,
        max_tokens: args.max_tokens,
        sampling: args.sampling.wire(),
        stop: args.stop.clone(),
        stop_ids: Vec::new(),
        seed: args.seed,
        want_steps: args.show_steps,
        suffix: args.suffix.clone(),
        template: args
            .template
            .clone()
            .map_or(Vec::new(), |template| template.0),
        priority: match args.batch {
            true => pb::Priority::Batch,
            false => pb::Priority::Interactive,
        }
        .into(),
    };
    block_on(async {
        let mut client = InferenceClient::new(args.server.connect().await?);
        match args.json {
            false => _ = shown(&mut client, request).await?,
            true => {
                let print = |event: &Event| {
                    println!("{}", as_json(event));
                    Ok(())
                };
                follow(&mut client, request, print).await?;
            }
        }
        Ok(())
    })
}

/// Sends a request and hands over its events to the last one.
async fn follow(
    client: &mut InferenceClient<Connection>,
    request: pb::GenerateRequest,
    mut event: impl FnMut(&Event) -> Result<()>,
) -> Result<()> {
    let events = client.generate(request).await.map_err(refused)?;
    let mut events = events.into_inner();
    while let Some(response) = events.message().await.map_err(refused)? {
        if let Some(found) = response.event {
            event(&found)?;
            if let Event::Finished(_) = found {
                return Ok(());
            }
        }
    }
    bail!("the server ended the stream before the text was finished")
}

/// Sends a request and prints its text as it comes, and a line of figures to standard error; returns the text.
pub async fn shown(
    client: &mut InferenceClient<Connection>,
    request: pb::GenerateRequest,
) -> Result<String> {
    let (mut started, mut text) = (None, String::new());
    let print = |event: &Event| {
        match event {
            Event::Started(event) => started = Some(event.clone()),
            Event::Step(step) => {
                let shown = step
                    .revealed
                    .iter()
                    .map(|one| format!("{}:{:?}", one.position, one.text));
                eprintln!("step: {}", shown.collect::<Vec<_>>().join(" "));
            }
            Event::Block(block) => {
                text += &block.text;
                print!("{}", block.text);
                std::io::stdout().flush()?;
            }
            Event::Finished(finished) => {
                println!();
                eprintln!("{}", figures(started.as_ref(), finished));
            }
        }
        Ok(())
    };
    follow(client, request, print).await?;
    Ok(text)
}

fn figures(started: Option<&pb::Started>, finished: &pb::Finished) -> String {
    let seconds = finished.compute_us as f64 / 1e6;
    let (generation, seed) = started.map_or((0, 0), |started| (started.generation, started.seed));
    format!(
        "[{} tokens after {}, {:?}; {} network evaluations in {seconds:.2} s, waited {:.2} s; generation {generation}, seed {seed}]",
        finished.generated_tokens,
        finished.prompt_tokens,
        finished.reason(),
        finished.nfe,
        finished.queue_us as f64 / 1e6,
    )
}

fn as_json(event: &Event) -> serde_json::Value {
    match event {
        Event::Started(e) => {
            let mix: Vec<_> = e
                .mix
                .iter()
                .map(|part| json!({"name": part.name, "weight": part.weight}))
                .collect();
            json!({"event": "started", "request_id": e.request_id, "mix": mix, "generation": e.generation, "seed": e.seed})
        }
        Event::Step(e) => {
            let one = |r: &pb::Revealed| json!({"position": r.position, "token": r.token, "text": r.text});
            json!({"event": "step", "revealed": e.revealed.iter().map(one).collect::<Vec<_>>()})
        }
        Event::Block(e) => json!({"event": "block", "text": e.text, "tokens": e.tokens}),
        Event::Finished(e) => json!({
            "event": "finished", "reason": e.reason().as_str_name(), "prompt_tokens": e.prompt_tokens,
            "generated_tokens": e.generated_tokens, "nfe": e.nfe, "queue_us": e.queue_us, "compute_us": e.compute_us,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_text_and_holes() {
        let pieces = |text: &str| {
            let pieces = text.parse::<Template>().unwrap().0.into_iter();
            pieces.map(|piece| piece.piece.unwrap()).collect::<Vec<_>>()
        };
        let text = |text: &str| Piece::Text(text.into());
        assert_eq!(
            pieces("A [[3]] night[1], [[ 8 ]]."),
            [
                text("A "),
                Piece::Hole(3),
                text(" night[1], "),
                Piece::Hole(8),
                text(".")
            ]
        );
        assert_eq!(pieces("[[1]][[2]]"), [Piece::Hole(1), Piece::Hole(2)]);
        assert_eq!(pieces("plain"), [text("plain")]);
        for bad in ["[[3", "[[]]", "[[x]]", "[[-1]]", "[[99999999999]]"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }
}
