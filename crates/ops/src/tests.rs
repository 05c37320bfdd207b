//! Every fused operation against its slow twin, and every gradient against candle's own of that twin.

use super::cross_entropy::{cross_entropy_backward, cross_entropy_slow};
use super::divergence::{Divergence, divergence_backward, divergence_slow};
use super::embedding::{embedding_mix, embedding_mix_backward, embedding_mix_slow};
use super::embedding_backward;
use super::norm::{Residual, norm_modulate_slow};
use super::pointwise::{add_bias, add_bias_in_place, bias_gelu_in_place, column_sums};
use super::slice;
use super::uniform_nelbo::{
    UniformTerm, uniform_nelbo, uniform_nelbo_backward, uniform_nelbo_slow,
};
use super::{
    Affine, Norm, gate_residual, gate_residual_backward, norm_into, norm_modulate,
    norm_modulate_backward, residual_norm, swiglu,
};
use super::{
    Pattern, PerRow, attention, attention_backward, bias_gelu, bias_gelu_backward, cross_entropy,
    embedding,
};
use crate::error::Result;
use crate::rng::{Key, Stream};
use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

fn noise(shape: (usize, usize), salt: u8) -> Var {
    let mut stream = Stream::new(Key([salt; 32]));
    let data: Vec<f32> = (0..shape.0 * shape.1)
        .map(|_| stream.normal() as f32)
        .collect();
    Var::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn lines(rows: usize, lines: usize) -> Option<Vec<u32>> {
    (lines > 1).then(|| (0..rows).map(|row| (row * 7 % lines) as u32).collect())
}

fn close(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    let read = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).unwrap();
    let (ours, theirs) = (read(ours), read(theirs));
    for (index, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!(
            (a - b).abs() <= 2e-4 * (1.0 + b.abs()),
            "element {index}: {a}, not {b}"
        );
    }
}

