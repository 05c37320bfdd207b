//! Paged keys and values, keys after rotary embedding. On the host f32, [page][layer][keys | values][head] and in that what
//! [`crate::ops::attend`] reads: keys with sixteen positions side by side, values position by position. On a device
//! [page][layer][key | value][token in page][hidden], in its own type.
//!
//! Keys are stored after the rotary embedding at their absolute position; attention depends on differences of
//! positions only, so a window slides by dropping pages and nothing is ever recomputed.

use super::batch::{Batch, PageId};
use super::facts::CacheShape;
use super::target::GpuTarget;
use super::workspace::Workspace;
use crate::model::error::{Error, Result};
use crate::ops::attend::{self, PositionRun};
use crate::ops::gemm::View;
use crate::ops::gpu::Buffer;
use crate::ops::panel::LANES;
use std::ops::Range;

/// The storage of every page; which sequence owns which page is the engine's business.
#[derive(Debug)]
pub struct KvCache {
    data: Vec<f32>,
    on_device: Option<Buffer>,
    layers: usize,
    heads: usize,
    head_dim: usize,
    page_tokens: usize,
    pages: usize,
    /// Memory that one evaluation leaves to the next.
    pub(super) workspace: Workspace,
}

impl KvCache {
    /// Bytes of one page for this network.
    pub fn page_bytes(shape: CacheShape, page_tokens: usize) -> usize {
        let (keys, values) = attend::sizes(page_tokens, shape.head_dim);
        shape.layers * shape.heads * (keys + values) * size_of::<f32>()
    }

    pub fn new(shape: CacheShape, page_tokens: usize, pages: usize) -> Self {
        let floats = pages * Self::page_bytes(shape, page_tokens) / size_of::<f32>();
        Self {
            data: vec![0.0; floats],
            on_device: None,
            layers: shape.layers,
            heads: shape.heads,
            head_dim: shape.head_dim,
            page_tokens,
            pages,
            workspace: Workspace::default(),
        }
    }

    /// As [`KvCache::new`], but an error where the system would not give so much memory, even if none of it were used.
    pub fn within_memory(shape: CacheShape, page_tokens: usize, pages: usize) -> Result<Self> {
        let bytes = pages.saturating_mul(Self::page_bytes(shape, page_tokens));
        let tried = Vec::<u8>::new().try_reserve_exact(bytes);
        tried.map_err(|error| Error::Memory {
            bytes,
            detail: error.to_string(),
        })?;
        Ok(Self::new(shape, page_tokens, pages))
    }

    /// Bytes of one page on a device.
    pub fn device_page_bytes(device: &GpuTarget, shape: CacheShape, page_tokens: usize) -> usize {
        shape.layers * 2 * page_tokens * shape.width() * device.dtype.size()
    }

    /// A cache on a device, where only kernels read and write it.
    pub fn device(
        device: &GpuTarget,
        shape: CacheShape,
        page_tokens: usize,
        pages: usize,
    ) -> Result<Self> {
        let bytes = pages * Self::device_page_bytes(device, shape, page_tokens);
        let buffer = Buffer::zeros(&device.gpu, bytes)?;
        Ok(Self {
            on_device: Some(buffer),
            pages,
            ..Self::new(shape, page_tokens, 0)
        })
    }

    /// Where it lies, if on a device.
    pub fn on_device(&self) -> Option<&Buffer> {
        self.on_device.as_ref()
    }

    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>() + self.on_device.as_ref().map_or(0, Buffer::bytes)
    }

    /// Refuses a batch that does not fit the cache or itself.
    pub(super) fn check(&self, batch: &Batch) -> Result<()> {
        for segment in &batch.segments {
            let needed = match (segment.clean, segment.first_position) {
                (0, 0) => 0,
                (clean, first) => (first + clean).saturating_sub(segment.pages_start),
            };
            if segment.pages.len() * self.page_tokens() < needed
                || segment.clean > segment.tokens.len()
            {
                return Err(Error::Pages {
                    pages: segment.pages.len(),
                    needed,
                });
            }
            if segment
                .pages
                .iter()
                .any(|page| page.0 as usize >= self.pages())
            {
                return Err(Error::PageOutside {
                    pages: self.pages(),
                });
            }
            if segment.rows.iter().any(|&row| row >= segment.tokens.len()) {
                return Err(Error::RowOutside {
                    tokens: segment.tokens.len(),
                });
            }
            if ![0, segment.rows.len()].contains(&segment.draws.len()) {
                return Err(Error::Draws {
                    draws: segment.draws.len(),
                    rows: segment.rows.len(),
                });
            }
        }
        Ok(())
    }

    /// Where a head's keys begin, and how many floats they and the values behind them take.
    fn place(&self, page: PageId, layer: usize, head: usize) -> (usize, usize, usize) {
        let (keys, values) = attend::sizes(self.page_tokens, self.head_dim);
        let index = (page.0 as usize * self.layers + layer) * self.heads + head;
        (index * (keys + values), keys, values)
    }

    /// The positions in these slots of a page, as one layer's head has them.
    pub fn run(
        &self,
        page: PageId,
        layer: usize,
        head: usize,
        seen: Range<usize>,
    ) -> PositionRun<'_> {
        let (start, keys, values) = self.place(page, layer, head);
        let (own, after) = self.data[start..].split_at(keys + values); // the next head's
        let (keys, values) = own.split_at(keys);
        PositionRun {
            keys,
            values,
            seen,
            after,
        }
    }

    /// Writes the keys and the values, [`count`, hidden] each, of slots of a page from `slot` on.
    pub fn write(
        &mut self,
        page: PageId,
        layer: usize,
        slot: usize,
        count: usize,
        keys: View,
        values: View,
    ) {
        let (dim, width) = (self.head_dim, self.head_dim.next_multiple_of(LANES));
        for head in 0..self.heads {
            let (start, middle, _) = self.place(page, layer, head);
            // An element's positions lie side by side, so all of them are written before the next element.
            for d in 0..dim {
                for row in 0..count {
                    let key = keys.data[row * keys.row + head * dim + d];
                    self.data[start + attend::key_at(slot + row, dim) + d * LANES] = key;
                }
            }
            for row in 0..count {
                let value = &values.data[row * values.row + head * dim..][..dim];
                self.data[start + middle + (slot + row) * width..][..dim].copy_from_slice(value);
            }
        }
    }

    /// The key and the value, [hidden] each, of one slot of a page, as they were written.
    pub fn read(&self, page: PageId, layer: usize, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let (dim, width) = (self.head_dim, self.head_dim.next_multiple_of(LANES));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for head in 0..self.heads {
            let run = self.run(page, layer, head, slot..slot + 1);
            key.extend((0..dim).map(|d| run.keys[attend::key_at(slot, dim) + d * LANES]));
            value.extend_from_slice(&run.values[slot * width..][..dim]);
        }
        (key, value)
    }

    /// Takes back the memory of logits that nobody needs any more.
    pub(super) fn recycle(&mut self, logits: Vec<f32>) {
        self.workspace.recycle(logits);
    }
}
