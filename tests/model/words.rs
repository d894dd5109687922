//! The words of the model: what a state of the world is made of.
//!
//! A state holds one job in the ledger, its messages in the broker, and two worker processes with what they have in hand. It
//! is small and has one form: messages and hands are sorted, epochs and generations are renumbered in their order (nothing but
//! their order and equality is ever looked at), so a world that goes in a circle comes back to the same state.

use crate::table::{Doing, Id, Job, Lock, MOST_TASKS, Pulse, Signs, Status};

/// How many worker processes there are at a time.
pub const WORKERS: usize = 2;
/// The holder of a job that a crashed process left behind: a process that begins anew has another id.
pub const DEAD: Id = WORKERS as Id;
/// After so many attempts of a task its job is given up.
pub const MOST_ATTEMPTS: u8 = 2;
/// After so many crashes of a task its job is given up.
pub const CRASH_LIMIT: u8 = 2;
/// So many deliveries the broker hands to a process before it settles one.
pub const PREFETCH: usize = 3;
/// More messages or hands than this there never are; the model says so if there are.
const MOST_MESSAGES: usize = 10;
const MOST_HANDS: usize = 12;

/// Where a message waits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The work queue.
    Work,
    /// Some delay queue. Time is no part of the model: it is over when it is over.
    Rung,
    /// The dead queue, where people see it.
    Dead,
}

/// A message of the job, in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Message {
    pub place: Place,
    pub generation: u8,
    /// The broker's flag, or the mark that a copy carries.
    pub redelivered: bool,
}

/// What a run writes when a task has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Write {
    /// SUCCESS, and the next task or the job's end.
    Advance,
    /// SUCCESS, and the rest of the job handed back: to the broker at once (it stops), or under a new copy (it was held long).
    HandBack { stops: bool },
    /// FAILED, to be tried again.
    Retry,
    /// FAILED for good.
    GiveUp,
    /// Put off without a failure, because the handler is braked: before it begins, or after a probe of it failed.
    Defer,
    /// The attempt is cut short.
    Release,
}

/// What a run does now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// The next task is to begin.
    Starting,
    /// Its handler runs. When it has ended, its write is committed in the same step.
    Handling,
    /// The write was committed or not, its answer is lost, and it is sent again.
    Writing(Write),
}

/// A run of the job: its epoch, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Run {
    pub epoch: u8,
    /// Counted from 0.
    pub position: u8,
    pub attempt: u8,
    /// Too many workers have died in this task: it is parked instead of begun.
    pub parks: bool,
    /// It is the process's run of this job, which adopts deliveries; an older one is not any more.
    pub current: bool,
    /// It was told to stop.
    pub cancelled: bool,
    /// Its claim was asked in a session of the lock that is gone: it is handed back.
    pub late: bool,
    /// For the promises: its job was taken over while the process was paused, or cut off without having noticed, and nothing
    /// has told it since. This alone excuses a task that begins once more.
    pub robbed: bool,
    pub phase: Phase,
}

/// Why a delivery is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Why {
    /// The job is over.
    Over,
    /// The copy that replaces it is confirmed.
    Replaced,
    /// It is of an older generation, and the claim said that its successor is there.
    Stale,
    /// This process runs the job under another delivery.
    OneTooMany,
    /// For no reason at all: a rule was taken away.
    RuleTakenAway,
}

/// How far a delivery is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Received; it waits for its turn.
    Received,
    /// It has its turn, and its claim is on its way; `late`, when the session in which it was asked is gone.
    Claiming { running: Option<u8>, late: bool },
    /// Claimed; the answer is not yet registered.
    Claimed(Run),
    /// The claim said that this process runs the job, at this epoch.
    Mine { epoch: u8 },
    /// The job runs.
    Running(Run),
    /// The run ended without a word; the next heartbeat releases the job.
    BrokenOff { epoch: u8 },
    /// Its copy is to be confirmed.
    Publishing(Message),
    /// It is to be acknowledged.
    Acknowledging(Why),
}

/// A delivery in the hands of a process, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Hand {
    pub stage: Stage,
    /// Whether it can still be settled; if not, its message is back in its queue.
    pub alive: bool,
    pub generation: u8,
    pub redelivered: bool,
    /// It has the process's one permit for suspects.
    pub alone: bool,
}

