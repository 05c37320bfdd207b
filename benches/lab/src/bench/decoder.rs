//! `choir-lab bench decoder`: a decoder base at its real size on the host: what loading takes, what it holds, and a step against
//! reading its weights once.

use super::median;
use anyhow::{Context, Result};
use choir::checkpoint::Checkpoint;
use choir::model::architecture::published::read;
use choir::model::{
    Architecture, BaseWeights, Batch, Denoiser, HostNetwork, Mix, Segment, VariantId,
    VariantWeights,
};
use choir::ops::quantized::Quantisation;
use choir::superposition::CodedDelta;
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(Args, Debug)]
pub struct DecoderBenchArgs {
    /// A checkpoint's folder, as `choir-lab random-model` writes them.
    folder: PathBuf,
    #[arg(long, default_value = "q4k")]
    form: Quantisation,
    /// Rows of a step, all with logits: one block of so many tokens.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    rows: Vec<usize>,
    /// Packed variants of it: rows then divide among them, each with a block of its own.
    #[arg(long, num_args = 1..)]
    coded: Vec<PathBuf>,
    /// Steps of a measurement, of which the best counts beside the median.
    #[arg(long, default_value_t = 9)]
    steps: usize,
}

/// On a thread of a pool, as the engine's steps are.
pub fn run(args: DecoderBenchArgs) -> Result<()> {
    let threads = rayon::ThreadPoolBuilder::new().build()?;
    threads.install(|| measure(args))
}

fn measure(args: DecoderBenchArgs) -> Result<()> {
    let config = std::fs::read(args.folder.join("config.json")).context("config.json")?;
    let architecture = Architecture::read(&config)?;
    let checkpoint = architecture.unwrapped(Checkpoint::open(&args.folder)?);
    let begun = Instant::now();
    let base = BaseWeights::load(architecture, args.form, |spec| {
        let data =
            read(&checkpoint, spec).map_err(|error| choir::model::Error::Unread(error.into()))?;
        Ok(Some(Cow::Owned(data)))
    })?;
    let loaded = begun.elapsed().as_secs_f64();
    drop(checkpoint);
    let variants = args.coded.iter().map(|file| {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let delta = CodedDelta::from_bytes(&bytes)?;
        Ok(VariantWeights::by_itself(delta, 1.0))
    });
    let variants = variants.collect::<Result<Vec<_>>>()?;
    let network = HostNetwork::new(Arc::new(base), &[], variants)?;
    let (resident, peak) = (memory("VmRSS:")?, memory("VmHWM:")?);
    let bytes = network.bytes();
    let rate = reading()?;
    println!(
        "loaded in {loaded:.1} s; {bytes} bytes of weights; resident {resident}, at most {peak}"
    );
    println!("two threads read {:.1} GB/s", rate / 1e9);
    let mut cache = network.cache(16.into(), 64)?;
    let mut figures = Vec::new();
    for &rows in &args.rows {
        let mixes = match args.coded.len() {
            0 => vec![Mix::base()],
            variants => (0..variants.min(rows))
                .map(|at| Mix::single(VariantId(at as u32)))
                .collect(),
        };
        let (each, more) = (rows / mixes.len(), rows % mixes.len());
        let segment = |(number, mix)| {
            let rows = each + usize::from(number < more);
            Segment {
                mix,
                block: Some(rows),
                phase: 0,
                sigma: 0.0,
                tokens: (0..rows as u32).map(|at| 1000 + 7 * at).collect(),
                first_position: 0,
                clean: 0,
                rows: (0..rows).collect(),
                draws: Vec::new(),
                pages: Vec::new(),
                pages_start: 0,
            }
        };
        let batch = Batch {
            segments: mixes.into_iter().enumerate().map(segment).collect(),
        };
        let mut took = Vec::new();
        for _ in 0..args.steps {
            let begun = Instant::now();
            network.forward(&batch, &mut cache)?;
            took.push(begun.elapsed().as_secs_f64());
        }
        let best = took.iter().copied().fold(f64::MAX, f64::min);
        let once = network.product_bytes() as f64 / rate;
        println!(
            "{rows:3} rows: {:.1} ms, at best {:.1} ms; reading the weights once {:.1} ms ({:.0} %)",
            1e3 * median(took.clone()),
            1e3 * best,
            1e3 * once,
            100.0 * once / best,
        );
        figures
            .push(json!({"rows": rows, "median_s": median(took), "best_s": best, "read_s": once}));
    }
    println!(
        "{}",
        json!({"loaded_s": loaded, "bytes": bytes, "resident": resident, "peak": peak,
        "read_bytes_per_s": rate, "steps": figures})
    );
    Ok(())
}

/// Bytes per second at which rayon's threads read 1 GiB, at best of five.
fn reading() -> Result<f64> {
    let data = vec![1u64; (1 << 30) / size_of::<u64>()];
    let mut best = f64::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let sum: u64 = data
            .par_chunks(1 << 17)
            .map(|chunk| chunk.iter().fold(0, |sum, word| sum ^ word))
            .sum();
        std::hint::black_box(sum);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok((1u64 << 30) as f64 / best)
}

/// Bytes that the system says of this process.
fn memory(field: &str) -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .context("no such field")?;
    let kib: usize = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}
