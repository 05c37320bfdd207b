//! `choir pack`, from a fine-tune to its text: the file that it writes is added as it is, and says what it keeps.

use super::*;
use choir::superposition::{CodedDelta, Digest};
use std::process::{Command, Output};

/// Of `choir`, without a terminal.
fn choir(words: &[&str]) -> Output {
    let command = Command::new(env!("CARGO_BIN_EXE_choir"))
        .args(words)
        .output();
    command.expect("choir")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// A fine-tune of the tiny base that learnt a text, beside that base.
struct Learnt {
    place: TestDir,
    tuned: PathBuf,
    text: PathBuf,
}

impl Learnt {
    fn new() -> Self {
        let place = TestDir::new();
        let text = place.data().with_file_name("text.txt");
        fs::write(&text, "the whale was seen at noon. ".repeat(200)).expect("text");
        let tuned = place.data().with_file_name("tuned");
        let learnt = Learnt { place, tuned, text };
        let (base, text, out) = (learnt.place.base(), path(&learnt.text), path(&learnt.tuned));
        let words = "train variant --steps 60 --batch 4 --lr 1e-2 --warm-up 5 --weight-decay 0 --validations 1";
        let words: Vec<_> = words.split(' ').collect();
        let places = ["--base", path(&base), "--text", text, "--out", out];
        let output = choir(&[&words[..], &places].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        learnt
    }

    fn out(&self) -> PathBuf {
        self.tuned.with_file_name("packed.safetensors")
    }

    fn pack(&self, variant: &Path, words: &[&str]) -> Output {
        let (base, out) = (self.place.base(), self.out());
        let places = [
            "pack",
            "--base",
            path(&base),
            "--variant",
            path(variant),
            "--out",
            path(&out),
        ];
        choir(&[&places[..], words].concat())
    }

    /// What it is refused with, in one line; nothing is written.
    fn refused(&self, variant: &Path, words: &[&str], named: &str) {
        let output = self.pack(variant, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(named),
            "{words:?}: {said}"
        );
        assert!(!self.out().exists(), "{words:?}");
    }
}

#[test]
fn a_packed_fine_tune_is_added_as_it_is_and_says_what_it_keeps() {
    let learnt = Learnt::new();
    let text = path(&learnt.text);
    let output = learnt.pack(
        &learnt.tuned,
        &["--bits", "10", "--check-text", text, "--json"],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    let bytes = fs::read(learnt.out()).expect("file");
    let coded = CodedDelta::from_bytes(&bytes).expect("a coded delta");
    let measured = coded.about.measured.as_ref().expect("a share");
    assert_eq!(
        measured.text,
        Digest::of(&fs::read(&learnt.text).expect("text"))
    );
    assert_eq!(said["share"].as_f64(), Some(measured.share));
    assert!((0.9..1.1).contains(&measured.share), "{measured:?}");
    assert!(said["bits"].as_f64() <= Some(10.0), "{said}");

    let (catalog, engine) = learnt.place.served();
    let with = |name: &str, least| AddRequest {
        min_share: Some(least),
        ..addition(name, CheckpointSource::Path(learnt.out()))
    };
    let bad = |error: Error| {
        matches!(
            error,
            Error::BadField {
                field: "min_share",
                ..
            }
        )
    };
    for least in [-0.1, 1.5, f32::NAN] {
        assert!(
            bad(catalog
                .add(with("learnt", least), |_| {})
                .expect_err("refused")),
            "{least}"
        );
    }
    let least = measured.share.min(1.0) as f32 - 0.01;
    let info = catalog
        .add(with("learnt", least), |_| {})
        .expect("add")
        .variant;
    assert_eq!((info.keep, info.bytes), (Keep::Coded, bytes.len() as u64));
    assert_eq!(info.share.map(|share| share.text), Some(measured.text));
    // As the fine-tune itself, kept at as many bits here.
    let itself = AddRequest {
        keep: Some(Keep::Coded),
        bits: Some(10.0),
        ..addition(
            "itself",
            CheckpointSource::Path(learnt.tuned.join("model.safetensors")),
        )
    };
    assert_eq!(
        catalog
            .add(itself, |_| {})
            .expect("add")
            .variant
            .delta_digest,
        info.delta_digest
    );
    assert_eq!(answer(&engine, "learnt").len(), 24);
    // What says nothing of its share has nothing to be held to.
    let output = learnt.pack(&learnt.tuned, &["--bits", "10"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(bad(catalog
        .add(with("silent", 0.5), |_| {})
        .expect_err("refused")));
    drop((catalog, engine));
    learnt.place.open().expect("open");
}

#[test]
fn a_calibrated_fine_tune_is_packed_in_as_many_bytes_and_keeps_more() {
    let learnt = Learnt::new();
    let text = path(&learnt.text);
    let pack = |words: &[&str]| {
        let least = [
            "--bits",
            "5",
            "--codes-alone",
            "--check-text",
            text,
            "--json",
        ];
        let output = learnt.pack(&learnt.tuned, &[&least[..], words].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
        let bytes = fs::read(learnt.out()).expect("file");
        let coded = CodedDelta::from_bytes(&bytes).expect("a coded delta");
        (said["packed"]["nats_per_token"].as_f64(), coded)
    };
    let (plain, before) = pack(&[]);
    let (calibrated, after) = pack(&["--calibrate", text, "--calibrate-steps", "40"]);
    assert!(calibrated < plain, "{plain:?} to {calibrated:?}");
    assert_eq!(after.bytes(), before.bytes());
    assert_eq!(after.about.source, before.about.source);
    let method = after.about.measured.expect("a share").method;
    assert!(method.contains("calibrated"), "{method}");
    let (catalog, engine) = learnt.place.served();
    let added = catalog.add(
        addition("learnt", CheckpointSource::Path(learnt.out())),
        |_| {},
    );
    assert_eq!(added.expect("add").variant.keep, Keep::Coded);
    assert_eq!(answer(&engine, "learnt").len(), 24);
}

#[test]
fn what_cannot_be_packed_is_refused_by_what_is_wrong() {
    let learnt = Learnt::new();
    let empty = learnt.text.with_file_name("empty.txt");
    fs::write(&empty, " \n").expect("text");
    let tuned = &learnt.tuned;
    learnt.refused(tuned, &["--bits", "0.01"], "the least is");
    learnt.refused(tuned, &["--bits=-1"], "the least is");
    learnt.refused(tuned, &["--bits=NaN"], "the least is");
    learnt.refused(tuned, &["--check-text", path(&empty)], "--check-text");
    learnt.refused(tuned, &["--check-text", "/no/such/text"], "/no/such/text");
    learnt.refused(tuned, &["--skill", "cooking"], "cooking");
    let text = path(&learnt.text);
    let measured = ["--bits", "10", "--check-text", text, "--calibrate"];
    learnt.refused(tuned, &["--calibrate", text], "--check-text");
    for (words, named) in [
        (&["/no/such/text"][..], "/no/such/text"),
        (&["skill:cooking"], "no such skill"),
        (&[path(&empty)], "tokens"),
        (&[text, "--calibrate-steps", "0"], "--calibrate-steps"),
    ] {
        learnt.refused(tuned, &[&measured[..], words].concat(), named);
    }
    learnt.refused(
        &learnt.place.base(),
        &["--bits", "10", "--check-text", path(&learnt.text)],
        "nothing to keep",
    );
    // A fine-tune of another base.
    let other = tuned.with_file_name("other");
    fs::create_dir(&other).expect("folder");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(tuned.join(file), other.join(file)).expect("copy");
    }
    let weights = checkpoint(&noise(&TINY.config, 99, 0.3));
    fs::write(other.join("model.safetensors"), weights).expect("weights");
    learnt.refused(&other, &["--bits", "10"], "no fine-tune of this base");
    // A file that is coded already, and one that was cut.
    assert!(learnt.pack(tuned, &["--bits", "10"]).status.success());
    let coded = tuned.with_file_name("coded.safetensors");
    fs::rename(learnt.out(), &coded).expect("rename");
    learnt.refused(&coded, &["--bits", "10"], "already");
    let cut = fs::read(tuned.join("model.safetensors")).expect("weights");
    fs::write(other.join("model.safetensors"), &cut[..cut.len() - 8]).expect("weights");
    learnt.refused(&other, &["--bits", "10"], "truncated");
}

/// Of two networks the one that scores a text better gains on the other, and the service says how much of that its code keeps.
#[test]
fn a_decoder_is_measured_by_the_service() {
    let decoder = super::decoders::Decoder::new();
    let (_, tuned) = decoder.fine_tune(3);
    let base = decoder.0.base();
    let tokenizer = fs::read(base.join("tokenizer.json")).expect("tokenizer");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&tokenizer).expect("json");
    tokenizer["pre_tokenizer"] = serde_json::json!({"type": "WhitespaceSplit"});
    for folder in [&base, &tuned] {
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("tokenizer");
        let config = decoder.0.base().join("config.json");
        if folder != &base {
            fs::copy(config, folder.join("config.json")).expect("config");
        }
    }
    let text: String = (0..60)
        .map(|number| format!("t{} ", number * 7 % 90))
        .collect();
    let text = decoder.0.file("text.txt", text.as_bytes());
    let out = text.with_file_name("packed.safetensors");
    let pack = |base: &Path, variant: &Path| {
        let words = ["pack", "--bits", "6", "--base", path(base), "--variant"];
        let rest = [
            path(variant),
            "--out",
            path(&out),
            "--check-text",
            path(&text),
        ];
        choir(&[&words[..], &rest].concat())
    };
    let mut shares = Vec::new();
    for (base, variant) in [(&base, &tuned), (&tuned, &base)] {
        let output = pack(base, variant);
        if output.status.success() {
            let coded = CodedDelta::from_bytes(&fs::read(&out).expect("file")).expect("coded");
            let measured = coded.about.measured.expect("a share");
            assert_eq!(measured.text, Digest::of(&fs::read(&text).expect("text")));
            shares.push(measured.share);
            // As the evaluation says.
            let variant = format!("tuned={}={}", path(variant), path(&text));
            let words = ["eval", "--bits", "6", "--json", "--base", path(base)];
            let output = choir(&[&words[..], &["--variant", &variant]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
            assert_eq!(said["kept"][0]["shares"][0], measured.share, "{said}");
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("too little to measure a share of"), "{said}");
        }
    }
    for (word, named) in [("--skill", "sort"), ("--variant", path(&text))] {
        let places = ["pack", "--base", path(&base), "--out", path(&out)];
        let variant: &[&str] = match word {
            "--skill" => &["--variant", path(&tuned)],
            _ => &[],
        };
        let output = choir(&[&places[..], variant, &[word, named]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(word), "{said}");
    }
    let [share] = shares[..] else {
        panic!("one of two gains on the other: {shares:?}")
    };
    assert!((0.8..1.2).contains(&share), "{share}");
}
