//! A small network of the uniform process, from samples to table and picture.

use super::bench::{Bench, held_out};
use super::draw::{Wanted, draw};
use super::quality::{Quality, entropy, shuffled};
use super::ways::{SamplerSettings, ways};
use super::{Report, Source, VariantWeights, rows, show};
use crate::eval::judge::Judge;
use crate::eval::subjects::HeldOut;
use crate::eval::tests::small;
use crate::picture::{self, tests::shows};
use choir::catalog::BaseSource;
use choir::cli::eval::measure::lone;
use choir::model::{DitConfig, Place, Process};
use choir::ops::quantized::Quantisation;
use choir::train::data::Document;
use std::sync::Arc;

fn settings(steps: &[u32]) -> SamplerSettings {
    SamplerSettings {
        steps: steps.to_vec(),
        positions: 16,
        temperature: 1.0,
        nucleus_p: 1.0,
    }
}

#[test]
fn all_ways_of_one_budget_take_as_many_evaluations() {
    let (blocks, steps) = (small::config(), [1, 3, 4, 7]); // two blocks of eight
    let steps_of = |config: &DitConfig, sampler: &str| -> Vec<u32> {
        let ways = ways(config, &settings(&steps));
        let ways = ways.into_iter().filter(|way| way.sampler == sampler);
        ways.filter_map(|way| way.steps).collect()
    };
    for tail in ["uniform, greedy tail", "uniform, ancestral tail"] {
        assert_eq!(steps_of(&blocks.uniform(None), tail), steps);
        // Of 2, 4, 5, 8 evaluations each block has 1, 2, 2, 4, one of them for noise removal.
        assert_eq!(steps_of(&blocks.uniform(Some(8)), tail), [1, 3]);
    }
    assert_eq!(steps_of(&blocks, "blocks, ancestral"), [1, 2, 4]);
    assert_eq!(ways(&blocks, &settings(&[])).len(), 1); // first-hitting needs no steps
}

#[test]
fn collapse_shows_in_the_entropies() {
    assert_eq!(entropy(&[3, 3, 3]), 0.0);
    assert!((entropy(&[1, 2, 3, 4]) - 4f64.ln()).abs() < 1e-12);
    let judge = Judge::new(9, [&[1, 2, 3][..]]);
    let quality = |texts: &[Vec<u32>]| Quality::of(&judge, texts);
    let repeated = quality(&[vec![5; 8], vec![6; 8]]);
    assert_eq!(repeated.entropy, 0.0);
    assert!((repeated.entropy_of_all - 2f64.ln()).abs() < 1e-12);
    let alike = quality(&[vec![1, 2], vec![1, 2]]);
    assert!((alike.entropy - alike.entropy_of_all).abs() < 1e-12 && alike.tokens == 4);

    let texts = [(0..50).collect(), (50..60).collect::<Vec<u32>>()];
    let mixed = shuffled(&texts, 1);
    assert_eq!(mixed.iter().map(Vec::len).collect::<Vec<_>>(), [50, 10]);
    assert_ne!(mixed.concat(), texts.concat());
    let mut sorted = mixed.concat();
    sorted.sort_unstable();
    assert_eq!(sorted, texts.concat());
}

fn letters(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte - b'a')).collect()
}

#[test]
fn a_judge_never_sees_what_it_is_compared_by() {
    let text = HeldOut {
        name: "abc".into(),
        text: "abcabcabcabcabcabcabcabcaaaaaa",
    };
    let bench = |documents: &[Document], length| Bench::new(&text, documents, letters, 5, length);
    let own = bench(&[], 3).expect("bench");
    let all = held_out(&own, 0);
    assert_eq!(
        (all.judge_tokens, all.held_out.tokens, own.held_in),
        (24, 6, false)
    );
    assert!(own.judge.probability(&[0], 0) < 0.2); // "aa" is in the last fifth only
    let document = |name: &str| Document::new(name.into(), "aaaaaaaaaaaaaaaaaaaab".into());
    let given = bench(&[document("other"), document("abc")], 3).expect("bench");
    assert!(given.held_in && given.judge.trained_on() == 20);
    assert!(given.judge.probability(&[0], 0) > 0.9);
    let error = bench(&[], 7).err().expect("too long").to_string();
    assert!(error.contains("--length"), "{error}");
}

