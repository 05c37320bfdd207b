//! Rows of x, rotated and rounded to 8 bits with one scale each: a rotated row has no outliers.

use rayon::prelude::*;

use super::kernel::DecodeKernel;
use super::panels::CHUNK;
use super::thin::{Between, DEEP, ThinFactors};
use crate::quantized::round;
use crate::transform::Rotation;

/// Rows in the order in which a code gives its weights. Every eight steps of a row are side by side, table by table: for
/// `m` weights to a step, input `m t + j` lies at `t / 8 · 8 m + 8 j + t % 8`.
pub struct RotatedRows {
    stride: usize,
    lines: Vec<Line>,
    facts: Vec<Facts>,
    /// Lines of t to a row.
    deep: usize,
    /// What the first of two thin factors gives for the rows, and what belongs to that.
    t: Vec<[i8; DEEP]>,
    between: Vec<Between>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// What belongs to a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// NaN where an element is not finite.
    pub scale: f32,
    /// Of all quants.
    pub sum: i32,
}

/// What a row is made of.
#[derive(Clone, Copy)]
pub struct CodedSource<'a> {
    pub x: &'a [f32],
    pub rotation: &'a Rotation,
    /// Weights to a step where it is read.
    pub per_step: usize,
    /// Factors that read it, too.
    pub thin: Option<&'a ThinFactors>,
}

/// Where an input lies in a row.
pub fn place(input: usize, per_step: usize) -> usize {
    let (step, table) = (input / per_step, input % per_step);
    step / 8 * 8 * per_step + 8 * table + step % 8
}

/// Bytes of a row of `input` elements, whole chunks of steps.
pub fn length(input: usize, per_step: usize) -> usize {
    input.next_multiple_of(CHUNK * per_step)
}

impl RotatedRows {
    /// Makes `count` rows of `input` elements; `source` says of what, by index.
    pub fn new<'a>(
        kernel: DecodeKernel,
        (count, input): (usize, usize),
        source: impl Fn(usize) -> CodedSource<'a> + Sync,
    ) -> Self {
        let stride = length(input, 4);
        let across = stride / size_of::<Line>();
        let deep = (0..count).filter_map(|index| Some(source(index).thin?.deep()));
        let deep = deep.max().unwrap_or(0);
        let mut lines = vec![Line([0; 64]); count * across];
        let mut facts = vec![(Facts::default(), Between::default()); count];
        let mut t = vec![[0; DEEP]; count * deep.max(1)];
        let work = lines.par_chunks_mut(across.max(1)).zip(&mut facts);
        let work = work.zip(t.par_chunks_mut(deep.max(1))).enumerate();
        work.with_min_len(4).for_each_init(
            || (vec![0f32; input], vec![0i8; stride], Vec::new()),
            |(values, plain, room), (index, ((lines, (facts, between)), t))| {
                let (row, source) = (flat_mut(lines), source(index));
                *facts = kernel.rotate(source, values, plain, row);
                if let Some(thin) = source.thin {
                    *between = thin.first(kernel, (row, *facts), room, t);
                }
            },
        );
        let (facts, between) = facts.into_iter().unzip();
        RotatedRows {
            stride,
            lines,
            facts,
            deep: deep.max(1),
            t,
            between,
        }
    }

    /// What `thin`'s first factor gives for a row that was made for it.
    pub fn between(&self, row: usize, thin: &ThinFactors) -> (&[[i8; DEEP]], Between) {
        (&self.t[row * self.deep..][..thin.deep()], self.between[row])
    }

    pub fn facts(&self, row: usize) -> Facts {
        self.facts[row]
    }

    /// A row's quants, zeros after the last one.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.flat()[row * self.stride..][..self.stride]
    }

    #[allow(unsafe_code)]
    fn flat(&self) -> &[i8] {
        // SAFETY: lines are 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 64) }
    }
}

#[allow(unsafe_code)]
fn flat_mut(lines: &mut [Line]) -> &mut [i8] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}

/// A row, step by step; `values` and `plain` are rooms for one, zeros after its end.
pub fn make(source: CodedSource, values: &mut [f32], plain: &mut [i8], row: &mut [i8]) -> Facts {
    let CodedSource {
        x,
        rotation,
        per_step,
        ..
    } = source;
    values.copy_from_slice(x);
    rotation.apply(values);
    let scale = round(values, &mut plain[..x.len()]);
    let plain = &plain[..length(x.len(), per_step)];
    match per_step {
        1 => row[..plain.len()].copy_from_slice(plain),
        2 => deal::<2, 16>(plain, row),
        _ => deal::<4, 32>(plain, row),
    }
    let sum = plain.iter().map(|&quant| i32::from(quant)).sum();
    Facts { scale, sum }
}

/// Deals `M` weights to a step out to their tables, eight steps, `N` inputs, at a time.
fn deal<const M: usize, const N: usize>(plain: &[i8], row: &mut [i8]) {
    for (from, to) in plain
        .as_chunks::<N>()
        .0
        .iter()
        .zip(row.as_chunks_mut::<N>().0)
    {
        for (at, to) in to.iter_mut().enumerate() {
            *to = from[at % 8 * M + at / 8];
        }
    }
}
