//! What operators do, to one job or to many. The ledger keeps who it was: the name given at login or in the header
//! `Cliquet-Operator`.

use axum::{Json, extract::State, response::Response};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        super::acts::{Acted, By},
        Shared,
        auth::Who,
        bulk::{self, Bulk, MOST},
        failure::{Problem, Wrong, acted},
    },
    asked::{Filter, Id, Said, Text, object, whole, whole_or_none},
};
use crate::{
    job::Position,
    ledger::{Cursor, Find},
};

/// The longest reason, in characters.
const LONGEST_REASON: usize = 1_000;
/// So many jobs are acted on, if nothing is said.
const USUAL: i32 = 1_000;

/// Why something is done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Why {
    /// Why, in a few words; the ledger keeps it.
    #[schema(value_type = Option<String>, max_length = 1000, pattern = "^[^\\u0000]*$")]
    reason: Option<Text>,
}

/// Why a task is skipped, and which.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Skip {
    /// Why, in a few words; the ledger keeps it.
    #[schema(value_type = String, max_length = 1000, pattern = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$")]
    reason: Text,
    /// The task that is meant: the job's first that is not SUCCESS. It is refused, if that is another one by now; so the same
    /// request once more skips no other task.
    #[schema(value_type = i32, required = true, minimum = 1)]
    #[serde(default, deserialize_with = "whole_or_none")]
    position: Option<Position>,
}

/// Which jobs, how many of them, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Many {
    /// Which jobs; without a status: those for which the act means something. It has a condition, unless `all` is true.
    #[serde(deserialize_with = "object")]
    filter: Filter,
    /// That all jobs are meant, where the filter has no condition.
    #[schema(required = false)]
    #[serde(default)]
    all: bool,
    /// At most so many, the newest first.
    #[schema(minimum = 1, maximum = 10000)]
    #[serde(default = "usual", deserialize_with = "whole")]
    most: i32,
    /// Only jobs behind this place: the `next` of the answer before, to go on from there.
    #[schema(value_type = Option<String>, pattern = "^000[0-9a-f]{45}$")]
    #[serde(default)]
    after: Option<Cursor>,
    /// Why, in a few words; the ledger keeps it.
    #[schema(value_type = Option<String>, max_length = 1000, pattern = "^[^\\u0000]*$")]
    #[serde(default)]
    reason: Option<Text>,
}

impl Many {
    /// Which jobs, and how many at most.
    fn parts(&self) -> Result<(Find, u32), Problem> {
        if !self.all && !self.filter.narrows() {
            return Err(Problem::bad(
                "`filter` has no condition, so every job fits: say which are meant, or `\"all\": true` beside it",
            ));
        }
        let find = Find {
            after: self.after,
            ..self.filter.clone().find()
        };
        match u32::try_from(self.most) {
            Ok(most @ 1..=MOST) => Ok((find, most)),
            _ => Err(Problem::bad(format!(
                "`most` is {}; expected 1 to {MOST}",
                self.most
            ))),
        }
    }
}

fn usual() -> i32 {
    USUAL
}

fn by(who: Who, reason: Option<Text>) -> Result<By, Problem> {
    let reason = reason.map(|Text(reason)| reason.trim().to_owned());
    let reason = reason.filter(|reason| !reason.is_empty());
    if reason
        .as_ref()
        .is_some_and(|reason| reason.chars().count() > LONGEST_REASON)
    {
        return Err(Problem::bad(format!(
            "`reason` has more than {LONGEST_REASON} characters"
        )));
    }
    Ok(By {
        operator: who.operator,
        reason,
    })
}

/// Send a job to the workers again
///
/// A parked job (FAILED) begins again at its first unfinished task, with attempts counted anew; a waiting one waits no longer.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/retry",
    tag = "acts",
    params(
        ("id" = uuid::Uuid, Path, description = "The job"),
    ),
    request_body = Option<Why>,
    responses(
        (status = 200, description = "It was sent", body = Acted),
        (status = 400, description = "The request is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 403, description = "It may not be done", body = Wrong),
        (status = 404, description = "The ledger does not know it", body = Acted),
        (status = 409, description = "It is SUCCESS or CANCELLED, and stays so", body = Acted),
        (status = 413, description = "The body is too long", body = Wrong),
        (status = 415, description = "The body is no JSON", body = Wrong),
        (status = 503, description = "A service is away", body = Wrong),
    )
)]
pub(super) async fn retry(
    State(app): State<Shared>,
    who: Who,
    Id(id): Id,
    Said(why): Said<Why>,
) -> Result<Response, Problem> {
    let by = by(who, why.reason)?;
    let acts = app.acts.clone();
    let came = app.act(async move { acts.retry(id, &by).await });
    Ok(acted(came.await?))
}

