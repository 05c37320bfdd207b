//! Whole matrices: retrieval, accumulation.

use std::collections::BTreeMap;

use choir::ops::gpu::superposition::{Accumulate, Retrieve};
use choir::superposition::{Bank, Cells, Delta, DeltaMatrix, Digest, Scheme};
use choir::transform::{self, Side, Transform};
use half::bf16;

use crate::rig::{Number, Rig, Variants, normals, stream};
use crate::tiles::Tiled;

#[test]
fn retrieval_is_the_definition() {
    fn check<T: Number>(rig: &Rig, [out, input]: [usize; 2], tiled: bool) {
        let mut random = stream("retrieve");
        let variants = Variants::new(&mut random, 4, [out, input]);
        let base: Vec<T> = normals(&mut random, out * input);
        let matrix: Vec<f32> = normals(&mut random, out * input);
        let tiles = Tiled::new(&matrix, out, input);
        let dense: Vec<T> = matrix.iter().map(|&x| T::of(x)).collect();
        let (chosen, weights) = ([2u32, 0, 3], [1.0f32, 0.3, -0.7]);
        let bank = if tiled {
            rig.buffer(&tiles.tiles)
        } else {
            rig.buffer(&dense)
        };
        let targets = chosen.map(|_| rig.empty(out * input * T::DTYPE.size()));
        let addresses = rig.buffer(&targets.each_ref().map(|target| target.address()));
        let (base_at, chosen_at, weights_at) =
            (rig.buffer(&base), rig.buffer(&chosen), rig.buffer(&weights));
        let (keys, outputs) = (rig.buffer(&variants.keys), rig.buffer(&variants.outputs));
        let args = Retrieve {
            base: base_at.address(),
            bank: bank.address(),
            targets: addresses.address(),
            variants: chosen_at.address(),
            weights: weights_at.address(),
            keys: keys.address(),
            outputs: outputs.address(),
            out: out as u32,
            input: input as u32,
            count: 3,
            unused: 0,
        };
        args.launch(rig.machine(), T::DTYPE, tiled).unwrap();
        for ((target, &variant), weight) in targets.iter().zip(&chosen).zip(weights) {
            let found = target.read::<T>(0, out * input).unwrap();
            for (at, found) in found.into_iter().enumerate() {
                let (output, i) = (at / input, at % input);
                let s = if tiled {
                    tiles.weight(output, i)
                } else {
                    dense[at].wide()
                };
                let factor = weight * variants.outputs[variant as usize * out + output].to_f32();
                let signed = s * variants.signs[variant as usize].sign(i);
                assert_eq!(
                    found,
                    T::of(factor.mul_add(signed, base[at].wide())),
                    "{at} of {out} x {input}"
                );
            }
        }
    }
    for rig in Rig::all().step_by(2) {
        for shape in [[1, 1], [16, 256], [70, 600], [131, 513], [3, 1031]] {
            for tiled in [true, false] {
                check::<f32>(&rig, shape, tiled);
                check::<bf16>(&rig, shape, tiled);
            }
        }
    }
}

/// Cells after a delta is added or taken away, and whether one wrapped.
fn change(
    rig: &Rig,
    bank: &Bank,
    matrix: &DeltaMatrix,
    seed: u64,
    subtract: bool,
) -> (Cells, bool) {
    let [rows, cols] = [matrix.rows, matrix.cols];
    let tensor = &bank.tensors["matrix"];
    let transform = Transform::new(seed, "matrix", [rows, cols]);
    let factor = |levels: &[i8]| {
        let squares: i64 = levels
            .iter()
            .map(|&level| i64::from(level) * i64::from(level))
            .sum();
        let rms = (squares as f64 / cols as f64).sqrt();
        if rms == 0.0 {
            0.0
        } else {
            f64::from(tensor.fraction_bits).exp2() / rms
        }
    };
    let factors = matrix.values.chunks(cols).map(factor).collect::<Vec<_>>();
    let negative = (0..rows).map(|row| {
        if transform.output.is_negative(row) != subtract {
            u32::MAX
        } else {
            0
        }
    });
    let key = transform::key(seed, "matrix", Side::Input).0;
    let cells = match &tensor.cells {
        Cells::I16(cells) => rig.buffer(cells),
        Cells::I32(cells) => rig.buffer(cells),
    };
    let (levels, factors, key) = (
        rig.buffer(&matrix.values),
        rig.buffer(&factors),
        rig.buffer(&key),
    );
    let (negative, wrapped) = (
        rig.buffer(&negative.collect::<Vec<_>>()),
        rig.buffer(&[0u32]),
    );
    let args = Accumulate {
        cells: cells.address(),
        levels: levels.address(),
        factors: factors.address(),
        negative: negative.address(),
        key: key.address(),
        wrapped: wrapped.address(),
        rows: rows as u32,
        cols: cols as u32,
    };
    let narrow = matches!(tensor.cells, Cells::I16(_));
    args.launch(rig.machine(), narrow).unwrap();
    let count = rows * cols;
    let cells = match narrow {
        true => Cells::I16(cells.read(0, count).unwrap()),
        false => Cells::I32(cells.read(0, count).unwrap()),
    };
    (cells, wrapped.read::<u32>(0, 1).unwrap() == [1])
}

#[test]
fn accumulation_is_the_banks_to_the_bit() {
    let mut random = stream("accumulate");
    for rig in Rig::all() {
        for (shape @ [rows, cols], capacity) in [
            ([33, 100], 4),
            ([64, 512], 4),
            ([5, 1040], 4),
            ([7, 700], 9000),
            ([40, 31], 1),
        ] {
            let mut bank = Bank::new(capacity, Scheme::default(), [("matrix".to_owned(), shape)]);
            let mut deltas = vec![];
            for seed in 0..3 {
                let mut values: Vec<i8> =
                    (0..rows * cols).map(|_| random.below(255) as i8).collect();
                values[cols..2 * cols].fill(0);
                values
                    .iter_mut()
                    .for_each(|value| *value = (*value).max(-127));
                let matrix = DeltaMatrix {
                    rows,
                    cols,
                    scales: vec![0.01; rows],
                    values,
                };
                let delta = Delta {
                    base: Digest::of(b""),
                    matrices: BTreeMap::from([("matrix".to_owned(), matrix)]),
                    vectors: BTreeMap::new(),
                };
                let found = change(&rig, &bank, &delta.matrices["matrix"], seed, false);
                bank.accumulate(&delta, seed).unwrap();
                assert_eq!(found, (bank.tensors["matrix"].cells.clone(), false));
                deltas.push(delta);
            }
            let found = change(&rig, &bank, &deltas[1].matrices["matrix"], 1, true);
            bank.subtract(&deltas[1], 1).unwrap();
            assert_eq!(found, (bank.tensors["matrix"].cells.clone(), false));
            // Cells at the edge of their range.
            let full = match &mut bank.tensors.get_mut("matrix").unwrap().cells {
                Cells::I16(cells) => cells.iter_mut().map(|cell| *cell = i16::MIN).count(),
                Cells::I32(cells) => cells.iter_mut().map(|cell| *cell = i32::MAX).count(),
            };
            assert_eq!(full, rows * cols);
            assert!(change(&rig, &bank, &deltas[0].matrices["matrix"], 0, false).1);
            assert!(bank.accumulate(&deltas[0], 0).is_err());
        }
    }
}
