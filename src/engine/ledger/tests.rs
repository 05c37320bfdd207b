//! Fair shares of the places, over time.

use super::*;

fn tenant(ledger: &mut Ledger, variant: &str, priority: Priority, cost: usize) -> Tenant {
    Tenant {
        payer: ledger.payer(variant),
        priority,
        parts: 1,
        cost,
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
    fn new(places: usize) -> Self {
        Engine {
            ledger: Ledger::new(BTreeMap::new()),
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
}

#[test]
fn places_that_become_free_at_once_are_shared() {
    let mut engine = Engine::new(6);
    let [noisy, quiet] = ["noisy", "quiet"].map(|name| interactive(&mut engine.ledger, name));
    for tenant in [noisy, quiet.clone()] {
        engine.waiting.extend(std::iter::repeat_n((tenant, 50), 20));
    }
    let started = engine.step();
    assert_eq!(
        started
            .iter()
            .filter(|tenant| tenant.key() == quiet.key())
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
    assert_eq!(ledger.standing("a").1.evaluated, 2000);
}

#[test]
fn batch_takes_what_is_left_and_its_part_where_nothing_is() {
    for places in [1, 4, 16] {
        let mut engine = Engine::new(places);
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
                    .filter(|(tenant, _)| tenant.key() == wanted.key());
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
    let mut engine = Engine::new(4);
    let batch = tenant(&mut engine.ledger, "b", Priority::Batch, 4);
    engine.waiting.extend(std::iter::repeat_n((batch, 10), 9));
    assert_eq!(engine.step().len(), 4, "alone it has all");
}

#[test]
fn what_texts_usually_take_follows_those_that_were_finished() {
    let now = Instant::now();
    let mut ledger = Ledger::new(BTreeMap::new());
    let [quick, another] = ["quick", "another"].map(|name| ledger.payer(name));
    assert_eq!(ledger.usual(&quick, now), None);
    ledger.took(&quick, (80, 40), now);
    assert_eq!(ledger.usual(&quick, now), Some(1.0), "more than all is all");
    for _ in 0..60 {
        let before = ledger.usual(&quick, now).unwrap();
        ledger.took(&quick, (10, 40), now);
        assert!((0.25..before).contains(&ledger.usual(&quick, now).unwrap()));
    }
    assert!(ledger.usual(&quick, now).unwrap() < 0.26);
    assert_eq!(ledger.usual(&another, now), None);
    assert_eq!(ledger.usual(&quick, now + AGE), None, "too long ago");
}

#[test]
fn what_is_served_no_more_and_has_no_requests_is_forgotten_and_its_slot_is_anothers() {
    let now = Instant::now();
    let mut ledger = Ledger::new(BTreeMap::from([("new".to_owned(), 3.0)]));
    for name in ["kept", "gone", BASE] {
        let one = interactive(&mut ledger, name);
        ledger.made(&one.payer, 3);
        ledger.took(&one.payer, (1, 4), now);
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
    assert_eq!(
        (ledger.usual(&new.payer, now), had(&ledger, "new")),
        (None, 0)
    );
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
    let now = Instant::now();
    let mut ledger = Ledger::new(BTreeMap::from([("a".to_owned(), 2.0)]));
    let a = interactive(&mut ledger, "a");
    let (batch, b) = (
        tenant(&mut ledger, "a", Priority::Batch, 4),
        interactive(&mut ledger, "b"),
    );
    ledger.took(&a.payer, (1, 2), now);
    let evaluations = |usual: Option<f64>| usual.map_or(7, |part| (10.0 * part) as u64);
    let all = [&a, &b, &batch, &a].into_iter();
    let work = ledger.underway(all.map(|tenant| (tenant, evaluations)), now);
    let of = |tenant: &Tenant| {
        let is_of = |work: &&Underway| {
            work.priority == tenant.priority && Arc::ptr_eq(&work.payer, &tenant.payer)
        };
        let work = work.iter().find(is_of).unwrap();
        (work.sequences, work.step, work.left)
    };
    assert_eq!(
        (of(&a), of(&batch), of(&b), work.len()),
        ((2, 8, 40), (1, 4, 20), (1, 4, 28), 3)
    );
    assert_eq!(
        [&a, &b, &batch].map(ledger.count([&a, &b, &a].into_iter())),
        [2, 1, 0]
    );
    let payers: Vec<Arc<Payer>> = work.iter().map(|work| work.payer.clone()).collect();
    assert_eq!(ledger.weights(payers.iter()), 3.0, "each once");
}

#[test]
fn row_is_charged_once_for_each_part_of_its_mix() {
    let mut ledger = Ledger::new(BTreeMap::new());
    let charged = [0, 1, 8].map(|parts| {
        let name = format!("of {parts}");
        let tenant = Tenant {
            parts,
            ..tenant(&mut ledger, &name, Priority::Interactive, 4)
        };
        ledger.charge(&tenant, 100);
        assert_eq!(ledger.standing(&name).1.evaluated, 100);
        counter(&ledger, &tenant)
    });
    assert_eq!(charged, [100.0, 100.0, 800.0]);
}
