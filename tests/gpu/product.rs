//! Products of few rows with what comes before and after them, against plain sums.

use choir::ops::gpu::pointwise::{NONE, RotaryLaunch};
use choir::ops::gpu::product::{After, Product};
use choir::ops::gpu::{Address, Buffer};
use choir::ops::math;
use half::bf16;

use crate::pointwise::Slots;
use crate::rig::{Number, Rig, normals, stream};

/// A matrix, rows of x and all that may come before and after; `expected` are the rows' products, banks' part included.
struct Case {
    rows: usize,
    out: usize,
    input: usize,
    slots: Slots,
    product: Product,
    expected: Vec<f64>,
    /// How far sums may be off.
    unit: Vec<f64>,
    /// In the order of the fields of `product`.
    _buffers: Vec<Buffer>,
}

const GATE: usize = 2;
const BIAS: usize = 3;

impl Case {
    fn new(rig: &Rig, [rows, out, input]: [usize; 3], has_parts: bool) -> Self {
        let mut random = stream("fused product");
        let slots = Slots::new(&mut random, rows, out.next_multiple_of(4));
        let w: Vec<bf16> = normals(&mut random, out * input);
        let x: Vec<bf16> = normals(&mut random, rows * input);
        let pitch = out + 8;
        let mut banked: Vec<f32> = normals(&mut random, rows * pitch);
        let parted: Vec<u32> = (0..rows as u32).map(|row| row % 3 % 2).collect();
        for (row, banked) in banked.chunks_mut(pitch).enumerate() {
            if parted[row] == 0 {
                banked.fill(f32::NAN); // not to be read
            }
        }
        let (mut expected, mut unit) = (Vec::new(), Vec::new());
        for (row, x) in x.chunks(input).enumerate() {
            for (at, w) in w.chunks(input).enumerate() {
                let products = x
                    .iter()
                    .zip(w)
                    .map(|(x, w)| f64::from(x.wide()) * f64::from(w.wide()));
                let bank = match has_parts && parted[row] == 1 {
                    true => f64::from(banked[row * pitch + at]),
                    false => 0.0,
                };
                expected.push(products.clone().sum::<f64>() + bank);
                unit.push(2e-6 * products.map(f64::abs).sum::<f64>());
            }
        }
        let (tables, buffers) = slots.upload(rig);
        let mut buffers = Vec::from(buffers);
        let mut keep = |buffer: Buffer| {
            buffers.push(buffer);
            buffers.last().unwrap().address()
        };
        let product = Product {
            w: keep(rig.buffer(&w)),
            x: keep(rig.buffer(&x)),
            banked: keep(rig.buffer(&banked)),
            parted: if has_parts {
                keep(rig.buffer(&parted))
            } else {
                Address::default()
            },
            tables,
            rows: rows as u32,
            out: out as u32,
            input: input as u32,
            pitch: pitch as u32,
            gate: (GATE * slots.width) as u32,
            bias: NONE,
            ..Product::default()
        };
        Self {
            rows,
            out,
            input,
            slots,
            product,
            expected,
            unit,
            _buffers: buffers,
        }
    }

    /// `found` of row and output, which a function makes of the product; rounded to bf16 where that is said.
    fn check(
        &self,
        found: &[f32],
        is_rounded: bool,
        of: impl Fn(usize, usize, f64) -> f64,
        steep: f64,
    ) {
        assert_eq!(found.len(), self.rows * self.out);
        for (at, &found) in found.iter().enumerate() {
            let expected = of(at / self.out, at % self.out, self.expected[at]);
            let unit = steep * self.unit[at]
                + if is_rounded {
                    0.0041 * expected.abs() + 1e-5
                } else {
                    1e-6
                };
            let (rows, out, input) = (self.rows, self.out, self.input);
            assert!(
                (f64::from(found) - expected).abs() <= unit,
                "{found}, not {expected}, at {at} of {rows} rows, {out} x {input}"
            );
        }
    }
}

