//! What goes wrong, and the one function that says which status it is.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use muster_catalog::port::{BarrierError, SubmitError, WideError};

use crate::{headers::KNOWN_LEADER, port::LocalError};

/// Why a request was not answered with what it asked for. The body is the text, as the v1 dialect has it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The request breaks a rule.
    #[error("{0}")]
    BadRequest(String),
    /// The body is not what the endpoint takes.
    #[error("Request decode failed: {0}")]
    Decode(#[from] crate::decode::DecodeError),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// A part of the dialect that is not built.
    #[error("{path}: not built yet in Muster: {what}; this says nothing about what was asked")]
    Unbuilt {
        /// The path.
        path: String,
        /// What it belongs to.
        what: &'static str,
    },
    /// The path is there, the method is not.
    #[error("method {method} not allowed")]
    Method {
        /// What was tried.
        method: String,
        /// What would do.
        allow: &'static str,
    },
    /// The body is larger than the server takes.
    #[error("Request body too large: at most {limit} bytes are taken")]
    TooLarge {
        /// The largest body.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("Request body not received within {0} s")]
    Slow(u64),
    /// A web page elsewhere may be behind the request.
    #[error(
        "{header} {value:?} is no name of this agent, so a web page elsewhere may be asking: use an IP address or \
         localhost, or list the name in http.allowed_hosts"
    )]
    Foreign {
        /// The header that says so.
        header: &'static str,
        /// What it says.
        value: String,
    },
    /// Others hold all the room there is.
    #[error("too many bytes of request bodies are under way from other clients: try again")]
    CrowdedBodies,
    /// The same of answers: it may be asked again once there is room.
    #[error("too many bytes of answers are under way to other clients, {} more have no room: try again", .0.bytes)]
    CrowdedAnswers(NoRoom),
    /// A required field of a catalog write is missing; the dialect answers these with 500.
    #[error("{0}")]
    Missing(&'static str),
    /// Another datacenter was asked for.
    #[error("No path to datacenter: {asked:?} is not {own:?}, the datacenter of this agent")]
    NoPath {
        /// The one asked for.
        asked: String,
        /// This one.
        own: String,
    },
    /// The registry cannot be reached, or has no leader.
    #[error("No cluster leader: {0}")]
    NoLeader(String),
    /// This agent's replica does not hold what is asked, or holds what the registry refuses.
    #[error("{0}")]
    NotHeld(String),
    /// A write of this agent is not visible here yet.
    #[error("the write at index {0} has not arrived here yet: ask again, or with ?stale for what is known")]
    Behind(u64),
    /// The registry did not do what was asked.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The agent did not do what was asked.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The answer could not be written as JSON.
    #[error("the answer could not be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

/// There is no room for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRoom {
    /// How large it would have been.
    pub(crate) bytes: usize,
}

impl HttpError {
    /// The one place that maps errors to HTTP.
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Decode(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Unbuilt { .. } => StatusCode::NOT_IMPLEMENTED,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Foreign { .. } => StatusCode::FORBIDDEN,
            Self::NotHeld(_) | Self::Behind(_) | Self::CrowdedBodies | Self::CrowdedAnswers(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Local(error) => match error {
                LocalError::NotFound(_) => StatusCode::NOT_FOUND,
                LocalError::Invalid(_) => StatusCode::BAD_REQUEST,
                LocalError::OwnedByFile(_) => StatusCode::CONFLICT,
                LocalError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::Submit(error) => match error {
                SubmitError::Rejected(_) | SubmitError::Refused(_) => StatusCode::CONFLICT,
                SubmitError::NoRoom(_) | SubmitError::Unavailable(_) | SubmitError::UnknownOutcome(_) => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
            // The dialect says 500 where the fault is not this agent's; its clients try these again.
            Self::Missing(_) | Self::NoPath { .. } | Self::NoLeader(_) | Self::Encode(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// The text in the dialect's words: clients look for `No cluster leader`.
    fn text(&self) -> String {
        match self {
            Self::Submit(SubmitError::Unavailable(reason)) => format!("No cluster leader: {reason}"),
            other => other.to_string(),
        }
    }
}

impl From<BarrierError> for HttpError {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::NoLeader(reason) => {
                Self::NoLeader(format!("{reason}; ask with ?stale for the last known answer"))
            }
            // There is a leader, and to ask again does not help.
            refused @ BarrierError::Refused(_) => Self::NotHeld(refused.to_string()),
        }
    }
}

impl From<WideError> for HttpError {
    fn from(error: WideError) -> Self {
        match error {
            WideError::Unreachable(_) => Self::NoLeader(error.to_string()),
            WideError::Refused(text) => Self::NotHeld(text),
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.text()).into_response();
        let headers = response.headers_mut();
        if let Self::Method { allow, .. } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if matches!(self, Self::NoPath { .. } | Self::NoLeader(_)) {
            headers.insert(KNOWN_LEADER, HeaderValue::from_static("false"));
        }
        response
    }
}
