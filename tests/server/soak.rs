//! Ten thousand requests that are read, left, cut off, late or wrong, while variants come and go: nothing is left of them.

use super::endings::until;
use super::line::Line;
use super::tiny::{TINY, checkpoint, tuned};
use super::*;
use choir::pb::add_variant_request::Part;
use choir::rng::{Key, Stream as Chance};
use choir::server::access::CLIENT_ID;
use choir::train::folder::Precision;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const CLIENTS: usize = 8;
const REQUESTS: usize = 10_000;
/// The operator does something after so many requests.
const OPERATED: u64 = 250;

const IDS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
const PER_CLIENT: usize = 3;
const PER_VARIANT: usize = 2 * PER_CLIENT;
/// A variant that comes and goes.
const GUEST: &str = "guest";

/// What became of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Finished,
    Left,
    Refused,
    Late,
    Wrong,
    Cut,
}

/// A request, and the codes it may end with.
struct Asked {
    timeout: Option<Duration>,
    client: &'static str,
    codes: Vec<Code>,
}

impl Asked {
    fn wire<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let id = self.client.parse().expect("a header");
        request.metadata_mut().insert(CLIENT_ID, id);
        self.timeout
            .into_iter()
            .for_each(|timeout| request.set_timeout(timeout));
        request
    }

    fn end(&self, outcome: Result<bool, Status>) -> End {
        let status = match outcome {
            Ok(true) => {
                assert!(
                    !self.codes.contains(&Code::InvalidArgument),
                    "a wrong one was answered"
                );
                return End::Finished;
            }
            Ok(false) => return End::Left,
            Err(status) => status,
        };
        assert!(self.codes.contains(&status.code()), "{status:?}");
        match status.code() {
            Code::ResourceExhausted => {
                assert!(
                    status.metadata().contains_key("retry-after-ms"),
                    "{status:?}"
                );
                End::Refused
            }
            // Whose clock was first: the server's, or tonic's on either side.
            Code::DeadlineExceeded | Code::Cancelled => End::Late,
            _ => End::Wrong,
        }
    }
}

