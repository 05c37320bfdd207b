//! How much service each variant, and each priority, has had: what fair shares are decided by.
//!
//! Virtual-token counters after Sheng et al., "Fairness in Serving Large Language Models" (arXiv 2401.00588): a counter grows by
//! the tokens evaluated over the weight, the lowest comes first, and whoever was idle begins at the lowest of those that were not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generation::BASE;
use super::request::Priority;

/// Whom the ledger knows: a variant, or the [`BASE`]. All that is asked of it is found without looking for its name.
#[derive(Debug)]
pub struct Payer {
    pub name: Arc<str>,
    slot: usize,
}

impl Payer {
    pub fn is_base(&self) -> bool {
        *self.name == *BASE
    }
}

/// Where a request belongs, and what it costs.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Whose share it takes of: its variant, or the heaviest one of a mix.
    pub payer: Arc<Payer>,
    pub priority: Priority,
    /// Variants in its mix: a row is charged once for each, a row of the base once.
    pub parts: usize,
    /// What a usual evaluation is charged.
    pub cost: usize,
}

impl Tenant {
    /// Dense over payers and priorities.
    fn key(&self) -> usize {
        PRIORITIES * self.payer.slot + self.priority as usize
    }

    /// What so many of its tokens are charged, and count of a step.
    pub fn charge(&self, tokens: usize) -> usize {
        tokens * self.parts.max(1)
    }
}

const PRIORITIES: usize = 2;

/// Of a step's tokens and of the service among sequences that wait, batch requests get one part of so many at least.
pub const BATCH_PART: usize = 8;

/// Bounds of a variant's weight.
pub const LEAST_WEIGHT: f64 = 0.001;
pub const MOST_WEIGHT: f64 = 1000.0;

/// A variant's service so far, of one priority, in tokens over its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account {
    pub counter: f64,
    pub weight: f64,
}

/// What a variant has had of the engine since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceShare {
    /// Tokens evaluated, prompts and repeated evaluations of a block included.
    pub evaluated: u64,
    /// Tokens made.
    pub generated: u64,
}

/// Virtual tokens by key.
#[derive(Debug, Default)]
struct Counters {
    tokens: Vec<f64>,
    /// Who had work when it was last asked, or was served since.
    was: Vec<bool>,
    /// What nobody has less than.
    floor: f64,
}

impl Counters {
    fn grow(&mut self, keys: usize) {
        let keys = keys.max(self.tokens.len());
        self.tokens.resize(keys, self.floor);
        self.was.resize(keys, false);
    }

    /// Lifts those that were idle to the lowest of those that were not. `active` is whoever has work.
    fn settle(&mut self, active: impl Iterator<Item = usize> + Clone) {
        self.grow(active.clone().max().map_or(0, |key| key + 1));
        let mut is = vec![false; self.was.len()];
        active.for_each(|key| is[key] = true);
        let lowest = |all: bool| {
            let of = (0..is.len()).filter(|&key| self.was[key] && (all || is[key]));
            of.map(|key| self.tokens[key]).min_by(f64::total_cmp)
        };
        let floor = lowest(false).or_else(|| lowest(true)).unwrap_or(0.0);
        self.floor = self.floor.max(floor);
        self.was = is;
    }

    fn charge(&mut self, key: usize, tokens: f64) {
        self.grow(key + 1);
        (self.tokens[key], self.was[key]) = (self.get(key) + tokens, true);
    }

    fn get(&self, key: usize) -> f64 {
        self.tokens
            .get(key)
            .map_or(self.floor, |tokens| tokens.max(self.floor))
    }

    fn forget(&mut self, key: usize) {
        if let Some(tokens) = self.tokens.get_mut(key) {
            (*tokens, self.was[key]) = (0.0, false);
        }
    }
}

/// Every variant's counter and service.
#[derive(Debug)]
pub struct Ledger {
    weights: BTreeMap<String, f64>,
    slots: Vec<PayerAccount>,
    by_name: BTreeMap<Arc<str>, usize>,
    /// Slots that nobody has.
    free: Vec<usize>,
    /// Within each priority, so that what was left over and used is not held against what somebody waits for.
    variants: Counters,
    priorities: Counters,
}

#[derive(Debug)]
struct PayerAccount {
    payer: Arc<Payer>,
    weight: f64,
    service: ServiceShare,
    /// Of the evaluations that its texts could take at most, the part that they usually do, and when the last one was finished.
    usual: Option<(f64, Instant)>,
}

