//! Draws from logits, without a network.

use super::Bench;
use anyhow::Result;
use choir::ops::categorical::{Crossing, Draw, DrawKind, Filter};
use choir::ops::gpu::draw::{Categorical, DrawFacts, DrawnFacts, LOOK};
use choir::ops::gpu::{Buffer, Dtype, Fault};
use choir::rng::Noise;

pub fn measure(bench: &mut Bench) -> Result<()> {
    for [rows, vocab] in bench.sizes.sampling.clone() {
        for (name, mixture) in [("x0", false), ("mixture", true)] {
            for nucleus_p in [1.0, 0.95] {
                let took = draws(bench, [rows, vocab], mixture, nucleus_p)?;
                let figures = bench.bandwidth(4 * rows * vocab, took)?;
                let name = format!("{rows} x {vocab}, {name}, nucleus {nucleus_p}");
                bench.report.line("sampling", &name, &figures);
            }
        }
    }
    Ok(())
}

/// Milliseconds.
fn draws(
    bench: &Bench,
    [rows, vocab]: [usize; 2],
    mixture: bool,
    nucleus_p: f32,
) -> Result<f64, Fault> {
    let gpu = &bench.gpu;
    let copies = bench.copies(4 * rows * vocab);
    // A nucleus of about a twentieth of the vocabulary.
    let logits: Vec<Buffer> = (0..copies)
        .map(|_| bench.noise(Dtype::F32, rows * vocab, 30.0))
        .collect::<Result<_, _>>()?;
    let draws: Vec<DrawFacts> = (0..rows)
        .map(|row| {
            let draw = Draw {
                filter: Filter {
                    temperature: 1.0,
                    top_k: None,
                    nucleus_p,
                    crossing: if mixture {
                        Crossing::Kept
                    } else {
                        Crossing::Dropped
                    },
                    forbidden: (!mixture).then(|| vocab as u32 - 1),
                },
                tokens: vocab,
                noise: Noise::new(row as u64),
                step: 1,
                position: row as u32,
                kind: match mixture {
                    false => DrawKind::Predicted,
                    true => DrawKind::Mixture {
                        present: (row % vocab) as u32,
                        alpha_t: 0.5,
                        alpha_s: 0.6,
                        kappa: 1.0,
                    },
                },
            };
            DrawFacts::of(&draw, vocab)
        })
        .collect();
    let draws = Buffer::from(gpu, &draws)?;
    let biases = bench.noise(Dtype::F32, vocab, 0.01)?;
    let mix = Buffer::from(gpu, &vec![0u32; rows])?;
    let of = Buffer::from(gpu, &(0..rows as u32).collect::<Vec<_>>())?;
    let drawn = Buffer::new(gpu, rows * size_of::<DrawnFacts>())?;
    let looks = Buffer::new(gpu, rows * LOOK)?;
    bench.each(copies, |copy| {
        let launch = Categorical {
            logits: logits[copy].address(),
            biases: biases.address(),
            mix: mix.address(),
            rows: of.address(),
            draws: draws.address(),
            drawn: drawn.address(),
            looks: looks.address(),
            vocab: vocab as u32,
            pitch: vocab as u32,
            bias_stride: vocab as u32,
            bias: 0,
        };
        launch.launch(&**gpu, rows)
    })
}
