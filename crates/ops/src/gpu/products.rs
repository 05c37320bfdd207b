//! The second product of a superposed layer (`kernels/bank_gemm.cu`, `kernels/signs.cu`) and the embedding's rows.

use super::launch::{THREADS, launch, launch_of};
use super::tiles::Tile;
use super::{Address, Dtype, GpuDevice, Result, plain};

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
pub struct ProductGroup {
    pub bank: u32,
    pub first: u32,
    /// 0 for a group that pads the launch, after all others.
    pub count: u32,
    /// How many do not pad the launch.
    pub groups: u32,
}

/// Inputs to a super-block.
const SUPER: usize = 256;
/// Sizes of groups that there are kernels for.
pub const TIERS: [usize; 4] = [8, 16, 32, 64];

/// y += the products of a launch's groups with their banks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BankGemm {
    /// [rows, input].
    pub x: Address,
    /// [rows, pitch] f32.
    pub y: Address,
    /// Addresses of tiles.
    pub banks: Address,
    /// [`PartFacts`], no two of one row.
    pub parts: Address,
    /// [`ProductGroup`]s.
    pub groups: Address,
    /// [variants][8] u32.
    pub keys: Address,
    /// [variants][out] bf16.
    pub outputs: Address,
    /// [`Split::partial_bytes`] bytes.
    pub partial: Address,
    /// [`Split::counters`] u32, all 0.
    pub counters: Address,
    pub out: u32,
    /// From one row of y to the next.
    pub pitch: u32,
    pub input: u32,
    /// Whether the parts' rows of y are written rather than added to.
    pub writes: u32,
    /// What x is made of, which `launch` knows: see `kernels/bank_gemm.cu`.
    pub kind: u32,
    pub unused: u32,
}

/// How a product with banks is shared out among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Parts to a group.
    rows: usize,
    groups: usize,
    /// Times 64 outputs to a block.
    outs: usize,
    /// Super-blocks in shared memory.
    stages: usize,
    strips: usize,
    supers: usize,
    blocks: usize,
}

impl Split {
    /// For `groups` groups of at most `rows` parts with banks of [out, input]: as many blocks as run side by side, two to a
    /// processor, or as there are units of work.
    pub fn banks(
        processors: u32,
        (rows, groups): (usize, usize),
        (out, input): (usize, usize),
    ) -> Self {
        // As the kernels have them; what was fastest on an H200.
        let (outs, stages) = match rows {
            8 => (2, 4),
            16 => (2, 3),
            32 => (2, 2),
            _ => (1, 2),
        };
        let (strips, supers) = (out.div_ceil(64 * outs), input.div_ceil(SUPER).max(1));
        Self {
            rows,
            groups,
            outs,
            stages,
            strips,
            supers,
            blocks: (groups * strips * supers).min(2 * processors as usize),
        }
    }

    /// Bytes of shared memory.
    fn shared(&self) -> usize {
        let stage = self.rows * 2 * SUPER + 4 * self.outs * size_of::<Tile>();
        // Arrivals, rows with their signs.
        self.stages * (stage + 16 + self.rows * 36) + self.rows * size_of::<PartFacts>() + 16
    }

    /// Bytes of partial sums.
    pub fn partial_bytes(&self) -> usize {
        self.blocks * 2 * self.outs * self.rows * 64 * size_of::<f32>()
    }

    /// Counters of shares that are done.
    pub fn counters(&self) -> usize {
        self.groups * self.strips
    }

    /// Whether all that a block works on is in its shared memory from the start: it makes the images of few rows itself then.
    fn is_small(&self) -> bool {
        self.rows < 64 && self.groups * self.strips * self.supers <= self.stages * self.blocks
    }

    /// Bytes of the images of the parts' rows.
    pub fn image_bytes(&self) -> usize {
        if self.is_small() {
            return 0;
        }
        self.groups * self.supers * self.rows * 2 * SUPER
    }
}

