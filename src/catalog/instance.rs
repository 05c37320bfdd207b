//! From a committed state of the store to a model instance.

use super::base::ServedBase;
use super::{Error, Forms, defaults, share, tuning};
use crate::engine::{Generation, MemoryPart, VariantFacts};
use crate::model;
use crate::model::place::{self, HeldBytes, ResidentBank, Variant};
use crate::model::{VariantId, VariantWeights};
use crate::ops::gpu::Fault;
use crate::ops::quantized::Quantisation;
use crate::store::{self, BankId, BankKind, FileRecord, Scales, Store, VariantRecord};
use crate::superposition::{self, Delta, Private, Scheme};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is served, in served form, kept from one generation to the next where it has not changed: so a change costs what it
/// changes, however many variants there are.
#[derive(Default)]
pub(super) struct ServedInstance {
    /// With the generation whose commit wrote the bank.
    banks: BTreeMap<BankId, (u64, ResidentBank)>,
    /// With all that one is made of.
    variants: BTreeMap<String, (Recipe, Variant)>,
}

/// Its files, seed and scales.
type Recipe = (Vec<FileRecord>, u64, Scales);

impl ServedInstance {
    /// The store's current generation: what of another is not `before`'s is built anew.
    fn of(
        store: &Store,
        base: &ServedBase,
        forms: Forms,
        before: &ServedInstance,
    ) -> Result<Self, Error> {
        let banks = each(
            base,
            &store.manifest().banks,
            |record| record.file.bytes,
            |id, record| {
                let kept = before
                    .banks
                    .get(id)
                    .filter(|(written, _)| *written == record.generation);
                let bank = match kept {
                    Some((_, bank)) => bank.clone(),
                    None => serve(store, base, id, forms)?,
                };
                Ok((record.generation, bank))
            },
        )?;
        let variants = each(
            base,
            &store.manifest().variants,
            |record| record.files().map(|file| file.bytes).sum(),
            |name, record| {
                let files = record.files().cloned().collect();
                let recipe = (files, record.seed, record.scales.clone());
                let kept = before
                    .variants
                    .get(name)
                    .filter(|(made_of, _)| *made_of == recipe);
                let variant = match kept {
                    Some((_, variant)) => variant.clone(),
                    None => serve_variant(store, base, name, record)?,
                };
                Ok((recipe, variant))
            },
        )?;
        Ok(ServedInstance { banks, variants })
    }
}

/// Bytes of files that are in memory at once, where one alone has not more.
const AT_ONCE: u64 = 256 << 20;

/// What `make` makes of every record, whose file has so many `bytes`: on all threads where it comes to lie on the host; on a device
/// one after the other, since all go over one link into memory that is given out in order.
fn each<K: Ord + Clone + Send + Sync, R: Sync, T: Send>(
    base: &ServedBase,
    records: &BTreeMap<K, R>,
    bytes: impl Fn(&R) -> u64,
    make: impl Fn(&K, &R) -> Result<T, Error> + Sync,
) -> Result<BTreeMap<K, T>, Error> {
    let (mut made, mut rest) = (BTreeMap::new(), Vec::from_iter(records));
    while !rest.is_empty() {
        let mut sum = 0;
        let fits = rest.iter().take_while(|(_, record)| {
            sum += bytes(record);
            sum <= AT_ONCE
        });
        let later = rest.split_off(fits.count().max(1));
        let make = |(key, record): (&K, &R)| Ok((key.clone(), make(key, record)?));
        let some: Vec<Result<_, Error>> = match base.weights {
            place::ResidentBase::Host(_) => rest.into_par_iter().map(make).collect(),
            place::ResidentBase::Device(_) => rest.into_iter().map(make).collect(),
        };
        for one in some {
            let (key, value) = one?;
            made.insert(key, value);
        }
        rest = later;
    }
    Ok(made)
}

fn serve_variant(
    store: &Store,
    base: &ServedBase,
    name: &str,
    record: &VariantRecord,
) -> Result<Variant, Error> {
    let weights = match store.load_coded(name)? {
        Some(delta) => VariantWeights::by_itself(delta, record.scales.default),
        None => superposed(store, name, record)?,
    };
    base.weights
        .variant(&weights)
        .map_err(|error| not_built(store, &error))
}

/// A member of banks.
fn superposed(store: &Store, name: &str, record: &VariantRecord) -> Result<VariantWeights, Error> {
    let mut private = store.load_private(name)?.unwrap_or_default();
    // The network knows one scale a variant; those that differ by tensor are multiplied into the gains.
    for (tensor, gains) in &mut private.gains {
        let scale = record.scales.of(tensor);
        gains.iter_mut().for_each(|gain| *gain *= scale);
    }
    Ok(VariantWeights {
        seed: record.seed,
        scale: 1.0,
        banks: Vec::new(),
        gains: private.gains,
        kept: BTreeMap::new(),
        vectors: private.vectors,
    })
}