#[test]
fn a_fine_tune_samples_what_it_learnt() {
    let config = small::config().uniform(None);
    let subjects = small::tuned(&[(1, config.clone(), 400)]);
    let variant = &subjects.variants[0];
    let tokenizer = Arc::new(BaseSource::Embedded.tokenizer().expect("tokenizer"));
    let engine = |weights| {
        lone(
            &Place::Host(Quantisation::F32),
            &config,
            &weights,
            tokenizer.clone(),
        )
        .expect("engine")
    };
    let tuned = engine(subjects.weights(|tensor| variant.delta.dense(tensor)));
    let base = engine(subjects.weights(|_| None));
    let counting: Vec<Vec<u32>> = small::contexts(1)
        .tokens
        .chunks(16)
        .map(<[u32]>::to_vec)
        .collect();
    let judge = Judge::new(19, counting.iter().map(Vec::as_slice));
    let wanted = Wanted {
        samples: 40,
        length: 15,
        seed: 3,
        first: 1,
    };
    let settings = settings(&[2, 8]);
    let source = |kept, engine| Source {
        kept,
        engine,
        mix: Vec::new(),
    };
    let sources = [
        source(VariantWeights::FineTuned, &tuned),
        source(VariantWeights::Retrieved, &base),
    ];
    let rows = rows(variant, &sources, &judge, &settings, &wanted, &mut |_| ()).expect("rows");
    let figures: Vec<_> = rows
        .iter()
        .map(|row| (row.kept, row.steps, row.nfe))
        .collect();
    let expected = [VariantWeights::FineTuned, VariantWeights::Retrieved]
        .map(|kept| [2, 8, 2, 8].map(|s| (kept, Some(s), f64::from(s + 1))));
    assert_eq!(figures, expected.concat());
    let (ours, theirs) = rows.split_at(4);
    for (ours, theirs) in ours.iter().zip(theirs) {
        let [ours, theirs] = [ours, theirs].map(|row| row.quality.nats_per_token);
        assert!(ours < theirs - 0.15, "{ours} against {theirs}");
    }

    let way = &ways(&config, &settings)[0].sampling;
    let again = |samples| {
        draw(&tuned, &[], way, &Wanted { samples, ..wanted })
            .expect("samples")
            .texts
    };
    assert_eq!(again(2), again(40)[..2]); // whatever is drawn beside them

    let text = HeldOut {
        name: "letters".into(),
        text: "abcdeabcdeabcdeabcdeabcde",
    };
    let mut of_text = held_out(&Bench::new(&text, &[], letters, 19, 5).expect("bench"), 0);
    let points = rows.len() + 2; // the held-out text is a line
    of_text.rows = rows;
    let report = Report {
        samples: 40,
        length: 15,
        seed: 3,
        temperature: 1.0,
        nucleus_p: 1.0,
        texts: vec![of_text],
    };
    shows(
        &picture::svg(&show::chart(&report)).expect("picture"),
        points,
    );
    let table = show::Table(&report).to_string();
    for words in [
        "stride-1, alone, uniform, greedy tail",
        "shuffled",
        "letters",
        "9.0",
    ] {
        assert!(table.contains(words), "no {words:?} in\n{table}");
    }
}

#[test]
fn a_uniform_variant_is_measured_by_its_own_bound() {
    let subjects = small::tuned(&[
        (2, small::config().uniform(Some(8)), 60),
        (3, small::config(), 60),
    ]);
    let of = |index: usize, tuned: bool| {
        let variant = &subjects.variants[index];
        let weights = subjects.weights(|tensor| variant.delta.dense(tensor).filter(|_| tuned));
        let score = subjects
            .score(variant, &weights, &variant.test)
            .expect("score");
        score.nats_per_token
    };
    assert_eq!(subjects.variants[0].config.process(), Process::Uniform);
    for index in [0, 1] {
        assert!(of(index, true) < of(index, false) - 0.2, "variant {index}");
    }
}
