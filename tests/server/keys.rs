//! Keys: who may do what, on every protocol; keys that come and go; what a key may have.

use super::endings::until;
use super::web::{ask, get};
use super::*;
use choir::kserve as oip;
use choir::server::access::{AccessRole, ApiKeys, Need, ROUTES};
use choir::server::paths::Paths;
use oip::grpc_inference_service_client::GrpcInferenceServiceClient;
use oip::model_repository_parameter::ParameterChoice;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::json;

const INFER: &str = "infer-secret-of-nobody";
const ADMIN: &str = "admin-secret-of-nobody";

fn settings_with(keys: &str) -> ServerSettings {
    ServerSettings {
        keys: Some(Arc::new(ApiKeys::read(keys).expect("keys"))),
        paths: Paths::Under(Vec::new()),
        ..settings()
    }
}

fn both() -> String {
    format!("ann infer {INFER}\nops admin {ADMIN}")
}

async fn start(settings: ServerSettings) -> Server {
    Server::start_within(engine_config(), settings, |generation| generation).await
}

fn keyed<T>(key: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let bearer = format!("Bearer {key}").parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// The paths of all methods that the server describes.
fn methods() -> Vec<String> {
    let sets = [
        pb::DESCRIPTORS,
        oip::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let mut paths = Vec::new();
    for set in sets {
        for file in FileDescriptorSet::decode(set).expect("descriptors").file {
            for service in &file.service {
                let name = format!("/{}.{}", file.package(), service.name());
                let method = |method: &prost_types::MethodDescriptorProto| {
                    format!("{name}/{}", method.name())
                };
                paths.extend(service.method.iter().map(method));
            }
        }
    }
    paths
}

#[tokio::test]
async fn methods_of_every_service_answer_nobody_without_a_key_but_health() {
    let server = start(settings_with(&both())).await;
    let channel = channel(server.address).await;
    let methods = methods();
    assert!(methods.len() >= 22, "{methods:?}");
    for path in &methods {
        let open = ["/Check", "/Watch", "/List", "/ServerLive", "/ServerReady"];
        if open.iter().any(|end| path.ends_with(end)) {
            continue; // a watch never ends; `health_is_told_to_all` asks the others
        }
        let call = async |request| raw::call_with(channel.clone(), path, request).await.code();
        assert_eq!(
            call(tonic::Request::new(Vec::new())).await,
            Code::Unauthenticated,
            "{path}"
        );
        for wrong in ["", "unheard-of-secret-key", "ann"] {
            let code = call(keyed(wrong, Vec::new())).await;
            assert_eq!(code, Code::Unauthenticated, "{path}");
        }
        let admins = path.contains(".Admin/") || path.ends_with("Load") || path.ends_with("Unload");
        if admins {
            let code = call(keyed(INFER, Vec::new())).await;
            assert_eq!(code, Code::PermissionDenied, "{path}");
        }
    }
    let mut twice = keyed(INFER, Vec::new());
    let other = format!("Bearer {ADMIN}").parse().expect("a header");
    twice.metadata_mut().append("authorization", other);
    let status = raw::call_with(channel.clone(), &methods[0], twice).await;
    assert_eq!(status.code(), Code::Unauthenticated, "two: {status}");
    let mut basic = tonic::Request::new(Vec::new());
    let scheme = format!("Basic {INFER}").parse().expect("a header");
    basic.metadata_mut().insert("authorization", scheme);
    let status = raw::call_with(channel.clone(), &methods[0], basic).await;
    assert_eq!(status.code(), Code::Unauthenticated, "basic: {status}");
    server.stop().await;
}

#[tokio::test]
async fn health_is_told_to_all() {
    let server = start(settings_with(&both())).await;
    let channel = channel(server.address).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let check = tonic_health::pb::HealthCheckRequest::default();
    health.check(check).await.expect("health");
    let mut kserve = GrpcInferenceServiceClient::new(channel);
    kserve
        .server_live(oip::ServerLiveRequest {})
        .await
        .expect("live");
    kserve
        .server_ready(oip::ServerReadyRequest {})
        .await
        .expect("ready");
    for path in ["/health", "/ready", "/", "/page.js"] {
        assert_eq!(get(server.http, path).await.status, 200);
    }
    server.stop().await;
}

#[tokio::test]
async fn keys_of_either_role_are_served_on_every_protocol() {
    let server = start(settings_with(&both())).await;
    let (client, admin) = server.clients().await;
    for key in [INFER, ADMIN] {
        let stream = client
            .clone()
            .generate(keyed(key, request("kjv", 4, 1)))
            .await;
        read(stream.expect("accepted").into_inner())
            .await
            .expect("text");
        let header = format!("authorization: Bearer {key}\r\n");
        let body = json!({"model": "kjv", "prompt": "And", "max_tokens": 2});
        let answered = ask(server.http, "POST", "/v1/completions", &header, Some(&body)).await;
        assert_eq!(answered.status, 200, "{answered:?}");
        for path in ["/v1/models", "/metrics"] {
            let answered = ask(server.http, "GET", path, &header, None).await;
            assert_eq!(answered.status, 200, "{answered:?}");
        }
    }
    let mut admins = admin.clone();
    let listed = admins.list_variants(keyed(ADMIN, pb::ListVariantsRequest {}));
    listed.await.expect("an admin");
    drop((client, admin, admins));
    server.stop().await;
}

#[tokio::test]
async fn routes_of_the_http_port_answer_whom_their_roles_let_in() {
    let server = start(settings_with(&both())).await;
    let elsewhere = [("/no/such/route", Need::Role(AccessRole::Infer))];
    for (route, need) in ROUTES.into_iter().chain(elsewhere) {
        let path = route.replace("{model}", "kjv").replace("{name}", "kjv");
        let none = get(server.http, &path).await;
        let Need::Role(role) = need else {
            assert_eq!(none.status, 200, "{path}: {none:?}");
            continue;
        };
        assert_eq!(none.status, 401, "{path}: {none:?}");
        assert_eq!(none.error()["code"], "invalid_api_key");
        assert_eq!(none.headers["www-authenticate"], "Bearer");
        let header = |key| format!("authorization: Bearer {key}\r\n");
        let twice = ask(server.http, "GET", &path, &header(INFER).repeat(2), None).await;
        assert_eq!(twice.status, 401, "{path}: {twice:?}");
        let infer = ask(server.http, "GET", &path, &header(INFER), None).await;
        assert_eq!(
            infer.status == 403,
            role == AccessRole::Admin,
            "{path}: {infer:?}"
        );
        let admin = ask(server.http, "GET", &path, &header(ADMIN), None).await;
        assert!(![401, 403].contains(&admin.status), "{path}: {admin:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn keys_are_exchanged_while_the_server_runs() {
    let folder = tempfile::tempdir_in(&ROOT.0).expect("folder");
    let file = folder.path().join("keys");
    fs::write(&file, both()).expect("file");
    let server = start(ServerSettings {
        keys_file: Some(file.clone()),
        ..settings_with(&both())
    })
    .await;
    let (client, _) = server.clients().await;
    let code = async |key: &str| {
        let mut client = client.clone();
        let stream = client.generate(keyed(key, request("kjv", 1, 1)));
        stream
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok)
    };
    let becomes = async |key: &str, wish: Code| {
        for _ in 0..100_000 {
            if code(key).await == wish {
                return;
            }
        }
        panic!("{key} does not become {wish:?}");
    };
    assert_eq!(code(INFER).await, Code::Ok);
    fs::write(&file, "bob infer another-secret-of-nobody").expect("file");
    becomes("another-secret-of-nobody", Code::Ok).await;
    assert_eq!(code(INFER).await, Code::Unauthenticated);
    fs::write(&file, "no key at all").expect("file");
    fs::remove_file(&file).expect("a file that vanishes");
    fs::write(folder.path().join("new"), both()).expect("file");
    assert_eq!(
        code("another-secret-of-nobody").await,
        Code::Ok,
        "the last stay"
    );
    fs::rename(folder.path().join("new"), &file).expect("renamed");
    becomes(ADMIN, Code::Ok).await;
    assert_eq!(
        code("another-secret-of-nobody").await,
        Code::Unauthenticated
    );
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn keys_have_no_more_than_they_may() {
    let keys = format!("ann infer {INFER} requests=1 tokens-per-minute=5000\nops admin {ADMIN}");
    let server = start(settings_with(&keys)).await;
    let (client, admin) = server.clients().await;
    let long = pb::GenerateRequest {
        want_steps: true,
        ..request("kjv", 4000, 1)
    };
    let stream = client.clone().generate(keyed(INFER, long)).await;
    let stream = stream.expect("accepted");
    let second = client
        .clone()
        .generate(keyed(INFER, request("kjv", 1, 1)))
        .await;
    let second = second.expect_err("one at a time");
    assert_eq!(second.code(), Code::ResourceExhausted, "{second}");
    assert!(second.metadata().contains_key("retry-after-ms"), "{second}");
    let header = format!("authorization: Bearer {INFER}\r\n");
    let body = json!({"model": "kjv", "prompt": "And", "max_tokens": 2});
    let third = ask(server.http, "POST", "/v1/completions", &header, Some(&body)).await;
    assert_eq!(third.status, 429, "{third:?}");
    assert!(third.headers.contains_key("retry-after"), "{third:?}");
    let mut others = client.clone();
    let other = others.generate(keyed(ADMIN, request("kjv", 1, 1)));
    other.await.expect("another key has its own");
    drop(others);
    drop(stream);
    for _ in 0..100_000 {
        let mut admin = admin.clone();
        let now = admin.get_status(keyed(ADMIN, pb::GetStatusRequest {}));
        if now.await.expect("status").into_inner().leases == 0 {
            break;
        }
    }
    // What was not made has come back.
    let body = json!({"model": "kjv", "prompt": "And", "max_tokens": 2000, "stop": " "});
    let most = ask(server.http, "POST", "/v1/completions", &header, Some(&body)).await;
    assert_eq!(most.status, 200, "{most:?}");
    let body = json!({"model": "kjv", "prompt": "And", "max_tokens": 4096, "n": 2});
    let never = ask(server.http, "POST", "/v1/completions", &header, Some(&body)).await;
    assert_eq!(never.status, 429, "{never:?}");
    drop((client, admin));
    server.stop().await;
}

#[tokio::test]
async fn paths_are_read_only_under_the_roots_that_are_allowed() {
    let folder = tempfile::tempdir_in(&ROOT.0).expect("folder");
    let (root, outside) = (folder.path().join("root"), folder.path().join("kjv"));
    fs::create_dir(&root).expect("folder");
    fs::write(&outside, packed("kjv")).expect("file");
    fs::write(root.join("kjv"), packed("kjv")).expect("file");
    std::os::unix::fs::symlink(&outside, root.join("link")).expect("link");
    let server = start(ServerSettings {
        paths: Paths::under(std::slice::from_ref(&root)).expect("root"),
        ..settings_with(&both())
    })
    .await;
    let channel = channel(server.address).await;
    let mut kserve = GrpcInferenceServiceClient::new(channel.clone());
    let text = |text: &str| oip::ModelRepositoryParameter {
        parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())),
    };
    let load = |path: &Path| oip::RepositoryModelLoadRequest {
        model_name: "new".into(),
        parameters: [
            ("path".to_owned(), text(path.to_str().expect("path"))),
            ("scale".to_owned(), text("0.5")),
        ]
        .into(),
        ..Default::default()
    };
    for bad in [
        &outside,
        &root.join("link"),
        &root,
        &root.join("nothing"),
        Path::new("/etc/passwd"),
    ] {
        let status = kserve.repository_model_load(keyed(ADMIN, load(bad))).await;
        let status = status.expect_err("outside");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with("path: "), "{status}");
        let requests = vec![uploads::by_path("new", bad)];
        let added = AdminClient::new(channel.clone())
            .add_variant(keyed(ADMIN, tokio_stream::iter(requests)))
            .await;
        let status = match added {
            Err(status) => status,
            Ok(stream) => stream.into_inner().message().await.expect_err("outside"),
        };
        assert!(status.message().starts_with("header.path: "), "{status}");
    }
    let denied = kserve.repository_model_load(keyed(INFER, load(&root.join("kjv"))));
    assert_eq!(
        denied.await.expect_err("denied").code(),
        Code::PermissionDenied
    );
    let good = kserve.repository_model_load(keyed(ADMIN, load(&root.join("kjv"))));
    good.await.expect("under the root");
    let ready = oip::ModelReadyRequest {
        name: "new".into(),
        ..Default::default()
    };
    let ready = kserve
        .model_ready(keyed(INFER, ready))
        .await
        .expect("an answer");
    assert!(ready.into_inner().ready);
    let unload = oip::RepositoryModelUnloadRequest {
        model_name: "new".into(),
        ..Default::default()
    };
    kserve
        .repository_model_unload(keyed(ADMIN, unload.clone()))
        .await
        .expect("removed");
    let again = kserve.repository_model_unload(keyed(ADMIN, unload)).await;
    assert_eq!(again.expect_err("gone").code(), Code::NotFound);
    let text = ask(
        server.http,
        "GET",
        "/metrics",
        &format!("authorization: Bearer {INFER}\r\n"),
        None,
    )
    .await
    .body;
    assert!(
        text.contains("choir_variant_changes_total{action=\"add\",outcome=\"done\"} 1"),
        "{text}"
    );
    drop((kserve, channel));
    server.stop().await;
}

#[tokio::test]
async fn series_of_a_variant_go_with_it() {
    let server = Server::start(engine_config()).await;
    let (client, mut admin) = server.clients().await;
    generate(&client, request("kjv", 4, 1)).await.expect("text");
    let has = async |text: &str| get(server.http, "/metrics").await.body.contains(text);
    assert!(has("choir_requests_total{variant=\"kjv\"").await);
    let long = started(&client, request("kjv", 4000, 1)).await;
    let removal = pb::RemoveVariantRequest {
        name: "kjv".into(),
        ..Default::default()
    };
    admin.remove_variant(removal).await.expect("removed");
    assert!(!has("choir_requests_total{variant=\"kjv\"").await);
    drop(long);
    until(&admin, |now| now.leases == 0).await;
    assert!(
        !has("variant=\"kjv\"").await,
        "what ends later is counted otherwise"
    );
    assert!(has("choir_requests_total{variant=\"removed\"").await);
    drop((client, admin));
    server.stop().await;
}
