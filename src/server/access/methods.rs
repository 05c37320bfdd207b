//! Which role each method takes. A method that stands in no list takes an admin.

use super::AccessRole;
use crate::server::page;

/// What it takes to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    Role(AccessRole),
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
        | ("choir.v1.Inference", "Generate" | "Score") => Some(Need::Role(AccessRole::Infer)),
        ("inference.GRPCInferenceService", "ServerLive" | "ServerReady") => Some(Need::Nothing),
        (
            "inference.GRPCInferenceService",
            "ModelReady" | "ServerMetadata" | "ModelMetadata" | "ModelInfer" | "ModelStreamInfer"
            | "ModelConfig" | "ModelStatistics" | "RepositoryIndex",
        ) => Some(Need::Role(AccessRole::Infer)),
        ("inference.GRPCInferenceService", "RepositoryModelLoad" | "RepositoryModelUnload") => {
            Some(Need::Role(AccessRole::Admin))
        }
        // Also what only reads: sources are paths of the server.
        (
            "choir.v1.Admin",
            "AddVariant" | "RemoveVariant" | "ListVariants" | "GetVariant" | "GetStatus",
        ) => Some(Need::Role(AccessRole::Admin)),
        _ => None,
    }
}

/// Every route of the HTTP port, and what it takes. The page's files, which hold nothing that is anybody's, take nothing.
pub const ROUTES: [(&str, Need); 9] = [
    ("/health", Need::Nothing),
    ("/ready", Need::Nothing),
    ("/metrics", Need::Role(AccessRole::Infer)),
    ("/v1/models", Need::Role(AccessRole::Infer)),
    ("/v1/models/{model}", Need::Role(AccessRole::Infer)),
    ("/v1/completions", Need::Role(AccessRole::Infer)),
    ("/v1/chat/completions", Need::Role(AccessRole::Infer)),
    ("/choir/v1/variants", Need::Role(AccessRole::Admin)),
    ("/choir/v1/variants/{name}", Need::Role(AccessRole::Admin)),
];

/// What a path of the HTTP port takes. That there is nothing under one is not told to everybody.
pub fn of_route(path: &str) -> Need {
    let is = |route: &str| match route.split_once('{') {
        None => route == path,
        Some((before, _)) => (path.strip_prefix(before)).is_some_and(|rest| !rest.contains('/')),
    };
    let route = ROUTES.iter().find(|(route, _)| is(route));
    match route {
        Some((_, need)) => *need,
        None if page::has(path) => Need::Nothing,
        None if path.starts_with("/choir/") => Need::Role(AccessRole::Admin),
        None => Need::Role(AccessRole::Infer),
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
                        assert!(
                            !changes || need == Some(Need::Role(AccessRole::Admin)),
                            "{path}"
                        );
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen >= 22, "only {seen} methods");
        assert_eq!(of_method("/choir.v1.Admin/Drop"), None);
        assert_eq!(of_method("nonsense"), None);
    }

    /// The routes are where the routers' sources write them: nothing else can be asked for them.
    #[test]
    fn routes_have_a_role() {
        let sources = [
            include_str!("../http.rs"),
            include_str!("../openai/mod.rs"),
            include_str!("../page/mod.rs"),
            include_str!("../variants/mod.rs"),
            include_str!("../open.rs"),
        ];
        let mut seen = 0;
        for written in sources
            .iter()
            .flat_map(|source| source.split(".route(").skip(1))
        {
            let Some(route) = written.trim_start().strip_prefix('"') else {
                assert!(written.starts_with("route,"), "{written:.40}"); // the page's, by their names
                continue;
            };
            let (route, _) = route.split_once('"').expect("a string");
            assert!(ROUTES.iter().any(|(known, _)| *known == route), "{route}");
            seen += 1;
        }
        assert!(seen >= ROUTES.len(), "only {seen} routes");
        assert_eq!(of_route("/v1/models/a"), Need::Role(AccessRole::Infer));
        assert_eq!(of_route("/page.js"), Need::Nothing);
        assert_eq!(of_route("/no/such/route"), Need::Role(AccessRole::Infer));
    }
}
