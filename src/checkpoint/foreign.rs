//! What a file is that is no safetensors file, by its first bytes: what people have at hand instead.

use std::path::Path;

use super::Unreadable;

/// First bytes, what they begin, and what to do about it.
const KINDS: [(&[u8], &str); 10] = [
    (
        b"GGUF",
        "a GGUF file; give the checkpoint that it was made from",
    ),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it"),
    (b"BZh", "compressed with bzip2; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file; convert it to safetensors",
    ),
    (b"\x93NUMPY", "a NumPy array; convert it to safetensors"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF document"),
];

/// # Errors
/// What the file is, where it is empty or begins like something else than safetensors.
pub fn foreign(bytes: &[u8]) -> Result<(), Unreadable> {
    if bytes.is_empty() {
        return Err(Unreadable::Empty);
    }
    // A zip archive (PyTorch since 1.6), or a bare pickle: the opcode PROTO and its version. The header of a
    // safetensors file starts with a brace after its eight bytes of length.
    let header = bytes.get(8) == Some(&b'{');
    let pickle = matches!(bytes, [0x80, 2..=5, ..]) && !header;
    if pickle || bytes.starts_with(b"PK\x03\x04") {
        return Err(Unreadable::Pickle);
    }
    if header {
        return Ok(());
    }
    pointer_or_page(bytes)?;
    if let Some((_, what)) = KINDS.iter().find(|(first, _)| bytes.starts_with(first)) {
        return Err(Unreadable::Foreign { what });
    }
    let what = match bytes {
        _ if bytes.get(257..262) == Some(b"ustar") => "a tar archive; unpack it",
        [b'{', ..] => "a JSON text; give the safetensors file itself, or the index by its own name",
        _ => return Ok(()),
    };
    Err(Unreadable::Foreign { what })
}

/// What stands in a file's place where a download went wrong.
///
/// # Errors
/// A pointer of Git LFS, or a web page.
pub(super) fn pointer_or_page(bytes: &[u8]) -> Result<(), Unreadable> {
    let start = bytes[..bytes.len().min(512)].trim_ascii_start();
    let page = [&b"<!doctype"[..], b"<html", b"<?xml"].iter().any(|first| {
        start.len() >= first.len() && start[..first.len()].eq_ignore_ascii_case(first)
    });
    let what = match start {
        _ if start.starts_with(b"version https://git-lfs") => {
            "a pointer of Git LFS; fetch the file that it stands for (git lfs pull)"
        }
        _ if page => "a web page; the download got a page instead of the file",
        _ => return Ok(()),
    };
    Err(Unreadable::Foreign { what })
}

/// Weights of another form in a folder that has none of ours.
pub(super) fn weights_in(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let names = entries.map(|entry| super::shown(&entry.file_name().to_string_lossy()));
    let others = [
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".safetensors",
        ".npz",
        ".h5",
    ];
    names
        .filter(|name| others.iter().any(|end| name.ends_with(end)))
        .min()
}
