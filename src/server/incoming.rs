//! What clients are still sending: bounded in memory over all calls, and in time for each message.

use super::room::{ClientName, Held, Room};
use super::status::exhausted;
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::codegen::Bytes;

/// Bytes before a gRPC message: a flag and its length.
const HEAD: usize = 5;
/// One client has at most one part in so many.
const SHARES: u64 = 4;
/// When to come back where there is no room: messages come in soon, or are given up.
const SOON: Duration = Duration::from_secs(1);

/// Room for messages that are not whole yet. Clones share it.
#[derive(Clone, Debug)]
pub struct Incoming {
    room: Room,
    /// How long a message may take to come.
    patience: Duration,
}

impl Incoming {
    pub fn new(bytes: u64, patience: Duration) -> Self {
        Incoming {
            room: Room::new(bytes, SHARES),
            patience,
        }
    }

    /// A body of gRPC messages, whose calls end where there is no room for them or they do not come in time.
    pub fn messages<B>(&self, client: ClientName, inner: B) -> Arriving<B> {
        self.arriving(client, inner, Some(Framing::default()))
    }

    /// A body that is one message.
    pub fn whole<B>(&self, client: ClientName, inner: B) -> Arriving<B> {
        self.arriving(client, inner, None)
    }

    fn arriving<B>(&self, client: ClientName, inner: B, framing: Option<Framing>) -> Arriving<B> {
        Arriving {
            inner,
            held: self.room.of(client),
            framing,
            patience: self.patience,
            late: None,
        }
    }
}

/// Where messages end in what comes.
#[derive(Debug, Default)]
struct Framing {
    head: [u8; HEAD],
    /// Bytes of the head that are there.
    seen: usize,
    /// Bytes of the message that are not.
    left: usize,
}

impl Framing {
    /// Reads on. Where messages ended in `data`: how many of its bytes stand after the last one.
    fn read(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut after = None;
        while !data.is_empty() {
            let part = match self.seen < HEAD {
                true => data.len().min(HEAD - self.seen),
                false => data.len().min(self.left),
            };
            let (now, rest) = data.split_at(part);
            if self.seen < HEAD {
                self.head[self.seen..self.seen + part].copy_from_slice(now);
                self.seen += part;
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
            } else {
                self.left -= part;
            }
            data = rest;
            if self.seen == HEAD && self.left == 0 {
                self.seen = 0;
                after = Some(data.len());
            }
        }
        after
    }
}

/// A body on its way in.
pub struct Arriving<B> {
    inner: B,
    held: Held,
    framing: Option<Framing>,
    patience: Duration,
    /// When the message that has begun is too late.
    late: Option<Pin<Box<Sleep>>>,
}

impl<B> Arriving<B> {
    /// What has not been read of it, without a bound.
    pub fn into_inner(self) -> B {
        self.inner
    }
}

impl<B> http_body::Body for Arriving<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(ended) => return Poll::Ready(ended.map(|ended| ended.map_err(Into::into))),
            Poll::Pending => {
                let late = this.late.as_mut();
                let late = late.is_some_and(|late| late.as_mut().poll(context).is_ready());
                return match late {
                    true => {
                        let patience = this.patience;
                        let message = format!("the message did not end within {patience:?}");
                        Poll::Ready(Some(Err(Status::deadline_exceeded(message).into())))
                    }
                    false => Poll::Pending,
                };
            }
        };
        if let Some(data) = frame.data_ref() {
            if let Err(crowded) = this.held.take(data.len() as u64) {
                let message = format!("{crowded} messages leave no room for this one now");
                let status = exhausted(message, Some(SOON));
                return Poll::Ready(Some(Err(status.into())));
            }
            if let Some(after) = this.framing.as_mut().and_then(|framing| framing.read(data)) {
                this.held.keep(after as u64);
                this.late = None;
            }
            if this.held.bytes() > 0 && this.late.is_none() {
                this.late = Some(Box::pin(tokio::time::sleep(this.patience)));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::room::Crowded;
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_end_where_they_do_however_they_are_cut(
            lengths in prop::collection::vec(0..40_usize, 1..6),
            cuts in prop::collection::vec(1..30_usize, 200),
        ) {
            let message = |length: &usize| {
                let head = (*length as u32).to_be_bytes();
                [&[0], &head[..], &vec![7; *length]].concat()
            };
            let messages: Vec<Vec<u8>> = lengths.iter().map(message).collect();
            let whole = messages.concat();
            let (mut framing, mut read, mut ended) = (Framing::default(), 0, Vec::new());
            for cut in cuts {
                let end = (read + cut).min(whole.len());
                if let Some(after) = framing.read(&whole[read..end]) {
                    ended.push(end - after);
                }
                read = end;
            }
            let ends = messages.iter().scan(0, |at, message| { *at += message.len(); Some(*at) });
            let ends: Vec<usize> = ends.collect();
            prop_assert_eq!(ended.last(), ends.last());
            prop_assert!(ended.iter().all(|end| ends.contains(end)));
        }
    }

    #[tokio::test]
    async fn room_is_for_what_is_not_whole_and_comes_back() {
        let incoming = Incoming::new(400, Duration::from_secs(60));
        let room = &incoming.room;
        let ann: ClientName = Some("ann".into());
        let message = Bytes::from([&[0, 0, 0, 0, 60][..], &[1; 60]].concat());
        let mut half = incoming.messages(ann.clone(), Full::new(message.slice(..50)));
        half.frame().await.expect("a frame").expect("room");
        assert_eq!(half.held.bytes(), 50);
        let mut more = incoming.messages(ann.clone(), Full::new(message.clone()));
        let error = more.frame().await.expect("an end").expect_err("no room");
        let status = error.downcast::<Status>().expect("a status");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().starts_with("this client's"), "{status}");
        let mut other = incoming.messages(None, Full::new(message.clone()));
        other
            .frame()
            .await
            .expect("a frame")
            .expect("another's room");
        drop(half);
        let mut more = incoming.messages(ann.clone(), Full::new(message.clone()));
        more.frame().await.expect("a frame").expect("room");
        assert_eq!(more.held.bytes(), 0, "it is whole");
        let mut body = incoming.whole(ann.clone(), Full::new(message));
        body.frame().await.expect("a frame").expect("room");
        assert_eq!(body.held.bytes(), 65);
        assert_eq!(room.of(ann.clone()).take(36), Err(Crowded::Own));
        drop(body);
        assert_eq!(room.of(ann).take(100), Ok(()));
    }

    #[tokio::test]
    async fn a_message_that_does_not_end_ends_its_call() {
        let incoming = Incoming::new(400, Duration::from_millis(1));
        let begun = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 60, 1]));
        let frames = tokio_stream::StreamExt::chain(
            tokio_stream::once(Ok::<_, Status>(begun)),
            tokio_stream::pending(),
        );
        let mut body = incoming.messages(None, StreamBody::new(frames));
        body.frame().await.expect("a frame").expect("room");
        let error = body.frame().await.expect("an end").expect_err("late");
        let status = error.downcast::<Status>().expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
}
