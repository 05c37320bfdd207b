//! Who may know what: the paths in `src` keep to the order of the modules, outer crates stay where they belong, and
//! files stay short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From top to bottom: a module uses only modules below it.
const ORDER: [&str; 16] = [
    "cli",
    "load",
    "client",
    "server",
    "catalog",
    "train",
    "engine",
    "model",
    "store",
    "superposition",
    "sampler",
    "checkpoint",
    "ops",
    "transform",
    "rng",
    "telemetry",
];
/// What the order allows and the design does not.
const NEVER: [(&str, &str); 5] = [
    ("model", "sampler"),
    ("engine", "store"),
    ("engine", "superposition"),
    ("train", "engine"),
    ("train", "store"),
];
/// Crates, and the only modules that know them.
const OUTSIDE: [(&str, &[&str]); 12] = [
    ("tonic", &["server", "client", "load", "cli", "lib"]),
    ("tonic_health", &["server", "cli"]),
    ("tonic_reflection", &["server"]),
    ("tonic_prost", &["server", "cli"]),
    ("prost", &["server", "cli"]),
    ("axum", &["server"]),
    ("hyper_util", &["server"]),
    ("prometheus_client", &["server"]),
    ("subtle", &["server"]),
    ("tokio_rustls", &["server"]),
    ("choir_ops", &["lib"]),
    ("anyhow", &["cli", "main"]),
];
const LONGEST: usize = 500;
const NAMELESS: [&str; 4] = ["utils", "common", "helpers", "types"];

/// Every Rust file below `dir`.
fn files(dir: &str) -> Vec<PathBuf> {
    let (mut found, mut left) = (
        Vec::new(),
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)],
    );
    while let Some(dir) = left.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            match path.extension() {
                _ if path.is_dir() => left.push(path),
                Some(end) if end == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Identifiers, `::` and other signs, without comments.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    for line in source.lines().filter_map(|line| line.split("//").next()) {
        let mut inside = false;
        for letter in line.chars() {
            let word = letter.is_alphanumeric() || letter == '_';
            match tokens.last_mut() {
                Some(last) if word && inside => last.push(letter),
                Some(last) if letter == ':' && last == ":" => last.push(letter),
                _ if letter.is_whitespace() => {}
                _ => tokens.push(letter.to_string()),
            }
            inside = word;
        }
    }
    tokens
}

/// The paths that a path or tree at the beginning of `tokens` names.
fn paths(tokens: &[String], prefix: &str, found: &mut Vec<String>) {
    match tokens {
        [open, tree @ ..] if open == "{" => {
            let (mut depth, mut begins) = (0, true);
            for (at, token) in tree.iter().enumerate() {
                if depth == 0 && begins {
                    paths(&tree[at..], prefix, found);
                }
                begins = token == ",";
                match token.as_str() {
                    "{" => depth += 1,
                    "}" if depth == 0 => break,
                    "}" => depth -= 1,
                    _ => {}
                }
            }
        }
        [name, colons, rest @ ..] if colons == "::" => {
            paths(rest, &format!("{prefix}{name}::"), found)
        }
        [name, ..] => found.push(format!("{prefix}{name}")),
        [] => {}
    }
}

/// What a file names of its own crate, from the crate's root.
fn inner_paths(tokens: &[String], depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let rest = &tokens[at..];
        if at > 0 && tokens[at - 1] == "::" {
            continue;
        }
        let supers = rest
            .chunks(2)
            .take_while(|pair| pair[0] == "super" && pair.last().is_some_and(|token| token == "::"))
            .count();
        if rest[0] == "crate" && rest.get(1).is_some_and(|token| token == "::") {
            paths(&rest[2..], "", &mut found);
        } else if supers >= depth {
            paths(&rest[2 * supers..], "", &mut found); // as far as an inline module allows
        }
    }
    found
}

/// The same, and what it names of modules beside it and around it.
fn all_paths(tokens: &[String], module: &[String]) -> Vec<String> {
    let mut found = inner_paths(tokens, module.len());
    for at in 0..tokens.len() {
        if at > 0 && tokens[at - 1] == "::" {
            continue;
        }
        let rest = &tokens[at..];
        let supers = rest.chunks(2).take_while(|pair| pair[0] == "super").count();
        if (1..module.len()).contains(&supers) {
            let around = module[..module.len() - supers].join("::");
            paths(&rest[2 * supers..], &format!("{around}::"), &mut found);
        }
    }
    found
}

fn layer(name: &str) -> Option<usize> {
    ORDER.iter().position(|layer| *layer == name)
}

/// The path of a file's module: `["engine", "check"]`.
fn module(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let inside = inside.expect("below src").with_extension("");
    let mut parts: Vec<_> = inside
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    parts.pop_if(|last| last == "mod");
    parts
}

#[test]
fn modules_use_only_modules_below_them() {
    let mut seen = 0;
    for file in files("src") {
        let module = module(&file);
        let Some(own) = layer(&module[0]) else {
            continue;
        };
        let source = fs::read_to_string(&file).expect("source");
        for path in inner_paths(&tokens(&source), module.len()) {
            let mut parts = path.split("::");
            let name = parts.next().unwrap_or_default();
            let Some(other) = layer(name) else { continue };
            let reason = format!("{} uses {path}", file.display());
            assert!(own <= other, "{reason}, which is above it");
            assert!(!NEVER.contains(&(ORDER[own], name)), "{reason}");
            let schedule = parts.next().is_none_or(|part| part == "schedule");
            assert!(
                module[0] != "train" || name != "sampler" || schedule,
                "{reason}"
            );
            seen += usize::from(own != other);
        }
    }
    assert!(seen > 50, "only {seen} uses were found");
}

