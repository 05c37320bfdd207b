//! A connection through a relay of its own.

use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// A client's connection, which can break.
pub struct Line {
    pub channel: Channel,
    relay: JoinHandle<()>,
}

impl Line {
    /// `window`: bytes that the server may send of an answer before they are read.
    pub async fn to(server: SocketAddr, window: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let relay = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.expect("a client");
            let mut far = TcpStream::connect(server).await.expect("the server");
            for stream in [&near, &far] {
                stream.set_nodelay(true).expect("option");
            }
            let _ = copy_bidirectional(&mut near, &mut far).await; // until either leaves
        });
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("address");
        let endpoint = endpoint.initial_stream_window_size(window);
        Line {
            channel: endpoint.connect().await.expect("connect"),
            relay,
        }
    }

    pub async fn cut(self) {
        self.relay.abort();
        let _ = self.relay.await; // both sockets are closed then
    }
}
