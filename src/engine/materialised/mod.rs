//! Variants as whole matrices of weights, for those that carry enough work: made beside the running engine, kept in a budget of
//! bytes, freed with their generation.
//!
//! A mix pays, in every step, what its banks cost more than matrices of its own would have. When it has paid what making
//! them takes, they are made: whatever comes later, no more than twice the best is spent (ski rental). They are used in the
//! steps in which that saves time by what was measured; other rows share one evaluation as before.

mod costs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Generation;
use crate::model::{Batch, Denoiser, Mix, Segment, VariantId};
use costs::{Costs, Share};

/// Mixes remembered that are not made yet, at most: clients may send any weights.
const REMEMBERED: usize = 1024;

/// What mixes have paid, and what was made of them.
pub struct Materialised {
    /// Bytes of all instances together, at most.
    limit: usize,
    /// Tokens in a step at most.
    step_tokens: usize,
    state: Mutex<State>,
}

struct State {
    costs: Measured,
    mixes: HashMap<Key, Entry>,
    step: u64,
    jobs: Sender<Job>,
}

enum Measured {
    /// There was no variant yet.
    NotYet,
    Costs(Costs),
    /// The network has no weights to add to, or fails.
    Never,
}

/// The generation's address, which lasts as long as its `Weak`, and the mix by bits.
type Key = (usize, Vec<(u32, u32)>);

fn key(generation: &Arc<Generation>, mix: &Mix) -> Key {
    let parts = mix
        .0
        .iter()
        .map(|(variant, weight)| (variant.0, weight.to_bits()));
    (Arc::as_ptr(generation) as usize, parts.collect())
}

struct Entry {
    generation: Weak<Generation>,
    /// The last step it took part in.
    used: u64,
    standing: Standing,
}

enum Standing {
    /// Seconds, and the step it began in.
    Paying {
        paid: f64,
        since: u64,
    },
    /// Bytes that it will take, as far as is known.
    Making {
        bytes: usize,
    },
    Made(Arc<Single>),
    /// It failed once.
    Never,
}

/// An instance of one mix.
pub struct Single {
    pub denoiser: Arc<dyn Denoiser>,
    failed: AtomicBool,
}

impl Single {
    /// It is not to be used again.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

struct Job {
    generation: Weak<Generation>,
    mix: Mix,
}

/// Makes what is asked for, one after the other, until nobody can ask any more.
pub struct Maker {
    jobs: Receiver<Job>,
    materialised: Weak<Materialised>,
}

impl Standing {
    fn is_made(&self) -> bool {
        matches!(self, Standing::Made(_))
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.standing {
            Standing::Making { bytes } => *bytes,
            Standing::Made(single) => single.denoiser.bytes(),
            Standing::Paying { .. } | Standing::Never => 0,
        }
    }
}

impl Materialised {
    /// At most `limit` bytes; with 0 there are none, ever. What the maker does is a thread's own.
    pub fn new(limit: usize, step_tokens: usize) -> (Arc<Self>, Maker) {
        let (sender, jobs) = channel();
        let materialised = Arc::new(Materialised {
            limit,
            step_tokens,
            state: Mutex::new(State {
                costs: Measured::NotYet,
                mixes: HashMap::new(),
                step: 0,
                jobs: sender,
            }),
        });
        let maker = Maker {
            jobs,
            materialised: Arc::downgrade(&materialised),
        };
        (materialised, maker)
    }

    /// Nothing is left half done under this lock, so a poisoned one is as good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.state().bytes()
    }

    /// Frees what belongs to generations that nobody leases any more.
    pub fn sweep(&self) {
        let mut dead = Vec::new();
        self.state().mixes.retain(|_, entry| {
            let alive = entry.generation.strong_count() > 0;
            if !alive {
                dead.push(std::mem::replace(&mut entry.standing, Standing::Never));
            }
            alive
        });
        drop(dead); // outside the lock
    }

    /// Measures once there is a variant to measure with. Fails silently but for a word in the log: what fails here is not used.
    fn measure(&self, generation: &Generation) {
        let Some(first) = generation.variants.values().map(|facts| facts.id).min() else {
            return;
        };
        if !matches!(self.state().costs, Measured::NotYet) {
            return;
        }
        let measure = || Costs::measure(&*generation.denoiser, first, self.step_tokens);
        // What a panic leaves half written is the measurement's own.
        let found = catch_unwind(AssertUnwindSafe(measure))
            .unwrap_or_else(|_| Err(candle_core::Error::msg("a panic")));
        let measured = match found {
            Ok(Some(costs)) => {
                tracing::debug!(?costs, "measured");
                Measured::Costs(costs)
            }
            Ok(None) => Measured::Never,
            Err(error) => {
                tracing::warn!(%error, "no variant is materialised, since measuring what it takes failed");
                Measured::Never
            }
        };
        self.state().costs = measured;
    }

