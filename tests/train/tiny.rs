//! Short runs of a tiny network.

use choir::model::{DitConfig, Trainable};
use choir::ops::Divergence;
use choir::rng::{Key, Stream};
use choir::train::course::Course;
use choir::train::curriculum::Curriculum;
use choir::train::data::{Document, TextSource, held_out_contexts};
use choir::train::distill::Distillation;
use choir::train::folder::{Folder, Precision, Tensors};
use choir::train::objective::Objective;
use choir::train::optimizer::AdamW;
use choir::train::run::{TrainingEvent, TrainingRun, Validation};
use choir::train::settings::{Anchor, Budget, Members, TrainSettings, TrainingSource};
use choir::train::{Error, checkpoint, tokenizer};
use std::path::PathBuf;

const STEPS: u64 = 60;

pub struct Tiny {
    pub config: DitConfig,
    course: Course,
    seed: u64,
    pub weights: Option<Tensors>,
    pub tokenizer: String,
    pub document: Document,
}

impl Tiny {
    pub fn new() -> Self {
        let words = [
            "the whale ",
            "a ship ",
            "was seen ",
            "at noon. ",
            "No one ",
            "spoke.\n",
        ];
        let mut stream = Stream::new(Key::derive(&[b"tiny text"]));
        let text: String = (0..4000)
            .map(|_| words[stream.below(words.len())])
            .collect();
        let tokenizer = tokenizer::train(std::slice::from_ref(&text), 300).expect("tokenizer");
        let vocab_size = tokenizer::from_json(&tokenizer)
            .expect("json")
            .get_vocab_size(true)
            + 1;
        let config = DitConfig {
            model_type: "bd3lm".into(),
            vocab_size,
            model_length: 16,
            hidden_dim: 32,
            cond_dim: 8,
            n_blocks: 2,
            n_heads: 2,
            block_size: Some(8),
            cross_attn: true,
            time_conditioning: Some(false),
            states: None,
        };
        Self {
            config,
            course: Course::Plain,
            seed: 7,
            weights: None,
            tokenizer,
            document: Document::new("tiny".into(), text),
        }
    }

    pub fn uniform(block: Option<usize>, course: Course) -> Self {
        let tiny = Self::new();
        let config = tiny.config.uniform(block);
        Self {
            config,
            course,
            ..tiny
        }
    }

    fn model(&self) -> Trainable {
        match &self.weights {
            Some(weights) => Trainable::from_tensors(self.config.clone(), weights),
            None => Trainable::random(self.config.clone(), 3),
        }
        .expect("model")
    }

    fn settings(&self, checkpoint: Option<PathBuf>) -> TrainSettings {
        TrainSettings {
            objective: Objective::new(&self.config, (0.1, 1.0)).expect("objective"),
            course: self.course.clone(),
            budget: Budget::Steps(STEPS),
            batch: 8,
            length: 16,
            rate: 1e-2,
            warm_up: 2,
            optimizer: AdamW::default(),
            base: self.weights.clone().map(|tensors| Anchor {
                tensors,
                members: Members { body: 4, head: 2 },
            }),
            seed: self.seed,
            checkpoint,
            save_every: 0.0,
            report_every: 0.0,
            validate_every: 1.0,
            gpu: None,
        }
    }