/// The gradients that candle finds for `slow(..)`, contracted with `upstream`.
fn gradients(slow: Result<Tensor>, upstream: &Tensor, inputs: &[&Var]) -> Vec<Tensor> {
    let store = (slow.unwrap() * upstream)
        .and_then(|t| t.sum_all())
        .and_then(|t| t.backward())
        .unwrap();
    inputs
        .iter()
        .map(|input| store.get(input).unwrap().clone())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn norm_modulate_equals_its_twin(rows in 1usize..40, width in 1usize..70, count in 1usize..4) {
        let (x, gain, shift) = (noise((rows, width), 1), noise((count, width), 2), noise((count, width), 3));
        let index = lines(rows, count);
        let per_row = |table| PerRow::new(table, index.as_deref());
        let (gains, shifts) = (per_row(gain.as_tensor()), per_row(shift.as_tensor()));
        close(&norm_modulate(&x, gains, shifts).unwrap(), &norm_modulate_slow(&x, gains, shifts).unwrap());
        if width > 2 {
            let upstream = noise((rows, width), 4);
            let theirs = gradients(norm_modulate_slow(&x, gains, shifts), &upstream, &[&x, &gain, &shift]);
            let (dx, dgain, dshift) = norm_modulate_backward(&x, gains, &upstream).unwrap();
            close(&dx, &theirs[0]);
            close(&dgain, &theirs[1]);
            close(&dshift, &theirs[2]);
        }
    }

    #[test]
    fn bias_gelu_equals_its_twin(rows in 1usize..40, width in 1usize..70, count in 1usize..4) {
        let (y, bias) = (noise((rows, width), 1), noise((count, width), 2));
        let index = lines(rows, count);
        let biases = PerRow::new(bias.as_tensor(), index.as_deref());
        let slow = || -> Result<Tensor> { Ok(y.broadcast_add(&biases.spread()?)?.gelu()?) };
        let ours = bias_gelu(&y, biases).unwrap();
        close(&ours, &slow().unwrap());
        let mut in_place = slice::f32(&y).unwrap().to_vec();
        let table = slice::f32(&bias).unwrap();
        bias_gelu_in_place(&mut in_place, width, |row| &table[biases.line(row) * width..][..width]);
        prop_assert_eq!(&in_place[..], &*slice::f32(&ours).unwrap());
        let upstream = noise((rows, width), 4);
        let theirs = gradients(slow(), &upstream, &[&y, &bias]);
        let (dy, dbias) = bias_gelu_backward(&y, biases, &upstream).unwrap();
        close(&dy, &theirs[0]);
        close(&dbias, &theirs[1]);
    }

    #[test]
    fn rms_norm_and_swiglu_equal_their_definitions(rows in 1usize..40, width in 1usize..70) {
        let (x, y, gain) = (noise((rows, width), 1), noise((rows, 2 * width), 2), noise((1, width), 3));
        let gains = slice::f32(&gain).unwrap();
        let affine = |_| Affine { gain: &gains, shift: None };
        let norm = Norm::Rms { eps: 1e-6 };
        let (mut sums, mut normed) = (vec![0.0; rows * width], vec![f32::NAN; rows * width]);
        residual_norm(norm, &mut sums, &slice::f32(&x).unwrap(), &mut normed, width, |row| {
            Residual { gate: None, bias: None, affine: affine(row) }
        });
        prop_assert_eq!(&sums[..], &*slice::f32(&x).unwrap());
        let slow = || x.broadcast_div(&(x.sqr()?.mean_keepdim(1)? + 1e-6)?.sqrt()?)?.broadcast_mul(&gain);
        close(&slice::tensor(normed.clone(), rows, width).unwrap(), &slow().unwrap());
        let mut alone = vec![f32::NAN; rows * width];
        norm_into(norm, &sums, &mut alone, width, affine);
        prop_assert_eq!(&alone, &normed);
        for (x, normed) in sums.chunks_mut(width).zip(normed.chunks(width)) {
            norm.in_place(x, &gains);
            prop_assert_eq!(&*x, normed);
        }
        let mut ours = vec![f32::NAN; rows * width];
        swiglu(&slice::f32(&y).unwrap(), width, &mut ours);
        let slow = || y.narrow(1, 0, width)?.silu()?.mul(&y.narrow(1, width, width)?);
        close(&slice::tensor(ours, rows, width).unwrap(), &slow().unwrap());
    }

    #[test]
    fn gate_residual_equals_its_twin(rows in 1usize..40, width in 1usize..70, count in 1usize..4) {
        let (x, y) = (noise((rows, width), 1), noise((rows, width), 2));
        let (gate, bias) = (noise((count, width), 3), noise((1, width), 5));
        let index = lines(rows, count);
        let gates = PerRow::new(gate.as_tensor(), index.as_deref());
        let biases = PerRow::new(bias.as_tensor(), None);
        let slow = || -> Result<Tensor> {
            Ok((x.as_tensor() + y.broadcast_add(&bias)?.broadcast_mul(&gates.spread()?)?)?)
        };
        let sum = gate_residual(&x, &y, gates, Some(biases)).unwrap();
        close(&sum, &slow().unwrap());
        let (mut in_place, mut normed) = (slice::f32(&x).unwrap().to_vec(), vec![f32::NAN; rows * width]);
        let (gate_table, bias_table) = (slice::f32(&gate).unwrap(), slice::f32(&bias).unwrap());
        residual_norm(Norm::DIT, &mut in_place, &slice::f32(&y).unwrap(), &mut normed, width, |row| {
            let line = &gate_table[gates.line(row) * width..][..width];
            Residual { gate: Some(line), bias: Some(&bias_table), affine: Affine { gain: line, shift: Some(&bias_table) } }
        });
        prop_assert_eq!(&in_place[..], &*slice::f32(&sum).unwrap());
        let expected = norm_modulate(&sum, gates, biases).unwrap();
        prop_assert_eq!(&normed[..], &*slice::f32(&expected).unwrap());
        let upstream = noise((rows, width), 4);
        let theirs = gradients(slow(), &upstream, &[&y, &gate, &bias]);
        let (dy, dgate, dbias) = gate_residual_backward(&y, gates, Some(bias.as_tensor()), &upstream).unwrap();
        close(&dy, &theirs[0]);
        close(&dgate, &theirs[1]);
        close(&dbias.unwrap(), &theirs[2]);
        let (dy, dgate, none) = gate_residual_backward(&y, gates, None, &upstream).unwrap();
        let slow = x.as_tensor() + y.broadcast_mul(&gates.spread().unwrap()).unwrap();
        let theirs = gradients(Ok(slow?), &upstream, &[&y, &gate]);
        close(&dy, &theirs[0]);
        close(&dgate, &theirs[1]);
        prop_assert!(none.is_none());
    }

    #[test]
    fn bias_and_its_sums_equal_their_twins(rows in 1usize..40, width in 1usize..70) {
        let (y, bias) = (noise((rows, width), 1), noise((1, width), 2));
        let biases = PerRow::new(bias.as_tensor(), None);
        let added = add_bias(&y, biases).unwrap();
        close(&added, &y.broadcast_add(&bias).unwrap());
        let mut in_place = slice::f32(&y).unwrap().to_vec();
        let table = slice::f32(&bias).unwrap();
        add_bias_in_place(&mut in_place, width, |_| &table);
        prop_assert_eq!(&in_place[..], &*slice::f32(&added).unwrap());
        close(&column_sums(&y).unwrap(), &y.sum_keepdim(0).unwrap());
    }

    #[test]
    fn cross_entropy_equals_its_twin(rows in 1usize..20, vocab in 2usize..70, forbid in any::<bool>()) {
        let logits = noise((rows, vocab), 1);
        let forbid = forbid.then_some(vocab as u32 - 1);
        let targets: Vec<u32> = (0..rows).map(|row| (row * 5 % (vocab - 1)) as u32).collect();
        close(&cross_entropy(&logits, &targets, forbid).unwrap(), &cross_entropy_slow(&logits, &targets, forbid).unwrap());
        let weights: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
        let upstream = Tensor::new(&weights[..], &Device::Cpu).unwrap();
        let theirs = gradients(cross_entropy_slow(&logits, &targets, forbid), &upstream, &[&logits]);
        close(&cross_entropy_backward(&logits, &targets, forbid, &weights).unwrap(), &theirs[0]);
    }

    #[test]
    fn uniform_nelbo_equals_its_twin(rows in 1usize..20, tokens in 2usize..70, mask in 0usize..2) {
        let logits = noise((rows, tokens + mask), 1);
        let terms: Vec<UniformTerm> = (0..rows)
            .map(|row| UniformTerm {
                x0: (row * 5 % tokens) as u32,
                xt: if row % 2 == 0 { row * 5 % tokens } else { row * 7 % tokens } as u32,
                move_chance: [0.999, 0.7, 0.3, 0.01][row % 4],
                rate: -0.999,
            })
            .collect();
        let slow = uniform_nelbo_slow(&logits, tokens, &terms);
        let ours = uniform_nelbo(&logits, tokens, &terms).unwrap();
        close(&Tensor::new(&ours[..], &Device::Cpu).unwrap(), slow.as_ref().unwrap());
        let weights: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32 / 8.0).collect();
        let theirs = gradients(slow, &Tensor::new(&weights[..], &Device::Cpu).unwrap(), &[&logits]);
        let (again, gradient) = uniform_nelbo_backward(&logits, tokens, &terms, &weights).unwrap();
        prop_assert_eq!(again, ours);
        close(&gradient, &theirs[0]);
    }

    #[test]
    fn divergence_equals_its_twin(rows in 1usize..20, tokens in 2usize..70, mask in 0usize..2, backward in any::<bool>()) {
        let (student, teacher) = (noise((rows, tokens + mask), 1), noise((rows, tokens + mask), 2));
        let kind = if backward { Divergence::Backward } else { Divergence::Forward };
        let weights: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32 / 8.0).collect();
        let (ours, gradient) = divergence_backward(&student, &teacher, tokens, kind, &weights).unwrap();
        let slow = divergence_slow(&student, &teacher, tokens, kind);
        close(&Tensor::new(&ours[..], &Device::Cpu).unwrap(), slow.as_ref().unwrap());
        close(&gradient, &gradients(slow, &Tensor::new(&weights[..], &Device::Cpu).unwrap(), &[&student])[0]);
        let (same, none) = divergence_backward(&student, &student, tokens, kind, &weights).unwrap();
        prop_assert!(same.iter().all(|loss| loss.abs() < 1e-5));
        close(&none, &none.zeros_like().unwrap());
    }

    #[test]
    fn attention_equals_its_twin(
        sequences in 1usize..4, blocks in 1usize..5, block in 1usize..6, heads in 1usize..4, half in 1usize..5, kind in 0..4
    ) {
        let (length, dim) = (blocks * block, 2 * half);
        let pattern = match kind {
            0 => Pattern::bidirectional(heads, dim, length),
            1 => Pattern::block_causal(heads, dim, length, block),
            2 => Pattern::block_diffusion(heads, dim, length, block, false),
            _ => Pattern::block_diffusion(heads, dim, length, block, true),
        };
        let rows = sequences * if kind >= 2 { 2 * length } else { length };
        let qkv = noise((rows, 3 * heads * dim), 1);
        let slow = super::attention::attention_slow(&qkv, &pattern);
        close(&attention(&qkv, &pattern).unwrap(), slow.as_ref().unwrap());
        let upstream = noise((sequences * pattern.queries(), heads * dim), 2);
        let theirs = gradients(slow, &upstream, &[&qkv]);
        close(&attention_backward(&qkv, &pattern, &upstream).unwrap(), &theirs[0]);
    }

    #[test]
    fn embedding_equals_its_twin(count in 1usize..30, vocab in 1usize..20, width in 1usize..10) {
        let table = noise((vocab, width), 1);
        let ids: Vec<u32> = (0..count).map(|i| (i * 11 % vocab) as u32).collect();
        let index = Tensor::new(&ids[..], &Device::Cpu).unwrap();
        let slow = || table.index_select(&index, 0);
        close(&embedding(&table, &ids).unwrap(), &slow().unwrap());
        let upstream = noise((count, width), 2);
        close(&embedding_backward(&table, &ids, &upstream).unwrap(), &gradients(Ok(slow()?), &upstream, &[&table])[0]);
    }

    #[test]
    fn embedding_mix_equals_its_twin(count in 1usize..30, choices in 1usize..5, vocab in 1usize..20, width in 1usize..10) {
        let table = noise((vocab, width), 1);
        let tokens: Vec<u32> = (0..count * choices).map(|i| (i * 11 % vocab) as u32).collect();
        let weights: Vec<f32> = (0..count * choices).map(|i| (i % 3) as f32 / 2.0).collect();
        let slow = || embedding_mix_slow(&table, choices, &tokens, &weights);
        close(&embedding_mix(&table, choices, &tokens, &weights).unwrap(), &slow().unwrap());
        let upstream = noise((count, width), 2);
        let ours = embedding_mix_backward(&table, choices, &tokens, &weights, &upstream).unwrap();
        close(&ours, &gradients(slow(), &upstream, &[&table])[0]);
    }
}

