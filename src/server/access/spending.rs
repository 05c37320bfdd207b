//! What one key has of the server: requests under way, and tokens a minute, charged as they are asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a key may have; `None`: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    pub requests: Option<usize>,
    pub tokens_per_minute: Option<u32>,
}

/// What it has.
#[derive(Debug, Default)]
pub struct Spending(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    under_way: usize,
    /// Tokens that are not earned back yet, which time does at the rate of the allowance.
    tokens: f64,
    counted: Option<Instant>,
}

/// A key has no more of something now.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Overspent {
    #[error("the key has {limit} requests under way and may have no more")]
    Requests { limit: usize },
    #[error("the key may have {limit} tokens a minute, and this request asks for {asked}")]
    Never { limit: u32, asked: usize },
    #[error("the key has had its {limit} tokens of this minute")]
    Tokens { limit: u32, retry_after: Duration },
}

/// One request's share. When it goes, the request is not under way any more, and what was asked for and not made is given back.
#[derive(Debug)]
pub struct Charge {
    spending: Arc<Spending>,
    left: usize,
}

impl Spending {
    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge {
    pub(super) fn new(
        spending: Arc<Spending>,
        allowance: Allowance,
        tokens: usize,
    ) -> Result<Charge, Overspent> {
        Charge::at(spending, allowance, tokens, Instant::now())
    }

    fn at(
        spending: Arc<Spending>,
        allowance: Allowance,
        tokens: usize,
        now: Instant,
    ) -> Result<Charge, Overspent> {
        let mut spent = spending.spent();
        if let Some(limit) = allowance.requests.filter(|&limit| spent.under_way >= limit) {
            return Err(Overspent::Requests { limit });
        }
        if let Some(limit) = allowance.tokens_per_minute {
            let (most, asked) = (f64::from(limit), tokens as f64);
            if asked > most {
                return Err(Overspent::Never {
                    limit,
                    asked: tokens,
                });
            }
            let since = spent.counted.map_or(Duration::ZERO, |then| now - then);
            spent.tokens = (spent.tokens - since.as_secs_f64() * most / 60.0).max(0.0);
            spent.counted = Some(now);
            let over = spent.tokens + asked - most;
            if over > 0.0 {
                let retry_after = Duration::from_secs_f64(over * 60.0 / most);
                return Err(Overspent::Tokens { limit, retry_after });
            }
        }
        spent.tokens += tokens as f64;
        spent.under_way += 1;
        drop(spent);
        Ok(Charge {
            spending,
            left: tokens,
        })
    }

    /// So many of the tokens were made.
    pub fn made(&mut self, tokens: usize) {
        self.left = self.left.saturating_sub(tokens);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut spent = self.spending.spent();
        spent.under_way -= 1;
        spent.tokens = (spent.tokens - self.left as f64).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spending_ends_with_its_requests_and_what_was_not_made_comes_back() {
        let (spending, now) = (Arc::<Spending>::default(), Instant::now());
        let allowance = Allowance {
            requests: Some(2),
            tokens_per_minute: Some(100),
        };
        let ask = |tokens, later| {
            let now = now + Duration::from_secs(later);
            Charge::at(spending.clone(), allowance, tokens, now)
        };
        let mut first = ask(60, 0).expect("room");
        let second = ask(40, 0).expect("room");
        assert_eq!(
            ask(1, 0).err(),
            Some(Overspent::Requests { limit: 2 }),
            "two are under way"
        );
        drop(second); // made nothing
        first.made(10);
        drop(first); // fifty of its sixty come back
        let third = ask(90, 0).expect("ninety are left");
        let wait = Overspent::Tokens {
            limit: 100,
            retry_after: Duration::from_secs(3),
        };
        assert_eq!(ask(5, 0).err(), Some(wait));
        ask(5, 3).expect("three seconds earn five");
        let never = Overspent::Never {
            limit: 100,
            asked: 101,
        };
        assert_eq!(ask(101, 0).err(), Some(never));
        drop(third);
    }
}
