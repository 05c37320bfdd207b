//! Norms, gates, activations and rotations.

use choir::ops::gpu::pointwise::{
    Angles, BiasGelu, GateResidual, NONE, NormFacts, NormModulate, RotaryLaunch, SwiGlu, Tables,
};
use choir::ops::gpu::{Address, Buffer, Dtype};
use choir::ops::math;
use choir::ops::norm::Norm;
use choir::rng::Stream;
use half::bf16;

use crate::rig::{Number, Rig, normals, stream};

/// Of either kind; the last is far from the usual ones.
const NORMS: [Norm; 3] = [Norm::DIT, Norm::Rms { eps: 1e-6 }, Norm::Rms { eps: 0.1 }];

/// Slots of four vectors each, and rows that pick among them.
pub struct Slots {
    pub width: usize,
    lines: Vec<f32>,
    biases: Vec<f32>,
    pub line: Vec<u32>,
    pub mix: Vec<u32>,
}

impl Slots {
    pub fn new(random: &mut Stream, rows: usize, width: usize) -> Self {
        Self {
            width,
            lines: normals(random, 3 * 4 * width),
            biases: normals(random, 2 * 4 * width),
            line: (0..rows).map(|_| random.below(3) as u32).collect(),
            mix: (0..rows).map(|_| random.below(2) as u32).collect(),
        }
    }

    pub fn upload(&self, rig: &Rig) -> (Tables, [Buffer; 4]) {
        let buffers = [
            rig.buffer(&self.lines),
            rig.buffer(&self.biases),
            rig.buffer(&self.line),
            rig.buffer(&self.mix),
        ];
        let [lines, biases, line, mix] = buffers.each_ref().map(|buffer| buffer.address());
        let stride = 4 * self.width as u32;
        let tables = Tables {
            lines,
            biases,
            line,
            mix,
            line_stride: stride,
            bias_stride: stride,
        };
        (tables, buffers)
    }

    /// Vector `which` of a row's slot of modulation tables, and its offset.
    pub fn line(&self, row: usize, which: usize) -> &[f32] {
        &self.lines[(self.line[row] as usize * 4 + which) * self.width..][..self.width]
    }

    pub fn bias(&self, row: usize, which: usize) -> &[f32] {
        &self.biases[(self.mix[row] as usize * 4 + which) * self.width..][..self.width]
    }
}

/// The largest error of a number of that size: of f32 sums, and of the rounding.
pub fn close<T: Number>(found: T, expected: f64) -> bool {
    let unit = if T::DTYPE == Dtype::F32 { 2e-6 } else { 0.0041 };
    (f64::from(found.wide()) - expected).abs() <= unit * expected.abs() + 4e-6
}