/// Waits for an answer's beginning, or leaves as soon as the question is on its way.
async fn begin<T>(
    leave: bool,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Option<T>, Status> {
    if !leave {
        return call.await.map(Some);
    }
    tokio::select! {
        biased;
        answer = call => answer.map(Some),
        () = tokio::task::yield_now() => Ok(None),
    }
}

/// Reads on until `stream` has said so many things, or all: true then.
async fn read_on(
    stream: &mut Streaming<pb::GenerateResponse>,
    most: usize,
) -> Result<bool, Status> {
    for _ in 0..most {
        let message = stream.message().await?.expect("a stream without an end");
        if let Some(Event::Finished(_)) = message.event {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Client {
    server: SocketAddr,
    chance: Chance,
    line: Line,
    /// What it has asked and not looked at yet.
    later: Vec<(Asked, Streaming<pb::GenerateResponse>)>,
    ends: BTreeMap<End, u64>,
    ended: watch::Sender<u64>,
}

impl Client {
    async fn start(server: SocketAddr, number: usize, ended: watch::Sender<u64>) -> Self {
        let mut chance = Chance::new(Key::derive(&[b"soak", &number.to_le_bytes()]));
        Client {
            server,
            line: Line::to(server, window(&mut chance)).await,
            chance,
            later: Vec::new(),
            ends: BTreeMap::new(),
            ended,
        }
    }

    fn count(&mut self, end: End, times: usize) {
        *self.ends.entry(end).or_default() += times as u64;
        self.ended.send_modify(|ended| *ended += times as u64);
    }

    async fn run(mut self) -> BTreeMap<End, u64> {
        for _ in 0..REQUESTS / CLIENTS {
            match self.chance.below(60) {
                0 => self.cut().await,
                1 => self.leave().await,
                _ => {}
            }
            let asked = Asked {
                timeout: (self.chance.below(4) == 0)
                    .then(|| Duration::from_micros(self.chance.below(6000) as u64)),
                client: IDS[self.chance.below(IDS.len())],
                codes: vec![Code::ResourceExhausted],
            };
            if let Some(end) = self.ask(asked).await {
                self.count(end, 1);
            }
            if self.later.len() == 4 {
                self.catch_up().await;
            }
        }
        self.catch_up().await;
        self.ends
    }

    /// One request; `None` where it is looked at later.
    async fn ask(&mut self, mut asked: Asked) -> Option<End> {
        let chance = &mut self.chance;
        if asked.timeout.is_some() {
            asked
                .codes
                .extend([Code::DeadlineExceeded, Code::Cancelled]);
        }
        let mut request = text(chance);
        if request.mix.iter().any(|part| part.name == GUEST) {
            asked.codes.push(Code::NotFound);
        }
        let leave = chance.below(12) == 0;
        let mut client = InferenceClient::new(self.line.channel.clone());
        if chance.below(10) == 0 {
            let score = pb::ScoreRequest {
                mix: request.mix,
                text: request.prompt,
                samples: Some(1 + chance.below(8) as u32),
                seed: request.seed,
            };
            let outcome = begin(leave, client.score(asked.wire(score))).await;
            return Some(asked.end(outcome.map(|answer| answer.is_some())));
        }
        if chance.below(20) == 0 {
            spoil(&mut request, chance.below(5));
            asked.codes.extend([Code::InvalidArgument, Code::NotFound]);
        }
        let mut stream = match begin(leave, client.generate(asked.wire(request))).await {
            Ok(Some(answer)) => answer.into_inner(),
            Ok(None) => return Some(End::Left),
            Err(status) => return Some(asked.end(Err(status))),
        };
        let most = match self.chance.below(8) {
            0 | 1 => self.chance.below(4),
            2 | 3 => {
                self.later.push((asked, stream));
                return None;
            }
            _ => usize::MAX,
        };
        Some(asked.end(read_on(&mut stream, most).await))
    }

    async fn catch_up(&mut self) {
        for (asked, mut stream) in std::mem::take(&mut self.later) {
            let end = asked.end(read_on(&mut stream, usize::MAX).await);
            self.count(end, 1);
        }
    }

    /// Says goodbye to the server, with answers under way.
    async fn leave(&mut self) {
        let next = Line::to(self.server, window(&mut self.chance)).await;
        drop(std::mem::replace(&mut self.line, next));
        self.count(End::Left, self.later.len());
        self.later.clear();
    }

    /// Loses its connection, with answers under way.
    async fn cut(&mut self) {
        let next = Line::to(self.server, window(&mut self.chance)).await;
        std::mem::replace(&mut self.line, next).cut().await;
        self.count(End::Cut, self.later.len());
        for (_, mut stream) in std::mem::take(&mut self.later) {
            let _ = read_on(&mut stream, usize::MAX).await; // it may have come before
        }
    }
}

/// So little that steps of one text fill it, or as usual.
fn window(chance: &mut Chance) -> u32 {
    [64, 65_535][chance.below(2)]
}

/// A request of some process, of weights that are there but for [`GUEST`].
fn text(chance: &mut Chance) -> pb::GenerateRequest {
    let one = |name: &str| vec![part(name, None)];
    let mix = match chance.below(8) {
        0 | 1 => vec![],
        2 => one("absorbing"),
        3 => one("uniform"),
        4 => one("whole"),
        5 => vec![part("absorbing", Some(0.5)), part("other", Some(0.5))],
        6 => one("other"),
        _ => one(GUEST),
    };
    // Whole sequences have to fit the context of sixteen tokens.
    let whole = mix.iter().any(|part| part.name == "whole");
    let prompts = ["the", "the whale was", "seen at noon"];
    pb::GenerateRequest {
        prompt: prompts[if whole { 0 } else { chance.below(3) }].into(),
        mix,
        suffix: (!whole && chance.below(4) == 0).then(|| "noon.".into()),
        max_tokens: Some(1 + chance.below(6) as u32),
        seed: Some(chance.next_u64()),
        want_steps: chance.below(2) == 0,
        priority: chance.below(3) as i32,
        ..pb::GenerateRequest::default()
    }
}

fn spoil(request: &mut pb::GenerateRequest, how: usize) {
    match how {
        0 => request.mix = vec![part("nobody", None)],
        1 => request.prompt.clear(),
        2 => request.max_tokens = Some(0),
        3 => request.priority = 99,
        _ => request.template = vec![pb::Piece::default()],
    }
}

/// Adds and removes [`GUEST`], and leaves in the middle of uploads, every so many requests. Returns whether any reader was seen to
/// be waited for.
async fn operate(server: SocketAddr, mut ended: watch::Receiver<u64>) -> bool {
    let (mut paused, file) = (false, checkpoint(&tuned(9)));
    let (_, admin) = clients(server).await;
    for turn in 1.. {
        let over = ended
            .wait_for(|ended| *ended >= turn * OPERATED)
            .await
            .is_err();
        if over {
            break;
        }
        paused |= status(&admin).await.paused > 0;
        let mut upload = uploads::upload(GUEST, &file);
        match turn % 3 {
            0 => {
                upload.truncate(2);
                let open = tokio_stream::StreamExt::chain(
                    tokio_stream::iter(upload),
                    tokio_stream::pending(),
                );
                let line = Line::to(server, 65_535).await;
                let mut leaving = AdminClient::new(line.channel.clone());
                let mut events = leaving
                    .add_variant(open)
                    .await
                    .expect("stream")
                    .into_inner();
                events.message().await.expect("progress").expect("progress");
                line.cut().await;
            }
            1 => {
                uploads::add(&admin, upload).await.expect("add");
            }
            _ => {
                let removal = pb::RemoveVariantRequest {
                    name: GUEST.into(),
                    ..pb::RemoveVariantRequest::default()
                };
                admin.clone().remove_variant(removal).await.expect("remove");
            }
        }
    }
    paused
}

pub fn nothing_is_left(now: &pb::GetStatusResponse) -> bool {
    let loads = now
        .variant_loads
        .iter()
        .map(|load| load.waiting + load.running);
    let counts = [
        now.waiting,
        now.running,
        now.paused,
        now.generations - 1,
        loads.sum(),
    ];
    counts == [0; 5] && (now.pages_used, now.open_streams, now.leases) == (0, 0, 0)
}

/// A server of the tiny base with variants of both processes, on threads of its own.
fn server(runtime: &Runtime) -> Server {
    let data = tempfile::tempdir_in(&ROOT.0).expect("directory");
    let base = data.path().join("base");
    TINY.write(&base, Precision::F32).expect("base");
    let config = CatalogConfig {
        base: BaseSource::Folder(base),
        ..catalog_config(&data.path().join("data"))
    };
    let (catalog, generation) = Catalog::open(config, |_| {}).expect("open");
    let page_tokens = 4;
    let config = EngineConfig {
        max_running: 8,
        queue: PER_VARIANT,
        max_per_variant: Some(PER_VARIANT),
        max_per_client: Some(PER_CLIENT),
        unread: 4,
        page_tokens,
        kv_bytes: 16 * generation.denoiser.page_bytes(page_tokens.into()), // so few that some lose theirs
        step_tokens: 48,
        ..engine_config()
    };
    let settings = ServerSettings {
        trust_client_id: true,
        ..settings()
    };
    runtime.block_on(async {
        let server = Server::of(data, catalog, generation, config, settings).await;
        let (_, admin) = server.clients().await;
        for (seed, name) in (1..).zip(["absorbing", "other", "uniform", "whole"]) {
            let mut upload = uploads::upload(name, &checkpoint(&tuned(seed)));
            if let Some(Part::Header(header)) = &mut upload[0].part
                && seed > 2
            {
                header.process = pb::Process::Uniform.into();
                header.block_size = (seed == 3).then_some(4);
                header.defaults = Some(pb::Sampling {
                    predictor: Some(pb::Predictor {
                        steps: Some(4),
                        ..pb::Predictor::default()
                    }),
                    ..pb::Sampling::default()
                });
            }
            uploads::add(&admin, upload).await.expect("add");
        }
        server
    })
}

#[test]
fn nothing_is_left_of_ten_thousand_requests() {
    let serving = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let server = server(&serving);
    let asking = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    asking.block_on(async {
        let (_, admin) = server.clients().await;
        let (ended, watching) = watch::channel(0);
        let operator = tokio::spawn(operate(server.address, watching));
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(tokio::spawn(
                Client::start(server.address, number, ended.clone())
                    .await
                    .run(),
            ));
        }
        drop(ended);
        let mut ends: BTreeMap<End, u64> = BTreeMap::new();
        for client in clients {
            for (end, count) in client.await.expect("client") {
                *ends.entry(end).or_default() += count;
            }
        }
        assert!(operator.await.expect("operator"), "nobody was waited for");
        assert_eq!(ends.values().sum::<u64>(), REQUESTS as u64);
        assert_eq!(ends.len(), 6, "not everything happened: {ends:?}");
        let now = until(&admin, nothing_is_left).await;
        assert_eq!((now.failed, now.stalled), (0, 0), "{now:?}");
        assert!(
            now.finished >= ends[&End::Finished] && now.cancelled > 0 && now.late > 0,
            "{now:?}"
        );
        let refused = now.refused.expect("counts");
        assert!(
            refused.queue > 0 && refused.client > 0 && refused.deadline > 0,
            "{refused:?}"
        );
        assert!(now.preempted > 0 && now.tokens_reused > 0, "{now:?}");

        // Every permit is there.
        let narrow = Line::to(server.address, 64).await;
        for (variant, ids) in ["", "absorbing", "other"].into_iter().zip(IDS.chunks(2)) {
            let mut held = Vec::new();
            for id in ids.iter().cycle().take(PER_VARIANT) {
                let long = pb::GenerateRequest {
                    want_steps: true,
                    ..request(variant, 40, 1)
                };
                let asked = Asked {
                    timeout: None,
                    client: id,
                    codes: Vec::new(),
                };
                let answer = InferenceClient::new(narrow.channel.clone())
                    .generate(asked.wire(long))
                    .await;
                held.push(answer.expect("accepted"));
            }
            drop(held);
            until(&admin, nothing_is_left).await;
        }
        // And all the room for uploads.
        let all = pb::AddVariantHeader {
            name: "all".into(),
            source: Some(pb::add_variant_header::Source::UploadBytes(
                settings().limits.upload_bytes / 2, // one client's share
            )),
            ..pb::AddVariantHeader::default()
        };
        let all = pb::AddVariantRequest {
            part: Some(Part::Header(all)),
        };
        let mut ends = Vec::new();
        while ends.len() < 10_000 && !ends.contains(&Code::InvalidArgument) {
            let short = uploads::add(&admin, vec![all.clone()])
                .await
                .expect_err("too short");
            ends.push(short.code()); // the last one that left may still be on its way out
        }
        assert_eq!(ends.pop(), Some(Code::InvalidArgument));
    });
    drop(asking); // and with it all connections
    // One task serves, and at each of both doors one waits and one accepts; every other belonged to a connection or a request.
    let comes_to = |tasks: usize| {
        let reached = (0..100_000_000).any(|_| {
            std::thread::yield_now();
            serving.metrics().num_alive_tasks() == tasks
        });
        let left = serving.metrics().num_alive_tasks();
        assert!(reached, "{left} tasks are left, not {tasks}");
    };
    comes_to(5);
    serving.block_on(server.stop());
    comes_to(0);
}