/// How much that part follows the last text.
const FOLLOW: f64 = 1.0 / 8.0;
/// How long it is believed.
const AGE: Duration = Duration::from_secs(60);

/// What is under way of one payer and priority.
#[derive(Clone, Debug)]
pub struct Underway {
    pub payer: Arc<Payer>,
    pub priority: Priority,
    pub sequences: usize,
    /// What one evaluation of each of them is charged, together.
    pub step: usize,
    /// What all evaluations still to be made usually are charged.
    pub left: u64,
}

impl Ledger {
    /// Variants without a weight have 1.
    pub fn new(weights: BTreeMap<String, f64>) -> Self {
        Ledger {
            weights,
            slots: Vec::new(),
            by_name: BTreeMap::new(),
            free: Vec::new(),
            variants: Counters::default(),
            priorities: Counters::default(),
        }
    }

    /// The payer of this name.
    pub fn payer(&mut self, name: &str) -> Arc<Payer> {
        if let Some(&slot) = self.by_name.get(name) {
            return self.slots[slot].payer.clone();
        }
        let slot = self.free.pop().unwrap_or(self.slots.len());
        let name: Arc<str> = name.into();
        let payer = Arc::new(Payer {
            name: name.clone(),
            slot,
        });
        let new = PayerAccount {
            payer: payer.clone(),
            weight: self.given_weight(&name),
            service: ServiceShare::default(),
            usual: None,
        };
        match self.slots.get_mut(slot) {
            Some(free) => *free = new,
            None => self.slots.push(new),
        }
        self.by_name.insert(name, slot);
        payer
    }

    /// Keys of all payers.
    fn keys(&self) -> usize {
        PRIORITIES * self.slots.len()
    }

    /// To be told before every decision who has work, waiting or running.
    pub fn settle<'a>(&mut self, active: impl Iterator<Item = &'a Tenant> + Clone) {
        self.variants.settle(active.clone().map(Tenant::key));
        self.priorities
            .settle(active.map(|tenant| tenant.priority as usize));
    }

    pub fn charge(&mut self, tenant: &Tenant, tokens: usize) {
        let cost = tenant.charge(tokens) as f64;
        let slot = &mut self.slots[tenant.payer.slot];
        slot.service.evaluated += tokens as u64;
        self.variants.charge(tenant.key(), cost / slot.weight);
        let priority = tenant.priority;
        self.priorities
            .charge(priority as usize, cost / part(priority));
    }

    pub fn made(&mut self, payer: &Payer, tokens: usize) {
        self.slots[payer.slot].service.generated += tokens as u64;
    }

    /// A text of the variant took so many evaluations, of so many that it could have.
    pub fn took(&mut self, payer: &Payer, (evaluations, most): (u32, u32), now: Instant) {
        let part = (f64::from(evaluations) / f64::from(most.max(1))).min(1.0);
        let usual = self.usual(payer, now).unwrap_or(part);
        self.slots[payer.slot].usual = Some((usual + FOLLOW * (part - usual), now));
    }

    /// Forgets what variants have had that are not served any more, and those of whom there is no request.
    pub fn keep(&mut self, served: impl Fn(&str) -> bool) {
        let slots = &mut self.slots;
        let gone = self.by_name.extract_if(.., |name, slot| {
            let PayerAccount {
                payer,
                service,
                usual,
                ..
            } = &mut slots[*slot];
            let stays = **name == *BASE || served(name);
            if !stays {
                (*service, *usual) = (ServiceShare::default(), None);
            }
            !stays && Arc::strong_count(payer) == 1
        });
        for (_, slot) in gone {
            (0..PRIORITIES).for_each(|priority| self.variants.forget(PRIORITIES * slot + priority));
            self.free.push(slot);
        }
    }

    /// Of the evaluations that a text of the variant can take, the part that one usually does; `None` where none was finished lately.
    pub fn usual(&self, payer: &Payer, now: Instant) -> Option<f64> {
        let (usual, last) = self.slots[payer.slot].usual?;
        (now.duration_since(last) < AGE).then_some(usual)
    }

    pub fn weight(&self, payer: &Payer) -> f64 {
        self.slots[payer.slot].weight
    }

    /// The weight of a variant and what it has had, whether or not it is known.
    pub fn standing(&self, variant: &str) -> (f64, ServiceShare) {
        match self.by_name.get(variant) {
            Some(&slot) => (self.slots[slot].weight, self.slots[slot].service),
            None => (self.given_weight(variant), ServiceShare::default()),
        }
    }

    fn given_weight(&self, variant: &str) -> f64 {
        self.weights.get(variant).copied().unwrap_or(1.0)
    }

    /// The weights of all these payers together, each counted once.
    pub fn weights<'a>(&self, payers: impl Iterator<Item = &'a Arc<Payer>>) -> f64 {
        let mut counted = vec![false; self.slots.len()];
        let new = payers.filter(|payer| !std::mem::replace(&mut counted[payer.slot], true));
        new.map(|payer| self.weight(payer)).sum()
    }

    /// The accounts of these, and which one each has.
    pub fn accounts<'a>(
        &self,
        tenants: impl Iterator<Item = &'a Tenant>,
    ) -> (Vec<usize>, Vec<Account>) {
        let (mut accounts, mut numbers) = (Vec::new(), vec![None; self.keys()]);
        let account = |tenant: &'a Tenant| {
            *numbers[tenant.key()].get_or_insert_with(|| {
                accounts.push(Account {
                    counter: self.variants.get(tenant.key()),
                    weight: self.weight(&tenant.payer),
                });
                accounts.len() - 1
            })
        };
        (tenants.map(account).collect(), accounts)
    }

    /// How many of these are of a tenant's payer and priority.
    pub fn count<'a>(
        &self,
        tenants: impl Iterator<Item = &'a Tenant>,
    ) -> impl Fn(&Tenant) -> usize {
        let mut counts = vec![0; self.keys()];
        tenants.for_each(|tenant| counts[tenant.key()] += 1);
        move |tenant| counts[tenant.key()]
    }

    /// What these have under way, of one payer and priority together; each says how many evaluations that is where its texts usually
    /// take this part of what they could.
    pub fn underway<'a>(
        &self,
        sequences: impl Iterator<Item = (&'a Tenant, impl Fn(Option<f64>) -> u64)>,
        now: Instant,
    ) -> Vec<Underway> {
        let (mut all, mut numbers) = (Vec::<Underway>::new(), vec![None; self.keys()]);
        for (tenant, evaluations) in sequences {
            let number = *numbers[tenant.key()].get_or_insert_with(|| {
                all.push(Underway {
                    payer: tenant.payer.clone(),
                    priority: tenant.priority,
                    sequences: 0,
                    step: 0,
                    left: 0,
                });
                all.len() - 1
            });
            let of = &mut all[number];
            of.sequences += 1;
            of.step += tenant.cost;
            of.left += evaluations(self.usual(&tenant.payer, now)) * tenant.cost as u64;
        }
        all
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
    /// Virtual tokens ahead, by key.
    variants: Vec<f64>,
    priorities: [f64; PRIORITIES],
}

