//! A counter-example in words.

use std::fmt::Write as _;

use stateright::Path;

use crate::{
    protocol::Protocol,
    steps::{Act, Step},
    table::{Doing, Id, Status},
    words::{DEAD, Hand, Message, Phase, Place, Stage, Why, World, Write},
};

/// The workers' names: those of a state that was mirrored are exchanged.
struct Names([char; 2]);

/// Tells a path step by step, and how the ledger stands after each act.
pub fn tell(protocol: &Protocol, path: Path<World, Act>) -> String {
    let (mut text, mut names, mut number) = (String::new(), Names(['A', 'B']), 0);
    for (world, act) in path.into_vec() {
        let Some(act) = act else { break };
        let told = &mut text;
        let end = protocol.perform(&world, act, |before, step, after| {
            number += 1;
            let fault = if step.is_fault() { "FAULT: " } else { "" };
            let sentence = names.sentence(before, step, after);
            let _ = writeln!(told, "{number:>4}. {fault}{sentence}");
        });
        let Some(mut end) = end else { break };
        if end.job != world.job {
            let _ = writeln!(text, "      the ledger: {}", names.ledger(&end));
        }
        if end.settle() {
            names.0.swap(0, 1);
        }
    }
    text
}

impl Names {
    fn of(&self, worker: usize) -> String {
        format!("worker {}", self.0[worker])
    }

    fn holder(&self, id: Id) -> String {
        match id {
            DEAD => "a worker that is no more".into(),
            id => self.of(id as usize),
        }
    }

    fn ledger(&self, world: &World) -> String {
        let Some(job) = world.job else {
            return "no such job".into();
        };
        let status = match job.status {
            Status::Pending => "PENDING",
            Status::Processing => "PROCESSING",
            Status::Retrying => "RETRYING",
            Status::Success => "SUCCESS",
            Status::Failed => "FAILED",
            Status::Cancelled => "CANCELLED",
        };
        let tasks = job.tasks[..job.total as usize].iter();
        let tasks: Vec<_> = tasks
            .map(|task| match task.status {
                Doing::Pending => "pending",
                Doing::Processing => "processing",
                Doing::Success => "success",
                Doing::Failed => "failed",
            })
            .collect();
        let holder = job
            .holder
            .map(|id| format!(", held by {}", self.holder(id)));
        let parked = match job.status {
            Status::Failed if job.sent >= job.generation as i8 => ", its copy known to be parked",
            Status::Failed => ", owed a copy in the dead queue",
            _ => "",
        };
        format!(
            "{status}{}{parked} ({})",
            holder.unwrap_or_default(),
            tasks.join(", ")
        )
    }

