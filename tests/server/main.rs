//! The server over the wire: a real one on a free port of this machine, the model compiled in, and tonic's clients.

mod admin;
mod attack;
mod chat;
mod connections;
mod doors;
mod endings;
mod generate;
mod keys;
mod kserve;
mod line;
mod loading;
mod patience;
mod processes;
mod raw;
mod refusals;
mod replacing;
mod soak;
mod storm;
mod tenants;
#[path = "../fixtures/tiny.rs"]
mod tiny;
mod tls;
mod uploads;
mod variants;
mod web;

use choir::catalog::{BaseSource, Catalog, CatalogConfig};
use choir::engine::{Engine, EngineConfig, Generation};
use choir::ops::quantized::Quantisation;
use choir::pb;
use choir::pb::admin_client::AdminClient;
use choir::pb::generate_response::Event;
use choir::pb::inference_client::InferenceClient;
use choir::server::{self, Doors, Limits, ServerSettings};
use choir::store::Keep;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, mpsc};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Everything these tests write. What is there when they end, of the server that all share, goes with the next run.
static ROOT: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("server");
    fs::create_dir_all(&root).expect("directory");
    let in_use = File::create(root.with_extension("in-use")).expect("file");
    in_use.lock().expect("one run at a time");
    fs::remove_dir_all(&root).expect("what the last run left");
    fs::create_dir(&root).expect("directory");
    (root, in_use)
});

/// A store with the variants compiled in, made once: it takes a while.
static SEEDED: LazyLock<PathBuf> = LazyLock::new(|| {
    let data = ROOT.0.join("seeded");
    drop(Catalog::open(catalog_config(&data), |_| {}).expect("open"));
    data
});

fn catalog_config(data: &Path) -> CatalogConfig {
    CatalogConfig {
        bank_form: Quantisation::Q4K,
        keep: Some(Keep::Superposed),
        ..CatalogConfig::new(data, BaseSource::Embedded)
    }
}

/// A store never writes into a file that is there, so links are as good as copies.
fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for entry in fs::read_dir(from).expect("directory") {
        let path = entry.expect("entry").path();
        let to = to.join(path.file_name().expect("name"));
        if path.is_dir() {
            link(&path, &to);
        } else if !path.ends_with("lock") {
            fs::hard_link(&path, &to).expect("link");
        }
    }
}

/// Small limits, so that they are met.
fn settings() -> ServerSettings {
    let limits = Limits {
        prompt_bytes: 10_000,
        upload_bytes: 8 << 20,
        ..Limits::default()
    };
    ServerSettings {
        limits,
        ..ServerSettings::default()
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        max_prompt: 200,
        max_tokens: 4096,
        threads: 1, // several servers run side by side
        ..EngineConfig::default()
    }
}

/// A free port for each protocol.
async fn doors() -> Doors {
    let free = async || {
        let address = "127.0.0.1:0".parse().expect("address");
        server::bind(address, false).await.expect("bind")
    };
    Doors {
        grpc: free().await,
        http: Some(free().await),
        admin: None,
    }
}

/// A server of its own.
struct Server {
    address: SocketAddr,
    http: SocketAddr,
    shutdown: oneshot::Sender<()>,
    served: JoinHandle<Result<(), server::Error>>,
    _data: TempDir,
}

impl Server {
    async fn start(config: EngineConfig) -> Server {
        Server::start_with(config, |generation| generation).await
    }

    /// One whose first generation is changed before it is served.
    async fn start_with(
        config: EngineConfig,
        change: impl FnOnce(Generation) -> Generation,
    ) -> Server {
        Server::start_within(config, settings(), change).await
    }

    async fn start_within(
        config: EngineConfig,
        settings: ServerSettings,
        change: impl FnOnce(Generation) -> Generation,
    ) -> Server {
        let data = tempfile::tempdir_in(&ROOT.0).expect("directory");
        let store = data.path().join("data");
        let open = tokio::task::spawn_blocking(move || {
            link(&SEEDED, &store);
            Catalog::open(catalog_config(&store), |_| {}).expect("open")
        });
        let (catalog, generation) = open.await.expect("open");
        Server::of(data, catalog, change(generation), config, settings).await
    }

    /// One of what lies in `data`.
    async fn of(
        data: TempDir,
        catalog: Catalog,
        generation: Generation,
        config: EngineConfig,
        settings: ServerSettings,
    ) -> Server {
        Server::behind(doors().await, data, catalog, generation, config, settings).await
    }

    /// The same behind doors that are open already.
    async fn behind(
        doors: Doors,
        data: TempDir,
        catalog: Catalog,
        generation: Generation,
        config: EngineConfig,
        settings: ServerSettings,
    ) -> Server {
        let engine = Engine::start(config, generation).expect("engine");
        catalog.attach(engine.clone());
        let address = doors.grpc.address().parse().expect("address");
        let listener = doors.http.as_ref().expect("a door");
        let http = listener.address().parse().expect("address");
        let (shutdown, ending) = oneshot::channel();
        // Whoever has this server finds it serving, not loading.
        let open = server::Open::new(doors, settings);
        open.stand(Arc::new(catalog), &engine).expect("stand");
        let served = tokio::spawn(open.serve(engine, async {
            let _ = ending.await;
        }));
        Server {
            address,
            http,
            shutdown,
            served,
            _data: data,
        }
    }

