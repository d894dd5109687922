//! A worker's steps, as `src/worker/` takes them: a delivery's turn and claim, the run, the settlement, the heartbeat.
//!
//! What no one can tell apart is one step: a handler's end and the commit of its write, the commit of a claim and its answer, a
//! decision to give a delivery back and the broker's receiving it.

use crate::steps::Step;
use crate::{
    ledger::Written,
    promises::{ACKNOWLEDGED, IN_ORDER, SUCCESS_ONCE, has_reason},
    protocol::Protocol,
    table::{Answer, Asked, Doing, Id, Job, Status, claim},
    words::{
        CRASH_LIMIT, Hand, MOST_ATTEMPTS, Message, Phase, Place, Presence, Process, Remains, Run,
        Stage, Why, World, Write,
    },
};

impl Protocol {
    /// What this worker may do next. Failures of handlers are normal, but nothing that the job's end may depend on; neither is
    /// being slow to stop.
    pub fn worker_steps(&self, world: &World, worker: usize, steps: &mut Vec<Step>) {
        let process = &world.workers[worker];
        for (hand, held) in process.hands.iter().enumerate() {
            match held.stage {
                Stage::Received => {
                    if self.may_take_turn(process) {
                        steps.push(Step::TakeTurn { worker, hand });
                    }
                }
                Stage::Claiming { .. } => steps.push(Step::Claim {
                    worker,
                    hand,
                    answer_lost: false,
                }),
                Stage::Claimed(_) => steps.push(Step::Register { worker, hand }),
                Stage::Mine { .. } => steps.push(Step::Adopt { worker, hand }),
                Stage::Running(run) => {
                    let write = |write| Step::Write {
                        worker,
                        hand,
                        write,
                        answer_lost: false,
                    };
                    match run.phase {
                        Phase::Starting if run.parks => steps.push(write(Write::GiveUp)),
                        Phase::Starting if process.stops || run.cancelled || run.late => {
                            steps.push(write(Write::Release));
                        }
                        Phase::Starting => {
                            if self.may_start(process, &run) {
                                steps.push(Step::Start { worker, hand });
                            }
                        }
                        Phase::Handling => {
                            if run.cancelled {
                                steps.push(Step::Stop { worker, hand });
                            }
                            let last = run.position + 1 == self.tasks;
                            steps.push(write(match process.stops && !last {
                                true => Write::HandBack { stops: true },
                                false => Write::Advance,
                            }));
                        }
                        Phase::Writing(_) => steps.push(Step::Repeat { worker, hand }),
                    }
                }
                Stage::BrokenOff { .. } => {
                    if self.rules.releases_orphans {
                        steps.push(Step::ReleaseOrphan { worker, hand });
                    }
                }
                Stage::Publishing(_) => {
                    if self.may_publish(process) {
                        steps.push(Step::Publish {
                            worker,
                            hand,
                            confirm_lost: false,
                        });
                    }
                }
                Stage::Acknowledging(_) => steps.push(Step::Acknowledge { worker, hand }),
            }
        }
        if process.presence != Presence::Held
            || process.stale
            || self.lost_run(world, worker).is_some()
        {
            steps.push(Step::Beat { worker });
        }
        if process.stops && process.hands.len() == 0 {
            steps.push(Step::Leave { worker });
        }
    }

    /// What it may do beside that, without a fault.
    pub fn contrary_steps(&self, world: &World, worker: usize, steps: &mut Vec<Step>) {
        let process = &world.workers[worker];
        for (hand, held) in process.hands.iter().enumerate() {
            let Some(run) = held.run().filter(|run| run.phase == Phase::Handling) else {
                continue;
            };
            let mut write = |write| {
                steps.push(Step::Write {
                    worker,
                    hand,
                    write,
                    answer_lost: false,
                });
            };
            if run.attempt < MOST_ATTEMPTS {
                write(Write::Retry);
            }
            write(Write::GiveUp);
            if process.stops {
                write(Write::Release);
            }
        }
        if process.stops && process.hands.len() > 0 {
            steps.push(Step::Leave { worker });
        }
    }

    /// Its faults.
    pub fn worker_faults(&self, world: &World, worker: usize, steps: &mut Vec<Step>) {
        let process = &world.workers[worker];
        let holds = world.holds(worker);
        if process.hands.len() > 0 || holds {
            steps.push(Step::Crash { worker });
            if !process.stops {
                steps.push(Step::AskToStop { worker });
            }
        }
        if process.hands.iter().any(|hand| hand.alive) {
            steps.push(Step::Disconnect { worker });
        }
        self.silences(world, worker, steps);
        for hand in 0..process.hands.len() {
            self.hand_faults(world, worker, hand, steps);
        }
    }

