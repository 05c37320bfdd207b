//! What whole matrices go through once: copies, products, retrieval.

use super::Bench;
use anyhow::Result;
use choir::ops::gpu::superposition::Retrieve;
use choir::ops::gpu::tiles::tile_bytes;
use choir::ops::gpu::{Address, Buffer, Dtype, Fault, Gemm};

pub fn copy(bench: &mut Bench) -> Result<()> {
    let copied = bench.copied()?;
    let took = 2.0 * bench.sizes.copy as f64 / copied;
    let name = format!("{} MiB", bench.sizes.copy >> 20);
    bench.report.line(
        "copy",
        &name,
        &[("µs", 1e3 * took), ("GB/s read+written", copied * 1e-6)],
    );
    Ok(())
}

/// Milliseconds of a product in bf16.
fn product(bench: &Bench, rows: usize, out: usize, input: usize) -> Result<f64, Fault> {
    let bytes = 2 * out * input;
    let copies = bench.copies(bytes);
    let weights: Vec<Buffer> = (0..copies)
        .map(|_| bench.noise(Dtype::Bf16, out * input, 0.02))
        .collect::<Result<_, _>>()?;
    let x = bench.noise(Dtype::Bf16, rows * input, 1.0)?;
    let y = Buffer::new(&bench.gpu, 4 * rows * out)?;
    bench.each(copies, |copy| {
        bench.gpu.gemm(Gemm {
            x: x.address(),
            w: weights[copy].address(),
            y: y.address(),
            rows,
            out,
            input,
            pitch: out,
            dtype: Dtype::Bf16,
            gives: Dtype::F32,
        })
    })
}

pub fn gemm(bench: &mut Bench) -> Result<()> {
    let size = bench.sizes.gemm;
    let took = product(bench, size, size, size)?;
    let rate = 2.0 * (size as f64).powi(3) / took * 1e-9;
    let name = format!("bf16 {size} x {size} x {size}");
    bench
        .report
        .line("gemm", &name, &[("µs", 1e3 * took), ("TFLOP/s", rate)]);
    let size = bench.sizes.skinny;
    for rows in [1, 4, 16, 64] {
        let took = product(bench, rows, size, size)?;
        let figures = bench.bandwidth(2 * size * size, took)?;
        bench.report.line(
            "gemm",
            &format!("bf16 {size} x {size}, rows: {rows}"),
            &figures,
        );
    }
    Ok(())
}

/// The targets of a launch.
const TARGETS: usize = 4;

pub fn retrieve(bench: &mut Bench) -> Result<()> {
    let [out, input] = bench.sizes.retrieve;
    let (gpu, dense) = (bench.gpu.clone(), 2 * out * input);
    let base = bench.noise(Dtype::Bf16, out * input, 0.02)?;
    let targets: Vec<Buffer> = (0..TARGETS)
        .map(|_| Buffer::new(&gpu, dense))
        .collect::<Result<_, _>>()?;
    let addresses: Vec<Address> = targets.iter().map(Buffer::address).collect();
    let addresses = Buffer::from(&gpu, &addresses)?;
    let variants = Buffer::from(&gpu, &[0u32, 1, 2, 3])?;
    let weights = Buffer::from(&gpu, &[1f32; TARGETS])?;
    let keys: Vec<u32> = (0..TARGETS).flat_map(|_| bench.key()).collect();
    let keys = Buffer::from(&gpu, &keys)?;
    let outputs = bench.noise(Dtype::Bf16, TARGETS * out, 0.05)?;
    for tiles in [true, false] {
        let (bank, bytes) = match tiles {
            true => (bench.tiles(out, input, 0.02)?, tile_bytes(out, input)),
            false => (bench.noise(Dtype::Bf16, out * input, 0.02)?, dense),
        };
        for count in [1, TARGETS] {
            let launch = Retrieve {
                base: base.address(),
                bank: bank.address(),
                targets: addresses.address(),
                variants: variants.address(),
                weights: weights.address(),
                keys: keys.address(),
                outputs: outputs.address(),
                out: out as u32,
                input: input as u32,
                count: count as u32,
                unused: 0,
            };
            let took = bench.each(1, |_| launch.launch(&*gpu, Dtype::Bf16, tiles))?;
            let figures = bench.bandwidth(dense + bytes + count * dense, took)?;
            let form = if tiles { "tiles" } else { "bf16" };
            let name = format!("{out} x {input}, bank in {form}, variants: {count}");
            bench.report.line("retrieve", &name, &figures);
        }
    }
    Ok(())
}