impl Hand {
    pub fn run(&self) -> Option<&Run> {
        match &self.stage {
            Stage::Running(run) => Some(run),
            _ => None,
        }
    }

    /// Whether others of this job have to wait for it.
    pub fn has_turn(&self) -> bool {
        matches!(
            self.stage,
            Stage::Claiming { .. } | Stage::Claimed(_) | Stage::Mine { .. }
        )
    }

    /// The epoch that it names.
    fn epoch(&mut self) -> Option<&mut u8> {
        match &mut self.stage {
            Stage::Claiming { running, .. } => running.as_mut(),
            Stage::Claimed(run) | Stage::Running(run) => Some(&mut run.epoch),
            Stage::Mine { epoch } | Stage::BrokenOff { epoch } => Some(epoch),
            Stage::Received | Stage::Publishing(_) | Stage::Acknowledging(_) => None,
        }
    }
}

/// The lock of a living process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Presence {
    Held,
    /// Its session is gone, and the process does not know yet.
    LostUnnoticed,
    /// It knows, and starts nothing.
    Lost,
}

/// A worker process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Process {
    pub presence: Presence,
    /// Its heartbeat is too old: it is paused, or cut off. What it has begun may go on all the same.
    pub stale: bool,
    /// It was asked to stop.
    pub stops: bool,
    pub hands: List<Hand, MOST_HANDS>,
}

impl Process {
    pub const FRESH: Process = Process {
        presence: Presence::Held,
        stale: false,
        stops: false,
        hands: List::EMPTY_HANDS,
    };

    /// Whether the broker hands it one more.
    pub fn has_room(&self) -> bool {
        !self.stops && self.hands.iter().filter(|hand| hand.alive).count() < PREFETCH
    }

    /// The epoch at which it runs the job.
    pub fn running(&self) -> Option<u8> {
        let runs = self.hands.iter().filter_map(Hand::run);
        runs.filter(|run| run.current).map(|run| run.epoch).next()
    }
}

/// What is left of a crashed process that held the job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Remains {
    /// Its lock has not fallen yet.
    LockHeld,
    /// Its lock is free, its last heartbeat still young.
    LockFree,
    /// Its heartbeat is stale, or it said goodbye.
    Silent,
}

/// Whether the broker has the mark, by which the reconciler knows a broker that lost its disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mark {
    There,
    Missing,
    /// Still missing, but whatever was given up is owed again. It is left next, on the connection on which it was missed.
    Due,
}

/// A state of the world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub job: Option<Job>,
    /// What handlers wrote through their transactions: how often it is there, by position.
    pub effects: [u8; MOST_TASKS],
    /// A worker knows that a copy of the ledger's generation is confirmed, and has not written it yet.
    pub confirmed: bool,
    pub messages: List<Message, MOST_MESSAGES>,
    pub mark: Mark,
    /// The job was given up before the broker lost its disk, and the reconciler has not looked since.
    pub forgotten: bool,
    pub workers: [Process; WORKERS],
    /// Of the process that left the job behind, while the ledger names it as the holder.
    pub remains: Remains,
    /// How many faults have happened.
    pub faults: u8,
    /// The broker itself lost messages, or put them aside: only the reconciler can mend that.
    pub broker_lost: bool,
    /// Promises that were seen broken, by their bits.
    pub broken: u8,
}

impl World {
    /// What the ledger sees of the job's holder.
    pub fn signs(&self) -> Signs {
        let holder = self.job.and_then(|job| job.holder);
        let (free, silent) = match holder {
            None => (false, false),
            Some(DEAD) => (
                self.remains != Remains::LockHeld,
                self.remains == Remains::Silent,
            ),
            Some(id) => {
                let process = &self.workers[id as usize];
                (process.presence != Presence::Held, process.stale)
            }
        };
        Signs {
            lock: if free { Lock::Free } else { Lock::Held },
            pulse: if silent { Pulse::Stale } else { Pulse::Fresh },
        }
    }

    pub fn holds(&self, worker: usize) -> bool {
        self.job.is_some_and(|job| job.holder == Some(worker as Id))
    }

    pub fn hands(&self) -> impl Iterator<Item = &Hand> {
        self.workers.iter().flat_map(|worker| worker.hands.iter())
    }

