//! The buttons: each act is a form's POST, and leads back to where it was pressed, with what came of it.

use axum::{
    extract::{Form, Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    flash::Flash,
    job_id,
    parts::{count, job_path},
};
use crate::{
    job::{JobStatus, Position},
    ledger::Find,
    ops::{
        acts::{Acted, By, Outcome},
        web::{
            Shared,
            auth::Who,
            bulk::{self, Bulk},
            failure::Problem,
        },
    },
};

/// So many jobs of a group are acted on at one press.
const MOST: u32 = 1_000;

/// What the forms send.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Given {
    #[serde(default)]
    reason: String,
    position: Option<Position>,
}

impl Given {
    fn by(&self, who: Who) -> By {
        By::new(&who.operator, Some(&self.reason))
    }
}

pub(super) async fn retry(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let (acts, by) = (app.acts.clone(), given.by(who));
    let acted = app.act(async move { acts.retry(id, &by).await }).await?;
    Ok(back(
        &job_path(id),
        &told(&acted, "The job was sent to the workers."),
    ))
}

pub(super) async fn cancel(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let (acts, by) = (app.acts.clone(), given.by(who));
    let acted = app.act(async move { acts.cancel(id, &by).await }).await?;
    Ok(back(&job_path(id), &told(&acted, "The job is cancelled.")))
}

pub(super) async fn skip(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let by = given.by(who);
    if by.reason.is_none() {
        return Ok(back(
            &job_path(id),
            &Flash::bad("Nothing was skipped: say why, since whoever looks later will ask."),
        ));
    }
    let Some(position) = given.position else {
        return Ok(back(
            &job_path(id),
            &Flash::bad("Nothing was skipped: the form did not say which task is meant."),
        ));
    };
    let acts = app.acts.clone();
    let acted = app
        .act(async move { acts.skip(id, position, &by).await })
        .await?;
    let done = format!("Task {position} was skipped.");
    Ok(back(&job_path(id), &told(&acted, &done)))
}

pub(super) async fn retry_group(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Problem> {
    let find = group(id, &[JobStatus::Failed, JobStatus::Retrying]);
    let came = bulk::retry(&app, &find, MOST, &given.by(who)).await?;
    Ok(back("/groups", &summed(&came, "sent to the workers")))
}

pub(super) async fn cancel_group(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Problem> {
    // What is parked is over: a cancel would be refused.
    let find = group(id, &[JobStatus::Retrying]);
    let came = bulk::cancel(&app, &find, MOST, &given.by(who)).await?;
    Ok(back("/groups", &summed(&came, "cancelled")))
}

fn group(id: String, status: &[JobStatus]) -> Find {
    Find {
        likeness: Some(id),
        status: status.to_vec(),
        ..Find::default()
    }
}

fn told(acted: &Acted, done: &str) -> Flash {
    match (&acted.outcome, &acted.error) {
        (Outcome::Done, _) => Flash::good(done),
        (_, Some(sentence)) => Flash::bad(sentence.as_str()),
        (_, None) => Flash::bad(format!("Nothing was done to job {}.", acted.id)),
    }
}

fn summed(came: &Bulk, done: &str) -> Flash {
    let mut text = format!(
        "{} {} {done}",
        count(came.done.into(), "job"),
        if came.done == 1 { "was" } else { "were" }
    );
    for (number, word) in [(came.refused, "refused"), (came.failed, "failed")] {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    text.push('.');
    if came.left {
        text.push_str(" There are more: press once more.");
    }
    if let Some(first) = came.errors.first() {
        text.push_str(&format!(" The first error: {first}"));
    }
    Flash {
        good: came.done > 0 && came.failed == 0,
        text,
    }
}

/// 303: the browser asks for the page, and asking once more repeats nothing.
fn back(path: &str, flash: &Flash) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    // Paths are made of an id that was read; they are ASCII.
    if let Ok(path) = HeaderValue::try_from(path) {
        response.headers_mut().insert(header::LOCATION, path);
    }
    response
        .headers_mut()
        .append(header::SET_COOKIE, flash.cookie());
    response
}
