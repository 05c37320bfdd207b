//! The second product of a superposed layer, and the embedding.

use choir::ops::gpu::Address;
use choir::ops::gpu::pointwise::NONE;
use choir::ops::gpu::products::{
    BankGemm, GatherEmbedding, PartFacts, ProductGroup, SignIn, SignOut, Split, TIERS, TILES,
};
use half::bf16;

use crate::rig::{Number, Rig, Variants, normals, parts, stream};
use crate::tiles::Tiled;

#[test]
fn signs_are_applied_one_by_one() {
    fn check<T: Number>(rig: &Rig, input: usize) {
        let mut random = stream("rotate");
        let (rows, out) = (5, input.div_ceil(3));
        let variants = Variants::new(&mut random, 3, [out, input]);
        let parts = parts(&mut random, (4, rows), 3);
        let x: Vec<T> = normals(&mut random, rows * input);
        let (x_at, part_at, keys) = (
            rig.buffer(&x),
            rig.buffer(&parts),
            rig.buffer(&variants.keys),
        );
        let rotated = rig.empty(4 * input * T::DTYPE.size());
        let args = SignIn {
            x: x_at.address(),
            out: rotated.address(),
            parts: part_at.address(),
            keys: keys.address(),
            input: input as u32,
            unused: 0,
        };
        args.launch(rig.gpu(), T::DTYPE, 4).unwrap();
        let rotated = rotated.read::<T>(0, 4 * input).unwrap();
        for (part, rotated) in parts.iter().zip(rotated.chunks(input)) {
            let row = &x[part.row as usize * input..][..input];
            for (i, (&found, x)) in rotated.iter().zip(row).enumerate() {
                assert_eq!(
                    found.wide(),
                    x.wide() * variants.signs[part.variant as usize].sign(i),
                    "{i} of {input}"
                );
            }
        }

        let (products, mut y): (Vec<f32>, Vec<f32>) = (
            normals(&mut random, 4 * out),
            normals(&mut random, rows * out),
        );
        let (products_at, y_at, outputs) = (
            rig.buffer(&products),
            rig.buffer(&y),
            rig.buffer(&variants.outputs),
        );
        let args = SignOut {
            products: products_at.address(),
            y: y_at.address(),
            parts: part_at.address(),
            outputs: outputs.address(),
            out: out as u32,
            pitch: out as u32,
        };
        args.launch(rig.gpu(), 4).unwrap();
        for (part, products) in parts.iter().zip(products.chunks(out)) {
            for (i, product) in products.iter().enumerate() {
                let gain = part.weight * variants.outputs[part.variant as usize * out + i].to_f32();
                let y = &mut y[part.row as usize * out + i];
                *y = gain.mul_add(*product, *y);
            }
        }
        assert_eq!(y_at.read::<f32>(0, rows * out).unwrap(), y);
    }
    for rig in Rig::all() {
        for input in [1, 100, 512, 2050, 4097] {
            check::<f32>(&rig, input);
            check::<bf16>(&rig, input);
        }
    }
}

/// A launch of groups of parts, some of them in several banks, shared out as so many processors ask for; y after it.
struct Products<'a, T> {
    shape: [usize; 2],
    x: &'a [T],
    y: &'a [f32],
    banks: &'a [Tiled],
    variants: &'a Variants,
    groups: &'a [ProductGroup],
    parts: &'a [PartFacts],
    /// Whether the parts' rows of y are written: NaN is there before.
    writes: bool,
}

