//! A small base and random fine-tunes of it, for the tests of this module.

mod bad_files;
mod banks;
mod deltas;
mod relations;

use std::collections::BTreeMap;

use super::*;
use crate::rng::{Key, Stream};

/// Odd sizes, rows longer than a word of signs, a head and a vector.
pub fn shapes() -> BTreeMap<String, Vec<usize>> {
    let shapes: [(&str, &[usize]); 4] = [
        ("vocab_embed.embedding", &[9, 5]),
        ("blocks.0.mlp.0.weight", &[6, 70]),
        (HEAD, &[9, 33]),
        ("norm", &[7]),
    ];
    shapes
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), shape.to_vec()))
        .collect()
}

pub fn tensors(purpose: &str, seed: u64, size: f64) -> NamedTensors {
    let mut stream = Stream::new(Key::derive(&[purpose.as_bytes(), &seed.to_le_bytes()]));
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product())
            .map(|_| (size * stream.normal()) as f32)
            .collect();
        (name, NamedTensor { shape, data })
    };
    NamedTensors(shapes().into_iter().map(tensor).collect())
}

pub fn base() -> NamedTensors {
    tensors("base", 0, 1.0)
}

/// base + a random delta whose size differs from one fine-tune to the next.
pub fn fine_tuned(seed: u64) -> NamedTensors {
    let mut tuned = base();
    let delta = tensors("tuned", seed, 0.01 * (1 + seed % 7) as f64);
    for (tensor, delta) in tuned.0.values_mut().zip(delta.0.values()) {
        tensor
            .data
            .iter_mut()
            .zip(&delta.data)
            .for_each(|(weight, delta)| *weight += delta);
    }
    tuned
}

/// A little away from `tensors`.
pub fn moved(tensors: &NamedTensors) -> NamedTensors {
    let mut moved = tensors.clone();
    for tensor in moved.0.values_mut() {
        tensor.data.iter_mut().for_each(|value| *value *= 1.01);
    }
    moved
}

pub fn delta(seed: u64) -> Delta {
    Delta::between(&base(), &fine_tuned(seed)).unwrap()
}

pub fn matrices() -> impl Iterator<Item = (String, [usize; 2])> {
    shapes()
        .into_iter()
        .filter_map(|(name, shape)| Some((name, shape.try_into().ok()?)))
}

pub fn bank(capacity: usize) -> Bank {
    Bank::new(capacity, Scheme::default(), matrices())
}

/// The checkpoint file of `tensors`, with the published prefix.
pub fn checkpoint(tensors: &NamedTensors) -> Vec<u8> {
    let entries = tensors.0.iter().map(|(name, tensor)| container::Entry {
        name: format!("backbone.{name}"),
        shape: tensor.shape.clone(),
        values: container::Values::F32(&tensor.data),
    });
    container::encode(&BTreeMap::new(), entries.collect())
}
