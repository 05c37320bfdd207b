//! A run's state in one file, `training.safetensors`, replaced atomically: weights, their average, both moments,
//! the step and the time spent. The data need no state: every step's draws are a function of (seed, step).

use super::Error;
use super::course::Teacher;
use super::folder::{Precision, replace, serialize};
use super::optimizer::Optimizer;
use crate::superposition::NamedTensors;
use candle_core::Tensor;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::Path;

/// The file's name in the output folder.
pub const FILE: &str = "training.safetensors";

const PARTS: [&str; 4] = ["weight", "average", "first", "second"];

/// Writes the state; `settings` is whatever the run must find unchanged when it resumes, the teacher comes with its round.
pub fn write(
    path: &Path,
    optimizer: &Optimizer,
    teacher: Option<&Teacher>,
    seconds: f64,
    settings: &str,
) -> Result<(), Error> {
    let mut named = Vec::new();
    for (name, slot) in &optimizer.slots {
        for (part, data) in
            PARTS
                .into_iter()
                .zip([&slot.weight, &slot.average, &slot.first, &slot.second])
        {
            named.push((
                format!("{part}/{name}"),
                slot.shape.clone(),
                data.clone(),
                Precision::F32,
            ));
        }
    }
    if let Some(teacher) = teacher {
        for (name, var) in teacher.model.vars() {
            let data = var.flatten_all()?.to_vec1()?;
            named.push((
                format!("teacher/{name}"),
                var.dims().to_vec(),
                data,
                Precision::F32,
            ));
        }
    }
    let round = teacher.map_or(0, |teacher| teacher.round);
    let metadata = HashMap::from([
        ("round".to_owned(), round.to_string()),
        ("format".to_owned(), "choir training 1".to_owned()),
        ("step".to_owned(), optimizer.step.to_string()),
        ("seconds".to_owned(), seconds.to_string()),
        ("settings".to_owned(), settings.to_owned()),
    ]);
    let bytes = serialize(&named, Some(metadata)).map_err(|reason| Error::format(path, reason))?;
    replace(path, &bytes)
}

/// Reads a state written by [`write`] under the same `settings`: into a fresh optimizer and, where there is one, the
/// teacher; returns the seconds spent.
pub fn read(
    path: &Path,
    optimizer: &mut Optimizer,
    teacher: Option<&mut Teacher>,
    settings: &str,
) -> Result<f64, Error> {
    let bytes = std::fs::read(path).map_err(Error::file(path))?;
    let refuse = |reason: String| Error::format(path, reason);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| refuse(e.to_string()))?;
    let field = |name: &str| {
        let found = header.metadata().as_ref().and_then(|m| m.get(name));
        found.ok_or_else(|| {
            refuse(format!(
                "no {name} in its metadata: not a training checkpoint"
            ))
        })
    };
    if field("settings")? != settings {
        return Err(Error::OtherRun {
            path: path.to_path_buf(),
            found: field("settings")?.clone(),
            wanted: settings.to_owned(),
        });
    }
    let step = field("step")?
        .parse()
        .map_err(|_| refuse("its step is not a number".into()))?;
    let seconds = field("seconds")?
        .parse()
        .map_err(|_| refuse("its time is not a number".into()))?;
    let mut tensors = NamedTensors::from_safetensors(&bytes)
        .map_err(|e| refuse(e.to_string()))?
        .0;
    let mut part =
        |part: &str, name: &str, shape: &[usize]| match tensors.remove(&format!("{part}/{name}")) {
            Some(found) if found.shape == shape => Ok(found.data),
            _ => Err(refuse(format!(
                "it has no {part} of {name} as this network has it"
            ))),
        };
    for (name, slot) in &mut optimizer.slots {
        let parts = [
            &mut slot.weight,
            &mut slot.average,
            &mut slot.first,
            &mut slot.second,
        ];
        for (kind, data) in PARTS.into_iter().zip(parts) {
            *data = part(kind, name, &slot.shape)?;
        }
    }
    if let Some(teacher) = teacher {
        teacher.round = field("round")?
            .parse()
            .map_err(|_| refuse("its round is not a number".into()))?;
        for (name, var) in teacher.model.vars() {
            let data = part("teacher", name, var.dims())?;
            var.set(&Tensor::from_vec(data, var.dims(), var.device())?)?;
        }
    }
    optimizer.step = step;
    Ok(seconds)
}