    /// A process that holds nothing has nothing to lose by silence; it is as if it fell silent right after it claimed.
    fn silences(&self, world: &World, worker: usize, steps: &mut Vec<Step>) {
        let process = &world.workers[worker];
        let holds = world.holds(worker);
        if holds && process.presence == Presence::Held {
            steps.push(Step::LoseLock { worker });
        }
        if holds && !process.stale {
            steps.push(Step::MissBeats { worker });
        }
    }

    /// What can hit a process on its way with this hand: whatever can hit itself, its silence, and the broker.
    pub fn faults_on_the_way(
        &self,
        world: &World,
        worker: usize,
        hand: usize,
        steps: &mut Vec<Step>,
    ) {
        steps.push(Step::Crash { worker });
        let process = &world.workers[worker];
        if process.hands.iter().any(|hand| hand.alive) {
            steps.extend([Step::Disconnect { worker }, Step::Wipe]);
        }
        self.silences(world, worker, steps);
        self.hand_faults(world, worker, hand, steps);
    }

    fn hand_faults(&self, world: &World, worker: usize, hand: usize, steps: &mut Vec<Step>) {
        let process = &world.workers[worker];
        match process.hands[hand].stage {
            Stage::Claiming { .. } => steps.push(Step::Claim {
                worker,
                hand,
                answer_lost: true,
            }),
            Stage::Running(run) => {
                let mut write = |write, answer_lost| {
                    steps.push(Step::Write {
                        worker,
                        hand,
                        write,
                        answer_lost,
                    });
                };
                let last = run.position + 1 == self.tasks;
                match run.phase {
                    Phase::Starting if run.parks => write(Write::GiveUp, true),
                    Phase::Starting if process.stops || run.cancelled || run.late => {
                        write(Write::Release, true);
                    }
                    Phase::Starting => {}
                    Phase::Handling => {
                        if process.stops && !last {
                            write(Write::HandBack { stops: true }, true);
                        } else {
                            write(Write::Advance, true);
                        }
                        if !last {
                            write(Write::HandBack { stops: false }, false);
                            write(Write::HandBack { stops: false }, true);
                        }
                        if run.attempt < MOST_ATTEMPTS {
                            write(Write::Retry, true);
                        }
                        write(Write::GiveUp, true);
                        write(Write::Defer, false);
                        write(Write::Defer, true);
                        if process.stops {
                            write(Write::Release, true);
                        }
                    }
                    Phase::Writing(_) => {}
                }
                steps.push(Step::BreakOff { worker, hand });
            }
            Stage::Publishing(_) => {
                // Its queue does not take it, or the worker leaves.
                steps.push(Step::GiveBack { worker, hand });
                if self.may_publish(process) {
                    steps.push(Step::Publish {
                        worker,
                        hand,
                        confirm_lost: true,
                    });
                }
            }
            _ => {}
        }
    }

    /// A process that took all its steps but its acknowledgements would have ever more of those before it: it makes them one
    /// by one.
    fn may_publish(&self, process: &Process) -> bool {
        let acknowledges = |hand: &Hand| matches!(hand.stage, Stage::Acknowledging(_));
        self.at_once || !process.hands.iter().any(acknowledges)
    }

    pub fn may_start(&self, process: &Process, run: &Run) -> bool {
        let present = process.presence != Presence::Lost || !self.rules.starts_present;
        present && !run.parks && !run.cancelled && !run.late && !process.stops
    }

    pub fn may_take_turn(&self, process: &Process) -> bool {
        let taken = process.hands.iter().any(Hand::has_turn);
        if self.rules.registers_first && taken {
            return false;
        }
        // A delivery of a job that runs here takes no place; any other waits for the process's presence, or is given back.
        process.running().is_some() || process.stops || process.presence != Presence::Lost
    }

    /// The run of this process that is no longer its own, and does not know it.
    fn lost_run(&self, world: &World, worker: usize) -> Option<usize> {
        if !self.rules.beats_cancel {
            return None;
        }
        let hands = &world.workers[worker].hands;
        (0..hands.len()).find(|&hand| {
            let run = hands[hand].run();
            run.is_some_and(|run| {
                let stands = world
                    .job
                    .is_some_and(|job| job.epoch == run.epoch && job.status == Status::Processing);
                run.current && !run.cancelled && !stands
            })
        })
    }

