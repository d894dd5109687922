//! Live events, as browsers' `EventSource` reads them (`text/event-stream`).

use std::time::Duration;

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};

use super::{
    super::{
        Shared,
        failure::{Problem, Wrong},
        live::Progress,
    },
    asked::{Asked, Id, Nothing},
};
use crate::ledger::Overview;

/// A comment goes out when nothing else did for so long, so that nobody between takes the stream for dead.
const BEAT: Duration = Duration::from_secs(15);

/// How it goes, live
///
/// `event: overview`, once a second.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "live",
    responses(
        (status = 200, description = "Events without end; `data` is an Overview", body = Overview, content_type = "text/event-stream"),
        (status = 400, description = "The query is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "Postgres is away, or too many streams are open", body = Wrong),
    )
)]
pub(super) async fn whole(
    State(app): State<Shared>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Response, Problem> {
    let events = app.live.whole().await?;
    Ok(Sse::new(events).keep_alive(beat()).into_response())
}

/// One job, live
///
/// `event: progress`, now and at each change; the stream ends when the job is over.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/events",
    tag = "live",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "Events until the job is over; `data` is a Progress", body = Progress, content_type = "text/event-stream"),
        (status = 400, description = "That is no job's id", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 404, description = "The ledger does not know it", body = Wrong),
        (status = 503, description = "Postgres is away, or too many streams are open", body = Wrong),
    )
)]
pub(super) async fn job(
    State(app): State<Shared>,
    Id(id): Id,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Response, Problem> {
    let events = app.live.job(id).await?;
    Ok(Sse::new(events).keep_alive(beat()).into_response())
}

fn beat() -> KeepAlive {
    KeepAlive::new().interval(BEAT).text("here")
}
