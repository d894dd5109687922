//! The reconciler makes ledger and broker agree: it sends the message of every job that the ledger says is owed one.
//!
//! It is repair (a copy lost between commit and confirm, a broker that lost its disk, a holder that died without a
//! redelivery), outbox (a job enqueued in SQL) and scheduler in one. One publish too many is harmless: it dies at the claim.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::{Crew, about, prune::Progress};
use crate::{
    broker::{Letter, Place, SendError},
    fail_point::cut,
    job::{Generation, JobId, JobMessage},
    ledger::{LedgerError, Owed, Reconciling, What},
    metrics::Repair,
    telemetry::traces,
};

/// A job that is due has so long to be claimed before its message is taken for lost.
const GRACE: Duration = Duration::from_secs(5);
/// While messages wait in the work queue, a due job's is most likely among them: only after this is one sent in any case.
const QUEUED: Duration = Duration::from_secs(600);
/// A job that was looked after has so long before it is looked after again.
const AGAIN: Duration = Duration::from_secs(60);
/// The first pause before the message of an abandoned job is sent once more.
const FIRST_AGAIN: Duration = Duration::from_millis(500);

/// Looks again and again until `stop`. What pruning takes comes out of the pause.
pub(super) async fn reconcile(crew: Arc<Crew>, stop: CancellationToken) {
    let mut memory = Memory::default();
    let (mut failures, mut pruned) = (0u32, Duration::ZERO);
    while stop
        .run_until_cancelled(about(crew.config.reconcile_every.saturating_sub(pruned)))
        .await
        .is_some()
    {
        pruned = Duration::ZERO;
        match look(&crew, &mut memory, &stop).await {
            Ok(spent) => (failures, pruned) = (0, spent),
            Err(error) => {
                if failures.is_multiple_of(20) {
                    warn!(%error, failures, "the reconciler cannot look; it goes on trying");
                }
                failures += 1;
            }
        }
    }
}

/// What this process remembers between its looks.
#[derive(Default)]
struct Memory {
    /// When the message of an abandoned job was last sent, and how often.
    abandoned: HashMap<JobId, (Instant, u32)>,
    /// The generations that were parked again, and when: the ledger may learn of it later than the next look asks.
    parked: HashMap<JobId, (Generation, Instant)>,
    /// The connection on which the broker was last asked whether it has its memory.
    asked: Option<u64>,
    /// How far it is with deleting old jobs.
    pruning: Progress,
}

