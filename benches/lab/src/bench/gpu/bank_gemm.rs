//! Products of rows with banks in tiles.

use super::Bench;
use anyhow::Result;
use choir::ops::gpu::products::{BankGemm, PartFacts, ProductGroup, Split, TIERS};
use choir::ops::gpu::tiles::tile_bytes;
use choir::ops::gpu::{Buffer, Dtype, Fault};

/// Banks of one launch, rows to each, and whether every row is another variant's.
#[derive(Clone, Copy)]
struct Case {
    banks: usize,
    rows: usize,
    mixed: bool,
}

pub fn measure(bench: &mut Bench) -> Result<()> {
    for [out, input] in bench.sizes.banks.clone() {
        let one = [1, 4, 8, 16, 32, 64].into_iter().flat_map(|rows| {
            [false, true]
                .into_iter()
                .filter(move |&mixed| !mixed || rows > 1)
                .map(move |mixed| (1, rows, mixed))
        });
        for (banks, rows, mixed) in one.chain([(4, 16, true), (16, 4, true)]) {
            let took = product(bench, [out, input], Case { banks, rows, mixed })?;
            let figures = bench.bandwidth(banks * tile_bytes(out, input), took)?;
            let variants = if mixed { "another each" } else { "one variant" };
            let name = format!("{out} x {input}, {banks} x {rows} rows, {variants}");
            bench.report.line("bank-gemm", &name, &figures);
        }
    }
    Ok(())
}

/// Milliseconds.
fn product(bench: &Bench, [out, input]: [usize; 2], case: Case) -> Result<f64, Fault> {
    let gpu = &bench.gpu;
    let copies = bench.copies(case.banks * tile_bytes(out, input));
    let banks: Vec<Buffer> = (0..copies * case.banks)
        .map(|_| bench.tiles(out, input, 0.02))
        .collect::<Result<_, _>>()?;
    let addresses = Buffer::from(gpu, &banks.iter().map(Buffer::address).collect::<Vec<_>>())?;
    let rows = case.banks * case.rows;
    let variants = if case.mixed { rows } else { 1 };
    let parts: Vec<PartFacts> = (0..rows)
        .map(|row| PartFacts {
            row: row as u32,
            variant: (row % variants) as u32,
            weight: 1.0,
            bank: (row / case.rows) as u32,
        })
        .collect();
    let groups: Vec<ProductGroup> = (0..case.banks)
        .map(|bank| ProductGroup {
            bank: bank as u32,
            first: (bank * case.rows) as u32,
            count: case.rows as u32,
            groups: case.banks as u32,
        })
        .collect();
    let tier = TIERS
        .into_iter()
        .find(|&tier| tier >= case.rows)
        .unwrap_or(TIERS[3]);
    let split = Split::banks(gpu.processors(), (tier, case.banks), (out, input));
    let (parts, groups) = (Buffer::from(gpu, &parts)?, Buffer::from(gpu, &groups)?);
    let keys: Vec<u32> = (0..variants).flat_map(|_| bench.key()).collect();
    let keys = Buffer::from(gpu, &keys)?;
    let outputs = bench.noise(Dtype::Bf16, variants * out, 0.05)?;
    let x = bench.noise(Dtype::Bf16, rows * input, 1.0)?;
    let y = bench.noise(Dtype::F32, rows * out, 1.0)?;
    let partial = Buffer::new(gpu, split.partial_bytes())?;
    let counters = Buffer::zeros(gpu, 4 * split.counters())?;
    let images = Buffer::new(gpu, split.image_bytes())?;
    bench.each(copies, |copy| {
        let launch = BankGemm {
            x: x.address(),
            y: y.address(),
            banks: addresses.address() + 8 * case.banks * copy,
            parts: parts.address(),
            groups: groups.address(),
            keys: keys.address(),
            outputs: outputs.address(),
            partial: partial.address(),
            counters: counters.address(),
            out: out as u32,
            pitch: out as u32,
            input: input as u32,
            ..BankGemm::default()
        };
        launch.launch(&**gpu, Dtype::Bf16, split, images.address())
    })
}
