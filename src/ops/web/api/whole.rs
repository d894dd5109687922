//! The whole: how many jobs there are and how they go, who works, what waits in RabbitMQ, and what fails alike.

use axum::{Json, extract::State};

use super::{
    super::{
        Shared,
        depths::{self, QueueDepth},
        failure::{Problem, Wrong},
    },
    asked::{Asked, Groups, OfQueue},
};
use crate::ledger::{self, Overview, WorkerView};

/// How it goes
///
/// Jobs by status, and the tasks that ended in each minute of the last hour.
#[utoipa::path(
    get,
    path = "/api/v1/overview",
    tag = "the whole",
    params(OfQueue),
    responses(
        (status = 200, description = "The overview", body = Overview),
        (status = 400, description = "The query is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "Postgres is away", body = Wrong),
    )
)]
pub(super) async fn overview(
    State(app): State<Shared>,
    Asked(asked): Asked<OfQueue>,
) -> Result<Json<Overview>, Problem> {
    let queue = asked.queue();
    let overview = app.read(|reads| async move { reads.overview(queue.as_deref()).await });
    Ok(Json(overview.await?))
}

/// The workers
///
/// Those that live, with what they run, and up to 50 of those that died within the last hour, with what they have left behind.
#[utoipa::path(
    get,
    path = "/api/v1/workers",
    tag = "the whole",
    params(OfQueue),
    responses(
        (status = 200, description = "The workers", body = Vec<WorkerView>),
        (status = 400, description = "The query is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "Postgres is away", body = Wrong),
    )
)]
pub(super) async fn workers(
    State(app): State<Shared>,
    Asked(asked): Asked<OfQueue>,
) -> Result<Json<Vec<WorkerView>>, Problem> {
    let Some(queue) = asked.queue() else {
        return Ok(Json(app.workers().await?.to_vec()));
    };
    let workers = app.read(|reads| async move { reads.workers(Some(&queue)).await });
    Ok(Json(workers.await?))
}

/// RabbitMQ's queues
///
/// The work queue of this server's settings, its delay queues from the shortest on, and its dead queue.
#[utoipa::path(
    get,
    path = "/api/v1/queues",
    tag = "the whole",
    responses(
        (status = 200, description = "The queues", body = Vec<QueueDepth>),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "RabbitMQ is away", body = Wrong),
    )
)]
pub(super) async fn queues(State(app): State<Shared>) -> Result<Json<Vec<QueueDepth>>, Problem> {
    depths::depths(&app).await.map(Json).map_err(Problem::away)
}

/// Like failures
///
/// Jobs that are FAILED or RETRYING, by handler and by what their errors have in common, the largest group first. Its `id` is
/// the `likeness` that lists and acts on many jobs take. Without a queue the answer may be some seconds old.
#[utoipa::path(
    get,
    path = "/api/v1/groups",
    tag = "the whole",
    params(Groups),
    responses(
        (status = 200, description = "The groups", body = ledger::Groups),
        (status = 400, description = "The query is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 503, description = "Postgres is away", body = Wrong),
    )
)]
pub(super) async fn groups(
    State(app): State<Shared>,
    Asked(asked): Asked<Groups>,
) -> Result<Json<ledger::Groups>, Problem> {
    let (queue, limit) = asked.parts()?;
    let Some(queue) = queue else {
        let groups = app.groups().await?;
        let mut groups = (*groups).clone();
        groups.groups.truncate(limit as usize);
        return Ok(Json(groups));
    };
    let groups = app.read(|reads| async move { reads.groups(Some(&queue), limit).await });
    Ok(Json(groups.await?))
}
