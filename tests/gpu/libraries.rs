//! The kernels, compiled for the host and loaded.

use super::Kernel;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Addresses of loaded libraries, for dlsym.
pub struct Libraries(Vec<usize>);

impl Libraries {
    /// Those of all kernels, compiled once; `None` without a compiler.
    pub fn get() -> Option<&'static Self> {
        static LIBRARIES: OnceLock<Option<Libraries>> = OnceLock::new();
        LIBRARIES.get_or_init(Self::compile).as_ref()
    }

    fn compile() -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let version = match Command::new(&compiler).arg("--version").output() {
            Ok(output) => output.stdout,
            Err(_) => {
                // Not `eprintln!`, which is kept back where a test passes.
                let _ = writeln!(
                    std::io::stderr(),
                    "skipped: no C++ compiler {compiler} was found"
                );
                return None;
            }
        };
        let root = root();
        let files = |folder: &str, extensions: &[&str]| -> Vec<PathBuf> {
            let mut files: Vec<_> = std::fs::read_dir(root.join(folder))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| {
                    extensions
                        .iter()
                        .any(|e| path.extension().is_some_and(|x| x == *e))
                })
                .collect();
            files.sort();
            files
        };
        let mut common = Sha256::new_with_prefix(&version);
        FLAGS.iter().for_each(|flag| common.update(flag));
        let mut headers = files("crates/ops/src/kernels", &["cuh"]);
        headers.extend(files("tests/gpu/host", &["h"]));
        for header in headers {
            common.update(std::fs::read(header).unwrap());
        }
        let mut sources = files("crates/ops/src/kernels", &["cu"]);
        sources.extend(files("tests/gpu", &["cu"]));
        let libraries = sources
            .par_iter()
            .map(|source| {
                let hash = common
                    .clone()
                    .chain_update(std::fs::read(source).unwrap())
                    .finalize();
                load(&library(
                    &compiler,
                    source,
                    u64::from_le_bytes(hash[..8].try_into().unwrap()),
                ))
            })
            .collect();
        Some(Self(libraries))
    }

    pub fn find(&self, name: &str) -> Option<Kernel> {
        let name = CString::new(name).unwrap();
        self.0.iter().find_map(|&library| {
            // SAFETY: the library stays loaded; every exported function of it is a KERNEL of host.h.
            unsafe {
                let symbol = libc::dlsym(library as *mut libc::c_void, name.as_ptr());
                (!symbol.is_null())
                    .then(|| std::mem::transmute::<*mut libc::c_void, Kernel>(symbol))
            }
        })
    }
}

/// No contraction: sums are those of the device. Sources are read as bytes of other types.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    #[cfg(target_arch = "x86_64")]
    "-march=x86-64-v3",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-x",
    "c++",
];

/// The repository. The laboratory's tests include this file, from a package of their own.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|dir| dir.join("crates/ops/src/kernels").is_dir())
        .unwrap()
}

/// The library of `source`, compiled unless one of the same `hash` is there.
fn library(compiler: &str, source: &Path, hash: u64) -> PathBuf {
    let stem = source.file_stem().unwrap().to_str().unwrap();
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{stem}-{hash:016x}.so"));
    if path.exists() {
        return path;
    }
    let beside = path.with_extension(format!("{}", std::process::id()));
    let output = Command::new(compiler)
        .args(FLAGS)
        .arg("-I")
        .arg(root().join("tests/gpu/host"))
        .arg(source)
        .arg("-o")
        .arg(&beside)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{compiler} refused {}:\n{said}",
        source.display()
    );
    std::fs::rename(&beside, &path).unwrap();
    path
}

fn load(path: &Path) -> usize {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a library without constructors.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!library.is_null(), "{} cannot be loaded", path.display());
    library as usize
}
