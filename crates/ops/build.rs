//! With the `cuda` feature compiles `src/kernels`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, error::Error, fs, thread};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        fs::write(out.join("kernels.rs"), kernels(&out)?)?;
    }
    Ok(())
}

const KERNELS: &str = "src/kernels";
/// The devices that kernels are compiled for (sm_90a is what all of compute capability 9.0 are); the last is for those to
/// come. No contraction of multiply and add, so that results are those of the host.
const NVCC: [&str; 13] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-gencode",
    "arch=compute_80,code=sm_80",
    "-gencode",
    "arch=compute_90a,code=sm_90a",
    "-gencode",
    "arch=compute_90,code=compute_90",
    "-I",
    KERNELS,
    "-Xptxas=-v",
];

/// Compiles every kernel file into `out`; Rust code that includes what comes of them.
fn kernels(out: &Path) -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={KERNELS}");
    ["NVCC", "CUDA_HOME"]
        .iter()
        .for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    let mut files: Vec<PathBuf> = fs::read_dir(KERNELS)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|found| found == "cu"));
    files.sort();
    let nvcc = nvcc()?;
    let compile = |file: &PathBuf| {
        let made = out
            .join(file.file_name().unwrap_or_default())
            .with_extension("fatbin");
        let done = Command::new(&nvcc)
            .args(NVCC)
            .arg("-o")
            .arg(&made)
            .arg(file)
            .output();
        let done = done.map_err(|error| format!("{} did not start: {error}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        eprint!("{said}");
        done.status.success().then_some(made).ok_or(said)
    };
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1)
        .max(1);
    let mut code =
        "/// Aligned as the driver likes it.\n#[repr(C, align(16))]\nstruct Image<T: ?Sized>(T);\n\
                    /// Names and fat binaries.\npub static MODULES: &[(&str, &[u8])] = &[\n"
            .to_owned();
    for files in files.chunks(jobs) {
        let made: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = files
                .iter()
                .map(|file| scope.spawn(|| compile(file)))
                .collect();
            running.into_iter().map(|one| one.join()).collect()
        });
        for (file, made) in files.iter().zip(made) {
            let made = made.map_err(|_| "a thread ended early")?;
            let made = made.map_err(|said| format!("nvcc refuses {}:\n{said}", file.display()))?;
            let name = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            writeln!(code, "    ({name:?}, &Image(*include_bytes!({made:?})).0),")?;
        }
    }
    code.push_str("];\n");
    Ok(code)
}

/// The first compiler that answers.
fn nvcc() -> Result<PathBuf, String> {
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let named = env::var_os("NVCC").map(PathBuf::from);
    let usual = ["nvcc", "/usr/local/cuda/bin/nvcc"].map(PathBuf::from);
    let answers = |nvcc: &PathBuf| {
        Command::new(nvcc)
            .arg("--version")
            .output()
            .is_ok_and(|done| done.status.success())
    };
    named.into_iter().chain(home).chain(usual).find(answers).ok_or_else(|| {
        "the cuda feature needs nvcc: none in NVCC, CUDA_HOME/bin, PATH or /usr/local/cuda/bin answers".to_owned()
    })
}
