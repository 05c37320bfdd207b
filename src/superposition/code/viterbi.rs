//! The nearest row that has a stream: Viterbi's search through the trellis of [`crate::ops::coded`].
//!
//! ```text
//! cost_t(s) = min over the windows p that s may follow of cost_{t-1}(p)  +  sum over j of (table_j[s] / unit - x_{mt+j})²
//! ```
//!
//! The windows that s may follow are those whose upper 7 - k bits are s's lower ones. A row's own x² is left out, which
//! changes every path alike. Sixteen rows are searched side by side, one to a lane, so that no lane waits for another. All
//! sums are f32 in an order that is fixed, and of equal costs the lower window wins, so a row's stream depends on the row
//! alone: not on the machine, its instructions, the threads or the rows beside it.

use crate::ops::coded::{Rate, STATES, WINDOW};

/// Rows side by side.
pub(super) const LANES: usize = 16;

type Lane = [f32; LANES];

/// The tables of one rate, ready for the search.
pub(super) struct Trellis {
    rate: Rate,
    /// Twice the tables, in standard deviations.
    doubled: Vec<[f32; STATES]>,
    /// The sum over the tables of an entry's squares.
    squares: [f32; STATES],
}

/// What a search needs room for; it is kept between searches.
#[derive(Default)]
pub(super) struct Room {
    /// For each step and each group of windows that share what they follow: which of those was cheapest.
    back: Vec<[u8; LANES]>,
    /// The rows of one step.
    rows: Vec<Lane>,
}

impl Trellis {
    pub fn new(rate: Rate) -> Self {
        let unit = rate.unit();
        let entry = |value: &i8| f32::from(*value) / unit;
        let tables: Vec<[f32; STATES]> = (rate.tables().iter())
            .map(|table| std::array::from_fn(|s| entry(&table[s])))
            .collect();
        Trellis {
            rate,
            squares: std::array::from_fn(|s| tables.iter().map(|t| t[s] * t[s]).sum()),
            doubled: tables.iter().map(|t| t.map(|entry| 2.0 * entry)).collect(),
        }
    }

    /// Writes the streams of up to [`LANES`] rows of `cols` numbers with a variance near 1, each as many bytes as
    /// [`Rate::row_bytes`] says, zeros at first.
    pub fn encode(&self, rows: &[f32], cols: usize, streams: &mut [u8], room: &mut Room) {
        let per_step = self.rate.step_weights();
        room.rows.clear();
        room.rows
            .resize(self.rate.steps(cols) * per_step, [0.0; LANES]);
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            for (at, value) in room.rows.iter_mut().zip(row) {
                at[lane] = *value;
            }
        }
        let last = match self.rate {
            Rate::Quarter => self.search::<1, 4>(room),
            Rate::Half => self.search::<1, 2>(room),
            Rate::One => self.search::<1, 1>(room),
            Rate::Two => self.search::<2, 1>(room),
            Rate::Three => self.search::<3, 1>(room),
            Rate::Four => self.search::<4, 1>(room),
        };
        for (lane, stream) in streams
            .chunks_exact_mut(self.rate.row_bytes(cols))
            .enumerate()
        {
            self.trace(cols, lane, cheapest(&last, lane), &room.back, stream);
        }
    }

    /// The costs of all windows behind the last step, for K bits and M weights a step.
    fn search<const K: usize, const M: usize>(&self, room: &mut Room) -> [Lane; STATES] {
        let groups = STATES >> K;
        let steps = room.rows.len() / M;
        room.back.clear();
        room.back.resize(steps * groups, [0; LANES]);
        let (mut cost, mut next) = ([[0.0; LANES]; STATES], [[0.0; LANES]; STATES]);
        let doubled: &[[f32; STATES]; M] =
            self.doubled.first_chunk().unwrap_or(&[[0.0; STATES]; M]);
        for (step, (x, back)) in (room.rows.as_chunks::<M>().0.iter())
            .zip(room.back.chunks_exact_mut(groups))
            .enumerate()
        {
            for (group, back) in back.iter_mut().enumerate() {
                let mut best = [0.0; LANES];
                if step > 0 {
                    best = cost[group << K];
                    let mut from = [0u32; LANES];
                    for j in 1..1usize << K {
                        let other = &cost[group << K | j];
                        for lane in 0..LANES {
                            let less = other[lane] < best[lane];
                            best[lane] = if less { other[lane] } else { best[lane] };
                            from[lane] = if less { j as u32 } else { from[lane] };
                        }
                    }
                    *back = from.map(|j| j as u8);
                }
                for high in 0..1usize << K {
                    let window = group | high << (WINDOW - K);
                    let mut sum = best;
                    for sum in &mut sum {
                        *sum += self.squares[window];
                    }
                    for (x, table) in x.iter().zip(doubled) {
                        for (sum, x) in sum.iter_mut().zip(x) {
                            *sum -= x * table[window];
                        }
                    }
                    next[window] = sum;
                }
            }
            std::mem::swap(&mut cost, &mut next);
        }
        cost
    }

    /// Writes the path that ends in `window`, from its end.
    fn trace(
        &self,
        cols: usize,
        lane: usize,
        mut window: usize,
        back: &[[u8; LANES]],
        stream: &mut [u8],
    ) {
        let bits = self.rate.step_bits();
        let groups = STATES >> bits;
        let mut write = |first: usize, value: usize, count: usize| {
            for bit in 0..count {
                stream[(first + bit) / 8] |= ((value >> bit & 1) as u8) << ((first + bit) % 8);
            }
        };
        for step in (1..self.rate.steps(cols)).rev() {
            write(bits * step + WINDOW - bits, window >> (WINDOW - bits), bits);
            let group = window % groups;
            window = group << bits | usize::from(back[step * groups + group][lane]);
        }
        write(0, window, WINDOW);
    }
}

/// The cheapest window of a lane, the lowest of equal ones.
fn cheapest(cost: &[Lane; STATES], lane: usize) -> usize {
    let lower = |best: usize, window: usize| match cost[window][lane] < cost[best][lane] {
        true => window,
        false => best,
    };
    (1..STATES).fold(0, lower)
}
