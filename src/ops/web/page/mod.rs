//! The page: for whoever is called at night, in any browser, without a script too.
//!
//! Every view is a function from what was read to markup. Nothing is inline (the content security policy forbids it),
//! nothing comes from elsewhere. Live views carry the address of the server's events; `page.js` takes an event as a sign to
//! fetch the page once more and puts in what has changed, so that there is one way in which anything is rendered.

mod acts;
mod alone;
mod chart;
mod filter;
mod flash;
mod frame;
mod groups;
mod job;
mod json;
mod list;
mod overview;
mod parts;
#[cfg(test)]
mod samples;
mod timeline;
mod workers;

use std::convert::Infallible;

use axum::{
    Router,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Uri, header, request::Parts},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use maud::Markup;

use super::{
    Shared,
    auth::{self, Who},
    depths::depths,
    failure::Problem,
    redact::redact,
};
use crate::{
    job::{JobId, JobStatus},
    ops::words::now,
};
use flash::Flash;
use frame::{Frame, Operator, Place};

pub(super) use alone::{Asking, failure, login};

/// So many groups are shown on their page.
const GROUPS: u32 = 100;
/// Of the whole ledger's events, a browser takes one in so many milliseconds; a job's come as they are.
const PAUSE: u32 = 2_000;
/// Each look reads all tasks of a job; where there are more than so many, a browser looks as seldom as at the whole.
const MANY_TASKS: usize = 1_000;
/// The script marks the looks that are its own: they leave the message of the last act where it is.
const LIVE: &str = "cliquet-live";

/// The page's routes. All but the two files are for whoever has passed the guard.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(overview_page))
        .route("/jobs", get(list_page))
        .route("/jobs/{id}", get(job_page))
        .route("/jobs/{id}/retry", post(acts::retry))
        .route("/jobs/{id}/cancel", post(acts::cancel))
        .route("/jobs/{id}/skip", post(acts::skip))
        .route("/groups", get(groups_page))
        .route("/groups/{id}/retry", post(acts::retry_group))
        .route("/groups/{id}/cancel", post(acts::cancel_group))
        .route("/workers", get(workers_page))
}

/// The page's files, which are the same for everybody.
pub(super) fn files() -> Router<Shared> {
    Router::new()
        .route("/style.css", get(style))
        .route("/page.js", get(script))
}

/// Reads the id in an address.
fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| {
        Problem::unknown("a job's id is a UUID, such as 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11")
    })
}

fn unknown(id: JobId) -> Problem {
    Problem::unknown(format!(
        "the ledger knows no job {id}; a job is known from when a worker first takes its message"
    ))
}

/// Who looks at which page.
struct Visit {
    who: Who,
    headers: HeaderMap,
    page: Uri,
}

impl<S: Send + Sync> FromRequestParts<S> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self {
            who: Who::from_request_parts(parts, state).await?,
            headers: parts.headers.clone(),
            page: parts.uri.clone(),
        })
    }
}

impl Visit {
    fn operator(&self, app: &Shared) -> Operator<'_> {
        let name = &self.who.operator;
        match &app.token {
            None if name == auth::NOBODY => Operator::Unnamed {
                name,
                page: self.page.path_and_query().map_or("/", |page| page.as_str()),
            },
            _ if auth::session(app, &self.headers).is_some() => Operator::Session(name),
            _ => Operator::Told(name),
        }
    }

    /// A view in its frame. The message of the last act is shown once, unless the script is looking.
    fn view(&self, app: &Shared, frame: Frame<'_>, content: Markup) -> Response {
        let live = self.headers.contains_key(LIVE);
        let flash = Flash::of(&self.headers).filter(|_| !live);
        let frame = Frame {
            operator: self.operator(app),
            flash: flash.as_ref(),
            ..frame
        };
        let mut response = Html(frame.around(content).into_string()).into_response();
        if flash.is_some() {
            response
                .headers_mut()
                .append(header::SET_COOKIE, Flash::taken());
        }
        response
    }
}

async fn overview_page(State(app): State<Shared>, visit: Visit) -> Result<Response, Problem> {
    let (overview, groups, workers, depths) =
        tokio::join!(app.overview(), app.groups(), app.workers(), depths(&app),);
    let seen = overview::Seen {
        overview: overview?.as_ref().clone(),
        depths,
        workers: workers?.to_vec(),
        groups: groups?.groups.iter().take(overview::FEW).cloned().collect(),
    };
    let frame = Frame {
        events: Some("/api/v1/events"),
        pause: PAUSE,
        ..Frame::new("Overview", Place::Overview)
    };
    Ok(visit.view(&app, frame, overview::overview(&seen, now())))
}

async fn list_page(
    State(app): State<Shared>,
    visit: Visit,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let find = filter::read(query.as_deref()).map_err(Problem::bad)?;
    let wanted = find.clone();
    let found = app
        .read(|reads| async move { reads.find(&wanted).await })
        .await?;
    Ok(visit.view(
        &app,
        Frame::new("Jobs", Place::Jobs),
        list::list(&find, &found, now()),
    ))
}

async fn job_page(
    State(app): State<Shared>,
    visit: Visit,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let whole = query.is_some_and(|query| query == "whole=1");
    let shared = app.clone();
    let made = app.read_whole(
        |reads| async move { reads.job(id).await },
        move |detail| {
            let mut detail = detail?;
            redact(&mut detail, &shared.config.redact);
            let events = format!("/api/v1/jobs/{id}/events");
            let title = job::title(&detail);
            let mut frame = Frame::new(&title, Place::Other);
            // The whole of a large job is looked at, and not again at each of its changes.
            frame.events = (!whole && !detail.job.is_over()).then_some(&events);
            // The stream of a parked job ends at once, and a retry is seen all the same.
            frame.poll = (!whole && detail.job.status == JobStatus::Failed).then_some(PAUSE);
            if detail.tasks.len() > MANY_TASKS {
                frame.pause = PAUSE;
            }
            let content = job::job(&detail, whole, now());
            Some(visit.view(&shared, frame, content))
        },
    );
    made.await?.ok_or_else(|| unknown(id))
}

async fn groups_page(
    State(app): State<Shared>,
    visit: Visit,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let groups = app.groups().await?;
    let further = groups::Further::read(query.as_deref());
    Ok(visit.view(
        &app,
        Frame::new("Failures", Place::Groups),
        groups::groups(&groups, GROUPS, further.as_ref(), now()),
    ))
}

async fn workers_page(State(app): State<Shared>, visit: Visit) -> Result<Response, Problem> {
    let workers = app.workers().await?;
    let frame = Frame {
        events: Some("/api/v1/events"),
        pause: PAUSE,
        ..Frame::new("Workers", Place::Workers)
    };
    Ok(visit.view(&app, frame, workers::workers(&workers, now())))
}

async fn style(RawQuery(query): RawQuery) -> Response {
    file(frame::STYLE, "text/css; charset=utf-8", query.as_deref())
}

async fn script(RawQuery(query): RawQuery) -> Response {
    file(
        frame::SCRIPT,
        "text/javascript; charset=utf-8",
        query.as_deref(),
    )
}

/// Under the address that names its content a file may be kept for ever; under any other it is asked for again.
fn file(content: &'static str, kind: &'static str, query: Option<&str>) -> Response {
    let same = query == Some(frame::version(content).as_str());
    let keep = if same {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let mut response = content.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    response
}
