//! Fair shares of the places, over time.

use super::*;
use proptest::prelude::*;

fn tenant(ledger: &mut Ledger, variant: &str, priority: Priority, cost: usize) -> Tenant {
    Tenant {
        payer: ledger.payer(variant),
        priority,
        cost,
        banks: [].into(),
    }
}

fn counter(ledger: &Ledger, tenant: &Tenant) -> f64 {
    ledger.variants.get(tenant.key())
}

fn interactive(ledger: &mut Ledger, variant: &str) -> Tenant {
    tenant(ledger, variant, Priority::Interactive, 4)
}

/// One step of `places` sequences: those that are free go to whoever is next, all that run are served, those done leave.
struct Engine {
    ledger: Ledger,
    places: usize,
    running: Vec<(Tenant, usize)>,
    waiting: Vec<(Tenant, usize)>,
}

impl Engine {
    fn new(places: usize, weights: &[(&str, f64)]) -> Self {
        let weights = weights
            .iter()
            .map(|&(name, weight)| (name.to_owned(), weight));
        Engine {
            ledger: Ledger::new(weights.collect()),
            places,
            running: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Returns who started.
    fn step(&mut self) -> Vec<Tenant> {
        let active = self
            .running
            .iter()
            .chain(&self.waiting)
            .map(|(tenant, _)| tenant);
        self.ledger.settle(active);
        let mut order = Order::new(&self.ledger, self.running.iter().map(|(tenant, _)| tenant));
        let mut started = Vec::new();
        while self.running.len() < self.places
            && let Some(index) =
                order.next(self.waiting.iter().map(|(tenant, _)| tenant).enumerate())
        {
            let next = self.waiting.remove(index);
            order.start(&next.0);
            started.push(next.0.clone());
            self.running.push(next);
        }
        for (tenant, steps) in &mut self.running {
            self.ledger.charge(tenant, tenant.cost);
            *steps -= 1;
        }
        self.running.retain(|(_, steps)| *steps > 0);
        started
    }

    fn evaluated(&self, variant: &str) -> f64 {
        self.ledger.standing(variant).1.evaluated as f64
    }
}

#[test]
fn places_that_become_free_at_once_are_shared() {
    let mut engine = Engine::new(6, &[]);
    let [noisy, quiet] = ["noisy", "quiet"].map(|name| interactive(&mut engine.ledger, name));
    for tenant in [noisy, quiet.clone()] {
        engine.waiting.extend(std::iter::repeat_n((tenant, 50), 20));
    }
    let started = engine.step();
    assert_eq!(
        started
            .iter()
            .filter(|tenant| tenant.shares_with(&quiet))
            .count(),
        3
    );
}

#[test]
fn whoever_was_idle_has_no_credit_and_keeps_its_debt() {
    let mut ledger = Ledger::new(BTreeMap::new());
    let [a, b] = ["a", "b"].map(|name| interactive(&mut ledger, name));
    ledger.settle([&a].into_iter());
    ledger.charge(&a, 1000);
    ledger.settle([&a, &b].into_iter());
    assert_eq!(counter(&ledger, &b), 1000.0);
    ledger.charge(&b, 500);
    ledger.settle([&a].into_iter());
    ledger.charge(&a, 100);
    ledger.settle([&a, &b].into_iter());
    assert_eq!(
        (counter(&ledger, &a), counter(&ledger, &b)),
        (1100.0, 1500.0),
        "its debt"
    );
    ledger.settle(std::iter::empty());
    ledger.charge(&a, 900);
    ledger.settle([&a].into_iter());
    assert_eq!(counter(&ledger, &b), 2000.0);
    assert_eq!(
        ledger.variants.known.len(),
        1,
        "what the floor says is forgotten"
    );
    assert_eq!(ledger.standing("a").1.evaluated, 2000);
}

#[test]
fn batch_takes_what_is_left_and_its_part_where_nothing_is() {
    for places in [1, 4, 16] {
        let mut engine = Engine::new(places, &[]);
        let (mut had, mut batch_had) = (0, 0);
        let both = [
            interactive(&mut engine.ledger, "a"),
            tenant(&mut engine.ledger, "b", Priority::Batch, 4),
        ];
        for step in 0..4000 {
            for wanted in &both {
                let waits = engine
                    .waiting
                    .iter()
                    .filter(|(tenant, _)| tenant.shares_with(wanted));
                let missing = 20 - waits.count();
                engine
                    .waiting
                    .extend(std::iter::repeat_n((wanted.clone(), 10), missing));
            }
            let started = engine.step();
            assert!(step > 0 || started[0].priority == Priority::Interactive);
            had += started.len();
            batch_had += started
                .iter()
                .filter(|tenant| tenant.priority == Priority::Batch)
                .count();
        }
        let part = batch_had as f64 / had as f64;
        assert!(
            (part * BATCH_PART as f64 - 1.0).abs() < 0.1,
            "{part} of {places} places"
        );
    }
    let mut engine = Engine::new(4, &[]);
    let batch = tenant(&mut engine.ledger, "b", Priority::Batch, 4);
    engine.waiting.extend(std::iter::repeat_n((batch, 10), 9));
    assert_eq!(engine.step().len(), 4, "alone it has all");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// One variant asks ten times as much as the others, with requests of other lengths and costs; all are backlogged.
    #[test]
    fn service_is_by_weight_whoever_asks_more(
        weights in proptest::collection::vec(prop_oneof![Just(1.0), 0.5..3.0], 2..6),
        shapes in proptest::collection::vec((1..40usize, 1..9usize), 6),
        places in 6..40usize,
    ) {
        let names: Vec<String> = (0..weights.len()).map(|index| format!("v{index}")).collect();
        let pairs: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        let mut engine = Engine::new(places, &pairs);
        let ledger = &mut engine.ledger;
        let shape = |(name, (steps, cost)): (&String, &(usize, usize))| (tenant(ledger, name, Priority::Interactive, *cost), *steps);
        let requests: Vec<(Tenant, usize)> = names.iter().zip(&shapes).map(shape).collect();
        for _ in 0..3000 {
            for (index, request) in requests.iter().enumerate() {
                let wanted = if index == 0 { 10 * places } else { places };
                let waits = engine.waiting.iter().filter(|(tenant, _)| tenant.shares_with(&request.0)).count();
                engine.waiting.extend(std::iter::repeat_n(request.clone(), wanted - waits));
            }
            engine.step();
        }
        let shares = || pairs.iter().map(|(name, weight)| engine.evaluated(name) / weight);
        let (most, least) = (shares().fold(0.0, f64::max), shares().fold(f64::INFINITY, f64::min));
        prop_assert!(most / least < 1.2, "{:?}", shares().collect::<Vec<_>>());
    }
}

#[test]
fn what_texts_usually_take_follows_those_that_were_finished() {
    let mut ledger = Ledger::new(BTreeMap::new());
    let [quick, another] = ["quick", "another"].map(|name| ledger.payer(name));
    assert_eq!(ledger.usual(&quick), None);
    ledger.took(&quick, (80, 40));
    assert_eq!(ledger.usual(&quick), Some(1.0), "more than all is all");
    for _ in 0..60 {
        let before = ledger.usual(&quick).unwrap();
        ledger.took(&quick, (10, 40));
        assert!((0.25..before).contains(&ledger.usual(&quick).unwrap()));
    }
    assert!(ledger.usual(&quick).unwrap() < 0.26);
    assert_eq!(ledger.usual(&another), None);
}

#[test]
fn what_is_served_no_more_and_has_no_requests_is_forgotten_and_its_slot_is_anothers() {
    let mut ledger = Ledger::new(BTreeMap::from([("new".to_owned(), 3.0)]));
    for name in ["kept", "gone", BASE] {
        let one = interactive(&mut ledger, name);
        ledger.made(&one.payer, 3);
        ledger.took(&one.payer, (1, 4));
        ledger.charge(&one, 1000);
    }
    let leased = interactive(&mut ledger, "leased");
    ledger.charge(&leased, 1000);
    ledger.settle(std::iter::once(&leased));
    ledger.keep(|name| name == "kept");
    let had = |ledger: &Ledger, name: &str| ledger.standing(name).1.evaluated;
    let known = ["kept", "gone", BASE, "leased"].map(|name| had(&ledger, name));
    assert_eq!(known, [1000, 0, 1000, 0]);
    let new = interactive(&mut ledger, "new");
    assert_eq!(ledger.slots.len(), 4);
    assert_eq!((ledger.usual(&new.payer), had(&ledger, "new")), (None, 0));
    assert_eq!(
        (ledger.weight(&new.payer), counter(&ledger, &new)),
        (3.0, 1000.0),
        "no debt"
    );
    assert_eq!(ledger.standing("nobody").0, 1.0);
    ledger.charge(&leased, 5);
    assert_eq!(
        (had(&ledger, "leased"), had(&ledger, "new")),
        (5, 0),
        "its slot is its own"
    );
    drop(leased);
    ledger.keep(|name| name == "kept");
    interactive(&mut ledger, "another");
    assert_eq!(ledger.slots.len(), 4);
}

#[test]
fn work_is_summed_by_variant_and_priority() {
    let mut ledger = Ledger::new(BTreeMap::from([("a".to_owned(), 2.0)]));
    let a = interactive(&mut ledger, "a");
    let (batch, b) = (
        tenant(&mut ledger, "a", Priority::Batch, 4),
        interactive(&mut ledger, "b"),
    );
    ledger.took(&a.payer, (1, 2));
    let evaluations = |usual: Option<f64>| usual.map_or(7, |part| (10.0 * part) as u64);
    let work = ledger.work(
        [&a, &b, &batch, &a]
            .into_iter()
            .map(|tenant| (tenant, evaluations)),
    );
    let of = |tenant: &Tenant| {
        let is_of = |work: &&Work| {
            work.priority == tenant.priority && Arc::ptr_eq(&work.payer, &tenant.payer)
        };
        let work = work.iter().find(is_of).unwrap();
        (work.sequences, work.evaluations)
    };
    assert_eq!(
        (of(&a), of(&batch), of(&b), work.len()),
        ((2, 10), (1, 5), (1, 7), 3)
    );
    assert_eq!(
        [&a, &b, &batch].map(ledger.count([&a, &b, &a].into_iter())),
        [2, 1, 0]
    );
    let payers: Vec<Arc<Payer>> = work.iter().map(|work| work.payer.clone()).collect();
    assert_eq!(ledger.weights(payers.iter()), 3.0, "each once");
}
