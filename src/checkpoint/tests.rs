//! Checkpoints of several kinds written and opened, and everything that can be wrong with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;

use super::{Checkpoint, INDEX, SINGLE, Unreadable};

/// A tensor of `count` values from `first` on, in f32.
fn file(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    typed(tensors, Dtype::F32, |value| value.to_le_bytes().to_vec())
}

fn typed(tensors: &[(&str, &[f32])], dtype: Dtype, bytes: impl Fn(f32) -> Vec<u8>) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values)| values.iter().flat_map(|&value| bytes(value)).collect())
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, values), data)| {
        let view = TensorView::new(dtype, vec![values.len()], data).unwrap();
        (name.to_string(), view)
    });
    serialize(views.collect::<BTreeMap<_, _>>(), None).unwrap()
}

/// A folder with an index and the shards given.
fn folder(index: &[(&str, &str)], shards: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let map: BTreeMap<_, _> = index.iter().copied().collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(folder.path().join(INDEX), index).unwrap();
    for (name, bytes) in shards {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn error(path: &Path) -> String {
    Checkpoint::open(path).map(drop).unwrap_err().to_string()
}

const ONE: (&str, &[f32]) = ("a.weight", &[1.0, -2.0, 0.5]);
const TWO: (&str, &[f32]) = ("b.weight", &[8.0]);

#[test]
fn shards_are_read_as_one_and_strays_ignored() {
    let whole = folder(
        &[
            ("a.weight", "x-1.safetensors"),
            ("b.weight", "x-2.safetensors"),
        ],
        &[
            ("x-1.safetensors", file(&[ONE])),
            ("x-2.safetensors", file(&[TWO])),
            ("x-3.safetensors", file(&[TWO])),
            ("pytorch_model.bin", b"PK\x03\x04".to_vec()),
        ],
    );
    for path in [whole.path().to_path_buf(), whole.path().join(INDEX)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let values = |name| checkpoint.get(name).unwrap().to_f32().unwrap();
        assert_eq!(
            (values("a.weight"), values("b.weight")),
            (ONE.1.to_vec(), TWO.1.to_vec())
        );
        assert_eq!((checkpoint.parameters(), checkpoint.bytes()), (4, 16));
        assert_eq!(checkpoint.iter().count(), 2);
        assert!(checkpoint.get("c.weight").is_none());
    }
}

#[test]
fn types_of_two_bytes_are_read_in_any_part() {
    let values: Vec<f32> = (0..40).map(|i| i as f32 * 0.25 - 3.0).collect();
    let two = |dtype, bytes: fn(f32) -> [u8; 2]| {
        typed(&[("t", &values)], dtype, move |value| bytes(value).to_vec())
    };
    for file in [
        two(Dtype::BF16, |value| bf16::from_f32(value).to_le_bytes()),
        two(Dtype::F16, |value| f16::from_f32(value).to_le_bytes()),
        file(&[("t", &values)]),
    ] {
        let checkpoint = Checkpoint::from_bytes(file).unwrap();
        let tensor = checkpoint.get("t").unwrap();
        assert_eq!(tensor.to_f32().unwrap(), values);
        let mut part = [0.0; 7];
        tensor.read(33, &mut part).unwrap();
        assert_eq!(part, values[33..]);
    }
}

#[test]
fn shards_that_do_not_fit_are_named() {
    let index = [("a.weight", "1.safetensors"), ("b.weight", "2.safetensors")];
    let case = |second: Option<Vec<u8>>| {
        let mut shards = vec![("1.safetensors", file(&[ONE]))];
        shards.extend(second.map(|bytes| ("2.safetensors", bytes)));
        let folder = folder(&index, &shards);
        error(folder.path())
    };
    assert_eq!(case(None), "its shard 2.safetensors is missing");
    assert_eq!(
        case(Some(file(&[ONE, TWO]))),
        "it has the tensor a.weight twice"
    );
    assert!(case(Some(file(&[("c", &[1.0]), TWO]))).contains("does not name the tensor c"));
    assert!(case(Some(file(&[]))).contains("b.weight into 2.safetensors, which does not have it"));
    let whole = file(&[TWO]);
    let cut = case(Some(whole[..whole.len() - 1].to_vec()));
    assert!(
        cut.contains("2.safetensors") && cut.contains("truncated"),
        "{cut}"
    );
    let pointer = case(Some(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(),
    ));
    assert!(
        pointer.contains("2.safetensors: it is a pointer of Git LFS"),
        "{pointer}"
    );
}

#[test]
fn an_index_stays_in_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let away = outside.path().join("away.safetensors");
    fs::write(&away, file(&[ONE])).unwrap();
    let away = away.to_str().unwrap();
    for shard in [
        away,
        "../away.safetensors",
        "sub/away.safetensors",
        "..",
        ".",
        "",
        "a\\b",
    ] {
        let folder = folder(&[("a.weight", shard)], &[]);
        let error = error(folder.path());
        assert!(
            error.contains("which is no file beside it"),
            "{shard}: {error}"
        );
    }
}

#[test]
fn an_index_is_read_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join(INDEX);
    for (text, part) in [
        (r#"{"weight_map": {"a": "1", "a": "2"}}"#, "twice"),
        (r#"{"weight_map": {}}"#, "names no tensor"),
        (r#"{"weight_map": {"a": 1}}"#, "string"),
        (r#"{"weights": {}}"#, "weight_map"),
        ("<!DOCTYPE html><html></html>", "web page"),
        ("{", "cannot be read"),
    ] {
        fs::write(&index, text).unwrap();
        let error = error(folder.path());
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn files_are_called_what_they_are() {
    for (bytes, part) in [
        (&b""[..], "empty"),
        (b"PK\x03\x04zip", "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\n <HTML><body>not found", "web page"),
        (b"<!doctype html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"{\"metadata\": {}}", "JSON"),
        (b"Entry not found", "not a safetensors file"),
    ] {
        let error = Checkpoint::from_bytes(bytes)
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut long = file(&[ONE]);
    long.push(0);
    assert!(matches!(
        Checkpoint::from_bytes(long),
        Err(Unreadable::Trailing { bytes: 1 })
    ));
}

#[test]
fn folders_without_weights_say_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    assert!(error(folder.path()).ends_with(INDEX));
    fs::write(folder.path().join("pytorch_model.bin"), "PK").unwrap();
    assert!(error(folder.path()).ends_with("but pytorch_model.bin"));
    fs::write(folder.path().join(SINGLE), file(&[ONE])).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
}

#[test]
fn wrappers_go_where_all_names_have_them() {
    let names = |tensors: &[&str], known: &str| {
        let tensors: Vec<_> = tensors.iter().map(|name| (*name, ONE.1)).collect();
        let checkpoint = Checkpoint::from_bytes(file(&tensors)).unwrap();
        let checkpoint = checkpoint.unwrapped(|name| name == known);
        checkpoint
            .iter()
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    let wrapped = [
        "_orig_mod.module.model.norm",
        "_orig_mod.module.model.embed",
    ];
    assert_eq!(names(&wrapped, "model.norm"), ["model.embed", "model.norm"]);
    assert_eq!(names(&wrapped, "norm"), ["embed", "norm"]);
    assert_eq!(
        names(&["model.norm", "lm_head"], "norm"),
        ["lm_head", "model.norm"]
    );
    assert_eq!(names(&["module.a", "b"], "a"), ["b", "module.a"]);
}

/// A file with this header and so many bytes after it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn headers_are_read_strictly() {
    let tensor = |name: &str, from: usize, to: usize| {
        format!(r#""{name}": {{"dtype": "F32", "shape": [2], "data_offsets": [{from}, {to}]}}"#)
    };
    let both = |a: &str, b: &str| format!("{{{a}, {b}}}");
    let first = tensor("a", 0, 8);
    for (header, data, part) in [
        (both(&first, &first), 8, "has the tensor a twice"),
        (both(&first, &tensor("b", 4, 12)), 12, "b overlaps"),
        (
            both(&first, &tensor("b", 12, 20)),
            20,
            "before its tensor b",
        ),
        (
            both(&first, &tensor("b", 8, 17)),
            17,
            "tensor b has not the bytes",
        ),
        (
            both(&first, &tensor("b", 16, 8)),
            16,
            "tensor b has not the bytes",
        ),
        (both(&first, &tensor("b", 8, 16)), 15, "truncated"),
        (both(&first, &tensor("b", 8, 16)), 19, "3 bytes follow"),
        (format!("{{{first}}}"), 8, ""),
        (both(&first, r#""__metadata__": {"a": "b"}"#), 8, ""),
        (both(&first, r#""__metadata__": {"a": 1}"#), 8, "string"),
        (
            both(&first, r#""__metadata__": {}, "__metadata__": {}"#),
            8,
            "metadata is there twice",
        ),
        (tensor("a", 0, 8), 8, "not begin with a header"),
        (format!("{{{first}"), 8, "not a safetensors file"),
        ("{\"\u{1b}[2J\": 1}".to_owned(), 0, "not a safetensors file"),
        (
            r#"{"\u001b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#.to_owned(),
            4,
            r#"named "\u{1b}[2J""#,
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}"#
                .to_owned(),
            8,
            "not the bytes",
        ),
    ] {
        match Checkpoint::from_bytes(with_header(&header, data)) {
            Ok(_) => assert_eq!(part, "", "{header}"),
            Err(error) => {
                let told = error.to_string();
                assert!(!part.is_empty() && told.contains(part), "{header}: {told}");
                assert!(!told.contains('\u{1b}'), "{told:?}");
            }
        }
    }
}

/// A header is only read where its own length is one that models have.
#[test]
fn headers_longer_than_any_models_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.safetensors");
    for (count, part) in [
        (63u64 << 20, "66060288 bytes"),
        (u64::MAX, "truncated"),
        (1 << 40, "truncated"),
    ] {
        let mut begun = count.to_le_bytes().to_vec();
        begun.push(b'{');
        fs::write(&path, begun).unwrap();
        // Sparse: it takes no room and holds zeros.
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(3 << 30)
            .unwrap();
        let told = error(&path);
        assert!(told.contains(part), "{told}");
    }
    fs::File::create(&path).unwrap().set_len(3 << 30).unwrap();
    assert!(error(&path).contains("does not begin with a header"));
    let many: Vec<String> = (0..100_001)
        .map(|at| {
            format!(
                r#""{at}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#,
                at + 1
            )
        })
        .collect();
    let many = with_header(&format!("{{{}}}", many.join(",")), many.len());
    let told = Checkpoint::from_bytes(many)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(told.contains("more tensors than any model"), "{told}");
}

#[test]
fn files_that_are_cut_while_they_are_open_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SINGLE);
    fs::write(&path, file(&[ONE, TWO])).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    checkpoint.get("a.weight").unwrap().to_f32().unwrap();
    let cut = checkpoint.get("b.weight").unwrap().to_f32();
    assert!(matches!(cut, Err(Unreadable::WrongLength)), "{cut:?}");
}

#[test]
fn one_shard_says_how_all_are_given() {
    let name = "model-00001-of-00002.safetensors";
    let alone = folder(&[("a.weight", name)], &[(name, file(&[ONE]))]);
    let shard = alone.path().join(name);
    assert!(
        error(&shard).contains("give the folder"),
        "{}",
        error(&shard)
    );
    fs::remove_file(alone.path().join(INDEX)).unwrap();
    assert!(
        error(&shard).contains("is not beside it"),
        "{}",
        error(&shard)
    );
    let only = alone.path().join("model-00001-of-00001.safetensors");
    fs::rename(&shard, &only).unwrap();
    assert!(Checkpoint::open(&only).is_ok());
}

#[test]
fn files_that_never_end_are_not_opened() {
    for special in ["/dev/zero", "/dev/null"] {
        let found = Checkpoint::open(Path::new(special)).map(drop);
        assert!(
            matches!(
                found,
                Err(Unreadable::NotAFile | Unreadable::Io(_) | Unreadable::Empty)
            ),
            "{found:?}"
        );
    }
    if Path::new("/proc/version").exists() {
        let found = Checkpoint::open(Path::new("/proc/version")).map(drop);
        assert!(matches!(found, Err(Unreadable::Empty)), "{found:?}");
    }
}
