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

    /// The bank for the first of `coming` variants, which is of this seed: the one with the fewest members that can take it, of as
    /// many banks as all of them will need; else the first number that is free.
    ///
    /// Whoever is alone, or has fewer beside it, is read back with less error, and memory is taken by banks and not by members. Two
    /// variants of one seed never share a bank: their transforms would be the same, and each would be read
    /// back with all of the other in it.
    pub(super) fn place(&self, kind: BankKind, seed: u64, coming: usize) -> BankId {
        let mut ids: Vec<BankId> = self
            .banks
            .keys()
            .copied()
            .filter(|id| id.kind == kind)
            .collect();
        let all = (0..).map(|number| BankId { kind, number });
        let mut free = all.filter(|id| !self.banks.contains_key(id));
        let members = |id: &BankId| self.banks.get(id).map_or(&[][..], |bank| &bank.members);
        let needed = (ids.iter().map(|id| members(id).len()).sum::<usize>() + coming)
            .div_ceil(self.capacity(kind));
        ids.extend(free.by_ref().take(needed.saturating_sub(ids.len())));
        let same_seed = |name: &String| {
            self.variants
                .get(name)
                .is_some_and(|member| member.seed == seed)
        };
        let taken = |id: &BankId| (!members(id).iter().any(same_seed)).then_some(members(id).len());
        let taken: Vec<_> = ids.iter().map(taken).collect();
        let place = emptiest(&taken, self.capacity(kind)).and_then(|index| ids.get(index).copied());
        place
            .or_else(|| free.next())
            .unwrap_or(BankId { kind, number: 0 })
    }
}

/// The first with the fewest members of the banks that have room; `None` stands for a bank that must not be taken.
pub fn emptiest(members: &[Option<usize>], capacity: usize) -> Option<usize> {
    let members = members.iter().enumerate();
    let free = members.filter_map(|(index, members)| {
        Some((index, members.filter(|members| *members < capacity)?))
    });
    free.min_by_key(|(_, members)| *members)
        .map(|(index, _)| index)
}

impl Store {
    /// A bank of this kind without members; without tensors where the base has none of the kind.
    pub(super) fn empty_bank(&self, kind: BankKind) -> Bank {
        let shapes = self.base.shapes.iter().filter(|(name, _)| kind.holds(name));
        let matrices = shapes.filter_map(|(name, shape)| {
            Some((name.clone(), <[usize; 2]>::try_from(&shape[..]).ok()?))
        });
        Bank::new(self.manifest.capacity(kind), Scheme::default(), matrices)
    }
}
