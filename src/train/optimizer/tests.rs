//! What one update does.

use super::*;
use crate::model::DitConfig;

fn config() -> DitConfig {
    DitConfig {
        model_type: "bd3lm".into(),
        vocab_size: 20,
        model_length: 8,
        hidden_dim: 8,
        cond_dim: 4,
        n_blocks: 1,
        n_heads: 2,
        block_size: Some(4),
        cross_attn: true,
        time_conditioning: Some(false),
        states: None,
    }
}

fn weights(model: &Trainable) -> Tensors {
    let one = |(name, var): (&String, &candle_core::Var)| {
        (name.clone(), (var.dims().to_vec(), values(var).unwrap()))
    };
    model.vars().iter().map(one).collect()
}

/// A model whose matrices' first rows differ from the base's.
fn variant() -> (Trainable, Tensors, Optimizer) {
    let model = Trainable::random(config(), 1).unwrap();
    let base = weights(&model);
    let mut optimizer = Optimizer::new(
        &model,
        AdamW {
            weight_decay: 0.5,
            ..AdamW::default()
        },
    )
    .unwrap();
    for slot in optimizer
        .slots
        .values_mut()
        .filter(|slot| slot.shape.len() == 2)
    {
        slot.weight[..slot.shape[1]]
            .iter_mut()
            .for_each(|weight| *weight += 0.25);
    }
    optimizer.anchor(&base);
    (model, base, optimizer)
}

#[test]
fn weight_decay_pulls_a_variant_to_its_base() {
    let (model, base, mut optimizer) = variant();
    let zeros: BTreeMap<String, Tensor> = model
        .vars()
        .iter()
        .map(|(name, var)| (name.clone(), var.zeros_like().unwrap()))
        .collect();
    let name = "blocks.0.mlp.0.weight";
    optimizer.update(&model, &[zeros], 0.1).unwrap();
    let (after, before) = (&weights(&model)[name].1, &base[name].1);
    for (index, (after, before)) in after.iter().zip(before).enumerate() {
        let expected = if index < 8 { 0.25 * 0.95 } else { 0.0 };
        assert!(
            (after - before - expected).abs() < 1e-6,
            "{index}: {}",
            after - before
        );
    }
}

#[test]
fn a_gradient_reaches_the_delta_through_its_gains() {
    let (model, base, optimizer) = variant();
    let name = "blocks.0.mlp.0.weight";
    let (anchor, key) = (&base[name].1, Key([7; 32]));
    let slope: Vec<f32> = (0..anchor.len())
        .map(|at| ((at * 37) % 11) as f32 / 5.0 - 1.0)
        .collect();
    // The loss is the inner product of `slope` and what the network sees.
    let loss = |optimizer: &Optimizer| -> f64 {
        optimizer
            .put_interference(&model, Members { body: 4, head: 2 }, key)
            .unwrap();
        let seen = weights(&model)[name].1.clone();
        seen.iter().zip(&slope).map(|(a, b)| f64::from(a * b)).sum()
    };
    loss(&optimizer);
    let (slot, mut gradient) = (&optimizer.slots[name], slope.clone());
    through_gains(&mut gradient, slot, anchor, &weights(&model)[name].1);
    assert_eq!(
        gradient[8..],
        slope[8..],
        "rows without a delta have no gain"
    );
    for (at, &analytic) in gradient[..8].iter().enumerate() {
        let moved = |by: f32| {
            let mut moved = optimizer.clone();
            moved.slots.get_mut(name).unwrap().weight[at] += by;
            loss(&moved)
        };
        let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!(
            (numeric - f64::from(analytic)).abs() < 1e-3,
            "{at}: {numeric} against {analytic}"
        );
    }
}

#[test]
fn what_is_not_trained_stays() {
    let (model, base, mut optimizer) = variant();
    let (name, other) = ("blocks.0.mlp.0.weight", "blocks.0.norm1.weight");
    let (shape, fixed) = base[name].clone();
    let scaled = vec![1.0; fixed.len()];
    optimizer.only(
        BTreeMap::from([(name.to_owned(), ScaledRows { fixed, scaled })]),
        &BTreeSet::from([other.to_owned()]),
    );
    assert!(optimizer.slots.keys().eq([name, other]));
    let ones = |name: &str| (name.to_owned(), model.vars()[name].ones_like().unwrap());
    let gradients = BTreeMap::from([name, other, HEAD].map(ones));
    optimizer.put_weights(&model).unwrap();
    let head = weights(&model)[HEAD].clone();
    optimizer.update(&model, &[gradients], 1e-3).unwrap();
    let factors = &optimizer.slots[name].weight;
    assert_eq!(factors.len(), shape[0]);
    assert!(factors.iter().all(|factor| *factor < 1.0));
    let after = weights(&model);
    assert!(after[other].1[0] < base[other].1[0]);
    assert_eq!(after[HEAD], head);
}

#[test]
fn interference_is_as_large_as_that_of_the_other_variants() {
    let (model, base, optimizer) = variant();
    let noise = |body: usize, name: &str| -> Vec<f32> {
        let members = Members { body, head: 2 };
        optimizer
            .put_interference(&model, members, Key([7; 32]))
            .unwrap();
        let noisy = weights(&model)[name].1.clone();
        noisy
            .iter()
            .zip(&optimizer.slots[name].weight)
            .map(|(a, b)| a - b)
            .collect()
    };
    let rms = |row: &[f32]| (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32).sqrt();
    let row = noise(4, "blocks.0.mlp.0.weight");
    assert!((rms(&row[..8]) - 0.25 * 3f32.sqrt()).abs() < 1e-5);
    assert!(row[..8].iter().any(|x| *x > 0.0) && row[..8].iter().any(|x| *x < 0.0));
    assert!(
        row[8..].iter().all(|x| *x == 0.0),
        "a row without a delta has no noise"
    );
    assert!(
        (rms(&noise(4, HEAD)[..8]) - 0.25).abs() < 1e-5,
        "the head's banks have members of their own"
    );
    assert!(noise(1, "blocks.0.mlp.0.weight").iter().all(|x| *x == 0.0));
    optimizer.put_weights(&model).unwrap();
    assert_eq!(
        weights(&model)["blocks.0.norm1.weight"],
        base["blocks.0.norm1.weight"]
    );
}