    fn sentence(&self, before: &World, step: Step, after: &World) -> String {
        let of = |worker| self.of(worker);
        let hand = |worker: usize, hand: usize| before.workers[worker].hands[hand];
        match step {
            Step::Deliver { message, to } => {
                format!(
                    "the broker delivers {} to {}",
                    a_message(before, &before.messages[message]),
                    of(to)
                )
            }
            Step::RungOver { .. } => "the delay is over: the message is in the work queue".into(),
            Step::TakeTurn { worker, hand } => {
                match before.workers[worker].hands.len() > after.workers[worker].hands.len() {
                    true => format!("{} stops, and gives the message back unread", of(worker)),
                    false => match after.workers[worker].hands[hand].stage {
                        Stage::Claiming {
                            running: Some(_), ..
                        } => {
                            format!("{} claims the job, which it runs already", of(worker))
                        }
                        _ => format!("{} claims the job", of(worker)),
                    },
                }
            }
            Step::Claim {
                worker,
                answer_lost: true,
                ..
            } => {
                format!(
                    "the claim of {} is committed, its answer is lost; it is asked again",
                    of(worker)
                )
            }
            Step::Claim { worker, hand, .. } => {
                let stage = after.workers[worker]
                    .hands
                    .iter()
                    .nth(hand)
                    .map(|hand| hand.stage);
                let gone = before.workers[worker].hands.len() > after.workers[worker].hands.len();
                let answer = match stage {
                    _ if gone => "not its own to run; and its delivery was lost".into(),
                    Some(Stage::Claimed(run)) => match before.job {
                        None => format!("Claimed: a new job, from task {} on", run.position + 1),
                        Some(job) if job.holder == Some(worker as Id) => {
                            format!("Claimed once more, from task {} on", run.position + 1)
                        }
                        Some(job) if job.holder.is_some() => {
                            format!("Claimed: taken over, from task {} on", run.position + 1)
                        }
                        Some(_) => format!("Claimed, from task {} on", run.position + 1),
                    },
                    Some(Stage::Mine { .. }) => "Mine".into(),
                    Some(Stage::Received) => {
                        "Suspect; it may run alone, and claims once more".into()
                    }
                    Some(Stage::Publishing(copy)) => match copy.place {
                        Place::Dead => "ParkAgain".into(),
                        _ if before.job.is_some_and(|job| job.holder.is_some()) => "Busy".into(),
                        _ => "Superseded, or a suspect that has to wait".into(),
                    },
                    Some(Stage::Acknowledging(Why::Over)) => "Finished".into(),
                    Some(Stage::Acknowledging(Why::Stale)) => "Stale".into(),
                    Some(Stage::Acknowledging(_)) => {
                        "not its own to run; the rule that says what to do is taken away".into()
                    }
                    other => format!("{other:?}"),
                };
                format!("{} is answered: {answer}", of(worker))
            }
            Step::Register { worker, .. } => format!("{} registers its run", of(worker)),
            Step::Adopt { worker, hand } => {
                let adopted =
                    before.workers[worker].hands.len() > after.workers[worker].hands.len();
                let what = match (
                    adopted,
                    after.workers[worker]
                        .hands
                        .iter()
                        .nth(hand)
                        .map(|hand| hand.stage),
                ) {
                    (true, _) => "a run that had lost its delivery adopts this one",
                    (_, Some(Stage::Acknowledging(_))) => {
                        "the run has a delivery; this one is one too many"
                    }
                    _ => "the run has just ended; it claims again",
                };
                format!("{}: {what}", of(worker))
            }
            Step::Start { worker, hand } => match after.workers[worker].hands[hand].run() {
                Some(run) => format!("{} begins task {}", of(worker), run.position + 1),
                None => format!("{} begins a task", of(worker)),
            },
            Step::Write {
                worker,
                hand: index,
                write,
                answer_lost,
            } => {
                let run = hand(worker, index).run().copied();
                let task = run.map_or(0, |run| run.position + 1);
                let what = match write {
                    Write::Advance => format!("task {task} ended well: SUCCESS"),
                    Write::HandBack { stops: true } => format!(
                        "task {task} ended well, and it stops: SUCCESS, the rest is handed back"
                    ),
                    Write::HandBack { stops: false } => format!(
                        "task {task} ended well, and the delivery was held for long: SUCCESS, the rest is handed over"
                    ),
                    Write::Retry => format!("task {task} failed, to be tried again"),
                    Write::GiveUp => format!("task {task} failed for good"),
                    Write::Defer => format!("task {task} is put off, its handler is braked"),
                    Write::Release => "it releases the job".into(),
                };
                let end = match answer_lost {
                    true => "; the answer is lost",
                    false if before.job == after.job => ": nothing is changed",
                    false => ", committed",
                };
                format!("{}: {what}{end}", of(worker))
            }
            Step::Repeat {
                worker,
                hand: index,
            } => {
                let end = match before.job == after.job {
                    true => "finds out what became of it",
                    false => "has it committed now",
                };
                match hand(worker, index).run().map(|run| run.phase) {
                    Some(Phase::Writing(_)) => {
                        format!("{} sends that write again, and {end}", of(worker))
                    }
                    _ => format!("{} repeats a write", of(worker)),
                }
            }
            Step::Stop { worker, .. } => format!(
                "{} stops a run that is no longer its own, and gives its delivery back",
                of(worker)
            ),
            Step::Publish {
                worker,
                hand: index,
                confirm_lost,
            } => {
                let copy = match hand(worker, index).stage {
                    Stage::Publishing(copy) => {
                        format!("{} to {}", a_message(before, &copy), place(copy.place))
                    }
                    _ => "a copy".into(),
                };
                let confirm = match confirm_lost {
                    true => "; the confirm is lost, it is sent again",
                    false => ", confirmed",
                };
                format!("{} sends {copy}{confirm}", of(worker))
            }
            Step::GiveBack { worker, .. } => format!(
                "{} cannot send the copy, and gives the message back",
                of(worker)
            ),
            Step::Acknowledge {
                worker,
                hand: index,
            } => {
                let Hand { generation, .. } = hand(worker, index);
                format!(
                    "{} acknowledges the message{}",
                    of(worker),
                    age(before, generation)
                )
            }
            Step::ReleaseOrphan { worker, .. } => {
                format!("the heartbeat of {} releases what broke off", of(worker))
            }
            Step::Beat { worker } => format!("{} beats", of(worker)),
            Step::Leave { worker } => {
                format!("{} leaves; a new process takes its place", of(worker))
            }
            Step::WriteSent => "it is noted that the copy is confirmed".into(),
            Step::Reconcile => "the reconciler sends the job's message".into(),
            Step::Forget { .. } => match before.job == after.job {
                true => "the reconciler misses the mark; nothing is to be parked again".into(),
                false => "the reconciler misses the mark: what was given up is owed again".into(),
            },
            Step::LeaveMark => "the reconciler leaves the mark".into(),
            Step::LockFalls => "Postgres frees the dead worker's lock".into(),
            Step::FallsSilent => "the dead worker's heartbeat is stale".into(),
            Step::Crash { worker } => {
                format!("{} is killed; a new process takes its place", of(worker))
            }
            Step::Disconnect { worker } => {
                format!("{} loses its connection to the broker", of(worker))
            }
            Step::LoseLock { worker } => format!("{} loses its lock's session", of(worker)),
            Step::MissBeats { worker } => {
                format!("the heartbeat of {} is stale, while it goes on", of(worker))
            }
            Step::AskToStop { worker } => format!("{} is asked to stop", of(worker)),
            Step::BreakOff { worker, .. } => {
                format!("a run of {} breaks off without a word", of(worker))
            }
            Step::Duplicate { message } => format!(
                "{} is doubled",
                a_message(before, &before.messages[message])
            ),
            Step::DeadLetter { .. } => {
                "the broker moves the message to the dead queue, having delivered it too often"
                    .into()
            }
            Step::Wipe => "the broker loses all its data".into(),
            Step::Retry => "an operator sends the job again".into(),
            Step::Move { .. } => "an operator moves a parked message to the work queue".into(),
            Step::Cancel => "an operator cancels the job".into(),
            Step::Skip { sent: true } => {
                "an operator skips the job's next task and sends the job on".into()
            }
            Step::Skip { sent: false } => {
                "an operator skips the job's next task, and is gone before the job is sent on"
                    .into()
            }
        }
    }
}

fn age(world: &World, generation: u8) -> &'static str {
    match world.job {
        Some(job) if generation < job.generation => " of an older generation",
        _ => "",
    }
}

fn a_message(world: &World, message: &Message) -> String {
    let flag = if message.redelivered {
        " (redelivered)"
    } else {
        ""
    };
    format!("a message{}{flag}", age(world, message.generation))
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Work => "the work queue",
        Place::Rung => "a rung",
        Place::Dead => "the dead queue",
    }
}
