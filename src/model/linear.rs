//! A linear layer of the base and of every variant at once.
//!
//! ```text
//! y = W_0 x + sum over the row's parts of  weight · c_k · (a_k l_k) ⊙ (S_b (r_k ⊙ x))       superposed: a member of a bank
//!                                      or  weight · c_k · (g_k ⊙ (q_k (R_k x)) + B_k A_k x)  kept by itself: coded, low-rank, or both
//! ```
//!
//! The first term is one product that all rows share; the second is one product per bank touched, with the
//! rows of that bank only, what a variant keeps by itself being a bank of one. A base row takes no part in it.

use super::VariantId;
use super::variant::{Placed, ServedVariant, SignedGains};
use super::weights::ServedBank;
use crate::model::error::{Error, Result};
use crate::ops::coded::{self, OwnMatrix, RowShare};
use crate::ops::quantized::{self, QuantizedMatrix, SignedRow};
use rayon::prelude::*;
use std::sync::Arc;

/// One variant's share of one row of a batch.
#[derive(Clone, Copy, Debug)]
pub struct RowPart {
    pub row: usize,
    pub variant: VariantId,
    pub weight: f32,
}

/// The parts of a step's rows, those of a bank side by side: gathered once for all matrices that read these rows.
#[derive(Debug, Default)]
pub struct Parts {
    /// By the bank's index in the instance, ascending; see [`homes`](super::variant::homes).
    banks: Vec<(usize, Vec<RowPart>)>,
    count: usize,
}

impl Parts {
    pub fn clear(&mut self) {
        self.banks.clear();
        self.count = 0;
    }