    /// A batch of a generation took so long, evaluated by an instance of its mix or by the generation's own.
    pub fn learn(
        &self,
        generation: &Generation,
        batch: &Batch,
        materialised: bool,
        took: Duration,
    ) {
        if let Measured::Costs(costs) = &mut self.state().costs {
            let share = |segment: &Segment| Share {
                rows: segment.tokens.len(),
                banks: banks(&*generation.denoiser, &segment.mix),
            };
            let shares: Vec<Share> = batch.segments.iter().map(share).collect();
            costs.learn(&shares, materialised, took.as_secs_f64());
        }
    }

    /// For every piece of a step's work, the instance that it is to be evaluated by, alone or with others of its mix; `None` where it
    /// shares its generation's.
    pub fn choose(&self, work: &[(&Arc<Generation>, &Mix, usize)]) -> Vec<Option<Arc<Single>>> {
        let mut chosen = vec![None; work.len()];
        if self.limit == 0 {
            return chosen;
        }
        let mut generations: Vec<&Arc<Generation>> =
            work.iter().map(|(generation, ..)| *generation).collect();
        generations.sort_by_key(|generation| Arc::as_ptr(generation));
        generations.dedup_by_key(|generation| Arc::as_ptr(generation));
        self.state().step += 1;
        for generation in generations {
            self.measure(generation);
            // Which pieces a mix has.
            let mut pieces: Vec<(&Mix, Vec<usize>)> = Vec::new();
            for (index, (_, mix, _)) in work
                .iter()
                .enumerate()
                .filter(|(_, piece)| Arc::ptr_eq(piece.0, generation))
            {
                match pieces.iter_mut().find(|(known, _)| known == mix) {
                    Some((_, indices)) => indices.push(index),
                    None => pieces.push((mix, vec![index])),
                }
            }
            let share = |(mix, indices): &(&Mix, Vec<usize>)| Share {
                rows: indices.iter().map(|&index| work[index].2).sum(),
                banks: banks(&*generation.denoiser, mix),
            };
            // Most rows first: they gain most.
            pieces.sort_by_key(|piece| std::cmp::Reverse(share(piece).rows));
            let shares: Vec<Share> = pieces.iter().map(share).collect();
            let mixes: Vec<&Mix> = pieces.iter().map(|(mix, _)| *mix).collect();
            let singles = self.state().split(generation, &mixes, &shares, self.limit);
            for (single, (_, indices)) in singles.into_iter().zip(pieces) {
                for index in indices {
                    chosen[index] = single.clone();
                }
            }
        }
        let freed = self.state().trim(self.limit);
        drop::<Vec<Entry>>(freed); // outside the lock
        chosen
    }
}

/// The banks that a mix is read from: of each variant the first, which has most of its matrices.
fn banks(denoiser: &dyn Denoiser, mix: &Mix) -> Vec<usize> {
    let first = |&(variant, _): &(VariantId, f32)| denoiser.banks(variant).first().copied();
    mix.0.iter().filter_map(first).collect()
}

impl State {
    /// Which of a generation's mixes are evaluated by instances of their own in this step. All others pay, and have theirs made once
    /// they have paid enough.
    fn split(
        &mut self,
        generation: &Arc<Generation>,
        mixes: &[&Mix],
        shares: &[Share],
        limit: usize,
    ) -> Vec<Option<Arc<Single>>> {
        let mut chosen = vec![None; mixes.len()];
        let (Measured::Costs(costs), step) = (&self.costs, self.step) else {
            return chosen;
        };
        let mut apart = vec![false; mixes.len()];
        let keys: Vec<Key> = mixes.iter().map(|mix| key(generation, mix)).collect();
        for (index, key) in keys.iter().enumerate() {
            let Some(entry) = self.mixes.get_mut(key) else {
                continue;
            };
            entry.used = step;
            if let Standing::Made(single) = &entry.standing {
                if single.failed.load(Ordering::Relaxed) {
                    entry.standing = Standing::Never;
                } else if costs.worth(shares, &apart, index) > 0.0 {
                    (apart[index], chosen[index]) = (true, Some(single.clone()));
                }
            }
        }
        let mut wanted = Vec::new();
        for (index, key) in keys
            .into_iter()
            .enumerate()
            .filter(|(index, _)| !mixes[*index].0.is_empty())
        {
            let entry = self.mixes.entry(key.clone()).or_insert_with(|| Entry {
                generation: Arc::downgrade(generation),
                used: step,
                standing: Standing::Paying {
                    paid: 0.0,
                    since: step,
                },
            });
            if let Standing::Paying { paid, since } = &mut entry.standing {
                *paid += costs.worth(shares, &apart, index);
                if *paid >= costs.make {
                    wanted.push((key, mixes[index], (*since, costs.bytes)));
                }
            }
        }
        for (key, mix, facts) in wanted {
            self.order(key, generation, mix, facts, limit);
        }
        self.forget();
        chosen
    }