impl<T: Number> Products<'_, T> {
    fn run(&self, rig: &Rig, tier: usize, processors: u32) -> Vec<f32> {
        let [out, input] = self.shape;
        let banks: Vec<_> = self
            .banks
            .iter()
            .map(|bank| rig.buffer(&bank.tiles))
            .collect();
        let addresses: Vec<Address> = banks.iter().map(|bank| bank.address()).collect();
        let split = Split::banks(processors, (tier, self.groups.len()), (out, input));
        let mut y = self.y.to_vec();
        for part in self.parts.iter().filter(|_| self.writes) {
            y[part.row as usize * out..][..out].fill(f32::NAN);
        }
        let (x, y, banks) = (rig.buffer(self.x), rig.buffer(&y), rig.buffer(&addresses));
        let (parts, groups) = (rig.buffer(self.parts), rig.buffer(self.groups));
        let (keys, outputs) = (
            rig.buffer(&self.variants.keys),
            rig.buffer(&self.variants.outputs),
        );
        let (partial, counters) = (
            rig.empty(split.partial_bytes()),
            rig.buffer(&vec![0u32; split.counters()]),
        );
        let images = rig.empty(split.image_bytes());
        let args = BankGemm {
            x: x.address(),
            y: y.address(),
            banks: banks.address(),
            parts: parts.address(),
            groups: groups.address(),
            keys: keys.address(),
            outputs: outputs.address(),
            partial: partial.address(),
            counters: counters.address(),
            out: out as u32,
            pitch: out as u32,
            input: input as u32,
            writes: self.writes.into(),
            ..BankGemm::default()
        };
        args.launch(rig.gpu(), T::DTYPE, split, images.address())
            .unwrap();
        assert!(
            counters
                .read::<u32>(0, split.counters())
                .unwrap()
                .iter()
                .all(|&count| count == 0)
        );
        y.read(0, self.y.len()).unwrap()
    }

    /// The definition, and how large the terms were, in f64.
    fn expected(&self) -> Vec<(f64, f64)> {
        let [out, input] = self.shape;
        let mut y: Vec<_> = self
            .y
            .iter()
            .map(|&y| (f64::from(y), f64::from(y.abs())))
            .collect();
        for part in self.parts.iter().filter(|_| self.writes) {
            y[part.row as usize * out..][..out].fill((0.0, 0.0));
        }
        for group in self.groups {
            for part in &self.parts[group.first as usize..][..group.count as usize] {
                let (row, variant) = (part.row as usize, part.variant as usize);
                for output in 0..out {
                    let gain = f64::from(part.weight)
                        * self.variants.outputs[variant * out + output].to_f64();
                    for i in 0..input {
                        let (quant, step, minimum) =
                            self.banks[group.bank as usize].parts(output, i);
                        let step = bf16::from_f32(step).to_f32();
                        let offset = bf16::from_f32((-16f32).mul_add(step, -minimum)).to_f64();
                        // A number of 5 bits times one of 8, and another: exact in f64, but for sizes that do not come up.
                        let weight =
                            bf16::from_f64((f64::from(quant) + 16.0) * f64::from(step) + offset)
                                .to_f64();
                        let x = bf16::from_f32(
                            self.x[row * input + i].wide() * self.variants.signs[variant].sign(i),
                        );
                        let term = gain * weight * x.to_f64();
                        y[row * out + output].0 += term;
                        y[row * out + output].1 += term.abs();
                    }
                }
            }
        }
        y
    }
}

#[test]
fn parts_of_many_banks_go_through_one_launch() {
    fn check<T: Number>([out, input]: [usize; 2]) {
        let mut random = stream("bank gemm");
        let rows = 9;
        let variants = Variants::new(&mut random, 5, [out, input]);
        let matrix = |_| Tiled::new(&normals::<f32>(&mut random, out * input), out, input);
        let banks: Vec<_> = (0..2).map(matrix).collect();
        let parts = parts(&mut random, (7, rows), 5);
        let (x, y): (Vec<T>, Vec<f32>) = (
            normals(&mut random, rows * input),
            normals(&mut random, rows * out),
        );
        let group = |bank, first, count| ProductGroup {
            bank,
            first,
            count,
            groups: 2,
        };
        let products = Products {
            shape: [out, input],
            x: &x,
            y: &y,
            banks: &banks,
            variants: &variants,
            groups: &[group(1, 0, 4), group(0, 4, 3), group(0, 0, 0)],
            parts: &parts,
            writes: false,
        };
        let expected = products.expected();
        for rig in Rig::all().step_by(2) {
            for processors in [1, 40] {
                for tier in TIERS {
                    let found = products.run(&rig, tier, processors);
                    for (i, (&found, &(expected, size))) in found.iter().zip(&expected).enumerate()
                    {
                        let error = (f64::from(found) - expected).abs();
                        assert!(
                            error <= 1e-6 * size,
                            "{found}, not {expected}, at {i} of {out} x {input} in groups of {tier}"
                        );
                    }
                }
            }
        }
    }
    for shape in [[16, 256], [130, 300], [5, 1100], [40, 777], [300, 200]] {
        check::<f32>(shape);
        check::<bf16>(shape);
    }
}

