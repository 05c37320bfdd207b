//! From what became of every request to figures.

use super::drive::{Driven, RequestEnd, RequestOutcome};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Of the requests of one variant, or of all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub name: String,
    /// Requests that were due after the warm-up.
    pub requests: usize,
    pub finished: usize,
    /// Refused since there was no room for it, or no time.
    pub rejected: usize,
    /// Those whose deadline passed.
    pub late: usize,
    /// Those that ended otherwise, or were not sent.
    pub failed: usize,
    /// Tokens that came after the warm-up, of all requests.
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// Seconds, of finished requests: from when one was due to its first block, between blocks, and to its end.
    pub first_block: Quantiles,
    pub between_blocks: Quantiles,
    pub end_to_end: Quantiles,
    /// Seconds, of those that were refused, until they were.
    pub refusal: Quantiles,
}

impl Figures {
    /// The share of the requests that were not refused which finished; all of them before their deadline, where they had one.
    pub fn kept(&self) -> Option<f64> {
        let accepted = self.requests - self.rejected;
        (accepted > 0).then(|| self.finished as f64 / accepted as f64)
    }
}

/// Of a sample, in seconds; `None` of an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// Seconds that were measured, warm-up left out.
    pub seconds: f64,
    pub overall: Figures,
    pub variants: Vec<Figures>,
    /// Tokens of the variant served most over those of the one served least, among those that were asked for, until the last
    /// request came.
    pub fairness: Option<f64>,
    /// Requests without an end, long after the load.
    pub unanswered: u64,
    /// The first failure, in the server's words.
    pub first_failure: Option<String>,
    /// Set where the server went away: the figures are of what came before.
    pub server_gone: Option<String>,
    /// What the server holds, in bytes by part, at the end.
    pub memory: Vec<(String, u64)>,
    /// How many times a second requests were finished in a closed load before this one, and how many of this one came then.
    pub overload: Option<Overload>,
    pub probe: Option<Probe>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Overload {
    /// Requests a second that the server finished in a closed load.
    pub capacity: f64,
    /// Requests a second that were sent.
    pub rate: f64,
    pub deadline_ms: u64,
}

/// Requests to a variant that nobody else asked for, one at a time: seconds to the first block.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub name: String,
    pub unloaded: Quantiles,
    pub loaded: Quantiles,
    /// What half of them took at most under the load, over the same without it.
    pub times: Option<f64>,
    /// Requests during the load that had no first block.
    pub failed: usize,
}

/// The smallest value that at least a share `q` of a sorted sample does not exceed.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

pub fn quantiles(sorted: &[f64]) -> Quantiles {
    let of = |q| quantile(sorted, q);
    Quantiles {
        p50: of(0.5),
        p90: of(0.9),
        p99: of(0.99),
    }
}

impl LoadReport {
    /// `warm_up` is what the figures leave out at the beginning; `names` are the variants'.
    pub fn new(driven: &Driven, names: &[String], warm_up: Duration) -> Self {
        let end = driven.outcomes.iter().map(|outcome| outcome.ended).max();
        let seconds = end
            .unwrap_or_default()
            .saturating_sub(warm_up)
            .as_secs_f64();
        let measure = |name: &str, variant: Option<usize>| {
            let of = driven
                .outcomes
                .iter()
                .filter(|outcome| variant.is_none_or(|variant| outcome.variant == variant));
            figures(name, of, warm_up, seconds)
        };
        let variants: Vec<Figures> = (0..)
            .zip(names)
            .map(|(index, name)| measure(name, Some(index)))
            .collect();
        let overall = measure("all", None);
        // Whoever asked most has most left when nobody asks any more, so what comes then says nothing of shares.
        let over = driven
            .outcomes
            .iter()
            .map(|outcome| outcome.due)
            .max()
            .unwrap_or_default();
        let during = |variant: usize| {
            let of = driven
                .outcomes
                .iter()
                .filter(|outcome| outcome.variant == variant);
            let blocks = of.flat_map(|outcome| &outcome.blocks);
            let blocks = blocks.filter(|(at, _)| (warm_up..=over).contains(at));
            blocks.map(|&(_, tokens)| f64::from(tokens)).sum::<f64>()
        };
        let asked = |index: &usize| variants[*index].requests > 0;
        let tokens = || (0..variants.len()).filter(asked).map(during);
        let (most, least) = (
            tokens().fold(0.0, f64::max),
            tokens().fold(f64::INFINITY, f64::min),
        );
        let said = |pick: fn(&RequestEnd) -> Option<&String>| {
            driven.outcomes.iter().find_map(|o| pick(&o.end)).cloned()
        };
        LoadReport {
            seconds,
            fairness: (least > 0.0 && least.is_finite()).then(|| most / least),
            overall,
            variants,
            unanswered: driven.unanswered,
            first_failure: said(|end| match end {
                RequestEnd::Failed(said) => Some(said),
                _ => None,
            }),
            server_gone: said(|end| match end {
                RequestEnd::Gone(said) => Some(said),
                _ => None,
            }),
            memory: Vec::new(),
            overload: None,
            probe: None,
        }
    }
}

