//! Who takes part in the next step, and who makes room for another. Knows neither tensors nor tokens, only how many each would
//! bring.

use super::ledger::{Account, BATCH_PART};
use super::request::Priority;

/// What one running sequence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Index of its variant's account, which is of its priority.
    pub account: usize,
    pub priority: Priority,
    /// Tokens of its next evaluation: all or nothing, or the least it can use.
    pub tokens: usize,
    /// It can use any number of tokens above that, as scoring can.
    pub elastic: bool,
    /// The last step it took part in.
    pub served: u64,
    /// Somebody waits for its first block, and it is all that its variant has running.
    pub urgent: bool,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShare {
    /// Index into the claims.
    pub index: usize,
    /// Tokens it may bring.
    pub tokens: usize,
}

/// Who was left out of so many steps comes first.
const ELDEST: u64 = 64;

/// Chooses step number `now`, of about `budget` tokens.
///
/// Interactive claims come first; batch claims get an eighth of the tokens and what is left over. Of each priority, who was
/// left out for long and who is urgent come first; then, token by token, the variant with the lowest counter, and of a variant who was
/// served longest ago. The first one of each priority always fits. So a long prefill and many denoising rows take turns, nobody
/// starves, and no claim is left out that would have fitted into what is left.
pub fn choose(claims: &[Claim], accounts: &[Account], budget: usize, now: u64) -> Vec<StepShare> {
    let is_of = |index: &usize, priority| claims[*index].priority == priority;
    let batch = claims.iter().any(|claim| claim.priority == Priority::Batch);
    let kept_back = if batch { budget / BATCH_PART } else { 0 };
    let mut left = budget - kept_back;
    let (mut shares, mut misfits) = (Vec::with_capacity(claims.len()), Vec::new());
    for (priority, later) in [(Priority::Interactive, kept_back), (Priority::Batch, 0)] {
        let of_this = || (0..claims.len()).filter(|index| is_of(index, priority));
        let mut queues = queues(claims, accounts, of_this(), now);
        let smallest = of_this()
            .map(|index| claims[index].tokens)
            .min()
            .unwrap_or(0);
        let (mut first, before) = (true, misfits.len());
        while let Some(at) = lowest(&queues) {
            if misfits.len() > before && left + later < smallest {
                break; // nothing fits any more, now or later
            }
            let Some(index) = queues[at].pop() else {
                queues.remove(at);
                continue;
            };
            let Claim {
                tokens, elastic, ..
            } = claims[index];
            if tokens > left && !first {
                misfits.push(index);
                continue;
            }
            let tokens = if elastic { tokens.max(left) } else { tokens };
            left = left.saturating_sub(tokens);
            queues[at].pay(tokens);
            shares.push(StepShare { index, tokens });
            first = false;
        }
        left += later;
    }
    // Batch claims may have used less than was kept back for them.
    for index in misfits {
        let tokens = claims[index].tokens;
        if tokens <= left {
            left -= tokens;
            shares.push(StepShare { index, tokens });
        }
    }
    shares
}

impl Claim {
    /// Lower comes first, whatever its variant has had.
    fn turn(&self, now: u64) -> u8 {
        match (now.saturating_sub(self.served) > ELDEST, self.urgent) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    }
}

/// The tokens of a step that is kept short for who is urgent: theirs, and what batch claims get beside them; `budget` where nobody
/// is.
pub fn short(claims: &[Claim], budget: usize) -> usize {
    let urgent: usize = (claims.iter().filter(|claim| claim.urgent))
        .map(|claim| claim.tokens)
        .sum();
    match urgent {
        0 => budget,
        tokens => (tokens * BATCH_PART).div_ceil(BATCH_PART - 1).min(budget),
    }
}

/// One account's claims, in their order.
struct Queue<'a> {
    account: &'a Account,
    /// The account's, with what it gets in this step.
    counter: f64,
    /// Turn, when last served, index: the next one last.
    claims: Vec<(u8, u64, usize)>,
}

impl Queue<'_> {
    /// The next claim's; after all others' where there is none.
    fn turn(&self) -> u8 {
        self.claims.last().map_or(u8::MAX, |claim| claim.0)
    }

    fn pop(&mut self) -> Option<usize> {
        self.claims.pop().map(|claim| claim.2)
    }

    fn pay(&mut self, tokens: usize) {
        self.counter += tokens as f64 / self.account.weight;
    }
}

