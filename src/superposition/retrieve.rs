//! Reading a variant back from a superposition, materialised.

use super::{Bank, Scheme};

/// How one tensor of one variant is read: d ~= c · (a l) ⊙ S ⊙ r.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval<'a> {
    pub scheme: Scheme,
    pub seed: u64,
    /// a, one a row; ignored by a scheme without gains.
    pub gains: &'a [f32],
    /// c.
    pub scale: f32,
}

impl Retrieval<'_> {
    /// Turns S_b of `tensor` [rows, cols], in row order and in whatever precision it was kept, into the retrieved
    /// delta, in place. `gains` has one number a row.
    pub fn apply(&self, tensor: &str, shape: [usize; 2], superposition: &mut [f32]) {
        let transform = self.scheme.transform(self.seed, tensor, shape);
        transform.apply_inverse(superposition);
        for (row, values) in superposition.chunks_exact_mut(shape[1]).enumerate() {
            let factor = self.scale
                * if self.scheme.gains {
                    self.gains[row]
                } else {
                    1.0
                };
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// The retrieved delta of one tensor, [rows, cols] in row order; `None` where the bank does not hold the tensor
/// or the gains are not one a row.
pub fn retrieve(
    bank: &Bank,
    tensor: &str,
    seed: u64,
    gains: &[f32],
    scale: f32,
) -> Option<Vec<f32>> {
    let fixed = bank.tensors.get(tensor)?;
    let scheme = bank.scheme;
    if scheme.gains && gains.len() != fixed.rows {
        return None;
    }
    let mut values = fixed.dense();
    let retrieval = Retrieval {
        scheme,
        seed,
        gains,
        scale,
    };
    retrieval.apply(tensor, [fixed.rows, fixed.cols], &mut values);
    Some(values)
}