fn figures<'a>(
    name: &str,
    outcomes: impl Iterator<Item = &'a RequestOutcome>,
    warm_up: Duration,
    seconds: f64,
) -> Figures {
    let (mut first, mut between, mut whole, mut refused) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let [
        mut requests,
        mut finished,
        mut rejected,
        mut late,
        mut failed,
    ] = [0; 5];
    let mut tokens = 0;
    for outcome in outcomes {
        let came = outcome.blocks.iter().filter(|(at, _)| *at >= warm_up);
        tokens += came.map(|&(_, tokens)| u64::from(tokens)).sum::<u64>();
        if outcome.due < warm_up {
            continue;
        }
        requests += 1;
        match outcome.end {
            RequestEnd::Finished => finished += 1,
            RequestEnd::Rejected => rejected += 1,
            RequestEnd::Late => late += 1,
            RequestEnd::NotSent | RequestEnd::Failed(_) | RequestEnd::Gone(_) => failed += 1,
        }
        let since = |at: Duration| at.saturating_sub(outcome.due).as_secs_f64();
        if outcome.end == RequestEnd::Rejected {
            refused.push(since(outcome.ended));
        }
        if outcome.end != RequestEnd::Finished {
            continue;
        }
        whole.push(since(outcome.ended));
        first.extend(outcome.blocks.first().map(|&(at, _)| since(at)));
        between.extend(
            outcome
                .blocks
                .windows(2)
                .map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()),
        );
    }
    [&mut first, &mut between, &mut whole, &mut refused]
        .into_iter()
        .for_each(|sample| sample.sort_by(f64::total_cmp));
    Figures {
        name: name.to_owned(),
        requests,
        finished,
        rejected,
        late,
        failed,
        tokens,
        tokens_per_second: if seconds > 0.0 {
            tokens as f64 / seconds
        } else {
            0.0
        },
        first_block: quantiles(&first),
        between_blocks: quantiles(&between),
        end_to_end: quantiles(&whole),
        refusal: quantiles(&refused),
    }
}

