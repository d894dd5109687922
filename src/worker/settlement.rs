//! Decide, then do: what happened to a delivery is data, what follows is a pure function of it, and one place does it.

use tokio::time::{Duration, sleep};
use tracing::{Instrument, Span, debug, error, warn};

use super::{Crew, run::RunEnd};
use crate::{
    broker::{Delivery, Letter, Marks, Place, SendError, Settled},
    fail_point::cut,
    job::{BadMessage, Fingerprint, Generation, JobId},
    ledger::{Answer, LedgerError},
    metrics::DeliveryEnd,
    retry::Ladder,
    telemetry::traces,
};

/// What happened to a delivery.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is no job.
    Bad(BadMessage),
    /// The ledger did not answer its claim: Postgres does not take the job, or the worker is leaving.
    Unclaimed(LedgerError),
    /// Its job is not ours to run.
    Answered(Answer, Fingerprint),
    /// Its job was run.
    Ran(RunEnd),
    /// This process runs the job under another delivery.
    OneTooMany,
    /// It was not looked at: the worker is leaving.
    Untouched,
}

impl Outcome {
    /// What it is counted as.
    fn end(&self) -> DeliveryEnd {
        match self {
            Outcome::Bad(_) | Outcome::Unclaimed(LedgerError::Refused(_)) => DeliveryEnd::Refused,
            Outcome::Unclaimed(_) => DeliveryEnd::Unclaimed,
            Outcome::OneTooMany => DeliveryEnd::Duplicate,
            Outcome::Untouched => DeliveryEnd::HandedBack,
            Outcome::Answered(answer, _) => match answer {
                Answer::Conflict { .. } | Answer::Foreign { .. } | Answer::ParkAgain { .. } => {
                    DeliveryEnd::Refused
                }
                Answer::Finished | Answer::Stale | Answer::Mine => DeliveryEnd::Duplicate,
                Answer::Superseded { .. } => DeliveryEnd::Superseded,
                Answer::Busy => DeliveryEnd::Busy,
                Answer::Suspect { .. } => DeliveryEnd::Suspect,
                Answer::Claimed(_) => DeliveryEnd::HandedBack,
            },
            Outcome::Ran(end) => match end {
                RunEnd::Finished => DeliveryEnd::Done,
                RunEnd::Retrying { .. } => DeliveryEnd::Retrying,
                RunEnd::GivenUp { .. } => DeliveryEnd::Parked,
                RunEnd::HandedBack => DeliveryEnd::HandedBack,
                RunEnd::HandedOver => DeliveryEnd::HandedOver,
                RunEnd::Fenced => DeliveryEnd::Fenced,
            },
        }
    }
}

/// Ends a delivery as its outcome asks for, and answers with what it is counted as. `marks` are the message's own, with the
/// broker's flag in `redelivered`; `span` is the delivery's.
pub(super) async fn settle(
    crew: &Crew,
    delivery: Delivery,
    outcome: Outcome,
    marks: Marks,
    job: Option<JobId>,
    span: &Span,
) -> DeliveryEnd {
    let end = outcome.end();
    let settlement = Settlement::of(outcome, marks, &crew.config.ladder);
    if let Some(parked) = settlement.parked() {
        traces::failed(span, parked.reason, &parked.error);
    }
    match settlement.carry_out(crew, delivery, job).await {
        Settled::Done => end,
        Settled::Lost => DeliveryEnd::Lost,
    }
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Settlement {
    /// Nothing is left to do.
    Acknowledge,
    /// It goes back to the queue as it is.
    Requeue,
    /// A copy replaces it: confirmed first, then the original is acknowledged.
    Replace(Copy),
}

/// The copy that replaces a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Copy {
    pub(super) place: Place,
    pub(super) generation: Generation,
    pub(super) hops: u32,
    /// Carries the broker's redelivered flag on, which a copy would lose.
    pub(super) redelivered: bool,
    pub(super) parked: Option<Parked>,
    /// Whether it is the job's own copy, which the ledger waits to hear of, and not one of a message that is refused.
    pub(super) of_the_job: bool,
}

/// Why a copy lies in the dead queue.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parked {
    pub(super) reason: &'static str,
    pub(super) error: String,
    pub(super) task: Option<String>,
    pub(super) attempts: Option<u32>,
}

impl Copy {
    fn to(place: Place, generation: Generation) -> Self {
        Self {
            place,
            generation,
            hops: 0,
            redelivered: false,
            parked: None,
            of_the_job: true,
        }
    }

