use super::super::levels::{Q2K, Q4_0, Q4K, Q8_0};
use super::*;
use crate::rng::{Key, Stream};
use proptest::prelude::*;

pub(in super::super) fn noise(count: usize, salt: u8) -> Vec<f32> {
    let mut stream = Stream::new(Key([salt; 32]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn rows(x: &[f32], input: usize) -> QuantisedRows {
    QuantisedRows::quantise(x.len() / input, input, |row, target| {
        target.copy_from_slice(&x[row * input..][..input]);
    })
}

fn product<L: Levels>(matrix: &QuantPanels<L>, x: &[f32]) -> Vec<f32> {
    let (out, input) = (matrix.out, matrix.input);
    let y = std::sync::Mutex::new(vec![f32::NAN; x.len() / input * out]);
    matrix.products(&rows(x, input), |row, first, products| {
        y.lock().unwrap()[row * out + first..][..products.len()].copy_from_slice(products);
    });
    y.into_inner().unwrap()
}

fn rows_are_those_of_candle<L: Levels>() {
    let (out, input) = (37, 512);
    let weights = noise(out * input, 1);
    let matrix = QuantPanels::<L>::new(&weights, out, input);
    for (index, weights) in weights.chunks_exact(input).enumerate() {
        let mut blocks = vec![L::Block::zeros(); input / L::Block::BLCK_SIZE];
        L::Block::from_float(weights, &mut blocks);
        let (mut ours, mut theirs) = (vec![0f32; input], vec![0f32; input]);
        L::Block::to_float(&blocks, &mut theirs);
        matrix.row(index, &mut ours);
        assert_eq!(ours, theirs, "row {index}");
    }
    assert_eq!(
        matrix.bytes(),
        48 * input / L::Block::BLCK_SIZE * size_of::<L::Block>()
    );
}

fn products_match_the_dequantised_matrix_and_not_the_batch<L: Levels>(
    (count, out, blocks): (usize, usize, usize),
) -> Result<(), TestCaseError> {
    let input = blocks * L::Block::BLCK_SIZE;
    let (weights, x) = (noise(out * input, 2), noise(count * input, 3));
    let matrix = QuantPanels::<L>::new(&weights, out, input);
    let y = product(&matrix, &x);
    let mut row = vec![0f32; input];
    for (index, x) in x.chunks_exact(input).enumerate() {
        let alone = product(&matrix, x);
        prop_assert_eq!(&alone[..], &y[index * out..][..out]);
        // x with 8 bits: an error of half a step, 4 / 254 of its size, a random one on each of the inputs.
        for (output, y) in alone.iter().enumerate() {
            matrix.row(output, &mut row);
            let exact: f64 = row
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            prop_assert!(
                (f64::from(*y) - exact).abs() < 0.05 * (input as f64).sqrt(),
                "{} {}",
                y,
                exact
            );
        }
    }
    Ok(())
}

fn every_instruction_set_gives_the_same_bits<L: Levels>(
    (count, blocks, salt): (usize, usize, u8),
) -> Result<(), TestCaseError> {
    let input = blocks * L::Block::BLCK_SIZE;
    let matrix = QuantPanels::<L>::new(&noise(LANES * input, salt), LANES, input);
    let x = rows(&noise(count * input, salt.wrapping_add(1)), input);
    let run = |isa| {
        let mut sums = vec![[0f32; LANES]; count];
        kernel::run(isa, matrix.panel(0), &x, 0, &mut sums);
        sums
    };
    let expected = run(Isa::all()[0]);
    for isa in Isa::all() {
        prop_assert_eq!(&run(isa), &expected, "{:?}", isa);
    }
    Ok(())
}

/// The largest quants and the largest x there are: no sum of 16 bits overflows on the way.
fn extremes_are_exact<L: Levels>() {
    let input = L::Block::BLCK_SIZE;
    let mut weights = vec![1f32; LANES * input];
    weights
        .iter_mut()
        .step_by(2)
        .for_each(|weight| *weight = -1.0);
    let matrix = QuantPanels::<L>::new(&weights, LANES, input);
    for sign in [1.0, -1.0] {
        let x: Vec<f32> = (0..input)
            .map(|i| if i % 2 == 0 { -sign } else { sign })
            .collect();
        let mut row = vec![0f32; input];
        matrix.row(0, &mut row);
        let exact: f32 = row.iter().zip(&x).map(|(w, x)| w * x).sum();
        for isa in Isa::all() {
            let mut sums = [[0f32; LANES]];
            kernel::run(isa, matrix.panel(0), &rows(&x, input), 0, &mut sums);
            for y in sums.as_flattened() {
                assert!(
                    (y - exact).abs() < 1e-3 * exact.abs(),
                    "{isa:?}: {y}, not {exact}"
                );
            }
        }
    }
}

fn what_is_not_finite_stays_so_and_zeros_are_zeros<L: Levels>() {
    let matrix = QuantPanels::<L>::new(&noise(16 * 256, 4), 16, 256);
    assert!(product(&matrix, &[0.0; 256]).iter().all(|y| *y == 0.0));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; 256];
        x[77] = bad;
        assert!(product(&matrix, &x).iter().all(|y| y.is_nan()), "{bad}");
    }
    let tiny = vec![f32::MIN_POSITIVE / 64.0; 256];
    assert!(product(&matrix, &tiny).iter().all(|y| y.is_finite()));
}

macro_rules! for_every_form {
    ($($name:ident: $form:ty),*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn rows_are_those_of_candle() {
                super::rows_are_those_of_candle::<$form>();
            }

            #[test]
            fn extremes_are_exact() {
                super::extremes_are_exact::<$form>();
            }

            #[test]
            fn what_is_not_finite_stays_so_and_zeros_are_zeros() {
                super::what_is_not_finite_stays_so_and_zeros_are_zeros::<$form>();
            }

            proptest! {
                #[test]
                fn products_match_the_dequantised_matrix_and_not_the_batch(sizes in (1usize..20, 1usize..40, 1usize..4)) {
                    super::products_match_the_dequantised_matrix_and_not_the_batch::<$form>(sizes)?;
                }

                #[test]
                fn every_instruction_set_gives_the_same_bits(
                    case in (1usize..=kernel::TILE, 1usize..12, any::<u8>())
                ) {
                    super::every_instruction_set_gives_the_same_bits::<$form>(case)?;
                }
            }
        }
    )*};
}

for_every_form!(q2k: Q2K, q4k: Q4K, q4_0: Q4_0, q8_0: Q8_0);
