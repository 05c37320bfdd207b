//! `choir chat`: a conversation in the terminal.

use super::client::{MixArgs, ServerArgs, block_on};
use super::generate::{TurnArgs, shown, turn};
use super::sampling::SamplingArgs;
use crate::pb;
use crate::pb::inference_client::InferenceClient;
use anyhow::Result;
use clap::Args;
use std::io::{BufRead, IsTerminal, Write};

/// Talk with a model that has a chat template.
///
/// Each line of standard input is a turn; the answer goes to standard output as it comes, a line of figures to standard error.
/// A turn that the server refuses is told and forgotten. An empty line does nothing, `/new` starts anew, the end of input ends.
#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    mix: MixArgs,
    #[command(flatten)]
    turns: TurnArgs,
    /// Tokens of an answer at most [default: 128].
    #[arg(long, short = 'n')]
    max_tokens: Option<u32>,
    /// The same seed, turns and generation give the same answers.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: ChatArgs) -> Result<()> {
    let system = args.turns.system.as_deref();
    let system = system.map(|text| turn(pb::Role::System, text));
    let mut messages: Vec<_> = system.iter().cloned().collect();
    block_on(async {
        let mut client = InferenceClient::new(args.server.connect().await?);
        let prompts = std::io::stdin().is_terminal();
        let mut line = String::new();
        loop {
            if prompts {
                print!("> ");
                std::io::stdout().flush()?;
            }
            line.clear();
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => continue,
                "/new" => {
                    messages = system.iter().cloned().collect();
                    continue;
                }
                text => messages.push(turn(pb::Role::User, text)),
            }
            let request = pb::GenerateRequest {
                mix: args.mix.wire(),
                messages: messages.clone(),
                enable_thinking: args.turns.thinking,
                max_tokens: args.max_tokens,
                sampling: args.sampling.wire(),
                seed: args.seed,
                ..pb::GenerateRequest::default()
            };
            match shown(&mut client, request).await {
                // A model may have nothing to say; a message must say something.
                Ok(answer) if !answer.is_empty() => {
                    messages.push(turn(pb::Role::Assistant, answer));
                }
                Ok(_) => _ = messages.pop(),
                Err(error) if prompts => {
                    eprintln!("{error}");
                    messages.pop();
                }
                Err(error) => return Err(error),
            }
        }
    })
}