/// One look; answers with how long old jobs were deleted afterwards.
async fn look(
    crew: &Crew,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Result<Duration, LedgerError> {
    let Some(mut reconciling) =
        Reconciling::begin(crew.ledger.desk(), crew.ledger.holder()).await?
    else {
        return Ok(Duration::ZERO); // another worker of this queue does it
    };
    let looked = look_alone(crew, &mut reconciling, memory, stop).await;
    let pruned = match looked {
        Ok(()) => {
            memory
                .pruning
                .go_on(&crew.config, &mut reconciling, stop)
                .await
        }
        Err(_) => Duration::ZERO,
    };
    reconciling.end().await;
    looked.map(|()| pruned)
}

async fn look_alone(
    crew: &Crew,
    reconciling: &mut Reconciling,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Result<(), LedgerError> {
    if !crew.publisher.is_connected() || crew.publisher.is_blocked() {
        return Ok(());
    }
    look_for_the_mark(crew, reconciling, memory).await?;
    let mut owed = reconciling.owed(GRACE).await?;
    if owed
        .iter()
        .any(|owed| matches!(owed.what, What::Overdue { .. }))
    {
        let waiting = crew.publisher.depth(&Place::Work).await.unwrap_or(u32::MAX);
        if waiting > 0 {
            owed.retain(|owed| !matches!(owed.what, What::Overdue { by } if by < QUEUED));
        }
    }
    owed.extend(abandoned(crew, reconciling, memory).await?);
    memory.parked.retain(|_, (_, at)| at.elapsed() < AGAIN);
    owed.retain(|owed| {
        let known = memory.parked.get(&owed.job);
        owed.what != What::Unparked || known.is_none_or(|(known, _)| *known != owed.generation)
    });
    // What is parked waits for people; jobs that can go on come first.
    owed.sort_by_key(|owed| owed.what == What::Unparked);
    cut!(Reconciling if !owed.is_empty());
    let (mut looked_after, mut refused) = (Vec::new(), [false; 2]);
    for owed in owed {
        if stop.is_cancelled() {
            break;
        }
        // A queue that takes nothing must not keep what belongs into the other.
        let refused = &mut refused[usize::from(owed.what == What::Unparked)];
        if *refused {
            continue;
        }
        // What was sent before a fault is put off all the same, or the next look would send it again.
        let looked = match send(crew, reconciling, owed).await {
            Ok(looked) => looked,
            Err(error) => {
                let _ = reconciling.put_off(&looked_after, AGAIN).await;
                return Err(error);
            }
        };
        match (looked, owed.what) {
            (Looked::Sent, What::Abandoned) => {
                let (last, times) = memory
                    .abandoned
                    .entry(owed.job)
                    .or_insert((Instant::now(), 0));
                (*last, *times) = (Instant::now(), *times + 1);
            }
            (Looked::Sent, What::Unparked) => {
                let known = (owed.generation, Instant::now());
                memory.parked.insert(owed.job, known);
            }
            (Looked::Sent, _) => looked_after.push(owed.job),
            (Looked::Over, _) => {}
            (Looked::Later, _) => *refused = true,
        }
    }
    if !looked_after.is_empty() {
        reconciling.put_off(&looked_after, AGAIN).await?;
        cut!(PutOff);
    }
    Ok(())
}

/// Asks the broker, once for each connection, whether it remembers. If it does not it has lost its disk: jobs that wait or
/// run are found when they are due, but of those that are parked the ledger thinks that their copies are there.
async fn look_for_the_mark(
    crew: &Crew,
    reconciling: &mut Reconciling,
    memory: &mut Memory,
) -> Result<(), LedgerError> {
    let Some((connection, age)) = crew.publisher.connection() else {
        return Ok(());
    };
    // Who does not declare the queues may not be allowed to leave a mark.
    if !crew.config.declare || memory.asked == Some(connection) {
        return Ok(());
    }
    let marked = match crew.publisher.is_marked(connection).await {
        Ok(false) => {
            // What was parked since the connection was made is not lost.
            let jobs = reconciling.forgotten(age).await?;
            if jobs > 0 {
                warn!(
                    jobs,
                    "the broker does not remember this queue: what was given up is parked again"
                );
            }
            cut!(Forgotten);
            // Afterwards, or a death in between would leave a mark and no copies. On the same connection: a broker that has
            // lost its disk once more meanwhile is to be asked anew.
            let marked = crew.publisher.mark(connection).await;
            cut!(Marked if marked.is_ok());
            marked
        }
        Ok(true) => Ok(()),
        Err(error) => Err(error),
    };
    match marked {
        Ok(()) => memory.asked = Some(connection),
        Err(error) => debug!(%error, "the mark is not looked for; the next look tries again"),
    }
    Ok(())
}

/// Jobs of dead workers.
///
/// A message that is sent for such a job may well be delivered to the very worker that hangs: it is sent again soon, and
/// then at doubling pauses, until a consumer that is alive has it.
async fn abandoned(
    crew: &Crew,
    reconciling: &mut Reconciling,
    memory: &mut Memory,
) -> Result<Vec<Owed>, LedgerError> {
    let mut held = reconciling.abandoned(crew.ledger.holder()).await?;
    memory
        .abandoned
        .retain(|job, _| held.iter().any(|owed| owed.job == *job));
    held.retain(|owed| match memory.abandoned.get(&owed.job) {
        Some((last, times)) => {
            last.elapsed() > QUEUED.min(FIRST_AGAIN * 2u32.saturating_pow((*times).min(16)))
        }
        None => true,
    });
    Ok(held)
}

/// What became of a look at one job.
enum Looked {
    /// Its message is confirmed.
    Sent,
    /// There is nothing to send: the job is gone, or it can never be sent and is given up.
    Over,
    /// The broker does not take it now. Another worker may reach it: the right to look is not kept for waiting.
    Later,
}

/// Sends the job's message at the generation that the ledger has.
async fn send(
    crew: &Crew,
    reconciling: &mut Reconciling,
    owed: Owed,
) -> Result<Looked, LedgerError> {
    let stored = match reconciling.message(owed.job).await? {
        Ok(Some(stored)) => stored,
        // Deleted in between, or a job without tasks.
        Ok(None) => {
            return condemn(
                crew,
                reconciling,
                owed,
                "the ledger has no task of this job",
            )
            .await;
        }
        Err(sentence) => return condemn(crew, reconciling, owed, &sentence).await,
    };
    let body = stored.message.encode();
    if let Err(bad) = JobMessage::decode(&body, None, None) {
        return condemn(crew, reconciling, owed, &bad.sentence).await;
    }
    let letter =
        Letter::new(body, &owed.job.to_string(), &stored.message.kind).generation(owed.generation);
    let (place, letter) = match owed.what {
        What::Unparked => {
            let error = stored.error.as_deref().unwrap_or_default();
            (Place::Dead, letter.parked("given_up", error, None, None))
        }
        _ => (Place::Work, letter),
    };
    let (span, letter) = crew.tracing.publish(&crew.publisher, &place, letter);
    let sent = crew
        .publisher
        .send(&place, &letter)
        .instrument(span.clone())
        .await;
    traces::sent(&span, &sent);
    drop(span);
    match sent {
        Ok(()) => {
            cut!(ReconciledOne);
            crew.ledger.sent(owed.job, owed.generation);
            crew.metrics.repaired(match owed.what {
                What::Enqueued => Repair::Enqueued,
                What::Overdue { .. } => Repair::Overdue,
                What::Abandoned => Repair::Abandoned,
                What::Unparked => Repair::Unparked,
            });
            match owed.what {
                What::Enqueued => {
                    debug!(job.id = %owed.job, "an enqueued job is sent for the first time");
                }
                what => info!(job.id = %owed.job, ?what, "the job's message is sent again"),
            }
            Ok(Looked::Sent)
        }
        Err(error @ SendError::TooLarge { .. }) => {
            condemn(crew, reconciling, owed, &error.to_string()).await
        }
        Err(error) => {
            // A connection that is gone is told by its own log; what people have to mend is told here.
            match &error {
                SendError::Unavailable { .. } | SendError::Cancelled { .. } => {
                    debug!(job.id = %owed.job, %error, "the job's message is not sent; the next look tries again");
                }
                _ => {
                    warn!(job.id = %owed.job, %error, "the job's message is not sent; the next look tries again");
                }
            }
            Ok(Looked::Later)
        }
    }
}

/// A job that could never be sent must not stand in the way of the others at every look.
async fn condemn(
    crew: &Crew,
    reconciling: &mut Reconciling,
    owed: Owed,
    sentence: &str,
) -> Result<Looked, LedgerError> {
    let sentence = format!("this job cannot be sent to a worker: {sentence}");
    warn!(job.id = %owed.job, error = sentence, "a job in the ledger is given up");
    reconciling.condemn(owed.job, &sentence).await?;
    crew.metrics.repaired(Repair::Condemned);
    Ok(Looked::Over)
}
