//! Modulation tables, kept from step to step and shared by all instances of a base: they depend on a mix's variants, on the
//! banks that these are read from and on the noise level, and on no generation.

use super::batch::Mix;
use super::conditioning::ModulationRow;
use super::variant::{Placed, ServedVariant};
use super::weights::ServedBank;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes of tables, and how many are kept whatever their size: the grids of two sequences of 128 steps. Past both the half that was
/// used longest ago is forgotten, so that nobody's unique mixes or grids take away what others use all the time.
pub const BYTES: usize = 32 << 20;
const LEAST: usize = 258;

/// A variant as it is read from its banks. Another membership of a bank is another bank.
#[derive(Debug)]
struct Source {
    number: u64,
    variant: Weak<ServedVariant>,
    banks: Vec<Weak<ServedBank>>,
}

impl Source {
    /// Whether a later instance may still have it. While it is known here its addresses are given to nobody else, since the weak
    /// references keep them; an instance that outlives its banks keeps its number, which no other gets.
    fn lives(&self) -> bool {
        self.variant.strong_count() > 0 && self.banks.iter().all(|bank| bank.strong_count() > 0)
    }
}

/// Sources by number with their weights' bits: what a mix is in whichever instance.
pub type Mixed = Vec<(u64, u32)>;

/// A mix of variants with these `numbers`. One that is not there has number 0, which none has.
pub fn mixed(numbers: &[u64], mix: &Mix) -> Mixed {
    let number = |variant: u32| numbers.get(variant as usize).copied().unwrap_or_default();
    let parts = mix.0.iter();
    parts
        .map(|(variant, weight)| (number(variant.0), weight.to_bits()))
        .collect()
}

/// With sigma's bits.
type Key = (Mixed, u32);

#[derive(Debug, Default)]
struct CachedTables {
    /// By the addresses of the variant and of its banks.
    sources: HashMap<(usize, Vec<usize>), Source>,
    last: u64,
    lines: HashMap<Key, CachedLine>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct CachedLine {
    line: Arc<ModulationRow>,
    used: u64,
}

impl CachedTables {
    /// What no noise level changes of a mix is counted once.
    fn bytes(&self) -> usize {
        let mut mixes = HashSet::new();
        let bytes = self.lines.iter().map(|((mix, _), kept)| {
            let [own, constants] = kept.line.bytes();
            own + if mixes.insert(mix) { constants } else { 0 }
        });
        bytes.sum()
    }

    /// Forgets the half that was used longest ago.
    fn forget(&mut self) {
        let mut uses: Vec<u64> = self.lines.values().map(|kept| kept.used).collect();
        let middle = uses.len() / 2;
        let (_, &mut median, _) = uses.select_nth_unstable(middle);
        self.lines.retain(|_, kept| kept.used > median);
    }
}

#[derive(Debug, Default)]
pub struct TableCache(Mutex<CachedTables>);

impl TableCache {
    /// Nothing is left half done under this lock.
    fn kept(&self) -> MutexGuard<'_, CachedTables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the tables kept.
    pub fn bytes(&self) -> usize {
        self.kept().bytes()
    }

    /// The numbers of an instance's variants, which are those they have in other instances that read them from the same banks. Forgets
    /// what no later instance reads.
    pub fn number(
        &self,
        banks: &[Arc<ServedBank>],
        variants: &[Placed<ServedVariant>],
    ) -> Vec<u64> {
        let mut kept = self.kept();
        let CachedTables {
            sources,
            last,
            lines,
            ..
        } = &mut *kept;
        sources.retain(|_, source| source.lives());
        let living: HashSet<u64> = sources.values().map(|source| source.number).collect();
        lines.retain(|(mix, _), _| mix.iter().all(|(number, _)| living.contains(number)));
        let numbers = variants.iter().map(|Placed { own, banks: homes }| {
            let homes: Vec<_> = homes.iter().filter_map(|&bank| banks.get(bank)).collect();
            let addresses = homes.iter().map(|bank| Arc::as_ptr(bank).addr()).collect();
            let source = sources
                .entry((Arc::as_ptr(own).addr(), addresses))
                .or_insert_with(|| {
                    *last += 1;
                    Source {
                        number: *last,
                        variant: Arc::downgrade(own),
                        banks: homes.iter().map(|&bank| Arc::downgrade(bank)).collect(),
                    }
                });
            source.number
        });
        numbers.collect()
    }

