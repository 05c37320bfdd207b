//! Paged keys and values, keys after rotary embedding. On the host f32 or bf16, [page][layer][keys | values][head] and in that what
//! [`crate::ops::attend`] reads: keys with sixteen positions side by side, values position by position. On a device
//! [page][layer][key | value][token in page][hidden], in its own type.
//!
//! Keys are stored after the rotary embedding at their absolute position; attention depends on differences of
//! positions only, so a window slides by dropping pages and nothing is ever recomputed.

use super::batch::{Batch, PageId};
use super::facts::CacheShape;
use super::target::GpuTarget;
use super::workspace::{ForwardWorkspace, HeadSpace, Spares};
use crate::model::error::{Error, Result};
use crate::ops::attend::{self, PositionRun};
use crate::ops::gemm::MatrixView;
use crate::ops::gpu::{Buffer, Dtype};
use crate::ops::panel::{LANES, Stored};
use half::bf16;
use std::ops::Range;

/// What a cache's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// Positions to a page.
    pub tokens: usize,
    /// What keys and values are on the host; on a device they are of the device's type. Where they are bf16, rows that are evaluated
    /// together see each other's rounded, too, so that a text does not depend on how it is cut into evaluations.
    pub dtype: Dtype,
}

/// In f32.
impl From<usize> for PageLayout {
    fn from(tokens: usize) -> Self {
        PageLayout {
            tokens,
            dtype: Dtype::F32,
        }
    }
}

/// The storage of every page; which sequence owns which page is the engine's business.
#[derive(Debug)]
pub struct KvCache {
    pub(super) stored: StoredPages,
    on_device: Option<Buffer>,
    page_tokens: usize,
    pages: usize,
    /// Memory that one evaluation leaves to the next.
    pub(super) workspace: ForwardWorkspace,
}

/// One layer's keys and values, [count, hidden] each, for the slots of a page from `slot` on.
#[derive(Clone, Copy)]
pub struct CacheRows<'a> {
    pub page: PageId,
    pub layer: usize,
    pub slot: usize,
    pub count: usize,
    pub keys: MatrixView<'a>,
    pub values: MatrixView<'a>,
}

/// Pages on the host, by type.
#[derive(Debug)]
pub(super) enum StoredPages {
    F32(HostPages<f32>),
    Bf16(HostPages<bf16>),
}

impl KvCache {
    /// Bytes of one page for this network.
    pub fn page_bytes(shape: CacheShape, page: PageLayout) -> usize {
        HostPages::<f32>::page(shape, page.tokens) * page.dtype.size()
    }

    pub fn new(shape: CacheShape, page: impl Into<PageLayout>, pages: usize) -> Self {
        let page: PageLayout = page.into();
        Self {
            stored: match page.dtype {
                Dtype::F32 => StoredPages::F32(HostPages::new(shape, page.tokens, pages)),
                Dtype::Bf16 => StoredPages::Bf16(HostPages::new(shape, page.tokens, pages)),
            },
            on_device: None,
            page_tokens: page.tokens,
            pages,
            workspace: ForwardWorkspace::default(),
        }
    }

    /// As [`KvCache::new`], but an error where the system would not give so much memory, even if none of it were used.
    pub fn within_memory(shape: CacheShape, page: PageLayout, pages: usize) -> Result<Self> {
        let bytes = pages.saturating_mul(Self::page_bytes(shape, page));
        let tried = Vec::<u8>::new().try_reserve_exact(bytes);
        tried.map_err(|error| Error::Memory {
            bytes,
            detail: error.to_string(),
        })?;
        Ok(Self::new(shape, page, pages))
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
        let on_host = match &self.stored {
            StoredPages::F32(pages) => size_of_val(&pages.data[..]),
            StoredPages::Bf16(pages) => size_of_val(&pages.data[..]),
        };
        on_host + self.on_device.as_ref().map_or(0, Buffer::bytes)
    }

    pub fn write(&mut self, rows: CacheRows) {
        match &mut self.stored {
            StoredPages::F32(pages) => pages.write(rows),
            StoredPages::Bf16(pages) => pages.write(rows),
        }
    }

    /// The key and the value, [hidden] each, of one slot of a page, as they are stored.
    pub fn read(&self, page: PageId, layer: usize, slot: usize) -> (Vec<f32>, Vec<f32>) {
        match &self.stored {
            StoredPages::F32(pages) => pages.read(page, layer, slot),
            StoredPages::Bf16(pages) => pages.read(page, layer, slot),
        }
    }

    /// Takes back the memory of logits that nobody needs any more.
    pub(super) fn recycle(&mut self, logits: Vec<f32>) {
        self.workspace.recycle(logits);
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
}

/// Pages on the host, in one type.
#[derive(Debug)]
pub(super) struct HostPages<T> {
    data: Vec<T>,
    shape: CacheShape,
    pub page_tokens: usize,
    /// What attention over them needs beside them.
    pub heads: Spares<HeadSpace<T>>,
}

impl<T: Stored> HostPages<T> {
    /// Numbers in one page.
    fn page(shape: CacheShape, page_tokens: usize) -> usize {
        let (keys, values) = attend::sizes(page_tokens, shape.head_dim);
        shape.layers * shape.heads * (keys + values)
    }

    fn new(shape: CacheShape, page_tokens: usize, pages: usize) -> Self {
        Self {
            data: T::zeros(pages * Self::page(shape, page_tokens)),
            shape,
            page_tokens,
            heads: Spares::default(),
        }
    }

    /// Where a head's keys begin, and how many numbers they and the values behind them take.
    fn place(&self, page: PageId, layer: usize, head: usize) -> (usize, usize, usize) {
        let (keys, values) = attend::sizes(self.page_tokens, self.shape.head_dim);
        let index = (page.0 as usize * self.shape.layers + layer) * self.shape.heads + head;
        (index * (keys + values), keys, values)
    }

    /// The positions in these slots of a page, as one layer's head has them.
    pub fn run(
        &self,
        page: PageId,
        layer: usize,
        head: usize,
        seen: Range<usize>,
    ) -> PositionRun<'_, T> {
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

    fn write(&mut self, rows: CacheRows) {
        let CacheRows {
            page,
            layer,
            slot,
            count,
            keys,
            values,
        } = rows;
        let dim = self.shape.head_dim;
        let width = dim.next_multiple_of(LANES);
        for head in 0..self.shape.heads {
            let (start, middle, _) = self.place(page, layer, head);
            // An element's positions lie side by side, so all of them are written before the next element.
            for d in 0..dim {
                for row in 0..count {
                    let key = keys.data[row * keys.row + head * dim + d];
                    self.data[start + attend::key_at(slot + row, dim) + d * LANES] = T::of(key);
                }
            }
            for row in 0..count {
                let value = &values.data[row * values.row + head * dim..][..dim];
                let stored = &mut self.data[start + middle + (slot + row) * width..][..dim];
                stored
                    .iter_mut()
                    .zip(value)
                    .for_each(|(to, value)| *to = T::of(*value));
            }
        }
    }

    fn read(&self, page: PageId, layer: usize, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let dim = self.shape.head_dim;
        let width = dim.next_multiple_of(LANES);
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for head in 0..self.shape.heads {
            let run = self.run(page, layer, head, slot..slot + 1);
            let element = |d: usize| run.keys[attend::key_at(slot, dim) + d * LANES].widened();
            key.extend((0..dim).map(element));
            let stored = &run.values[slot * width..][..dim];
            value.extend(stored.iter().map(|value| value.widened()));
        }
        (key, value)
    }
}