/// In f64.
pub fn norm(norm: Norm, row: &[f64], gain: &[f32], shift: Option<&[f32]>) -> Vec<f64> {
    let (mean, eps) = match norm {
        Norm::Layer { eps } => (row.iter().sum::<f64>() / row.len() as f64, eps),
        Norm::Rms { eps } => (0.0, eps),
    };
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / row.len() as f64;
    let normed = row
        .iter()
        .map(|x| (x - mean) / (variance + f64::from(eps)).sqrt());
    let shift = |at: usize| shift.map_or(0.0, |shift| f64::from(shift[at]));
    (normed.zip(gain).enumerate())
        .map(|(at, (x, &gain))| x * f64::from(gain) + shift(at))
        .collect()
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

fn check_norm<T: Number>(rig: &Rig, width: usize, of: Norm) {
    let (rows, picks) = (5, [4u32, 0, NONE, 2, 2]);
    let mut random = stream("norm");
    let slots = Slots::new(&mut random, rows, width);
    let (tables, _buffers) = slots.upload(rig);
    let x: Vec<f32> = normals(&mut random, rows * width);
    let (x_at, picks_at) = (rig.buffer(&x), rig.buffer(&picks));
    for (picked, shift) in [(false, 2 * width as u32), (true, NONE)] {
        let out = rig.empty(rows * width * T::DTYPE.size());
        let args = NormModulate {
            x: x_at.address(),
            out: out.address(),
            rows: if picked {
                picks_at.address()
            } else {
                Address::default()
            },
            tables,
            norm: NormFacts::new(of, width as u32, shift),
            width: width as u32,
            unused: 0,
        };
        args.launch(rig.gpu(), T::DTYPE, rows).unwrap();
        for (row, out) in out
            .read::<T>(0, rows * width)
            .unwrap()
            .chunks(width)
            .enumerate()
        {
            let source = if picked { picks[row] } else { row as u32 };
            if source == NONE {
                assert!(out.iter().all(|&x| x == T::of(0.0)));
                continue;
            }
            let source = source as usize;
            let expected = norm(
                of,
                &wide(&x[source * width..][..width]),
                slots.line(source, 1),
                (shift != NONE).then(|| slots.line(source, 2)),
            );
            for (&found, expected) in out.iter().zip(expected) {
                assert!(
                    close(found, expected),
                    "{found:?}, not {expected}, of {width}"
                );
            }
        }
    }
}

fn check_gate<T: Number, Y: Number>(rig: &Rig, width: usize, of: Norm) {
    let rows = 4;
    let mut random = stream("gate");
    let slots = Slots::new(&mut random, rows, width);
    let (tables, _buffers) = slots.upload(rig);
    let (x, y): (Vec<f32>, Vec<Y>) = (
        normals(&mut random, rows * width),
        normals(&mut random, rows * width),
    );
    for (gate, bias, gain) in [
        (0, NONE, NONE),
        (0, 3 * width as u32, NONE),
        (0, NONE, width as u32),
        (NONE, NONE, width as u32),
        (0, 3 * width as u32, width as u32),
    ] {
        let (x_at, y_at) = (rig.buffer(&x), rig.buffer(&y));
        let out = rig.buffer(&vec![T::of(7.0); rows * width]);
        let args = GateResidual {
            x: x_at.address(),
            y: y_at.address(),
            out: out.address(),
            tables,
            norm: NormFacts::new(of, gain, 2 * width as u32),
            gate,
            bias,
            width: width as u32,
            unused: 0,
        };
        args.launch(rig.gpu(), T::DTYPE, Y::DTYPE, rows).unwrap();
        let (found, out) = (
            x_at.read::<f32>(0, rows * width).unwrap(),
            out.read::<T>(0, rows * width).unwrap(),
        );
        for row in 0..rows {
            let at = row * width..(row + 1) * width;
            let expected: Vec<f32> = (0..width)
                .map(|i| {
                    let y = y[at.start + i].wide();
                    let y = if bias == NONE {
                        y
                    } else {
                        y + slots.bias(row, 3)[i]
                    };
                    let gate = if gate == NONE {
                        1.0
                    } else {
                        slots.line(row, 0)[i]
                    };
                    y.mul_add(gate, x[at.start + i])
                })
                .collect();
            assert_eq!(found[at.clone()], expected);
            let shift = Some(slots.line(row, 2));
            let normed = norm(of, &wide(&expected), slots.line(row, 1), shift);
            for (&found, expected) in out[at].iter().zip(normed) {
                assert!(
                    if gain == NONE {
                        found == T::of(7.0)
                    } else {
                        close(found, expected)
                    },
                    "{found:?}, not {expected}"
                );
            }
        }
    }
}

fn check_gelu<T: Number, Y: Number>(rig: &Rig, width: usize) {
    let rows = 3;
    let mut random = stream("gelu");
    let slots = Slots::new(&mut random, rows, width);
    let (tables, _buffers) = slots.upload(rig);
    let y: Vec<Y> = normals(&mut random, rows * width);
    let (y_at, out) = (rig.buffer(&y), rig.empty(rows * width * T::DTYPE.size()));
    let args = BiasGelu {
        y: y_at.address(),
        out: out.address(),
        tables,
        bias: width as u32,
        width: width as u32,
    };
    args.launch(rig.gpu(), T::DTYPE, Y::DTYPE, rows).unwrap();
    for (at, found) in out
        .read::<T>(0, rows * width)
        .unwrap()
        .into_iter()
        .enumerate()
    {
        let expected = math::gelu(y[at].wide() + slots.bias(at / width, 1)[at % width]);
        match T::DTYPE {
            Dtype::F32 => assert_eq!(found.wide(), expected),
            Dtype::Bf16 => assert!(close(found, expected.into()), "{found:?}, not {expected}"),
        }
    }
}

fn check_swiglu<T: Number, Y: Number>(rig: &Rig, width: usize) {
    let rows = 3;
    let mut random = stream("swiglu");
    let y: Vec<Y> = normals(&mut random, rows * 2 * width);
    let (y_at, out) = (rig.buffer(&y), rig.empty(rows * width * T::DTYPE.size()));
    let args = SwiGlu {
        y: y_at.address(),
        out: out.address(),
        width: width as u32,
        unused: 0,
    };
    args.launch(rig.gpu(), T::DTYPE, Y::DTYPE, rows).unwrap();
    let found = out.read::<T>(0, rows * width).unwrap();
    for (at, found) in found.into_iter().enumerate() {
        let row = &y[at / width * 2 * width..];
        let (gate, up) = (row[at % width].wide(), row[at % width + width].wide());
        let expected = gate / (1.0 + math::exp(-gate)) * up;
        assert_eq!(found, T::of(expected), "of {gate} and {up}");
    }
}

#[test]
fn norms_gates_and_activations_are_their_definitions() {
    for rig in Rig::all() {
        for width in [1, 40, 256, 768, 1030] {
            for of in NORMS {
                check_norm::<f32>(&rig, width, of);
                check_norm::<bf16>(&rig, width, of);
                check_gate::<f32, f32>(&rig, width, of);
                check_gate::<bf16, f32>(&rig, width, of);
                check_gate::<bf16, bf16>(&rig, width, of);
            }
            check_swiglu::<f32, f32>(&rig, width);
            check_swiglu::<bf16, f32>(&rig, width);
            check_swiglu::<bf16, bf16>(&rig, width);
            check_gelu::<f32, f32>(&rig, width);
            check_gelu::<bf16, f32>(&rig, width);
            check_gelu::<bf16, bf16>(&rig, width);
        }
    }
}

/// `in_place`: queries and keys are rotated where they are.
fn check_rotary<T: Number, Y: Number>(rig: &Rig, [heads, head_dim]: [usize; 2], in_place: bool) {
    let (positions, layers, layer, page_tokens, pages) = ([0u32, 5, 1023, 70_000], 3, 1, 4, 3);
    let (rows, hidden, half, scale) = (positions.len(), heads * head_dim, head_dim / 2, 0.37f32);
    let slots = [6u32, NONE, 11, 0];
    let mut random = stream("rotary");
    let frequencies: Vec<f64> = (0..half)
        .map(|i| 10000f64.powf(-(i as f64) / half as f64))
        .collect();
    let (positions_at, frequencies_at, slots_at) = (
        rig.buffer(&positions),
        rig.buffer(&frequencies),
        rig.buffer(&slots),
    );
    let (cosines, sines) = (rig.empty(rows * half * 4), rig.empty(rows * half * 4));
    let angles = Angles {
        cosines: cosines.address(),
        sines: sines.address(),
        positions: positions_at.address(),
        frequencies: frequencies_at.address(),
        rows: rows as u32,
        half: half as u32,
    };
    angles.launch(rig.gpu()).unwrap();

    let qkv: Vec<Y> = normals(&mut random, rows * 3 * hidden);
    let size = T::DTYPE.size();
    let cache_len = pages * layers * 2 * page_tokens * hidden;
    let qkv_at = rig.buffer(&qkv);
    // What is left of a row is not written.
    let apart = rig.buffer(&vec![T::of(5.0); rows * 4 * hidden]);
    let (out, pitch) = if in_place {
        (&qkv_at, 3 * hidden)
    } else {
        (&apart, 4 * hidden)
    };
    let cache = rig.buffer(&vec![T::of(9.0); cache_len]);
    let args = RotaryLaunch {
        qkv: qkv_at.address(),
        cosines: cosines.address(),
        sines: sines.address(),
        q: out.address(),
        current: out.address() + hidden * size,
        cache: cache.address(),
        slots: slots_at.address(),
        heads: heads as u32,
        head_dim: head_dim as u32,
        layer: layer as u32,
        layers: layers as u32,
        page_tokens: page_tokens as u32,
        scale,
        q_pitch: pitch as u32,
        current_pitch: pitch as u32,
    };
    args.launch(rig.gpu(), T::DTYPE, Y::DTYPE, rows).unwrap();

    let out = out.read::<T>(0, rows * pitch).unwrap();
    let mut expected_cache = vec![T::of(9.0); cache_len];
    for row in 0..rows {
        for i in 0..hidden {
            let pair = i % head_dim % half;
            let angle = f64::from(positions[row]) * frequencies[pair];
            // The other one of the pair, with the sign it gets.
            let (other, sign) = if i % head_dim < half {
                (i + half, -1.0)
            } else {
                (i - half, 1.0)
            };
            let rotated = |which: usize| {
                let x = &qkv[(row * 3 + which) * hidden..][..hidden];
                f64::from(x[i].wide()) * angle.cos()
                    + sign * f64::from(x[other].wide()) * angle.sin()
            };
            let expected = rotated(0) * f64::from(scale);
            let [query, key, value] = [0, 1, 2].map(|which| out[row * pitch + which * hidden + i]);
            assert!(close(query, expected), "{query:?}, not {expected}");
            assert!(in_place || out[row * pitch + 3 * hidden + i] == T::of(5.0));
            assert!(close(key, rotated(1)));
            assert_eq!(value, T::of(qkv[(row * 3 + 2) * hidden + i].wide()));
            if slots[row] != NONE {
                let (page, slot) = (
                    slots[row] as usize / page_tokens,
                    slots[row] as usize % page_tokens,
                );
                let at = ((page * layers + layer) * 2 * page_tokens + slot) * hidden + i;
                expected_cache[at] = key;
                expected_cache[at + page_tokens * hidden] = value;
            }
        }
    }
    assert_eq!(cache.read::<T>(0, cache_len).unwrap(), expected_cache);
}

#[test]
fn rotary_embedding_goes_where_attention_looks() {
    for rig in Rig::all() {
        for shape in [[1, 2], [3, 10], [12, 64], [5, 128]] {
            check_rotary::<f32, f32>(&rig, shape, false);
            check_rotary::<bf16, f32>(&rig, shape, false);
            check_rotary::<bf16, bf16>(&rig, shape, false);
            check_rotary::<bf16, bf16>(&rig, shape, true);
        }
    }
}
