//! The door and the batcher with a network that is none and a clock that is a number: long scripts of everything that can happen, and
//! after every event what must hold.
//!
//! A script that fails is made shorter and printed; `CHOIR_SCRIPT=FILE cargo test --test engine simulator` repeats what is in a file.

mod estimates;
mod job;
mod script;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use choir::engine::batcher::{Batcher, StepPart};
use choir::engine::door::Door;
use choir::engine::ledger::Tenant;
use choir::engine::pages;
use choir::engine::sequence::{Reader, Sequence};
use choir::engine::{EngineConfig, Error, Generation, Priority};
use choir::model::{Mix, PageId, VariantId};

use super::fake;
use job::{Client, Sim};
use script::{Happens, everything, greed};

const WINDOW: usize = 24;
const CHUNK: usize = 16;
const PAGES: usize = 40;
const VARIANTS: u32 = 5;
const CLIENTS: u32 = 4;
/// Evaluations of a request at most, about.
const EVALUATIONS: u64 = 80;

/// Tokens to a block, and to a page.
type Sizes = (usize, usize);

fn limits((_, page_tokens): Sizes) -> EngineConfig {
    EngineConfig {
        max_running: 6,
        queue: 12,
        max_per_variant: Some(10),
        max_per_client: Some(9),
        weights: BTreeMap::from([("1".to_owned(), 3.0), ("2".to_owned(), 0.5)]),
        stall: Duration::from_millis(400),
        page_tokens,
        step_tokens: 32,
        ..EngineConfig::default()
    }
}

struct World {
    door: Door<Sim>,
    batcher: Batcher<Sim>,
    limits: EngineConfig,
    block: usize,
    now: Instant,
    generation: Arc<Generation>,
    old: Vec<Weak<Generation>>,
    /// By id, those that have not ended.
    alive: BTreeMap<u64, Rc<Client>>,
    /// Steps that each has waited, ready to start, and the last in which it was served.
    waited: HashMap<u64, u64>,
    fails: bool,
    ended: u64,
}

thread_local! {
    static NETWORK: RefCell<Generation> = RefCell::new(fake::generation(0, fake::Fake::new(1)));
}

fn generation(number: u64, without: Option<&str>) -> Generation {
    NETWORK.with_borrow(|network| Generation {
        number,
        denoiser: network.denoiser.clone(),
        tokenizer: network.tokenizer.clone(),
        defaults: network.defaults.clone(),
        variants: (0..VARIANTS)
            .map(|variant| (variant.to_string(), network.variants["a"].clone()))
            .filter(|(name, _)| without.is_none_or(|without| name != without))
            .collect(),
        memory: Vec::new(),
    })
}

impl World {
    fn new(sizes: Sizes) -> Self {
        let limits = limits(sizes);
        World {
            door: Door::new(limits.clone()),
            batcher: Batcher::new(&limits, PAGES),
            limits,
            block: sizes.0,
            now: Instant::now(),
            generation: Arc::new(generation(1, None)),
            old: Vec::new(),
            alive: BTreeMap::new(),
            waited: HashMap::new(),
            fails: false,
            ended: 0,
        }
    }

