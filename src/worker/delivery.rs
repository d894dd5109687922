//! One delivery: decode, claim, run, settle.
//!
//! ```text
//! decode ─► claim ─► run ─► settle
//!   │bad      │Finished, Stale, Mine │Superseded            │Busy, Suspect           │Conflict, Foreign, ParkAgain
//!   ▼         ▼                      ▼                      ▼                        ▼
//!  park     acknowledge            send the successor     wait on a short rung     park
//! ```
//!
//! What each answer means stands in the crate documentation's table; what follows from it in [`settlement`](super::settlement).

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{Instrument, Span, debug, info, warn};

use super::{
    Crew,
    in_hand::Adoption,
    run::run,
    settlement::{Outcome, settle},
};
use crate::{
    broker::{Delivery, Marks},
    fail_point::cut,
    job::{BadMessage, JobMessage},
    ledger::{Answer, Claim, Claimed, Way},
    metrics::{DeliveryEnd, Word},
    telemetry::traces,
};

/// A redelivery may be faster than Postgres notices that the former holder's socket is gone: so long it is asked again
/// here, before a Busy copy takes the way over a rung.
const LOCK_MAY_FALL: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(120),
];

/// Takes a delivery to its end, which is counted.
pub(super) async fn handle(crew: Arc<Crew>, delivery: Delivery) {
    let span = crew.tracing.process(&crew.config.queue, &delivery);
    // Pinned: otherwise all of it is moved into the span.
    let end = pin!(take(&crew, delivery, &span))
        .instrument(span.clone())
        .await;
    crew.metrics.delivery(end);
    traces::ended(&span, end.as_str());
}

async fn take(crew: &Arc<Crew>, delivery: Delivery, span: &Span) -> DeliveryEnd {
    let (message, marks) = match decode(&delivery) {
        Ok(decoded) => decoded,
        Err(bad) => {
            let outcome = Outcome::Bad(bad);
            return settle(crew, delivery, outcome, Marks::default(), None, span).await;
        }
    };
    let job = message.id;
    traces::of_job(span, job);
    match follow(crew, delivery, message, marks).await {
        Ok((delivery, outcome)) if delivery.is_alive() || matches!(outcome, Outcome::Ran(_)) => {
            settle(crew, delivery, outcome, marks, Some(job), span).await
        }
        Ok(_) => DeliveryEnd::Lost,
        Err(gone) => gone,
    }
}

/// The message and its marks, the broker's own flag among them.
fn decode(delivery: &Delivery) -> Result<(Arc<JobMessage>, Marks), BadMessage> {
    let message = JobMessage::decode(
        delivery.body(),
        delivery.message_id(),
        delivery.message_type(),
    )?;
    let marks = delivery.marks()?;
    cut!(Decoded);
    Ok((
        Arc::new(message),
        Marks {
            redelivered: marks.redelivered || delivery.redelivered(),
            ..marks
        },
    ))
}

/// Claims the job and runs it. Answers with the delivery that is to be settled.
///
/// # Errors
/// There is none any more: a run has adopted it, or it is lost.
async fn follow(
    crew: &Arc<Crew>,
    mut delivery: Delivery,
    message: Arc<JobMessage>,
    marks: Marks,
) -> Result<(Delivery, Outcome), DeliveryEnd> {
    let mut patience = LOCK_MAY_FALL.iter();
    let mut alone = None;
    loop {
        // Registered before it is claimed: a second delivery of this job waits here for the first one's answer.
        let turn = crew.in_hand.turn(message.id).await;
        let running = turn.running();
        // A delivery whose job runs here already takes no place of its own: its run has one.
        let place = match running {
            Some(_) => None,
            None => match crew.place().await {
                Some(place) => Some(place),
                None => return Ok((delivery, Outcome::Untouched)),
            },
        };
        // The broker delivers it again: what this one would lead to, that one will.
        if !delivery.is_alive() {
            return Err(DeliveryEnd::Lost);
        }
        let claim = Claim {
            message: message.clone(),
            generation: marks.generation,
            redelivered: marks.redelivered,
            running,
            alone: alone.is_some(),
        };
        let session = crew.session();
        let answer = match crew.ledger.claim(claim).await {
            Ok(answer) => answer,
            Err(error) => return Ok((delivery, Outcome::Unclaimed(error))),
        };
        count_takeover(crew, &message, &answer);
        match (answer, running) {
            (Answer::Claimed(claimed), _) => {
                tell(&message, &claimed);
                let job = turn.begin(claimed.epoch, delivery);
                let _in_flight = crew.metrics.in_flight();
                let end = run(crew, &job, *claimed, &message, session, alone.take()).await;
                drop(place);
                debug!(job.id = %message.id, ?end, "the run ended");
                let delivery = job.end().ok_or(DeliveryEnd::Lost)?;
                return Ok((delivery, Outcome::Ran(end)));
            }
            (Answer::Mine, Some(epoch)) => match turn.adopt(epoch, delivery) {
                Adoption::Adopted => {
                    debug!(job.id = %message.id, "the run goes on under its new delivery");
                    return Err(DeliveryEnd::Adopted);
                }
                Adoption::OneTooMany(delivery) => return Ok((delivery, Outcome::OneTooMany)),
                Adoption::Ended(again) => delivery = again,
            },
            (answer @ Answer::Suspect { crashes, .. }, _) => {
                // Nobody holds the job: while this delivery waits, others may claim it.
                drop((turn, place));
                let Some(permit) = crew.alone(crashes).await else {
                    return Ok((delivery, Outcome::Answered(answer, message.fingerprint)));
                };
                info!(job.id = %message.id, crashes, "a job whose worker died in its next task goes on here, alone among such jobs");
                alone = Some(permit);
            }
            (Answer::Busy, _)
                if marks.redelivered
                    && let Some(pause) = patience.next() =>
            {
                drop((turn, place));
                sleep(*pause).await;
            }
            (answer, _) => {
                debug!(job.id = %message.id, ?answer, "not ours to run");
                return Ok((delivery, Outcome::Answered(answer, message.fingerprint)));
            }
        }
    }
}

fn count_takeover(crew: &Crew, message: &JobMessage, answer: &Answer) {
    let died_in = answer.died_in();
    if let Some(spec) = died_in.and_then(|position| message.spec(position)) {
        crew.metrics.handler(&spec.handler).taken_over();
    }
}

fn tell(message: &JobMessage, claimed: &Claimed) {
    let (position, crashes, epoch) = (claimed.position, claimed.crashes, claimed.epoch.0);
    match claimed.way {
        Way::TakenOver => {
            warn!(job.id = %message.id, task.position = position, epoch, crashes, "a dead worker's job goes on here");
        }
        way => {
            debug!(job.id = %message.id, task.position = position, epoch, crashes, ?way, "claimed");
        }
    }
}