fn keep(rig: &Rig, sizes: [usize; 3], has_parts: bool) {
    let case = Case::new(rig, sizes, has_parts);
    let pitch = case.product.pitch as usize;
    let y = rig.buffer(&vec![5f32; case.rows * pitch]);
    let product = Product {
        y: y.address(),
        ..case.product
    };
    product.launch(rig.gpu(), After::Keep).unwrap();
    let y = y.read::<f32>(0, case.rows * pitch).unwrap();
    let found: Vec<f32> = y
        .chunks(pitch)
        .flat_map(|row| &row[..case.out])
        .copied()
        .collect();
    assert!(
        y.chunks(pitch)
            .flat_map(|row| &row[case.out..])
            .all(|&y| y == 5.0)
    );
    case.check(&found, false, |_, _, y| y, 1.0);
}

fn gelu(rig: &Rig, sizes: [usize; 3], has_parts: bool) {
    let case = Case::new(rig, sizes, has_parts);
    let y = rig.empty(case.rows * case.out * 2);
    let product = Product {
        y: y.address(),
        bias: (BIAS * case.slots.width) as u32,
        ..case.product
    };
    product.launch(rig.gpu(), After::Gelu).unwrap();
    let found = y.read::<bf16>(0, case.rows * case.out).unwrap();
    let found: Vec<f32> = found.into_iter().map(Number::wide).collect();
    let of = |row: usize, at: usize, y: f64| {
        let y = y + f64::from(case.slots.bias(row, BIAS)[at]);
        f64::from(math::gelu(y as f32))
    };
    case.check(&found, true, of, 1.2);
}

fn residual(rig: &Rig, sizes: [usize; 3], has_parts: bool, has_bias: bool) {
    let case = Case::new(rig, sizes, has_parts);
    let before: Vec<f32> = normals(&mut stream("residual"), case.rows * case.out);
    let y = rig.buffer(&before);
    let product = Product {
        y: y.address(),
        bias: if has_bias {
            (BIAS * case.slots.width) as u32
        } else {
            NONE
        },
        ..case.product
    };
    product.launch(rig.gpu(), After::Residual).unwrap();
    let found = y.read::<f32>(0, case.rows * case.out).unwrap();
    let of = |row: usize, at: usize, y: f64| {
        let bias = if has_bias {
            case.slots.bias(row, BIAS)[at]
        } else {
            0.0
        };
        let gate = f64::from(case.slots.line(row, GATE)[at]);
        f64::from(before[row * case.out + at]) + gate * (y + f64::from(bias))
    };
    case.check(&found, false, of, 4.0);
}

fn rotated(rig: &Rig, [rows, heads, head_dim]: [usize; 3], has_parts: bool) {
    let (hidden, half) = (heads * head_dim, head_dim / 2);
    let case = Case::new(rig, [rows, 3 * hidden, hidden], has_parts);
    let (layers, layer, page_tokens, pages) = (3, 1, 4, rows.div_ceil(4));
    let mut random = stream("rotated");
    let angles: Vec<f32> = normals(&mut random, rows * half);
    let cosines = rig.buffer(&angles.iter().map(|x| x.cos()).collect::<Vec<_>>());
    let sines = rig.buffer(&angles.iter().map(|x| x.sin()).collect::<Vec<_>>());
    let slots: Vec<u32> = (0..rows as u32)
        .map(|row| {
            if row % 3 == 1 {
                NONE
            } else {
                rows as u32 - 1 - row
            }
        })
        .collect();
    let slots_at = rig.buffer(&slots);
    let (q, current) = (
        rig.empty(rows * hidden * 2),
        rig.empty(rows * 2 * hidden * 2),
    );
    let cells = pages * layers * 2 * page_tokens * hidden;
    let cache = rig.buffer(&vec![bf16::of(9.0); cells]);
    let scale = 0.37f32;
    let product = Product {
        rotary: RotaryLaunch {
            qkv: Address::default(),
            cosines: cosines.address(),
            sines: sines.address(),
            q: q.address(),
            current: current.address(),
            cache: cache.address(),
            slots: slots_at.address(),
            heads: heads as u32,
            head_dim: head_dim as u32,
            layer: layer as u32,
            layers: layers as u32,
            page_tokens: page_tokens as u32,
            scale,
            q_pitch: hidden as u32,
            current_pitch: 2 * hidden as u32,
        },
        ..case.product
    };
    product.launch(rig.gpu(), After::Rope).unwrap();
    let q = q.read::<bf16>(0, rows * hidden).unwrap();
    let current = current.read::<bf16>(0, rows * 2 * hidden).unwrap();
    let found: Vec<f32> = (0..rows * 3 * hidden)
        .map(|at| {
            let (row, at) = (at / (3 * hidden), at % (3 * hidden));
            let cell = match at.checked_sub(hidden) {
                None => q[row * hidden + at],
                Some(at) => current[row * 2 * hidden + at],
            };
            cell.wide()
        })
        .collect();
    let of = |row: usize, at: usize, y: f64| {
        if at >= 2 * hidden {
            return y;
        }
        let (i, angle) = (at % head_dim, f64::from(angles[row * half + at % half]));
        let (other, sign) = if i < half {
            (at + half, -1.0)
        } else {
            (at - half, 1.0)
        };
        let rotated =
            y * angle.cos() + sign * case.expected[row * 3 * hidden + other] * angle.sin();
        rotated * if at < hidden { f64::from(scale) } else { 1.0 }
    };
    case.check(&found, true, of, 2.5);
    let mut expected = vec![bf16::of(9.0); cells];
    for (row, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
        let (page, token) = (slot as usize / page_tokens, slot as usize % page_tokens);
        for side in 0..2 {
            let at = (((page * layers + layer) * 2 + side) * page_tokens + token) * hidden;
            expected[at..][..hidden]
                .copy_from_slice(&current[(2 * row + side) * hidden..][..hidden]);
        }
    }
    assert_eq!(cache.read::<bf16>(0, cells).unwrap(), expected);
}

