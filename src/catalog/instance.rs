//! From a committed state of the store to a model instance.

use super::base::Base;
use super::{Error, defaults, tuning};
use crate::engine::{Generation, MemoryPart, Sampling, VariantFacts};
use crate::model::place::{Bank, Bytes};
use crate::model::{VariantId, VariantWeights};
use crate::ops::gpu::Fault;
use crate::ops::quantized::Form;
use crate::store::{BankId, Store};
use std::collections::BTreeMap;

/// Banks in served form, kept from one generation to the next where they have not changed.
#[derive(Default)]
pub(super) struct ServedBanks(BTreeMap<BankId, (u64, Bank)>);

impl ServedBanks {
    /// The banks of the store's current generation: those of another that have changed since are built anew.
    fn of(store: &Store, base: &Base, form: Form, before: &ServedBanks) -> Result<Self, Error> {
        let mut banks = BTreeMap::new();
        for (id, record) in &store.manifest().banks {
            let kept = before
                .0
                .get(id)
                .filter(|(generation, _)| *generation == record.generation);
            let served = match kept {
                Some((_, served)) => served.clone(),
                None => serve(store, base, id, form)?,
            };
            banks.insert(*id, (record.generation, served));
        }
        Ok(ServedBanks(banks))
    }
}

fn serve(store: &Store, base: &Base, id: &BankId, form: Form) -> Result<Bank, Error> {
    let bank = store.load_bank(id)?;
    let tensors = bank
        .tensors
        .into_iter()
        .map(|(name, fixed)| (name, fixed.rows, fixed.cols, fixed.dense()));
    base.weights
        .bank(form, tensors)
        .map_err(|error| not_built(store, &error))
}

fn unserved(store: &Store, error: impl ToString) -> Error {
    Error::Unserved {
        generation: store.manifest().generation,
        reason: error.to_string(),
    }
}

fn not_built(store: &Store, error: &candle_core::Error) -> Error {
    match Fault::behind(error) {
        Some(Fault::OutOfMemory { .. }) => Error::NoMemory {
            generation: store.manifest().generation,
            reason: error.to_string(),
        },
        _ => unserved(store, error),
    }
}

/// The model instance of the store's current generation, and its banks; those of `before` that have not changed are shared.
pub(super) fn build(
    store: &Store,
    base: &Base,
    form: Form,
    before: &ServedBanks,
) -> Result<(Generation, ServedBanks), Error> {
    let config = base.weights.config();
    let served = ServedBanks::of(store, base, form, before)?;
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
        let banks: Vec<usize> = record.banks.iter().filter_map(|id| index.get(id).copied()).collect();
        let facts_banks = banks.iter().filter_map(|&bank| u32::try_from(bank).ok()).collect();
        weights.push(VariantWeights {
            seed: record.seed,
            scale: 1.0,
            banks,
            gains: private.gains,
            vectors: private.vectors,
        });
        let regime = defaults::regime(record, config);
        tuning::check(regime, config).map_err(|error| unserved(store, format!("{name}: {error}")))?;
        let facts = VariantFacts {
            id: VariantId(number),
            regime,
            defaults: defaults::from_store(&record.defaults),
            banks: facts_banks,
        };
        variants.insert(name.clone(), facts);
    }
    let banks = served.0.values().map(|(_, bank)| bank);
    let instance = base
        .weights
        .instance(banks, weights)
        .map_err(|error| not_built(store, &error))?;

    let mut memory = Vec::new();
    let mut add = |part: String, bytes: Bytes| {
        for (bytes, on_device) in [(bytes.host, false), (bytes.device, true)] {
            if bytes > 0 {
                memory.push(MemoryPart {
                    part: part.clone(),
                    bytes: bytes as u64,
                    on_device,
                });
            }
        }
    };
    add("base".into(), base.weights.bytes());
    for (id, (_, bank)) in &served.0 {
        add(format!("bank {id}"), bank.bytes());
    }
    add("private tensors".into(), instance.variants);
    add("tables".into(), instance.tables);
    let generation = Generation {
        number: manifest.generation,
        denoiser: instance.denoiser,
        tokenizer: base.tokenizer.clone(),
        defaults: Sampling::of(config.process()),
        variants,
        memory,
    };
    Ok((generation, served))
}
