//! Generates the code of `proto` without `protoc`, and the descriptors that reflection serves; lists the files
//! of `models/`, which are compiled in.

use protox::prost::Message;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

/// The packages whose code is generated, and their files.
const PACKAGES: [(&str, &[&str]); 2] = [
    (
        "choir.v1",
        &[
            "proto/choir/v1/inference.proto",
            "proto/choir/v1/admin.proto",
        ],
    ),
    ("inference", &["proto/inference/inference.proto"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    // tonic-prost-build prints none for a descriptor set.
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    for (package, files) in PACKAGES {
        files
            .iter()
            .for_each(|file| println!("cargo:rerun-if-changed={file}"));
        let descriptors = protox::compile(files, ["proto"])?;
        fs::write(
            out.join(format!("{package}.bin")),
            descriptors.encode_to_vec(),
        )?;
        tonic_prost_build::configure()
            .codec_path("crate::server::codec::Codec")
            .compile_fds(descriptors)?;
    }
    fs::write(out.join("embedded.rs"), embedded()?)?;
    Ok(())
}

/// Rust code that includes the files of `models/`, wherever the package lies when it is compiled.
fn embedded() -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed=models");
    let include = |file: &str| {
        format!(r#"include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/{file}"))"#)
    };
    let mut code = String::new();
    for (name, file) in [
        ("CONFIG", "base/config.json"),
        ("TOKENIZER", "base/tokenizer.json"),
        ("WEIGHTS", "base/model.safetensors"),
        ("VARIANTS_JSON", "variants.json"),
    ] {
        writeln!(code, "pub const {name}: &[u8] = {};", include(file))?;
    }
    for (name, folder, extension) in [
        ("VARIANTS", "variants", "safetensors"),
        ("HELD_OUT", "held-out", "txt"),
    ] {
        let mut files: Vec<PathBuf> = fs::read_dir(Path::new("models").join(folder))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|file| file.extension().is_some_and(|found| found == extension));
        files.sort();
        writeln!(
            code,
            "/// Names and contents.\npub const {name}: &[(&str, &[u8])] = &["
        )?;
        for file in files {
            let name = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            writeln!(
                code,
                "    ({name:?}, {}),",
                include(&format!("{folder}/{name}.{extension}"))
            )?;
        }
        writeln!(code, "];")?;
    }
    Ok(code)
}
