//! The model as the checker sees it, and the question that the checker cannot ask: can the job still end?

use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use stateright::{Model, Property};

use crate::{
    promises::{self, SUCCESS_ONCE, success_is_touched},
    rules::Rules,
    steps::{Act, KINDS, Step},
    table::{Answer, Job, MOST_TASKS, Status, Task, Way},
    words::{List, Mark, Message, Phase, Place, Process, Remains, Stage, WORKERS, World},
};

/// The protocol, for so many tasks, with so many faults, and with its rules.
#[derive(Clone)]
pub struct Protocol {
    pub tasks: u8,
    pub faults: u8,
    pub rules: Rules,
    /// The one promise to look at; all, when it is none.
    pub watched: Option<&'static str>,
    /// Whether a process takes its steps at once where nothing comes of a delay (see [`Self::next_at_once`]).
    pub at_once: bool,
    /// Whether it takes its time between a claim's answer, the run and a task's beginning all the same.
    pub hesitates: bool,
    /// Whether the end may rest on the reconciler always, and not only where the broker has lost a message.
    pub reconciler_helps: bool,
    /// The faults that may happen; all, when it is none.
    pub kinds: Option<fn(Step) -> bool>,
    /// Which answers the table has given, and which steps were taken.
    seen: Arc<Seen>,
    ends: Arc<Ends>,
    ends_with_reconciler: Arc<Ends>,
}

impl Protocol {
    pub fn new(tasks: u8, faults: u8, rules: Rules) -> Self {
        Self {
            tasks,
            faults,
            rules,
            watched: None,
            at_once: true,
            hesitates: false,
            reconciler_helps: false,
            kinds: None,
            seen: Arc::default(),
            ends: Arc::default(),
            ends_with_reconciler: Arc::default(),
        }
    }

    pub fn watching(self, promise: &'static str) -> Self {
        Self {
            watched: Some(promise),
            ..self
        }
    }

    pub fn of_kinds(self, kinds: fn(Step) -> bool) -> Self {
        Self {
            kinds: Some(kinds),
            ..self
        }
    }

    pub fn with_the_reconcilers_help(self) -> Self {
        Self {
            reconciler_helps: true,
            ..self
        }
    }

    pub fn hesitating(self) -> Self {
        Self {
            hesitates: true,
            ..self
        }
    }

    pub fn step_by_step(self) -> Self {
        Self {
            at_once: false,
            ..self
        }
    }

    pub fn answered(&self, answer: &Answer) {
        self.seen
            .answers
            .fetch_or(1 << row(answer), Ordering::Relaxed);
    }

    /// How many of the table's answers have been given: all but Conflict and Foreign, when it is 12.
    pub fn answers(&self) -> u32 {
        self.seen.answers.load(Ordering::Relaxed).count_ones()
    }

    /// The numbers of the kinds of steps that were never taken.
    pub fn never_taken(&self) -> Vec<u32> {
        let steps = self.seen.steps.load(Ordering::Relaxed);
        (0..KINDS).filter(|kind| steps >> kind & 1 == 0).collect()
    }

    /// Whether the job can still end, and everything come to rest, by normal steps alone: no fault, no handler that fails.
    ///
    /// The reconciler is not needed for it, but where the broker itself lost a message, or where it has to send the first one.
    pub fn can_end(&self, world: &World) -> bool {
        let never_sent = world.job.is_some_and(|job| job.epoch == 0);
        match world.broker_lost || never_sent || self.reconciler_helps {
            false => self.ends.reached_from(self, world, false),
            true => self.ends_with_reconciler.reached_from(self, world, true),
        }
    }

    /// The step that a process takes without delay after the one it has just taken with this hand.
    ///
    /// Others could act in between, but nothing comes of it that does not come of acting before or after: they see the ledger
    /// and the queues only, and a message that is taken late or a copy that stays long on its rung stands for every delay.
    /// What does make a difference waits: the second claim of a suspect, an adoption, a handler, a repeated write, and
    /// whatever a fault has interrupted.
    fn next_at_once(&self, world: &World, last: Step) -> Option<Step> {
        if !self.at_once {
            return None;
        }
        let (worker, hand) = last.hand(world)?;
        let process = &world.workers[worker];
        let held = process.hands.iter().nth(hand)?;
        match held.stage {
            Stage::Received if !held.alone && self.may_take_turn(process) => {
                Some(Step::TakeTurn { worker, hand })
            }
            Stage::Claiming { .. } => Some(Step::Claim {
                worker,
                hand,
                answer_lost: false,
            }),
            Stage::Claimed(_) | Stage::Running(_) if self.hesitates => None,
            Stage::Claimed(_) if self.rules.registers_first => {
                Some(Step::Register { worker, hand })
            }
            Stage::Running(run) if run.phase == Phase::Starting => self
                .may_start(process, &run)
                .then_some(Step::Start { worker, hand }),
            Stage::Publishing(_) => Some(Step::Publish {
                worker,
                hand,
                confirm_lost: false,
            }),
            Stage::Acknowledging(_) => Some(Step::Acknowledge { worker, hand }),
            _ => None,
        }
    }

