//! Who takes part in the next step. Knows neither tensors nor tokens, only how many each would bring.

/// What one running sequence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Tokens of its next evaluation: all or nothing for text, the least it can use for background work.
    pub tokens: usize,
    /// The last step it took part in.
    pub served: u64,
    /// Background work (scoring) takes what text leaves over.
    pub background: bool,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into the claims.
    pub index: usize,
    /// Tokens it may bring.
    pub tokens: usize,
}

/// Background work gets at least this part of a step's tokens while there is any.
const BACKGROUND_PART: usize = 8;

/// Chooses a step of about `budget` tokens: who was served longest ago comes first, equals in the order they arrived.
/// Whoever does not fit stays for the next step, where it comes before those that did; the first one always fits.
/// So a long prefill and many denoising rows take turns, and nobody starves.
pub fn choose(claims: &[Claim], budget: usize) -> Vec<Share> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|&index| (claims[index].background, claims[index].served)); // stable: ties by arrival
    let (text, background) = order.split_at(order.partition_point(|&index| !claims[index].background));

    let kept_back = if background.is_empty() {
        0
    } else {
        budget / BACKGROUND_PART
    };
    let mut left = budget - kept_back;
    let mut shares = Vec::with_capacity(claims.len());
    for &index in text {
        let tokens = claims[index].tokens;
        if tokens <= left || shares.is_empty() {
            left = left.saturating_sub(tokens);
            shares.push(Share { index, tokens });
        }
    }
    if let Some(&index) = background.first() {
        let tokens = (left + kept_back).max(claims[index].tokens);
        shares.push(Share { index, tokens });
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: usize, served: u64) -> Claim {
        Claim {
            tokens,
            served,
            background: false,
        }
    }

    fn indices(shares: &[Share]) -> Vec<usize> {
        shares.iter().map(|share| share.index).collect()
    }

    #[test]
    fn longest_unserved_first_and_ties_by_arrival() {
        let claims = [text(4, 2), text(4, 1), text(4, 2), text(4, 0)];
        assert_eq!(indices(&choose(&claims, 12)), [3, 1, 0]);
    }

    #[test]
    fn one_always_fits_and_small_ones_pass_a_big_one_once() {
        assert_eq!(indices(&choose(&[text(100, 0)], 8)), [0]);
        let (mut claims, mut served) = ([text(6, 0), text(6, 0), text(4, 0)], [0; 3]);
        for step in 1..=9 {
            for share in choose(&claims, 10) {
                claims[share.index].served = step;
                served[share.index] += 1;
            }
        }
        assert!(served.iter().all(|&times| times >= 4), "{served:?}");
    }

    #[test]
    fn background_takes_what_is_left_and_never_nothing() {
        let background = Claim {
            tokens: 4,
            served: 0,
            background: true,
        };
        let share = |claims: &[Claim]| choose(claims, 64).last().copied();
        assert_eq!(share(&[background, text(10, 0)]), Some(Share { index: 0, tokens: 54 }));
        assert_eq!(share(&[background, text(56, 0)]), Some(Share { index: 0, tokens: 8 }));
        assert_eq!(share(&[background]), Some(Share { index: 0, tokens: 64 }));
        let crowd = [
            text(56, 0),
            text(56, 0),
            Claim {
                tokens: 16,
                ..background
            },
        ];
        assert_eq!(share(&crowd), Some(Share { index: 2, tokens: 16 }));
    }
}
