//! A superposed store's variants, coded from their archives.

use super::base::{BaseSource, checkpoint};
use super::{Error, addition};
use crate::store::{Content, Keep, NewVariant, Staged, Store};
use crate::superposition::Encoding;
use std::path::Path;

/// One variant's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<'a> {
    pub name: &'a str,
    /// Bytes of its own files, without its share of its banks.
    pub before: u64,
    /// `None` where it stays superposed, since there is no archive of it.
    pub after: Option<u64>,
}

/// Codes every superposed variant of the store in `dir`, in one commit each, then makes coding the store's default. `tell` hears
/// of each one that is done.
///
/// # Errors
/// Those of the store, which is whole whatever happens; `bits` that no plan can keep to.
pub fn convert(
    base: &BaseSource,
    dir: &Path,
    bits: Option<f32>,
    mut tell: impl FnMut(Converted),
) -> Result<(), Error> {
    let (facts, network) = (base.facts()?, base.architecture()?);
    let mut store = Store::open(dir, facts.clone())?;
    let bits = bits.unwrap_or(store.manifest().options.bits);
    let superposed = store.manifest().variants.clone().into_iter();
    let superposed = superposed.filter(|(_, record)| record.keep() == Keep::Superposed);
    for (name, record) in superposed {
        let before = record.files().map(|file| file.bytes).sum();
        let Some(delta) = store.load_delta(&name)? else {
            tell(Converted {
                name: &name,
                before,
                after: None,
            });
            continue;
        };
        let encoding = Encoding {
            plan: addition::plan(&network, bits)?,
            seed: Some(record.seed),
            remarks: addition::to_remarks(record.process, &record.defaults)?,
        };
        let content = addition::code(&facts, &delta, &encoding).map_err(checkpoint(&name))?;
        let variant = NewVariant {
            name: name.clone(),
            content: Content::Coded(content),
            source: record.source,
            process: record.process,
            defaults: record.defaults,
            manner: record.manner,
            moved: record.moved,
            scales: record.scales,
        };
        let accept = |_: &mut Staged| Ok::<_, Error>(());
        store.replace_if(variant, record.delta, None, &mut |_| {}, accept)?;
        let after = store.manifest().variants.get(&name);
        let after = after.map(|record| record.files().map(|file| file.bytes).sum());
        tell(Converted {
            name: &name,
            before,
            after,
        });
    }
    Ok(store.choose(Keep::Coded, bits)?)
}
