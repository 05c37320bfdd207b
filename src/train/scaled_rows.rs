//! A matrix of which only a factor for each row is trained.

/// A matrix `fixed + factor · scaled`, with a factor for each row.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledRows {
    /// [rows, cols]
    pub fixed: Vec<f32>,
    /// [rows, cols]
    pub scaled: Vec<f32>,
}

impl ScaledRows {
    /// The matrix with these factors.
    pub fn with(&self, factors: &[f32]) -> Vec<f32> {
        let cols = self.scaled.len() / factors.len().max(1);
        let mut matrix = self.fixed.clone();
        let rows = matrix.chunks_mut(cols).zip(self.scaled.chunks(cols));
        for ((row, scaled), factor) in rows.zip(factors) {
            for (value, scaled) in row.iter_mut().zip(scaled) {
                *value += factor * scaled;
            }
        }
        matrix
    }

    /// The factors' gradient, [rows], from the matrix's.
    pub fn gradient(&self, matrix: &[f32], rows: usize) -> Vec<f32> {
        let cols = self.scaled.len() / rows.max(1);
        let along = |(gradient, scaled): (&[f32], &[f32])| {
            gradient.iter().zip(scaled).map(|(g, d)| g * d).sum()
        };
        let rows = matrix.chunks(cols).zip(self.scaled.chunks(cols));
        rows.map(along).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_gradient_is_that_of_what_the_network_sees() {
        let numbers = |step: f32| (0..24).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
        let (fixed, scaled, slope) = (numbers(0.7), numbers(0.3), numbers(0.5));
        let matrix = ScaledRows {
            fixed: fixed.clone(),
            scaled: scaled.clone(),
        };
        let sum = |(fixed, scaled): (&f32, &f32)| fixed + scaled;
        let whole: Vec<f32> = fixed.iter().zip(&scaled).map(sum).collect();
        assert_eq!(matrix.with(&[1.0; 4]), whole);
        // A loss that is the inner product of `slope` and what the network sees.
        let loss = |factors: &[f32]| -> f32 {
            let seen = matrix.with(factors);
            seen.iter().zip(&slope).map(|(a, b)| a * b).sum()
        };
        for (row, analytic) in matrix.gradient(&slope, 4).into_iter().enumerate() {
            let moved = |by: f32| {
                let mut factors = [1.0; 4];
                factors[row] += by;
                loss(&factors)
            };
            let numeric = moved(0.5) - moved(-0.5);
            assert!(
                (numeric - analytic).abs() < 1e-4,
                "{row}: {numeric} against {analytic}"
            );
        }
    }
}