    fn happens(&mut self, event: &Happens) {
        match event {
            Happens::Arrives { .. } => self.arrives(event),
            Happens::Leaves(one) => self.reads(*one, Reader::Gone),
            Happens::StopsReading(one) => self.reads(*one, Reader::Behind),
            Happens::ReadsAgain(one) => self.reads(*one, Reader::Ready),
            Happens::Publishes => self.publish(None),
            Happens::Removes(variant) => self.publish(Some(&variant.to_string())),
            Happens::Fails => self.fails = true,
            Happens::Passes(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            Happens::Steps => self.step(),
        }
        self.check();
    }

    fn arrives(&mut self, event: &Happens) {
        let Happens::Arrives {
            variant,
            parts,
            batch,
            client,
            prompt,
            blocks,
            steps,
            within,
        } = event
        else {
            return;
        };
        let name = variant.to_string();
        if !self.generation.variants.contains_key(&name) {
            return;
        }
        let mix = (0..*parts as u32).map(|part| (VariantId(variant + VARIANTS * part), 1.0));
        let client = Rc::new(Client {
            reader: Cell::new(Reader::Ready),
            variant: name.clone(),
            name: client.to_string().into(),
            started: Cell::new(false),
        });
        let (kind, length) = *prompt;
        let written = (length + blocks * self.block) / self.block * self.block;
        let tenant = Tenant {
            payer: self.door.ledger.payer(&name),
            priority: if *batch {
                Priority::Batch
            } else {
                Priority::Interactive
            },
            parts: *parts,
            cost: self.block * parts,
        };
        let job = Sim {
            client: client.clone(),
            generation: self.generation.clone(),
            mix: Mix(mix.collect()),
            text: (0..length as u32).map(|at| kind + 7 * at).collect(),
            written: 0,
            block: self.block,
            blocks: *blocks,
            steps: *steps,
            step: 0,
            evaluations: 0,
        };
        let needed = pages::needed(written, WINDOW + CHUNK, self.limits.page_tokens);
        let sequence = Sequence {
            client: Some(client.name.clone()),
            deadline: within.map(|within| self.now + Duration::from_millis(within)),
            ..Sequence::new(tenant, needed, self.now, job)
        };
        let (entered, gone) = self.door.enter(Box::new(sequence), self.now);
        for one in gone {
            assert_eq!(one.job.client.reader.get(), Reader::Gone);
            self.end(one);
        }
        let Ok(entered) = entered else {
            return;
        };
        assert!(
            self.alive.insert(entered.id, client).is_none(),
            "an id twice"
        );
        if let Some((one, error)) = entered.displaced {
            assert!(matches!(error, Error::QueueFull { .. }) && !one.job.client.started.get());
            self.end(one);
        }
    }

    /// A sequence is over, which it is once.
    fn end(&mut self, sequence: Box<Sequence<Sim>>) {
        assert!(sequence.table.held().is_empty(), "pages of one that ended");
        assert!(self.alive.remove(&sequence.id).is_some(), "ended twice");
        self.waited.remove(&sequence.id);
        self.ended += 1;
    }

    fn reads(&mut self, one: usize, how: Reader) {
        if let Some(client) = self.alive.values().nth(one % self.alive.len().max(1))
            && client.reader.get() != Reader::Gone
        {
            client.reader.set(how);
        }
    }

    fn publish(&mut self, without: Option<&str>) {
        let next = Arc::new(generation(self.generation.number + 1, without));
        let before = std::mem::replace(&mut self.generation, next);
        self.old.push(Arc::downgrade(&before));
        self.old.retain(|old| old.strong_count() > 0);
        let served = &self.generation.variants;
        self.door.ledger.keep(|name| served.contains_key(name));
    }

    fn step(&mut self) {
        let (batcher, door) = (&mut self.batcher, &mut self.door);
        let over = batcher.retire(door, self.now);
        batcher.admit(door, self.now);
        let parts = batcher.choose(door);
        let chosen = parts.iter().map(|part| &*part.sequence);
        door.report(batcher.running().chain(chosen), self.now);
        over.into_iter()
            .for_each(|(sequence, _)| self.end(sequence));
        self.check_step(&parts);
        let rows: usize = parts
            .iter()
            .map(|part| part.sequence.tenant.charge(part.tokens))
            .sum();
        let took = Duration::from_micros(1000 + 20 * rows as u64);
        self.now += took;
        if rows > 0 {
            self.door.throughput.record(rows, true, took, self.now);
        }
        let fails = rows > 0 && std::mem::take(&mut self.fails);
        for StepPart {
            mut sequence,
            tokens,
        } in parts
        {
            if fails {
                self.batcher.end(&mut sequence);
                let error = Error::Device {
                    request_id: sequence.id,
                    detail: String::new(),
                };
                self.door.failed(&sequence, &error);
                self.end(sequence);
                continue;
            }
            let ended = sequence.job.evaluated();
            self.door.charge(&sequence, tokens, 0);
            if ended {
                self.door.finished(&sequence, None, self.now);
                self.batcher.end(&mut sequence);
                self.end(sequence);
            } else {
                self.batcher.go_on(sequence);
            }
        }
        self.starve();
    }

    /// What must hold of a step that was chosen.
    fn check_step(&self, parts: &[StepPart<Sim>]) {
        let rows = |part: &StepPart<Sim>| part.sequence.tenant.charge(part.tokens);
        let all: usize = parts.iter().map(rows).sum();
        let most = parts.iter().map(rows).max().unwrap_or(0);
        // Of each priority one always fits.
        assert!(
            all <= self.limits.step_tokens + 2 * most,
            "{all} rows in a step"
        );
        for StepPart { sequence, tokens } in parts {
            let (job, table) = (&sequence.job, &sequence.table);
            let (clean, block) = job.next();
            assert_eq!((*tokens, sequence.paused), (clean + block, None));
            assert_ne!(job.client.reader.get(), Reader::Gone, "work for nobody");
            assert!(
                sequence.deadline.is_none_or(|deadline| deadline > self.now),
                "late work"
            );
            let end = table.start() + table.held().len() * self.limits.page_tokens;
            assert!(table.start() <= (job.written + job.block).saturating_sub(WINDOW));
            assert!(job.written + clean <= end, "nowhere to write");
            // What is written to is nobody else's.
            let written = (job.written - table.start()) / self.limits.page_tokens;
            let own: HashSet<PageId> = table.held().into_iter().skip(written).collect();
            let others = parts
                .iter()
                .map(|part| &*part.sequence)
                .chain(self.batcher.running());
            for other in others.filter(|other| other.id != sequence.id && clean > 0) {
                let shared = other
                    .table
                    .held()
                    .into_iter()
                    .any(|page| own.contains(&page));
                assert!(!shared, "{} writes to a page of {}", sequence.id, other.id);
            }
        }
    }

    /// Whoever could start does in the end, and whoever runs is served.
    fn starve(&mut self) {
        for sequence in self.door.waiting() {
            let waited = self.waited.entry(sequence.id).or_default();
            *waited += u64::from(sequence.paused.is_none());
            let most = (self.limits.queue + self.limits.max_running) as u64 * EVALUATIONS * 8;
            assert!(*waited < most, "{} has waited {waited} steps", sequence.id);
        }
        for sequence in self.batcher.running().filter(|one| one.paused.is_none()) {
            self.waited.remove(&sequence.id);
            let since = self.batcher.steps() - sequence.served;
            assert!(
                since < 64 * 2 * self.limits.max_running as u64,
                "not served for {since} steps"
            );
        }
    }

    /// What must hold between any two events.
    fn check(&self) {
        let (door, batcher) = (&self.door, &self.batcher);
        let there: Vec<u64> = door
            .waiting()
            .chain(batcher.running())
            .map(|one| one.id)
            .collect();
        let once: BTreeSet<u64> = there.iter().copied().collect();
        assert_eq!(once.len(), there.len(), "in two places");
        assert!(
            once.iter().eq(self.alive.keys()),
            "lost, or there for nobody"
        );
        assert!(
            batcher.running().len() <= self.limits.max_running,
            "a place twice"
        );
        let new = door.waiting().filter(|one| one.started.is_none());
        assert!(new.count() <= self.limits.queue);
        let count =
            |of: &dyn Fn(&Client) -> bool| self.alive.values().filter(|one| of(one)).count();
        for client in self.alive.values() {
            assert!(count(&|one| one.variant == client.variant) <= 10);
            assert!(count(&|one| one.name == client.name) <= 9);
        }

        let mut holders: HashMap<PageId, (usize, &Sim)> = HashMap::new();
        for sequence in batcher.running() {
            let first = sequence.table.start() / self.limits.page_tokens;
            for (index, page) in (first..).zip(sequence.table.held()) {
                let (at, other) = *holders.entry(page).or_insert((index, &sequence.job));
                // What a page has depends on all tokens to the end of the block in which it ends.
                let end = (index + 1) * self.limits.page_tokens;
                let end = end.next_multiple_of(self.block);
                let one = &sequence.job;
                let same = std::ptr::eq(one, other)
                    || Arc::ptr_eq(&one.generation, &other.generation)
                        && one.mix == other.mix
                        && one.text[..end.min(one.text.len())]
                            == other.text[..end.min(other.text.len())];
                assert!(at == index && same, "a page of two texts");
            }
        }
        assert_eq!(
            holders.len(),
            batcher.pool().used(),
            "a page lost or held for nobody"
        );
        assert!(
            door.waiting()
                .all(|sequence| sequence.table.held().is_empty())
        );
        let leases = |of: &Weak<Generation>| of.strong_count();
        let sequences = door.waiting().chain(batcher.running());
        let leased = sequences.filter(|one| !Arc::ptr_eq(&one.job.generation, &self.generation));
        assert_eq!(self.old.iter().map(leases).sum::<usize>(), leased.count());
    }

    /// Everybody reads and nobody comes: all ends, and nothing is left.
    fn finish(&mut self) {
        (0..self.alive.len()).for_each(|one| self.reads(one, Reader::Ready));
        for _ in 0..20_000 {
            if self.alive.is_empty() {
                break;
            }
            self.happens(&Happens::Steps);
        }
        assert!(self.alive.is_empty(), "{} never end", self.alive.len());
        assert_eq!(self.batcher.pool().used(), 0);
        assert!(self.door.is_idle() && self.old.iter().all(|old| old.strong_count() == 0));
        let status = &self.door.status;
        let counted =
            status.finished + status.cancelled + status.late + status.stalled + status.failed;
        assert!(counted <= self.ended && self.ended - counted <= status.refused.queue);
    }
}

type Script = (Sizes, Vec<Happens>);

fn play((sizes, events): &Script) -> World {
    let mut world = World::new(*sizes);
    events.iter().for_each(|event| world.happens(event));
    world.finish();
    world
}

fn fails(script: &Script) -> bool {
    catch_unwind(AssertUnwindSafe(|| play(script))).is_err()
}

/// Plays a script. One that fails loses what it also fails without, and is printed.
fn run(mut script: Script) -> World {
    if let Ok(world) = catch_unwind(AssertUnwindSafe(|| play(&script))) {
        return world;
    }
    let mut piece = script.1.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < script.1.len() {
            let mut fewer = script.clone();
            fewer.1.drain(at..(at + piece).min(script.1.len()));
            match fails(&fewer) {
                true => script = fewer,
                false => at += piece,
            }
        }
        piece /= 2;
    }
    let events = script.1.len();
    let script = serde_json::to_string(&script).expect("a script");
    panic!("{events} events fail; CHOIR_SCRIPT repeats them from a file:\n{script}");
}

