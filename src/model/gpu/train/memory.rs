//! Memory of evaluations, and patterns of attention on the device.

use crate::model::error::Result;
use crate::ops::Pattern;
use crate::ops::gpu::train::{CHUNK, KeyChunk, QueryChunk};
use crate::ops::gpu::{Address, Buffer, GpuDevice};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that memory grows by, at least.
const GROWTH: usize = 64 << 20;

/// Memory that is taken piece by piece and given back all at once.
pub struct Memory {
    gpu: Arc<dyn GpuDevice>,
    pieces: Vec<Buffer>,
    /// Pieces before this one are taken.
    piece: usize,
    /// Bytes taken of it.
    used: usize,
}

impl Memory {
    pub fn new(gpu: &Arc<dyn GpuDevice>) -> Self {
        Self {
            gpu: gpu.clone(),
            pieces: Vec::new(),
            piece: 0,
            used: 0,
        }
    }

    pub fn take(&mut self, bytes: usize) -> Result<Address> {
        let bytes = bytes.next_multiple_of(256);
        while let Some(piece) = self.pieces.get(self.piece) {
            if self.used + bytes <= piece.bytes() {
                let at = piece.address() + self.used;
                self.used += bytes;
                return Ok(at);
            }
            (self.piece, self.used) = (self.piece + 1, 0);
        }
        let piece = Buffer::new(&self.gpu, bytes.max(GROWTH))?;
        let at = piece.address();
        self.pieces.push(piece);
        self.used = bytes;
        Ok(at)
    }

    /// Everything may be taken again.
    pub fn give_back(&mut self) {
        (self.piece, self.used) = (0, 0);
    }
}

/// A pattern of attention on the device.
pub struct Seen {
    /// Rows of a sequence, and those whose output is wanted.
    pub rows: usize,
    pub queries: usize,
    pub chunks: (Buffer, usize),
    pub key_chunks: (Buffer, usize),
    pub seeing: Buffer,
    pub cosines: Buffer,
    pub sines: Buffer,
}

impl Seen {
    pub fn new(gpu: &Arc<dyn GpuDevice>, pattern: &Pattern) -> Result<Self> {
        let ends =
            |ranges: [&Range<usize>; 2]| ranges.map(|range| [range.start as u32, range.end as u32]);
        let chunks = pattern
            .query_chunks(CHUNK)
            .into_iter()
            .map(|(queries, keys)| {
                let [near, far] = ends([&keys[0], &keys[1]]);
                QueryChunk {
                    first: queries.start as u32,
                    count: queries.len() as u32,
                    begin: [near[0], far[0]],
                    end: [near[1], far[1]],
                    unused: [0; 2],
                }
            });
        let (chunks, mut seeing, mut key_chunks) = (Vec::from_iter(chunks), Vec::new(), Vec::new());
        for (keys, queries) in pattern.key_chunks(CHUNK) {
            let begin = seeing.len() as u32;
            seeing.extend(queries.into_iter().flatten().map(|row| row as u32));
            key_chunks.push(KeyChunk {
                first: keys.start as u32,
                count: keys.len() as u32,
                begin,
                end: seeing.len() as u32,
            });
        }
        let (cosines, sines) = pattern.rotary().values();
        Ok(Self {
            rows: pattern.rows(),
            queries: pattern.queries(),
            chunks: (Buffer::from(gpu, &chunks)?, chunks.len()),
            key_chunks: (Buffer::from(gpu, &key_chunks)?, key_chunks.len()),
            seeing: Buffer::from(gpu, &seeing)?,
            cosines: Buffer::from(gpu, cosines)?,
            sines: Buffer::from(gpu, sines)?,
        })
    }
}
