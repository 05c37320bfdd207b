//! The quality of every variant whose bank has changed: another member is another interference.

use std::collections::{BTreeMap, BTreeSet};

use super::{BankId, Error, Manifest, Quality, Store};
use crate::superposition::{Bank, Delta, Moments, measure};

/// Measures the members of the banks in `changed`, which holds their new content, over all the banks each is in.
/// `fresh` are deltas at hand; the others come from the archive, and without one there is no measure.
pub(super) fn members(
    store: &Store,
    next: &mut Manifest,
    changed: &BTreeMap<BankId, Bank>,
    fresh: &BTreeMap<String, Delta>,
) -> Result<(), Error> {
    let affected = changed
        .keys()
        .filter_map(|id| next.banks.get(id))
        .flat_map(|bank| bank.members.clone());
    let mut unchanged: BTreeMap<BankId, Bank> = BTreeMap::new();
    for name in affected.collect::<BTreeSet<_>>() {
        let Some(record) = next.variants.get_mut(&name) else {
            continue;
        };
        let archived;
        let delta = match fresh.get(&name) {
            Some(delta) => Some(delta),
            None => {
                archived = store.load_delta(&name)?;
                archived.as_ref()
            }
        };
        let Some(delta) = delta else {
            record.quality = None;
            continue;
        };
        let mut moments = Moments::default();
        for id in record.banks() {
            if !changed.contains_key(id) && !unchanged.contains_key(id) {
                unchanged.insert(*id, store.load_bank(id)?);
            }
            let bank = changed.get(id).or_else(|| unchanged.get(id));
            let parts = bank
                .map(|bank| measure(bank, delta, record.seed, |tensor| record.scales.of(tensor)));
            parts
                .unwrap_or_default()
                .into_values()
                .for_each(|part| moments += part);
        }
        record.quality = Some(Quality {
            cosine: Some(moments.cosine() as f32),
            relative_error: moments.relative_error() as f32,
        });
    }
    Ok(())
}
