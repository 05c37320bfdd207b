use proptest::prelude::*;

use super::*;
use crate::coded::{Code, Nibbles, Rate};
use crate::rng::{Key, Stream};

fn normals(random: &mut Stream, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.normal() as f32).collect()
}

fn bytes(random: &mut Stream, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.below(256) as u8).collect()
}

/// Any bits are a code.
fn code(random: &mut Stream, rate: Rate, shape: [usize; 2]) -> Code {
    let row_bytes = rate.row_bytes(shape[1]);
    let mut stream = bytes(random, shape[0] * row_bytes);
    let used = rate.row_bits(shape[1]) % 8;
    for row in stream.chunks_exact_mut(row_bytes).filter(|_| used > 0) {
        row[row_bytes - 1] &= (1 << used) - 1;
    }
    Code::new(rate, shape, stream).expect("a code")
}

fn nibbles(random: &mut Stream, rank: usize, [out, input]: [usize; 2]) -> LowRank {
    LowRank::Nibbles(Nibbles {
        scales: normals(random, rank),
        a: bytes(random, rank * input.div_ceil(2)),
        b: bytes(random, rank * out.div_ceil(2)),
    })
}

fn adapter(random: &mut Stream, rank: usize, [out, input]: [usize; 2]) -> LowRank {
    LowRank::Exact {
        rank,
        a: normals(random, rank * input),
        b: normals(random, out * rank),
    }
}

/// One of every kind: a code by rate, without and with factors; factors; an adapter; a whole matrix.
fn kept(random: &mut Stream, kind: usize, shape: [usize; 2]) -> Kept {
    let [out, input] = shape;
    let rank = 1 + random.below(19);
    match kind {
        0..12 => Kept::Coded {
            code: code(random, Rate::ALL[kind % 6], shape),
            gains: normals(random, out)
                .into_iter()
                .map(bf16::from_f32)
                .collect(),
            low_rank: (kind >= 6).then(|| nibbles(random, rank, shape)),
        },
        12 => Kept::LowRank(nibbles(random, rank, shape)),
        13 => Kept::LowRank(adapter(random, rank, shape)),
        _ => Kept::Whole(
            normals(random, out * input)
                .into_iter()
                .map(bf16::from_f32)
                .collect(),
        ),
    }
}

const KINDS: usize = 15;