    /// Nothing is left to do, nothing waits, and nobody has anything in hand.
    pub fn is_at_rest(&self) -> bool {
        let dead = |message: &Message| message.place == Place::Dead;
        let over = match self.job {
            // The broker lost it, or put it where people see it, before anybody took it.
            None => self.broker_lost,
            Some(job) => match job.status {
                Status::Success | Status::Cancelled => true,
                Status::Failed => self.is_parked(),
                _ => false,
            },
        };
        over && self.messages.iter().all(dead) && self.hands().next().is_none()
    }

    /// People see that the job was given up: a message of its present generation is in the dead queue.
    pub fn is_parked(&self) -> bool {
        let generation = self.job.map(|job| job.generation);
        let shows = |message: &Message| {
            message.place == Place::Dead && Some(message.generation) == generation
        };
        self.messages.iter().any(shows)
    }

    /// Somebody else has taken over from whoever ran the job at this epoch. One who knows that its lock is gone expects it.
    pub fn rob(&mut self, epoch: u8) {
        for worker in &mut self.workers {
            let unaware = worker.presence != Presence::Lost;
            for hand in worker.hands.iter_mut() {
                if let Stage::Claimed(run) | Stage::Running(run) = &mut hand.stage {
                    run.robbed |= unaware && run.epoch == epoch;
                }
            }
        }
    }

    /// Gives the state its one form; whether the two workers have changed places.
    pub fn settle(&mut self) -> bool {
        self.forget();
        self.renumber_generations();
        self.renumber_epochs();
        self.messages.sort();
        for worker in &mut self.workers {
            worker.hands.sort();
        }
        self.order_workers()
    }

    /// What nobody will ever look at again has one form.
    fn forget(&mut self) {
        for worker in &mut self.workers {
            for hand in worker.hands.iter_mut() {
                let looks = matches!(
                    hand.stage,
                    Stage::Received | Stage::Claiming { .. } | Stage::Mine { .. }
                );
                // Whatever is delivered again is flagged by that.
                hand.redelivered &= looks;
                hand.alone &= looks || matches!(hand.stage, Stage::Claimed(_) | Stage::Running(_));
                if let Stage::Publishing(copy) = hand.stage
                    && !hand.alive
                {
                    hand.generation = copy.generation;
                }
            }
        }
        if self.job.is_none_or(|job| job.holder != Some(DEAD)) {
            self.remains = Remains::Silent;
        }
        self.forgotten &= self.job.is_some_and(|job| job.status == Status::Failed);
        if self.mark == Mark::Missing && !self.forgotten {
            // A look that finds nothing may as well have been made.
            self.mark = Mark::Due;
        }
        // Two equal ones in the dead queue are no more than one: an operator who moves both moves one and doubles it.
        self.messages.sort();
        let mut index = 1;
        while index < self.messages.len() {
            let message = self.messages[index];
            match message.place == Place::Dead && message == self.messages[index - 1] {
                true => {
                    self.messages.remove(index);
                    self.messages.sort();
                }
                false => index += 1,
            }
        }
        if let Some(job) = &mut self.job {
            self.confirmed &= job.sent < job.generation as i8;
            for task in &mut job.tasks {
                task.crashes = match task.status {
                    Doing::Success => 0,
                    _ => task.crashes.min(CRASH_LIMIT),
                };
            }
        }
    }

    /// A generation is the ledger's or an older one: nothing else is ever asked of it, and what is older stays so.
    fn renumber_generations(&mut self) {
        let Some(job) = &mut self.job else { return };
        let ledgers = job.generation;
        let rank = |generation: u8| u8::from(generation >= ledgers);
        job.sent = match job.sent {
            ..0 => -1,
            sent => rank(sent as u8) as i8,
        };
        job.generation = 1;
        for message in self.messages.iter_mut() {
            message.generation = rank(message.generation);
        }
        for worker in &mut self.workers {
            for hand in worker.hands.iter_mut() {
                hand.generation = rank(hand.generation);
                if let Stage::Publishing(copy) = &mut hand.stage {
                    copy.generation = rank(copy.generation);
                }
            }
        }
    }

