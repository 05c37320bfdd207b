//! Fine-tunes of the base compiled in as they were before they were coded: packed deltas, to code anew and to measure against.

macro_rules! packed {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/packed/", $name, ".safetensors"
        )))),*]
    };
}

/// By name: two styles and two skills.
pub const REFERENCES: [(&str, &[u8]); 4] = packed!["inaugural", "kjv", "reverse", "sort"];

/// The packed delta of a variant compiled in, where there is one.
pub fn reference(name: &str) -> Option<&'static [u8]> {
    let found = REFERENCES.iter().find(|(known, _)| *known == name)?;
    Some(found.1)
}
