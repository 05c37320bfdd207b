//! A run's state in one file, `training.safetensors`, replaced atomically: weights, their average, both moments,
//! the step and the time spent. The data need no state: every step's draws are a function of (seed, step).

use super::Error;
use super::course::Teacher;
use super::folder::{Precision, floats, replace, serialize};
use super::optimizer::{Optimizer, Slot};
use candle_core::Tensor;
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
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
        for (part, data) in PARTS
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
            named.push((format!("teacher/{name}"), var.dims().to_vec(), data, Precision::F32));
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
        found.ok_or_else(|| refuse(format!("no {name} in its metadata: not a training checkpoint")))
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
    let file = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
    let mut slots = BTreeMap::new();
    for name in file.names() {
        let Some(name) = name.strip_prefix("weight/") else {
            continue;
        };
        let part = |part: &str| {
            let view = file
                .tensor(&format!("{part}/{name}"))
                .map_err(|e| refuse(e.to_string()))?;
            floats(&view).map(|data| (view.shape().to_vec(), data)).map_err(refuse)
        };
        let (shape, weight) = part("weight")?;
        let slot = Slot {
            shape,
            weight,
            average: part("average")?.1,
            first: part("first")?.1,
            second: part("second")?.1,
        };
        if [&slot.average, &slot.first, &slot.second]
            .iter()
            .any(|data| data.len() != slot.weight.len())
        {
            return Err(refuse(format!("the parts of {name} differ in size")));
        }
        slots.insert(name.to_owned(), slot);
    }
    let shapes = |slots: &BTreeMap<String, Slot>| {
        slots
            .iter()
            .map(|(n, s)| (n.clone(), s.shape.clone()))
            .collect::<Vec<_>>()
    };
    if shapes(&slots) != shapes(&optimizer.slots) {
        return Err(refuse("its tensors are not this network's".into()));
    }
    if let Some(teacher) = teacher {
        teacher.round = field("round")?
            .parse()
            .map_err(|_| refuse("its round is not a number".into()))?;
        for (name, var) in teacher.model.vars() {
            let view = file
                .tensor(&format!("teacher/{name}"))
                .map_err(|e| refuse(e.to_string()))?;
            let data = floats(&view).map_err(refuse)?;
            var.set(&Tensor::from_vec(data, var.dims(), var.device())?)?;
        }
    }
    (optimizer.step, optimizer.slots) = (step, slots);
    Ok(seconds)
}
