//! Variants as whole matrices of weights, for those that carry most of the work: made beside the running engine, kept in a budget of
//! bytes, freed with their generation.
//!
//! The rule: a mix that has had [`HOT`] of the rows of recent steps gets an instance of its own, which is used in every step of which
//! it has [`HOT`] again. Where there is no room, what was used longest ago goes first, if it is not hot itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use super::generation::Generation;
use crate::model::{Denoiser, Mix};

/// The share of rows that makes a mix hot: an instance spares its rows a product for each part, and costs an evaluation more where
/// there are other rows.
const HOT: f64 = 0.75;
/// How much a share follows the last step: it is of about so many steps as this goes into 1.
const FOLLOW: f64 = 1.0 / 32.0;
/// A mix with less than this is forgotten.
const COLD: f64 = 1.0 / 128.0;

/// Which mixes had how much of the work, and what was made of them. The model thread owns it.
pub struct Materialised {
    /// Bytes of all instances together, at most; with 0 there are none, ever.
    limit: usize,
    mixes: Vec<Entry>,
    step: u64,
    jobs: Sender<MaterialiseJob>,
    made: Receiver<(MaterialiseJob, Option<Arc<dyn Denoiser>>)>,
}

struct Entry {
    job: MaterialiseJob,
    /// Of the rows of recent steps.
    share: f64,
    /// The last step it took part in.
    used: u64,
    standing: Standing,
}

enum Standing {
    Retrieved,
    /// Bytes that it will take, as far as is known.
    Making(usize),
    Made(Arc<Single>),
    /// It failed once.
    Never,
}

/// An instance of one mix.
pub struct Single {
    pub denoiser: Arc<dyn Denoiser>,
    bytes: usize,
    failed: AtomicBool,
}

