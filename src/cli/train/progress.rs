//! News of a training run, for people and for scripts.

use crate::train::run::TrainingEvent;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// A bar on a terminal, lines elsewhere, JSON where asked.
pub struct Progress {
    bar: Option<ProgressBar>,
    json: bool,
}

impl Progress {
    pub fn new(json: bool) -> Self {
        let bar = (!json && std::io::stdout().is_terminal()).then(|| ProgressBar::new(1000));
        if let (Some(bar), Ok(style)) = (
            &bar,
            ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}"),
        ) {
            bar.set_style(style);
        }
        Self { bar, json }
    }

    pub fn show(&self, news: TrainingEvent) {
        match news {
            TrainingEvent::Step {
                step,
                progress,
                loss,
                rate,
                norm,
                tokens_per_second,
            } => {
                let line = format!(
                    "step {step} loss {loss:.4} lr {rate:.2e} norm {norm:.2} {tokens_per_second:.0} tokens/s"
                );
                match &self.bar {
                    _ if self.json => println!(
                        "{}",
                        serde_json::json!({"event": "step", "step": step, "progress": progress, "loss": loss, "lr": rate,
                            "norm": norm, "tokens_per_second": tokens_per_second})
                    ),
                    Some(bar) => {
                        bar.set_position((progress * 1000.0) as u64);
                        bar.set_message(line);
                    }
                    None => println!("{:5.1} % {line}", progress * 100.0),
                }
            }
            TrainingEvent::Validated(score) => {
                let mut line = format!(
                    "step {} held out: {:.4} nats per token",
                    score.step, score.nats_per_token
                );
                if let Some(bytes) = score.nats_per_byte {
                    line += &format!(", {bytes:.4} per byte");
                }
                if let Some((right, of)) = score.exact {
                    line += &format!(", {right} of {of} exact");
                }
                match &self.bar {
                    _ if self.json => println!(
                        "{}",
                        serde_json::json!({"event": "validation", "step": score.step,
                            "nats_per_token": score.nats_per_token, "nats_per_byte": score.nats_per_byte,
                            "exact": score.exact.map(|(right, of)| right as f64 / of.max(1) as f64)})
                    ),
                    Some(bar) => bar.println(line),
                    None => println!("{line}"),
                }
            }
            TrainingEvent::Saved { .. } => {}
        }
    }

    pub fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