    fn start<'a>(
        &self,
        settings: TrainSettings,
        resume: bool,
        report: &'a mut dyn FnMut(TrainingEvent),
    ) -> Result<TrainingRun<'a>, Error> {
        let pieces = tokenizer::from_json(&self.tokenizer).expect("json");
        let documents = std::slice::from_ref(&self.document);
        let held_out = [self.document.held_out.as_str()];
        let (contexts, bytes) = held_out_contexts(&held_out, &pieces, 16, 8, 8).expect("held out");
        let source = TrainingSource::Text(TextSource::new(documents, &pieces, 16).expect("text"));
        let validation = Validation {
            contexts,
            bytes,
            draws: 4,
            exact: false,
        };
        TrainingRun::new(
            self.model(),
            settings,
            source,
            Some(validation),
            resume,
            report,
        )
    }

    pub fn run(
        &self,
        checkpoint: Option<PathBuf>,
        resume: bool,
        report: &mut dyn FnMut(TrainingEvent),
    ) -> (Tensors, f64) {
        let (tensors, score) = self
            .start(self.settings(checkpoint), resume, report)
            .and_then(TrainingRun::finish)
            .expect("finish");
        (tensors, score.expect("score").nats_per_token)
    }

    /// Runs, cuts off after step 25 and resumes to the same weights; returns them, the losses and the held-out score.
    fn run_twice(&self) -> (Tensors, Vec<f64>, f64) {
        let folder = tempfile::tempdir().expect("folder");
        let (state, copy) = (
            folder.path().join(checkpoint::FILE),
            folder.path().join("copy"),
        );
        let mut losses = Vec::new();
        let (whole, nats) = self.run(Some(state.clone()), false, &mut |news| match news {
            TrainingEvent::Saved { step: 25 } => {
                std::fs::copy(&state, &copy).expect("copy");
            }
            TrainingEvent::Step { loss, .. } => losses.push(loss),
            _ => {}
        });
        let mut first = None;
        let (resumed, again) = self.run(Some(copy), true, &mut |news| {
            if let TrainingEvent::Step { step, .. } = news {
                first.get_or_insert(step);
            }
        });
        assert_eq!(first, Some(26));
        assert_eq!(resumed, whole);
        assert_eq!(again, nats);
        (whole, losses, nats)
    }
}

const CURRICULUM: Curriculum = Curriculum {
    share: 0.5,
    tau: (0.3, 0.05),
    choices: 8,
};

/// Rounds end inside what is cut off and after it.
const DISTILLATION: Distillation = Distillation {
    rounds: 3,
    first_steps: 16,
    divergence: Divergence::Backward,
};

#[test]
fn a_run_learns_and_one_cut_off_resumes_to_the_same_weights() {
    let tiny = Tiny::new();
    let (tensors, losses, nats) = tiny.run_twice();
    assert!(nats < 0.7 * losses[0], "{nats} after {}", losses[0]);
    write_and_read(&tiny, tensors);
}

#[test]
fn uniform_runs_learn_and_resume_in_blocks_and_with_a_curriculum() {
    for (block, course) in [
        (Some(8), Course::Plain),
        (None, Course::Curriculum(CURRICULUM)),
    ] {
        let tiny = Tiny::uniform(block, course);
        let (tensors, losses, nats) = tiny.run_twice();
        assert!(
            nats < 0.75 * (tiny.config.tokens() as f64).ln(),
            "{nats} after {}",
            losses[0]
        );
        write_and_read(&tiny, tensors);
    }
}

#[test]
fn distillations_resume_across_rounds() {
    for block in [None, Some(8)] {
        let teacher = Tiny::uniform(block, Course::Plain);
        let weights = teacher.run(None, false, &mut |_| {}).0;
        let tiny = Tiny {
            weights: Some(weights),
            ..Tiny::uniform(block, Course::Distillation(DISTILLATION))
        };
        let (_, losses, _) = tiny.run_twice();
        assert!(losses.iter().all(|&loss| loss > 0.0), "{losses:?}");
    }
}