    pub fn take_turn(&self, world: &mut World, worker: usize, hand: usize) {
        let process = &mut world.workers[worker];
        let running = process.running();
        if running.is_none() && process.stops {
            return world.give_back(worker, hand);
        }
        let late = process.presence == Presence::Lost && self.rules.claims_know_their_session;
        process.hands[hand].stage = Stage::Claiming { running, late };
    }

    pub fn claim(
        &self,
        world: &mut World,
        worker: usize,
        hand: usize,
        answer_lost: bool,
    ) -> Option<()> {
        let held = world.workers[worker].hands[hand];
        let Stage::Claiming { running, late } = held.stage else {
            return None;
        };
        let asked = Asked {
            by: worker as Id,
            conflict: false,
            generation: held.generation,
            redelivered: held.redelivered,
            running,
            alone: held.alone,
        };
        let before = world.job;
        let signs = world.signs();
        // Only without the fence: there is nothing to begin, the statement answers no row and is asked again.
        let has_nothing_to_begin =
            |job: &Job| job.frontier().is_none() && job.status != Status::Success;
        if world.job.as_ref().is_some_and(has_nothing_to_begin) {
            return None;
        }
        let answer = claim(&mut world.job, self.tasks, asked, signs, self.rules.rows);
        self.answered(&answer);
        if let (Some(before), Some(after)) = (before, world.job)
            && after.epoch != before.epoch
            && before.holder.is_some_and(|holder| holder != worker as Id)
        {
            world.rob(before.epoch);
        }
        if answer_lost {
            // It is asked again, and nobody knows the difference unless something was written.
            return (world.job != before).then_some(());
        }
        let wait = |mark| Message {
            place: Place::Rung,
            generation: held.generation,
            redelivered: mark && self.rules.marks_redelivered,
        };
        let copy = |place, generation| {
            Stage::Publishing(Message {
                place,
                generation,
                redelivered: false,
            })
        };
        let stage = match answer {
            Answer::Claimed {
                epoch,
                position,
                attempt,
                crashes,
                ..
            } => Stage::Claimed(Run {
                epoch,
                position,
                attempt,
                parks: crashes >= CRASH_LIMIT,
                current: true,
                cancelled: false,
                late,
                robbed: false,
                phase: Phase::Starting,
            }),
            Answer::Mine => Stage::Mine { epoch: running? },
            Answer::Suspect { crashes } => {
                let hands = &mut world.workers[worker].hands;
                let permit = crashes >= CRASH_LIMIT || !hands.iter().any(|other| other.alone);
                hands[hand].alone = permit;
                match permit {
                    true => Stage::Received,
                    false => Stage::Publishing(wait(held.redelivered)),
                }
            }
            Answer::Busy if !self.rules.busy_waits => Stage::Acknowledging(Why::RuleTakenAway),
            Answer::Busy => Stage::Publishing(wait(held.redelivered)),
            Answer::Superseded { .. } if !self.rules.superseded_sends => {
                Stage::Acknowledging(Why::RuleTakenAway)
            }
            Answer::Superseded { generation } => copy(Place::Rung, generation),
            Answer::ParkAgain { .. } if !self.rules.parks_again => {
                Stage::Acknowledging(Why::RuleTakenAway)
            }
            Answer::ParkAgain { generation } => copy(Place::Dead, generation),
            Answer::Finished => Stage::Acknowledging(Why::Over),
            Answer::Stale => Stage::Acknowledging(Why::Stale),
            // There is one content in the model, and nobody forges a generation.
            Answer::Conflict | Answer::Foreign { .. } => return None,
        };
        world.workers[worker].hands[hand].stage = stage;
        self.hurry(world, worker, hand);
        if !held.alive && !matches!(stage, Stage::Claimed(_)) {
            // The broker delivers it again: what this one would lead to, that one will.
            world.workers[worker].hands.remove(hand);
        }
        Some(())
    }

    /// Without the rule that a copy is confirmed first, its original is acknowledged at once.
    fn hurry(&self, world: &mut World, worker: usize, hand: usize) {
        let held = &mut world.workers[worker].hands[hand];
        if self.rules.confirms_first || !held.alive || !matches!(held.stage, Stage::Publishing(_)) {
            return;
        }
        held.alive = false;
        let generation = held.generation;
        if !has_reason(world, Why::Replaced, generation) {
            world.broken |= ACKNOWLEDGED;
        }
    }

