//! What is written to the ledger beside claims: a task's end, a release, a cancel. Each is one commit.

use crate::{
    promises::FENCED_OUT,
    rules::Rules,
    table::{Doing, Status},
    words::{Message, Place, Run, World, Write},
};

/// Whether a write took effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    Committed,
    Fenced,
}

impl World {
    /// A run's write, as its statement does it: it changes the rows if they stand where the run stands. Otherwise it asks what
    /// became of them, since it may be the repetition of a write whose answer was lost.
    pub fn write(&mut self, run: &Run, write: Write, rules: &Rules) -> Written {
        let fence = rules.fence;
        if write == Write::Release {
            return self.release(run.epoch, fence);
        }
        let Some(job) = &mut self.job else {
            return Written::Fenced;
        };
        let position = run.position as usize;
        let task = &mut job.tasks[position];
        let mine = task.epoch == run.epoch && task.attempt == run.attempt;
        let ends_job = write != Write::Advance || position + 1 == job.total as usize;
        let fits = |mine: bool, epoch: u8| {
            mine && task.status == Doing::Processing
                && (!ends_job || (epoch == run.epoch && job.status == Status::Processing))
        };
        let stands = match fence {
            true => fits(mine, job.epoch),
            false => fits(true, run.epoch),
        };
        let succeeds = matches!(write, Write::Advance | Write::HandBack { .. });
        if succeeds && (stands || !rules.one_commit) {
            self.effects[position] += 1;
        }
        if !stands {
            let (wanted, attempt) = match write {
                Write::Retry | Write::GiveUp => (Doing::Failed, run.attempt),
                // The attempt was given back.
                Write::Defer => (Doing::Pending, run.attempt - 1),
                _ => (Doing::Success, run.attempt),
            };
            let left = (task.status, task.epoch, task.attempt) == (wanted, run.epoch, attempt);
            let ours = job.epoch == run.epoch || !rules.repeats_ask_the_epoch;
            return match left && ours {
                true => Written::Committed,
                false => Written::Fenced,
            };
        }
        if run.epoch != job.epoch {
            self.broken |= FENCED_OUT;
        }
        match write {
            Write::Advance | Write::HandBack { .. } => task.status = Doing::Success,
            Write::Defer => {
                task.status = Doing::Pending;
                task.attempt -= 1;
            }
            _ => task.status = Doing::Failed,
        }
        match write {
            Write::Advance if !ends_job => {
                let next = &mut job.tasks[position + 1];
                if next.status == Doing::Pending {
                    (next.status, next.epoch) = (Doing::Processing, run.epoch);
                    next.attempt += 1;
                }
            }
            Write::Advance => job.status = Status::Success,
            Write::HandBack { .. } => job.status = Status::Pending,
            Write::Retry | Write::Defer => job.status = Status::Retrying,
            Write::GiveUp => job.status = Status::Failed,
            Write::Release => {}
        }
        if ends_job {
            job.holder = None;
        }
        if matches!(write, Write::Retry | Write::GiveUp | Write::Defer) {
            job.generation += 1;
            self.confirmed = false;
        }
        Written::Committed
    }

    /// The job is handed back, and the attempt that was cut short does not count.
    pub fn release(&mut self, epoch: u8, fence: bool) -> Written {
        let Some(job) = &mut self.job else {
            return Written::Fenced;
        };
        if job.status != Status::Processing || (fence && job.epoch != epoch) {
            return Written::Fenced;
        }
        if job.epoch != epoch {
            self.broken |= FENCED_OUT;
        }
        (job.status, job.holder) = (Status::Pending, None);
        for task in &mut job.tasks {
            if task.status == Doing::Processing && (task.epoch == epoch || !fence) {
                task.status = Doing::Pending;
                task.attempt -= 1;
            }
        }
        Written::Committed
    }

    /// An operator ends the job: the same act as a claim, except that nobody runs it afterwards.
    pub fn cancel(&mut self) -> Option<()> {
        let job = self.job.as_mut()?;
        if !matches!(
            job.status,
            Status::Pending | Status::Processing | Status::Retrying
        ) {
            return None;
        }
        job.status = Status::Cancelled;
        job.epoch += 1;
        job.holder = None;
        job.sent = job.sent.max(job.generation as i8);
        for task in &mut job.tasks {
            if task.status == Doing::Processing {
                (task.status, task.epoch) = (Doing::Failed, job.epoch);
            }
        }
        Some(())
    }

    /// An operator takes the task that the job stands at for done: the job is not held, and goes on behind it under the next
    /// generation. By hand he has done what its handler would have written.
    pub fn skip(&mut self, sent: bool) -> Option<()> {
        let job = self.job.as_mut()?;
        let tasks = &mut job.tasks[..job.total as usize];
        let at = tasks
            .iter()
            .position(|task| task.status != Doing::Success)?;
        job.epoch += 1;
        let task = &mut tasks[at];
        (task.status, task.epoch) = (Doing::Success, job.epoch);
        task.attempt = task.attempt.max(1);
        self.effects[at] += 1;
        self.forgotten = false;
        self.confirmed = false;
        if at + 1 == job.total as usize {
            job.status = Status::Success;
            job.sent = job.sent.max(job.generation as i8);
            return Some(());
        }
        job.status = Status::Pending;
        job.generation += 1;
        if sent {
            let generation = job.generation;
            self.messages.push(Message {
                place: Place::Work,
                generation,
                redelivered: false,
            });
            self.confirmed = true;
        } else if !self
            .messages
            .iter()
            .any(|message| message.place != Place::Dead)
        {
            // Where no older copy brings it, it is the reconciler's to mend, as if the broker had lost it.
            self.broker_lost = true;
        }
        Some(())
    }
}
