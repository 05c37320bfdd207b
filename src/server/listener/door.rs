//! What is listened on.

use super::stream::Plain;
use crate::server::Error;
use crate::server::access::Peer;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// An address, or a socket in the file system.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket, which goes with the server.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// `Listen` where the system refuses.
    pub async fn tcp(address: SocketAddr) -> Result<Listener, Error> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.map_err(|source| Error::Listen {
            address: address.to_string(),
            source,
        });
        bound.map(Listener::Tcp)
    }

    /// Listens on a socket that only this user can open. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `Listen` where the system refuses.
    pub fn unix(path: &Path) -> Result<Listener, Error> {
        let refused = |source| Error::Listen {
            address: path.display().to_string(),
            source,
        };
        if std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path).map_err(refused)?;
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        let only_us = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, only_us).map_err(refused)?;
        Ok(Listener::Unix(listener, SocketFile(path.to_owned())))
    }

    /// What a client connects to.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Listener::Unix(_, file) => format!("unix:{}", file.0.display()),
        }
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .is_ok_and(|address| address.ip().is_loopback()),
            Listener::Unix(..) => true,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Plain, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Small messages must not wait for others; a connection that is gone already says so when it is read.
                let _ = stream.set_nodelay(true);
                Ok((Plain::Tcp(stream), Peer(Some(address.ip().to_canonical()))))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Plain::Unix(stream), Peer(None)))
            }
        }
    }
}
