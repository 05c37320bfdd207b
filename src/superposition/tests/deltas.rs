use proptest::prelude::*;

use super::*;

#[test]
fn a_checkpoint_is_read_without_prefix_and_buffers() {
    let mut with_buffers = base();
    for name in ["rotary_emb.inv_freq", "sampling_eps_min"] {
        with_buffers.0.insert(
            name.to_owned(),
            NamedTensor {
                shape: vec![1],
                data: vec![1.0],
            },
        );
    }
    assert_eq!(
        NamedTensors::from_safetensors(&checkpoint(&with_buffers)).unwrap(),
        base()
    );
}

#[test]
fn half_precision_checkpoints_are_read() {
    let (full, name) = (base(), "norm");
    let data = &full.0[name].data;
    let bf16s: Vec<_> = data.iter().map(|v| half::bf16::from_f32(*v)).collect();
    let f16s: Vec<u8> = data
        .iter()
        .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
        .collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![7], &f16s).unwrap();
    let f16_file = safetensors::serialize([(name, view)], None).unwrap();
    let values = container::Values::Bf16(&bf16s);
    let entry = container::Entry {
        name: name.to_owned(),
        shape: vec![7],
        values,
    };
    let bf16_file = container::encode(&BTreeMap::new(), vec![entry]);
    for (file, tolerance) in [(f16_file, 1e-3), (bf16_file, 1e-2)] {
        let read = NamedTensors::from_safetensors(&file).unwrap();
        for (a, b) in read.0[name].data.iter().zip(data) {
            assert!((a - b).abs() <= tolerance * b.abs(), "{a} {b}");
        }
    }
}

#[test]
fn digests_tell_content_names_and_shapes_apart() {
    let original = base();
    let mut value = original.clone();
    value.0.get_mut("norm").unwrap().data[3] += 1.0;
    let mut shape = original.clone();
    shape.0.get_mut(HEAD).unwrap().shape = vec![33, 9];
    let mut name = original.clone();
    let norm = name.0.remove("norm").unwrap();
    name.0.insert("mron".to_owned(), norm);
    for other in [value, shape, name] {
        assert_ne!(original.digest(), other.digest());
    }
    assert_eq!(
        Digest::parse(&original.digest().to_string()),
        Some(original.digest())
    );
    assert_eq!(Digest::parse("12"), None);
}

#[test]
fn an_archived_delta_is_within_half_a_level_and_keeps_vectors() {
    let (base, tuned) = (base(), fine_tuned(3));
    let delta = delta(3);
    for (name, tensor) in &base.0 {
        let dense = delta.dense(name).unwrap();
        for (index, value) in dense.iter().enumerate() {
            let truth = tuned.0[name].data[index] - tensor.data[index];
            let half_level = match delta.matrices.get(name) {
                Some(matrix) => matrix.scales[index / matrix.cols] * 0.5001,
                None => 0.0,
            };
            assert!(
                (value - truth).abs() <= half_level,
                "{name} {index}: {value} {truth}"
            );
        }
    }
    assert_eq!(delta.dense("nothing"), None);
}

#[test]
fn rows_of_zeros_have_no_gain() {
    let mut tuned = fine_tuned(1);
    let unchanged = base().0["vocab_embed.embedding"].data[..10].to_vec();
    tuned.0.get_mut("vocab_embed.embedding").unwrap().data[..10].copy_from_slice(&unchanged);
    // A difference whose scale is below the smallest f32 is nothing too.
    let mut tiny = base();
    tiny.0.get_mut("vocab_embed.embedding").unwrap().data[10] = 0.0;
    tuned.0.get_mut("vocab_embed.embedding").unwrap().data[10..15]
        .copy_from_slice(&tiny.0["vocab_embed.embedding"].data[10..15]);
    tuned.0.get_mut("vocab_embed.embedding").unwrap().data[10] = f32::from_bits(1);
    let delta = Delta::between(&tiny, &tuned).unwrap();
    let gains = &Private::of(&delta).gains["vocab_embed.embedding"];
    assert_eq!(gains[..3], [0.0; 3]);
    assert!(gains[3..].iter().all(|gain| *gain > 0.0));
    let mut bank = bank(4);
    bank.accumulate(&delta, 1).unwrap();
    assert!(
        bank.dense("vocab_embed.embedding").unwrap()[..15]
            .iter()
            .all(|value| *value == 0.0)
    );
}

#[test]
fn a_packed_delta_is_nearly_the_whole_one() {
    let (base, tuned, whole) = (base(), fine_tuned(2), delta(2));
    for (group, least) in [(32, 0.99), (64, 0.985), (7, 0.99), (1, 0.9999)] {
        let file = pack(&base, &tuned, group).unwrap();
        let packed = Delta::read(&base, &file).unwrap();
        for name in whole.matrices.keys() {
            let moments = similarity(&packed.dense(name).unwrap(), &whole.dense(name).unwrap());
            assert!(
                moments.cosine() > least,
                "group {group}, {name}: {moments:?}"
            );
        }
    }
}

#[test]
fn packing_keeps_very_small_deltas() {
    let mut tuned = base();
    for (tensor, delta) in tuned
        .0
        .values_mut()
        .zip(tensors("tiny", 0, 1e-7).0.into_values())
    {
        (tensor.data, tensor.shape) = (delta.data, delta.shape);
    }
    let zero = NamedTensors(
        tuned
            .0
            .iter()
            .map(|(name, t)| {
                (
                    name.clone(),
                    NamedTensor {
                        data: vec![0.0; t.data.len()],
                        shape: t.shape.clone(),
                    },
                )
            })
            .collect(),
    );
    let packed = Delta::read(&zero, &pack(&zero, &tuned, 32).unwrap()).unwrap();
    let moments = similarity(&packed.dense(HEAD).unwrap(), &tuned.0[HEAD].data);
    assert!(moments.cosine() > 0.99, "{moments:?}");
}

#[test]
fn one_bit_deltas_keep_signs_and_mean_magnitude() {
    let (base, tuned) = (base(), fine_tuned(5));
    let bits = BitDelta::between(&base, &tuned).unwrap();
    assert!(bits.dense("norm").is_none());
    let dense = bits.dense(HEAD).unwrap();
    let truth: Vec<f32> = tuned.0[HEAD]
        .data
        .iter()
        .zip(&base.0[HEAD].data)
        .map(|(t, b)| t - b)
        .collect();
    let mean = truth.iter().map(|d| d.abs()).sum::<f32>() / truth.len() as f32;
    for (bit, delta) in dense.iter().zip(&truth) {
        assert!((bit.abs() - mean).abs() < 1e-6 * mean);
        assert_eq!(bit.is_sign_negative(), *delta < 0.0);
    }
}

proptest! {
    #[test]
    fn files_give_back_what_was_written(seed in 0u64..1000, capacity in 1usize..9) {
        let delta = delta(seed);
        prop_assert_eq!(&Delta::from_archive(&delta.to_archive()).unwrap(), &delta);
        prop_assert_eq!(&Delta::read(&base(), &delta.to_archive()).unwrap(), &delta);
        prop_assert_eq!(&Delta::read(&base(), &checkpoint(&fine_tuned(seed))).unwrap(), &delta);
        let private = Private::of(&delta);
        prop_assert_eq!(Private::from_bytes(&private.to_bytes()).unwrap(), private);
        let mut bank = bank(capacity);
        bank.accumulate(&delta, seed).unwrap();
        prop_assert_eq!(Bank::from_bytes(&bank.to_bytes()).unwrap(), bank);
    }
}
