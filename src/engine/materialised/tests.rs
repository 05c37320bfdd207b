use super::*;
use crate::engine::{Sampling, VariantFacts};
use crate::model::kv_cache::KvCache;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Batch, DitConfig, Logits, NetworkFacts};
use costs::Curve;

const SIZE: usize = 100;

/// Two variants to a bank; never evaluated.
struct Network {
    facts: NetworkFacts,
    homes: Vec<Vec<usize>>,
    fails: bool,
}

impl Denoiser for Network {
    fn facts(&self) -> &NetworkFacts {
        &self.facts
    }

    fn forward(&self, _batch: &Batch, _cache: &mut KvCache) -> candle_core::Result<Logits> {
        candle_core::bail!("not asked for here")
    }

    fn bytes(&self) -> usize {
        SIZE
    }

    fn banks(&self, variant: VariantId) -> &[usize] {
        self.homes
            .get(variant.0 as usize)
            .map_or(&[], Vec::as_slice)
    }

    fn materialise(&self, _mix: &Mix) -> candle_core::Result<Option<Arc<dyn Denoiser>>> {
        if self.fails {
            candle_core::bail!("no room")
        }
        Ok(Some(Arc::new(network(false))))
    }
}

fn facts() -> NetworkFacts {
    let config: DitConfig =
        serde_json::from_slice(include_bytes!("../../../models/base/config.json")).expect("config");
    config.facts()
}

fn network(fails: bool) -> Network {
    Network {
        facts: facts(),
        homes: (0..6).map(|variant| vec![variant / 2]).collect(),
        fails,
    }
}

fn generation(fails: bool) -> Arc<Generation> {
    let network = network(fails);
    let tokenizer = Tokenizer::from_bytes(include_bytes!("../../../models/base/tokenizer.json"))
        .expect("tokenizer");
    let facts = VariantFacts {
        id: VariantId(0),
        regime: network.facts.regime,
        defaults: Sampling::default(),
    };
    Arc::new(Generation {
        number: 1,
        tokenizer: Arc::new(tokenizer),
        defaults: Sampling::default(),
        variants: [("first".to_owned(), facts)].into(),
        memory: Vec::new(),
        denoiser: Arc::new(network),
    })
}

/// An evaluation takes 1, a row 0.1; a bank 0.5 and a row of it 0.05; making an instance 4.
fn materialised(limit: usize) -> (Arc<Materialised>, Maker) {
    let (materialised, maker) = Materialised::new(limit, 64);
    materialised.state().costs = Measured::Costs(Costs {
        plain: Curve(vec![(1, 1.1), (11, 2.1)]),
        single: Curve(vec![(1, 1.1), (11, 2.1)]),
        bank: Curve(vec![(1, 0.55), (11, 1.05)]),
        make: 4.0,
        bytes: SIZE,
    });
    (materialised, maker)
}

/// Makes what was asked for; to make another is taken to take 4 again.
fn make(materialised: &Materialised, maker: &Maker) {
    while let Ok(job) = maker.jobs.try_recv() {
        assert!(maker.make(job));
        if let Measured::Costs(costs) = &mut materialised.state().costs {
            costs.make = 4.0;
        }
    }
}

/// Eight rows of each of these variants: which of them have an instance.
fn step(materialised: &Materialised, generation: &Arc<Generation>, variants: &[u32]) -> Vec<bool> {
    let mixes: Vec<Mix> = variants
        .iter()
        .map(|&variant| Mix::single(VariantId(variant)))
        .collect();
    let work: Vec<_> = mixes.iter().map(|mix| (generation, mix, 8)).collect();
    materialised
        .choose(&work)
        .iter()
        .map(Option::is_some)
        .collect()
}