    async fn clients(&self) -> (InferenceClient<Channel>, AdminClient<Channel>) {
        clients(self.address).await
    }

    /// Drains it; everything has been answered then.
    async fn stop(self) {
        let _ = self.shutdown.send(());
        self.served.await.expect("server").expect("an orderly end");
    }
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("address");
    endpoint.connect().await.expect("connect")
}

async fn clients(address: SocketAddr) -> (InferenceClient<Channel>, AdminClient<Channel>) {
    let channel = channel(address).await;
    (
        InferenceClient::new(channel.clone()),
        AdminClient::new(channel),
    )
}

/// The server of all tests that change nothing. It ends with the process.
static SHARED: LazyLock<(SocketAddr, SocketAddr)> = LazyLock::new(|| {
    let (sender, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let server = Server::start(engine_config()).await;
            sender
                .send((server.address, server.http))
                .expect("a test waits");
            server.served.await.expect("server").expect("served");
        });
    });
    address.recv().expect("a server")
});

async fn shared() -> (InferenceClient<Channel>, AdminClient<Channel>) {
    clients(shared_address().await).await
}

async fn shared_address() -> SocketAddr {
    tokio::task::spawn_blocking(|| SHARED.0)
        .await
        .expect("a server")
}

async fn shared_http() -> SocketAddr {
    tokio::task::spawn_blocking(|| SHARED.1)
        .await
        .expect("a server")
}

fn part(name: &str, weight: Option<f32>) -> pb::VariantWeight {
    pb::VariantWeight {
        name: name.into(),
        weight,
    }
}

/// A request to one variant; the base where `variant` is empty.
fn request(variant: &str, max_tokens: u32, seed: u64) -> pb::GenerateRequest {
    let named = Some(variant).filter(|name| !name.is_empty());
    pb::GenerateRequest {
        mix: named.into_iter().map(|name| part(name, None)).collect(),
        prompt: "And it came to pass".into(),
        max_tokens: Some(max_tokens),
        seed: Some(seed),
        ..pb::GenerateRequest::default()
    }
}

/// A generation from its first event to its last.
#[derive(Debug)]
struct Outcome {
    started: pb::Started,
    steps: Vec<pb::Step>,
    blocks: Vec<pb::Block>,
    finished: pb::Finished,
}

impl Outcome {
    fn text(&self) -> String {
        self.blocks
            .iter()
            .map(|block| block.text.as_str())
            .collect()
    }

    fn tokens(&self) -> Vec<u32> {
        self.blocks
            .iter()
            .flat_map(|block| block.tokens.clone())
            .collect()
    }
}

/// Reads a stream to its end, which must be orderly.
async fn read(mut stream: Streaming<pb::GenerateResponse>) -> Result<Outcome, Status> {
    let (mut started, mut steps, mut blocks, mut finished) = (None, Vec::new(), Vec::new(), None);
    while let Some(response) = stream.message().await? {
        assert!(finished.is_none(), "an event after the last");
        let event = response.event.expect("an event");
        assert_eq!(
            started.is_none(),
            matches!(event, Event::Started(_)),
            "the first event: {event:?}"
        );
        match event {
            Event::Started(event) => started = Some(event),
            Event::Step(event) => steps.push(event),
            Event::Block(event) => blocks.push(event),
            Event::Finished(event) => finished = Some(event),
        }
    }
    Ok(Outcome {
        started: started.expect("a start"),
        steps,
        blocks,
        finished: finished.expect("an end"),
    })
}

async fn generate(
    client: &InferenceClient<Channel>,
    request: pb::GenerateRequest,
) -> Result<Outcome, Status> {
    let stream = client.clone().generate(request).await?;
    read(stream.into_inner()).await
}

/// A generation that has left the queue.
async fn started(
    client: &InferenceClient<Channel>,
    request: pb::GenerateRequest,
) -> Streaming<pb::GenerateResponse> {
    let mut stream = client
        .clone()
        .generate(request)
        .await
        .expect("accepted")
        .into_inner();
    let first = stream.message().await.expect("an event").expect("an event");
    assert!(matches!(first.event, Some(Event::Started(_))), "{first:?}");
    stream
}

async fn status(admin: &AdminClient<Channel>) -> pb::GetStatusResponse {
    let status = admin.clone().get_status(pb::GetStatusRequest {}).await;
    status.expect("status").into_inner()
}

/// The file of a variant that is compiled in.
fn shipped(name: &str) -> &'static [u8] {
    let all = choir::catalog::base::shipped().expect("shipped");
    let found = all.into_iter().find(|one| one.name == name);
    found.expect("compiled in").packed
}

/// A fine-tune of the base compiled in, as a packed delta.
fn packed(name: &str) -> &'static [u8] {
    match name {
        "kjv" => include_bytes!("../fixtures/packed/kjv.safetensors"),
        "sort" => include_bytes!("../fixtures/packed/sort.safetensors"),
        other => panic!("no packed delta {other}"),
    }
}