#[test]
fn fused_products_are_what_their_parts_give() {
    for rig in Rig::all() {
        for has_parts in [false, true] {
            for sizes in [
                [1, 8, 8],
                [5, 56, 40],
                [16, 24, 768],
                [17, 72, 264],
                [40, 40, 128],
            ] {
                if After::Keep.takes(sizes[0], sizes[1], sizes[2]) {
                    keep(&rig, sizes, has_parts);
                }
                gelu(&rig, sizes, has_parts);
            }
            for heads in [[1, 1, 16], [16, 3, 64], [21, 1, 128], [48, 2, 32]] {
                rotated(&rig, heads, has_parts);
            }
        }
        for sizes in [
            [1, 8, 8],
            [16, 24, 40],
            [17, 8, 768],
            [3, 16, 776],
            [33, 8, 1000],
            [20, 16, 3072],
        ] {
            residual(&rig, sizes, false, true);
            residual(&rig, sizes, true, false);
        }
    }
}

/// Not even in its last bit, nor on their number.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(rig) = Rig::one() else { return };
    for (out, input, after) in [
        (24, 768, After::Gelu),
        (16, 768, After::Residual),
        (8, 1536, After::Residual),
    ] {
        let mut random = stream("alone");
        let slots = Slots::new(&mut random, 64, input);
        let (mut tables, _buffers) = slots.upload(&rig);
        let w = rig.buffer(&normals::<bf16>(&mut random, out * input));
        let x: Vec<bf16> = normals(&mut random, 64 * input);
        let before: Vec<f32> = normals(&mut random, 64 * out);
        let mut answers = |first: usize, rows: usize| -> Vec<f32> {
            let x = rig.buffer(&x[first * input..][..rows * input]);
            let (line, mix) = (
                rig.buffer(&slots.line[first..][..rows]),
                rig.buffer(&slots.mix[first..][..rows]),
            );
            (tables.line, tables.mix) = (line.address(), mix.address());
            let y = rig.buffer(&before[first * out..][..rows * out]);
            let product = Product {
                w: w.address(),
                x: x.address(),
                y: y.address(),
                tables,
                rows: rows as u32,
                out: out as u32,
                input: input as u32,
                pitch: out as u32,
                gate: 2 * input as u32,
                bias: 3 * input as u32,
                ..Product::default()
            };
            product.launch(rig.gpu(), after).unwrap();
            match after == After::Gelu {
                true => y
                    .read::<bf16>(0, rows * out)
                    .unwrap()
                    .into_iter()
                    .map(Number::wide)
                    .collect(),
                false => y.read(0, rows * out).unwrap(),
            }
        };
        let all = answers(0, 64);
        for (first, rows) in [(0, 1), (63, 1), (5, 20), (37, 16)] {
            assert_eq!(
                answers(first, rows),
                all[first * out..][..rows * out],
                "{first} {rows} {after:?}"
            );
        }
    }
}
