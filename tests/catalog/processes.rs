//! Where it is said what a variant was tuned for, and what comes of it.

use super::*;
use choir::catalog::RemoveRequest;
use choir::catalog::defaults::{process_to_store, to_store};
use choir::model::{Grid, Process, Regime};
use choir::sampler::{NoiseRemoval, UniformPredictor};
use choir::superposition::{DeltaError, NamedTensors, Remarks, pack_with};

const BLOCKS: Regime = Regime {
    process: Process::Uniform,
    grid: Grid::Start,
    block: Some(4),
    time_conditioned: true,
};
const WHOLE: Regime = Regime {
    block: None,
    ..BLOCKS
};

fn usual() -> Sampling {
    Sampling {
        predictor: UniformPredictor {
            steps: 6,
            noise_removal: NoiseRemoval::Ancestral,
            ..UniformPredictor::default()
        }
        .into(),
        temperature: 0.75,
        ..Sampling::of(Process::Uniform)
    }
}

fn packed(remarks: Remarks) -> CheckpointSource {
    let named =
        |tensors: &Tensors| NamedTensors::from_safetensors(&checkpoint(tensors)).expect("tensors");
    CheckpointSource::Bytes(
        pack_with(&named(&TINY.tensors), &named(&tuned(4)), 32, remarks).expect("pack"),
    )
}

fn remarks(regime: Regime) -> Remarks {
    let json = |value: serde_json::Result<String>| Some(value.expect("json"));
    Remarks {
        process: json(serde_json::to_string(&process_to_store(regime.process))),
        defaults: json(serde_json::to_string(&to_store(
            &usual(),
            regime,
            &TINY.config.facts(),
        ))),
    }
}

/// A checkpoint with a configuration beside it.
fn beside(place: &TestDir, folder: &str, change: impl FnOnce(&mut DitConfig)) -> CheckpointSource {
    let path = place.file(folder, &checkpoint(&tuned(4)));
    let mut config = TINY.config.clone();
    config.model_type = "duo".into();
    config.time_conditioning = Some(true);
    config.states = Some(config.vocab_size - 1);
    change(&mut config);
    let config = serde_json::to_vec(&config).expect("json");
    fs::write(path.with_file_name("config.json"), config).expect("write");
    CheckpointSource::Path(path)
}

fn uniform(block_size: Option<usize>) -> Tuning {
    Tuning {
        process: Some(Process::Uniform),
        block_size,
        time_conditioning: None,
    }
}

fn text(engine: &EngineHandle, name: &str) -> Vec<u32> {
    let resolved = engine
        .resolve(vec![(name.to_owned(), 1.0)])
        .expect("a variant");
    let request = Request {
        sampling: resolved.defaults().clone(),
        ..request(Some(name), 9)
    };
    let mut events = engine.submit(request).expect("submit");
    let mut made = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Block { tokens, .. } => made.extend(tokens),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    made
}

#[test]
fn a_packed_delta_brings_its_process_and_defaults_again_and_again() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let info = catalog
        .add(addition("few", packed(remarks(BLOCKS))), |_| {})
        .expect("add")
        .variant;
    let expected = Sampling {
        block_size: Some(4),
        ..usual()
    };
    assert_eq!((info.regime, &info.defaults), (BLOCKS, &expected));
    assert_eq!(engine.generation().variants["few"].regime, BLOCKS);
    let before = text(&engine, "few");
    assert!(!before.is_empty());
    catalog
        .remove("few", RemoveRequest::default())
        .expect("remove");
    let again = catalog
        .add(addition("few", packed(remarks(BLOCKS))), |_| {})
        .expect("again")
        .variant;
    assert_eq!((again.regime, &again.defaults), (BLOCKS, &expected));
    assert_eq!(text(&engine, "few"), before);
    drop((catalog, engine));
    let (catalog, generation) = place.open().expect("open");
    assert_eq!(catalog.get("few").expect("few").regime, BLOCKS);
    assert_eq!(generation.variants["few"].defaults, expected);
    // The others are as the base is.
    assert_eq!(generation.variants["one"].regime, TINY.config.regime());
}