#[test]
fn full_groups_of_every_tier() {
    let (out, input, rows) = (20, 520, 64);
    let mut random = stream("full groups");
    let variants = Variants::new(&mut random, 6, [out, input]);
    let banks = [Tiled::new(
        &normals::<f32>(&mut random, out * input),
        out,
        input,
    )];
    let (x, y): (Vec<bf16>, Vec<f32>) = (
        normals(&mut random, rows * input),
        normals(&mut random, rows * out),
    );
    let Some(rig) = Rig::one() else { return };
    for tier in TIERS {
        let parts = parts(&mut random, (tier, rows), 6);
        let products = Products {
            shape: [out, input],
            x: &x,
            y: &y,
            banks: &banks,
            variants: &variants,
            groups: &[ProductGroup {
                count: tier as u32,
                groups: 1,
                ..ProductGroup::default()
            }],
            parts: &parts,
            writes: tier != 16,
        };
        let found = [1, 40]
            .into_iter()
            .flat_map(|processors| products.run(&rig, tier, processors));
        let expected = products.expected();
        for (found, &(expected, size)) in found.zip(expected.iter().cycle()) {
            assert!(
                (f64::from(found) - expected).abs() <= 1e-6 * size,
                "{found}, not {expected}"
            );
        }
    }
}

#[test]
fn embeddings_are_gathered_with_their_variants() {
    fn check<T: Number>(rig: &Rig, width: usize, tiled: bool) {
        let (vocab, rows) = (40, 6);
        let mut random = stream("embedding");
        let variants = Variants::new(&mut random, 4, [vocab, width]);
        let base: Vec<T> = normals(&mut random, vocab * width);
        let matrices: [Vec<f32>; 2] = [(); 2].map(|()| normals(&mut random, vocab * width));
        let tiles = matrices
            .each_ref()
            .map(|matrix| Tiled::new(matrix, vocab, width));
        let dense = matrices
            .each_ref()
            .map(|matrix| matrix.iter().map(|&x| T::of(x)).collect::<Vec<_>>());
        let banks = [0, 1].map(|i| {
            if tiled {
                rig.buffer(&tiles[i].tiles)
            } else {
                rig.buffer(&dense[i])
            }
        });
        let tokens = [3, 39, NONE, 0, 17, 3];
        let counts = [0u32, 1, 0, 2, 3, 1];
        let first_part: Vec<u32> = (0..=rows).map(|row| counts[..row].iter().sum()).collect();
        let parts: Vec<_> = (0..7)
            .map(|i| PartFacts {
                row: (0..rows as u32)
                    .rfind(|&row| first_part[row as usize] <= i)
                    .unwrap(),
                variant: random.below(4) as u32,
                weight: random.uniform() as f32,
                bank: random.below(2) as u32 | if tiled { TILES } else { 0 },
            })
            .collect();
        let out = rig.empty(rows * width * 4);
        let buffers = [
            rig.buffer(&tokens),
            rig.buffer(&first_part),
            rig.buffer(&variants.keys),
        ];
        let addresses = rig.buffer(&banks.each_ref().map(|bank| bank.address()));
        let (base_at, part_at, outputs) = (
            rig.buffer(&base),
            rig.buffer(&parts),
            rig.buffer(&variants.outputs),
        );
        let args = GatherEmbedding {
            x: out.address(),
            tokens: buffers[0].address(),
            base: base_at.address(),
            banks: addresses.address(),
            parts: part_at.address(),
            first_part: buffers[1].address(),
            keys: buffers[2].address(),
            outputs: outputs.address(),
            vocab: vocab as u32,
            width: width as u32,
            ..GatherEmbedding::default()
        };
        args.launch(rig.gpu(), T::DTYPE, rows).unwrap();
        let out = out.read::<f32>(0, rows * width).unwrap();
        for (row, &token) in tokens.iter().enumerate() {
            for i in 0..width {
                let mut expected = 0.0;
                if token != NONE {
                    let token = token as usize;
                    expected = base[token * width + i].wide();
                    for part in &parts[first_part[row] as usize..first_part[row + 1] as usize] {
                        let (bank, variant) =
                            ((part.bank & !TILES) as usize, part.variant as usize);
                        let s = if tiled {
                            tiles[bank].weight(token, i)
                        } else {
                            dense[bank][token * width + i].wide()
                        };
                        let factor =
                            part.weight * variants.outputs[variant * vocab + token].to_f32();
                        expected = factor.mul_add(s * variants.signs[variant].sign(i), expected);
                    }
                }
                assert_eq!(out[row * width + i], expected, "{i} of {width}, row {row}");
            }
        }
    }
    for rig in Rig::all() {
        for width in [1, 31, 256, 600, 1024] {
            for tiled in [true, false] {
                check::<f32>(&rig, width, tiled);
                check::<bf16>(&rig, width, tiled);
            }
        }
    }
}