#[test]
fn simulator_keeps_every_promise_whatever_happens() {
    if let Some(file) = std::env::var_os("CHOIR_SCRIPT") {
        let script = std::fs::read(file).expect("a script");
        play(&serde_json::from_slice(&script).expect("a script"));
        return;
    }
    let mut ends = [0; 6];
    for (seed, sizes) in (0..32).zip([(4, 4), (3, 4), (4, 2), (8, 3)].into_iter().cycle()) {
        let world = run((sizes, everything(seed, 4_000)));
        let status = &world.door.status;
        let of_seed = [
            status.finished,
            status.cancelled,
            status.late,
            status.stalled,
            status.failed,
            world.batcher.preempted(),
        ];
        ends.iter_mut()
            .zip(of_seed)
            .for_each(|(all, one)| *all += one);
    }
    assert!(
        ends.iter().all(|&count| count > 20),
        "scripts that try little: {ends:?}"
    );
}

#[test]
fn simulator_shares_by_weight_where_all_ask_for_more() {
    for seed in 0..4 {
        let mut world = World::new((4, 4));
        let events = greed(seed, 20_000);
        let (warm, rest) = events.split_at(4_000);
        let served = |world: &World| {
            let of = |variant: u32| world.door.ledger.standing(&variant.to_string());
            let shares = (0..VARIANTS)
                .map(of)
                .map(|(weight, had)| had.evaluated as f64 / weight);
            shares.collect::<Vec<f64>>()
        };
        warm.iter().for_each(|event| world.happens(event));
        let before = served(&world);
        rest.iter().for_each(|event| world.happens(event));
        let shares = served(&world)
            .into_iter()
            .zip(before)
            .map(|(now, before)| now - before);
        let shares: Vec<f64> = shares.collect();
        let most = shares.iter().copied().fold(0.0, f64::max);
        assert!(shares.iter().all(|share| share * 1.25 > most), "{shares:?}");
        world.finish();
    }
}