impl<'a> Order<'a> {
    pub fn new<'b>(ledger: &'a Ledger, running: impl Iterator<Item = &'b Tenant>) -> Self {
        let mut order = Order {
            ledger,
            variants: vec![0.0; ledger.keys()],
            priorities: [0.0; PRIORITIES],
        };
        running.for_each(|tenant| order.start(tenant));
        order
    }

    /// Counts one that starts.
    pub fn start(&mut self, tenant: &Tenant) {
        let ahead = LOOKAHEAD * tenant.cost as f64;
        self.variants[tenant.key()] += ahead / self.ledger.weight(&tenant.payer);
        self.priorities[tenant.priority as usize] += ahead / part(tenant.priority);
    }

    /// Who is to start among those that wait, given in the order they came.
    ///
    /// Interactive ones come first, unless batch requests have had less than their part; then the variant with the least
    /// service; then who came first.
    pub fn next<'b, I>(&self, waiting: impl Iterator<Item = (I, &'b Tenant)>) -> Option<I> {
        let key = |tenant: &Tenant| {
            let (key, priority) = (tenant.key(), tenant.priority as usize);
            let had = self.ledger.priorities.get(priority) + self.priorities[priority];
            let variant_had = self.ledger.variants.get(key) + self.variants[key];
            (had, priority, variant_had)
        };
        let less = |a: &(f64, usize, f64), b: &(f64, usize, f64)| {
            (a.0.total_cmp(&b.0))
                .then(a.1.cmp(&b.1))
                .then(a.2.total_cmp(&b.2))
        };
        let keys = waiting.map(|(index, tenant)| (index, key(tenant)));
        keys.min_by(|a, b| less(&a.1, &b.1)).map(|(index, _)| index) // the first of equals
    }
}

#[cfg(test)]
mod tests;