fn serve(
    store: &Store,
    base: &ServedBase,
    id: &BankId,
    forms: Forms,
) -> Result<ResidentBank, Error> {
    let bank = store.load_bank(id)?;
    let form = match id.kind {
        BankKind::Body => forms.body,
        BankKind::Head => forms.head,
    };
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

fn not_built(store: &Store, error: &model::Error) -> Error {
    match error {
        model::Error::Device(Fault::OutOfMemory { .. }) => Error::NoMemory {
            generation: store.manifest().generation,
            reason: error.to_string(),
        },
        _ => unserved(store, error),
    }
}

/// An instance to measure the variant `name` of `served` on: it, `fine_tune` in a bank of its own, and no delta at all, under the
/// names that [`share`] knows.
pub(super) fn measuring(
    store: &Store,
    base: &ServedBase,
    served: &ServedInstance,
    name: &str,
    fine_tune: &Delta,
) -> Result<Generation, Error> {
    let unknown = || store::Error::UnknownVariant {
        name: name.to_owned(),
    };
    let record = store.manifest().variants.get(name).ok_or_else(unknown)?;
    let (_, kept) = served.variants.get(name).ok_or_else(unknown)?;
    let built = |error: &model::Error| not_built(store, error);
    let seed = fine_tune.digest().seed();
    let shapes = fine_tune.matrices.iter();
    let shapes = shapes.map(|(name, matrix)| (name.clone(), [matrix.rows, matrix.cols]));
    let mut bank = superposition::Bank::new(1, Scheme::default(), shapes);
    bank.accumulate(fine_tune, seed)
        .map_err(store::Error::from)?;
    let tensors = bank.tensors.into_iter();
    let tensors = tensors.map(|(name, fixed)| (name, fixed.rows, fixed.cols, fixed.dense()));
    let bank = (base.weights.bank(Quantisation::Bf16, tensors)).map_err(|error| built(&error))?;
    let own = |private: Private| {
        let weights = VariantWeights {
            seed,
            scale: 1.0,
            banks: Vec::new(),
            gains: private.gains,
            kept: BTreeMap::new(),
            vectors: private.vectors,
        };
        base.weights
            .variant(&weights)
            .map_err(|error| built(&error))
    };
    let (whole, none) = (own(Private::of(fine_tune))?, own(Private::default())?);
    let index: BTreeMap<BankId, usize> = served.banks.keys().copied().zip(1..).collect();
    let banks = record
        .banks()
        .iter()
        .filter_map(|id| index.get(id).copied());
    let placed = [(&none, vec![]), (kept, banks.collect()), (&whole, vec![0])];
    let others = served.banks.values().map(|(_, bank)| bank);
    let instance = base
        .weights
        .instance([&bank].into_iter().chain(others), placed);
    let instance = instance.map_err(|error| built(&error))?;
    let network = base.weights.facts();
    let regime = defaults::regime(record, network);
    let facts = |id| VariantFacts {
        id: VariantId(id),
        regime,
        defaults: record.defaults.sampling(),
        tokenizer: None,
    };
    let names = [share::BASE, share::KEPT, share::FINE_TUNE];
    let variants = (0..)
        .zip(names)
        .map(|(id, name)| (name.to_owned(), facts(id)));
    Ok(Generation {
        number: store.manifest().generation,
        denoiser: instance.denoiser,
        tokenizer: base.tokenizer.clone(),
        defaults: base.usual(network.regime),
        variants: variants.collect(),
        memory: Vec::new(),
    })
}

/// The model instance of the store's current generation, and what it serves; what of `before` has not changed is shared.
pub(super) fn build(
    store: &Store,
    base: &ServedBase,
    forms: Forms,
    before: &ServedInstance,
) -> Result<(Generation, ServedInstance), Error> {
    let network = base.weights.facts();
    let served = ServedInstance::of(store, base, forms, before)?;
    let manifest = store.manifest();
    let index: BTreeMap<BankId, usize> = served.banks.keys().copied().zip(0..).collect();
    let (mut placed, mut variants) = (Vec::new(), BTreeMap::new());
    for (number, ((name, record), (_, variant))) in
        (0..).zip(manifest.variants.iter().zip(served.variants.values()))
    {
        let banks = record
            .banks()
            .iter()
            .filter_map(|id| index.get(id).copied())
            .collect();
        placed.push((variant, banks));
        let regime = defaults::regime(record, network);
        tuning::check(regime, network)
            .map_err(|error| unserved(store, format!("{name}: {error}")))?;
        let manner = record.manner.clone().map(serde_json::from_value);
        let manner = manner
            .transpose()
            .map_err(|error| unserved(store, format!("{name}: {error}")))?;
        let facts = VariantFacts {
            id: VariantId(number),
            regime,
            defaults: record.defaults.sampling(),
            tokenizer: manner.map(|manner| Arc::new(base.tokenizer.with(manner))),
        };
        variants.insert(name.clone(), facts);
    }
    let banks = served.banks.values().map(|(_, bank)| bank);
    let instance = base
        .weights
        .instance(banks, placed)
        .map_err(|error| not_built(store, &error))?;

    let mut memory = Vec::new();
    let mut add = |part: String, bytes: HeldBytes| {
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
    for (id, (_, bank)) in &served.banks {
        add(format!("bank {id}"), bank.bytes());
    }
    add("private tensors".into(), instance.variants);
    add("tables".into(), instance.tables);
    let generation = Generation {
        number: manifest.generation,
        denoiser: instance.denoiser,
        tokenizer: base.tokenizer.clone(),
        defaults: base.usual(network.regime),
        variants,
        memory,
    };
    Ok((generation, served))
}
