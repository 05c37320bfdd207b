//! Messages as bytes: what a client can send that no client made by protobuf would.

use super::*;
use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

/// Sends bytes as they are and does not look at the answer.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}

/// The end of a call whose message is `bytes`.
pub async fn call(path: &'static str, bytes: Vec<u8>) -> Status {
    let channel = channel(shared_address().await).await;
    call_with(channel, path, tonic::Request::new(bytes)).await
}

/// The same of any server, with metadata.
pub async fn call_with(channel: Channel, path: &str, request: tonic::Request<Vec<u8>>) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("ready");
    let path = PathAndQuery::try_from(path).expect("a path");
    match client.server_streaming(request, path, Raw).await {
        Err(status) => status,
        Ok(stream) => {
            let mut stream: Streaming<()> = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(())) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        }
    }
}