    fn park(generation: Generation, reason: &'static str, error: String) -> Self {
        let parked = Parked {
            reason,
            error,
            task: None,
            attempts: None,
        };
        Self {
            parked: Some(parked),
            ..Self::to(Place::Dead, generation)
        }
    }

    fn refuse(generation: Generation, reason: &'static str, error: String) -> Self {
        Self {
            of_the_job: false,
            ..Self::park(generation, reason, error)
        }
    }

    /// The same generation waits a little on a short rung, longer at each hop.
    fn wait(marks: Marks, ladder: &Ladder) -> Self {
        Self {
            hops: marks.hops.saturating_add(1),
            redelivered: marks.redelivered,
            ..Self::to(Place::Rung(ladder.hop(marks.hops)), marks.generation)
        }
    }
}

impl Settlement {
    /// What follows. `marks` are the message's own, with the broker's flag in `redelivered`.
    pub(super) fn of(outcome: Outcome, marks: Marks, ladder: &Ladder) -> Self {
        let park =
            |reason, error| Settlement::Replace(Copy::refuse(marks.generation, reason, error));
        match outcome {
            Outcome::Bad(bad) => park(bad.reason, bad.sentence),
            Outcome::Unclaimed(LedgerError::Refused(sentence)) => park("unstorable", sentence),
            Outcome::Unclaimed(_) => Settlement::Requeue,
            Outcome::OneTooMany => Settlement::Acknowledge,
            Outcome::Untouched => Settlement::Requeue,
            Outcome::Answered(answer, fingerprint) => match answer {
                Answer::Conflict { stored } => park(
                    "conflict",
                    format!(
                        "the ledger knows a job of this id with another content: its fingerprint is {stored}, this message's is \
                         {fingerprint}. Give a new job a new id"
                    ),
                ),
                Answer::Foreign { generation } => park(
                    "foreign_generation",
                    format!(
                        "the message says that it is generation {} of its job, and the ledger has given out none beyond {generation}: its header \
                         `cliquet-generation` was written by somebody else, or the ledger is older than the message. `cliquet retry` sends the \
                         job's own message",
                        marks.generation.0,
                        generation = generation.0,
                    ),
                ),
                Answer::ParkAgain { generation, error } => {
                    Settlement::Replace(Copy::park(generation, "given_up", error))
                }
                Answer::Finished | Answer::Stale => Settlement::Acknowledge,
                Answer::Superseded { generation, delay } => {
                    Settlement::Replace(Copy::to(Place::Rung(ladder.snap(delay)), generation))
                }
                // Somebody else runs it, or it waits until it may run alone.
                Answer::Busy | Answer::Suspect { .. } => {
                    Settlement::Replace(Copy::wait(marks, ladder))
                }
                // Neither reaches this place: the run has them. The next claim decides.
                Answer::Claimed(_) | Answer::Mine => Settlement::Requeue,
            },
            Outcome::Ran(end) => match end {
                RunEnd::Finished => Settlement::Acknowledge,
                RunEnd::Retrying { generation, rung } => {
                    Settlement::Replace(Copy::to(Place::Rung(rung), generation))
                }
                RunEnd::GivenUp {
                    generation,
                    reason,
                    error,
                    task,
                    attempts,
                } => {
                    let parked = Parked {
                        reason,
                        error,
                        task: Some(task),
                        attempts: Some(attempts),
                    };
                    Settlement::Replace(Copy {
                        parked: Some(parked),
                        ..Copy::to(Place::Dead, generation)
                    })
                }
                RunEnd::HandedBack | RunEnd::Fenced => Settlement::Requeue,
                RunEnd::HandedOver => Settlement::Replace(Copy::to(Place::Work, marks.generation)),
            },
        }
    }

    /// Why its copy lies in the dead queue, if it does.
    fn parked(&self) -> Option<&Parked> {
        match self {
            Settlement::Replace(copy) => copy.parked.as_ref(),
            Settlement::Acknowledge | Settlement::Requeue => None,
        }
    }

    /// Does it. The only place that acknowledges.
    async fn carry_out(self, crew: &Crew, delivery: Delivery, job: Option<JobId>) -> Settled {
        cut!(Settling);
        let settled = match self {
            Settlement::Acknowledge => delivery.acknowledge().await,
            Settlement::Requeue => give_back(&delivery).await,
            // Boxed: most deliveries need no copy, and what sends one is larger than all that they need.
            Settlement::Replace(copy) => match Box::pin(send(crew, &delivery, &copy)).await {
                Ok(()) => {
                    if let Some(parked) = &copy.parked {
                        crew.metrics.parked(parked.reason);
                    }
                    if let Some(job) = job.filter(|_| copy.of_the_job) {
                        crew.ledger.sent(job, copy.generation);
                    }
                    delivery.acknowledge().await
                }
                // Not acknowledged: the message comes back, and its next claim sends the copy again.
                Err(_) => give_back(&delivery).await,
            },
        };
        if settled == Settled::Lost {
            debug!(
                job.id = job.map(tracing::field::display),
                "the delivery was lost before it was settled; the broker delivers it again"
            );
        }
        settled
    }
}

