//! `choir-lab eval --samplers`: what samples are worth against the network evaluations that they take.

use super::engines::Service;
use super::judge::Judge;
use super::progress::Progress;
use super::subjects::{Effort, Subject, Subjects};
use anyhow::{Context, Result, bail};
use bench::{Bench, held_out};
use choir::cli::eval::measure::lone;
use choir::engine::EngineHandle;
use choir::model::{Place, Process};
use choir::ops::quantized::Quantisation;
use choir::sampler::MAX_STEPS;
use choir::train::data::read_documents;
use clap::Args;
use draw::{Wanted, draw};
use quality::Quality;
use serde::Serialize;
use std::path::PathBuf;
use ways::{SamplerSettings, ways};

mod bench;
mod draw;
mod quality;
pub mod show;
#[cfg(test)]
mod tests;
mod ways;

#[derive(Args, Debug)]
pub struct SamplersArgs {
    /// Measure samples instead: what a judge that is not the model says of them, against network evaluations.
    ///
    /// Measured are the uniform variants among --variants, and with them the absorbing ones of the same texts (or all
    /// styles, where none is uniform), each by itself and as read back from the store of all variants.
    #[arg(long)]
    pub samplers: bool,
    /// Steps of the uniform process, noise removal being one evaluation more. Blocks share as many evaluations.
    #[arg(
        long,
        requires = "samplers",
        value_delimiter = ',',
        default_value = "4,8,16,32,64,128"
    )]
    steps: Vec<u32>,
    /// Samples for each point.
    #[arg(long, requires = "samplers", default_value_t = 32)]
    samples: usize,
    /// Tokens to a sample [default: what fits the context].
    #[arg(long, requires = "samplers")]
    length: Option<usize>,
    #[arg(long, requires = "samplers", default_value_t = 0)]
    seed: u64,
    #[arg(long, requires = "samplers", default_value_t = 1.0)]
    temperature: f32,
    #[arg(long, requires = "samplers", default_value_t = 1.0)]
    nucleus_p: f32,
    /// Train the judge on these files, or on the .txt files of these folders, less their held-out ends: a file on the text of
    /// the variants whose held-out text has its name [default: the first four fifths of the held-out text itself].
    #[arg(long, requires = "samplers", value_name = "FILES", num_args = 1..)]
    judge_text: Vec<PathBuf>,
}

/// How a variant is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VariantWeights {
    /// By itself.
    FineTuned,
    /// Read back from the store with all variants compiled in.
    Retrieved,
}

/// One point.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub variant: String,
    pub kept: VariantWeights,
    pub sampler: &'static str,
    /// To what is denoised together: the whole sequence, or a block.
    pub steps: Option<u32>,
    /// Network evaluations of one sample that denoise, on average.
    pub nfe: f64,
    /// For one sample, all of them being drawn together.
    pub seconds: f64,
    #[serde(flatten)]
    pub quality: Quality,
}

/// All that is judged by one text's judge.
#[derive(Clone, Debug, Serialize)]
pub struct OfText {
    pub text: String,
    pub judge_trained_on: String,
    pub judge_tokens: usize,
    /// What the judge says of the part of the held-out text that it was not trained on, as it is and shuffled.
    pub held_out: Quality,
    pub shuffled: Quality,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub samples: usize,
    pub length: usize,
    pub seed: u64,
    pub temperature: f32,
    pub nucleus_p: f32,
    pub texts: Vec<OfText>,
}

