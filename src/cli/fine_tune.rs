//! A fine-tune as people have it: a folder, a checkpoint's file, or a file with its delta.

use crate::catalog::defaults::{process_to_store, to_store};
use crate::catalog::of_file;
use crate::engine::{Sampling, SamplingParams, check_sampling};
use crate::model::DitConfig;
use crate::superposition::{Delta, NamedTensors, Remarks, is_own, read_file};
use crate::train::folder::{Folder, Tensors};
use anyhow::{Context, Result};
use std::path::Path;

/// Its weights and what it was tuned for.
#[derive(Clone)]
pub struct FineTune {
    pub folder: Folder,
    /// How its file says it is sampled.
    sampling: Option<Sampling>,
}

impl FineTune {
    /// Reads one of `base`.
    pub fn read(path: &Path, base: &Folder) -> Result<Self> {
        let mut folder = base.clone();
        let named = || path.display().to_string();
        if path.is_dir() {
            folder = Folder::read(path)?;
            return Ok(FineTune {
                folder,
                sampling: None,
            });
        }
        let bytes = read_file(path).with_context(named)?;
        let mut sampling = None;
        if is_own(&bytes) {
            let (regime, said) = of_file(&named(), &bytes, &base.config.facts())?;
            folder.config = base.config.tuned(regime);
            sampling = said;
            let delta = Delta::read(&base.tensors.clone().into_iter().collect(), &bytes);
            let delta = delta.with_context(named)?;
            add(&mut folder.tensors, |name| delta.dense(name));
        } else {
            let beside = path.with_file_name("config.json");
            if beside.is_file() {
                let config = std::fs::read(&beside)?;
                let config: DitConfig = serde_json::from_slice(&config)
                    .with_context(|| beside.display().to_string())?;
                folder.config = base.config.tuned(config.regime());
            }
            let tensors = NamedTensors::from_safetensors(&bytes).with_context(named)?;
            folder.tensors = tensors.into_parts();
        }
        Ok(FineTune { folder, sampling })
    }

    pub fn tensors(&self) -> NamedTensors {
        self.folder.tensors.clone().into_iter().collect()
    }

    /// How it is sampled: as its file says, else as is usual for its process.
    pub fn sampling(&self) -> Sampling {
        let usual = || Sampling::of(self.folder.config.process());
        self.sampling.clone().unwrap_or_else(usual)
    }

    /// What a file of it is to say of its process and, with what is chosen over it, its sampling.
    pub fn remarks(&self, chosen: &SamplingParams) -> Result<Remarks> {
        let config = &self.folder.config;
        config.check()?;
        let (regime, facts) = (config.regime(), config.facts());
        let sampling = chosen.over(self.sampling())?;
        check_sampling(&facts, regime, &sampling)?;
        let defaults = to_store(&sampling, regime, &facts);
        Ok(Remarks {
            process: Some(serde_json::to_string(&process_to_store(regime.process))?),
            defaults: Some(serde_json::to_string(&defaults)?),
        })
    }
}

/// Adds to weights what `delta` has for them.
pub fn add(tensors: &mut Tensors, delta: impl Fn(&str) -> Option<Vec<f32>>) {
    for (name, (_, weights)) in tensors {
        for (weight, delta) in weights.iter_mut().zip(delta(name).unwrap_or_default()) {
            *weight += delta;
        }
    }
}
