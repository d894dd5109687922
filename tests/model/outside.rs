//! What happens outside the workers: the broker's queues, the reconciler, the operator, and their faults.

use crate::{
    protocol::Protocol,
    rules::Rules,
    steps::Step,
    table::{Id, Status},
    words::{DEAD, Hand, Mark, Message, Place, Remains, Stage, World},
};

impl Protocol {
    /// The broker's steps, and what happens to a crashed worker's remains.
    pub fn outside_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for (message, waiting) in distinct(world) {
            match waiting.place {
                Place::Work => {
                    for (to, process) in world.workers.iter().enumerate() {
                        if process.has_room() {
                            steps.push(Step::Deliver { message, to });
                        }
                    }
                }
                Place::Rung => steps.push(Step::RungOver { message }),
                Place::Dead => {}
            }
        }
        if world.job.is_some_and(|job| job.holder == Some(DEAD)) {
            match world.remains {
                Remains::LockHeld => steps.push(Step::LockFalls),
                Remains::LockFree => steps.push(Step::FallsSilent),
                Remains::Silent => {}
            }
        }
        if world.confirmed {
            steps.push(Step::WriteSent);
        }
    }

    /// The reconciler's: what the ledger says is owed, and the mark.
    ///
    /// Which jobs are old enough is told by how long its connection has been there, so some that were given up since the
    /// loss may be among them.
    pub fn reconciler_steps(&self, world: &World, steps: &mut Vec<Step>) {
        if world.owed().is_some() {
            steps.push(Step::Reconcile);
        }
        if world.mark == Mark::There || !self.rules.looks_for_the_mark {
            return;
        }
        if world.mark == Mark::Due {
            steps.push(Step::LeaveMark);
        }
        // Again where whoever looked has died before it left the mark.
        steps.push(Step::Forget { young: false });
        if !world.forgotten && world.job.is_some_and(|job| job.status == Status::Failed) {
            steps.push(Step::Forget { young: true });
        }
    }

    pub fn outside_faults(&self, world: &World, steps: &mut Vec<Step>) {
        for (message, waiting) in distinct(world) {
            match waiting.place {
                Place::Dead => steps.push(Step::Move { message }),
                Place::Work | Place::Rung => {
                    steps.push(Step::Duplicate { message });
                    if waiting.place == Place::Work && waiting.redelivered {
                        steps.push(Step::DeadLetter { message });
                    }
                }
            }
        }
        if world.messages.len() > 0 || world.hands().any(|hand| hand.alive) {
            steps.push(Step::Wipe);
        }
        match world.job.map(|job| job.status) {
            Some(Status::Failed) => steps.push(Step::Retry),
            Some(Status::Pending | Status::Retrying) => {
                steps.extend([Step::Retry, Step::Cancel]);
            }
            Some(Status::Processing) => steps.push(Step::Cancel),
            _ => {}
        }
        let waits = [Status::Pending, Status::Retrying, Status::Failed];
        if world.job.is_some_and(|job| waits.contains(&job.status)) {
            steps.extend([Step::Skip { sent: true }, Step::Skip { sent: false }]);
        }
    }
}

/// One of each kind of message.
fn distinct(world: &World) -> impl Iterator<Item = (usize, Message)> {
    let messages = world.messages;
    let first = move |&index: &usize| index == 0 || messages[index] != messages[index - 1];
    (0..messages.len())
        .filter(first)
        .map(move |index| (index, messages[index]))
}

impl World {
    pub fn deliver(&mut self, message: usize, to: usize) {
        let message = self.messages.remove(message);
        self.workers[to].hands.push(Hand {
            stage: Stage::Received,
            alive: true,
            generation: message.generation,
            redelivered: message.redelivered,
            alone: false,
        });
    }

    pub fn duplicate(&mut self, message: usize) {
        let copy = Message {
            place: Place::Work,
            redelivered: false,
            ..self.messages[message]
        };
        self.messages.push(copy);
    }

    /// The broker's disk is gone, and every connection with it.
    pub fn wipe(&mut self, rules: &Rules) {
        self.messages.clear();
        for worker in 0..self.workers.len() {
            self.disconnect(worker, false);
        }
        if self.mark == Mark::There || rules.marks_where_it_asked {
            self.mark = Mark::Missing;
        }
        self.forgotten = self.job.is_some_and(|job| job.status == Status::Failed);
        self.broker_lost = true;
    }

    /// The mark is missing: whatever was given up is owed a copy again, under a new generation. A note that comes late, of a
    /// copy that was lost with the broker's disk, is then one of an older generation.
    pub fn forget_parked(&mut self, young: bool, rules: &Rules) {
        self.mark = Mark::Due;
        let Some(job) = &mut self.job else { return };
        if job.status != Status::Failed || !(self.forgotten || young) {
            return;
        }
        self.forgotten = false;
        if rules.parks_anew {
            job.generation += 1;
            self.confirmed = false;
        }
        job.sent = job.sent.min(job.generation as i8 - 1);
    }

    /// A lazily written note: the copy of this generation is confirmed.
    pub fn write_sent(&mut self) {
        self.confirmed = false;
        if let Some(job) = &mut self.job {
            job.sent = job.generation as i8;
        }
    }

    /// What the ledger says is owed to the broker, if it is: where to send the job's message.
    ///
    /// The reconciler sees only the ledger, and the clock. That it comes when nothing else is on its way stands for its
    /// patience; when it loses it too early, that is what an operator's retry is here.
    pub fn owed(&self) -> Option<Place> {
        let job = self.job?;
        let waits = |message: &Message| message.place != Place::Dead;
        let waiting = self.messages.iter().any(waits);
        match job.status {
            Status::Pending | Status::Retrying => {
                let under_way = waiting || self.hands().any(|hand| hand.alive);
                (!under_way).then_some(Place::Work)
            }
            Status::Processing => {
                let silent = job.holder.filter(|&holder| self.is_silent(holder))?;
                // Those in the hands of a silent holder help nobody.
                let helps = |worker: usize| worker as Id != silent;
                let under_way = (0..self.workers.len()).any(|worker| {
                    let hands = &self.workers[worker].hands;
                    hands.len() > 1 || helps(worker) && hands.iter().any(|hand| hand.alive)
                });
                (!waiting && !under_way).then_some(Place::Work)
            }
            Status::Failed if job.sent < job.generation as i8 => {
                (!self.is_parked()).then_some(Place::Dead)
            }
            _ => None,
        }
    }

    fn is_silent(&self, holder: Id) -> bool {
        match holder {
            DEAD => self.remains == Remains::Silent,
            id => self.workers[id as usize].stale,
        }
    }

    pub fn reconcile(&mut self) -> Option<()> {
        let place = self.owed()?;
        let job = self.job?;
        self.messages.push(Message {
            place,
            generation: job.generation,
            redelivered: false,
        });
        self.confirmed = true;
        Some(())
    }

    /// An operator sends the job's current generation again, and writes nothing to the ledger.
    pub fn retry(&mut self) -> Option<()> {
        let job = self.job?;
        self.messages.push(Message {
            place: Place::Work,
            generation: job.generation,
            redelivered: false,
        });
        Some(())
    }
}