#[test]
fn a_variant_pays_first_and_is_evaluated_apart_where_that_saves() {
    let (generation, (materialised, maker)) = (generation(false), materialised(SIZE));
    for _ in 0..4 {
        assert_eq!(step(&materialised, &generation, &[0]), [false]);
        assert_eq!(materialised.bytes(), 0);
    }
    assert_eq!(step(&materialised, &generation, &[0]), [false]);
    assert_eq!(materialised.bytes(), SIZE, "room for what is being made");
    assert_eq!(
        step(&materialised, &generation, &[0]),
        [false],
        "nobody waits for it"
    );
    make(&materialised, &maker);
    assert_eq!(step(&materialised, &generation, &[0]), [true]);
    // Its bank-mate keeps the bank busy, so an evaluation of its own would cost more than it saves; five times as many rows are
    // worth it.
    assert_eq!(step(&materialised, &generation, &[0, 1]), [false, false]);
    let most = [true, true, true, true, true, false];
    assert_eq!(step(&materialised, &generation, &[0, 0, 0, 0, 0, 1]), most);
    // The base and what is not its mix are never apart.
    let (base, mixed) = (Mix::base(), Mix(vec![(VariantId(0), 0.5)]));
    assert!(materialised.choose(&[(&generation, &base, 10)])[0].is_none());
    assert!(materialised.choose(&[(&generation, &mixed, 10)])[0].is_none());
}

#[test]
fn room_is_made_by_what_was_used_longest_ago_but_not_by_what_is_in_use() {
    let (generation, (materialised, maker)) = (generation(false), materialised(2 * SIZE));
    for variant in [0, 2] {
        (0..5).for_each(|_| drop(step(&materialised, &generation, &[variant])));
        make(&materialised, &maker);
    }
    assert_eq!(
        step(&materialised, &generation, &[2, 0]),
        [false, false],
        "no gain in two small evaluations"
    );
    // Both were used since the third began to pay, and so they stay; then one is not, and goes.
    for round in 0..5 {
        drop((
            step(&materialised, &generation, &[4]),
            step(&materialised, &generation, &[2]),
        ));
        if round < 4 {
            step(&materialised, &generation, &[0]);
        }
    }
    make(&materialised, &maker);
    assert_eq!(step(&materialised, &generation, &[4]), [false]);
    (0..4).for_each(|_| {
        drop((
            step(&materialised, &generation, &[4]),
            step(&materialised, &generation, &[2]),
        ))
    });
    make(&materialised, &maker);
    assert_eq!(step(&materialised, &generation, &[4]), [true]);
    assert_eq!(step(&materialised, &generation, &[2]), [true]);
    assert_eq!(step(&materialised, &generation, &[0]), [false]);
    assert_eq!(materialised.bytes(), 2 * SIZE);
}

#[test]
fn what_belongs_to_no_generation_any_more_is_freed_also_while_it_is_made() {
    let (materialised, maker) = materialised(SIZE);
    for made in [true, false] {
        let generation = generation(false);
        (0..5).for_each(|_| drop(step(&materialised, &generation, &[0])));
        if made {
            make(&materialised, &maker);
        }
        let single = materialised
            .choose(&[(&generation, &Mix::single(VariantId(0)), 10)])
            .remove(0);
        let weak = single.map(|single| Arc::downgrade(&single));
        assert_eq!(weak.is_some(), made);
        assert_eq!(materialised.bytes(), SIZE);
        drop(generation);
        materialised.sweep();
        assert_eq!(materialised.bytes(), 0);
        assert!(weak.is_none_or(|weak| weak.upgrade().is_none()));
    }
    make(&materialised, &maker);
    assert_eq!(materialised.bytes(), 0, "what comes too late is dropped");
}

#[test]
fn what_fails_is_not_tried_again() {
    let (materialised, maker) = materialised(SIZE);
    let broken = generation(true);
    for _ in 0..20 {
        assert_eq!(step(&materialised, &broken, &[0]), [false]);
        make(&materialised, &maker);
    }
    assert_eq!(materialised.bytes(), 0);
    let whole = generation(false);
    (0..5).for_each(|_| drop(step(&materialised, &whole, &[0])));
    make(&materialised, &maker);
    let single = materialised
        .choose(&[(&whole, &Mix::single(VariantId(0)), 10)])
        .remove(0);
    single.expect("made").give_up();
    for _ in 0..20 {
        assert_eq!(step(&materialised, &whole, &[0]), [false]);
        make(&materialised, &maker);
    }
}

#[test]
fn only_so_many_mixes_are_remembered_and_none_without_room() {
    let generation = generation(false);
    let (materialised, _maker) = materialised(SIZE);
    for weight in 0..REMEMBERED + 50 {
        let mix = Mix(vec![(VariantId(0), weight as f32)]);
        materialised.choose(&[(&generation, &mix, 1)]);
    }
    assert_eq!(materialised.state().mixes.len(), REMEMBERED);
    let (never, _maker) = Materialised::new(0, 64);
    step(&never, &generation, &[0]);
    assert!(never.state().mixes.is_empty());
}