impl BankGemm {
    /// `dtype` is x's; `images` is the address of [`Split::image_bytes`] bytes.
    pub fn launch(
        &self,
        gpu: &dyn GpuDevice,
        dtype: Dtype,
        split: Split,
        images: Address,
    ) -> Result<()> {
        let mut args = *self;
        if split.is_small() {
            args.kind = match dtype {
                Dtype::F32 => 1,
                Dtype::Bf16 => 2,
            };
        } else {
            args.x = images;
            SignRows {
                x: self.x,
                out: images,
                parts: self.parts,
                groups: self.groups,
                keys: self.keys,
                input: self.input,
                rows: split.rows as u32,
            }
            .launch(gpu, dtype, split.groups)?;
        }
        let name = format!("bank_gemm_{}", split.rows);
        let shape = ((128 * split.outs + 32) as u32, split.shared() as u32);
        launch(gpu, &name, [split.blocks as u32, 1, 1], shape, &args)
    }
}

/// Rows of groups of parts, with their variants' signs, as images (`kernels/images.cuh`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SignRows {
    x: Address,
    out: Address,
    parts: Address,
    groups: Address,
    keys: Address,
    input: u32,
    /// Of an image.
    rows: u32,
}

impl SignRows {
    fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, groups: usize) -> Result<()> {
        let grid = [groups as u32 * self.rows, self.input.div_ceil(4 * 512), 1];
        launch_of(gpu, ("sign_rows", dtype), grid, (128, 0), self)
    }
}

/// Rows of x, with the signs of the parts' variants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SignIn {
    /// [rows, input].
    pub x: Address,
    /// [parts, input].
    pub out: Address,
    pub parts: Address,
    pub keys: Address,
    pub input: u32,
    pub unused: u32,
}

impl SignIn {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, parts: usize) -> Result<()> {
        let grid = [parts as u32, self.input.div_ceil(4 * 512), 1];
        launch_of(gpu, ("sign_in", dtype), grid, (128, 0), self)
    }
}

/// y += weight · c a l ⊙ products, by part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SignOut {
    /// [parts, out] f32.
    pub products: Address,
    /// [rows, pitch] f32.
    pub y: Address,
    /// No two of one row.
    pub parts: Address,
    pub outputs: Address,
    pub out: u32,
    pub pitch: u32,
}

impl SignOut {
    pub fn launch(&self, gpu: &dyn GpuDevice, parts: usize) -> Result<()> {
        let grid = [parts as u32, self.out.div_ceil(THREADS), 1];
        launch(gpu, "sign_out", grid, (THREADS, 0), self)
    }
}

/// The bit that tells a part's bank to be in tiles where rows are looked up in it.
pub const TILES: u32 = 1 << 31;

/// Rows of the embedding, with what the rows' variants add.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GatherEmbedding {
    /// [rows, width] f32.
    pub x: Address,
    /// [rows] u32, NONE for a row that pads the batch.
    pub tokens: Address,
    /// [vocab, width], or its quants.
    pub base: Address,
    /// Addresses: tiles, or [vocab, width].
    pub banks: Address,
    /// By row; those of banks in tiles have [`TILES`] in their bank.
    pub parts: Address,
    /// [rows + 1] u32.
    pub first_part: Address,
    pub keys: Address,
    /// [variants][vocab] bf16.
    pub outputs: Address,
    pub vocab: u32,
    pub width: u32,
    /// Of quants.
    pub levels: Address,
    /// Of a quant, 8 or 4; 0 where there are none.
    pub bits: u32,
    pub unused: u32,
}

impl GatherEmbedding {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, rows: usize) -> Result<()> {
        let grid = [rows as u32, self.width.div_ceil(512), 1];
        launch_of(gpu, ("gather_embedding", dtype), grid, (THREADS, 0), self)
    }
}

plain!(
    PartFacts,
    ProductGroup,
    BankGemm,
    SignRows,
    SignIn,
    SignOut,
    GatherEmbedding
);
