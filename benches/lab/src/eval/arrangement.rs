//! Variants kept in superpositions, as a store places them and as they are served.

use super::share;
use super::subjects::{Subject, Subjects};
use anyhow::Result;
use choir::catalog::Forms;
use choir::cli::capacity::Capacity;
use choir::ops::quantized::QuantizedMatrix;
use choir::store::emptiest;
use choir::superposition::{Bank, HEAD, Private, Retrieval, Scheme};
use std::collections::BTreeMap;

/// Each variant's bank as a store places them that are all added at once, and the number of banks.
pub fn place(seeds: &[u64], capacity: usize) -> (Vec<usize>, usize) {
    let mut banks: Vec<Vec<u64>> = vec![Vec::new(); seeds.len().div_ceil(capacity)];
    let mut places = Vec::with_capacity(seeds.len());
    for &seed in seeds {
        let taken: Vec<_> = (banks.iter())
            .map(|bank| (!bank.contains(&seed)).then_some(bank.len()))
            .collect();
        let index = emptiest(&taken, capacity).unwrap_or(banks.len());
        if index == banks.len() {
            banks.push(Vec::new());
        }
        banks[index].push(seed);
        places.push(index);
    }
    (places, banks.len())
}

/// All variants in banks as they are served.
pub struct Arrangement {
    scheme: Scheme,
    /// By tensor: every bank that holds it.
    banks: BTreeMap<String, Vec<QuantizedMatrix>>,
    /// By variant: its bank among the body's and among the head's.
    places: [Vec<usize>; 2],
    private: Vec<Private>,
}

impl Arrangement {
    pub fn new(
        subjects: &Subjects,
        scheme: Scheme,
        capacity: Capacity,
        forms: Forms,
    ) -> Result<Self> {
        let seeds: Vec<u64> = subjects
            .variants
            .iter()
            .map(|variant| variant.seed)
            .collect();
        let mut arrangement = Self {
            scheme,
            banks: BTreeMap::new(),
            places: Default::default(),
            private: subjects.variants.iter().map(private(scheme)).collect(),
        };
        for (kind, (capacity, form)) in [(capacity.body, forms.body), (capacity.head, forms.head)]
            .into_iter()
            .enumerate()
        {
            let (places, count) = place(&seeds, capacity);
            for index in 0..count {
                let matrices = subjects
                    .base
                    .0
                    .iter()
                    .filter(|(name, _)| kind_of(name) == kind);
                let shapes =
                    matrices.filter_map(|(name, tensor)| Some((name.clone(), tensor.matrix()?)));
                let mut bank = Bank::new(capacity, scheme, shapes);
                let members = subjects.variants.iter().zip(&places);
                for (variant, _) in members.filter(|(_, place)| **place == index) {
                    bank.accumulate(&variant.delta, variant.seed)?;
                }
                for (name, fixed) in &bank.tensors {
                    let served =
                        QuantizedMatrix::new(&fixed.dense(), fixed.rows, fixed.cols, form)?;
                    arrangement
                        .banks
                        .entry(name.clone())
                        .or_default()
                        .push(served);
                }
            }
            arrangement.places[kind] = places;
        }
        Ok(arrangement)
    }

    /// Bits for each superposed parameter of each variant: banks as served, and what every variant keeps whole.
    pub fn bits(&self) -> f64 {
        let served = self.banks.values().flatten().map(QuantizedMatrix::bytes);
        let bytes = served.chain(self.private.iter().map(Private::bytes)).sum();
        let parameters = self.banks.values().filter_map(|banks| banks.first());
        let parameters = parameters.map(|bank| bank.shape().0 * bank.shape().1).sum();
        share::bits(bytes, parameters, self.private.len())
    }

    /// The delta of one tensor of variant `index`, as it is read back with the scale c; vectors as they are.
    pub fn retrieve(
        &self,
        index: usize,
        variant: &Subject,
        name: &str,
        scale: f32,
    ) -> Option<Vec<f32>> {
        let private = &self.private[index];
        let Some(banks) = self.banks.get(name) else {
            return private.vectors.get(name).cloned();
        };
        let bank = &banks[self.places[kind_of(name)][index]];
        let (rows, cols) = bank.shape();
        let mut values = vec![0f32; rows * cols];
        values
            .chunks_exact_mut(cols)
            .enumerate()
            .for_each(|(row, values)| bank.row(row, values));
        let retrieval = Retrieval {
            scheme: self.scheme,
            seed: variant.seed,
            gains: private.gains.get(name).map_or(&[], Vec::as_slice),
            scale,
        };
        retrieval.apply(name, [rows, cols], &mut values);
        Some(values)
    }
}

/// 0 for a tensor of the body's banks, 1 for one of the head's.
fn kind_of(tensor: &str) -> usize {
    usize::from(tensor == HEAD)
}

/// What a variant keeps whole; a scheme without gains keeps none.
fn private(scheme: Scheme) -> impl Fn(&Subject) -> Private {
    move |variant| {
        let mut private = Private::of(&variant.delta);
        if !scheme.gains {
            private.gains.clear();
        }
        private
    }
}
