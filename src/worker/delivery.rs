//! One delivery: decode, claim, run, settle.
//!
//! ```text
//! decode ─► claim ─► run ─► settle
//!   │bad      │Finished, Stale, Mine │ Superseded         │ Busy, Suspect
//!   ▼         ▼                      ▼                    ▼
//!  park     acknowledge            send the successor   wait on a short rung
//! ```
//!
//! What each answer means stands in the crate documentation's table; what follows from it in [`settlement`](super::settlement).

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    Crew,
    in_hand::Adoption,
    run::run,
    settlement::{Outcome, Settlement},
};
use crate::{
    broker::{Delivery, Marks},
    fail_point::cut,
    job::{BadMessage, JobMessage},
    ledger::{Answer, Claim, Claimed, Way},
};

/// A redelivery may be faster than Postgres notices that the former holder's socket is gone: so long it is asked again
/// here, before a Busy copy takes the way over a rung.
const LOCK_MAY_FALL: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(120),
];

/// Takes a delivery to its end.
pub(super) async fn handle(crew: Arc<Crew>, delivery: Delivery) {
    let (message, marks) = match decode(&delivery) {
        Ok(decoded) => decoded,
        Err(bad) => {
            return Settlement::of(Outcome::Bad(bad), Marks::default(), &crew.config.ladder)
                .carry_out(&crew, delivery, None)
                .await;
        }
    };
    let job = message.id;
    if let Some((delivery, outcome)) = follow(&crew, delivery, message, marks).await
        && (delivery.is_alive() || matches!(outcome, Outcome::Ran(_)))
    {
        Settlement::of(outcome, marks, &crew.config.ladder)
            .carry_out(&crew, delivery, Some(job))
            .await;
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

/// Claims the job and runs it. Answers with the delivery that is to be settled; nothing, when a run has adopted it or lost it.
async fn follow(
    crew: &Arc<Crew>,
    mut delivery: Delivery,
    message: Arc<JobMessage>,
    marks: Marks,
) -> Option<(Delivery, Outcome)> {
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
                None => return Some((delivery, Outcome::Untouched)),
            },
        };
        // The broker delivers it again: what this one would lead to, that one will.
        if !delivery.is_alive() {
            return None;
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
            Err(error) => return Some((delivery, Outcome::Unclaimed(error))),
        };
        match (answer, running) {
            (Answer::Claimed(claimed), _) => {
                tell(&message, &claimed);
                let job = turn.begin(claimed.epoch, delivery);
                let end = run(crew, &job, *claimed, &message, session, alone.take()).await;
                drop(place);
                debug!(job.id = %message.id, ?end, "the run ended");
                return job.end().map(|delivery| (delivery, Outcome::Ran(end)));
            }
            (Answer::Mine, Some(epoch)) => match turn.adopt(epoch, delivery) {
                Adoption::Adopted => {
                    debug!(job.id = %message.id, "the run goes on under its new delivery");
                    return None;
                }
                Adoption::OneTooMany(delivery) => return Some((delivery, Outcome::OneTooMany)),
                Adoption::Ended(again) => delivery = again,
            },
            (Answer::Suspect { crashes }, _) => {
                // Nobody holds the job: while this delivery waits, others may claim it.
                drop((turn, place));
                let Some(permit) = crew.alone(crashes).await else {
                    let answer = Answer::Suspect { crashes };
                    return Some((delivery, Outcome::Answered(answer, message.fingerprint)));
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
                return Some((delivery, Outcome::Answered(answer, message.fingerprint)));
            }
        }
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
