//! Acts on many jobs: all that a search finds, page after page, newest first.
//!
//! A page is left behind when its jobs have been acted on, whatever came of it. So no job is acted on twice, one that fails does
//! not hold up the others, and what comes in meanwhile is before the first page and stays as it is.
//!
//! What was retried stays FAILED until a worker takes it, so the same search would find it again. An act that ends before
//! everything was looked at says where: the next one goes on behind that place.
//!
//! It ends early when a service is away, or a right is missing: each job would wait for the same in vain. Those that are
//! under way are waited for; the others are not begun.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;
use tracing::info;
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
    /// What went wrong, for the first of those refused, failed, or done though something is wrong (such as a retry that could not
    /// be written down), and for the whole when it broke off.
    pub(super) errors: Vec<String>,
}

/// Sends the jobs that are found to the workers again, at most `most` of them. Without a status: those that are FAILED or RETRYING.
pub(super) async fn retry(app: &Shared, find: &Find, most: u32, by: &By) -> Result<Bulk, Problem> {
    let usual = [JobStatus::Failed, JobStatus::Retrying];
    all(
        app,
        "retry",
        find,
        &usual,
        most,
        by,
        |app, id, by| async move { app.acts.retry_one_of_many(id, &by).await },
    )
    .await
}

/// Ends the jobs that are found, at most `most` of them. Without a status: all that are not over.
pub(super) async fn cancel(app: &Shared, find: &Find, most: u32, by: &By) -> Result<Bulk, Problem> {
    let usual = [
        JobStatus::Pending,
        JobStatus::Processing,
        JobStatus::Retrying,
    ];
    all(
        app,
        "cancel",
        find,
        &usual,
        most,
        by,
        |app, id, by| async move { app.acts.cancel_one_of_many(id, &by).await },
    )
    .await
}

async fn all<F>(
    app: &Shared,
    name: &'static str,
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
        let came = pages(&shared, find, most.min(MOST), &by, act).await;
        drop(turn);
        match &came {
            Ok(bulk) => bulk.logged(name, &by),
            Err(problem) => {
                info!(
                    act = name,
                    operator = by.operator,
                    error = problem.sentence,
                    "an act on many jobs was not begun"
                );
            }
        }
        came
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
        let in_vain = AtomicBool::new(false);
        let ids: Vec<_> = page.jobs.iter().map(|job| job.id).collect();
        let mut acts = stream::iter(ids)
            .map(|id| {
                let act = act(app.clone(), id, by.clone());
                let in_vain = &in_vain;
                async move {
                    if in_vain.load(Ordering::Relaxed) || app.stop.is_cancelled() {
                        return None;
                    }
                    let acted = act.await;
                    in_vain.fetch_or(acted.everywhere, Ordering::Relaxed);
                    Some(acted)
                }
            })
            .buffered(TOGETHER);
        let mut broken_off = false;
        for job in &page.jobs {
            let acted = acts.next().await.flatten();
            broken_off |= acted.as_ref().is_none_or(|acted| acted.everywhere);
            if !broken_off {
                find.after = Some(Cursor::of(job));
            }
            if let Some(acted) = acted {
                bulk.count(acted);
            }
        }
        if broken_off {
            bulk.left = true;
            bulk.next = find.after;
            return Ok(bulk);
        }
        match page.next {
            Some(next) => find.after = Some(next),
            None => return Ok(bulk),
        }
    }
}

impl Bulk {
    fn logged(&self, act: &'static str, by: &By) {
        let Self {
            done,
            refused,
            failed,
            left,
            ..
        } = self;
        let error = self.errors.first();
        info!(
            act,
            operator = by.operator,
            done,
            refused,
            failed,
            left,
            error,
            "an operator acts on many jobs"
        );
    }

    fn count(&mut self, acted: Acted) {
        match acted.outcome {
            Outcome::Done => self.done += 1,
            Outcome::Refused | Outcome::NotFound => self.refused += 1,
            Outcome::Failed => self.failed += 1,
        }
        // One that is done may have an error, too: it could not be written down who did it.
        if let Some(error) = acted.error
            && self.errors.len() < SENTENCES
        {
            self.errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acted(outcome: Outcome, error: Option<&str>) -> Acted {
        Acted {
            id: JobId::new(),
            outcome,
            status: None,
            generation: None,
            error: error.map(str::to_owned),
            everywhere: false,
        }
    }

    #[test]
    fn what_is_done_and_could_not_be_written_down_is_told() {
        let mut bulk = Bulk::default();
        bulk.count(acted(Outcome::Done, None));
        bulk.count(acted(Outcome::Done, Some("who did it is not written down")));
        bulk.count(acted(Outcome::NotFound, Some("the ledger knows no job")));
        bulk.count(acted(Outcome::Failed, Some("RabbitMQ is away")));
        assert_eq!((bulk.done, bulk.refused, bulk.failed), (2, 1, 1));
        assert_eq!(bulk.errors.len(), 3);
        assert!(bulk.errors[0].contains("not written down"));
        for _ in 0..SENTENCES {
            bulk.count(acted(Outcome::Refused, Some("it is over")));
        }
        assert_eq!(bulk.errors.len(), SENTENCES);
    }
}
