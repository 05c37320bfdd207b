//! Accepts connections: so many at most, half of them for one client, each with a time for its handshake and its first request, and with
//! a pause where the system has no descriptors left.

mod door;
mod first;
mod stream;

pub use door::Listener;

use super::access::Peer;
use super::room::{ClientName, Crowded, Held, Room};
use super::tls::Tls;
use first::First;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use stream::{ClientStream, Plain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Descriptors left to the store, the log and the runtime.
const KEPT_DESCRIPTORS: u64 = 128;
/// One client has at most one part in so many of the connections.
const SHARES: u64 = 2;
/// How long accepting rests after an error that is not one connection's own.
const PAUSE: Duration = Duration::from_millis(100);
/// A repeated trouble is logged once in this time.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Bounds on the connections of one address.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Open connections at most; those from one address have half of them.
    pub connections: usize,
    /// Time for a handshake and the headers of the first request.
    pub first: Duration,
}

impl Default for Bounds {
    /// 4096 connections, or fewer where the process may not open so many files; ten seconds.
    fn default() -> Self {
        let open = open_files().saturating_sub(KEPT_DESCRIPTORS).max(16);
        Bounds {
            connections: usize::try_from(open).unwrap_or(usize::MAX).min(4096),
            first: Duration::from_secs(10),
        }
    }
}

/// Files that the process may have open.
#[allow(unsafe_code)]
fn open_files() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes the struct given and nothing else.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 1024,
    }
}

/// Those that have not asked for anything yet and who they are, the oldest first. Dropping the sender ends the connection.
type Silent = Arc<Mutex<VecDeque<(ClientName, oneshot::Sender<()>)>>>;

/// Accepts on `listener` until the stream is dropped. Where all places are taken, or all that its client may have, a new connection takes
/// that of the oldest which has asked for nothing yet. Where there is none such, it waits, or is closed where it is its client that has
/// too many.
pub fn accept(
    listener: Listener,
    tls: Option<Arc<Tls>>,
    bounds: Bounds,
) -> ReceiverStream<io::Result<ServedConnection>> {
    let (to, accepted) = mpsc::channel(1);
    // A socket that only this machine's own user can open has no network to hide from.
    let tls = tls.filter(|_| matches!(listener, Listener::Tcp(_)));
    tokio::spawn(async move {
        tokio::select! {
            () = to.closed() => {}
            () = accept_all(&listener, tls, bounds, &to) => {}
        }
    });
    ReceiverStream::new(accepted)
}

