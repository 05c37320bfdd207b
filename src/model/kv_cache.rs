//! Paged keys and values: [page][layer][key | value][token in page][hidden], keys after rotation; f32 on the host, in a device's
//! own type there.
//!
//! Keys are stored after the rotary embedding at their absolute position; attention depends on differences of
//! positions only, so a window slides by dropping pages and nothing is ever recomputed.

use super::gpu::Device;
use super::{DitConfig, PageId};
use crate::ops::gpu::Buffer;
use candle_core::Result;

/// The storage of every page; which sequence owns which page is the engine's business.
#[derive(Debug)]
pub struct KvCache {
    data: Vec<f32>,
    on_device: Option<Buffer>,
    layers: usize,
    hidden: usize,
    page_tokens: usize,
    pages: usize,
}

impl KvCache {
    /// Bytes of one page for this network.
    pub fn page_bytes(config: &DitConfig, page_tokens: usize) -> usize {
        config.n_blocks * 2 * page_tokens * config.hidden_dim * size_of::<f32>()
    }

    pub fn new(config: &DitConfig, page_tokens: usize, pages: usize) -> Self {
        let floats = pages * Self::page_bytes(config, page_tokens) / size_of::<f32>();
        Self {
            data: vec![0.0; floats],
            on_device: None,
            layers: config.n_blocks,
            hidden: config.hidden_dim,
            page_tokens,
            pages,
        }
    }

    /// Bytes of one page on a device.
    pub fn device_page_bytes(device: &Device, config: &DitConfig, page_tokens: usize) -> usize {
        Self::page_bytes(config, page_tokens) / size_of::<f32>() * device.dtype.size()
    }

    /// A cache on a device, where only kernels read and write it.
    pub fn device(device: &Device, config: &DitConfig, page_tokens: usize, pages: usize) -> Result<Self> {
        let bytes = pages * Self::device_page_bytes(device, config, page_tokens);
        let buffer = Buffer::zeros(&device.machine, bytes)?;
        Ok(Self {
            on_device: Some(buffer),
            pages,
            ..Self::new(config, page_tokens, 0)
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

    fn start(&self, page: PageId, layer: usize, side: usize) -> usize {
        ((page.0 as usize * self.layers + layer) * 2 + side) * self.page_tokens * self.hidden
    }

    /// Keys of one page and layer: [page_tokens, hidden].
    pub fn keys(&self, page: PageId, layer: usize) -> &[f32] {
        let start = self.start(page, layer, 0);
        &self.data[start..start + self.page_tokens * self.hidden]
    }

    /// Values of one page and layer: [page_tokens, hidden].
    pub fn values(&self, page: PageId, layer: usize) -> &[f32] {
        let start = self.start(page, layer, 1);
        &self.data[start..start + self.page_tokens * self.hidden]
    }

    /// Writes the key and the value, [hidden] each, of one slot of a page.
    pub fn write(&mut self, page: PageId, layer: usize, slot: usize, key: &[f32], value: &[f32]) {
        let (at, hidden) = (slot * self.hidden, self.hidden);
        let start = self.start(page, layer, 0) + at;
        self.data[start..start + hidden].copy_from_slice(key);
        let start = self.start(page, layer, 1) + at;
        self.data[start..start + hidden].copy_from_slice(value);
    }
}