    /// The acts that begin with this step: undisturbed, and with every fault that can hit it on its way.
    fn acts(&self, world: &World, step: Step, acts: &mut Vec<Act>) {
        acts.push(Act::of(step));
        if world.faults + u8::from(step.is_fault()) >= self.faults {
            return;
        }
        let (mut midst, mut last) = (*world, step);
        let mut faults = Vec::new();
        for further in 0.. {
            if self.step(&mut midst, last).is_none() {
                return;
            }
            let Some(next) = self.next_at_once(&midst, last) else {
                return;
            };
            if let Some((worker, hand)) = last.hand(&midst) {
                self.faults_on_the_way(&midst, worker, hand, &mut faults);
            }
            acts.extend(
                faults
                    .drain(..)
                    .filter(|&fault| self.may_happen(fault))
                    .map(|fault| Act {
                        step,
                        further,
                        fault: Some(fault),
                    }),
            );
            last = next;
        }
    }

    /// Takes an act apart: tells each step and the world after it.
    pub fn perform(
        &self,
        before: &World,
        act: Act,
        mut tell: impl FnMut(&World, Step, &World),
    ) -> Option<World> {
        let mut world = *before;
        let mut last = act.step;
        let mut before = world;
        self.step(&mut world, last)?;
        tell(&before, last, &world);
        for _ in 0..act.further {
            let Some(next) = self.next_at_once(&world, last) else {
                break;
            };
            before = world;
            self.step(&mut world, next)?;
            tell(&before, next, &world);
            last = next;
        }
        if let Some(fault) = act.fault {
            before = world;
            self.step(&mut world, fault)?;
            tell(&before, fault, &world);
        }
        Some(world)
    }

    fn take(&self, before: &World, act: Act) -> Option<World> {
        let mut world = self.perform(before, act, |_, _, _| {})?;
        world.settle();
        Some(world)
    }

    fn may_happen(&self, fault: Step) -> bool {
        self.kinds.is_none_or(|kinds| kinds(fault))
    }