    /// The two workers are alike, so a world and its mirror image are one.
    fn order_workers(&mut self) -> bool {
        let held = |worker: usize| self.job.is_some_and(|job| job.holder == Some(worker as Id));
        let order = (&self.workers[0], held(0)).cmp(&(&self.workers[1], held(1)));
        let swap = order == std::cmp::Ordering::Greater;
        if swap {
            self.workers.swap(0, 1);
            if let Some(job) = &mut self.job {
                job.holder = job.holder.map(|holder| match holder {
                    DEAD => DEAD,
                    id => 1 - id,
                });
            }
        }
        swap
    }

    fn renumber_epochs(&mut self) {
        let Some(job) = &mut self.job else { return };
        let mut used = 1u64 | 1 << job.epoch;
        for worker in &mut self.workers {
            for hand in worker.hands.iter_mut() {
                if let Some(epoch) = hand.epoch() {
                    used |= 1 << *epoch;
                }
            }
        }
        // A task's epoch that no run names says no more than that it is an older one.
        let rank = |epoch: u8| match used >> epoch & 1 {
            1 => (used & ((1 << epoch) - 1)).count_ones() as u8,
            _ => 0,
        };
        job.epoch = rank(job.epoch);
        for task in &mut job.tasks {
            task.epoch = match task.status {
                Doing::Pending => 0,
                _ => rank(task.epoch),
            };
            if task.status == Doing::Success && task.epoch == 0 {
                task.attempt = 0;
            }
        }
        for worker in &mut self.workers {
            for hand in worker.hands.iter_mut() {
                if let Some(epoch) = hand.epoch() {
                    *epoch = rank(*epoch);
                }
            }
        }
    }
}

/// A short list without a heap, so that a state is one piece of memory.
#[derive(Clone, Copy)]
pub struct List<T, const MOST: usize> {
    len: u8,
    items: [T; MOST],
}

impl List<Hand, MOST_HANDS> {
    const EMPTY_HANDS: Self = Self {
        len: 0,
        items: [Hand {
            stage: Stage::Received,
            alive: false,
            generation: 0,
            redelivered: false,
            alone: false,
        }; MOST_HANDS],
    };
}

impl List<Message, MOST_MESSAGES> {
    pub const EMPTY_MESSAGES: Self = Self {
        len: 0,
        items: [Message {
            place: Place::Work,
            generation: 0,
            redelivered: false,
        }; MOST_MESSAGES],
    };
}

impl<T: Copy + Ord, const MOST: usize> List<T, MOST> {
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items[..self.len as usize].iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.items[..self.len as usize].iter_mut()
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn push(&mut self, item: T) {
        assert!(self.len() < MOST, "more than {MOST} at a time");
        self.items[self.len()] = item;
        self.len += 1;
    }

    pub fn remove(&mut self, index: usize) -> T {
        let item = self.items[index];
        let last = self.len() - 1;
        self.items[index] = self.items[last];
        self.len -= 1;
        item
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    fn sort(&mut self) {
        self.items[..self.len as usize].sort_unstable();
    }
}

impl<T, const MOST: usize> std::ops::Index<usize> for List<T, MOST> {
    type Output = T;
    fn index(&self, index: usize) -> &T {
        &self.items[..self.len as usize][index]
    }
}

impl<T, const MOST: usize> std::ops::IndexMut<usize> for List<T, MOST> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.items[..self.len as usize][index]
    }
}

// What stands behind the length is no part of the list.
impl<T: PartialEq, const MOST: usize> PartialEq for List<T, MOST> {
    fn eq(&self, other: &Self) -> bool {
        self.items[..self.len as usize] == other.items[..other.len as usize]
    }
}

impl<T: Eq, const MOST: usize> Eq for List<T, MOST> {}

impl<T: Ord, const MOST: usize> PartialOrd for List<T, MOST> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord, const MOST: usize> Ord for List<T, MOST> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.items[..self.len as usize].cmp(&other.items[..other.len as usize])
    }
}

impl<T: std::hash::Hash, const MOST: usize> std::hash::Hash for List<T, MOST> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.items[..self.len as usize].hash(state);
    }
}

impl<T: std::fmt::Debug, const MOST: usize> std::fmt::Debug for List<T, MOST> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(&self.items[..self.len as usize])
            .finish()
    }
}
