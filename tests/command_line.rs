//! The one binary, as somebody at two terminals has it: a server of the model compiled in, and commands that ask it.

#[path = "command_line/ends.rs"]
mod ends;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const CHOIR: &str = env!("CARGO_BIN_EXE_choir");

/// `choir serve` on a port of its own, with a store of its own.
struct Server {
    process: Child,
    address: String,
    _store: TempDir,
}

impl Server {
    fn start() -> Self {
        Server::of(&[])
    }

    /// One with more options.
    fn of(options: &[&str]) -> Self {
        let store = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(CHOIR)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--threads",
                "1",
                "--data-dir",
            ])
            .arg(store.path().join("store"))
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().expect("its words"));
        said.read_line(&mut line).expect("a line");
        let (_, address) = line.trim_end().rsplit_once(" on ").expect("an address");
        Server {
            process,
            address: address.to_owned(),
            _store: store,
        }
    }

    fn ask(&self, words: &[&str]) -> Output {
        choir(
            Command::new(CHOIR)
                .args(words)
                .env("CHOIR_SERVER", &self.address),
        )
    }

    /// What it says on standard output; it must succeed.
    fn told(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(
            output.status.success(),
            "{words:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// The one line in which it says what is wrong.
    fn refused(&self, words: &[&str]) -> String {
        one_line(&self.ask(words), 1)
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[words, &["--json"]].concat())).expect("json")
    }

    fn names(&self) -> Vec<String> {
        let list = self.json(&["variants", "list"]);
        let name = |one: &Value| one["name"].as_str().expect("a name").to_owned();
        list.as_array()
            .expect("variants")
            .iter()
            .map(name)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn choir(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("a command")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn one_line(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(
        output.stdout.is_empty() && said.lines().count() == 1,
        "{said}"
    );
    said
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// As it is shipped.
fn delta(name: &str) -> PathBuf {
    root().join(format!("models/variants/{name}.safetensors"))
}

/// The fine-tune that it was coded from.
fn packed(name: &str) -> PathBuf {
    root().join(format!("tests/fixtures/packed/{name}.safetensors"))
}

#[test]
fn a_variant_leaves_and_comes_back_and_says_the_same() {
    let server = Server::start();
    let prompt = [
        "generate",
        "In the beginning",
        "-v",
        "kjv",
        "--seed",
        "7",
        "-n",
        "24",
    ];
    let (said, names) = (server.told(&prompt), server.names());
    assert!(!said.trim().is_empty());
    let before = server.json(&["variants", "show", "kjv"]);
    assert_eq!(
        server.json(&["variants", "remove", "kjv"])["removed"],
        "kjv"
    );
    assert!(server.refused(&prompt).contains("\"kjv\""));
    assert_eq!(server.names().len() + 1, names.len());
    let (file, seed) = (
        delta("kjv").display().to_string(),
        before["seed"].to_string(),
    );
    server.told(&["variants", "add", "kjv", &file, "--seed", &seed]);
    assert_eq!(server.names(), names);
    let after = server.json(&["variants", "show", "kjv"]);
    assert_eq!(before["keep"], "coded");
    for fact in ["seed", "keep", "bits", "delta_digest", "share", "sampling"] {
        assert_eq!(before[fact], after[fact], "{fact}");
    }
    assert_eq!(server.told(&prompt), said);
    assert!(server.json(&["score", &said, "-v", "kjv"])["nats_per_token"].as_f64() > Some(0.0));
}

#[test]
fn mistakes_are_told_in_one_line_that_names_them() {
    let server = Server::start();
    let path = |name: &str| root().join(name).display().to_string();
    let (readme, kjv) = (path("README.md"), delta("kjv").display().to_string());
    let folder = path("models");
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["generate", "hello", "-v", "nobody"],
            &["NotFound", "\"nobody\""],
        ),
        (&["generate", ""], &["InvalidArgument", "prompt"]),
        (
            &["generate", "hello", "--temperature", "NaN"],
            &["temperature"],
        ),
        (&["score", ""], &["InvalidArgument", "text"]),
        (&["variants", "add", "kjv", &kjv], &["AlreadyExists", "kjv"]),
        (
            &["variants", "add", "new", &readme],
            &["InvalidArgument", &readme, "not a safetensors file"],
        ),
        (
            &["variants", "add", "new", &folder],
            &[&folder, "directory"],
        ),
        (
            &["variants", "add", "a/b", &kjv],
            &["InvalidArgument", "\"a/b\""],
        ),
        (
            &["variants", "remove", "nobody"],
            &["NotFound", "\"nobody\""],
        ),
    ];
    for (words, expected) in cases {
        let said = server.refused(words);
        assert!(said.starts_with("choir: "), "{said}");
        expected
            .iter()
            .for_each(|part| assert!(said.contains(part), "{words:?}: {said}"));
    }
    assert!(!server.names().contains(&"new".to_owned()));
    let taken = Command::new(CHOIR)
        .args(["serve", "--listen", &server.address])
        .output();
    assert!(one_line(&taken.expect("a command"), 1).contains(&server.address));
}

#[test]
fn what_cannot_be_parsed_ends_with_two_and_nobody_to_ask_with_one() {
    let wrong = choir(Command::new(CHOIR).args(["generate", "hello", "--no-such-option"]));
    assert_eq!(wrong.status.code(), Some(2));
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let alone = choir(Command::new(CHOIR).args(["status", "--server", &address]));
    assert!(one_line(&alone, 1).contains("choir serve"));
    let open = choir(Command::new(CHOIR).args(["serve", "--listen", "0.0.0.0:0"]));
    assert!(one_line(&open, 1).contains("--insecure-bind"));
}

/// As `systemctl stop` does.
#[test]
#[allow(unsafe_code, reason = "one call of the system")]
fn asked_to_end_it_finishes_what_it_has_and_ends_well() {
    let mut server = Server::start();
    let asking = Command::new(CHOIR)
        .args(["generate", "It was", "-n", "400", "--json"])
        .env("CHOIR_SERVER", &server.address)
        .stdout(Stdio::piped())
        .spawn();
    let mut asking = asking.expect("a client");
    let mut events = BufReader::new(asking.stdout.take().expect("its words")).lines();
    let begun = events.next().expect("an event").expect("a line");
    assert!(begun.contains("started"), "{begun}");
    // SAFETY: it is a child that has not been waited for.
    unsafe { libc::kill(server.process.id() as i32, libc::SIGTERM) };
    let last = events.last().expect("events").expect("a line");
    assert!(last.contains("finished"), "{last}");
    assert!(asking.wait().expect("a client").success());
    assert_eq!(server.process.wait().expect("a server").code(), Some(0));
}

#[test]
fn an_evaluation_says_what_ones_own_fine_tunes_keep() {
    let path = |name: &str| root().join("models").join(name).display().to_string();
    let own = |name: &str| {
        let text = path(&format!("held-out/{name}.txt"));
        format!("{name}={}={text}", packed(name).display())
    };
    let (base, kjv) = (path("base"), own("kjv"));
    let reverse = format!("reverse={}=skill:reverse", packed("reverse").display());
    let eval = |words: &[&str]| {
        choir(
            Command::new(CHOIR)
                .args(["eval", "--base", &base])
                .args(words),
        )
    };
    let words =
        "--contexts 2 --prompts 8 --samples 2 --bits 1.05 --capacities 1 --forms f32 --json";
    let mut words: Vec<&str> = words.split(' ').collect();
    words.extend(["--variant", &kjv, "--variant", &reverse]);
    let output = eval(&words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let kept = report["kept"].as_array().expect("ways");
    // Codes alone, with thin factors, and the better of both for each; then banks.
    let [codes, thin, better, banks] = &kept[..] else {
        panic!("{report}");
    };
    let number = |kept: &Value, what: &str| kept[what].as_f64().expect("a figure");
    let worst = |kept| number(kept, "worst");
    // A head by itself takes two bits, whatever the body's form.
    assert!(worst(codes) > 0.9 && worst(banks) > 0.9, "{report}");
    assert!(worst(better) >= worst(codes).max(worst(thin)), "{report}");
    let bits = |kept| number(kept, "bits");
    assert!(bits(codes) < 1.5 && bits(banks) > 16.0, "{report}");
    assert!(number(codes, "right") > 0.8, "{report}");
    for (words, named) in [
        (&["--variant", "kjv"][..], "NAME=CHECKPOINT=TEXT"),
        (&["--variant", "a=/no/such/file=x"], "/no/such/file"),
        (&["--variant", &kjv, "--contexts", "0"], "--contexts"),
    ] {
        let output = eval(words);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{said}");
    }
}

#[test]
fn what_noise_costs_by_role_is_measured_and_divides_the_bits() {
    let place = tempfile::tempdir().expect("a directory");
    let path = |name: &str| root().join("models").join(name).display().to_string();
    let beside = |name: &str| place.path().join(name).display().to_string();
    let (base, kjv) = (path("base"), packed("kjv").display().to_string());
    let (found, out) = (beside("roles.json"), beside("kjv.safetensors"));
    let variant = format!("kjv={kjv}={}", path("held-out/kjv.txt"));
    let words = "--contexts 6 --samples 4 --keep coded --json --variant";
    let mut eval = Command::new(CHOIR);
    eval.args(["eval", "--base", &base, "--by-role", &found]);
    let output = choir(eval.args(words.split(' ')).arg(&variant));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let roles: Value =
        serde_json::from_slice(&std::fs::read(&found).expect("a file")).expect("json");
    assert_eq!(report["sensitivities"], roles);
    let number = |role: &str| roles[role].as_f64().expect("a number");
    assert!(
        (number("up") + number("down") - 2.0).abs() < 1e-6,
        "{roles}"
    );
    let others = ["embedding", "qkv", "attention_out", "up", "down"];
    let most = others.map(number).into_iter().fold(0.0, f64::max);
    assert!(number("head") > most, "the logits feel it at once: {roles}");
    let pack = |sensitivities: &str| {
        let words = ["pack", "--base", &base, "--variant", &kjv, "--out", &out];
        let mut command = Command::new(CHOIR);
        choir(command.args(words).args(["--sensitivities", sensitivities]))
    };
    assert!(pack(&found).status.success());
    let by = |file: &str| std::fs::read(file).expect("a file");
    let measured = by(&out);
    // Where the head matters most it gets most.
    let only = beside("only.json");
    std::fs::write(&only, r#"{"head": 1e9}"#).expect("a file");
    assert!(pack(&only).status.success());
    assert_ne!(by(&out), measured);
    std::fs::remove_file(&out).expect("the file");
    std::fs::write(&only, r#"{"nose": 1}"#).expect("a file");
    for file in [&only, "/no/such/file"] {
        let output = pack(file);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(file), "{said}");
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn a_conversation_goes_on_line_by_line() {
    let base = tempfile::tempdir().expect("a directory");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(
            root().join("models/base").join(file),
            base.path().join(file),
        )
        .expect(file);
    }
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";
    std::fs::write(base.path().join("chat_template.jinja"), template).expect("a template");
    let config = r#"{"eos_token": "<|endoftext|>"}"#;
    std::fs::write(base.path().join("tokenizer_config.json"), config).expect("a configuration");
    let server = Server::of(&["--base", base.path().to_str().expect("a path")]);
    let chat = [
        "generate",
        "--chat",
        "Who is there?",
        "--system",
        "Answer.",
        "-n",
        "8",
        "--seed",
        "1",
    ];
    let answer = server.told(&chat);
    assert_eq!(answer, server.told(&chat));
    let refused = server.refused(&["generate", "x", "--system", "Answer."]);
    assert!(refused.contains("--chat"), "{refused}");
    let mut talking = Command::new(CHOIR)
        .args(["chat", "--system", "Answer.", "-n", "8", "--seed", "1"])
        .env("CHOIR_SERVER", &server.address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a command");
    let mut said = talking.stdin.take().expect("its input");
    said.write_all(b"Who is there?\n\nAnd who else?\n/new\nWho is there?\n")
        .expect("turns");
    drop(said);
    let output = talking.wait_with_output().expect("an end");
    let (answers, figures) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{figures}");
    assert_eq!(figures.lines().count(), 3, "{figures}");
    // The first turn, and the same one anew.
    assert!(
        answers.starts_with(&answer) && answers.ends_with(&answer),
        "{answers}"
    );
    let without = Server::start();
    let refused = without.refused(&chat);
    assert!(refused.contains("no chat template"), "{refused}");
}
