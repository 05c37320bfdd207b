//! A storm on the real process: every protocol at once, variants that come and go, clients that are slow, wrong or gone, and ends of
//! every kind. After each round nothing is lost and nothing is left.
//!
//! A few rounds in the suite; `scripts/storm.sh` makes them last by CHOIR_STORM_SECONDS, and puts the store on a small disk, which is
//! filled now and then, by CHOIR_STORM_DIR.

use super::kserve::infer;
use super::patience::leave_early;
use super::soak::nothing_is_left;
use super::uploads::{add, by_path, upload};
use super::web::post;
use super::*;
use choir::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use choir::rng::{Key, Stream as Chance};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const ROUNDS: u64 = 2;
const CLIENTS: usize = 6;
/// Requests of each client in one burst, of which there are two before a round's end.
const BURST: usize = 8;
/// Variants that come and go.
const GUESTS: [&str; 2] = ["guest", "visitor"];

/// `choir serve`, as it is started by people.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    pub http: SocketAddr,
}

impl Process {
    pub fn start(data: &Path) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_choir"))
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--threads", "1", "--max-running", "8", "--queue", "16"])
            .args(["--drain-seconds", "5", "--data-dir"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("its words"));
        said.read_line(&mut line).expect("a line");
        let (_, doors) = line.trim_end().rsplit_once(" on ").expect("addresses");
        let (grpc, http) = doors.split_once(" and http://").expect("two");
        Process {
            child,
            address: grpc.parse().expect("address"),
            http: http.parse().expect("address"),
        }
    }

    #[allow(unsafe_code, reason = "one call of the system")]
    pub fn end(mut self, signal: i32) -> Option<i32> {
        // SAFETY: it is a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
        self.child.wait().expect("a process").code()
    }

    /// Resident bytes, and open descriptors.
    pub fn held(&self) -> (u64, usize) {
        let of = |file: &str| format!("/proc/{}/{file}", self.child.id());
        let status = fs::read_to_string(of("status")).expect("status");
        let resident = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = resident.and_then(|line| line.split_whitespace().nth(1));
        let kib: u64 = kib.expect("a size").parse().expect("a number");
        (
            kib << 10,
            fs::read_dir(of("fd")).expect("descriptors").count(),
        )
    }
}

/// What a request that is right may end with while nothing is wrong with the server.
fn fair(status: &Status) {
    let fair = [
        Code::ResourceExhausted,
        Code::NotFound,
        Code::AlreadyExists,
        Code::Aborted,
        Code::Cancelled,
        Code::DeadlineExceeded,
    ];
    assert!(fair.contains(&status.code()), "{status:?}");
}

/// One request of some protocol, to its end or not. Errors are `fair` unless the server may end meanwhile.
async fn ask(address: SocketAddr, http: SocketAddr, mut chance: Chance, ending: bool) {
    let told = |status: Status| {
        if !ending {
            fair(&status);
        }
    };
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("address");
    // Some read through a window of a few bytes.
    let window = [64, 65_535][chance.below(2)];
    let Ok(channel) = endpoint.initial_stream_window_size(window).connect().await else {
        assert!(ending, "nobody listens");
        return;
    };
    let variants = ["", "kjv", "shakespeare", GUESTS[0], GUESTS[1]];
    let variant = variants[chance.below(variants.len())];
    let length = 1 + chance.below(24) as u32;
    match chance.below(8) {
        0 => {
            let score = pb::ScoreRequest {
                text: "And it came to pass".into(),
                mix: vec![part("kjv", None)],
                samples: Some(2),
                ..pb::ScoreRequest::default()
            };
            let score = InferenceClient::new(channel).score(score).await;
            score.map(drop).unwrap_or_else(told);
        }
        1 => {
            let model = if variant.is_empty() { "base" } else { variant };
            let mut client = GrpcInferenceServiceClient::new(channel);
            let inferred = client.model_infer(infer(model, length as i32)).await;
            inferred.map(drop).unwrap_or_else(told);
        }
        2 if !ending => {
            let model = if variant.is_empty() { "base" } else { variant };
            let stream = chance.below(2) == 0;
            let body =
                json!({"model": model, "prompt": "And", "max_tokens": length, "stream": stream});
            let answered = post(http, "/v1/completions", &body).await;
            assert!([200, 404, 429].contains(&answered.status), "{answered:?}");
        }
        3 if !ending => leave_early(http, chance.next_u64()).await,
        4 => {
            let wrong = pb::GenerateRequest {
                stop: vec![String::new()],
                ..request(variant, length, 1)
            };
            let refused = generate(&InferenceClient::new(channel), wrong).await;
            let status = refused.map(drop).expect_err("an empty stop");
            assert!(ending || status.code() == Code::InvalidArgument, "{status}");
        }
        how => {
            let request = request(variant, length, chance.next_u64());
            let mut client = InferenceClient::new(channel);
            let stream = match client.generate(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return told(status),
            };
            if how > 5 {
                read(stream).await.map(drop).unwrap_or_else(told);
            } // else the client leaves
        }
    }
}

