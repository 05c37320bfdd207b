//! Triton's ModelStreamInfer: many requests on one stream, and the answers to them as they come.

use super::Service;
use super::ask::InferForm;
use crate::engine::Event;
use crate::kserve as pb;
use crate::server::access::Caller;
use crate::server::requests::Answer;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, StreamMap};
use tonic::{Status, Streaming};

/// Requests of one stream that are under way at most; the next one waits to be read.
const MOST: usize = 256;

/// A request that is under way.
struct Making {
    shown: InferForm,
    begun: Instant,
    /// Kept where the answer is sent as a whole.
    text: String,
}

type Sent = Result<pb::ModelStreamInferResponse, Status>;

/// Answers everything that comes until the client has sent its last request and has its last answer. Where the client leaves, what is
/// under way is cancelled.
pub async fn answer(
    service: Service,
    caller: Caller,
    mut requests: Streaming<pb::ModelInferRequest>,
    answers: mpsc::Sender<Sent>,
) {
    let mut under_way: StreamMap<u64, Answer> = StreamMap::new();
    let mut making: std::collections::HashMap<u64, Making> = Default::default();
    let (mut open, mut count) = (true, 0);
    while open || !under_way.is_empty() {
        // Room for an answer first: a client that does not read is not worked for.
        let Ok(mut room) = answers.reserve().await.map(Some) else {
            return;
        };
        let mut send = |message| {
            if let Some(room) = room.take() {
                room.send(Ok(message));
            }
        };
        tokio::select! {
            () = answers.closed() => return,
            request = requests.message(), if open && under_way.len() < MOST => match request {
                Ok(Some(request)) => {
                    let id = request.id.clone();
                    match service.submit(request, None, caller.clone()).await {
                        Ok((answer, shown)) => {
                            under_way.insert(count, answer);
                            let (begun, text) = (Instant::now(), String::new());
                            making.insert(count, Making { shown, begun, text });
                            count += 1;
                        }
                        Err(status) => send(InferForm::failed(id, status.message())),
                    }
                }
                Ok(None) => open = false,
                Err(_) => return,
            },
            next = under_way.next(), if !under_way.is_empty() => {
                // Nothing where the last of them is only now seen to have ended.
                let Some((number, event)) = next else { continue };
                let Some(one) = making.get_mut(&number) else { continue };
                let ended = matches!(event, Event::Finished(_) | Event::Failed(_));
                if let Some(message) = service.tell(one.begun, &one.shown, &mut one.text, event) {
                    send(message);
                }
                if ended {
                    making.remove(&number);
                    under_way.remove(&number);
                }
            }
        }
    }
}

impl Service {
    /// What an event is to the client, if anything.
    fn tell(
        &self,
        begun: Instant,
        shown: &InferForm,
        whole: &mut String,
        event: Event,
    ) -> Option<pb::ModelStreamInferResponse> {
        let response = match event {
            Event::Started { .. } | Event::Step { .. } => return None,
            Event::Block { text, .. } if shown.stream => {
                (!text.is_empty()).then(|| shown.text(text, false))
            }
            Event::Block { text, .. } => {
                whole.push_str(&text);
                None
            }
            Event::Finished(summary) => {
                self.statistics.finished(shown, begun, &summary);
                match shown.stream {
                    true => shown.wants_last.then(|| shown.empty(true)),
                    false => Some(shown.text(std::mem::take(whole), true)),
                }
            }
            Event::Failed(error) => {
                self.statistics.failed(shown, begun);
                let status = Status::from(error);
                return Some(InferForm::failed(shown.id(), status.message()));
            }
        };
        response.map(|response| pb::ModelStreamInferResponse {
            error_message: String::new(),
            infer_response: Some(response),
        })
    }
}