    /// The tables of a mix of variants with these `numbers` at a noise level; made by `make` where they are not kept, outside the
    /// lock.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get<E>(
        &self,
        numbers: &[u64],
        mix: &Mix,
        sigma: f32,
        make: impl FnOnce() -> Result<ModulationRow, E>,
    ) -> Result<Arc<ModulationRow>, E> {
        let key: Key = (mixed(numbers, mix), sigma.to_bits()); // `make` says where one is not there
        let mut cached = self.kept();
        cached.clock += 1;
        let used = cached.clock;
        if let Some(kept) = cached.lines.get_mut(&key) {
            kept.used = used;
            return Ok(kept.line.clone());
        }
        drop(cached);
        let mut line = make()?;
        let mut cached = self.kept();
        let [mut bytes, constants] = line.bytes();
        // The mix's biases are the same at every noise level.
        match cached.lines.iter().find(|((mix, _), _)| *mix == key.0) {
            Some((_, other)) => line.share_constants(&other.line),
            None => bytes += constants,
        }
        if cached.lines.len() >= LEAST && cached.bytes() + bytes > BYTES {
            cached.forget();
        }
        let line = Arc::new(line);
        let kept = CachedLine {
            line: line.clone(),
            used,
        };
        cached.lines.insert(key, kept);
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::VariantId;
    use crate::model::conditioning::{LayerLine, NormLine, Vector};
    use crate::model::weights::VariantWeights;
    use std::collections::BTreeMap;

    fn line(width: usize, bias: usize) -> ModulationRow {
        let (own, bias): (Vector, Vector) = (vec![0.0; width].into(), vec![0.0; bias].into());
        let norm = NormLine {
            gain: own.clone(),
            shift: Some(own.clone()),
        };
        ModulationRow {
            layers: vec![LayerLine {
                norm1: norm.clone(),
                gate1: Some(own.clone()),
                norm2: norm.clone(),
                gate2: Some(own),
                qkv_bias: None,
                query_gain: None,
                key_gain: None,
                up_bias: Some(bias.clone()),
                down_bias: Some(bias.clone()),
            }],
            norm,
            bias: Some(bias),
        }
    }

    fn bank() -> Arc<ServedBank> {
        Arc::new(ServedBank {
            tensors: BTreeMap::new(),
        })
    }

    fn variant(banks: &[usize]) -> Placed<ServedVariant> {
        let weights = VariantWeights {
            seed: 0,
            scale: 1.0,
            banks: Vec::new(),
            gains: BTreeMap::new(),
            kept: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        Placed {
            own: Arc::new(ServedVariant::new(&weights, []).expect("nothing to refuse")),
            banks: banks.to_vec(),
        }
    }

    /// Whether the tables were kept.
    fn kept(cache: &TableCache, numbers: &[u64], mix: &Mix, sigma: f32) -> bool {
        let mut made = false;
        let made_now = || -> Result<ModulationRow, ()> {
            made = true;
            Ok(line(100, 10))
        };
        cache.get(numbers, mix, sigma, made_now).expect("a line");
        !made
    }

    #[test]
    fn instances_share_the_tables_of_what_they_read_alike() {
        let cache = TableCache::default();
        let (banks, a, b) = ([bank(), bank()], variant(&[0]), variant(&[1]));
        let (first, second) = (Mix::single(VariantId(0)), Mix::single(VariantId(1)));
        let before = cache.number(&banks, &[a.clone(), b.clone()]);
        for (mix, sigma) in [
            (&Mix::base(), 0.0),
            (&first, 0.0),
            (&first, 1.0),
            (&second, 0.0),
        ] {
            assert!(!kept(&cache, &before, mix, sigma));
            assert!(kept(&cache, &before, mix, sigma));
        }
        // Another bank instead of the second, the variants in another order.
        let after_banks = [banks[0].clone(), bank()];
        let after = cache.number(&after_banks, &[b.clone(), a.clone()]);
        assert!(kept(&cache, &after, &Mix::base(), 0.0));
        assert!(kept(&cache, &after, &second, 1.0), "the first of before");
        assert!(!kept(&cache, &after, &first, 0.0), "its bank is another");
        assert!(
            kept(&cache, &before, &second, 0.0),
            "the old instance still runs"
        );
        let all = cache.bytes();
        drop((banks, b));
        let numbers = cache.number(&after_banks, &[a]);
        assert!(
            cache.bytes() < all,
            "what nobody reads any more is forgotten"
        );
        assert!(kept(&cache, &numbers, &first, 1.0) && kept(&cache, &numbers, &Mix::base(), 0.0));
    }

    #[test]
    fn biases_are_counted_once_and_tables_are_bounded() {
        let cache = TableCache::default();
        let whole: usize = line(100, 10).bytes().iter().sum();
        assert_eq!(whole, 4 * (8 * 100 + 3 * 10));
        kept(&cache, &[], &Mix::base(), 0.0);
        kept(&cache, &[], &Mix::base(), 1.0);
        assert_eq!(cache.bytes(), 2 * whole - 4 * 3 * 10);
        // Far more than there is room for, as a client can ask for with grids of its own.
        let large = 1 << 15;
        let mut most = 0;
        for sigma in 0..600 {
            cache
                .get(&[], &Mix::base(), sigma as f32, || {
                    Ok::<_, ()>(line(large, 10))
                })
                .expect("a line");
            most = most.max(cache.bytes());
        }
        assert!(
            most > BYTES && most <= LEAST * line(large, 10).bytes().iter().sum::<usize>(),
            "{most}"
        );
    }

    #[test]
    fn tables_in_use_outlive_other_peoples_unique_mixes() {
        let cache = TableCache::default();
        let mine = Mix::single(VariantId(0));
        assert!(!kept(&cache, &[1], &mine, 0.5));
        for weight in 1..2000u32 {
            let unique = Mix(vec![(VariantId(0), 1.0 / weight as f32 + 1.0)]);
            let made = || Ok::<_, ()>(line(1 << 13, 10));
            cache.get(&[1], &unique, 0.5, made).expect("a line");
            assert!(kept(&cache, &[1], &mine, 0.5), "after {weight}");
        }
        let each: usize = line(1 << 13, 10).bytes().iter().sum();
        assert!(cache.bytes() <= (LEAST + 1) * each);
    }
}