    /// Adds a part of a variant that lies in the banks `homes`.
    pub fn push(&mut self, part: RowPart, homes: &[usize]) {
        self.count += 1;
        for &bank in homes {
            match self.banks.binary_search_by_key(&bank, |(bank, _)| *bank) {
                Ok(at) => self.banks[at].1.push(part),
                Err(at) => self.banks.insert(at, (bank, vec![part])),
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Parts, of whichever banks.
    pub fn len(&self) -> usize {
        self.count
    }
}

/// Where one matrix of a variant is read from.
#[derive(Clone, Debug)]
enum Source {
    /// A bank, by its index in the instance.
    Bank(usize, Arc<SignedGains>),
    Own(Arc<OwnMatrix>),
}

/// One matrix of every variant: the banks that hold it, by their index in the instance, and where every variant has it (nowhere
/// where the variant has no delta for it).
#[derive(Clone, Debug, Default)]
pub struct Superposed {
    banks: Vec<Option<Arc<QuantizedMatrix>>>,
    sources: Vec<Option<Source>>,
}

impl Superposed {
    /// Tensor `name` of `variants`, whose [`VariantId`] is their index, in those of `banks` that hold it.
    pub fn of(
        name: &str,
        banks: &[Arc<ServedBank>],
        variants: &[Placed<ServedVariant>],
    ) -> Result<Self> {
        let banks: Vec<_> = banks
            .iter()
            .map(|bank| bank.tensors.get(name).cloned())
            .collect();
        let source = |(index, variant): (usize, &Placed<ServedVariant>)| {
            if let Some(own) = variant.own.own.get(name) {
                return Ok(Some(Source::Own(own.clone())));
            }
            let Some(rotation) = variant.own.signed_gains.get(name) else {
                return Ok(None);
            };
            let shape = (rotation.output.len(), rotation.input.len());
            let mut held =
                (variant.banks.iter()).filter_map(|&bank| Some((bank, banks.get(bank)?.as_ref()?)));
            match held.next() {
                Some((bank, served)) if served.shape() == shape => {
                    Ok(Some(Source::Bank(bank, rotation.clone())))
                }
                Some(_) => Err(Error::HeldShape {
                    holder: "a bank",
                    name: name.to_owned(),
                    shape,
                }),
                None => Err(Error::InNoBank {
                    variant: index,
                    name: name.to_owned(),
                }),
            }
        };
        let sources = variants
            .iter()
            .enumerate()
            .map(source)
            .collect::<Result<_>>()?;
        Ok(Superposed { banks, sources })
    }

    /// Where the variant has this matrix, if it has a delta of it.
    fn source(&self, variant: VariantId) -> Result<Option<&Source>> {
        match self.sources.get(variant.0 as usize) {
            Some(source) => Ok(source.as_ref()),
            None => Err(Error::NoVariant { variant: variant.0 }),
        }
    }

    /// Adds the parts' retrieved products to y [rows, out], given x [rows, in].
    pub fn add_products(&self, x: &[f32], parts: &Parts, y: &mut [f32]) -> Result<()> {
        let (mut superposed, mut own) = (Vec::new(), Vec::<(&OwnMatrix, Vec<RowShare>)>::new());
        for (bank, parts) in &parts.banks {
            let Some(served) = self.banks.get(*bank) else {
                // A bank of one: all parts are the same variant's.
                let shares = parts
                    .iter()
                    .map(|&RowPart { row, weight, .. }| RowShare { row, weight });
                if let Some(part) = parts.first()
                    && let Some(Source::Own(matrix)) = self.source(part.variant)?
                {
                    own.push((matrix, shares.collect()));
                }
                continue;
            };
            let Some(served) = served else {
                continue;
            };
            let mut rotated = Vec::with_capacity(parts.len());
            for part in parts {
                if let Some(Source::Bank(home, rotation)) = self.source(part.variant)?
                    && home == bank
                {
                    rotated.push(SignedRow {
                        row: part.row,
                        input: &rotation.input,
                        output: &rotation.output,
                        weight: part.weight,
                    });
                }
            }
            superposed.push((&**served, rotated));
        }
        quantized::add_signed(&superposed, x, y)?;
        Ok(coded::add_own(&own, x, y)?)
    }

    /// Adds `weight` times row `index` of the variant's retrieved delta to `target` [in].
    pub fn add_row(
        &self,
        variant: VariantId,
        weight: f32,
        index: usize,
        target: &mut [f32],
    ) -> Result<()> {
        match self.source(variant)? {
            Some(Source::Own(own)) => own.add_row(index, weight, target),
            Some(Source::Bank(bank, rotation)) => {
                let Some(Some(bank)) = self.banks.get(*bank) else {
                    return Err(Error::NoBank { bank: *bank });
                };
                let mut row = vec![0f32; target.len()];
                bank.row(index, &mut row);
                rotation.input.apply(&mut row);
                let factor = weight * rotation.output[index].to_f32();
                for (t, d) in target.iter_mut().zip(&row) {
                    *t = factor.mul_add(*d, *t);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Adds `weight` times the variant's whole retrieved delta to `target` [out, in].
    pub fn add_matrix(
        &self,
        variant: VariantId,
        weight: f32,
        input: usize,
        target: &mut [f32],
    ) -> Result<()> {
        target
            .par_chunks_mut(input)
            .enumerate()
            .try_for_each(|(row, target)| self.add_row(variant, weight, row, target))
    }
}

/// A matrix of the base with the variants' superposed deltas.
#[derive(Clone, Debug)]
pub struct SuperposedLinear {
    pub base: Arc<QuantizedMatrix>,
    pub variants: Superposed,
}

impl SuperposedLinear {
    /// The base's matrix plus the mix's retrieved deltas, as one matrix of the base's form.
    pub fn materialise(&self, mix: &super::Mix) -> Result<QuantizedMatrix> {
        let (out, input) = self.base.shape();
        let mut weights = vec![0f32; out * input];
        let rows = weights.par_chunks_mut(input).enumerate();
        rows.for_each(|(row, target)| self.base.row(row, target));
        for &(variant, weight) in &mix.0 {
            self.variants
                .add_matrix(variant, weight, input, &mut weights)?;
        }
        Ok(QuantizedMatrix::new(
            &weights,
            out,
            input,
            self.base.form(),
        )?)
    }
}
