//! Host memory that the device reads and writes by itself, so that an upload need not wait.

use super::super::Result;
use super::call::{Event, Pinned, driver};
use cudarc::driver::sys::{CUevent_flags, CUstream};
use std::ffi::c_void;

/// Bytes of one slot.
const SLOT: usize = 1 << 20;
const SLOTS: usize = 8;
/// Where copies begin within a slot.
const ALIGNED: usize = 64;

/// A ring of slots for uploads, each filled by one or more of them, and one slot for downloads.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Pinned,
    /// Recorded when a slot is left: passed once the device has read it.
    left: Vec<Event>,
    slot: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self> {
        let event = |_| {
            Event::create(|event| {
                driver!(cuEventCreate(
                    event,
                    CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
                ))
            })
        };
        Ok(Self {
            memory: Pinned::create(|memory| {
                driver!(cuMemAllocHost_v2(memory, (SLOTS + 1) * SLOT))
            })?,
            left: (0..SLOTS).map(event).collect::<Result<_>>()?,
            slot: 0,
            used: 0,
        })
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.memory.0.wrapping_byte_add(offset)
    }

    /// Returns when `data` is in the ring, which is sooner than it is on the device.
    pub(super) fn upload(&mut self, stream: CUstream, mut to: u64, data: &[u8]) -> Result<()> {
        for piece in data.chunks(SLOT) {
            if self.used + piece.len() > SLOT {
                driver!(cuEventRecord(self.left[self.slot].0, stream))?;
                self.slot = (self.slot + 1) % SLOTS;
                self.used = 0;
                driver!(cuEventSynchronize(self.left[self.slot].0))?;
            }
            let staged = self.at(self.slot * SLOT + self.used);
            // SAFETY: the piece fits into what is left of the slot, which the device is done with or has not been told of.
            #[allow(unsafe_code)]
            unsafe {
                staged
                    .cast::<u8>()
                    .copy_from_nonoverlapping(piece.as_ptr(), piece.len());
            }
            driver!(cuMemcpyHtoDAsync_v2(to, staged, piece.len(), stream))?;
            self.used += piece.len().next_multiple_of(ALIGNED);
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Waits for the stream.
    pub(super) fn download(&mut self, stream: CUstream, from: u64, data: &mut [u8]) -> Result<()> {
        if data.len() > SLOT {
            driver!(cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                from,
                data.len(),
                stream
            ))?;
            return driver!(cuStreamSynchronize(stream));
        }
        let staged = self.at(SLOTS * SLOT);
        driver!(cuMemcpyDtoHAsync_v2(staged, from, data.len(), stream))?;
        driver!(cuStreamSynchronize(stream))?;
        // SAFETY: no more than a slot, which the device has written.
        #[allow(unsafe_code)]
        unsafe {
            staged
                .cast::<u8>()
                .copy_to_nonoverlapping(data.as_mut_ptr(), data.len());
        }
        Ok(())
    }
}
