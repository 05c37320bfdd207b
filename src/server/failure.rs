//! Errors over HTTP, in OpenAI's shape.

use crate::engine;
use crate::server::requests::Refusal;
use crate::server::status::{BadField, RETRY_AFTER, short};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// What went wrong, and in which field.
#[derive(Debug)]
pub struct Failure {
    status: Status,
    http: StatusCode,
    param: Option<String>,
}

impl Failure {
    pub fn new(http: StatusCode, message: impl Into<String>) -> Self {
        Failure {
            status: Status::unknown(short(message.into())),
            http,
            param: None,
        }
    }

    /// The `error` object.
    pub fn body(&self) -> Value {
        let (kind, code) = match self.http.as_u16() {
            401 => ("authentication_error", Some("invalid_api_key")),
            403 => ("permission_error", None),
            404 if self.status.code() == Code::NotFound => {
                ("invalid_request_error", Some("model_not_found"))
            }
            429 => ("rate_limit_error", Some("rate_limit_exceeded")),
            400..500 => ("invalid_request_error", None),
            503 => ("service_unavailable_error", None),
            _ => ("server_error", None),
        };
        json!({"error": {
            "message": self.status.message(),
            "type": kind,
            "param": self.param,
            "code": code,
        }})
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                StatusCode::BAD_REQUEST
            }
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure {
            status,
            http,
            param: None,
        }
    }
}

impl From<BadField> for Failure {
    fn from(error: BadField) -> Self {
        Failure {
            param: Some(error.field.to_owned()),
            ..Status::from(error).into()
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Field(error) => error.into(),
            chat @ Refusal::Chat(_) => Failure {
                param: Some("messages".to_owned()),
                ..Status::from(chat).into()
            },
            other => Status::from(other).into(),
        }
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        Refusal::from(error).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.http;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if self.http == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let after = self.status.metadata().get(RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse::<u64>().ok());
        if let Some(milliseconds) = after {
            let seconds = milliseconds.div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert(RETRY_AFTER, HeaderValue::from(milliseconds));
        }
        response
    }
}