    fn step(&self, world: &mut World, step: Step) -> Option<()> {
        self.seen
            .steps
            .fetch_or(1 << step.number(), Ordering::Relaxed);
        let before = world.job;
        match step {
            Step::Deliver { message, to } => world.deliver(message, to),
            Step::RungOver { message } => world.messages[message].place = Place::Work,
            Step::TakeTurn { worker, hand } => self.take_turn(world, worker, hand),
            Step::Claim {
                worker,
                hand,
                answer_lost,
            } => self.claim(world, worker, hand, answer_lost)?,
            Step::Register { worker, hand } => self.register(world, worker, hand)?,
            Step::Adopt { worker, hand } => self.adopt(world, worker, hand)?,
            Step::Start { worker, hand } => self.start(world, worker, hand)?,
            Step::Write {
                worker,
                hand,
                write,
                answer_lost,
            } => self.write(world, worker, hand, write, answer_lost)?,
            Step::Repeat { worker, hand } => self.repeat(world, worker, hand)?,
            Step::Stop { worker, hand } | Step::GiveBack { worker, hand } => {
                world.give_back(worker, hand);
            }
            Step::Publish {
                worker,
                hand,
                confirm_lost,
            } => self.publish(world, worker, hand, confirm_lost)?,
            Step::Acknowledge { worker, hand } => self.acknowledge(world, worker, hand)?,
            Step::ReleaseOrphan { worker, hand } => self.release_orphan(world, worker, hand)?,
            Step::Beat { worker } => self.beat(world, worker),
            Step::Leave { worker } => world.end(worker, true),
            Step::WriteSent => world.write_sent(),
            Step::Reconcile => world.reconcile()?,
            Step::Forget { young } => world.forget_parked(young, &self.rules),
            Step::LeaveMark => world.mark = Mark::There,
            Step::LockFalls => world.remains = Remains::LockFree,
            Step::FallsSilent => world.remains = Remains::Silent,
            Step::Crash { worker } => world.end(worker, false),
            Step::Disconnect { worker } => world.disconnect(worker, true),
            Step::LoseLock { worker } => {
                world.workers[worker].presence = crate::words::Presence::LostUnnoticed;
            }
            Step::MissBeats { worker } => world.workers[worker].stale = true,
            Step::AskToStop { worker } => world.workers[worker].stops = true,
            Step::BreakOff { worker, hand } => world.break_off(worker, hand)?,
            Step::Duplicate { message } => world.duplicate(message),
            Step::DeadLetter { message } => {
                world.messages[message].place = Place::Dead;
                world.broker_lost = true;
            }
            Step::Wipe => world.wipe(&self.rules),
            Step::Retry => world.retry()?,
            Step::Move { message } => {
                world.messages[message].place = Place::Work;
            }
            Step::Cancel => world.cancel()?,
            Step::Skip { sent } => world.skip(sent)?,
        }
        if success_is_touched(&before, &world.job) {
            world.broken |= SUCCESS_ONCE;
        }
        world.faults += u8::from(step.is_fault());
        Some(())
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Act;

    /// A publisher's message waits, or a job was enqueued in SQL.
    fn init_states(&self) -> Vec<World> {
        let mut messages = List::EMPTY_MESSAGES;
        messages.push(Message {
            place: Place::Work,
            generation: 0,
            redelivered: false,
        });
        let published = World {
            job: None,
            effects: [0; MOST_TASKS],
            confirmed: false,
            messages,
            mark: Mark::There,
            forgotten: false,
            workers: [Process::FRESH; WORKERS],
            remains: Remains::Silent,
            faults: 0,
            broker_lost: false,
            broken: 0,
        };
        let job = Job {
            status: Status::Pending,
            epoch: 0,
            generation: 0,
            sent: -1,
            holder: None,
            total: self.tasks,
            tasks: [Task::WAITING; MOST_TASKS],
        };
        let enqueued = World {
            job: Some(job),
            messages: List::EMPTY_MESSAGES,
            ..published
        };
        vec![published, enqueued]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        let mut steps = Vec::new();
        self.outside_steps(world, &mut steps);
        self.reconciler_steps(world, &mut steps);
        for worker in 0..WORKERS {
            self.worker_steps(world, worker, &mut steps);
            self.contrary_steps(world, worker, &mut steps);
        }
        if world.faults < self.faults {
            for worker in 0..WORKERS {
                self.worker_faults(world, worker, &mut steps);
            }
            self.outside_faults(world, &mut steps);
        }
        steps.retain(|&step| !step.is_fault() || self.may_happen(step));
        for step in steps {
            self.acts(world, step, acts);
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        self.take(world, act)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let watched =
            |property: &Property<Self>| self.watched.is_none_or(|name| name == property.name);
        promises::all().into_iter().filter(watched).collect()
    }
}

/// What has occurred at all: a rule that nothing ever meets would hold for nothing.
#[derive(Default)]
struct Seen {
    answers: AtomicU32,
    steps: AtomicU64,
}

fn row(answer: &Answer) -> u32 {
    match answer {
        Answer::Claimed { way, .. } => match way {
            Way::New => 0,
            Way::Retried => 1,
            Way::Regained => 2,
            Way::TakenOver => 3,
            Way::Resumed => 4,
        },
        Answer::Conflict => 5,
        Answer::ParkAgain { .. } => 6,
        Answer::Finished => 7,
        Answer::Stale => 8,
        Answer::Superseded { .. } => 9,
        Answer::Mine => 10,
        Answer::Busy => 11,
        Answer::Suspect { .. } => 12,
        Answer::Foreign { .. } => 13,
    }
}

/// States from which the end is known to be reached, or not. How many faults have happened makes no difference.
#[derive(Default)]
pub struct Ends {
    good: Shards,
    bad: Shards,
}

type Known = HashSet<u64, BuildHasherDefault<Identity>>;

#[derive(Default)]
struct Shards([Mutex<Known>; 16]);

impl Shards {
    fn of(&self, key: u64) -> &Mutex<Known> {
        &self.0[(key >> 60) as usize]
    }

    fn has(&self, key: u64) -> bool {
        self.of(key).lock().unwrap().contains(&key)
    }

    fn insert(&self, key: u64) {
        self.of(key).lock().unwrap().insert(key);
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys")
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Ends {
    /// A search in depth through normal steps, which ends at the first state that is at rest or known. Nearly always that is
    /// a few steps away; a state is bad only when everything that can be reached from it has been seen.
    fn reached_from(&self, protocol: &Protocol, world: &World, with_reconciler: bool) -> bool {
        let mut seen = Known::default();
        let mut path: Vec<(u64, World, Vec<Step>)> = Vec::new();
        let mut next = Some(*world);
        loop {
            if let Some(world) = next.take() {
                let key = key(&world);
                if self.good.has(key) || world.is_at_rest() {
                    self.good.insert(key);
                    path.iter().for_each(|(key, ..)| self.good.insert(*key));
                    return true;
                }
                if seen.insert(key) && !self.bad.has(key) {
                    let mut steps = Vec::new();
                    if with_reconciler {
                        protocol.reconciler_steps(&world, &mut steps);
                    }
                    // The last is tried first: a worker's own next step.
                    protocol.outside_steps(&world, &mut steps);
                    for worker in (0..WORKERS).rev() {
                        protocol.worker_steps(&world, worker, &mut steps);
                    }
                    path.push((key, world, steps));
                }
            }
            let Some((_, world, steps)) = path.last_mut() else {
                seen.into_iter().for_each(|key| self.bad.insert(key));
                return false;
            };
            match steps.pop() {
                Some(step) => next = protocol.take(world, Act::of(step)),
                None => drop(path.pop()),
            }
        }
    }
}

fn key(world: &World) -> u64 {
    let World {
        job,
        effects: _,
        confirmed,
        messages,
        mark,
        forgotten,
        workers,
        remains,
        faults: _,
        broker_lost,
        broken: _,
    } = world;
    BuildHasherDefault::<DefaultHasher>::default().hash_one((
        job,
        confirmed,
        messages,
        mark,
        forgotten,
        workers,
        remains,
        broker_lost,
    ))
}
