//! Whole matrices of variants.

use choir::ops::gpu::superposition::Retrieve;
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
        args.launch(rig.gpu(), T::DTYPE, tiled).unwrap();
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