#[test]
fn a_configuration_or_the_operator_says_what_a_checkpoint_is() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let added = |name: &str, source: CheckpointSource, tuning: Tuning| {
        let request = AddRequest {
            tuning,
            ..addition(name, source)
        };
        let info = catalog.add(request, |_| {}).expect(name).variant;
        assert!(!text(&engine, name).is_empty());
        info.regime
    };
    let bytes = || CheckpointSource::Bytes(checkpoint(&tuned(4)));
    let blocks = beside(&place, "blocks", |config| config.block_size = Some(4));
    assert_eq!(added("blocks", blocks, Tuning::default()), BLOCKS);
    let whole = beside(&place, "whole", |config| config.cross_attn = false);
    assert_eq!(added("whole", whole, uniform(None)), WHOLE);
    assert_eq!(added("said", bytes(), uniform(Some(4))), BLOCKS);
    assert_eq!(added("said-whole", bytes(), uniform(None)), WHOLE);
    let untold = Tuning {
        time_conditioning: Some(false),
        ..uniform(None)
    };
    let regime = Regime {
        time_conditioned: false,
        ..WHOLE
    };
    assert_eq!(added("untold", packed(Remarks::default()), untold), regime);
    // A file that names the process alone leaves the rest to the operator.
    let named = || Remarks {
        defaults: None,
        ..remarks(WHOLE)
    };
    assert_eq!(added("named", packed(named()), Tuning::default()), WHOLE);
    let four = Tuning {
        block_size: Some(4),
        ..Tuning::default()
    };
    assert_eq!(added("named-blocks", packed(named()), four), BLOCKS);
}

#[test]
fn what_contradicts_or_cannot_be_is_refused() {
    let place = TestDir::new();
    let (catalog, _engine) = place.served();
    let refused = |source: CheckpointSource, tuning: Tuning, defaults: SamplingParams| {
        let request = AddRequest {
            tuning,
            defaults,
            ..addition("new", source)
        };
        let error = catalog.add(request, |_| {}).expect_err("refused");
        assert_eq!(catalog.status().generation, 3);
        error
    };
    let field = |source, tuning| match refused(source, tuning, SamplingParams::default()) {
        Error::BadField { field, .. } | Error::OtherConfig { field, .. } => field,
        other => panic!("{other}"),
    };
    let absorbing = Tuning {
        process: Some(Process::Absorbing),
        ..Tuning::default()
    };
    let bytes = || CheckpointSource::Bytes(checkpoint(&tuned(4)));
    assert_eq!(field(packed(remarks(BLOCKS)), absorbing), "process");
    assert_eq!(
        field(packed(remarks(BLOCKS)), uniform(Some(8))),
        "block_size"
    );
    assert_eq!(
        field(packed(remarks(WHOLE)), uniform(Some(8))),
        "block_size"
    );
    for block in [0, 3, 32, usize::MAX] {
        assert_eq!(field(bytes(), uniform(Some(block))), "block_size");
    }
    let blocks = Tuning {
        block_size: Some(4),
        ..absorbing
    };
    assert_eq!(field(bytes(), blocks), "block_size", "the base's is 8");
    let told = Tuning {
        time_conditioning: Some(false),
        ..Tuning::default()
    };
    assert_eq!(field(packed(remarks(BLOCKS)), told), "time_conditioning");
    let states = beside(&place, "states", |config| config.states = None);
    assert_eq!(field(states, Tuning::default()), "states");
    let other = beside(&place, "other", |_| {});
    assert_eq!(field(other, absorbing), "process");
    let broken = beside(&place, "broken", |config| config.block_size = Some(0));
    assert_eq!(field(broken, Tuning::default()), "block_size");

    for broken in ["", "null", "\"masked\"", "{}"] {
        for remarks in [
            Remarks {
                process: Some(broken.into()),
                ..remarks(BLOCKS)
            },
            Remarks {
                defaults: Some(broken.into()),
                ..remarks(BLOCKS)
            },
        ] {
            let error = refused(
                packed(remarks),
                Tuning::default(),
                SamplingParams::default(),
            );
            let unreadable = matches!(
                &error,
                Error::Checkpoint {
                    source: DeltaError::Unreadable(_),
                    ..
                }
            );
            assert!(unreadable, "{error}");
        }
    }
    // Defaults of the other process, in the file or chosen.
    let odd = Remarks {
        process: remarks(TINY.config.regime()).process,
        ..remarks(BLOCKS)
    };
    let threshold = SamplingParams {
        threshold: Some(0.5),
        ..SamplingParams::default()
    };
    let error = refused(packed(odd), Tuning::default(), SamplingParams::default());
    assert!(
        matches!(
            error,
            Error::BadField {
                field: "defaults",
                ..
            }
        ),
        "{error}"
    );
    let error = refused(packed(remarks(WHOLE)), Tuning::default(), threshold);
    assert!(
        matches!(
            error,
            Error::BadField {
                field: "defaults",
                ..
            }
        ),
        "{error}"
    );
}