/// By account, but for those without a claim.
fn queues<'a>(
    claims: &[Claim],
    accounts: &'a [Account],
    of: impl Iterator<Item = usize>,
    now: u64,
) -> Vec<Queue<'a>> {
    let queue = |account: &'a Account| Queue {
        account,
        counter: account.counter,
        claims: Vec::new(),
    };
    let mut queues: Vec<Queue> = accounts.iter().map(queue).collect();
    for index in of {
        let claim = &claims[index];
        queues[claim.account]
            .claims
            .push((claim.turn(now), claim.served, index));
    }
    queues.retain_mut(|queue| {
        queue.claims.sort_unstable_by(|a, b| b.cmp(a)); // of equals who came first
        !queue.claims.is_empty()
    });
    queues
}

/// Whose next claim comes next.
fn lowest(queues: &[Queue]) -> Option<usize> {
    let key = |queue: &Queue| (queue.turn(), queue.counter);
    let keys = queues.iter().map(key).enumerate();
    let least = keys.min_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    least.map(|(at, _)| at)
}

/// A sequence as it counts among those that have a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningSequence {
    /// Index of its variant's account.
    pub account: usize,
    pub priority: Priority,
    /// When it started, of any clock.
    pub started: u64,
}

/// Who is to give its place up for the one that waits and is next, if anyone, where all `places` are taken.
///
/// Only an interactive request has others make room for it: batch sequences beyond their part of the places; else, where its
/// variant has fewer places than its fair share, interactive sequences of the variant that is furthest above its own. The latest one
/// goes, which loses least. `waiting` says how many interactive requests of each account want a place.
pub fn victim(
    running: &[RunningSequence],
    next: RunningSequence,
    waiting: &[usize],
    accounts: &[Account],
    places: usize,
) -> Option<usize> {
    if next.priority != Priority::Interactive || running.len() < places {
        return None;
    }
    let of = |priority| move |place: &&RunningSequence| place.priority == priority;
    let latest = |keep: &dyn Fn(&RunningSequence) -> bool| {
        let candidates = running.iter().enumerate().filter(|(_, place)| keep(place));
        candidates
            .max_by_key(|(_, place)| place.started)
            .map(|(index, _)| index)
    };
    let batch = running.iter().filter(of(Priority::Batch)).count();
    if batch > (places / BATCH_PART).max(1) {
        return latest(&|place| place.priority == Priority::Batch);
    }
    let mut has = vec![0; accounts.len()];
    running
        .iter()
        .filter(of(Priority::Interactive))
        .for_each(|place| has[place.account] += 1);
    let wants: Vec<usize> = has
        .iter()
        .zip(waiting)
        .map(|(has, waiting)| has + waiting)
        .collect();
    let fair = fair_shares(&wants, accounts, places.saturating_sub(batch));
    if (has[next.account] + 1) as f64 > fair[next.account] {
        return None;
    }
    let above = |account: usize| (has[account] as f64 - fair[account]) / accounts[account].weight;
    let most = (0..accounts.len()).max_by(|&a, &b| above(a).total_cmp(&above(b)))?;
    // Its last place is not taken, and taking one must not put it below its own share.
    if has[most] < 2 || ((has[most] - 1) as f64) < fair[most].floor() {
        return None;
    }
    latest(&|place| place.priority == Priority::Interactive && place.account == most)
}

/// Max-min fair shares of `places` by weight: nobody gets more than it wants, and what it does not want is the others'.
fn fair_shares(wants: &[usize], accounts: &[Account], places: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    let level = |&account: &usize| wants[account] as f64 / accounts[account].weight;
    order.sort_by(|a, b| level(a).total_cmp(&level(b)));
    let mut weights: f64 = order.iter().map(|&account| accounts[account].weight).sum();
    let (mut left, mut shares) = (places as f64, vec![0.0; wants.len()]);
    for account in order {
        let weight = accounts[account].weight;
        shares[account] = (wants[account] as f64).min(left * weight / weights);
        left -= shares[account];
        weights -= weight;
    }
    shares
}

#[cfg(test)]
mod tests;
