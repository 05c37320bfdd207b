//! Samples from an engine.

use anyhow::{Result, bail};
use choir::cli::eval::measure::IN_FLIGHT;
use choir::engine::{EngineHandle, Event, Request, Sampling};
use std::time::Instant;

/// Which samples.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub samples: usize,
    /// Tokens to a sample at most: one that makes the end of text is shorter.
    pub length: usize,
    /// Of the first sample; each has its own.
    pub seed: u64,
    /// The token that every text begins with, not part of the sample.
    pub first: u32,
}

pub struct Drawn {
    pub texts: Vec<Vec<u32>>,
    /// Of one sample, on average.
    pub nfe: f64,
    /// Of one sample: the time of all by their number.
    pub seconds: f64,
}

/// Draws all samples, as many together as the engine takes.
pub fn draw(
    engine: &EngineHandle,
    mix: &[(String, f32)],
    sampling: &Sampling,
    wanted: &Wanted,
) -> Result<Drawn> {
    let start = Instant::now();
    let (mut texts, mut nfe) = (Vec::with_capacity(wanted.samples), 0u64);
    for first in (0..wanted.samples).step_by(IN_FLIGHT) {
        let part = first..wanted.samples.min(first + IN_FLIGHT);
        let ask = |index: usize| {
            engine.submit(Request {
                mix: mix.to_vec().into(),
                seed: Some(wanted.seed.wrapping_add(index as u64)),
                ..Request::new(vec![wanted.first], wanted.length, sampling.clone())
            })
        };
        for mut stream in part.map(ask).collect::<Result<Vec<_>, _>>()? {
            let (mut text, mut ended) = (Vec::new(), false);
            while let Some(event) = stream.blocking_recv() {
                match event {
                    Event::Block { tokens, .. } => text.extend(tokens),
                    Event::Finished(summary) => {
                        nfe += u64::from(summary.nfe);
                        ended = true;
                    }
                    Event::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
            if !ended {
                bail!("the engine has stopped");
            }
            texts.push(text);
        }
    }
    let samples = wanted.samples.max(1) as f64;
    Ok(Drawn {
        texts,
        nfe: nfe as f64 / samples,
        seconds: start.elapsed().as_secs_f64() / samples,
    })
}