    /// The run begins. An older one, which the claim has fenced, is stopped.
    pub fn register(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        let hands = &mut world.workers[worker].hands;
        let Stage::Claimed(run) = hands[hand].stage else {
            return None;
        };
        for other in hands.iter_mut() {
            if let Stage::Running(older) = &mut other.stage
                && older.current
            {
                (older.current, older.cancelled) = (false, true);
            }
        }
        hands[hand].stage = Stage::Running(run);
        Some(())
    }

    /// A delivery whose job this process runs is offered to the run.
    pub fn adopt(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        let hands = &mut world.workers[worker].hands;
        let Stage::Mine { epoch } = hands[hand].stage else {
            return None;
        };
        let runs = |other: &Hand| {
            other.run().is_some_and(|run| {
                run.current && (run.epoch == epoch || !self.rules.rows.epoch_in_mine)
            })
        };
        match (0..hands.len()).find(|&other| runs(&hands[other])) {
            // The run has just ended: claim again.
            None => hands[hand].stage = Stage::Received,
            Some(run) if hands[run].alive => {
                hands[hand].stage = Stage::Acknowledging(Why::OneTooMany);
            }
            Some(run) => {
                hands[run].alive = true;
                hands.remove(hand);
            }
        }
        Some(())
    }

    /// The next task's handler begins.
    pub fn start(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        let Stage::Running(run) = &mut world.workers[worker].hands[hand].stage else {
            return None;
        };
        run.phase = Phase::Handling;
        let excused = run.robbed && self.rules.paused_are_excused;
        let (tasks, position) = (world.job?.tasks, run.position as usize);
        let done = |index: usize| tasks[index].status == Doing::Success;
        if !(0..position).all(done) {
            world.broken |= IN_ORDER;
        }
        if done(position) && !excused {
            world.broken |= SUCCESS_ONCE;
        }
        Some(())
    }

    pub fn repeat(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        match world.workers[worker].hands[hand].run()?.phase {
            Phase::Writing(write) => self.write(world, worker, hand, write, false),
            _ => None,
        }
    }

    /// A task has ended, or its run has: what follows from it is committed, and then settled.
    pub fn write(
        &self,
        world: &mut World,
        worker: usize,
        hand: usize,
        write: Write,
        answer_lost: bool,
    ) -> Option<()> {
        let Stage::Running(mut run) = world.workers[worker].hands[hand].stage else {
            return None;
        };
        let before = world.job;
        let written = match world.write(&run, write, &self.rules) {
            Written::Fenced if !self.rules.fenced_runs_end => Written::Committed,
            written => written,
        };
        if answer_lost {
            if world.job == before {
                return None;
            }
            run.phase = Phase::Writing(write);
            world.workers[worker].hands[hand].stage = Stage::Running(run);
            return Some(());
        }
        let generation = world.job?.generation;
        let held = &mut world.workers[worker].hands[hand];
        let copy = |place, generation| {
            Stage::Publishing(Message {
                place,
                generation,
                redelivered: false,
            })
        };
        let stage = match (written, write) {
            (Written::Fenced, _) | (_, Write::Release) | (_, Write::HandBack { stops: true }) => {
                world.give_back(worker, hand);
                return Some(());
            }
            (_, Write::Advance) if run.position + 1 < self.tasks => {
                run.position += 1;
                run.attempt = 1;
                run.phase = Phase::Starting;
                // It has just been told how its job stands.
                run.robbed = false;
                // The task that was under suspicion has ended well.
                held.alone = false;
                Stage::Running(run)
            }
            (_, Write::Advance) => Stage::Acknowledging(Why::Over),
            (_, Write::HandBack { stops: false }) => copy(Place::Work, held.generation),
            (_, Write::Retry | Write::Defer) => copy(Place::Rung, generation),
            (_, Write::GiveUp) => copy(Place::Dead, generation),
        };
        held.stage = stage;
        self.hurry(world, worker, hand);
        let held = &world.workers[worker].hands[hand];
        if !held.alive && matches!(stage, Stage::Acknowledging(_)) {
            world.workers[worker].hands.remove(hand);
        }
        Some(())
    }

    /// The copy is in its queue; whether the worker hears of it is another matter.
    pub fn publish(
        &self,
        world: &mut World,
        worker: usize,
        hand: usize,
        confirm_lost: bool,
    ) -> Option<()> {
        let held = &mut world.workers[worker].hands[hand];
        let Stage::Publishing(copy) = held.stage else {
            return None;
        };
        world.messages.push(copy);
        if confirm_lost {
            return Some(());
        }
        held.stage = Stage::Acknowledging(Why::Replaced);
        if !held.alive {
            world.workers[worker].hands.remove(hand);
        }
        world.confirmed |= world
            .job
            .is_some_and(|job| job.generation == copy.generation);
        Some(())
    }

