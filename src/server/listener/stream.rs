//! The bytes of a connection: over TCP or a unix socket, with TLS or without.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// As they come from the system.
#[derive(Debug)]
pub enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// As they are meant.
#[derive(Debug)]
pub enum ClientStream {
    Plain(Plain),
    Tls(Box<TlsStream<Plain>>),
}

/// Both ways of each kind, by the same call on whichever stream it is.
macro_rules! streams {
    ($($kind:ident { $one:ident, $other:ident })+) => { $(
        impl AsyncRead for $kind {
            fn poll_read(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                to: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match &mut *self {
                    $kind::$one(stream) => Pin::new(stream).poll_read(context, to),
                    $kind::$other(stream) => Pin::new(stream).poll_read(context, to),
                }
            }
        }

        impl AsyncWrite for $kind {
            fn poll_write(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match &mut *self {
                    $kind::$one(stream) => Pin::new(stream).poll_write(context, bytes),
                    $kind::$other(stream) => Pin::new(stream).poll_write(context, bytes),
                }
            }

            fn poll_flush(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                match &mut *self {
                    $kind::$one(stream) => Pin::new(stream).poll_flush(context),
                    $kind::$other(stream) => Pin::new(stream).poll_flush(context),
                }
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                match &mut *self {
                    $kind::$one(stream) => Pin::new(stream).poll_shutdown(context),
                    $kind::$other(stream) => Pin::new(stream).poll_shutdown(context),
                }
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match &mut *self {
                    $kind::$one(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
                    $kind::$other(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $kind::$one(stream) => stream.is_write_vectored(),
                    $kind::$other(stream) => stream.is_write_vectored(),
                }
            }
        }
    )+ };
}

streams! {
    Plain { Tcp, Unix }
    ClientStream { Plain, Tls }
}