/// End a job that is not over
///
/// A task that runs is cut short, and nothing of it is kept; tasks that are done stay done.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/cancel",
    tag = "acts",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    request_body = Option<Why>,
    responses(
        (status = 200, description = "It is CANCELLED", body = Acted),
        (status = 400, description = "The request is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 403, description = "It may not be done", body = Wrong),
        (status = 404, description = "The ledger does not know it", body = Acted),
        (status = 409, description = "It is over, and stays as it is", body = Acted),
        (status = 413, description = "The body is too long", body = Wrong),
        (status = 415, description = "The body is no JSON", body = Wrong),
        (status = 503, description = "A service is away", body = Wrong),
    )
)]
pub(super) async fn cancel(
    State(app): State<Shared>,
    who: Who,
    Id(id): Id,
    Said(why): Said<Why>,
) -> Result<Response, Problem> {
    let by = by(who, why.reason)?;
    let acts = app.acts.clone();
    let came = app.act(async move { acts.cancel(id, &by).await });
    Ok(acted(came.await?))
}

/// Pass over a task of a job that nobody runs
///
/// Its first task that is not SUCCESS becomes SUCCESS without a result, and the job goes on with the next one. A reason has to be
/// given.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/skip",
    tag = "acts",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    request_body = Skip,
    responses(
        (status = 200, description = "It goes on with the next task", body = Acted),
        (status = 400, description = "The request is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 403, description = "It may not be done", body = Wrong),
        (status = 404, description = "The ledger does not know it", body = Acted),
        (status = 409, description = "A worker runs it, it is over, or another task is the first", body = Acted),
        (status = 413, description = "The body is too long", body = Wrong),
        (status = 415, description = "The body is no JSON", body = Wrong),
        (status = 503, description = "A service is away", body = Wrong),
    )
)]
pub(super) async fn skip(
    State(app): State<Shared>,
    who: Who,
    Id(id): Id,
    Said(skip): Said<Skip>,
) -> Result<Response, Problem> {
    let by = by(who, Some(skip.reason))?;
    if by.reason.is_none() {
        return Err(Problem::bad(
            "`reason` is empty: say why the task is skipped; the ledger keeps it",
        ));
    }
    let Some(position) = skip.position else {
        return Err(Problem::bad(
            "`position` is missing: say which task is meant, the first of the job that is not SUCCESS; then the same request once more skips no other",
        ));
    };
    if position < 1 {
        return Err(Problem::bad("`position` counts from 1"));
    }
    let acts = app.acts.clone();
    let came = app.act(async move { acts.skip(id, position, &by).await });
    Ok(acted(came.await?))
}

/// Send many jobs to the workers again
///
/// Those that the filter finds, newest first; without a status: those that are FAILED or RETRYING. It goes on though the client
/// goes away. A job that was sent stays as it is until a worker takes it: where there are more than `most`, go on from `next`.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/retry",
    tag = "acts",
    request_body = Many,
    responses(
        (status = 200, description = "What came of it", body = Bulk),
        (status = 400, description = "The request is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 403, description = "It may not be done", body = Wrong),
        (status = 413, description = "The body is too long", body = Wrong),
        (status = 415, description = "The body is no JSON", body = Wrong),
        (status = 503, description = "A service is away, or another such act is under way", body = Wrong),
    )
)]
pub(super) async fn retry_many(
    State(app): State<Shared>,
    who: Who,
    Said(many): Said<Many>,
) -> Result<Json<Bulk>, Problem> {
    let (find, most) = many.parts()?;
    let by = by(who, many.reason)?;
    bulk::retry(&app, &find, most, &by).await.map(Json)
}

/// End many jobs
///
/// Those that the filter finds, newest first; without a status: all that are not over. It goes on though the client goes away.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/cancel",
    tag = "acts",
    request_body = Many,
    responses(
        (status = 200, description = "What came of it", body = Bulk),
        (status = 400, description = "The request is wrong", body = Wrong),
        (status = 401, description = "The token is missing", body = Wrong),
        (status = 403, description = "It may not be done", body = Wrong),
        (status = 413, description = "The body is too long", body = Wrong),
        (status = 415, description = "The body is no JSON", body = Wrong),
        (status = 503, description = "A service is away, or another such act is under way", body = Wrong),
    )
)]
pub(super) async fn cancel_many(
    State(app): State<Shared>,
    who: Who,
    Said(many): Said<Many>,
) -> Result<Json<Bulk>, Problem> {
    let (find, most) = many.parts()?;
    let by = by(who, many.reason)?;
    bulk::cancel(&app, &find, most, &by).await.map(Json)
}
