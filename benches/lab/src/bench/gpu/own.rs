//! Products of rows with what variants keep by themselves: a code, with and without factors.

use super::Bench;
use anyhow::Result;
use choir::ops::coded::{Code, Kept, LowRank, Nibbles, Rate};
use choir::ops::gpu::own::{GpuOwn, OwnFacts, OwnProduct};
use choir::ops::gpu::products::{PartFacts, ProductGroup, TIERS};
use choir::ops::gpu::{Buffer, Dtype, Fault};
use choir::transform::Rotation;
use half::bf16;

/// Variants of one launch, rows to each, bits of the code, and whether there are factors of a quarter of a bit.
#[derive(Clone, Copy)]
struct Case {
    variants: usize,
    rows: usize,
    rate: Rate,
    low_rank: bool,
}

pub fn measure(bench: &mut Bench) -> Result<()> {
    for [out, input] in bench.sizes.banks.clone() {
        for (variants, rows) in [(1, 1), (1, 8), (1, 16), (1, 64), (4, 16), (16, 4)] {
            for (rate, low_rank) in [(Rate::Half, true), (Rate::Half, false), (Rate::One, false)] {
                let case = Case {
                    variants,
                    rows,
                    rate,
                    low_rank,
                };
                let (bytes, took) = product(bench, [out, input], case)?;
                let figures = bench.bandwidth(bytes, took)?;
                let factors = if low_rank { " and low rank" } else { "" };
                let name =
                    format!("{out} x {input}, {variants} x {rows} rows, {rate} bit{factors}");
                bench.report.line("own", &name, &figures);
            }
        }
    }
    Ok(())
}

/// Any bits are a code, and any nibbles factors.
fn kept(case: Case, [out, input]: [usize; 2]) -> Result<Kept> {
    let bytes = |count: usize| {
        let byte = |at: usize| (at * 167 % 251) as u8;
        (0..count).map(byte).collect::<Vec<u8>>()
    };
    let (used, row) = (case.rate.row_bits(input) % 8, case.rate.row_bytes(input));
    let mut stream = bytes(out * row);
    for row in stream.chunks_mut(row).filter(|_| used > 0) {
        row[row.len() - 1] &= (1 << used) - 1;
    }
    let rank = out * input / 16 / (out + input);
    let factors = LowRank::Nibbles(Nibbles {
        scales: vec![1e-5; rank],
        a: bytes(rank * input.div_ceil(2)),
        b: bytes(rank * out.div_ceil(2)),
    });
    Ok(Kept::Coded {
        code: Code::new(case.rate, [out, input], stream)?,
        gains: vec![bf16::from_f32(1e-4); out],
        low_rank: case.low_rank.then_some(factors),
    })
}

/// Bytes of all that is kept, and milliseconds.
fn product(bench: &Bench, [out, input]: [usize; 2], case: Case) -> Result<(usize, f64)> {
    let gpu = &bench.gpu;
    let kept = kept(case, [out, input])?;
    let copies = bench.copies(case.variants * kept.bytes());
    let rotation = Rotation::new(1, "matrix", input);
    let own: Vec<GpuOwn> = (0..copies * case.variants)
        .map(|_| GpuOwn::new(gpu, &kept, [out, input], &rotation, 1.0))
        .collect::<Result<_, Fault>>()?;
    let facts: Vec<OwnFacts> = own.iter().map(GpuOwn::facts).collect();
    let facts = Buffer::from(gpu, &facts)?;
    let rows = case.variants * case.rows;
    let parts: Vec<PartFacts> = (0..rows)
        .map(|row| PartFacts {
            row: row as u32,
            variant: (row / case.rows) as u32,
            weight: 1.0,
            bank: (row / case.rows) as u32,
        })
        .collect();
    let groups: Vec<ProductGroup> = (0..case.variants)
        .map(|variant| ProductGroup {
            bank: variant as u32,
            first: (variant * case.rows) as u32,
            count: case.rows as u32,
            groups: case.variants as u32,
        })
        .collect();
    let tier = TIERS.into_iter().find(|&tier| tier >= case.rows);
    let (parts, groups) = (Buffer::from(gpu, &parts)?, Buffer::from(gpu, &groups)?);
    let x = bench.noise(Dtype::Bf16, rows * input, 1.0)?;
    let y = bench.noise(Dtype::F32, rows * out, 1.0)?;
    let ranks = own.first().map_or(0, GpuOwn::rank);
    let rotated = Buffer::new(gpu, OwnProduct::rotated_bytes(rows, input, Dtype::Bf16))?;
    let thin = Buffer::new(gpu, OwnProduct::thin_bytes(rows, ranks))?;
    let took = bench.each(copies, |copy| {
        OwnProduct {
            x: x.address(),
            y: y.address(),
            own: facts.address() + copy * case.variants * size_of::<OwnFacts>(),
            parts: parts.address(),
            part_count: rows,
            groups: groups.address(),
            group_count: case.variants,
            tier: tier.unwrap_or(TIERS[3]),
            out,
            input,
            y_pitch: out,
            ranks,
            rotated: rotated.address(),
            thin: thin.address(),
        }
        .launch(&**gpu, Dtype::Bf16)
    })?;
    Ok((case.variants * kept.bytes(), took))
}
