//! How much service each variant, and each priority, has had: what fair shares are decided by.
//!
//! Virtual-token counters after Sheng et al., "Fairness in Serving Large Language Models" (arXiv 2401.00588): a counter grows by
//! the tokens evaluated over the weight, the lowest comes first, and whoever was idle begins at the lowest of those that were not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::request::Priority;
use super::scheduler::Account;

/// Where a request belongs, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Whose share it takes of: its variant, the heaviest one of a mix, or [`BASE`].
    pub variant: Arc<str>,
    pub priority: Priority,
    /// Tokens of a usual evaluation.
    pub cost: usize,
    /// The banks that its rows read.
    pub banks: Arc<[usize]>,
}

impl Tenant {
    fn key(&self) -> (Priority, Arc<str>) {
        (self.priority, self.variant.clone())
    }

    /// Whether both take of one share.
    pub fn shares_with(&self, other: &Tenant) -> bool {
        self.priority == other.priority && self.variant == other.variant
    }
}

/// What the base is called among variants; none has this name.
pub const BASE: &str = "base";
/// Of a step's tokens and of the service among sequences that wait, batch requests get one part of so many at least.
pub const BATCH_PART: usize = 8;

/// Bounds of a variant's weight.
pub const LEAST_WEIGHT: f64 = 0.001;
pub const MOST_WEIGHT: f64 = 1000.0;

/// What a variant has had of the engine since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Service {
    /// Tokens evaluated, prompts and repeated evaluations of a block included.
    pub evaluated: u64,
    /// Tokens made.
    pub generated: u64,
}

/// Virtual tokens by key, and whether there was work when it was last asked.
#[derive(Debug)]
struct Counters<K> {
    of: BTreeMap<K, (f64, bool)>,
    floor: f64,
}

impl<K: Ord> Counters<K> {
    fn new() -> Self {
        let (of, floor) = (BTreeMap::new(), 0.0);
        Counters { of, floor }
    }

    /// Lifts those that were idle. `active` is whoever has work; counters that say no more than the floor are forgotten.
    fn settle(&mut self, active: impl Iterator<Item = K>) {
        let active: BTreeSet<K> = active.collect();
        let lowest = |all: bool| {
            let of = self
                .of
                .iter()
                .filter(|(key, (_, was))| *was && (all || active.contains(key)));
            of.map(|(_, (counter, _))| *counter).min_by(f64::total_cmp)
        };
        let floor = lowest(false).or_else(|| lowest(true)).unwrap_or(0.0).max(self.floor);
        self.floor = floor;
        self.of.retain(|key, (counter, was)| {
            *was = active.contains(key);
            *counter = if *was { counter.max(floor) } else { *counter };
            *was || *counter > floor
        });
        for key in active {
            self.of.entry(key).or_insert((floor, true));
        }
    }

    fn charge(&mut self, key: K, tokens: f64) {
        self.of.entry(key).or_insert((self.floor, true)).0 += tokens;
    }

    fn get(&self, key: &K) -> f64 {
        self.of.get(key).map_or(self.floor, |(counter, _)| *counter)
    }
}

/// Every variant's counter and service. Those of variants without work and without debt take no room, but for their [`Service`].
#[derive(Debug)]
pub struct Ledger {
    weights: BTreeMap<String, f64>,
    /// Within each priority, so that what was left over and used is not held against what somebody waits for.
    variants: Counters<(Priority, Arc<str>)>,
    priorities: Counters<Priority>,
    service: BTreeMap<Arc<str>, Service>,
    /// Of the evaluations that its texts could take at most, the part that they usually do.
    usual: BTreeMap<Arc<str>, f64>,
}

/// How much that part follows the last text.
const FOLLOW: f64 = 1.0 / 8.0;

impl Ledger {
    /// Variants without a weight have 1.
    pub fn new(weights: BTreeMap<String, f64>) -> Self {
        Ledger {
            weights,
            variants: Counters::new(),
            priorities: Counters::new(),
            service: BTreeMap::new(),
            usual: BTreeMap::new(),
        }
    }

