//! Where an evaluation's time goes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A part of an evaluation. Parts do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Checks, lists of rows, modulation tables looked up or made.
    Plan,
    Embedding,
    /// Residual gates, norms and modulation.
    Norm,
    /// Queries, keys and values: the base's matrix.
    Qkv,
    /// Rotary embedding; new keys and values written to the cache.
    Rotary,
    /// Products of queries with keys, and of their weights with values.
    Attention,
    /// What else attention does: keys and values of the batch laid out, softmax.
    Softmax,
    /// Attention's output.
    Out,
    /// The wide half of the MLP.
    Expand,
    Gelu,
    /// Its narrow half.
    Contract,
    /// All that banks add to the layers' and the head's products.
    Banks,
    Head,
    Bias,
    /// Tokens drawn from logits, and what samplers do with them.
    Drawing,
}

impl Part {
    pub const ALL: [Part; 15] = [
        Part::Plan,
        Part::Embedding,
        Part::Norm,
        Part::Qkv,
        Part::Rotary,
        Part::Attention,
        Part::Softmax,
        Part::Out,
        Part::Expand,
        Part::Gelu,
        Part::Contract,
        Part::Banks,
        Part::Head,
        Part::Bias,
        Part::Drawing,
    ];
}

/// Watches an evaluation go by: `()` does not look, and costs nothing.
pub trait Meter {
    /// Does `work`, which is this part of the evaluation and takes so many floating-point operations of matrix products.
    fn part<T>(&mut self, part: Part, flops: usize, work: impl FnOnce() -> T) -> T;

    /// Does `work`, whose tasks tell what they spend on products, which are one part, and on all else, which is another.
    fn split<T>(&mut self, products: Part, rest: Part, work: impl FnOnce(&Split) -> T) -> T;
}

impl Meter for () {
    #[inline(always)]
    fn part<T>(&mut self, _part: Part, _flops: usize, work: impl FnOnce() -> T) -> T {
        work()
    }

    #[inline(always)]
    fn split<T>(&mut self, _products: Part, _rest: Part, work: impl FnOnce(&Split) -> T) -> T {
        work(&Split::default())
    }
}

/// What tasks that run side by side spend on products and on all else; of the default nobody wants to know.
#[derive(Debug, Default)]
pub struct Split {
    wanted: bool,
    /// Nanoseconds of products and of the rest, over all tasks.
    spent: [AtomicU64; 2],
    flops: AtomicUsize,
}

impl Split {
    /// A task begins.
    pub fn stopwatch(&self) -> Stopwatch<'_> {
        Stopwatch {
            split: self,
            since: self.wanted.then(Instant::now),
            spent: [0; 2],
            flops: 0,
        }
    }
}

/// One task's time, handed in when it ends.
#[derive(Debug)]
pub struct Stopwatch<'a> {
    split: &'a Split,
    since: Option<Instant>,
    spent: [u64; 2],
    flops: usize,
}

impl Stopwatch<'_> {
    /// A piece of the task is done, which had so many floating-point operations of matrix products.
    pub fn lap(&mut self, flops: usize) {
        if let Some(since) = &mut self.since {
            let now = Instant::now();
            let spent = now.duration_since(*since).as_nanos() as u64;
            self.spent[usize::from(flops == 0)] += spent;
            self.flops += flops;
            *since = now;
        }
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        self.lap(0);
        if self.since.is_some() {
            for (all, spent) in self.split.spent.iter().zip(self.spent) {
                all.fetch_add(spent, Ordering::Relaxed);
            }
            self.split.flops.fetch_add(self.flops, Ordering::Relaxed);
        }
    }
}

/// Time and floating-point operations by part, added up over evaluations.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    spent: [(Duration, usize); Part::ALL.len()],
}

impl Profile {
    /// Time of a part, and its products' floating-point operations.
    pub fn of(&self, part: Part) -> (Duration, usize) {
        self.spent[part as usize]
    }

    fn add(&mut self, part: Part, time: Duration, flops: usize) {
        let (times, sum) = &mut self.spent[part as usize];
        *times += time;
        *sum += flops;
    }
}

impl Meter for Profile {
    fn part<T>(&mut self, part: Part, flops: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(part, start.elapsed(), flops);
        done
    }

    fn split<T>(&mut self, products: Part, rest: Part, work: impl FnOnce(&Split) -> T) -> T {
        let split = Split {
            wanted: true,
            ..Split::default()
        };
        let start = Instant::now();
        let done = work(&split);
        let time = start.elapsed();
        // Time for which a thread had nothing to do belongs to both, as it does to any product.
        let [of_products, of_rest] = split.spent.map(|spent| spent.into_inner() as f64);
        let share = time.mul_f64(of_products / (of_products + of_rest).max(1.0));
        self.add(products, share, split.flops.into_inner());
        self.add(rest, time.saturating_sub(share), 0);
        done
    }
}
