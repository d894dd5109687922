//! Acts on many jobs: all that a search finds, page after page, newest first.
//!
//! A page is left behind when its jobs have been acted on, whatever came of it. So no job is acted on twice, one that fails does
//! not hold up the others, and what comes in meanwhile is before the first page and stays as it is.
//!
//! What was retried stays FAILED until a worker takes it, so the same search would find it again. An act that ends before
//! everything was looked at says where: the next one goes on behind that place.

use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    super::acts::{Acted, By, Outcome},
    Shared, TURN,
    failure::Problem,
};
use crate::{
    job::{JobId, JobStatus},
    ledger::{Cursor, Find},
};

/// The most jobs that one request acts on.
pub(super) const MOST: u32 = 10_000;
/// Jobs that are looked for at a time.
const PAGE: u32 = 100;
/// Acts at a time.
const TOGETHER: usize = 8;
/// So many sentences are told.
const SENTENCES: usize = 20;

/// What came of an act on many jobs.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(super) struct Bulk {
    /// Jobs for which it was done.
    pub(super) done: u32,
    /// Jobs that are not such that it can be done; they are as they were.
    pub(super) refused: u32,
    /// Jobs for which it failed.
    pub(super) failed: u32,
    /// Whether there may be more such jobs; `next` says from where on.
    pub(super) left: bool,
    /// The place to go on from, as `after` of the next request: everything before it is done with. None where nothing is left, or
    /// everything.
    pub(super) next: Option<Cursor>,
    /// What went wrong, for the first of those refused or failed, and for the whole when it broke off.
    pub(super) errors: Vec<String>,
}

/// Sends the jobs that are found to the workers again, at most `most` of them. Without a status: those that are FAILED or RETRYING.
pub(super) async fn retry(app: &Shared, find: &Find, most: u32, by: &By) -> Result<Bulk, Problem> {
    let usual = [JobStatus::Failed, JobStatus::Retrying];
    all(app, find, &usual, most, by, |app, id, by| async move {
        app.acts.retry(id, &by).await
    })
    .await
}

/// Ends the jobs that are found, at most `most` of them. Without a status: all that are not over.
pub(super) async fn cancel(app: &Shared, find: &Find, most: u32, by: &By) -> Result<Bulk, Problem> {
    let usual = [
        JobStatus::Pending,
        JobStatus::Processing,
        JobStatus::Retrying,
    ];
    all(app, find, &usual, most, by, |app, id, by| async move {
        app.acts.cancel(id, &by).await
    })
    .await
}

async fn all<F>(
    app: &Shared,
    find: &Find,
    usual: &[JobStatus],
    most: u32,
    by: &By,
    act: impl Fn(Shared, JobId, By) -> F + Send + Sync + 'static,
) -> Result<Bulk, Problem>
where
    F: Future<Output = Acted> + Send + 'static,
{
    let turn = timeout(TURN, app.bulk.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(Problem::away(
            "another act on many jobs is under way; wait until it is done",
        ));
    };
    let mut find = find.clone();
    if find.status.is_empty() {
        find.status = usual.to_vec();
    }
    let (shared, by) = (app.clone(), by.clone());
    app.act(async move {
        let done = pages(&shared, find, most.min(MOST), &by, act).await;
        drop(turn);
        done
    })
    .await?
}

async fn pages<F>(
    app: &Shared,
    mut find: Find,
    most: u32,
    by: &By,
    act: impl Fn(Shared, JobId, By) -> F,
) -> Result<Bulk, Problem>
where
    F: Future<Output = Acted>,
{
    let mut bulk = Bulk::default();
    loop {
        let acted_on = bulk.done + bulk.refused + bulk.failed;
        if acted_on >= most || app.stop.is_cancelled() {
            bulk.left = true;
            bulk.next = find.after;
            return Ok(bulk);
        }
        find.limit = PAGE.min(most - acted_on);
        let wanted = find.clone();
        let page = match app
            .read(|reads| async move { reads.find(&wanted).await })
            .await
        {
            Ok(page) => page,
            Err(problem) if acted_on == 0 => return Err(problem),
            Err(problem) => {
                bulk.left = true;
                bulk.next = find.after;
                bulk.errors.push(problem.sentence);
                return Ok(bulk);
            }
        };
        let ids: Vec<_> = page.jobs.iter().map(|job| job.id).collect();
        let mut acts = stream::iter(ids)
            .map(|id| act(app.clone(), id, by.clone()))
            .buffered(TOGETHER);
        while let Some(acted) = acts.next().await {
            bulk.count(acted);
        }
        match page.next {
            Some(next) => find.after = Some(next),
            None => return Ok(bulk),
        }
    }
}

impl Bulk {
    fn count(&mut self, acted: Acted) {
        match acted.outcome {
            Outcome::Done => self.done += 1,
            Outcome::Refused | Outcome::NotFound => self.refused += 1,
            Outcome::Failed => self.failed += 1,
        }
        if let Some(error) = acted.error
            && acted.outcome != Outcome::Done
            && self.errors.len() < SENTENCES
        {
            self.errors.push(error);
        }
    }
}