#[test]
fn the_block_diffusion_mask_is_the_papers() {
    // Offset block-diagonal and block-causal parts, rule by rule, as bd3lms' `block_diff_mask` states them.
    let (length, block) = (12, 3);
    let mask = Pattern::block_diffusion(1, 2, length, block, false)
        .mask(&Device::Cpu)
        .unwrap();
    let mask: Vec<Vec<f32>> = mask.to_vec2().unwrap();
    for (q, row) in mask.iter().enumerate() {
        for (k, &value) in row.iter().enumerate() {
            let (clean_q, clean_k) = (q >= length, k >= length);
            let (block_q, block_k) = (q % length / block, k % length / block);
            let diagonal = clean_q == clean_k && block_q == block_k;
            let offset = !clean_q && clean_k && block_q > block_k;
            let causal = clean_q && clean_k && block_q >= block_k;
            assert_eq!(
                value == 0.0,
                diagonal || offset || causal,
                "query {q}, key {k}"
            );
        }
    }
}

#[test]
fn wrong_tokens_are_refused() {
    let table = noise((4, 3), 1);
    assert!(embedding(&table, &[4]).is_err());
    assert!(cross_entropy(&table, &[0, 1, 2, 3], None).is_err());
    assert!(cross_entropy(&table, &[0, 1, 2, 2], Some(2)).is_err());
    assert!(cross_entropy(&table, &[0, 1], None).is_err());
}