    pub fn acknowledge(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        let held = world.workers[worker].hands.remove(hand);
        let Stage::Acknowledging(why) = held.stage else {
            return None;
        };
        // Where generations are not looked at, an older one is as good as the present one.
        let generation = match self.rules.rows.generations {
            true => held.generation,
            false => 0,
        };
        if !has_reason(world, why, generation) {
            world.broken |= ACKNOWLEDGED;
        }
        Some(())
    }

    pub fn release_orphan(&self, world: &mut World, worker: usize, hand: usize) -> Option<()> {
        let Stage::BrokenOff { epoch } = world.workers[worker].hands[hand].stage else {
            return None;
        };
        world.release(epoch, self.rules.fence);
        world.give_back(worker, hand);
        Some(())
    }

    /// A heartbeat finds its session lost, or makes a new one; one that gets through tells which runs are lost.
    pub fn beat(&self, world: &mut World, worker: usize) {
        let lost = self.lost_run(world, worker);
        let process = &mut world.workers[worker];
        if process.presence == Presence::LostUnnoticed {
            process.presence = Presence::Lost;
            for hand in process.hands.iter_mut() {
                hand.notices(self.rules.claims_know_their_session);
            }
            return;
        }
        (process.presence, process.stale) = (Presence::Held, false);
        for hand in process.hands.iter_mut() {
            // It is asked after; what is claimed and not yet registered is not.
            if let Stage::Running(run) = &mut hand.stage {
                run.robbed = false;
            }
        }
        if let Some(hand) = lost
            && let Stage::Running(run) = &mut process.hands[hand].stage
        {
            run.cancelled = true;
        }
    }
}

impl Hand {
    /// Its process notices that the session of its lock is gone: whatever was claimed may be another's by now.
    fn notices(&mut self, knows_its_session: bool) {
        match &mut self.stage {
            Stage::Claiming { late, .. } => *late = knows_its_session,
            Stage::Claimed(run) => (run.late, run.robbed) = (knows_its_session, false),
            Stage::Running(run) => run.robbed = false,
            _ => {}
        }
    }
}

impl World {
    /// A delivery goes back to its queue as it is.
    pub fn give_back(&mut self, worker: usize, hand: usize) {
        let held = self.workers[worker].hands.remove(hand);
        if held.alive {
            self.messages.push(Message {
                place: Place::Work,
                generation: held.generation,
                redelivered: true,
            });
        }
    }

    /// The connection over which the deliveries came is gone: the broker has their messages again.
    pub fn disconnect(&mut self, worker: usize, returned: bool) {
        let process = &mut self.workers[worker];
        for hand in 0..process.hands.len() {
            let held = &mut process.hands[hand];
            if held.alive && returned {
                self.messages.push(Message {
                    place: Place::Work,
                    generation: held.generation,
                    redelivered: true,
                });
            }
            held.alive = false;
        }
        let mut hand = 0;
        while hand < process.hands.len() {
            match process.hands[hand].stage {
                Stage::Received | Stage::Mine { .. } | Stage::Acknowledging(_) => {
                    process.hands.remove(hand);
                }
                _ => hand += 1,
            }
        }
    }

    /// The process ends, be it killed or because it leaves, and another one takes its place.
    pub fn end(&mut self, worker: usize, said_goodbye: bool) {
        self.disconnect(worker, true);
        if self.holds(worker) {
            let process = &self.workers[worker];
            self.remains = match (said_goodbye || process.stale, process.presence) {
                (true, _) => Remains::Silent,
                (false, Presence::Held) => Remains::LockHeld,
                (false, _) => Remains::LockFree,
            };
            if let Some(job) = &mut self.job {
                job.holder = Some(crate::words::DEAD);
            }
        }
        self.workers[worker] = Process::FRESH;
    }

    /// A run ends without a word: what it wrote is written, its job stays held.
    pub fn break_off(&mut self, worker: usize, hand: usize) -> Option<()> {
        let held = &mut self.workers[worker].hands[hand];
        let Stage::Running(run) = held.stage else {
            return None;
        };
        held.stage = Stage::BrokenOff { epoch: run.epoch };
        Some(())
    }
}
