//! What all instances of a base on a device share, whatever their generation: memory to work in, and tables of what variants and
//! banks keep, by slots that they have as long as they live.
//!
//! A step holds the room from its first launch to its last result, and so does whoever changes a table: nobody writes into one that
//! moves.

use super::work::StepMemory;
use crate::model::error::{Error, Result};
use crate::ops::gpu::own::OwnFacts;
use crate::ops::gpu::{Address, Buffer, GpuDevice};
use half::bf16;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots at first; twice as many whenever they run out.
const FIRST: usize = 16;

/// Numbers of slots that nobody has.
type Free = Arc<Mutex<Vec<u32>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the tables; free again when it is dropped. Slot 0 is nobody's: what pads a batch is of it.
#[derive(Debug)]
pub struct Slot {
    pub number: u32,
    free: Free,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.free).push(self.number);
    }
}

/// What variants and banks have of one matrix, where kernels look for it.
#[derive(Debug)]
struct MatrixTable {
    out: usize,
    /// [slots][8] u32: keys of the input side's signs.
    keys: Buffer,
    /// [slots][out] bf16: c a l.
    outputs: Buffer,
    /// [slots] [`OwnFacts`]: what a variant keeps by itself.
    own: Buffer,
    /// [slots of banks] u64: addresses.
    banks: Buffer,
}

/// Addresses of a matrix's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatrixAddresses {
    pub keys: Address,
    pub outputs: Address,
    pub own: Address,
    pub banks: Address,
}

fn missing(name: &str) -> Error {
    Error::MissingTensor {
        name: name.to_owned(),
    }
}

/// What a variant has of one matrix.
#[derive(Debug)]
pub struct OfMatrix<'a> {
    pub name: &'a str,
    /// Key of the input side's signs, and c a l [out]: of a member of a bank.
    pub rotation: Option<([u32; 8], &'a [bf16])>,
    pub own: OwnFacts,
}

/// The tables of all matrices.
#[derive(Debug)]
pub struct MatrixTables {
    gpu: Arc<dyn GpuDevice>,
    matrices: BTreeMap<String, MatrixTable>,
    /// Slots of variants; of those, slots that have keys and outputs; slots of banks.
    variants: usize,
    rotated: usize,
    banks: usize,
    free_variants: Free,
    free_banks: Free,
}

impl MatrixTables {
    fn new<'a>(
        gpu: &Arc<dyn GpuDevice>,
        matrices: impl Iterator<Item = (&'a String, usize)>,
    ) -> Result<Self> {
        let table = |(name, out): (&String, usize)| {
            let none = || Buffer::new(gpu, 0);
            let table = MatrixTable {
                out,
                keys: none()?,
                outputs: none()?,
                own: none()?,
                banks: none()?,
            };
            Ok((name.clone(), table))
        };
        Ok(Self {
            gpu: gpu.clone(),
            matrices: matrices.map(table).collect::<Result<_>>()?,
            variants: 0,
            rotated: 0,
            banks: 0,
            free_variants: Free::default(),
            free_banks: Free::default(),
        })
    }

    /// Tables as `next` gives their bytes, with what they had: all of them, or none where there is no memory.
    fn grow<const N: usize>(
        &mut self,
        of: impl Fn(&mut MatrixTable) -> [&mut Buffer; N],
        bytes: impl Fn(usize) -> [usize; N],
    ) -> Result<()> {
        let mut grown = Vec::with_capacity(self.matrices.len());
        for table in self.matrices.values_mut() {
            let sizes = bytes(table.out);
            let mut made = Vec::with_capacity(N);
            for (before, bytes) in of(table).into_iter().zip(sizes) {
                let after = Buffer::zeros(&self.gpu, bytes)?;
                if before.bytes() > 0 {
                    self.gpu
                        .copy(after.address(), before.address(), before.bytes())?;
                }
                made.push(after);
            }
            grown.push(made);
        }
        for (table, made) in self.matrices.values_mut().zip(grown) {
            of(table)
                .into_iter()
                .zip(made)
                .for_each(|(to, made)| *to = made);
        }
        Ok(())
    }

