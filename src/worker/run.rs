//! One run of a job: task after task, from the first that is not SUCCESS, until the first failure or the end.

use std::{pin::pin, sync::Arc};

use tracing::{Instrument, info_span, warn};

use super::{
    Alone, Crew,
    attempt::{Ended, attempt},
    commit::{commit, defer, fail, failed},
    in_hand::Run,
};
use crate::{
    job::{Generation, JobMessage, Position},
    ledger::{Claimed, Next, Present, Stand, Written},
    metrics::TaskEnd,
    retry::Rung,
    task::{JobInHand, TaskError},
};

/// How a run ended; the ledger knows it already.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// Every task is SUCCESS.
    Finished,
    /// A task failed, or its handler is braked; the job is due after the rung's delay.
    Retrying { generation: Generation, rung: Rung },
    /// A task failed for good.
    GivenUp {
        generation: Generation,
        reason: &'static str,
        error: String,
        task: String,
        attempts: u32,
    },
    /// The worker is stopping; the rest of the job is handed back.
    HandedBack,
    /// The delivery was held for long; the rest of the job goes on under a new one.
    HandedOver,
    /// Somebody else owns the job, or the worker leaves with its writes undone: the next claim decides.
    Fenced,
}

/// Runs a claimed job; `session` is that in which it was asked for. Jobs with a crash behind them run one at a time, so that
/// the next death has one suspect: `alone` is their permit, given up when the suspected task has ended well.
pub(super) async fn run(
    crew: &Crew,
    run: &Run,
    claimed: Claimed,
    message: &Arc<JobMessage>,
    session: Present,
    mut alone: Option<Alone>,
) -> RunEnd {
    let mut stand = Stand {
        job: message.id,
        position: claimed.position,
        epoch: claimed.epoch,
        attempt: claimed.attempt,
    };
    if claimed.crashes >= crew.config.crash_limit {
        let error = TaskError::permanent(format!(
            "the worker died {} times while it ran this task; it is parked so that it takes no more workers with it",
            claimed.crashes
        ));
        return fail(crew, &claimed, stand, message, error, Some("crashed")).await;
    }
    // The answer may have been on its way for long, and others may have taken the job over while this worker seemed dead. A
    // run that is registered in the session of its claim is asked after at the beat that begins the next one.
    if session.is_none() || crew.session() != session {
        return hand_back(crew, stand, RunEnd::HandedBack).await;
    }
    let total = message.tasks.len() as Position;
    let job = JobInHand::new(message.clone(), claimed.results.clone());
    while let Some(spec) = job.spec(stand.position) {
        if !crew.may_start(run).await {
            return hand_back(crew, stand, RunEnd::HandedBack).await;
        }
        let go = match crew.brakes.ask(&spec.handler) {
            Ok(go) => go,
            Err(wait) => return defer(crew, &claimed, stand, message, wait).await,
        };
        let traced = crew
            .tracing
            .task(stand.job, stand.position, stand.attempt, spec);
        let span = traced.or_else(|| info_span!(
            "task", job.id = %stand.job, task.position = stand.position, task.handler = spec.handler, task.attempt = stand.attempt
        ));
        // Pinned, here and below: otherwise all of it is moved into its span.
        let ended = pin!(attempt(
            crew,
            &job,
            spec,
            stand.position,
            stand.attempt,
            run.cancellation(),
        ))
        .instrument(span)
        .await;
        go.ran();
        let (result, transaction) = match ended {
            Ended::Done {
                result,
                transaction,
            } => (result, transaction),
            Ended::Failed(error) => {
                return failed(crew, &claimed, stand, message, error, go, traced).await;
            }
            Ended::CutShort => return hand_back(crew, stand, RunEnd::HandedBack).await,
            Ended::Lost => return RunEnd::Fenced,
        };
        let next = match stand.position == total {
            true => Next::Finish,
            false if crew.drain.is_cancelled() || run.age() > crew.config.hand_over_after => {
                Next::HandBack
            }
            false => Next::Task,
        };
        let committed = pin!(commit(crew, stand, result.clone(), transaction, next))
            .instrument(traced.span())
            .await;
        match committed {
            Ok(Written::Committed) => go.succeeded(),
            Ok(Written::Fenced) => return RunEnd::Fenced,
            Err(error) => return failed(crew, &claimed, stand, message, error, go, traced).await,
        }
        traced.ended(TaskEnd::Success);
        match next {
            Next::Finish => {
                crew.metrics.job_done(claimed.age + run.age());
                return RunEnd::Finished;
            }
            Next::HandBack if crew.drain.is_cancelled() => return RunEnd::HandedBack,
            Next::HandBack => return RunEnd::HandedOver,
            Next::Task => {}
        }
        job.record(stand.position, result);
        stand = Stand {
            position: stand.position + 1,
            attempt: 1,
            ..stand
        };
        alone = None; // the task that was under suspicion has ended well
    }
    drop(alone);
    warn!(job.id = %stand.job, task.position = stand.position, "the ledger names a task that the message does not have; the job is handed back");
    hand_back(crew, stand, RunEnd::HandedOver).await
}

/// Gives the job up in the middle of an attempt, which then does not count.
async fn hand_back(crew: &Crew, stand: Stand, end: RunEnd) -> RunEnd {
    match crew.ledger.release(stand.job, stand.epoch).await {
        Ok(Written::Committed) => end,
        Ok(Written::Fenced) | Err(_) => RunEnd::Fenced,
    }
}