    /// Has an instance made, where there is room, or can be by freeing what was not used for as long as this mix has paid.
    fn order(
        &mut self,
        key: Key,
        generation: &Arc<Generation>,
        mix: &Mix,
        (since, bytes): (u64, usize),
        limit: usize,
    ) {
        while self.bytes() + bytes > limit {
            match self.oldest(Standing::is_made) {
                Some((oldest, used)) if used < since => drop(self.mixes.remove(&oldest)),
                _ => {
                    let since = self.step;
                    return self.stands(&key, Standing::Paying { paid: 0.0, since });
                }
            }
        }
        let job = Job {
            generation: Arc::downgrade(generation),
            mix: mix.clone(),
        };
        let standing = match self.jobs.send(job) {
            Ok(()) => Standing::Making { bytes },
            Err(_) => Standing::Never,
        };
        self.stands(&key, standing);
    }

    fn stands(&mut self, key: &Key, standing: Standing) {
        if let Some(entry) = self.mixes.get_mut(key) {
            (entry.standing, entry.used) = (standing, self.step);
        }
    }

    fn bytes(&self) -> usize {
        self.mixes.values().map(Entry::bytes).sum()
    }

    /// Which of those that stand so was used longest ago, and when.
    fn oldest(&self, which: fn(&Standing) -> bool) -> Option<(Key, u64)> {
        let some = self
            .mixes
            .iter()
            .filter(|(_, entry)| which(&entry.standing));
        some.min_by_key(|(_, entry)| entry.used)
            .map(|(key, entry)| (key.clone(), entry.used))
    }

    /// Forgets who paid longest ago where there are too many.
    fn forget(&mut self) {
        while self.mixes.len() > REMEMBERED
            && let Some((oldest, _)) = self
                .oldest(|standing| matches!(standing, Standing::Paying { .. } | Standing::Never))
        {
            self.mixes.remove(&oldest);
        }
    }

    /// Frees what was used longest ago while there is too much: modulation tables of an instance grow as it is used.
    fn trim(&mut self, limit: usize) -> Vec<Entry> {
        let mut freed = Vec::new();
        while self.bytes() > limit
            && let Some((oldest, _)) = self.oldest(Standing::is_made)
        {
            freed.extend(self.mixes.remove(&oldest));
        }
        freed
    }
}

impl Maker {
    /// Starts a thread that makes instances beside the engine, alone, so that a step is held up as little as can be. It ends with the
    /// last who could ask for one.
    pub fn start(self) -> std::io::Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        let pool = pool.build().map_err(std::io::Error::other)?;
        let thread = std::thread::Builder::new().name("choir-materialise".into());
        thread.spawn(move || pool.install(|| self.run())).map(drop)
    }

    fn run(self) {
        while let Ok(job) = self.jobs.recv() {
            if !self.make(job) {
                return;
            }
        }
    }

    /// False where nobody is left to make it for.
    fn make(&self, job: Job) -> bool {
        let Some(generation) = job.generation.upgrade() else {
            return true;
        };
        let start = Instant::now();
        let made = generation.denoiser.materialise(&job.mix);
        let took = start.elapsed().as_secs_f64();
        let key = key(&generation, &job.mix);
        drop(generation); // may be the last lease
        let Some(materialised) = self.materialised.upgrade() else {
            return false;
        };
        materialised.take(&key, made, took);
        materialised.sweep();
        true
    }
}

impl Materialised {
    /// Takes what was made. Making another one is expected to take as long.
    fn take(&self, key: &Key, made: candle_core::Result<Option<Arc<dyn Denoiser>>>, took: f64) {
        let mut state = self.state();
        let standing = match made {
            Ok(Some(denoiser)) => {
                if let Measured::Costs(costs) = &mut state.costs {
                    (costs.make, costs.bytes) = (took, denoiser.bytes());
                }
                Standing::Made(Arc::new(Single {
                    denoiser,
                    failed: AtomicBool::new(false),
                }))
            }
            Ok(None) => Standing::Never,
            Err(error) => {
                tracing::warn!(%error, "a variant could not be materialised");
                Standing::Never
            }
        };
        state.stands(key, standing);
        let freed = state.trim(self.limit);
        drop(state);
        drop::<Vec<Entry>>(freed); // outside the lock
    }
}