/// What operators do meanwhile: additions by upload and by path, removals, uploads that stop in the middle.
async fn operate(address: SocketAddr, path: PathBuf, mut chance: Chance, ending: bool) {
    let told = |status: Status| {
        if !ending {
            fair(&status);
        }
    };
    let Ok(channel) = Channel::from_shared(format!("http://{address}"))
        .expect("address")
        .connect()
        .await
    else {
        assert!(ending, "nobody listens");
        return;
    };
    let admin = AdminClient::new(channel);
    for _ in 0..3 {
        let guest = GUESTS[chance.below(GUESTS.len())];
        let requests = match chance.below(4) {
            0 => vec![by_path(guest, &path)],
            1 => upload(guest, packed("kjv")),
            2 => upload(guest, packed("kjv"))[..2].to_vec(),
            _ => {
                remove(&admin, guest).await.unwrap_or_else(told);
                continue;
            }
        };
        let cut = requests.len() == 2;
        match add(&admin, requests).await {
            Err(status) if cut && status.code() == Code::InvalidArgument => {}
            added => added.map(drop).unwrap_or_else(told),
        }
    }
}

async fn remove(admin: &AdminClient<Channel>, name: &str) -> Result<(), Status> {
    let removal = pb::RemoveVariantRequest {
        name: name.into(),
        ..pb::RemoveVariantRequest::default()
    };
    admin.clone().remove_variant(removal).await.map(drop)
}

/// Everything at once.
async fn burst(process: &Process, path: &Path, seed: u64, ending: bool) -> JoinSet<()> {
    let (address, http) = (process.address, process.http);
    let chance = |client: usize| {
        Chance::new(Key::derive(&[
            b"storm",
            &seed.to_le_bytes(),
            &client.to_le_bytes(),
        ]))
    };
    let mut all = JoinSet::new();
    for client in 0..CLIENTS {
        let mut own = chance(client);
        all.spawn(async move {
            for _ in 0..BURST {
                let one = Chance::new(Key::derive(&[&own.next_u64().to_le_bytes()]));
                ask(address, http, one, ending).await;
            }
        });
    }
    all.spawn(operate(address, path.to_owned(), chance(CLIENTS), ending));
    all
}

/// The text of every variant that is there.
async fn texts(address: SocketAddr) -> BTreeMap<String, String> {
    let (client, mut admin) = clients(address).await;
    let listed = admin.list_variants(pb::ListVariantsRequest {});
    let listed = listed.await.expect("a list").into_inner().variants;
    let mut texts = BTreeMap::new();
    for name in listed
        .into_iter()
        .map(|one| one.name)
        .chain([String::new()])
    {
        let outcome = generate(&client, request(&name, 6, 3)).await.expect("text");
        texts.insert(name, outcome.text());
    }
    texts
}

/// Without its guests a store is as it was, bit for bit.
async fn without_guests(address: SocketAddr) -> BTreeMap<String, String> {
    let (_, admin) = clients(address).await;
    for guest in GUESTS {
        if let Err(status) = remove(&admin, guest).await {
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
    }
    texts(address).await
}

/// Takes all that is left of a disk, until the file goes.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut file = File::create(&path).expect("a file");
    let mut piece = vec![1; 1 << 20];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_leave_a_whole_store_and_nothing_behind() {
    let seconds = std::env::var("CHOIR_STORM_SECONDS").ok();
    let seconds = seconds.map(|seconds| seconds.parse().expect("CHOIR_STORM_SECONDS"));
    let disk = std::env::var_os("CHOIR_STORM_DIR").map(PathBuf::from);
    let folder = match &disk {
        Some(disk) => tempfile::tempdir_in(disk).expect("directory"),
        None => tempfile::tempdir_in(&ROOT.0).expect("directory"),
    };
    let (data, path) = (folder.path().join("store"), folder.path().join("kjv.file"));
    fs::write(&path, packed("kjv")).expect("file");
    let mut process = Process::start(&data);
    let first = texts(process.address).await;
    assert!(first.len() > 10, "{first:?}");
    let begun = Instant::now();
    for round in 0.. {
        let over = match seconds {
            Some(seconds) => begun.elapsed() >= Duration::from_secs(seconds),
            None => round == ROUNDS,
        };
        if over {
            break;
        }
        let mut held = Vec::new();
        for half in 0..2 {
            let filler = disk.as_deref().filter(|_| round % 4 == 3 && half == 1);
            let filler = filler.map(fill);
            burst(&process, &path, 2 * round + half, false)
                .await
                .join_all()
                .await;
            if let Some(filler) = filler {
                fs::remove_file(filler).expect("the filler");
            }
            let (_, admin) = clients(process.address).await;
            let left = endings::until(&admin, nothing_is_left).await;
            assert_eq!(left.failed, 0, "{left:?}");
            drop(admin);
            assert_eq!(
                without_guests(process.address).await,
                first,
                "round {round}"
            );
            let most = held.first().map_or(usize::MAX, |(_, files)| files + 8);
            let closed = |_: &i32| process.held().1 <= most; // connections take a moment to close
            (0..10_000).find(closed);
            held.push(process.held());
        }
        let [before, after] = [held[0], held[1]];
        let flat = after.0 <= before.0 + before.0 / 5 + (32 << 20) && after.1 <= before.1 + 8;
        assert!(flat, "bytes and descriptors: {before:?}, then {after:?}");

        // Its end comes in the middle of everything.
        let mut all = burst(&process, &path, u64::MAX - round, true).await;
        for _ in 0..round % 4 {
            all.join_next().await.expect("a client").expect("its end");
        }
        match round % 2 {
            0 => assert_eq!(process.end(libc::SIGKILL), None),
            _ => assert_eq!(process.end(libc::SIGTERM), Some(0)),
        }
        all.join_all().await;
        process = Process::start(&data);
        assert_eq!(
            without_guests(process.address).await,
            first,
            "round {round}"
        );
        println!("round {round}: {} bytes, {} descriptors", after.0, after.1);
    }
    assert_eq!(process.end(libc::SIGTERM), Some(0));
}
