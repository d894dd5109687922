//! How an attempt enters the ledger: committed as SUCCESS, written as a failure, or, while its handler is braked, put off.

use serde_json::value::RawValue;
use tracing::{debug, info, warn};

use super::{
    Crew,
    brake::{Go, Wait},
    run::RunEnd,
};
use crate::{
    job::JobMessage,
    ledger::{Advance, Claimed, Committed, Defer, Fail, LedgerError, Next, Open, Stand, Written},
    metrics::TaskEnd,
    task::{TaskError, WhatNext},
    telemetry::traces::TaskSpan,
};

/// Commits a task's SUCCESS: with the handler's own writes when it asked for a transaction, in a group otherwise.
///
/// # Errors
/// The failure that the attempt becomes, when nothing of it could be kept.
pub(super) async fn commit(
    crew: &Crew,
    stand: Stand,
    result: Box<RawValue>,
    transaction: Option<Open>,
    next: Next,
) -> Result<Written, TaskError> {
    let advance = Advance {
        stand,
        result,
        next,
    };
    let Some(transaction) = transaction else {
        return match crew.ledger.advance(advance).await {
            Ok(written) => Ok(written),
            Err(LedgerError::Refused(sentence)) => Err(TaskError::permanent(format!(
                "the task's result cannot be stored: {sentence}"
            ))),
            // The worker is leaving with the outcome unknown: the next claim finds out.
            Err(_) => Ok(Written::Fenced),
        };
    };
    match crew.ledger.commit_with(&advance, transaction).await {
        Committed::Yes => Ok(Written::Committed),
        Committed::Fenced => Ok(Written::Fenced),
        Committed::No(sentence) => Err(TaskError::retry(format!(
            "the task's transaction could not be committed, nothing of it is kept: {sentence}"
        ))),
        // Boxed: it is rare, and larger than all that every task needs.
        Committed::Unknown(sentence) => Box::pin(crew.ledger.fate(stand)).await.ok_or_else(|| {
            TaskError::retry(format!("the connection to Postgres died before the task's transaction was committed: {sentence}"))
        }),
    }
}

/// What the failure of an attempt leads to: one that is a probe of a braked handler is put off, any other is written.
pub(super) async fn failed(
    crew: &Crew,
    claimed: &Claimed,
    stand: Stand,
    message: &JobMessage,
    error: TaskError,
    go: Go<'_>,
    traced: TaskSpan,
) -> RunEnd {
    traced.failed(&error);
    let (end, again) = match go.failed(stand.job, &error) {
        Some(wait) => {
            let end = defer(crew, claimed, stand, message, wait).await;
            (end, TaskEnd::Deferred)
        }
        None => {
            let end = fail(crew, claimed, stand, message, error, None).await;
            (end, TaskEnd::Retried)
        }
    };
    match end {
        RunEnd::Retrying { .. } => traced.ended(again),
        RunEnd::GivenUp { .. } => traced.ended(TaskEnd::GivenUp),
        _ => {}
    }
    end
}

/// Puts a task of a braked handler off; it waits on a rung, and no attempt is used up.
pub(super) async fn defer(
    crew: &Crew,
    claimed: &Claimed,
    stand: Stand,
    message: &JobMessage,
    wait: Wait,
) -> RunEnd {
    let rung = crew.config.ladder.snap(wait.delay);
    debug!(
        job.id = %stand.job, task.position = stand.position, delay_ms = rung.delay().as_millis() as u64,
        "the task waits: its handler is braked"
    );
    let write = Defer {
        stand,
        reason: wait.sentence,
        retry_in: rung.delay(),
        failure: wait.probe,
    };
    match crew.ledger.defer(write).await {
        Ok(Written::Committed) => {
            count(crew, stand, message, TaskEnd::Deferred);
            RunEnd::Retrying {
                generation: claimed.generation.next(),
                rung,
            }
        }
        Ok(Written::Fenced) | Err(_) => fenced(crew, stand, message),
    }
}

/// Counts an attempt by what the ledger says of it.
fn count(crew: &Crew, stand: Stand, message: &JobMessage, end: TaskEnd) {
    if let Some(spec) = message.spec(stand.position) {
        crew.metrics.handler(&spec.handler).task(end);
    }
}

fn fenced(crew: &Crew, stand: Stand, message: &JobMessage) -> RunEnd {
    count(crew, stand, message, TaskEnd::Unfinished);
    RunEnd::Fenced
}

/// Writes a failure and decides what it leads to: a rung of the ladder, or the dead queue.
pub(super) async fn fail(
    crew: &Crew,
    claimed: &Claimed,
    stand: Stand,
    message: &JobMessage,
    error: TaskError,
    reason: Option<&'static str>,
) -> RunEnd {
    let Some(spec) = message.spec(stand.position) else {
        return RunEnd::Fenced; // the fingerprint rules it out: a claim is of a job with these tasks
    };
    let options = crew
        .registry
        .get(&spec.handler)
        .map(|registered| registered.options)
        .unwrap_or_default();
    let policy = options.retry.unwrap_or(crew.config.retry);
    let most = spec.max_attempts.unwrap_or(policy.max_attempts);
    let delay = match error.what_next() {
        WhatNext::Permanent => Err(reason.unwrap_or("permanent")),
        _ if stand.attempt >= most => Err("exhausted"),
        WhatNext::RetryAfter(delay) => Ok(delay),
        WhatNext::Retry => Ok(policy.delay(stand.attempt)),
    };
    let rung = delay.map(|delay| crew.config.ladder.snap(delay));

    let error = error.message().to_owned();
    let write = Fail {
        stand,
        error: error.clone(),
        retry_in: rung.ok().map(|rung| rung.delay()),
    };
    match crew.ledger.fail(write).await {
        Ok(Written::Committed) if rung.is_ok() => count(crew, stand, message, TaskEnd::Retried),
        Ok(Written::Committed) => count(crew, stand, message, TaskEnd::GivenUp),
        Ok(Written::Fenced) | Err(_) => return fenced(crew, stand, message),
    }
    let generation = claimed.generation.next();
    match rung {
        Ok(rung) => {
            info!(
                job.id = %stand.job, job.kind = message.kind, task.position = stand.position, task.label = spec.label,
                task.attempt = stand.attempt, attempts = most, delay_ms = rung.delay().as_millis() as u64, error,
                "the task failed and is tried again"
            );
            RunEnd::Retrying { generation, rung }
        }
        Err(reason) => {
            warn!(
                job.id = %stand.job, job.kind = message.kind, task.position = stand.position, task.label = spec.label,
                task.attempt = stand.attempt, attempts = most, reason, error, "the job is given up and parked"
            );
            let task = format!(
                "{} ({}/{})",
                spec.label,
                stand.position,
                message.tasks.len()
            );
            RunEnd::GivenUp {
                generation,
                reason,
                error,
                task,
                attempts: stand.attempt,
            }
        }
    }
}
