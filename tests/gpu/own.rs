//! What variants keep by themselves: products, rows of the embedding, whole matrices.

use choir::ops::coded::Kept;
use choir::ops::gpu::Buffer;
use choir::ops::gpu::own::{EmbedOwn, GpuOwn, OwnFacts, OwnProduct, RetrieveOwn};
use choir::ops::gpu::products::{PartFacts, ProductGroup};
use choir::rng::Stream;
use choir::transform::Rotation;
use half::bf16;

use crate::fixtures::kept::{kept, whole};
use crate::rig::{Number, Rig, normals, stream};

/// Variants of one matrix, every one in another way, and one without it.
struct Variants {
    own: Vec<Option<GpuOwn>>,
    facts: Buffer,
    /// c d by variant.
    deltas: Vec<Vec<f32>>,
}

const SCALE: f32 = 0.5;

impl Variants {
    fn new(rig: &Rig, random: &mut Stream, shape: [usize; 2]) -> Self {
        // Rates go by the index: without and with factors, factors alone, an adapter, whole, none.
        let coded = (0..6).flat_map(|index| [(1, index), (0, index)]);
        let kinds = coded.chain([(2, 0), (2, 1), (3, 1), (4, 0)]);
        let all: Vec<Option<Kept>> = kinds
            .map(|(kind, index)| kept(random, kind, index, shape))
            .collect();
        let rotation = |seed| Rotation::new(seed, "matrix", shape[1]);
        let made = (0..).zip(&all).map(|(seed, kept)| {
            let kept = kept.as_ref()?;
            Some(GpuOwn::new(&rig.gpu, kept, shape, &rotation(seed), SCALE).unwrap())
        });
        let own: Vec<Option<GpuOwn>> = made.collect();
        let facts = own
            .iter()
            .map(|own| own.as_ref().map_or(OwnFacts::default(), GpuOwn::facts));
        let deltas = (0..).zip(&all).map(|(seed, kept)| match kept {
            Some(kept) => {
                let delta = whole(kept, shape, seed, "matrix").into_iter();
                delta.map(|d| SCALE * d).collect()
            }
            None => vec![0.0; shape[0] * shape[1]],
        });
        Self {
            facts: rig.buffer(&facts.collect::<Vec<_>>()),
            deltas: deltas.collect(),
            own,
        }
    }

    fn ranks(&self) -> usize {
        self.own.iter().flatten().map(GpuOwn::rank).max().unwrap()
    }
}

fn length(x: impl Iterator<Item = f32>) -> f32 {
    x.map(|x| x * x).sum::<f32>().sqrt()
}

/// What rounding to a dtype may cost, relative to lengths.
fn tolerance<T: Number>() -> f32 {
    match T::DTYPE.size() {
        // Both factors of an adapter and what stands between them are rounded to bf16, 2^-9 each.
        4 => 8e-3,
        _ => 2e-2,
    }
}

#[test]
fn own_products_are_the_definition() {
    fn check<T: Number>(rig: &Rig, [out, input]: [usize; 2], tier: usize) {
        let mut random = stream("own products");
        let variants = Variants::new(rig, &mut random, [out, input]);
        let kinds = variants.own.iter().flatten().count();
        // So many rows to a variant that its parts are more than one group, and rows without a part.
        let each = tier + 3;
        let rows = kinds * each + 5;
        let x: Vec<T> = normals(&mut random, rows * input);
        let (pitch, mut parts, mut groups) = (out + 3, Vec::new(), Vec::new());
        for variant in 0..kinds {
            let first = parts.len();
            let of = |index: usize| PartFacts {
                row: (5 + index * kinds + variant) as u32,
                variant: variant as u32,
                weight: 0.25 + index as f32 / 8.0,
                bank: variant as u32,
            };
            parts.extend((0..each).map(of));
            groups.extend(
                (first..first + each)
                    .step_by(tier)
                    .map(|start| ProductGroup {
                        bank: variant as u32,
                        first: start as u32,
                        count: tier.min(first + each - start) as u32,
                        groups: 0,
                    }),
            );
        }
        let real = parts.len();
        parts.extend([PartFacts::default(); 2]);
        groups.push(ProductGroup::default());
        let before: Vec<f32> = normals(&mut random, rows * pitch);
        let (x_at, y_at) = (rig.buffer(&x), rig.buffer(&before));
        let (parts_at, groups_at) = (rig.buffer(&parts), rig.buffer(&groups));
        let rotated = rig.empty(OwnProduct::rotated_bytes(parts.len(), input, T::DTYPE));
        let thin = rig.empty(OwnProduct::thin_bytes(parts.len(), variants.ranks()));
        OwnProduct {
            x: x_at.address(),
            y: y_at.address(),
            own: variants.facts.address(),
            parts: parts_at.address(),
            part_count: parts.len(),
            groups: groups_at.address(),
            group_count: groups.len(),
            tier,
            out,
            input,
            y_pitch: pitch,
            ranks: variants.ranks(),
            rotated: rotated.address(),
            thin: thin.address(),
        }
        .launch(rig.gpu(), T::DTYPE)
        .unwrap();
        let y: Vec<f32> = y_at.read(0, rows * pitch).unwrap();
        let mut expected = before;
        let mut allowed = vec![0f32; rows * pitch];
        for part in &parts[..real] {
            let x = &x[part.row as usize * input..][..input];
            let delta = &variants.deltas[part.variant as usize];
            for (output, delta) in delta.chunks_exact(input).enumerate() {
                let at = part.row as usize * pitch + output;
                let sum: f32 = delta.iter().zip(x).map(|(d, x)| d * x.wide()).sum();
                expected[at] += part.weight * sum;
                let sizes = length(delta.iter().copied()) * length(x.iter().map(|x| x.wide()));
                // Terms of an adapter can cancel, and leave the rounding of what they were.
                allowed[at] = tolerance::<T>() * (5e-2 + part.weight * sizes);
            }
        }
        for (at, ((ours, theirs), allowed)) in y.iter().zip(&expected).zip(allowed).enumerate() {
            let off = (ours - theirs).abs();
            assert!(
                off <= allowed,
                "{at} of {out} x {input}, {:?}: {off}",
                T::DTYPE
            );
        }
    }
    for rig in Rig::all().step_by(2) {
        for (shape, tier) in [
            ([1, 1], 8),
            ([16, 256], 16),
            ([35, 96], 8),
            ([17, 1030], 32),
            ([20, 64], 64),
        ] {
            check::<f32>(&rig, shape, tier);
            check::<bf16>(&rig, shape, tier);
        }
    }
}