/// The definition: all of d, in f64.
fn dense(kept: &Kept, [out, input]: [usize; 2], rotation: &Rotation) -> Vec<f64> {
    let mut rotated = vec![0f32; out * input];
    let mut plain = vec![0f64; out * input];
    let mut low = |low_rank: &LowRank, rotated: &mut [f32]| match low_rank {
        LowRank::Exact { rank, a, b } => {
            for (at, value) in plain.iter_mut().enumerate() {
                let (row, column) = (at / input, at % input);
                let term =
                    |r: usize| f64::from(b[row * rank + r]) * f64::from(a[r * input + column]);
                *value += (0..*rank).map(term).sum::<f64>();
            }
        }
        LowRank::Nibbles(Nibbles { scales, a, b }) => {
            for (at, value) in rotated.iter_mut().enumerate() {
                for (rank, scale) in scales.iter().enumerate() {
                    let a = Nibbles::number(a, input, rank, at % input);
                    let b = Nibbles::number(b, out, rank, at / input);
                    *value += scale * f32::from(a) * f32::from(b);
                }
            }
        }
    };
    match kept {
        Kept::Coded {
            code,
            gains,
            low_rank,
        } => {
            let mut weights = vec![0; input];
            for (row, (rotated, gain)) in rotated.chunks_exact_mut(input).zip(gains).enumerate() {
                code.decode_row_slow(row, &mut weights);
                for (value, weight) in rotated.iter_mut().zip(&weights) {
                    *value = gain.to_f32() * f32::from(*weight);
                }
            }
            low_rank.iter().for_each(|part| low(part, &mut rotated));
        }
        Kept::LowRank(part) => low(part, &mut rotated),
        Kept::Whole(numbers) => {
            return numbers.iter().map(|number| number.to_f64()).collect();
        }
    }
    rotated
        .chunks_exact_mut(input)
        .for_each(|row| rotation.apply_inverse(row));
    rotated
        .iter()
        .zip(plain)
        .map(|(rotated, plain)| f64::from(*rotated) + plain)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn panels_hold_the_rows_of_the_code(rate in 0usize..6, out in 1usize..40, input in 1usize..400, salt: u64) {
        let mut random = Stream::new(Key::derive(&[&salt.to_le_bytes()]));
        let code = code(&mut random, Rate::ALL[rate], [out, input]);
        let panels = CodePanels::new(&code);
        let (mut ours, mut theirs) = (vec![0; input], vec![0; input]);
        for row in 0..out {
            panels.row(row, &mut ours);
            code.decode_row_slow(row, &mut theirs);
            prop_assert_eq!(&ours, &theirs, "row {}", row);
        }
    }

    /// The slow twin of every kernel: whole rows of numbers, in f64.
    #[test]
    fn products_are_those_of_the_whole_matrix(
        kind in 0..KINDS, out in 1usize..70, wide in 1usize..9, narrow in 1usize..90, by_blocks: bool, salt: u64,
    ) {
        let input = if by_blocks { 64 * wide } else { narrow };
        let mut random = Stream::new(Key::derive(&[&salt.to_le_bytes()]));
        let (shape, rotation) = ([out, input], Rotation::new(salt, "matrix", input));
        let kept = kept(&mut random, kind, shape);
        let d = dense(&kept, shape, &rotation);
        let own = OwnMatrix::new(&kept, shape, rotation, 0.5).expect("what fits");
        let size = d.iter().map(|d| d * d).sum::<f64>().sqrt();
        let mut whole = vec![0f32; out * input];
        for (row, target) in whole.chunks_exact_mut(input).enumerate() {
            own.add_row(row, 2.0, target);
        }
        let off = whole.iter().zip(&d).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
        prop_assert!(off <= 1e-5 * size, "rows of kind {} are off by {} of {}", kind, off, size);

        let x = normals(&mut random, 3 * input);
        let before = normals(&mut random, 3 * out);
        let mut y = before.clone();
        let shares = [(2, 0.75), (0, -1.0)].map(|(row, weight)| RowShare { row, weight });
        add_own(&[(&own, shares.to_vec())], &x, &mut y).expect("products");
        prop_assert_eq!(&y[out..2 * out], &before[out..2 * out], "a row without a part");
        for RowShare { row, weight } in shares {
            let x = &x[row * input..][..input];
            let length = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            for o in 0..out {
                let d = &d[o * input..][..input];
                let exact: f64 = d.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum();
                let ours = f64::from(y[row * out + o]) - f64::from(before[row * out + o]);
                let off = (ours - 0.5 * f64::from(weight) * exact).abs();
                // x is rounded to a 127th of its largest element, what is between factors to as much of theirs.
                prop_assert!(off <= 0.1 * size * length + 1e-5, "kind {}: off by {} of {}", kind, off, size * length);
            }
        }
    }

    /// What a row gets depends on nothing but its own parts, with every instruction set.
    #[test]
    fn rows_do_not_depend_on_the_batch(
        kinds in prop::collection::vec(0..KINDS, 1..4), rows in 1usize..20, out in 1usize..50, wide in 1usize..9,
        by_blocks: bool, salt: u64,
    ) {
        let input = [96 * wide, 256 * wide][usize::from(by_blocks)];
        let mut random = Stream::new(Key::derive(&[&salt.to_le_bytes()]));
        let own: Vec<OwnMatrix> = (0..).zip(&kinds).map(|(seed, kind)| {
            let kept = kept(&mut random, *kind, [out, input]);
            OwnMatrix::new(&kept, [out, input], Rotation::new(seed, "matrix", input), 1.0).expect("what fits")
        }).collect();
        let (x, before) = (normals(&mut random, rows * input), normals(&mut random, rows * out));
        let parts: Vec<(&OwnMatrix, Vec<RowShare>)> = own.iter().map(|own| {
            let mut shares = Vec::new();
            for row in 0..rows {
                if random.below(3) > 0 {
                    shares.push(RowShare { row, weight: random.uniform() as f32 });
                }
            }
            (own, shares)
        }).collect();
        let mut all = before.clone();
        add_own(&parts, &x, &mut all).expect("products");
        for kernel in DecodeKernel::all() {
            let mut y = before.clone();
            add_own_with(kernel, &parts, &x, &mut y).expect("products");
            prop_assert_eq!(&y, &all, "{:?}", kernel);
        }
        for row in 0..rows {
            let own: Vec<(&OwnMatrix, Vec<RowShare>)> = parts.iter().map(|(own, shares)| {
                let of_row = shares.iter().filter(|share| share.row == row);
                (*own, of_row.map(|share| RowShare { row: 0, ..*share }).collect())
            }).collect();
            let mut alone = before[row * out..][..out].to_vec();
            add_own(&own, &x[row * input..][..input], &mut alone).expect("products");
            prop_assert_eq!(&alone[..], &all[row * out..][..out]);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut random = Stream::new(Key::derive(&[b"refused"]));
    let shape = [20, 64];
    let rotation = || Rotation::new(1, "matrix", 64);
    let refused = |kept: &Kept, says: &str| {
        let error = OwnMatrix::new(kept, shape, rotation(), 1.0).expect_err("refused");
        assert!(error.to_string().contains(says), "{error}");
    };
    let Kept::Coded {
        code: right, gains, ..
    } = kept(&mut random, 2, shape)
    else {
        panic!("a code")
    };
    let coded = |code: &Code, gains: &[bf16], low_rank| Kept::Coded {
        code: code.clone(),
        gains: gains.to_vec(),
        low_rank,
    };
    let other = code(&mut random, Rate::One, [20, 32]);
    refused(
        &coded(&other, &gains, None),
        "[20, 32] for a matrix of [20, 64]",
    );
    refused(&coded(&right, &gains[1..], None), "19 gains");
    refused(
        &coded(&right, &[bf16::NAN; 20], None),
        "a gain is no finite number",
    );
    let short = nibbles(&mut random, 3, [20, 60]);
    refused(
        &coded(&right, &gains, Some(short)),
        "bytes of the first factor",
    );
    refused(
        &Kept::LowRank(adapter(&mut random, 3, [18, 64])),
        "numbers of the second factor",
    );
    refused(&Kept::Whole(vec![bf16::ZERO; 20]), "20 numbers");
    let own =
        OwnMatrix::new(&coded(&right, &gains, None), shape, rotation(), 1.0).expect("what fits");
    let share = RowShare {
        row: 1,
        weight: 1.0,
    };
    assert!(add_own(&[(&own, vec![share])], &[0.0; 64], &mut [0.0; 20]).is_err());
}

#[test]
fn a_row_that_is_not_finite_makes_no_other_so() {
    let mut random = Stream::new(Key::derive(&[b"finite"]));
    let shape = [20, 64];
    for kind in 0..KINDS {
        let kept = kept(&mut random, kind, shape);
        let own =
            OwnMatrix::new(&kept, shape, Rotation::new(1, "matrix", 64), 1.0).expect("what fits");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = normals(&mut random, 2 * 64);
            x[3] = bad;
            let mut y = vec![0f32; 2 * 20];
            let shares = [0, 1].map(|row| RowShare { row, weight: 1.0 });
            add_own(&[(&own, shares.to_vec())], &x, &mut y).expect("products");
            assert!(y[..20].iter().all(|y| !y.is_finite()), "kind {kind}");
            assert!(y[20..].iter().all(|y| y.is_finite()), "kind {kind}");
        }
    }
}