#[test]
fn transforms_and_random_numbers_know_no_kernels() {
    let mut seen = 0;
    for name in ["crates/ops/src/transform", "crates/ops/src/rng"] {
        let mut found = files(name);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.rs"));
        found.extend(file.exists().then_some(file));
        for file in found {
            let source = fs::read_to_string(&file).expect("source");
            for path in inner_paths(&tokens(&source), usize::MAX) {
                let below = ["transform", "rng"].iter().any(|own| path.starts_with(own));
                assert!(below, "{} uses {path}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// Which files (or folders) right below a module use which others of them. Tests may use any.
fn uses(of: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(&format!("src/{of}")) {
        let module = module(&file);
        if module.len() < 2 || module.last().is_some_and(|name| name == "tests") {
            continue;
        }
        let source = fs::read_to_string(&file).expect("source");
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        // As a file in the folder of its module sees the others: one `super` up from where it is.
        let found = inner_paths(&tokens(source), module.len() - 1);
        let inside = found
            .iter()
            .map(|path| path.strip_prefix(&format!("{of}::")).unwrap_or(path));
        let names = inside.filter_map(|path| path.split("::").next().map(str::to_owned));
        uses.entry(module[1].clone()).or_default().extend(names);
    }
    let files: BTreeSet<String> = uses.keys().cloned().collect();
    for (own, used) in &mut uses {
        used.retain(|name| files.contains(name) && name != own);
    }
    uses
}

#[test]
fn files_of_engine_and_of_model_use_each_other_in_no_circle() {
    for module in ["engine", "model"] {
        let mut left = uses(module);
        assert!(
            left.values().map(BTreeSet::len).sum::<usize>() > 50,
            "{left:?}"
        );
        while let Some(lowest) = left.iter().find(|(_, uses)| uses.is_empty()) {
            let lowest = lowest.0.clone();
            left.remove(&lowest);
            left.values_mut().for_each(|uses| _ = uses.remove(&lowest));
        }
        assert!(left.is_empty(), "a circle in {module}: {left:?}");
    }
}

#[test]
fn door_and_batcher_know_no_tensor_no_channel_and_no_clock() {
    for name in [
        "door",
        "batcher",
        "sequence",
        "schedule",
        "ledger",
        "caps",
        "throughput",
        "pages",
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/engine/{name}.rs"));
        let source = fs::read_to_string(file).expect("source");
        let tokens = tokens(source.split("#[cfg(test)]").next().unwrap_or_default());
        let foreign = [
            "tokio",
            "candle_core",
            "mpsc",
            "Mutex",
            "rayon",
            "Denoiser",
            "Segment",
        ];
        let named = foreign
            .iter()
            .find(|name| tokens.iter().any(|token| token == *name));
        assert_eq!(named, None, "{name}");
        assert!(
            !tokens
                .windows(3)
                .any(|three| three == ["Instant", "::", "now"]),
            "{name}"
        );
    }
}

#[test]
fn crates_stay_where_they_belong() {
    for file in files("src") {
        let module = module(&file);
        let tokens = tokens(&fs::read_to_string(&file).expect("source"));
        for (name, allowed) in OUTSIDE {
            let named = |at: usize| {
                let before = at.checked_sub(1).map_or("", |before| &tokens[before]);
                let after = tokens.get(at + 1).map_or("", |after| after);
                tokens[at] == name && (after == "::" || before == "use")
            };
            let named = (0..tokens.len()).any(named);
            assert!(
                !named || allowed.contains(&module[0].as_str()),
                "{} uses {name}",
                file.display()
            );
        }
        let generated = [["crate", "::", "pb"], ["crate", "::", "kserve"]];
        let wire = tokens
            .windows(3)
            .any(|three| generated.iter().any(|path| three == path));
        assert!(
            !wire || ["server", "load", "cli"].contains(&module[0].as_str()),
            "{} uses pb",
            file.display()
        );
    }
}

#[test]
fn protocols_do_not_know_each_other() {
    const PROTOCOLS: [&str; 3] = ["choir", "kserve", "openai"];
    for protocol in PROTOCOLS {
        let mut seen = 0;
        for file in files(&format!("src/server/{protocol}")) {
            let source = fs::read_to_string(&file).expect("source");
            for path in all_paths(&tokens(&source), &module(&file)) {
                let mut parts = path.split("::");
                let named = (parts.next() == Some("server")).then(|| parts.next());
                let other = named.flatten().filter(|name| *name != protocol);
                let known = other.is_some_and(|name| PROTOCOLS.contains(&name));
                assert!(!known, "{} uses {path}", file.display());
                seen += usize::from(other.is_some());
            }
        }
        assert!(seen > 3, "only {seen} uses were found in {protocol}");
    }
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    for file in ["src", "crates", "tests", "benches"]
        .into_iter()
        .flat_map(files)
    {
        let lines = fs::read_to_string(&file).expect("source").lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines", file.display());
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        assert!(
            !NAMELESS.contains(&stem.as_ref()),
            "{} says nothing",
            file.display()
        );
    }
    for dir in NAMELESS {
        assert!(
            files("src")
                .iter()
                .all(|file| !file.iter().any(|part| part == dir)),
            "{dir} says nothing"
        );
    }
}

#[test]
fn trees_of_paths_are_read() {
    let source = "use crate::{engine::{self, Error}, store::Store}; // crate::no\nlet x: crate::ops::Quantisation;\n\
                  use super::super::model::Dit; fn f() { super::near() }";
    let found = inner_paths(&tokens(source), 2);
    assert_eq!(
        found,
        [
            "engine::self",
            "engine::Error",
            "store::Store",
            "ops::Quantisation",
            "model::Dit"
        ]
    );
}