    /// To be told before every decision who has work, waiting or running.
    pub fn settle<'a>(&mut self, active: impl Iterator<Item = &'a Tenant> + Clone) {
        self.variants.settle(active.clone().map(Tenant::key));
        self.priorities.settle(active.map(|tenant| tenant.priority));
    }

    pub fn charge(&mut self, tenant: &Tenant, tokens: usize) {
        let cost = tokens as f64;
        let weight = self.weight(&tenant.variant);
        self.variants.charge(tenant.key(), cost / weight);
        self.priorities.charge(tenant.priority, cost / part(tenant.priority));
        self.service.entry(tenant.variant.clone()).or_default().evaluated += tokens as u64;
    }

    pub fn made(&mut self, variant: &Arc<str>, tokens: usize) {
        self.service.entry(variant.clone()).or_default().generated += tokens as u64;
    }

    /// A text of the variant took so many evaluations, of so many that it could have.
    pub fn took(&mut self, variant: &Arc<str>, (evaluations, most): (u32, u32)) {
        let part = (f64::from(evaluations) / f64::from(most.max(1))).min(1.0);
        let usual = self.usual.entry(variant.clone()).or_insert(part);
        *usual += FOLLOW * (part - *usual);
    }

    /// Forgets what variants have had that are not served any more.
    pub fn keep(&mut self, served: impl Fn(&str) -> bool) {
        let stays = |name: &str| name == BASE || served(name);
        self.service.retain(|name, _| stays(name));
        self.usual.retain(|name, _| stays(name));
    }

    /// Of the evaluations that a text of the variant can take, the part that one usually does; `None` until any was finished.
    pub fn usual(&self, variant: &str) -> Option<f64> {
        self.usual.get(variant).copied()
    }

    pub fn weight(&self, variant: &str) -> f64 {
        self.weights.get(variant).copied().unwrap_or(1.0)
    }

    pub fn service(&self, variant: &str) -> Service {
        self.service.get(variant).copied().unwrap_or_default()
    }

    /// The accounts of these, and which one each has.
    pub fn accounts<'a>(&self, tenants: impl Iterator<Item = &'a Tenant>) -> (Vec<usize>, Vec<Account>) {
        let (mut accounts, mut numbers) = (Vec::new(), BTreeMap::new());
        let account = |tenant: &'a Tenant| {
            *numbers.entry(tenant.key()).or_insert_with(|| {
                accounts.push(Account {
                    counter: self.variants.get(&tenant.key()),
                    weight: self.weight(&tenant.variant),
                    banks: tenant.banks.clone(),
                });
                accounts.len() - 1
            })
        };
        (tenants.map(account).collect(), accounts)
    }
}

/// A priority's weight.
fn part(priority: Priority) -> f64 {
    match priority {
        Priority::Interactive => (BATCH_PART - 1) as f64,
        Priority::Batch => 1.0,
    }
}

/// What running sequences will have had after so many steps counts when another is to start, so that one variant does not take
/// all places that become free at once, and counters that are so far apart are worth one place.
const LOOKAHEAD: f64 = 32.0;

/// Who leaves the queue next.
#[derive(Debug)]
pub struct Order<'a> {
    ledger: &'a Ledger,
    /// Virtual tokens ahead.
    variants: BTreeMap<(Priority, Arc<str>), f64>,
    priorities: BTreeMap<Priority, f64>,
}

impl<'a> Order<'a> {
    pub fn new<'b>(ledger: &'a Ledger, running: impl Iterator<Item = &'b Tenant>) -> Self {
        let mut order = Order {
            ledger,
            variants: BTreeMap::new(),
            priorities: BTreeMap::new(),
        };
        running.for_each(|tenant| order.start(tenant));
        order
    }

    /// Counts one that starts.
    pub fn start(&mut self, tenant: &Tenant) {
        let ahead = LOOKAHEAD * tenant.cost as f64;
        let weight = self.ledger.weight(&tenant.variant);
        *self.variants.entry(tenant.key()).or_default() += ahead / weight;
        *self.priorities.entry(tenant.priority).or_default() += ahead / part(tenant.priority);
    }

    /// Who is to start among those that wait, given in the order they came.
    ///
    /// Interactive ones come first, unless batch requests have had less than their part; then the variant with the least
    /// service; then who came first.
    pub fn next<'b, I>(&self, waiting: impl Iterator<Item = (I, &'b Tenant)>) -> Option<I> {
        let key = |tenant: &Tenant| {
            let (priority, key) = (tenant.priority, tenant.key());
            let ahead = self.priorities.get(&priority).copied().unwrap_or_default();
            let variant_ahead = self.variants.get(&key).copied().unwrap_or_default();
            let (had, variant_had) = (self.ledger.priorities.get(&priority), self.ledger.variants.get(&key));
            (had + ahead, priority, variant_had + variant_ahead)
        };
        let less = |a: &(f64, Priority, f64), b: &(f64, Priority, f64)| {
            (a.0.total_cmp(&b.0)).then(a.1.cmp(&b.1)).then(a.2.total_cmp(&b.2))
        };
        let keys = waiting.map(|(index, tenant)| (index, key(tenant)));
        keys.min_by(|a, b| less(&a.1, &b.1)).map(|(index, _)| index) // the first of equals
    }
}

#[cfg(test)]
mod tests;
