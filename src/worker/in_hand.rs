//! The jobs that this process has in hand: who may claim, who runs, and whose delivery a run has.
//!
//! Two rules keep one process from running a task twice. A job's id is registered before it is claimed, and a second
//! delivery of it waits for its turn until the first claim's answer is registered. And a run is known by its *epoch*, not by
//! its job: an older run of the same job never takes the delivery that the newer one needs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Delivery,
    fail_point::cut,
    job::{Epoch, JobId},
};

/// All jobs in hand.
#[derive(Clone, Default)]
pub(super) struct InHand(Arc<Table>);

#[derive(Default)]
struct Table {
    /// With how many users each has; a slot without users is gone.
    slots: Mutex<HashMap<JobId, (Arc<Slot>, usize)>>,
    /// Runs that ended without a word (a panic of ours): the heartbeat releases them.
    orphans: Mutex<Vec<Orphan>>,
}

/// A run that ended without a word, and the delivery that it did not settle.
pub(super) struct Orphan {
    pub(super) job: JobId,
    pub(super) epoch: Epoch,
    pub(super) delivery: Option<Delivery>,
}

#[derive(Default)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    run: Mutex<Option<Arc<Running>>>,
}

struct Running {
    epoch: Epoch,
    since: Instant,
    /// Gone once the run settles it.
    delivery: Mutex<Option<Delivery>>,
    cancellation: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock, and what a poisoned one guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to claim one job; others that want it wait.
pub(super) struct Turn {
    user: User,
    _guard: OwnedMutexGuard<()>,
}

/// One who waits for a slot, claims in it or runs.
struct User {
    table: Arc<Table>,
    slot: Arc<Slot>,
    job: JobId,
}

impl User {
    fn enter(table: &Arc<Table>, job: JobId) -> Self {
        let mut slots = lock(&table.slots);
        let (slot, users) = slots.entry(job).or_default();
        *users += 1;
        Self {
            table: table.clone(),
            slot: slot.clone(),
            job,
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut slots = lock(&self.table.slots);
        if let Some((_, users)) = slots.get_mut(&self.job) {
            *users -= 1;
            if *users == 0 {
                slots.remove(&self.job);
            }
        }
    }
}

/// What became of a delivery whose job this process runs already.
pub(super) enum Adoption {
    /// The run had lost its delivery and has this one now.
    Adopted,
    /// The run has a delivery: this one is one too many.
    OneTooMany(Delivery),
    /// The run has just ended: claim again.
    Ended(Delivery),
}

impl InHand {
    /// Registers the job, and waits for whoever is claiming it now.
    pub(super) async fn turn(&self, job: JobId) -> Turn {
        let user = User::enter(&self.0, job);
        let guard = user.slot.turn.clone().lock_owned().await;
        cut!(Registered);
        Turn {
            user,
            _guard: guard,
        }
    }

    /// Every run, for the heartbeat.
    pub(super) fn running(&self) -> Vec<(JobId, Epoch)> {
        let slots = lock(&self.0.slots);
        slots
            .iter()
            .filter_map(|(job, (slot, _))| Some((*job, lock(&slot.run).as_ref()?.epoch)))
            .collect()
    }

    /// Stops a run that is no longer ours; whether there was one.
    pub(super) fn cancel(&self, job: JobId, epoch: Epoch) -> bool {
        let slots = lock(&self.0.slots);
        let run = slots
            .get(&job)
            .and_then(|(slot, _)| lock(&slot.run).clone());
        match run {
            Some(run) if run.epoch == epoch => {
                run.cancellation.cancel();
                true
            }
            _ => false,
        }
    }

    /// Takes the list of runs that ended without a word.
    pub(super) fn orphans(&self) -> Vec<Orphan> {
        std::mem::take(&mut *lock(&self.0.orphans))
    }
}

impl Turn {
    /// The epoch at which this process runs the job now.
    pub(super) fn running(&self) -> Option<Epoch> {
        lock(&self.user.slot.run).as_ref().map(|run| run.epoch)
    }

    /// Registers the run that the claim entitles to. An older run of the job, which the claim has fenced, is stopped.
    pub(super) fn begin(self, epoch: Epoch, delivery: Delivery) -> Run {
        let running = Arc::new(Running {
            epoch,
            since: Instant::now(),
            delivery: Mutex::new(Some(delivery)),
            cancellation: CancellationToken::new(),
        });
        if let Some(older) = lock(&self.user.slot.run).replace(running.clone()) {
            older.cancellation.cancel();
        }
        cut!(Begun);
        Run {
            user: self.user,
            running,
            ended: false,
        }
    }

