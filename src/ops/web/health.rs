//! For machines that look after this one: is it alive, is it ready, and its metrics. The first two are open to everybody.

use std::time::Duration;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::warn;
use uuid::Uuid;

use super::{Shared, failure::Problem};
use crate::{job::JobId, telemetry::metrics::Exposition, worker::Status};

/// How long Postgres may take to answer whoever asks whether this is ready.
const ANSWER: Duration = Duration::from_secs(3);

/// For so long an answer of Postgres holds. Anybody may ask whether this is ready, and not each of them Postgres.
const HOLDS: Duration = Duration::from_millis(500);

/// What being ready means here.
pub(super) enum Readiness {
    /// The worker beside this server takes jobs.
    Worker(Status),
    /// Postgres answers.
    Postgres(Asked),
}

/// What Postgres answered last, and when.
pub(super) type Asked = Mutex<Option<(Instant, Result<(), String>)>>;

pub(super) async fn alive() -> &'static str {
    "alive\n"
}

pub(super) async fn ready(State(app): State<Shared>) -> Response {
    let obstacles = match &app.readiness {
        Readiness::Worker(status) => status.obstacles().join("\n"),
        Readiness::Postgres(asked) => postgres(&app, asked).await.err().unwrap_or_default(),
    };
    if obstacles.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, obstacles + "\n").into_response()
    }
}

async fn postgres(app: &Shared, asked: &Asked) -> Result<(), String> {
    if app.stop.is_cancelled() {
        return Err("this server is stopping".to_owned());
    }
    let mut last = asked.lock().await;
    if let Some((when, answer)) = &*last
        && when.elapsed() < HOLDS
    {
        return answer.clone();
    }
    let told_already = matches!(&*last, Some((_, Err(_))));
    let answer = ask(app, told_already).await;
    *last = Some((Instant::now(), answer.clone()));
    answer
}

/// No job has this id; that the ledger says so is what is asked for.
///
/// Why it does not is for the log: strangers need not know where Postgres is, and who we are there.
async fn ask(app: &Shared, told_already: bool) -> Result<(), String> {
    let asked = app.read(|reads| async move { reads.progress(JobId(Uuid::nil())).await });
    let reason = match timeout(ANSWER, asked).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(problem)) => problem.sentence,
        Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
    };
    if !told_already {
        warn!(
            database = %app.database, error = reason,
            "not ready: Postgres does not answer"
        );
    }
    Err("Postgres does not answer".to_owned())
}

pub(super) async fn metrics(State(app): State<Shared>) -> Response {
    // It takes a few milliseconds, in which no job shall wait for this thread.
    let exposition = app.metrics.clone();
    match tokio::task::spawn_blocking(move || exposition.render()).await {
        Ok(text) => ([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response(),
        Err(_) => Problem::broken().into_response(),
    }
}
