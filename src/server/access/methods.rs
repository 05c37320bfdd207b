//! Which role each method takes. A method that stands in no list takes an admin.

use super::Role;
use crate::server::page;

/// What it takes to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    Role(Role),
}

/// What a gRPC method takes; `None` for one that nobody has thought of.
pub fn of_method(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => Some(Need::Nothing),
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        )
        | ("choir.v1.Inference", "Generate" | "Score") => Some(Need::Role(Role::Infer)),
        ("inference.GRPCInferenceService", "ServerLive" | "ServerReady") => Some(Need::Nothing),
        (
            "inference.GRPCInferenceService",
            "ModelReady" | "ServerMetadata" | "ModelMetadata" | "ModelInfer" | "ModelStreamInfer"
            | "ModelConfig" | "ModelStatistics" | "RepositoryIndex",
        ) => Some(Need::Role(Role::Infer)),
        ("inference.GRPCInferenceService", "RepositoryModelLoad" | "RepositoryModelUnload") => {
            Some(Need::Role(Role::Admin))
        }
        // Also what only reads: sources are paths of the server.
        (
            "choir.v1.Admin",
            "AddVariant" | "RemoveVariant" | "ListVariants" | "GetVariant" | "GetStatus",
        ) => Some(Need::Role(Role::Admin)),
        _ => None,
    }
}

/// What a route of the HTTP port takes.
pub fn of_route(path: &str) -> Need {
    match path {
        "/health" | "/ready" => Need::Nothing,
        path if page::has(path) => Need::Nothing,
        path if path.starts_with("/choir/") => Need::Role(Role::Admin),
        _ => Need::Role(Role::Infer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    #[test]
    fn methods_of_every_service_have_a_role() {
        let mut seen = 0;
        for set in crate::server::descriptors() {
            let set = FileDescriptorSet::decode(set).expect("descriptors");
            for file in &set.file {
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        let need = of_method(&path);
                        assert!(need.is_some(), "{path} has no role");
                        let changes = ["Add", "Remove", "Load", "Unload"];
                        let changes = changes.iter().any(|verb| method.name().contains(verb));
                        assert!(!changes || need == Some(Need::Role(Role::Admin)), "{path}");
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen >= 22, "only {seen} methods");
        assert_eq!(of_method("/choir.v1.Admin/Drop"), None);
        assert_eq!(of_method("nonsense"), None);
    }
}
