//! The second product of a superposed layer (`kernels/bank_gemm.cu`, `kernels/rotate.cu`) and the embedding's rows.

use super::launch::{THREADS, launch, launch_of};
use super::tiles::Tile;
use super::{Dtype, Machine, Result, plain};

/// What one variant has in one row of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PartFacts {
    pub row: u32,
    pub variant: u32,
    pub weight: f32,
    /// Index into the matrix's banks.
    pub bank: u32,
}

/// Parts of one bank that go through it together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub bank: u32,
    pub first: u32,
    /// 0 for a group that pads the launch.
    pub count: u32,
    pub unused: u32,
}

/// Inputs to a super-block.
const SUPER: usize = 256;
/// Sizes of groups that there are kernels for.
pub const TIERS: [usize; 4] = [8, 16, 32, 64];
/// Size of groups from which on parts are rotated before they go through a bank.
const ROTATED: usize = 32;

/// y += the products of a launch's groups with their banks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BankGemm {
    /// [rows, input].
    pub x: u64,
    /// [rows, pitch] f32.
    pub y: u64,
    /// Addresses of tiles.
    pub banks: u64,
    /// [`PartFacts`], no two of one row.
    pub parts: u64,
    /// [`Group`]s.
    pub groups: u64,
    /// [variants][8] u32.
    pub keys: u64,
    /// [variants][out] bf16.
    pub outputs: u64,
    /// [`Split::partial_bytes`] bytes.
    pub partial: u64,
    /// [`Split::counters`] u32, all 0.
    pub counters: u64,
    pub out: u32,
    /// From one row of y to the next.
    pub pitch: u32,
    pub input: u32,
    pub splits: u32,
    pub supers: u32,
    pub unused: u32,
}

/// What a machine has for blocks.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub processors: u32,
    /// Bytes of shared memory to a block.
    pub shared: u32,
}

impl Room {
    pub fn of(machine: &dyn Machine) -> Self {
        Self {
            processors: machine.processors(),
            shared: machine.shared(),
        }
    }
}

/// How a product with banks is shared out among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Parts to a group.
    tier: usize,
    groups: usize,
    /// Warps beside each other: 32 outputs each.
    outs: usize,
    strips: usize,
    splits: usize,
    /// Super-blocks to a split.
    supers: usize,
}

/// Bytes of shared memory: several super-blocks of x and of the bank, and the signs of a share where they are needed.
fn shared(tier: usize, outs: usize, supers: usize) -> usize {
    let stages = if tier > 32 { 3 } else { 4 };
    let signs = if tier < ROTATED {
        tier * (supers / 2 + 1) * 64
    } else {
        0
    };
    let tiles = 2 * outs * size_of::<Tile>();
    stages * (tier * (SUPER + 8) * 2 + tiles) + signs
}

impl Split {
    /// For `groups` groups of at most `tier` parts with banks of [out, input]: as many blocks as run side by side, as nearly as the
    /// sizes allow.
    pub fn banks(room: Room, (tier, groups): (usize, usize), (out, input): (usize, usize)) -> Self {
        let processors = room.processors as usize;
        let all = input.div_ceil(SUPER).max(1);
        let outs = if out * groups >= 64 * processors { 4 } else { 2 };
        let strips = out.div_ceil(32 * outs);
        let slots = if tier >= ROTATED { processors } else { 2 * processors };
        let fits = |supers: usize| supers == 1 || shared(tier, outs, supers) + 2048 <= room.shared as usize;
        // In tenths of a microsecond, as measured on an H200: a super-block, a block's begin and end, and adding up shares.
        let each = outs / 2 * (5 + tier / 8);
        let cost = |splits: usize| {
            let waves = (strips * groups * splits).div_ceil(slots);
            waves * (each * all.div_ceil(splits) + 60) + if splits > 1 { 15 + tier / 4 } else { 0 }
        };
        let possible = (1..=all.min(16)).filter(|&splits| fits(all.div_ceil(splits)));
        let splits = possible.min_by_key(|&splits| cost(splits)).unwrap_or(all);
        let supers = all.div_ceil(splits);
        Self {
            tier,
            groups,
            outs,
            strips,
            splits: all.div_ceil(supers),
            supers,
        }
    }

