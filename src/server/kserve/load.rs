//! Loads and unloads: variants added from files of the server's own disk, and removed.

use super::Service;
use crate::catalog::{AddRequest, CheckpointSource, RemoveRequest};
use crate::kserve as pb;
use crate::server::access::Caller;
use crate::server::status::BadField;
use pb::model_repository_parameter::ParameterChoice;
use serde::Deserialize;
use std::collections::HashMap;
use tonic::Status;

/// What a load says: in parameters of these names, or in one named `config`, a JSON object of them, which is what clients of Triton
/// can send.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    path: Option<String>,
    seed: Option<u64>,
    scale: Option<f32>,
}

impl Load {
    fn read(parameters: HashMap<String, pb::ModelRepositoryParameter>) -> Result<Load, BadField> {
        let mut load = Load::default();
        for (name, parameter) in parameters {
            let bad = |reason: &str| BadField::new("parameters", format!("{name}: {reason}"));
            match (name.as_str(), parameter.parameter_choice) {
                ("config", Some(ParameterChoice::StringParam(json))) => {
                    let said: Load =
                        serde_json::from_str(&json).map_err(|error| bad(&error.to_string()))?;
                    load = Load {
                        path: load.path.or(said.path),
                        seed: load.seed.or(said.seed),
                        scale: load.scale.or(said.scale),
                    };
                }
                ("path", Some(ParameterChoice::StringParam(path))) => load.path = Some(path),
                ("seed", Some(ParameterChoice::Int64Param(seed))) => {
                    load.seed = Some(seed.cast_unsigned());
                }
                ("scale", Some(ParameterChoice::StringParam(scale))) => {
                    let scale = scale.parse().map_err(|_| bad("it is not a number"))?;
                    load.scale = Some(scale);
                }
                ("config" | "path" | "scale", _) => return Err(bad("it is not a string")),
                ("seed", _) => return Err(bad("it is not a whole number")),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    let reason = format!("there is none named {name:?}");
                    return Err(BadField::new("parameters", reason));
                }
            }
        }
        Ok(load)
    }
}

impl Service {
    /// Adds a variant. One that is there already stays, where no file is named.
    pub(super) async fn load(
        &self,
        caller: &Caller,
        request: pb::RepositoryModelLoadRequest,
    ) -> Result<(), Status> {
        let Load { path, seed, scale } = Load::read(request.parameters)?;
        let Some(path) = path else {
            self.check(&request.model_name, "")?;
            return Ok(());
        };
        let source = CheckpointSource::Path(self.changes.file("path", path).await?);
        let request = AddRequest {
            seed,
            scale,
            ..AddRequest::new(request.model_name, source)
        };
        self.changes.add(caller, "path", request, |_| {}).await?;
        Ok(())
    }

    pub(super) async fn unload(
        &self,
        caller: &Caller,
        request: pb::RepositoryModelUnloadRequest,
    ) -> Result<(), Status> {
        let removal = RemoveRequest {
            delta: None,
            expected_generation: None,
        };
        self.changes
            .remove(caller, "parameters", request.model_name, removal)
            .await?;
        Ok(())
    }
}