impl Single {
    /// It is not to be used again.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// What an instance is made of. It leases nothing.
#[derive(Clone)]
struct MaterialiseJob {
    generation: Weak<Generation>,
    mix: Mix,
}

impl MaterialiseJob {
    fn is_of(&self, generation: &Arc<Generation>, mix: &Mix) -> bool {
        std::ptr::eq(self.generation.as_ptr(), Arc::as_ptr(generation)) && self.mix == *mix
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.standing {
            Standing::Making(bytes) => *bytes,
            Standing::Made(single) => single.bytes,
            Standing::Retrieved | Standing::Never => 0,
        }
    }
}

impl Materialised {
    /// Starts a thread that makes instances, alone, so that a step is held up as little as can be. It ends with this.
    pub fn start(limit: usize) -> std::io::Result<Self> {
        let ((jobs, wanted), (done, made)) = (channel::<MaterialiseJob>(), channel());
        if limit > 0 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
            let pool = pool.build().map_err(std::io::Error::other)?;
            let make = move || {
                while let Ok(job) = wanted.recv() {
                    let made = make(&job);
                    if done.send((job, made)).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("choir-materialise".into());
            thread.spawn(move || pool.install(make))?;
        }
        Ok(Materialised {
            limit,
            mixes: Vec::new(),
            step: 0,
            jobs,
            made,
        })
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.mixes.iter().map(Entry::bytes).sum()
    }

    /// Takes what was made, and frees what belongs to generations that nobody leases any more.
    pub fn sweep(&mut self) {
        while let Ok((job, made)) = self.made.try_recv() {
            let same = |entry: &&mut Entry| {
                Weak::ptr_eq(&entry.job.generation, &job.generation) && entry.job.mix == job.mix
            };
            if let Some(entry) = self.mixes.iter_mut().find(same) {
                entry.standing = made.map_or(Standing::Never, |denoiser| {
                    Standing::Made(Arc::new(Single {
                        bytes: denoiser.bytes(),
                        denoiser,
                        failed: AtomicBool::new(false),
                    }))
                });
            }
        }
        self.mixes
            .retain(|entry| entry.job.generation.strong_count() > 0);
    }

    /// For every piece of a step's work (its rows as they are charged), the instance that it is to be evaluated by; `None` where it
    /// shares its generation's.
    pub fn choose(&mut self, work: &[(&Arc<Generation>, &Mix, usize)]) -> Vec<Option<Arc<Single>>> {
        let mut chosen = vec![None; work.len()];
        let all: usize = work.iter().map(|(_, _, rows)| rows).sum();
        if self.limit == 0 || all == 0 {
            return chosen;
        }
        self.step += 1;
        self.mixes
            .iter_mut()
            .for_each(|entry| entry.share *= 1.0 - FOLLOW);
        for (generation, mix, rows) in work.iter().filter(|(_, mix, _)| !mix.0.is_empty()) {
            let at = self
                .mixes
                .iter()
                .position(|entry| entry.job.is_of(generation, mix));
            let at = at.unwrap_or_else(|| {
                let job = MaterialiseJob {
                    generation: Arc::downgrade(generation),
                    mix: (*mix).clone(),
                };
                self.mixes.push(Entry {
                    job,
                    share: 0.0,
                    used: 0,
                    standing: Standing::Retrieved,
                });
                self.mixes.len() - 1
            });
            let entry = &mut self.mixes[at];
            entry.share += FOLLOW * *rows as f64 / all as f64;
            entry.used = self.step;
        }
        self.make(work);
        self.mixes
            .retain(|entry| entry.share >= COLD || entry.bytes() > 0);
        for entry in &mut self.mixes {
            let Standing::Made(single) = &entry.standing else {
                continue;
            };
            if single.failed.load(Ordering::Relaxed) {
                entry.standing = Standing::Never;
                continue;
            }
            let is_its = |(generation, mix, _): &(&Arc<Generation>, &Mix, usize)| {
                entry.job.is_of(generation, mix)
            };
            let own = work.iter().filter(|piece| is_its(piece));
            if own.map(|(_, _, rows)| rows).sum::<usize>() as f64 >= HOT * all as f64 {
                let pieces = work
                    .iter()
                    .zip(&mut chosen)
                    .filter(|(piece, _)| is_its(piece));
                pieces.for_each(|(_, chosen)| *chosen = Some(single.clone()));
            }
        }
        chosen
    }

    /// Has an instance made of what is hot, where there is room, or is once others that are not hot have gone.
    fn make(&mut self, work: &[(&Arc<Generation>, &Mix, usize)]) {
        let is_hot = |entry: &Entry| entry.share >= HOT;
        let wanted = |entry: &Entry| is_hot(entry) && matches!(entry.standing, Standing::Retrieved);
        let Some(at) = self.mixes.iter().position(wanted) else {
            return;
        };
        let job = self.mixes[at].job.clone();
        let Some((generation, ..)) = work
            .iter()
            .find(|(generation, mix, _)| job.is_of(generation, mix))
        else {
            return;
        };
        let bytes = generation.denoiser.bytes();
        while self.bytes() + bytes > self.limit {
            let made = self.mixes.iter_mut();
            let made = made.filter(|one| matches!(one.standing, Standing::Made(_)) && !is_hot(one));
            match made.min_by_key(|one| one.used) {
                Some(oldest) => oldest.standing = Standing::Retrieved,
                None => return,
            }
        }
        self.mixes[at].standing = match self.jobs.send(job) {
            Ok(()) => Standing::Making(bytes),
            Err(_) => Standing::Never,
        };
    }
}

/// `None` where there is nothing to add to, or it fails: the log says how.
fn make(job: &MaterialiseJob) -> Option<Arc<dyn Denoiser>> {
    let generation = job.generation.upgrade()?;
    // What a panic leaves half written is dropped with it.
    match catch_unwind(AssertUnwindSafe(|| {
        generation.denoiser.materialise(&job.mix)
    })) {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a variant could not be materialised");
            None
        }
        Err(_) => {
            tracing::warn!("a variant could not be materialised: a panic");
            None
        }
    }
}

#[cfg(test)]
mod tests;