    /// Bytes of partial sums.
    pub fn partial_bytes(&self) -> usize {
        match self.splits {
            1 => 0,
            splits => self.groups * self.strips * splits * self.tier * 32 * self.outs * size_of::<f32>(),
        }
    }

    /// Counters of shares that are done.
    pub fn counters(&self) -> usize {
        self.groups * self.strips
    }

    /// Bytes of `parts` parts with their signs, which a launch needs where groups are large.
    pub fn rotated_bytes(&self, parts: usize, input: usize, dtype: Dtype) -> usize {
        if self.tier < ROTATED {
            return 0;
        }
        parts * input * dtype.size()
    }
}

impl BankGemm {
    /// `dtype` is x's; `parts` says how many there are; `rotated` is the address of [`Split::rotated_bytes`] bytes.
    pub fn launch(
        &self,
        machine: &dyn Machine,
        dtype: Dtype,
        split: Split,
        (parts, rotated): (usize, u64),
    ) -> Result<()> {
        let mut args = BankGemm {
            splits: split.splits as u32,
            supers: split.supers as u32,
            ..*self
        };
        if split.tier >= ROTATED {
            args.x = rotated;
            RotateIn {
                x: self.x,
                out: rotated,
                parts: self.parts,
                keys: self.keys,
                input: self.input,
                unused: 0,
            }
            .launch(machine, dtype, parts)?;
        }
        let grid = [split.strips, split.splits, split.groups].map(|size| size as u32);
        let bytes = shared(split.tier, split.outs, split.supers);
        let name = format!("bank_gemm_{}_{}_{}", dtype.suffix(), split.tier, split.outs);
        launch(machine, &name, grid, (THREADS, bytes as u32), &args)
    }
}

/// Rows of x, with the signs of the parts' variants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateIn {
    /// [rows, input].
    pub x: u64,
    /// [parts, input].
    pub out: u64,
    pub parts: u64,
    pub keys: u64,
    pub input: u32,
    pub unused: u32,
}

impl RotateIn {
    pub fn launch(&self, machine: &dyn Machine, dtype: Dtype, parts: usize) -> Result<()> {
        let grid = [self.input.div_ceil(4 * 512), parts as u32, 1];
        launch_of(machine, ("rotate_in", dtype), grid, (128, 0), self)
    }
}

/// y += weight · c a l ⊙ products, by part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateOut {
    /// [parts, out] f32.
    pub products: u64,
    /// [rows, pitch] f32.
    pub y: u64,
    /// No two of one row.
    pub parts: u64,
    pub outputs: u64,
    pub out: u32,
    pub pitch: u32,
}

impl RotateOut {
    pub fn launch(&self, machine: &dyn Machine, parts: usize) -> Result<()> {
        let grid = [self.out.div_ceil(THREADS), parts as u32, 1];
        launch(machine, "rotate_out", grid, (THREADS, 0), self)
    }
}

/// Rows of the embedding, with what the rows' variants add.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GatherEmbedding {
    /// [rows, width] f32.
    pub x: u64,
    /// [rows] u32, NONE for a row that pads the batch.
    pub tokens: u64,
    /// [vocab, width].
    pub base: u64,
    /// Addresses: tiles, or [vocab, width].
    pub banks: u64,
    /// By row.
    pub parts: u64,
    /// [rows + 1] u32.
    pub first_part: u64,
    pub keys: u64,
    /// [variants][vocab] bf16.
    pub outputs: u64,
    pub vocab: u32,
    pub width: u32,
    /// Whether banks are tiles.
    pub tiles: u32,
    pub unused: u32,
}

impl GatherEmbedding {
    pub fn launch(&self, machine: &dyn Machine, dtype: Dtype, rows: usize) -> Result<()> {
        let grid = [self.width.div_ceil(512), rows as u32, 1];
        launch_of(machine, ("gather_embedding", dtype), grid, (THREADS, 0), self)
    }
}

plain!(PartFacts, Group, BankGemm, RotateIn, RotateOut, GatherEmbedding);
