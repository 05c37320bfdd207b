//! From a committed state of the store to a model instance.

use super::base::Base;
use super::{Error, defaults, tuning};
use crate::engine::{Generation, MemoryPart, Sampling, VariantFacts};
use crate::model::{Dit, ServedBank, VariantId, VariantWeights};
use crate::ops::quantized::Form;
use crate::store::{BankId, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Banks in served form, kept from one generation to the next where they have not changed.
#[derive(Default)]
pub(super) struct ServedBanks(BTreeMap<BankId, (u64, Arc<ServedBank>)>);

impl ServedBanks {
    /// Brings the banks to the store's current generation; those that are gone are dropped.
    fn follow(&mut self, store: &Store, form: Form) -> Result<(), Error> {
        let mut next = BTreeMap::new();
        for (id, record) in &store.manifest().banks {
            let kept = self
                .0
                .get(id)
                .filter(|(generation, _)| *generation == record.generation);
            let served = match kept {
                Some((_, served)) => served.clone(),
                None => Arc::new(serve(store, id, form)?),
            };
            next.insert(*id, (record.generation, served));
        }
        self.0 = next;
        Ok(())
    }
}

fn serve(store: &Store, id: &BankId, form: Form) -> Result<ServedBank, Error> {
    let bank = store.load_bank(id)?;
    let tensors = bank
        .tensors
        .into_iter()
        .map(|(name, fixed)| (name, fixed.rows, fixed.cols, fixed.dense()));
    ServedBank::build(form, tensors).map_err(|error| unserved(store, error))
}

fn unserved(store: &Store, error: impl ToString) -> Error {
    Error::Unserved {
        generation: store.manifest().generation,
        reason: error.to_string(),
    }
}

/// The model instance of the store's current generation.
pub(super) fn build(store: &Store, base: &Base, served: &mut ServedBanks, form: Form) -> Result<Generation, Error> {
    served.follow(store, form)?;
    let manifest = store.manifest();
    let index: BTreeMap<BankId, usize> = served.0.keys().copied().zip(0..).collect();
    let (mut weights, mut variants) = (Vec::new(), BTreeMap::new());
    for (number, (name, record)) in (0..).zip(&manifest.variants) {
        let mut private = store.load_private(name)?;
        // The network knows one scale a variant; those that differ by tensor are multiplied into the gains.
        for (tensor, gains) in &mut private.gains {
            let scale = record.scales.of(tensor);
            gains.iter_mut().for_each(|gain| *gain *= scale);
        }
        weights.push(VariantWeights {
            seed: record.seed,
            scale: 1.0,
            banks: record.banks.iter().filter_map(|id| index.get(id).copied()).collect(),
            gains: private.gains,
            vectors: private.vectors,
        });
        let regime = defaults::regime(record, &base.weights.config);
        tuning::check(regime, &base.weights.config).map_err(|error| unserved(store, format!("{name}: {error}")))?;
        let facts = VariantFacts {
            id: VariantId(number),
            regime,
            defaults: defaults::from_store(&record.defaults),
        };
        variants.insert(name.clone(), facts);
    }
    let banks: Vec<Arc<ServedBank>> = served.0.values().map(|(_, bank)| bank.clone()).collect();
    let dit = Dit::new(base.weights.clone(), &banks, weights).map_err(|error| unserved(store, error))?;

    let part = |part: String, bytes: usize| MemoryPart {
        part,
        bytes: bytes as u64,
    };
    let mut memory = vec![part("base".into(), base.weights.bytes())];
    memory.extend(
        served
            .0
            .iter()
            .map(|(id, (_, bank))| part(format!("bank {id}"), bank.bytes())),
    );
    let private = (0..variants.len() as u32)
        .map(|id| dit.variant_bytes(VariantId(id)))
        .sum();
    memory.push(part("private tensors".into(), private));
    memory.push(part("tables".into(), dit.table_bytes()));
    Ok(Generation {
        number: manifest.generation,
        denoiser: Arc::new(dit),
        tokenizer: base.tokenizer.clone(),
        defaults: Sampling::of(base.weights.config.process()),
        variants,
        memory,
    })
}
