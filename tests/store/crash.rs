//! A process that is killed (SIGKILL) anywhere in a change leaves a whole generation.
//!
//! This test starts its own binary again as a child that adds, replaces and removes variants for ever. The child says on its
//! standard error that it is about to do a disk operation, a byte for each; the parent kills it after a number of
//! bytes drawn at random. No clock decides where.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use choir::store::DiskWatch;

use super::*;

const DIRECTORY: &str = "CHOIR_TEST_CRASH_DIRECTORY";
const SEED: &str = "CHOIR_TEST_CRASH_SEED";
const KILLS: u64 = 60;
const VARIANTS: usize = 7;

/// The child: with the environment set it never ends of its own accord; in an ordinary run it does nothing.
#[test]
fn crash_child() {
    let (Some(dir), Ok(seed)) = (std::env::var_os(DIRECTORY), std::env::var(SEED)) else {
        return;
    };
    let watch: DiskWatch = Box::new(|_, _| std::io::stderr().write_all(b"."));
    let dir = Path::new(&dir);
    let mut store = if Store::exists(dir) {
        Store::open_watched(dir, facts(), Some(watch)).unwrap()
    } else {
        Store::create_watched(dir, facts(), Options::default(), Some(watch)).unwrap()
    };
    let mut stream = Stream::new(Key::derive(&[b"child", seed.as_bytes()]));
    loop {
        let k = stream.below(VARIANTS);
        let name = format!("v{k}");
        // Of each variant two fine-tunes, both as a code and superposed.
        let (k, coded) = (k + VARIANTS * stream.below(2), stream.below(2) == 0);
        let by = match coded {
            true => coded_variant(&name, k as u64),
            false => variant(&name, k as u64),
        };
        match store
            .manifest()
            .variants
            .get(&name)
            .map(|found| found.delta)
        {
            None => store.add(by, None, &mut |_| {}).unwrap(),
            Some(_) if stream.below(2) == 0 => remove(&mut store, &name).unwrap(),
            Some(found) => replace(&mut store, found, by).unwrap(),
        };
    }
}

#[test]
fn a_killed_process_leaves_a_whole_generation() {
    let dir = tempfile::tempdir().unwrap();
    let both = |k| {
        [
            (delta(k).digest(), delta(k)),
            (coded(k).delta().about.source, delta(k)),
        ]
    };
    let all: BTreeMap<_, _> = (0..2 * VARIANTS as u64).flat_map(both).collect();
    let mut stream = Stream::new(Key::derive(&[b"kill points"]));
    let (mut generation, mut strays) = (0, 0);
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::crash_child", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .env(SEED, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut operations = vec![0; 1 + stream.below(90)];
        let mut pipe = child.stderr.take().unwrap();
        let read = pipe.read_exact(&mut operations);
        child.kill().unwrap();
        child.wait().unwrap();
        let said = String::from_utf8_lossy(&operations);
        assert!(
            read.is_ok() && said.bytes().all(|byte| byte == b'.'),
            "round {round}: the child said {said}"
        );

        if !Store::exists(dir.path()) {
            assert_eq!(generation, 0, "a store has vanished");
            continue;
        }
        let left = files_in(dir.path()).len();
        let store = Store::open(dir.path(), facts()).unwrap();
        assert!(
            store.manifest().generation >= generation,
            "a committed generation was lost"
        );
        generation = store.manifest().generation;
        let variants = store.manifest().variants.iter();
        let deltas = variants.map(|(name, record)| (name.clone(), all[&record.delta].clone()));
        assert_whole(&store, &deltas.collect());
        strays += usize::from(left > files_in(dir.path()).len());
    }
    // The kills did land inside changes, and changes were made.
    assert!(generation > KILLS / 2, "{generation}");
    assert!(strays > 5, "{strays}");
}