/// Measures variants compiled in, those called `names` or all; `form` and `head` are what banks are served in.
pub fn measure(
    args: &SamplersArgs,
    names: &[String],
    place: &Place,
    (form, head): (Quantisation, Option<Quantisation>),
) -> Result<Report> {
    let least = Effort {
        contexts: 1,
        draws: 1,
        prompts: 1,
    };
    let subjects = Subjects::compiled_in(names, least)?;
    let variants = chosen(&subjects, names)?;
    let length = args.length.unwrap_or(subjects.config.model_length - 1);
    let (wanted, settings) = args.check(length)?;
    let documents = match args.judge_text.is_empty() {
        true => Vec::new(),
        false => read_documents(&args.judge_text)?,
    };
    let service = Service::open(place, form, head)?;
    let generation = service.engine.generation();
    let tokenizer = &generation.tokenizer;
    let wanted = Wanted {
        first: tokenizer
            .begin()
            .context("the tokenizer has nothing that begins a text")?,
        ..wanted
    };
    let mut benches: Vec<Bench> = Vec::new();
    for text in variants.iter().filter_map(|variant| variant.text.as_ref()) {
        if !benches.iter().any(|bench| bench.text == text.name) {
            let tokens = subjects.config.tokens();
            benches.push(Bench::new(
                text,
                &documents,
                |text| tokenizer.encode(text).unwrap_or_default(),
                tokens,
                length,
            )?);
        }
    }
    if !documents.is_empty() && benches.iter().all(|bench| !bench.held_in) {
        bail!("--judge-text: no file has the name of a held-out text that is judged");
    }
    let mut texts: Vec<OfText> = benches
        .iter()
        .map(|bench| held_out(bench, args.seed))
        .collect();
    let total = variants
        .iter()
        .map(|variant| 2 * ways(&variant.config, &settings).len());
    let progress = Progress::new(total.sum());
    for variant in variants {
        let own = |bench: &Bench| {
            variant
                .text
                .as_ref()
                .is_some_and(|text| text.name == bench.text)
        };
        let Some((bench, of_text)) = benches.iter().zip(&mut texts).find(|(bench, _)| own(bench))
        else {
            continue;
        };
        let tuned = subjects.weights(|tensor| variant.delta.dense(tensor));
        let alone = lone(place, &variant.config, &tuned, tokenizer.clone())?;
        let mix = vec![(variant.name.clone(), 1.0)];
        let source = |kept, engine, mix| Source { kept, engine, mix };
        let sources = [
            source(VariantWeights::FineTuned, &alone, vec![]),
            source(VariantWeights::Retrieved, &service.engine, mix),
        ];
        let mut tick = |what: &str| progress.step(what);
        of_text.rows.extend(rows(
            variant,
            &sources,
            &bench.judge,
            &settings,
            &wanted,
            &mut tick,
        )?);
    }
    progress.close();
    Ok(Report {
        samples: args.samples,
        length,
        seed: args.seed,
        temperature: args.temperature,
        nucleus_p: args.nucleus_p,
        texts,
    })
}

/// Where a variant is had from: how it is kept there, and the mix that asks for it.
struct Source<'a> {
    kept: VariantWeights,
    engine: &'a EngineHandle,
    mix: Vec<(String, f32)>,
}

/// Every way to sample from one variant, from each of these sources.
fn rows(
    variant: &Subject,
    sources: &[Source],
    judge: &Judge,
    settings: &SamplerSettings,
    wanted: &Wanted,
    tick: &mut dyn FnMut(&str),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for Source { kept, engine, mix } in sources {
        for way in ways(&variant.config, settings) {
            tick(&format!("{}: {}", variant.name, way.sampler));
            let drawn = draw(engine, mix, &way.sampling, wanted)?;
            rows.push(Row {
                variant: variant.name.clone(),
                kept: *kept,
                sampler: way.sampler,
                steps: way.steps,
                nfe: drawn.nfe,
                seconds: drawn.seconds,
                quality: Quality::of(judge, &drawn.texts),
            });
        }
    }
    Ok(rows)
}

impl SamplersArgs {
    fn check(&self, length: usize) -> Result<(Wanted, SamplerSettings)> {
        let limits = [
            ("--samples", self.samples, 1 << 20),
            ("--length", length, 1 << 20),
        ];
        let steps = self
            .steps
            .iter()
            .map(|&steps| ("--steps", steps as usize, MAX_STEPS as usize));
        for (option, value, most) in limits.into_iter().chain(steps) {
            if !(1..=most).contains(&value) {
                bail!("{option}: {value} is not within 1 and {most}");
            }
        }
        let wanted = Wanted {
            samples: self.samples,
            length,
            seed: self.seed,
            first: 0,
        };
        let settings = SamplerSettings {
            steps: self.steps.clone(),
            positions: 1 + length,
            temperature: self.temperature,
            nucleus_p: self.nucleus_p,
        };
        Ok((wanted, settings))
    }
}

/// Those named; without names, the uniform ones and the absorbing ones of their texts, or all styles where none is uniform.
fn chosen<'a>(subjects: &'a Subjects, names: &[String]) -> Result<Vec<&'a Subject>> {
    let styles = || {
        subjects
            .variants
            .iter()
            .filter(|variant| variant.text.is_some())
    };
    if let Some(other) = subjects
        .variants
        .iter()
        .find(|variant| variant.text.is_none() && names.contains(&variant.name))
    {
        bail!("{} has no held-out text for a judge", other.name);
    }
    let text = |variant: &Subject| variant.text.as_ref().map(|text| text.name.clone());
    let uniform = styles().filter(|variant| variant.config.process() == Process::Uniform);
    let uniform: Vec<_> = uniform.map(text).collect();
    let all = !names.is_empty() || uniform.is_empty();
    Ok(styles()
        .filter(|variant| all || uniform.contains(&text(variant)))
        .collect())
}
