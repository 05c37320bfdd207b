//! Memory that one evaluation leaves to the next, so that a steady state allocates next to nothing.

use super::plan::BatchPlan;
use crate::ops::Rotary;
use std::sync::{Mutex, PoisonError};

/// Logits that take more are given back to the system: those of whole sequences are most of a step's memory.
const LOGITS_KEPT: usize = (32 << 20) / size_of::<f32>();

/// Activations are [rows, width], and as long as the largest batch so far needed.
#[derive(Debug, Default)]
pub struct ForwardWorkspace {
    pub plan: BatchPlan,
    pub rotary: Rotary,
    pub x: Vec<f32>,
    pub normed: Vec<f32>,
    pub qkv: Vec<f32>,
    pub attended: Vec<f32>,
    pub wide: Vec<f32>,
    pub gated: Vec<f32>,
    pub narrow: Vec<f32>,
    logits: Vec<f32>,
}

impl ForwardWorkspace {
    /// As many logits, to be overwritten.
    pub fn logits(&mut self, count: usize) -> Vec<f32> {
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(count, 0.0);
        logits
    }

    pub fn recycle(&mut self, logits: Vec<f32>) {
        if logits.capacity() > self.logits.capacity() && logits.capacity() <= LOGITS_KEPT {
            self.logits = logits;
        }
    }
}

/// `count` elements of `buffer`, to be overwritten.
pub fn sized<T: Copy + Default>(buffer: &mut Vec<T>, count: usize) -> &mut [T] {
    if buffer.len() < count {
        buffer.resize(count, T::default());
    }
    &mut buffer[..count]
}

/// What the attention of one head of one segment needs: keys and values in the cache's type.
#[derive(Debug, Default)]
pub struct HeadSpace<T> {
    pub keys: Vec<T>,
    pub values: Vec<T>,
    pub queries: Vec<f32>,
    pub scores: Vec<f32>,
}

/// Things that tasks borrow one of each: no more of them than run at once.
#[derive(Debug, Default)]
pub struct Spares<T>(Mutex<Vec<T>>);

impl<T: Default> Spares<T> {
    pub fn borrow(&self) -> Borrowed<'_, T> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Borrowed {
            of: self,
            inner: spare.unwrap_or_default(),
        }
    }
}

/// Goes back when dropped.
pub struct Borrowed<'a, T: Default> {
    of: &'a Spares<T>,
    pub inner: T,
}

impl<T: Default> Drop for Borrowed<'_, T> {
    fn drop(&mut self) {
        let inner = std::mem::take(&mut self.inner);
        self.of
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(inner);
    }
}
