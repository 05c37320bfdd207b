use proptest::prelude::*;

use super::*;

fn rates() -> impl Strategy<Value = Rate> {
    prop::sample::select(&Rate::ALL)
}

/// A code of any bits at all: every stream with zero padding is one.
fn codes() -> impl Strategy<Value = Code> {
    (rates(), 1usize..5, 1usize..300).prop_flat_map(|(rate, rows, cols)| {
        let bytes = prop::collection::vec(any::<u8>(), rows * rate.row_bytes(cols));
        bytes.prop_map(move |mut stream| {
            let used = rate.row_bits(cols) % 8;
            for row in stream.chunks_exact_mut(rate.row_bytes(cols)) {
                let last = row.len() - 1;
                row[last] &= if used > 0 { (1 << used) - 1 } else { !0 };
            }
            Code::new(rate, [rows, cols], stream).unwrap()
        })
    })
}

proptest! {
    #[test]
    fn decoding_fast_equals_slow(code in codes()) {
        let (mut fast, mut slow) = (vec![0; code.cols()], vec![0; code.cols()]);
        for row in 0..code.rows() {
            code.decode_row(row, &mut fast);
            code.decode_row_slow(row, &mut slow);
            prop_assert_eq!(&fast, &slow);
        }
    }

    /// A weight depends on seven bits and no others.
    #[test]
    fn decoding_a_flipped_bit_changes_few_weights(code in codes(), at in any::<prop::sample::Index>()) {
        let bit = at.index(code.rate().row_bits(code.cols()));
        let mut stream = code.stream().to_vec();
        stream[bit / 8] ^= 1 << (bit % 8);
        let other = Code::new(code.rate(), [code.rows(), code.cols()], stream).unwrap();
        let (mut a, mut b) = (vec![0; code.cols()], vec![0; code.cols()]);
        code.decode_row_slow(0, &mut a);
        other.decode_row_slow(0, &mut b);
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        let rate = code.rate();
        prop_assert!(differ <= WINDOW.div_ceil(rate.step_bits()) * rate.step_weights());
    }

    #[test]
    fn code_of_another_length_or_with_padding_is_refused(code in codes(), extra in 1usize..3) {
        let shape = [code.rows(), code.cols()];
        let mut long = code.stream().to_vec();
        long.resize(long.len() + extra, 0);
        let refused = matches!(Code::new(code.rate(), shape, long), Err(CodeError::Length { .. }));
        prop_assert!(refused);
        let short = code.stream()[extra.min(code.stream().len())..].to_vec();
        let refused = matches!(Code::new(code.rate(), shape, short), Err(CodeError::Length { .. }));
        prop_assert!(refused);
        if code.rate().row_bits(code.cols()) % 8 != 0 {
            let mut stream = code.stream().to_vec();
            *stream.last_mut().unwrap() |= 0x80;
            let row = code.rows() - 1;
            prop_assert_eq!(Code::new(code.rate(), shape, stream), Err(CodeError::Padding { row }));
        }
    }
}

#[test]
fn code_without_weights_is_refused() {
    for shape in [[0, 4], [4, 0]] {
        assert_eq!(
            Code::new(Rate::One, shape, Vec::new()),
            Err(CodeError::Empty)
        );
    }
}

#[test]
fn rates_are_read_as_they_are_written() {
    for rate in Rate::ALL {
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
    for text in ["", "0", "0.75", "5", "-1", "1.0", "half"] {
        assert_eq!(text.parse::<Rate>(), Err(NoSuchRate(text.to_owned())));
    }
}

#[test]
fn row_bytes_by_hand() {
    // 256 weights: 256 / 4 + 6 bits, 256 / 2 + 6, 256 + 6, 2 · 255 + 7, 3 · 255 + 7, 4 · 255 + 7.
    let bytes = Rate::ALL.map(|rate| rate.row_bytes(256));
    assert_eq!(bytes, [9, 17, 33, 65, 97, 129]);
    assert_eq!(Rate::ALL.map(|rate| rate.row_bytes(1)), [1; 6]);
}

/// The tables are a file format: none of them may ever change.
#[test]
fn tables_are_those_of_the_format() {
    let sum = |rate: Rate| {
        let mut sum = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
        for value in rate.tables().as_flattened() {
            sum = (sum ^ u64::from(value.cast_unsigned())).wrapping_mul(0x0100_0000_01b3);
        }
        sum
    };
    assert_eq!(Rate::ALL.map(sum), GOLDEN);
}

const GOLDEN: [u64; 6] = [
    17756076259795867598,
    1413548015156103550,
    18054446647108079035,
    1805981724220948744,
    9693077110633925462,
    7729923285971616776,
];
