//! The report as tables for people.

use super::evaluate::{Outcome, Reference, Report};
use super::share::{self, Reached, Summary};
use super::trial::DeltaScheme;
use std::fmt::{self, Display, Formatter};

/// Shows a report.
pub struct Tables<'a>(pub &'a Report);

impl Display for Tables<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report {
            parameters,
            superposed,
            variants,
            outcomes,
            ..
        } = self.0;
        let count = variants.len();
        writeln!(
            f,
            "{count} variants of a base of {parameters} parameters, {superposed} of them superposed"
        )?;
        let (skills, styles): (Vec<_>, Vec<_>) =
            (0..count).partition(|&index| variants[index].prompts.is_some());
        if let Some(first) = outcomes.first() {
            self.section(f, "style", &styles, first)?;
            self.section(f, "skill", &skills, first)?;
        }
        let header = [
            "scheme",
            "capacity",
            "form",
            "bits",
            "share (worst)",
            "exact kept",
        ];
        let [scheme, capacity, form, bits, share, exact] = header;
        writeln!(
            f,
            "\n{scheme:27}{capacity:>9}{form:>10}{bits:>8}{share:>18}{exact:>12}"
        )?;
        outcomes
            .iter()
            .try_for_each(|outcome| summary_line(f, outcome))?;
        self.spared(f)?;
        self.served(f)?;
        if outcomes.iter().any(|outcome| outcome.scale != 1.0) {
            writeln!(f, "\nx 0.7: read back with this scale, the best of a few")?;
        }
        writeln!(
            f,
            "\nbits: for each superposed parameter of each variant. share: what is left of the fine-tune's gain in \
             NELBO,\nmean (worst) over the variants. capacity: variants to a bank, or body's/head's; form likewise."
        )
    }
}

impl Tables<'_> {
    /// One line for each variant of a kind, read back as `kept` keeps it.
    fn section(
        &self,
        f: &mut Formatter,
        kind: &str,
        members: &[usize],
        kept: &Outcome,
    ) -> fmt::Result {
        if members.is_empty() {
            return Ok(());
        }
        write!(
            f,
            "\n{kind:20}{:>9}{:>12}{:>11}{:>8}",
            "base", "fine-tuned", "retrieved", "share"
        )?;
        match kind {
            "skill" => writeln!(f, "   exact: base, fine-tuned, retrieved")?,
            _ => writeln!(f, "   nats/token; retrieved: {}", kept.trial)?,
        }
        for &index in members {
            let Reference {
                name,
                base,
                fine_tuned,
                prompts,
            } = &self.0.variants[index];
            let got = &kept.summary.reached[index];
            let [a, b, c] = [base, fine_tuned, got].map(|reached| reached.nats_per_token);
            let share = number(kept.summary.shares[index]);
            write!(f, "{name:20}{a:9.4}{b:12.4}{c:11.4}{share:>8}")?;
            if let Some(prompts) = prompts {
                let [a, b, c] = [base, fine_tuned, got].map(exact);
                write!(f, "   {a} {b} {c} of {prompts}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn spared(&self, f: &mut Formatter) -> fmt::Result {
        let Some(first) = self
            .0
            .outcomes
            .first()
            .filter(|_| !self.0.tensors.is_empty())
        else {
            return Ok(());
        };
        writeln!(
            f,
            "\n{} but exact:{:>21}{:>16}",
            first.trial, "parameters", "share (worst)"
        )?;
        writeln!(f, "{:22}{:>20}{:>16}", "nothing", 0, shares(&first.summary))?;
        for spared in &self.0.tensors {
            let (name, parameters) = (spared.exact.name(), spared.parameters);
            writeln!(
                f,
                "{name:22}{parameters:>20}{:>16}",
                shares(&spared.summary)
            )?;
        }
        Ok(())
    }

    fn served(&self, f: &mut Formatter) -> fmt::Result {
        let Some(served) = &self.0.served else {
            return Ok(());
        };
        let (share, kept) = (shares(&served.summary), percent(served.summary.kept_exact));
        writeln!(
            f,
            "{:46}{:8.2}{share:>18}{kept:>12}\n  (by the engine's own estimator of the NELBO, {} noise levels to a block, for \
             base and fine-tunes too;\n  bits as its memory report has them)",
            "as served", served.bits, served.samples
        )?;
        let mean = |nats: &mut dyn Iterator<Item = f64>| number(share::mean(nats));
        let own = mean(&mut served.bases.iter().copied());
        let exact = mean(
            &mut served
                .references
                .iter()
                .map(|(base, _)| base.nats_per_token),
        );
        writeln!(
            f,
            "  (the base is in {}: by itself {own} nats/token on average, where the references' has {exact})",
            served.base_form
        )
    }
}

fn summary_line(f: &mut Formatter, outcome: &Outcome) -> fmt::Result {
    let mut name = outcome.trial.scheme.name().to_owned();
    if outcome.scale != 1.0 {
        name += &format!(" x {}", outcome.scale);
    }
    let (capacity, form) = match outcome.trial.scheme {
        DeltaScheme::Compared(scheme) if scheme.alone() => ("-".to_owned(), "-".to_owned()),
        _ => (
            outcome.trial.capacity.to_string(),
            outcome.trial.forms.to_string(),
        ),
    };
    let (bits, share) = (outcome.bits, shares(&outcome.summary));
    let kept = percent(outcome.summary.kept_exact);
    writeln!(
        f,
        "{name:27}{capacity:>9}{form:>10}{bits:8.2}{share:>18}{kept:>12}"
    )
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

fn shares(summary: &Summary) -> String {
    format!("{} ({})", number(summary.mean), number(summary.worst))
}

fn exact(reached: &Reached) -> usize {
    reached.exact.unwrap_or(0)
}