    /// Offers the delivery to the run of this epoch.
    pub(super) fn adopt(&self, epoch: Epoch, delivery: Delivery) -> Adoption {
        let run = lock(&self.user.slot.run);
        let Some(run) = run.as_ref().filter(|run| run.epoch == epoch) else {
            return Adoption::Ended(delivery);
        };
        let mut held = lock(&run.delivery);
        match held.as_ref() {
            None => Adoption::Ended(delivery),
            Some(held) if held.is_alive() => Adoption::OneTooMany(delivery),
            Some(_) => {
                *held = Some(delivery);
                cut!(Adopted);
                Adoption::Adopted
            }
        }
    }
}

/// One run of a job. It ends with [`Run::end`], which gives back the delivery that is to be settled.
pub(super) struct Run {
    user: User,
    running: Arc<Running>,
    ended: bool,
}

impl Run {
    /// Cancelled when the job is no longer ours.
    pub(super) fn cancellation(&self) -> &CancellationToken {
        &self.running.cancellation
    }

    /// For how long the run goes on.
    pub(super) fn age(&self) -> std::time::Duration {
        self.running.since.elapsed()
    }

    /// Ends the run, after its last write is committed: from here on a further delivery of the job claims anew.
    pub(super) fn end(mut self) -> Option<Delivery> {
        self.ended = true;
        self.leave();
        cut!(RunEnded);
        lock(&self.running.delivery).take()
    }

    fn leave(&self) {
        let mut run = lock(&self.user.slot.run);
        if run
            .as_ref()
            .is_some_and(|run| Arc::ptr_eq(run, &self.running))
        {
            *run = None;
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            self.leave();
            let delivery = lock(&self.running.delivery).take();
            lock(&self.user.table.orphans).push(Orphan {
                job: self.user.job,
                epoch: self.running.epoch,
                delivery,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const JOB: JobId = JobId(uuid::Uuid::from_u128(7));

    fn users(in_hand: &InHand) -> usize {
        lock(&in_hand.0.slots).len()
    }

    #[tokio::test]
    async fn a_second_delivery_waits_for_the_first_ones_answer() {
        let in_hand = InHand::default();
        let first = in_hand.turn(JOB).await;
        let waiting = tokio::spawn({
            let in_hand = in_hand.clone();
            async move { in_hand.turn(JOB).await.running() }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        let run = first.begin(Epoch(3), Delivery::alive("first"));
        assert_eq!(waiting.await.unwrap(), Some(Epoch(3)));
        drop(run.end());
        assert_eq!(users(&in_hand), 0, "nobody is remembered in the end");
    }

    #[tokio::test]
    async fn a_run_that_lost_its_delivery_adopts_one_that_was_claimed_at_its_epoch() {
        let in_hand = InHand::default();
        let lost = Delivery::lost("first").await;
        let run = in_hand.turn(JOB).await.begin(Epoch(3), lost);
        let turn = in_hand.turn(JOB).await;
        assert!(matches!(
            turn.adopt(Epoch(2), Delivery::alive("older")),
            Adoption::Ended(_)
        ));
        assert!(matches!(
            turn.adopt(Epoch(3), Delivery::alive("second")),
            Adoption::Adopted
        ));
        let one_too_many = turn.adopt(Epoch(3), Delivery::alive("third"));
        assert!(matches!(one_too_many, Adoption::OneTooMany(third) if third.body() == b"third"));
        drop(turn);
        let settled = run.end().expect("the run has a delivery");
        assert_eq!(settled.body(), b"second");
        let turn = in_hand.turn(JOB).await;
        assert!(matches!(
            turn.adopt(Epoch(3), Delivery::alive("late")),
            Adoption::Ended(_)
        ));
    }

    #[tokio::test]
    async fn an_older_run_is_stopped_and_never_has_what_the_newer_one_needs() {
        let in_hand = InHand::default();
        let older = in_hand
            .turn(JOB)
            .await
            .begin(Epoch(1), Delivery::alive("older"));
        let newer = in_hand
            .turn(JOB)
            .await
            .begin(Epoch(2), Delivery::alive("newer"));
        assert!(older.cancellation().is_cancelled() && !newer.cancellation().is_cancelled());
        assert_eq!(older.end().unwrap().body(), b"older");
        assert_eq!(in_hand.running(), [(JOB, Epoch(2))]);
        assert!(!in_hand.cancel(JOB, Epoch(1)) && in_hand.cancel(JOB, Epoch(2)));
        assert_eq!(newer.end().unwrap().body(), b"newer");
    }

    #[tokio::test]
    async fn a_run_that_breaks_off_leaves_its_job_and_its_delivery_to_the_heartbeat() {
        let in_hand = InHand::default();
        drop(
            in_hand
                .turn(JOB)
                .await
                .begin(Epoch(5), Delivery::alive("unsettled")),
        );
        let orphans = in_hand.orphans();
        assert_eq!((orphans[0].job, orphans[0].epoch), (JOB, Epoch(5)));
        assert_eq!(orphans[0].delivery.as_ref().unwrap().body(), b"unsettled");
        assert!(in_hand.orphans().is_empty() && in_hand.running().is_empty());
        assert_eq!(users(&in_hand), 0);
    }
}