/// Puts a delivery back into its queue as it is: whoever receives it next decides by its claim.
pub(super) async fn give_back(delivery: &Delivery) -> Settled {
    delivery.requeue().await
}

async fn send(crew: &Crew, delivery: &Delivery, copy: &Copy) -> Result<(), SendError> {
    let mut letter = Letter::copy_of(delivery)
        .generation(copy.generation)
        .hops(copy.hops)
        .redelivered(copy.redelivered);
    if let Some(parked) = &copy.parked {
        if parked.task.is_none() {
            warn!(
                message.id = delivery.message_id(),
                reason = parked.reason,
                error = parked.error,
                "the message is parked without a run"
            );
        }
        letter = letter.parked(
            parked.reason,
            &parked.error,
            parked.task.as_deref(),
            parked.attempts,
        );
    }
    let (span, letter) = crew.tracing.publish(&crew.publisher, &copy.place, letter);
    // Not beyond the drain's time: the message goes back then, and whoever has it next sends its copy.
    let sent = crew
        .publisher
        .deliver(&copy.place, &letter, &crew.deadline)
        .instrument(span.clone())
        .await;
    traces::sent(&span, &sent);
    drop(span);
    if let Err(error) = &sent
        && !error.again_helps()
        && !crew.deadline.is_cancelled()
    {
        error!(message.id = delivery.message_id(), %error, "a copy cannot be sent; the message stays in its queue");
        // Without a pause a message that cannot be copied would come and go as fast as the network allows.
        tokio::select! {
            () = sleep(Duration::from_secs(30)) => {}
            () = crew.deadline.cancelled() => {}
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(generation: i64, hops: u32, redelivered: bool) -> Marks {
        Marks {
            generation: Generation(generation),
            hops,
            redelivered,
        }
    }

    fn answered(answer: Answer) -> Settlement {
        Settlement::of(
            Outcome::Answered(answer, Fingerprint([7; 32])),
            marks(3, 0, true),
            &Ladder::default(),
        )
    }

    #[test]
    fn a_copy_of_the_current_generation_is_acknowledged_only_when_the_job_is_over_or_older() {
        assert_eq!(answered(Answer::Finished), Settlement::Acknowledge);
        assert_eq!(answered(Answer::Stale), Settlement::Acknowledge);
        let Settlement::Replace(copy) = answered(Answer::Busy) else {
            panic!("Busy must not be acknowledged")
        };
        assert_eq!(copy.place, Place::Rung(Ladder::default().rungs()[0]));
        assert_eq!(
            (copy.generation, copy.hops, copy.redelivered),
            (Generation(3), 1, true)
        );
    }

    #[test]
    fn a_superseded_message_sends_its_successor_again() {
        let superseded = Answer::Superseded {
            generation: Generation(4),
            delay: Duration::from_secs(5),
        };
        let Settlement::Replace(copy) = answered(superseded) else {
            panic!("Superseded must not be acknowledged")
        };
        assert_eq!(copy.generation, Generation(4));
        assert_eq!(
            copy.place,
            Place::Rung(Ladder::default().snap(Duration::from_secs(5)))
        );
    }

    #[test]
    fn a_fenced_run_and_a_stopped_worker_put_the_message_back() {
        for end in [RunEnd::Fenced, RunEnd::HandedBack] {
            assert_eq!(
                Settlement::of(Outcome::Ran(end), marks(0, 0, false), &Ladder::default()),
                Settlement::Requeue
            );
        }
    }

    #[test]
    fn a_conflict_is_parked_with_both_fingerprints() {
        let Settlement::Replace(copy) = answered(Answer::Conflict {
            stored: Fingerprint([9; 32]),
        }) else {
            panic!()
        };
        let parked = copy.parked.unwrap();
        assert_eq!((copy.place, parked.reason), (Place::Dead, "conflict"));
        assert!(
            parked.error.contains("090909090909") && parked.error.contains("070707070707"),
            "{}",
            parked.error
        );
    }
}
