//! A client: asks a server that runs (`choir serve`) and prints the text as it comes.
//!
//! ```text
//! cargo run --example client -- "roman M C M X C I V =" roman
//! ```

use choir::pb::generate_response::Event;
use choir::pb::inference_client::InferenceClient;
use choir::pb::{GenerateRequest, VariantWeight};
use std::error::Error;
use std::io::{self, Write};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let prompt = words
        .next()
        .ok_or("a prompt, and the name of a variant or none")?;
    let request = GenerateRequest {
        prompt,
        // None: the base answers. One: that variant. More: a mix by weight.
        mix: words
            .map(|name| VariantWeight { name, weight: None })
            .collect(),
        max_tokens: Some(64),
        stop: vec!["\n".to_owned()],
        ..GenerateRequest::default()
    };
    let mut client = InferenceClient::connect("http://127.0.0.1:50051").await?;
    let mut events = client.generate(request).await?.into_inner();
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Block(block)) => {
                print!("{}", block.text);
                io::stdout().flush()?;
            }
            Some(Event::Finished(end)) => {
                println!();
                eprintln!(
                    "{} tokens in {} network evaluations",
                    end.generated_tokens, end.nfe
                );
            }
            _ => {}
        }
    }
    Ok(())
}
