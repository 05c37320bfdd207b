//! A model's folder in the published layout: `config.json`, `model.safetensors`, `tokenizer.json`.

use super::Error;
use crate::model::DitConfig;
use crate::superposition::NamedTensors;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Shapes and f32 values by internal name (no `backbone.` prefix).
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

/// A model read from its folder.
#[derive(Clone, Debug)]
pub struct Folder {
    pub config: DitConfig,
    pub tensors: Tensors,
    pub tokenizer: String,
    /// `sampling_eps_min` and `sampling_eps_max`.
    pub clip: (f64, f64),
}

impl Folder {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = |name: &str| {
            let file = path.join(name);
            std::fs::read_to_string(&file).map_err(Error::file(&file))
        };
        let config_json = text("config.json")?;
        let file = path.join("config.json");
        let config: DitConfig =
            serde_json::from_str(&config_json).map_err(|e| Error::format(&file, e))?;
        let value: Value =
            serde_json::from_str(&config_json).map_err(|e| Error::format(&file, e))?;
        let bound =
            |name: &str, default: f64| value.get(name).and_then(Value::as_f64).unwrap_or(default);
        let clip = (
            bound("sampling_eps_min", super::objective::SMALLEST_T),
            bound("sampling_eps_max", 1.0),
        );
        let weights = path.join("model.safetensors");
        let bytes = std::fs::read(&weights).map_err(Error::file(&weights))?;
        let tensors = NamedTensors::from_safetensors(&bytes)
            .map_err(|error| Error::format(&weights, error))?;
        Ok(Self {
            config,
            tensors: tensors.into_parts(),
            tokenizer: text("tokenizer.json")?,
            clip,
        })
    }

    /// Writes the folder; `model.safetensors` last, so that a folder that has it is whole.
    pub fn write(&self, path: &Path, precision: Precision) -> Result<(), Error> {
        std::fs::create_dir_all(path).map_err(Error::file(path))?;
        replace(&path.join("config.json"), self.config_json().as_bytes())?;
        replace(&path.join("tokenizer.json"), self.tokenizer.as_bytes())?;
        let head_dim = self.config.head_dim();
        let frequencies = (0..head_dim / 2)
            .map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32))
            .collect();
        let mut named = vec![(
            "backbone.rotary_emb.inv_freq".to_owned(),
            vec![head_dim / 2],
            frequencies,
            Precision::F32,
        )];
        if self.config.block().is_some() {
            for (name, value) in [
                ("sampling_eps_min", self.clip.0),
                ("sampling_eps_max", self.clip.1),
            ] {
                named.push((name.to_owned(), vec![], vec![value as f32], Precision::F32));
            }
        }
        for (name, (shape, data)) in &self.tensors {
            named.push((
                format!("backbone.{name}"),
                shape.clone(),
                data.clone(),
                precision,
            ));
        }
        let file = path.join("model.safetensors");
        let bytes = serialize(&named, None).map_err(|reason| Error::format(&file, reason))?;
        replace(&file, &bytes)
    }

    fn config_json(&self) -> String {
        let mut fields = match json!(self.config) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let blockwise = self.config.block().is_some();
        fields.extend([
            ("adaln".to_owned(), json!(true)),
            (
                "attn_backend".to_owned(),
                json!(if blockwise { "flex" } else { "sdpa" }),
            ),
            ("causal".to_owned(), json!(false)),
            ("dropout".to_owned(), json!(0.0)),
            ("sampling_eps_min".to_owned(), json!(self.clip.0)),
            ("sampling_eps_max".to_owned(), json!(self.clip.1)),
            (
                "time_conditioning".to_owned(),
                json!(self.config.time_conditioned()),
            ),
            ("var_min".to_owned(), json!(blockwise)),
        ]);
        format!("{:#}\n", Value::Object(fields))
    }
}

/// Rounds to bf16 and back: what a bf16 file will be read as.
pub fn round_to_bf16(tensors: &mut Tensors) {
    for (_, data) in tensors.values_mut() {
        data.iter_mut()
            .for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
}

/// A safetensors file of (name, shape, values, precision).
pub fn serialize(
    named: &[(String, Vec<usize>, Vec<f32>, Precision)],
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<Vec<u8>, String> {
    let stored: Vec<(Dtype, Vec<u8>)> = named
        .iter()
        .map(|(_, _, data, precision)| match precision {
            Precision::F32 => (
                Dtype::F32,
                data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            Precision::Bf16 => (
                Dtype::BF16,
                data.iter()
                    .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                    .collect(),
            ),
        })
        .collect();
    let mut views = Vec::new();
    for ((name, shape, ..), (dtype, bytes)) in named.iter().zip(&stored) {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| e.to_string())?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, metadata).map_err(|e| e.to_string())
}

/// Where [`replace`] writes first.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

/// Refuses, before long work, a file that [`replace`] could not write after it: makes the file that it would write first, and takes it
/// away again. What is at `path` stays.
///
/// # Errors
/// A folder, or a place where no file can be made.
pub fn replaceable(path: &Path) -> Result<(), Error> {
    if path.is_dir() || path.file_name().is_none() {
        let is_one = std::io::ErrorKind::IsADirectory.into();
        return Err(Error::file(path)(is_one));
    }
    let beside = beside(path);
    let made = std::fs::File::create(&beside).and_then(|_| std::fs::remove_file(&beside));
    made.map_err(Error::file(path))
}

/// Writes beside, syncs, renames: a reader sees the old file or the new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = beside(path);
    let write = || {
        use std::io::Write;
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside); // what failed is told, not this
    }
    written.map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_not_be_written_is_told_before() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        replaceable(&file).expect("a new one");
        assert_eq!(std::fs::read_dir(&folder).expect("folder").count(), 0);
        replace(&file, b"before").expect("written");
        replaceable(&file).expect("one that is there");
        assert_eq!(std::fs::read(&file).expect("file"), b"before");
        for bad in [
            folder.path(),
            &file.join("in a file"),
            Path::new("/no/such/folder/file"),
        ] {
            assert!(replaceable(bad).is_err(), "{}", bad.display());
            assert!(replace(bad, b"after").is_err(), "{}", bad.display());
            assert!(!beside(bad).exists(), "{}", bad.display());
        }
        for nameless in ["/", ".."] {
            assert!(replaceable(Path::new(nameless)).is_err(), "{nameless}");
        }
    }
}
