//! A decoder's heads: biases, norms, rotation, and where keys and values go.

use choir::ops::gpu::heads::Heads;
use choir::ops::gpu::pointwise::{Angles, NONE, NormFacts, RotaryLaunch};
use choir::ops::norm::Norm;
use half::bf16;

use crate::pointwise::{Slots, close, norm};
use crate::rig::{Number, Rig, normals, stream};

const LAYERS: usize = 3;
const LAYER: usize = 1;
const PAGE: usize = 4;
const PAGES: usize = 3;

/// Heads, heads of keys, how wide they are.
type Shape = [usize; 3];

/// With biases and norms or without; `in_place`: queries and keys are rotated where they are.
fn check<T: Number, Y: Number>(
    rig: &Rig,
    [heads, kv_heads, dim]: Shape,
    (bias, qk_norm): (bool, Option<Norm>),
    in_place: bool,
) {
    let (positions, slots) = ([0u32, 5, 1023, 70_000], [6u32, NONE, 11, 0]);
    let (rows, half, scale) = (positions.len(), dim / 2, 0.37f32);
    let (queries, keys) = (heads * dim, kv_heads * dim);
    let width = queries + 2 * keys;
    let mut random = stream("heads");
    // As wide as all heads: the bias is one vector, of gains the first elements are read.
    let vectors = Slots::new(&mut random, rows, width);
    let (tables, _buffers) = vectors.upload(rig);
    let frequencies: Vec<f64> = (0..half)
        .map(|i| 1e6f64.powf(-(i as f64) / half as f64))
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

    let qkv: Vec<Y> = normals(&mut random, rows * width);
    let cache_len = PAGES * LAYERS * 2 * PAGE * keys;
    let qkv_at = rig.buffer(&qkv);
    // What is left of a row is not written.
    let apart = rig.buffer(&vec![T::of(5.0); rows * (width + 8)]);
    let (out, pitch) = match in_place {
        true => (&qkv_at, width),
        false => (&apart, width + 8),
    };
    let cache = rig.buffer(&vec![T::of(9.0); cache_len]);
    let gain = |which: usize| match qk_norm {
        Some(norm) => NormFacts::new(norm, (which * width) as u32, NONE),
        None => NormFacts::none(),
    };
    let args = Heads {
        rotary: RotaryLaunch {
            qkv: qkv_at.address(),
            cosines: cosines.address(),
            sines: sines.address(),
            q: out.address(),
            current: out.address() + queries * T::DTYPE.size(),
            cache: cache.address(),
            slots: slots_at.address(),
            heads: heads as u32,
            head_dim: dim as u32,
            layer: LAYER as u32,
            layers: LAYERS as u32,
            page_tokens: PAGE as u32,
            scale,
            q_pitch: pitch as u32,
            current_pitch: pitch as u32,
        },
        tables,
        query: gain(1),
        key: gain(2),
        kv_heads: kv_heads as u32,
        bias: if bias { 0 } else { NONE },
    };
    args.launch(rig.gpu(), T::DTYPE, Y::DTYPE, rows).unwrap();

    let out = out.read::<T>(0, rows * pitch).unwrap();
    let mut expected_cache = vec![T::of(9.0); cache_len];
    for row in 0..rows {
        let biased = |at: usize| {
            let x = qkv[row * width + at].wide();
            f64::from(if bias {
                x + vectors.bias(row, 0)[at]
            } else {
                x
            })
        };
        for head in 0..heads + 2 * kv_heads {
            let mut x: Vec<f64> = (head * dim..(head + 1) * dim).map(biased).collect();
            let (is_query, is_value) = (head < heads, head >= heads + kv_heads);
            if let Some(of) = qk_norm.filter(|_| !is_value) {
                let gain = vectors.bias(row, if is_query { 1 } else { 2 });
                x = norm(of, &x, &gain[..dim], None);
            }
            let found = &out[row * pitch + head * dim..][..dim];
            for (i, &found) in found.iter().enumerate() {
                let angle = f64::from(positions[row]) * frequencies[i % half];
                // The other one of the pair, with the sign it gets.
                let other = if i < half { -x[i + half] } else { x[i - half] };
                let expected = match is_value {
                    true => x[i],
                    false => x[i] * angle.cos() + other * angle.sin(),
                };
                let scale = if is_query { f64::from(scale) } else { 1.0 };
                let size = 1e-5 * (x[i].abs() + other.abs());
                assert!(
                    close(found, expected * scale)
                        || (expected * scale - f64::from(found.wide())).abs() < size,
                    "{found:?}, not {expected} x {scale}: row {row}, head {head}, element {i}"
                );
            }
            if !is_query && slots[row] != NONE {
                let (page, slot) = (slots[row] as usize / PAGE, slots[row] as usize % PAGE);
                let (side, number) = match is_value {
                    true => (1, head - heads - kv_heads),
                    false => (0, head - heads),
                };
                let at = (((page * LAYERS + LAYER) * 2 + side) * PAGE + slot) * keys;
                expected_cache[at + number * dim..][..dim].copy_from_slice(found);
            }
        }
        if !in_place {
            assert!(
                out[row * pitch + width..][..8]
                    .iter()
                    .all(|&x| x == T::of(5.0))
            );
        }
    }
    assert_eq!(cache.read::<T>(0, cache_len).unwrap(), expected_cache);
}

#[test]
fn heads_are_normed_and_rotated_to_where_attention_looks() {
    for rig in Rig::all() {
        let rms = Some(Norm::Rms { eps: 1e-6 });
        for shape in [[1, 1, 2], [6, 2, 10], [4, 1, 64], [16, 8, 128], [2, 1, 256]] {
            for extras in [
                (false, None),
                (true, None),
                (false, rms),
                (true, Some(Norm::DIT)),
            ] {
                check::<f32, f32>(&rig, shape, extras, false);
                check::<bf16, f32>(&rig, shape, extras, false);
                check::<bf16, bf16>(&rig, shape, extras, true);
            }
        }
    }
}
