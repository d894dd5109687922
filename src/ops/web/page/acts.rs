//! The buttons: each act is a form's POST, and leads back to where it was pressed, with what came of it.

use axum::{
    extract::{Form, FromRequest, Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    flash::{Flash, Tone},
    groups::Further,
    job_id,
    parts::{count, job_path},
};
use crate::{
    job::{JobStatus, Position},
    ledger::{Cursor, Find},
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
pub(super) const MOST: u32 = 1_000;

/// What the forms send.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Given {
    #[serde(default)]
    reason: String,
    position: Option<Position>,
    /// Where a group's act goes on.
    after: Option<Cursor>,
}

/// A form that cannot be read is told like everything else that is wrong.
impl<S: Send + Sync> FromRequest<S> for Given {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Form(given) = Form::from_request(request, state)
            .await
            .map_err(|rejection| Problem::bad(rejection.body_text()))?;
        Ok(given)
    }
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
    given: Given,
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
    given: Given,
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
    given: Given,
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
    given: Given,
) -> Result<Response, Problem> {
    let find = group(&id, &[JobStatus::Failed, JobStatus::Retrying], &given);
    let came = bulk::retry(&app, &find, MOST, &given.by(who)).await?;
    let flash = summed(&came, "sent to the workers");
    Ok(back(&further(id, "retry", &came), &flash))
}

pub(super) async fn cancel_group(
    State(app): State<Shared>,
    who: Who,
    Path(id): Path<String>,
    given: Given,
) -> Result<Response, Problem> {
    // What is parked is over: a cancel would be refused.
    let find = group(&id, &[JobStatus::Retrying], &given);
    let by = given.by(who);
    if by.reason.is_none() {
        return Ok(back(
            "/groups",
            &Flash::bad("Nothing was cancelled: say why, since whoever looks later will ask."),
        ));
    }
    let came = bulk::cancel(&app, &find, MOST, &by).await?;
    let flash = summed(&came, "cancelled");
    Ok(back(&further(id, "cancel", &came), &flash))
}

fn group(id: &str, status: &[JobStatus], given: &Given) -> Find {
    Find {
        likeness: Some(id.to_owned()),
        status: status.to_vec(),
        after: given.after,
        ..Find::default()
    }
}

/// Where to press once more for what is left.
fn further(group: String, act: &str, came: &Bulk) -> String {
    let further = came.next.filter(|_| came.left).map(|after| Further {
        group,
        act: act.to_owned(),
        after,
    });
    further.map_or_else(|| "/groups".to_owned(), |further| further.path())
}

fn told(acted: &Acted, done: &str) -> Flash {
    match (&acted.outcome, &acted.error) {
        (Outcome::Done, None) => Flash::good(done),
        (Outcome::Done, Some(sentence)) => {
            Flash::of_tone(Tone::Warning, format!("{done} But: {sentence}"))
        }
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
    match (came.left, came.next) {
        (true, Some(_)) => {
            text.push_str(" There are more: press once more to go on with older ones.");
        }
        (true, None) => text.push_str(" It broke off: press once more when that is mended."),
        (false, _) => {}
    }
    if let Some(first) = came.errors.first() {
        text.push_str(&format!(" The first error: {first}"));
    }
    let tone = match (came.done, came.failed) {
        (0, _) | (_, 1..) => Tone::Bad,
        _ if !came.errors.is_empty() => Tone::Warning,
        _ => Tone::Good,
    };
    Flash::of_tone(tone, text)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::id;

    const PLACE: &str = "000644a3eab0c0000190b5c27e1f7c3a9d550d9c1f0a7b11";

    fn acted(outcome: Outcome, error: Option<&str>) -> Acted {
        Acted {
            id: id(),
            outcome,
            status: None,
            generation: None,
            error: error.map(str::to_owned),
            everywhere: false,
        }
    }

    #[test]
    fn an_act_that_is_done_but_not_written_down_is_told_as_both() {
        let said = |outcome, error| {
            let Flash { tone, text } = told(&acted(outcome, error), "It was sent.");
            (tone, text)
        };
        assert_eq!(
            said(Outcome::Done, None),
            (Tone::Good, "It was sent.".to_owned())
        );
        let unrecorded = Some("who did it could not be written down");
        assert_eq!(
            said(Outcome::Done, unrecorded),
            (
                Tone::Warning,
                "It was sent. But: who did it could not be written down".to_owned()
            )
        );
        assert_eq!(
            said(Outcome::Refused, Some("it is over")),
            (Tone::Bad, "it is over".to_owned())
        );
        assert_eq!(said(Outcome::NotFound, None).0, Tone::Bad);
    }

    #[test]
    fn what_came_of_many_is_summed_with_the_first_error_and_whether_there_are_more() {
        let mut came = Bulk {
            done: 1_000,
            ..Bulk::default()
        };
        let told = summed(&came, "sent to the workers");
        assert_eq!(
            (told.tone, told.text.as_str()),
            (Tone::Good, "1,000 jobs were sent to the workers.")
        );
        came.left = true;
        assert!(summed(&came, "cancelled").text.contains("broke off"));
        came.next = Some(PLACE.parse().unwrap());
        came.errors = vec!["who did it could not be written down".to_owned()];
        let told = summed(&came, "sent to the workers");
        assert_eq!(told.tone, Tone::Warning);
        for words in ["There are more", "could not be written down"] {
            assert!(told.text.contains(words), "{told:?}");
        }
        came.failed = 2;
        assert_eq!(summed(&came, "cancelled").tone, Tone::Bad);
        assert_eq!(summed(&Bulk::default(), "cancelled").tone, Tone::Bad);
    }

    #[test]
    fn what_is_left_of_a_group_begins_where_the_last_press_ended() {
        let place: Cursor = PLACE.parse().unwrap();
        let mut came = Bulk {
            done: 1_000,
            next: Some(place),
            ..Bulk::default()
        };
        assert_eq!(further("ab".to_owned(), "retry", &came), "/groups");
        came.left = true;
        let path = further("ab".to_owned(), "retry", &came);
        let read = Further::read(path.split(['?', '#']).nth(1)).unwrap();
        assert_eq!(
            (read.group.as_str(), read.act.as_str(), read.after),
            ("ab", "retry", place)
        );
    }
}
