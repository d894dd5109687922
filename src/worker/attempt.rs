//! One attempt of one task: the handler runs within its time limit, and whatever it does has an outcome.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Crew;
use crate::{
    fail_point::cut,
    job::{Position, TaskSpec, storable},
    ledger::{HandlerTransaction, Open},
    task::{JobInHand, MAX_RESULTS_BYTES, TaskContext, TaskError},
};
use std::sync::Arc;

/// The largest result that a task may answer, in bytes.
pub(super) const MAX_RESULT_BYTES: usize = 1024 * 1024;

/// Results so small that not even those of the largest job add up to the limit.
const SMALL: usize = MAX_RESULTS_BYTES / crate::job::MAX_TASKS;

/// How an attempt ended.
pub(super) enum Ended {
    /// The handler did it; its transaction, if it asked for one, is still to be committed.
    Done {
        result: Box<RawValue>,
        transaction: Option<Open>,
    },
    /// It failed; nothing it wrote through its transaction is kept.
    Failed(TaskError),
    /// The drain's deadline came first: the attempt does not count.
    CutShort,
    /// The job is no longer ours.
    Lost,
}

/// Runs the handler once.
pub(super) async fn attempt(
    crew: &Crew,
    job: &Arc<JobInHand>,
    spec: &TaskSpec,
    position: Position,
    attempt: u32,
    cancellation: &CancellationToken,
) -> Ended {
    let Some(registered) = crew.registry.get(&spec.handler) else {
        let known = crew.registry.names().join(", ");
        return Ended::Failed(TaskError::retry(format!(
            "no handler named {:?} on this worker ({}); it knows: {}",
            spec.handler,
            crew.ledger.holder().name,
            if known.is_empty() { "none" } else { &known },
        )));
    };
    if cancellation.is_cancelled() {
        return Ended::Lost;
    }
    let transaction = crew.ledger.transaction();
    let task = TaskContext {
        job: job.clone(),
        position,
        attempt,
        state: crew.state.clone(),
        cancellation: cancellation.child_token(),
        transaction: transaction.clone(),
    };
    let limit = spec.timeout.or(registered.options.timeout);
    cut!(BeforeHandler);

    // The handler owns its transaction's calls and may be dropped in the midst of one. That is why a transaction whose
    // handler was dropped is abandoned (its connection is closed) and never used again.
    let running = AssertUnwindSafe(async { registered.handler.run(task).await }).catch_unwind();
    let ended = tokio::select! {
        biased;
        outcome = running => match outcome {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => {
                if let Ok(Some(open)) = transaction.take() {
                    open.roll_back().await;
                }
                Err(Ended::Failed(error))
            }
            Err(panic) => Err(Ended::Failed(TaskError::retry(format!("the handler panicked: {}", words_of(&*panic))))),
        },
        () = cancellation.cancelled() => Err(Ended::Lost),
        () = crew.deadline.cancelled() => Err(Ended::CutShort),
        () = expiry(limit) => Err(Ended::Failed(TaskError::retry(format!(
            "the attempt exceeded its time limit of {}",
            humantime::format_duration(limit.unwrap_or_default())
        )))),
    };
    cut!(AfterHandler);
    match ended {
        Ok(result) => finish(result, job, &transaction).await,
        Err(ended) => {
            transaction.abandon();
            ended
        }
    }
}

/// What the handler answered is kept only if Postgres can store it and every reader can read it.
async fn finish(result: Box<RawValue>, job: &JobInHand, transaction: &HandlerTransaction) -> Ended {
    let open = match transaction.take() {
        Ok(open) => open,
        Err(_lent) => {
            return Ended::Failed(TaskError::retry(
                "the handler returned while a part of it still held its transaction; nothing it wrote is kept. \
                 Let the transaction go out of scope before the handler returns",
            ));
        }
    };
    match unfit(&result, job) {
        None => Ended::Done {
            result,
            transaction: open,
        },
        Some(sentence) => {
            if let Some(open) = open {
                open.roll_back().await;
            }
            Ended::Failed(TaskError::permanent(sentence))
        }
    }
}

/// Why a result cannot be kept, if it cannot.
fn unfit(result: &RawValue, job: &JobInHand) -> Option<String> {
    let text = result.get();
    if text.len() > MAX_RESULT_BYTES {
        return Some(format!(
            "the handler's result has {} bytes; the limit is {MAX_RESULT_BYTES}. Store large data elsewhere and answer its address",
            text.len()
        ));
    }
    if text.len() > SMALL && job.results_bytes() + text.len() > MAX_RESULTS_BYTES {
        return Some(format!(
            "the job's results have more than {MAX_RESULTS_BYTES} bytes together. Store large data elsewhere and answer its address"
        ));
    }
    if plain(text) {
        return None;
    }
    storable("result", result)
        .err()
        .map(|bad| format!("the handler's result cannot be stored: {bad}"))
}

/// Whether nothing in a JSON text could be unfit, so that it need not be read whole: no escape that can hide a NUL or half a
/// character, nothing nested deeper than readers go, no number that is larger than they can hold.
fn plain(text: &str) -> bool {
    let (mut open, mut digits) = (0, 0);
    for pair in text.as_bytes().windows(2) {
        open += usize::from(matches!(pair[0], b'[' | b'{'));
        digits = if pair[0].is_ascii_digit() {
            digits + 1
        } else {
            0
        };
        let exponent = digits > 0 && matches!(pair[1], b'e' | b'E');
        if pair == b"\\u" || exponent || open > 100 || digits > 300 {
            return false;
        }
    }
    true
}

async fn expiry(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// What a panic said.
fn words_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