async fn accept_all(
    listener: &Listener,
    tls: Option<Arc<Tls>>,
    bounds: Bounds,
    to: &mpsc::Sender<io::Result<ServedConnection>>,
) {
    let seats = Arc::new(Semaphore::new(bounds.connections));
    let shares = Room::new(bounds.connections as u64, SHARES);
    let silent = Silent::default();
    let [mut refused, mut full, mut greedy] = <[Occasionally; 3]>::default();
    loop {
        let (plain, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if of_one_connection(&error) => continue,
            Err(error) => {
                if refused.now() {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let client = peer.client();
        let mut share = shares.of(client.clone());
        let mut made_room = false;
        if let Err(crowded) = share.take(1) {
            // Without an address it is a socket of this machine, whose other end may be a proxy for all clients.
            let too_many = crowded == Crowded::Own && client.is_some();
            made_room = too_many && end_oldest(&silent, |other| *other == client);
            if too_many && !made_room {
                if greedy.now() {
                    tracing::warn!(?peer, "a client has all connections that one may have");
                }
                continue;
            }
            share.take_over(1);
        }
        let all = match seats.clone().try_acquire_owned() {
            Ok(seat) => seat,
            Err(_) => {
                if full.now() {
                    tracing::warn!(
                        connections = bounds.connections,
                        "all connections are taken"
                    );
                }
                let _ = made_room || end_oldest(&silent, |_| true);
                match seats.clone().acquire_owned().await {
                    Ok(seat) => seat,
                    Err(_) => return,
                }
            }
        };
        let seat = Seat {
            _all: all,
            _share: share,
        };
        let (alive, ended) = oneshot::channel();
        {
            let mut silent = silent.lock().unwrap_or_else(PoisonError::into_inner);
            silent.push_back((client, alive));
            if silent.len() > 2 * bounds.connections {
                silent.retain(|(_, alive)| !alive.is_closed());
            }
        }
        let waiting = Box::new(Waiting {
            deadline: Box::pin(tokio::time::sleep(bounds.first)),
            ended,
            first: First::default(),
        });
        let Some(tls) = &tls else {
            let stream = ClientStream::Plain(plain);
            if to
                .send(Ok(ServedConnection::new(stream, peer, waiting, seat)))
                .await
                .is_err()
            {
                return;
            }
            continue;
        };
        // Beside the others: a handshake takes as long as its client likes, until its deadline.
        let (tls, to) = (tls.clone(), to.clone());
        tokio::spawn(async move {
            if let Some((stream, waiting)) = shake_hands(&tls, plain, peer, waiting).await {
                let _ = to
                    .send(Ok(ServedConnection::new(stream, peer, waiting, seat)))
                    .await;
            }
        });
    }
}

/// TLS, unless it fails, the deadline passes or somebody else needs the place.
async fn shake_hands(
    tls: &Tls,
    plain: Plain,
    peer: Peer,
    mut waiting: Box<Waiting>,
) -> Option<(ClientStream, Box<Waiting>)> {
    let shaken = tokio::select! {
        shaken = tls.acceptor().accept(plain) => shaken,
        () = waiting.deadline.as_mut() => return None,
        _ = &mut waiting.ended => return None,
    };
    match shaken {
        Ok(stream) => Some((ClientStream::Tls(Box::new(stream)), waiting)),
        Err(error) => {
            tracing::debug!(?peer, "no TLS: {error}");
            None
        }
    }
}

/// Whether an error of accept(2) is about the connection that was to be accepted and not about this process.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Ends the connection that has been silent longest of those whose client it may be; false where there is none.
fn end_oldest(silent: &Silent, may: impl Fn(&ClientName) -> bool) -> bool {
    let mut silent = silent.lock().unwrap_or_else(PoisonError::into_inner);
    let oldest =
        |(client, alive): &(ClientName, oneshot::Sender<()>)| may(client) && !alive.is_closed();
    let oldest = silent.iter().position(oldest);
    oldest.is_some_and(|at| silent.remove(at).is_some())
}

/// Says yes once in [`SAY_AGAIN`].
#[derive(Default)]
struct Occasionally(Option<Instant>);

impl Occasionally {
    fn now(&mut self) -> bool {
        let again = self.0.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
        if again {
            self.0 = Some(Instant::now());
        }
        again
    }
}

/// One connection, which has its place until it is dropped.
pub struct ServedConnection {
    stream: ClientStream,
    /// Who is at its other end.
    pub peer: Peer,
    /// Until the headers of its first request have come.
    waiting: Option<Box<Waiting>>,
    _seat: Seat,
}

/// A place among all connections, and of what its client may have.
struct Seat {
    _all: OwnedSemaphorePermit,
    _share: Held,
}

struct Waiting {
    deadline: Pin<Box<Sleep>>,
    /// Resolves where somebody else needs the place.
    ended: oneshot::Receiver<()>,
    first: First,
}

impl ServedConnection {
    fn new(
        stream: ClientStream,
        peer: Peer,
        waiting: Box<Waiting>,
        seat: Seat,
    ) -> ServedConnection {
        ServedConnection {
            stream,
            peer,
            waiting: Some(waiting),
            _seat: seat,
        }
    }
}

impl Connected for ServedConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for ServedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(waiting) = &mut this.waiting {
            let late = waiting.deadline.as_mut().poll(context).is_ready();
            if late || Pin::new(&mut waiting.ended).poll(context).is_ready() {
                let reason = "no request came in time";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)));
            }
        }
        let before = to.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, to);
        if let Some(waiting) = &mut this.waiting
            && waiting.first.saw(&to.filled()[before..])
        {
            this.waiting = None;
        }
        read
    }
}

impl AsyncWrite for ServedConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
