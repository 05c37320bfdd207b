//! A text that takes so many evaluations for every block, and says nothing.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use choir::engine::Generation;
use choir::engine::prefix::Owner;
use choir::engine::sequence::{Demand, Job, Reader};
use choir::model::Mix;

use super::{CHUNK, WINDOW};

/// What a request is to its client and to the simulation.
pub struct Client {
    pub reader: Cell<Reader>,
    pub variant: String,
    pub name: Arc<str>,
    pub started: Cell<bool>,
}

/// A text that takes so many evaluations for every block.
pub struct Sim {
    pub client: Rc<Client>,
    pub generation: Arc<Generation>,
    pub mix: Mix,
    pub text: Vec<u32>,
    pub written: usize,
    /// Tokens to a block.
    pub block: usize,
    pub blocks: usize,
    pub steps: u32,
    pub step: u32,
    pub evaluations: u64,
}

impl Sim {
    /// One that is only asked what it has to do.
    pub fn of(block: usize, evaluations: u32) -> Self {
        let client = Client {
            reader: Cell::new(Reader::Ready),
            variant: String::new(),
            name: "".into(),
            started: Cell::new(false),
        };
        Sim {
            client: Rc::new(client),
            generation: super::generation(1, None).into(),
            mix: Mix::base(),
            text: Vec::new(),
            written: 0,
            block,
            blocks: 1,
            steps: evaluations,
            step: 0,
            evaluations: 0,
        }
    }

    pub fn clean(&self) -> usize {
        self.text.len() / self.block * self.block
    }

    /// Tokens of the next evaluation: clean ones, and the block behind them where it is its turn.
    pub fn next(&self) -> (usize, usize) {
        match self.clean() - self.written {
            clean if clean > CHUNK => (CHUNK / self.block * self.block, 0),
            clean => (clean, self.block),
        }
    }

    /// The next evaluation is made. True at the end.
    pub fn evaluated(&mut self) -> bool {
        let (clean, block) = self.next();
        self.written += clean;
        self.evaluations += 1;
        if block == 0 {
            return false;
        }
        self.step += 1;
        if self.step == self.steps {
            self.step = 0;
            let to = self.clean() + self.block;
            let made = |at: usize| {
                (at as u32)
                    .wrapping_mul(31)
                    .wrapping_add(self.mix.0.len() as u32)
            };
            self.text
                .extend((self.text.len()..to).map(made).collect::<Vec<_>>());
            self.blocks -= 1;
        }
        self.blocks == 0
    }
}

impl Job for Sim {
    fn reader(&self) -> Reader {
        self.client.reader.get()
    }

    fn demand(&mut self) -> Demand {
        let (clean, block) = self.next();
        Demand {
            tokens: clean + block,
            elastic: false,
            first_block: self.evaluations < self.steps.into(),
        }
    }

    fn reach(&mut self, _tokens: usize) -> Range<usize> {
        let (clean, _) = self.next();
        (self.written + self.block).saturating_sub(WINDOW)..self.written + clean
    }

    fn evaluations_left(&self, _usual: Option<f64>) -> u64 {
        self.blocks as u64 * u64::from(self.steps)
    }

    fn positions_to_start(&self) -> usize {
        self.clean() + self.block
    }

    fn text(&self) -> Option<(Owner<'_>, &[u32], usize)> {
        let owner = Owner {
            generation: &self.generation,
            mix: &self.mix,
            block: self.block,
            phase: 0,
        };
        Some((owner, &self.text[..self.clean()], self.written))
    }

    fn start(&mut self, _id: u64, cached: usize) {
        assert!(cached <= self.clean() && cached.is_multiple_of(self.block));
        self.written = cached;
        self.client.started.set(true);
    }

    fn stop(&mut self) {
        self.written = 0;
    }
}
