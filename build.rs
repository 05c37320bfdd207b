//! Generates the code of `proto/choir/v1` without `protoc`, and the descriptors that reflection serves.

use protox::prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 2] = ["proto/choir/v1/inference.proto", "proto/choir/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    // tonic-prost-build prints none for a descriptor set.
    println!("cargo:rerun-if-changed=build.rs");
    FILES.iter().for_each(|file| println!("cargo:rerun-if-changed={file}"));
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    fs::write(out.join("choir.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::server::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
