//! What is wrong with a request, or with what it needs: a status and a sentence, as JSON for programs and as a page for people.

use axum::{
    Json,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::acts::Acted;
use crate::ledger::LedgerError;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
}

/// A sentence about what is wrong, and what to do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Wrong {
    /// What is wrong, and what to do.
    error: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
        }
    }

    /// The request cannot be read: 400.
    pub(super) fn bad(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    /// There is no such thing: 404.
    pub(super) fn unknown(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, sentence)
    }

    /// It may not be asked, or not by this one: 403.
    pub(super) fn forbidden(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, sentence)
    }

    /// A service is away, or too much is asked: 503.
    pub(super) fn away(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
    }

    /// A mistake of this program: 500. The log has it.
    pub(super) fn broken() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this program has made a mistake; its log says more",
        )
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        let sentence = error.to_string();
        match error {
            LedgerError::Refused(_) => Self::bad(sentence),
            _ if may_not(&sentence) => Self::forbidden(with_grant(&sentence)),
            _ => Self::away(sentence),
        }
    }
}

/// Postgres's number for a right that is missing, as sentences of the ledger have it.
fn may_not(sentence: &str) -> bool {
    sentence.contains("SQLSTATE 42501")
}

fn with_grant(sentence: &str) -> String {
    if sentence.contains("GRANT ") {
        return sentence.to_owned();
    }
    format!(
        "{sentence}. Whoever acts needs the role of an operator: GRANT cliquet_operator TO that user (deploy/postgres-roles.sql makes it)"
    )
}

/// What came of an act, with the status that says it.
pub(super) fn acted(mut acted: Acted) -> Response {
    use super::super::acts::Outcome;
    let status = match acted.outcome {
        Outcome::Done => StatusCode::OK,
        Outcome::Refused => StatusCode::CONFLICT,
        Outcome::NotFound => StatusCode::NOT_FOUND,
        Outcome::Failed if acted.error.as_deref().is_some_and(may_not) => {
            acted.error = acted.error.as_deref().map(with_grant);
            StatusCode::FORBIDDEN
        }
        Outcome::Failed => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(acted)).into_response()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let error = self.sentence.clone();
        let mut response = (self.status, Json(Wrong { error })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Bearer realm=\"cliquet\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        // For `guard::dressed`, which knows who asked.
        response.extensions_mut().insert(self);
        response
    }
}

/// Whether a person in a browser asks for a page, and no script for data.
pub(super) fn is_page(path: &str, headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    !path.starts_with("/api/")
        && accept.is_some_and(|accept| {
            let accept = String::from_utf8_lossy(accept.as_bytes());
            accept.contains("text/html")
        })
}

/// For a path that leads nowhere.
pub(super) async fn nothing_here(request: Request) -> Problem {
    Problem::unknown(format!(
        "there is nothing at {}; /api/v1/openapi.json lists what there is",
        request.uri().path()
    ))
}

/// For a method that a path does not have.
pub(super) async fn wrong_method(method: Method, request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", request.uri().path()),
    )
}
