use super::kernel::TILE;
use super::*;
use crate::rng::{Key, Stream};
use proptest::prelude::*;

fn noise(count: usize, salt: u8) -> Vec<f32> {
    let mut stream = Stream::new(Key([salt; 32]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn rows(x: &[f32], input: usize) -> Rows {
    Rows::quantise(x.len() / input, input, |row, target| {
        target.copy_from_slice(&x[row * input..][..input]);
    })
}

fn product(matrix: &Q4K, x: &[f32]) -> Vec<f32> {
    let (out, input) = matrix.shape();
    let y = std::sync::Mutex::new(vec![f32::NAN; x.len() / input * out]);
    matrix.products(&rows(x, input), |row, first, products| {
        y.lock().unwrap()[row * out + first..][..products.len()].copy_from_slice(products);
    });
    y.into_inner().unwrap()
}

#[test]
fn rows_are_those_of_candle() {
    let (out, input) = (37, 512);
    let weights = noise(out * input, 1);
    let matrix = Q4K::new(&weights, out, input);
    for (index, weights) in weights.chunks_exact(input).enumerate() {
        let mut blocks = vec![BlockQ4K::zeros(); input / SUPER];
        BlockQ4K::from_float(weights, &mut blocks);
        let (mut ours, mut theirs) = (vec![0f32; input], vec![0f32; input]);
        BlockQ4K::to_float(&blocks, &mut theirs);
        matrix.row(index, &mut ours);
        assert_eq!(ours, theirs, "row {index}");
    }
    assert_eq!(matrix.bytes(), 48 * input / 256 * 144);
}

proptest! {
    #[test]
    fn products_match_the_dequantised_matrix_and_not_the_batch(count in 1usize..20, out in 1usize..40, across in 1usize..4) {
        let input = across * SUPER;
        let (weights, x) = (noise(out * input, 2), noise(count * input, 3));
        let matrix = Q4K::new(&weights, out, input);
        let y = product(&matrix, &x);
        let mut row = vec![0f32; input];
        for (index, x) in x.chunks_exact(input).enumerate() {
            let alone = product(&matrix, x);
            prop_assert_eq!(&alone[..], &y[index * out..][..out]);
            // x with 8 bits: an error of half a step, 4 / 254 of its size, a random one on each of the inputs.
            for (output, y) in alone.iter().enumerate() {
                matrix.row(output, &mut row);
                let exact: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                prop_assert!((f64::from(*y) - exact).abs() < 0.05 * (input as f64).sqrt(), "{} {}", y, exact);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits(count in 1usize..=TILE, across in 1usize..4, salt in any::<u8>()) {
        let input = across * SUPER;
        let matrix = Q4K::new(&noise(LANES * input, salt), LANES, input);
        let x = rows(&noise(count * input, salt.wrapping_add(1)), input);
        let levels: Vec<Levels> = matrix.panels.iter().map(Panel::levels).collect();
        let run = |isa| {
            let mut sums = vec![[0f32; LANES]; count];
            kernel::run(isa, &matrix.panels, &levels, &x, 0, &mut sums);
            sums
        };
        let expected = run(Isa::Portable);
        for isa in Isa::all() {
            prop_assert_eq!(&run(isa), &expected, "{:?}", isa);
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_and_zeros_are_zeros() {
    let matrix = Q4K::new(&noise(16 * 256, 4), 16, 256);
    assert!(product(&matrix, &[0.0; 256]).iter().all(|y| *y == 0.0));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; 256];
        x[77] = bad;
        assert!(product(&matrix, &x).iter().all(|y| y.is_nan()), "{bad}");
    }
    let tiny = vec![f32::MIN_POSITIVE / 64.0; 256];
    assert!(product(&matrix, &tiny).iter().all(|y| y.is_finite()));
}
