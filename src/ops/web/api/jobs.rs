//! Jobs: the list, and one with everything about it.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    super::{
        Shared,
        failure::{Problem, Wrong},
        redact::redact,
    },
    asked::{Asked, Id, Listing},
};
use crate::ledger::{Found, JobDetail};

/// Jobs, newest first
///
/// A page of those that fit all conditions. A search that finds little stops after a while with what it has, and says so with
/// `partial`; `next` goes on from there.
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    tag = "jobs",
    params(Listing),
    responses(
        (status = 200, description = "A page", body = Found),
        (status = 400, description = "The query is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "Postgres is away", body = Wrong),
    )
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Asked(listing): Asked<Listing>,
) -> Result<Json<Found>, Problem> {
    let find = listing.find()?;
    let found = app.read(|reads| async move { reads.find(&find).await });
    Ok(Json(found.await?))
}

/// One job
///
/// With its payload, its tasks with their inputs and results, every failed attempt, and what operators did. What the server's
/// settings name in `redact` is `"(hidden)"`.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job", body = JobDetail),
        (status = 400, description = "That is no job's id", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 404, description = "The ledger does not know it", body = Wrong),
        (status = 503, description = "Postgres is away", body = Wrong),
    )
)]
pub(super) async fn one(State(app): State<Shared>, Id(id): Id) -> Result<Response, Problem> {
    let config = app.config.clone();
    let written = app.read_whole(
        |reads| async move { reads.job(id).await },
        move |detail| {
            let mut detail = detail?;
            redact(&mut detail, &config.redact);
            Some(Json(detail).into_response())
        },
    );
    written.await?.ok_or_else(|| {
        Problem::unknown(format!(
            "the ledger knows no job {id}; a job is known from when a worker first takes its message"
        ))
    })
}