#[test]
fn own_matrices_and_their_rows_are_the_definition() {
    fn check<T: Number>(rig: &Rig, [out, input]: [usize; 2]) {
        let mut random = stream("own rows");
        let variants = Variants::new(rig, &mut random, [out, input]);
        let base: Vec<T> = normals(&mut random, out * input);
        let base_at = rig.buffer(&base);
        for (number, own) in variants.own.iter().enumerate() {
            if own.is_none() {
                continue;
            }
            let target = rig.empty(out * input * T::DTYPE.size());
            RetrieveOwn {
                base: base_at.address(),
                target: target.address(),
                own: variants.facts.address() + number * size_of::<OwnFacts>(),
                out: out as u32,
                input: input as u32,
                weight: -2.0,
                ..RetrieveOwn::default()
            }
            .launch(rig.gpu(), T::DTYPE)
            .unwrap();
            let found: Vec<T> = target.read(0, out * input).unwrap();
            let delta = &variants.deltas[number];
            let size = length(delta.iter().copied()) / (delta.len() as f32).sqrt();
            for (at, found) in found.into_iter().enumerate() {
                let expected = base[at].wide() - 2.0 * delta[at];
                let allowed = tolerance::<T>() * (4.0 * size + 1e-3 + base[at].wide().abs());
                let off = (found.wide() - expected).abs();
                assert!(
                    off <= allowed,
                    "{at} of {out} x {input} of variant {number}: {off}"
                );
            }
        }

        // Rows of tokens, one of them of no row, and a part that pads the batch.
        let rows = variants.own.len() + 1;
        let mut tokens: Vec<u32> = (0..rows).map(|_| random.below(out) as u32).collect();
        tokens[1] = u32::MAX;
        let part = |row: usize| PartFacts {
            row: row as u32,
            variant: row as u32,
            weight: 0.5,
            bank: row as u32,
        };
        let kept = (0..variants.own.len()).filter(|&v| variants.own[v].is_some());
        let parts: Vec<_> = kept.map(part).chain([PartFacts::default()]).collect();
        let before: Vec<f32> = normals(&mut random, rows * input);
        let (x, tokens_at, parts_at) =
            (rig.buffer(&before), rig.buffer(&tokens), rig.buffer(&parts));
        EmbedOwn {
            x: x.address(),
            tokens: tokens_at.address(),
            parts: parts_at.address(),
            own: variants.facts.address(),
            vocab: out as u32,
            width: input as u32,
            ..EmbedOwn::default()
        }
        .launch(rig.gpu(), parts.len())
        .unwrap();
        let found: Vec<f32> = x.read(0, rows * input).unwrap();
        for (at, found) in found.into_iter().enumerate() {
            let (row, column) = (at / input, at % input);
            let delta = match variants.deltas.get(row) {
                Some(delta) if tokens[row] != u32::MAX => {
                    delta[tokens[row] as usize * input + column]
                }
                _ => 0.0,
            };
            let expected = before[at] + 0.5 * delta;
            assert!(
                (found - expected).abs() <= 1e-3,
                "row {row}: {found}, not {expected}"
            );
        }
    }
    for rig in Rig::all().step_by(2) {
        for shape in [[1, 1], [16, 256], [35, 96], [5, 1030]] {
            check::<f32>(&rig, shape);
            check::<bf16>(&rig, shape);
        }
    }
}
