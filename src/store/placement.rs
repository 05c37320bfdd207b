//! Which bank a variant goes into, and what an empty bank holds.

use super::{BankId, BankKind, Manifest, Store};
use crate::superposition::{Bank, HEAD, Scheme};

impl BankKind {
    pub(super) const ALL: [BankKind; 2] = [BankKind::Body, BankKind::Head];

    fn holds(self, tensor: &str) -> bool {
        (self == BankKind::Head) == (tensor == HEAD)
    }
}

impl Manifest {
    pub(super) fn capacity(&self, kind: BankKind) -> usize {
        match kind {
            BankKind::Body => self.options.bank_capacity,
            BankKind::Head => self.options.head_capacity,
        }
    }

    /// The first bank with room for a variant of this seed, else the first number that is free.
    ///
    /// Two variants of one seed never share a bank: their transforms would be the same, and each would be read
    /// back with all of the other in it.
    pub(super) fn place(&self, kind: BankKind, seed: u64) -> BankId {
        let has_room = |id: &BankId| {
            self.banks.get(id).is_none_or(|bank| {
                let same_seed = |name: &String| self.variants.get(name).is_some_and(|member| member.seed == seed);
                bank.members.len() < self.capacity(kind) && !bank.members.iter().any(same_seed)
            })
        };
        let existing = self.banks.keys().copied().filter(|id| id.kind == kind);
        let free = (0..)
            .map(|number| BankId { kind, number })
            .find(|id| !self.banks.contains_key(id));
        existing
            .chain(free)
            .find(has_room)
            .unwrap_or(BankId { kind, number: 0 })
    }
}

impl Store {
    /// A bank of this kind without members; without tensors where the base has none of the kind.
    pub(super) fn empty_bank(&self, kind: BankKind) -> Bank {
        let shapes = self.base.shapes.iter().filter(|(name, _)| kind.holds(name));
        let matrices =
            shapes.filter_map(|(name, shape)| Some((name.clone(), <[usize; 2]>::try_from(&shape[..]).ok()?)));
        Bank::new(self.manifest.capacity(kind), Scheme::default(), matrices)
    }
}