    /// A slot for a variant with these matrices, which are written there.
    pub fn add_variant(&mut self, matrices: &[OfMatrix]) -> Result<Slot> {
        let next = |capacity: usize| (2 * capacity).max(FIRST);
        if lock(&self.free_variants).is_empty() {
            let (before, capacity) = (self.variants, next(self.variants));
            let bytes = |_| [capacity * size_of::<OwnFacts>()];
            self.grow(|table| [&mut table.own], bytes)?;
            self.variants = capacity;
            lock(&self.free_variants).extend((before.max(1) as u32..capacity as u32).rev());
        }
        if self.rotated < self.variants && matrices.iter().any(|of| of.rotation.is_some()) {
            let capacity = self.variants;
            let bytes = |out| {
                [
                    capacity * size_of::<[u32; 8]>(),
                    capacity * out * size_of::<bf16>(),
                ]
            };
            self.grow(|table| [&mut table.keys, &mut table.outputs], bytes)?;
            self.rotated = capacity;
        }
        let Some(slot) = Self::take(&self.free_variants) else {
            return Err(Error::NotKept("a slot for a variant"));
        };
        for of in matrices {
            let Some(table) = self.matrices.get(of.name) else {
                return Err(missing(of.name));
            };
            let at = slot.number as usize;
            table.own.write(at * size_of::<OwnFacts>(), &[of.own])?;
            if let Some((key, outputs)) = of.rotation {
                table.keys.write(at * size_of_val(&key), &key)?;
                table.outputs.write(at * size_of_val(outputs), outputs)?;
            }
        }
        Ok(slot)
    }

    /// A slot for a bank of matrices at these addresses.
    pub fn add_bank<'a>(
        &mut self,
        matrices: impl Iterator<Item = (&'a String, Address)>,
    ) -> Result<Slot> {
        if lock(&self.free_banks).is_empty() {
            let (before, capacity) = (self.banks, (2 * self.banks).max(FIRST));
            let bytes = |_| [capacity * size_of::<Address>()];
            self.grow(|table| [&mut table.banks], bytes)?;
            self.banks = capacity;
            lock(&self.free_banks).extend((before as u32..capacity as u32).rev());
        }
        let Some(slot) = Self::take(&self.free_banks) else {
            return Err(Error::NotKept("a slot for a bank"));
        };
        for (name, address) in matrices {
            let Some(table) = self.matrices.get(name) else {
                return Err(missing(name));
            };
            table
                .banks
                .write(slot.number as usize * size_of::<Address>(), &[address])?;
        }
        Ok(slot)
    }

    /// Whether a slot is one of these tables'.
    pub fn has(&self, slot: &Slot) -> bool {
        [&self.free_variants, &self.free_banks]
            .into_iter()
            .any(|free| Arc::ptr_eq(free, &slot.free))
    }

    fn take(free: &Free) -> Option<Slot> {
        let number = lock(free).pop()?;
        let free = free.clone();
        Some(Slot { number, free })
    }

    /// Zeros for what there is no table of yet.
    pub fn of(&self, name: &str) -> MatrixAddresses {
        let addresses = |table: &MatrixTable| MatrixAddresses {
            keys: table.keys.address(),
            outputs: table.outputs.address(),
            own: table.own.address(),
            banks: table.banks.address(),
        };
        self.matrices.get(name).map(addresses).unwrap_or_default()
    }

    /// How many slots there are of every kind: the tables lie where they lay while this is the same.
    pub fn sizes(&self) -> [usize; 3] {
        [self.variants, self.rotated, self.banks]
    }

    pub fn bytes(&self) -> usize {
        let tables = self.matrices.values();
        let buffers = tables.flat_map(|t| [&t.keys, &t.outputs, &t.own, &t.banks]);
        buffers.map(Buffer::bytes).sum()
    }
}

/// What a step holds.
#[derive(Debug)]
pub struct StepBuffers {
    pub work: StepMemory,
    pub tables: MatrixTables,
    /// What batches are packed into.
    pub memory: Vec<u8>,
}

#[derive(Debug)]
pub struct Room(Mutex<StepBuffers>);

impl Room {
    /// For matrices with so many outputs, by name.
    pub fn new<'a>(
        gpu: &Arc<dyn GpuDevice>,
        matrices: impl Iterator<Item = (&'a String, usize)>,
    ) -> Result<Self> {
        Ok(Self(Mutex::new(StepBuffers {
            work: StepMemory::new(),
            tables: MatrixTables::new(gpu, matrices)?,
            memory: Vec::new(),
        })))
    }

    pub fn hold(&self) -> MutexGuard<'_, StepBuffers> {
        lock(&self.0)
    }
}