fn write_and_read(tiny: &Tiny, tensors: Tensors) {
    let folder = tempfile::tempdir().expect("folder");
    let written = Folder {
        config: tiny.config.clone(),
        tensors,
        tokenizer: tiny.tokenizer.clone(),
        clip: (0.1, 1.0),
    };
    written.write(folder.path(), Precision::F32).expect("write");
    let read = Folder::read(folder.path()).expect("read");
    assert_eq!(read.config, written.config);
    assert_eq!(read.tensors, written.tensors);
    assert_eq!(read.tokenizer, written.tokenizer);
    assert!((read.clip.0 - 0.1).abs() < 1e-9);
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join(checkpoint::FILE);
    let tiny = Tiny::uniform(Some(8), Course::Plain);
    tiny.run(Some(state.clone()), false, &mut |_| {});
    let mut wider = Tiny::uniform(Some(8), Course::Plain);
    wider.config.cond_dim = 16;
    let mut heads = Tiny::uniform(Some(8), Course::Plain);
    heads.config.n_heads = 4;
    // As many tokens, in another order.
    let mut text = Tiny::uniform(Some(8), Course::Plain);
    let lines: Vec<&str> = text.document.training.split_inclusive('\n').rev().collect();
    text.document.training = lines.concat();
    let mut based = Tiny::uniform(Some(8), Course::Plain);
    based.weights = Some(tiny.run(None, false, &mut |_| {}).0);
    let others = [
        Tiny::new(),
        Tiny::uniform(None, Course::Plain),
        Tiny::uniform(Some(8), Course::Curriculum(CURRICULUM)),
        Tiny::uniform(Some(8), Course::Distillation(DISTILLATION)),
        Tiny {
            seed: 8,
            ..Tiny::uniform(Some(8), Course::Plain)
        },
        wider,
        heads,
        text,
        based,
    ];
    let resume = |tiny: &Tiny, settings| tiny.start(settings, true, &mut |_| {}).err();
    for other in others {
        let refused = resume(&other, other.settings(Some(state.clone())));
        assert!(
            matches!(refused, Some(Error::OtherRun { .. })),
            "{:?}: {refused:?}",
            other.config
        );
    }
    let mut muon = tiny.settings(Some(state.clone()));
    muon.optimizer.orthogonal = true;
    assert!(matches!(resume(&tiny, muon), Some(Error::OtherRun { .. })));
    // How fast and how long is not what a run is.
    let mut longer = tiny.settings(Some(state));
    (longer.budget, longer.rate) = (Budget::Steps(2 * STEPS), 1e-3);
    assert!(resume(&tiny, longer).is_none());
}

#[test]
fn what_the_absorbing_process_does_not_have_and_values_out_of_range_are_refused() {
    let curriculum = |share, tau, choices| {
        Course::Curriculum(Curriculum {
            share,
            tau,
            choices,
        })
    };
    let distillation = |rounds, first_steps| {
        Course::Distillation(Distillation {
            rounds,
            first_steps,
            ..DISTILLATION
        })
    };
    let absorbing = |course| Tiny {
        course,
        ..Tiny::new()
    };
    let uniform = |course| Tiny::uniform(None, course);
    let cases = [
        ("teacher", absorbing(Course::Distillation(DISTILLATION))),
        ("curriculum", absorbing(Course::Curriculum(CURRICULUM))),
        ("curriculum", uniform(curriculum(1.5, (0.1, 0.01), 8))),
        ("curriculum", uniform(curriculum(f64::NAN, (0.1, 0.01), 8))),
        ("tau", uniform(curriculum(0.5, (0.01, 0.1), 8))),
        ("tau", uniform(curriculum(0.5, (0.1, 0.0), 8))),
        ("tau", uniform(curriculum(0.5, (f64::INFINITY, 0.1), 8))),
        ("choices", uniform(curriculum(0.5, (0.1, 0.01), 1))),
        ("rounds", uniform(distillation(0, 64))),
        ("rounds", uniform(distillation(17, 64))),
        ("first steps", uniform(distillation(3, 0))),
        ("first steps", uniform(distillation(8, 64))),
    ];
    for (expected, tiny) in cases {
        match tiny.start(tiny.settings(None), false, &mut |_| {}).err() {
            Some(Error::Setting { field, .. }) => assert_eq!(field, expected, "{:?}", tiny.course),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn settings_that_no_run_can_have_are_refused() {
    let tiny = Tiny::new();
    let refused = |change: &dyn Fn(&mut TrainSettings)| {
        let mut settings = tiny.settings(None);
        change(&mut settings);
        match tiny.start(settings, false, &mut |_| {}).err() {
            Some(Error::Setting { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|s| s.batch = 0), "batch");
    for length in [0, 1, 12, 24] {
        assert_eq!(refused(&|s| s.length = length), "length", "{length}");
    }
    for budget in [
        Budget::Steps(0),
        Budget::Seconds(0.0),
        Budget::Seconds(f64::NAN),
    ] {
        assert_eq!(refused(&|s| s.budget = budget), "budget");
    }
    for odd in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(refused(&|s| s.rate = odd), "learning rate");
        assert_eq!(refused(&|s| s.optimizer.weight_decay = odd), "weight decay");
        assert_eq!(refused(&|s| s.optimizer.ema = odd), "ema");
    }
    let tensors = Tensors::new();
    assert_eq!(
        refused(&|s| s.base = Some(Anchor {
            tensors: tensors.clone(),
            members: Members { body: 4, head: 0 }
        })),
        "interference"
    );
}
