//! What calibration does to a coded delta of a tiny fine-tune.

use super::tiny::Tiny;
use choir::model::Trainable;
use choir::ops::Divergence;
use choir::ops::coded::Kept;
use choir::rng::{Key, Stream};
use choir::superposition::{CodedDelta, Encoding, NamedTensors, Plan};
use choir::train::calibrate::{Effort, calibrate};
use choir::train::course::Course;
use choir::train::data::{TextSource, held_out_contexts};
use choir::train::folder::{Folder, Tensors};
use choir::train::noisy::{Loss, Noisy};
use choir::train::objective::Objective;
use choir::train::settings::TrainingSource;
use choir::train::{Error, tokenizer};

/// A tiny fine-tune, its base, and its delta in a few bits.
struct Case {
    tiny: Tiny,
    base: Tensors,
    tuned: Folder,
    coded: CodedDelta,
}

impl Case {
    fn new(tiny: Tiny) -> Self {
        let base = tiny.weights.clone().expect("a base");
        let (tensors, _) = tiny.run(None, false, &mut |_| {});
        let tuned = Folder {
            config: tiny.config.clone(),
            tensors,
            tokenizer: tiny.tokenizer.clone(),
            clip: (0.1, 1.0),
        };
        let named = |tensors: &Tensors| tensors.clone().into_iter().collect::<NamedTensors>();
        let encoding = Encoding {
            plan: Plan {
                bits: 0.1,
                at_least: true,
                ..Plan::default()
            },
            ..Encoding::default()
        };
        let coded = CodedDelta::between(&named(&base), &named(&tuned.tensors), &encoding);
        let coded = coded.expect("a code");
        Case {
            tiny,
            base,
            tuned,
            coded,
        }
    }

    fn calibrated(&self, steps: u64) -> Result<CodedDelta, Error> {
        let pieces = tokenizer::from_json(&self.tiny.tokenizer)?;
        let documents = std::slice::from_ref(&self.tiny.document);
        let source = TrainingSource::Text(TextSource::new(documents, &pieces, 16)?);
        let effort = Effort {
            steps,
            batch: 8,
            length: 16,
            seed: 5,
        };
        let mut coded = self.coded.clone();
        let found = calibrate(
            &mut coded,
            &self.base,
            &self.tuned,
            source,
            effort,
            &mut |_| {},
        );
        match found {
            Ok(()) => Ok(coded),
            Err(error) => {
                assert_eq!(coded, self.coded, "it is as before");
                Err(error)
            }
        }
    }

    /// KL(fine-tune || kept) in nats a token of the text that nobody was trained on.
    fn apart(&self, coded: &CodedDelta) -> f64 {
        let mut weights = self.base.clone();
        for (name, (_, weights)) in &mut weights {
            let delta = coded.dense(name).unwrap_or_default();
            weights.iter_mut().zip(delta).for_each(|(w, d)| *w += d);
        }
        let model = |tensors| Trainable::from_tensors(self.tiny.config.clone(), tensors);
        let (kept, tuned) = (model(&weights), model(&self.tuned.tensors));
        let pieces = tokenizer::from_json(&self.tiny.tokenizer).expect("json");
        let held_out = [self.tiny.document.held_out.as_str()];
        let (contexts, _) = held_out_contexts(&held_out, &pieces, 16, 8, 32).expect("held out");
        let objective = Objective::new(&self.tiny.config, (0.1, 1.0)).expect("objective");
        let noisy = objective.corrupt(&contexts, &mut Stream::new(Key::derive(&[b"apart"])));
        let noisy = Noisy {
            loss: Loss::Consistency {
                tokens: self.tiny.config.tokens(),
                divergence: Divergence::Forward,
            },
            teacher: Some(noisy.input.clone()),
            ..noisy
        };
        let found = noisy.gradients(&kept.expect("kept"), Some(&tuned.expect("tuned")));
        found.expect("a divergence").0
    }
}

fn absorbing() -> Case {
    let mut tiny = Tiny::new();
    tiny.weights = Some(tiny.run(None, false, &mut |_| {}).0);
    tiny.document.training = tiny.document.training.replace("whale", "snail");
    tiny.document.held_out = tiny.document.held_out.replace("whale", "snail");
    Case::new(tiny)
}

fn uniform() -> Case {
    let base = Tiny::new();
    let weights = base.run(None, false, &mut |_| {}).0;
    let mut tiny = Tiny::uniform(Some(8), Course::Plain);
    tiny.weights = Some(weights);
    Case::new(tiny)
}

#[test]
fn a_calibrated_delta_says_more_of_what_its_fine_tune_says_in_as_many_bytes() {
    for case in [absorbing(), uniform()] {
        let calibrated = case.calibrated(60).expect("calibrated");
        let (before, after) = (case.apart(&case.coded), case.apart(&calibrated));
        assert!(after < 0.8 * before, "{before} to {after} nats a token");
        // The codes are as they were.
        assert_eq!(calibrated.bytes(), case.coded.bytes());
        for (name, tensor) in &case.coded.tensors {
            match (&tensor.kept, &calibrated.tensors[name].kept) {
                (Kept::Coded { code, low_rank, .. }, now) => {
                    let Kept::Coded {
                        code: same,
                        low_rank: also,
                        ..
                    } = now
                    else {
                        panic!("{name} is in no code any more");
                    };
                    assert_eq!((code, low_rank), (same, also), "{name}");
                }
                (Kept::LowRank(factors), now) => {
                    assert_eq!(&Kept::LowRank(factors.clone()), now, "{name}");
                }
                (Kept::Whole(_), _) => {}
            }
        }
        let read = CodedDelta::from_bytes(&calibrated.to_bytes()).expect("a file");
        assert_eq!(read.tensors, calibrated.tensors);
        assert_eq!(case.calibrated(60).expect("again"), calibrated);
    }
}

#[test]
fn a_calibration_that_cannot_be_run_changes_nothing() {
    let case = absorbing();
    let refused = |found: Result<CodedDelta, Error>| found.expect_err("refused");
    assert!(matches!(
        refused(case.calibrated(0)),
        Error::Setting {
            field: "budget",
            ..
        }
    ));
}
