//! Tokens of rows of logits, drawn on the device (`kernels/categorical.cu`, `kernels/categorical_exact.cu`).

use super::launch::launch;
use super::pointwise::NONE;
use super::{Address, GpuDevice, Result, plain};
use crate::categorical::{Certainty, Crossing, Draw, DrawKind, Drawn};

/// A [`Draw`] as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DrawFacts {
    key: [u32; 8],
    kind: u32,
    step: u32,
    position: u32,
    /// 0 for a row that pads the batch.
    tokens: u32,
    top_k: u32,
    forbidden: u32,
    present: u32,
    keeps_crossing: u32,
    temperature: f32,
    nucleus_p: f32,
    alpha_t: f64,
    alpha_s: f64,
    kappa: f64,
}

/// A key as the words that kernels take.
pub fn key_words(key: &crate::rng::Key) -> [u32; 8] {
    let (words, _) = key.0.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

impl DrawFacts {
    /// `vocab`: how long rows of logits are.
    pub fn of(draw: &Draw, vocab: usize) -> Self {
        let filter = &draw.filter;
        let mut facts = Self {
            key: key_words(&draw.noise.key()),
            step: draw.step,
            position: draw.position,
            tokens: draw.tokens.min(vocab) as u32,
            top_k: filter.top_k.map_or(0, |k| k.min(u32::MAX as usize) as u32),
            forbidden: filter.forbidden.unwrap_or(NONE),
            keeps_crossing: (filter.crossing == Crossing::Kept).into(),
            temperature: filter.temperature,
            nucleus_p: filter.nucleus_p,
            ..Self::default()
        };
        match draw.kind {
            DrawKind::Predicted => {}
            DrawKind::Best => facts.kind = 1,
            DrawKind::Sure(Certainty::Best) => facts.kind = 2,
            DrawKind::Sure(Certainty::Drawn) => facts.kind = 4,
            DrawKind::Sure(Certainty::Filtered) => facts.kind = 5,
            DrawKind::Mixture {
                present,
                alpha_t,
                alpha_s,
                kappa,
            } => {
                facts.kind = 3;
                facts.present = present;
                (facts.alpha_t, facts.alpha_s, facts.kappa) = (alpha_t, alpha_s, kappa);
            }
        }
        facts
    }
}

/// What the kernel gives back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DrawnFacts {
    certainty: f64,
    token: u32,
    /// Whether one look at the row was not enough: 0 or 1.
    pub again: u32,
}

impl From<DrawnFacts> for Drawn {
    fn from(facts: DrawnFacts) -> Self {
        Drawn {
            token: facts.token,
            certainty: facts.certainty,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Categorical {
    /// [rows, pitch] f32.
    pub logits: Address,
    /// Slots of biases, which are added to the logits.
    pub biases: Address,
    /// [rows of the batch] u32: the slot of a row's biases.
    pub mix: Address,
    /// [rows] u32: the row of the batch that a row of logits belongs to, or NONE.
    pub rows: Address,
    /// [`DrawFacts`].
    pub draws: Address,
    /// [`DrawnFacts`].
    pub drawn: Address,
    /// [rows] of [`LOOK`] bytes: what one look leaves for the next.
    pub looks: Address,
    pub vocab: u32,
    /// From one row of logits to the next.
    pub pitch: u32,
    pub bias_stride: u32,
    /// Offset in a slot.
    pub bias: u32,
}

/// Bytes of what one look leaves for the next.
pub const LOOK: usize = 24;

impl Categorical {
    pub fn launch(&self, gpu: &dyn GpuDevice, rows: usize) -> Result<()> {
        let sums = 8 * self.vocab.div_ceil(256); // bytes of what is kept of every 256 tokens
        // Many rows share the processors, which then have more under way in more and smaller blocks.
        let many = rows >= 2 * gpu.processors() as usize;
        let (first, second) = if many { (128, 256) } else { (1024, 512) };
        let grid = [rows as u32, 1, 1];
        launch(gpu, "categorical", grid, (first, sums), self)?;
        launch(gpu, "categorical_exact", grid, (second, sums), self)
    }
}

plain!(DrawFacts, DrawnFacts, Categorical);
