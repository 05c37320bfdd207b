//! Fair shares of the places, over time.

use super::*;
use proptest::prelude::*;

fn tenant(variant: &str, priority: Priority, cost: usize) -> Tenant {
    Tenant {
        variant: variant.into(),
        priority,
        cost,
        banks: [].into(),
    }
}

fn counter(ledger: &Ledger, tenant: &Tenant) -> f64 {
    ledger.variants.get(&tenant.key())
}

fn interactive(variant: &str) -> Tenant {
    tenant(variant, Priority::Interactive, 4)
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
        let weights = weights.iter().map(|&(name, weight)| (name.to_owned(), weight));
        Engine {
            ledger: Ledger::new(weights.collect()),
            places,
            running: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Returns who started.
    fn step(&mut self) -> Vec<Tenant> {
        let active = self.running.iter().chain(&self.waiting).map(|(tenant, _)| tenant);
        self.ledger.settle(active);
        let mut order = Order::new(&self.ledger, self.running.iter().map(|(tenant, _)| tenant));
        let mut started = Vec::new();
        while self.running.len() < self.places
            && let Some(index) = order.next(self.waiting.iter().map(|(tenant, _)| tenant).enumerate())
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
        self.ledger.service(variant).evaluated as f64
    }
}

#[test]
fn places_that_become_free_at_once_are_shared() {
    let mut engine = Engine::new(6, &[]);
    engine.waiting.extend((0..20).map(|_| (interactive("noisy"), 50)));
    engine.waiting.extend((0..20).map(|_| (interactive("quiet"), 50)));
    let started = engine.step();
    assert_eq!(started.iter().filter(|tenant| &*tenant.variant == "quiet").count(), 3);
}

#[test]
fn whoever_was_idle_has_no_credit_and_keeps_its_debt() {
    let mut ledger = Ledger::new(BTreeMap::new());
    let (a, b) = (interactive("a"), interactive("b"));
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
    assert_eq!(ledger.variants.of.len(), 1, "what the floor says is forgotten");
    assert_eq!(ledger.service("a").evaluated, 2000);
}

#[test]
fn batch_takes_what_is_left_and_its_part_where_nothing_is() {
    for places in [1, 4, 16] {
        let mut engine = Engine::new(places, &[]);
        let (mut had, mut batch_had) = (0, 0);
        for step in 0..4000 {
            for wanted in [interactive("a"), tenant("b", Priority::Batch, 4)] {
                let waits = engine.waiting.iter().filter(|(tenant, _)| *tenant == wanted).count();
                engine.waiting.extend(std::iter::repeat_n((wanted, 10), 20 - waits));
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
    engine
        .waiting
        .extend((0..9).map(|_| (tenant("b", Priority::Batch, 4), 10)));
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
        for _ in 0..3000 {
            for (index, name) in names.iter().enumerate() {
                let (steps, cost) = shapes[index];
                let wanted = if index == 0 { 10 * places } else { places };
                let waits = engine.waiting.iter().filter(|(tenant, _)| *tenant.variant == **name).count();
                let more = std::iter::repeat_n((tenant(name, Priority::Interactive, cost), steps), wanted - waits);
                engine.waiting.extend(more);
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
    let quick: Arc<str> = "quick".into();
    assert_eq!(ledger.usual(&quick), None);
    ledger.took(&quick, (80, 40));
    assert_eq!(ledger.usual(&quick), Some(1.0), "more than all is all");
    for _ in 0..60 {
        let before = ledger.usual(&quick).unwrap();
        ledger.took(&quick, (10, 40));
        assert!((0.25..before).contains(&ledger.usual(&quick).unwrap()));
    }
    assert!(ledger.usual(&quick).unwrap() < 0.26);
    assert_eq!(ledger.usual("another"), None);
}

#[test]
fn what_is_served_no_more_is_forgotten() {
    let mut ledger = Ledger::new(BTreeMap::new());
    for name in ["kept", "gone", BASE] {
        ledger.made(&name.into(), 3);
        ledger.took(&name.into(), (1, 4));
    }
    ledger.keep(|name| name == "kept");
    let known = ["kept", "gone", BASE].map(|name| (ledger.service(name).generated, ledger.usual(name)));
    assert_eq!(known, [(3, Some(0.25)), (0, None), (3, Some(0.25))]);
}