/// Of the lines of [`Figures`].
const HEADER: &str = " requests finished rejected   late failed  tokens/s        first block, ms     between blocks, ms              whole, ms";

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures {
            name,
            requests,
            finished,
            rejected,
            late,
            failed,
            tokens_per_second: rate,
            ..
        } = self;
        write!(
            f,
            "{name:18} {requests:>8} {finished:>8} {rejected:>8} {late:>6} {failed:>6} {rate:>9.0}"
        )?;
        [self.first_block, self.between_blocks, self.end_to_end]
            .iter()
            .try_for_each(|of| write!(f, "   {of:>20}"))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:18}{HEADER}", format!("{:.1} s", self.seconds))?;
        let mut all = self.variants.iter().chain([&self.overall]);
        all.try_for_each(|of| writeln!(f, "{of}"))?;
        if let Some(fairness) = self.fairness {
            writeln!(
                f,
                "\nfairness: the variant served most got {fairness:.2} times the tokens of the one served least"
            )?;
        }
        if let (Some(overload), Some(kept)) = (&self.overload, self.overall.kept()) {
            writeln!(
                f,
                "overload: {:.1} requests a second of which {:.1} can be served, {} ms each; {:.2} % of those accepted were in time, \
                 refusals took {} ms",
                overload.rate,
                overload.capacity,
                overload.deadline_ms,
                100.0 * kept,
                self.overall.refusal
            )?;
        }
        if let Some(probe) = &self.probe {
            writeln!(
                f,
                "alone on {}: first block after {} ms without the load, {} ms with it, {} times as long ({} failed)",
                probe.name,
                probe.unloaded,
                probe.loaded,
                (probe.times).map_or("-".to_owned(), |times| format!("{times:.2}")),
                probe.failed
            )?;
        }
        let memory: u64 = self.memory.iter().map(|(_, bytes)| bytes).sum();
        if memory > 0 {
            writeln!(
                f,
                "the server reports {:.1} MiB",
                memory as f64 / f64::from(1 << 20)
            )?;
        }
        if self.unanswered > 0 {
            writeln!(f, "{} requests had no answer", self.unanswered)?;
        }
        if let Some(said) = &self.first_failure {
            writeln!(f, "the first failure: {said}")?;
        }
        write!(
            f,
            "times: 50 / 90 / 99 of 100 finished requests take at most so long, from when they were due"
        )
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |seconds: Option<f64>| {
            seconds.map_or("-".to_owned(), |seconds| format!("{:.1}", 1e3 * seconds))
        };
        let text = format!("{} / {} / {}", ms(self.p50), ms(self.p90), ms(self.p99));
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(variant: usize, due: u64, blocks: &[(u64, u32)], end: RequestEnd) -> RequestOutcome {
        let ms = Duration::from_millis;
        RequestOutcome {
            variant,
            due: ms(due),
            blocks: blocks
                .iter()
                .map(|&(at, tokens)| (ms(at), tokens))
                .collect(),
            ended: ms(blocks.last().map_or(due, |&(at, _)| at)),
            end,
        }
    }

    #[test]
    fn figures_by_hand() {
        let driven = Driven {
            outcomes: vec![
                outcome(0, 500, &[(900, 8), (1100, 8)], RequestEnd::Finished), // due in the warm-up: its later tokens count
                outcome(0, 1000, &[(1200, 8), (1500, 8)], RequestEnd::Finished),
                outcome(1, 1000, &[(1400, 8), (2000, 8)], RequestEnd::Finished),
                outcome(1, 1500, &[], RequestEnd::Rejected),
                outcome(1, 1600, &[(1700, 8)], RequestEnd::Late),
                outcome(0, 1700, &[], RequestEnd::Failed("Internal: x".into())),
            ],
            unanswered: 2,
        };
        let names = ["a".to_owned(), "b".to_owned(), "never".to_owned()];
        let report = LoadReport::new(&driven, &names, Duration::from_secs(1));
        assert!((report.seconds - 1.0).abs() < 1e-9);
        let all = &report.overall;
        let counts = [
            all.requests,
            all.finished,
            all.rejected,
            all.late,
            all.failed,
        ];
        assert_eq!(counts, [5, 2, 1, 1, 1]);
        assert_eq!((all.kept(), all.refusal.p50), (Some(0.5), Some(0.0)));
        assert_eq!(
            (
                all.tokens,
                report.variants[0].tokens,
                report.variants[1].tokens
            ),
            (48, 24, 24)
        );
        assert_eq!(report.fairness, Some(1.5), "24 to 16 until 1.7 s");
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}")
        };
        near(all.first_block.p50, 0.2);
        near(all.first_block.p90, 0.4);
        near(all.between_blocks.p50, 0.3);
        near(all.end_to_end.p99, 1.0);
        assert_eq!(report.variants[2].end_to_end, Quantiles::default());
        assert_eq!(report.first_failure.as_deref(), Some("Internal: x"));
        assert!(report.server_gone.is_none());
        let text = report.to_string();
        assert!(
            text.contains("2 requests had no answer") && text.contains("200.0 / 400.0 / 400.0"),
            "{text}"
        );
    }

    #[test]
    fn quantiles_of_few() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(
            [0.0, 0.5, 0.9, 0.91].map(|q| quantile(&ten, q)),
            [1.0, 5.0, 9.0, 10.0].map(Some)
        );
    }
}
