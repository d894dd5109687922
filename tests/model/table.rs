//! The claim's table, once: a pure function of what the ledger says, of what is asked, and of the holder's signs of life.
//!
//! The model takes its claims from here, and `src/ledger/tests/table.rs` runs every row of it against the real statement.
//! That is why this file knows nothing but itself. A job is what the rows look at: its columns and those of its tasks.

/// The most tasks of a job.
pub const MOST_TASKS: usize = 3;

/// A worker process, as `jobs.holder` names it.
pub type Id = u8;

/// `jobs.status`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Status {
    Pending,
    Processing,
    Retrying,
    Success,
    Failed,
    Cancelled,
}

/// `tasks.status`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Doing {
    Pending,
    Processing,
    Success,
    Failed,
}

/// One row of `tasks`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Task {
    pub status: Doing,
    pub epoch: u8,
    pub attempt: u8,
    pub crashes: u8,
}

impl Task {
    pub const WAITING: Task = Task {
        status: Doing::Pending,
        epoch: 0,
        attempt: 0,
        crashes: 0,
    };
}

/// One row of `jobs`, and its tasks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Job {
    pub status: Status,
    pub epoch: u8,
    pub generation: u8,
    /// The highest generation whose copy is known to be confirmed; below 0 while the job was only enqueued in SQL.
    pub sent: i8,
    pub holder: Option<Id>,
    pub total: u8,
    pub tasks: [Task; MOST_TASKS],
}

impl Job {
    /// Its first task that is not SUCCESS, counted from 0.
    pub fn frontier(&self) -> Option<usize> {
        (0..self.total as usize).find(|&index| self.tasks[index].status != Doing::Success)
    }
}

/// What a delivery asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Asked {
    /// The process that asks.
    pub by: Id,
    /// The message is of another content than the stored job.
    pub conflict: bool,
    pub generation: u8,
    pub redelivered: bool,
    /// The epoch at which the asking process runs the job now.
    pub running: Option<u8>,
    /// It has the process's one permit for jobs in whose next task a worker has died.
    pub alone: bool,
}

/// The session lock of a job's holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lock {
    Held,
    Free,
    /// It was taken before Postgres itself began, so its freedom says nothing.
    FreeSinceRestart,
}

/// The heartbeat of a job's holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pulse {
    Fresh,
    Stale,
    /// It said that it leaves.
    Goodbye,
    /// The ledger knows no such worker.
    Forgotten,
}

/// What the ledger sees of a job's holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Signs {
    pub lock: Lock,
    pub pulse: Pulse,
}

/// How a claim came to its job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    New,
    Retried,
    Regained,
    TakenOver,
    Resumed,
}

/// What a claim is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    Claimed {
        way: Way,
        epoch: u8,
        generation: u8,
        /// Counted from 0.
        position: u8,
        attempt: u8,
        crashes: u8,
    },
    Conflict,
    Foreign {
        generation: u8,
    },
    ParkAgain {
        generation: u8,
    },
    Finished,
    Stale,
    Superseded {
        generation: u8,
    },
    Mine,
    Busy,
    Suspect {
        crashes: u8,
    },
}

/// The table's parts that can be taken away, to see what they are there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rows {
    /// Rows 3, 5 and 6: an older generation is recognised.
    pub generations: bool,
    /// Row 7 compares the epoch, and not only the job.
    pub epoch_in_mine: bool,
    /// Row 8.
    pub regained: bool,
    /// Row 9 hears the lock, and not the heartbeat alone.
    pub two_witnesses: bool,
    /// A copy that is known to be confirmed is not sent again.
    pub sent: bool,
    /// A job in whose next task a worker has died is claimed in two steps.
    pub suspects: bool,
}

impl Rows {
    /// As it is.
    pub const ALL: Rows = Rows {
        generations: true,
        epoch_in_mine: true,
        regained: true,
        two_witnesses: true,
        sent: true,
        suspects: true,
    };
}

/// The claim: answers with the first row that matches, and changes the ledger as that row says.
///
/// `total` is how many tasks the message has, `signs` are those of the job's holder.
pub fn claim(
    ledger: &mut Option<Job>,
    total: u8,
    asked: Asked,
    signs: Signs,
    rows: Rows,
) -> Answer {
    // Row 1.
    let Some(job) = ledger else {
        let mut tasks = [Task::WAITING; MOST_TASKS];
        tasks[0] = Task {
            status: Doing::Processing,
            epoch: 1,
            attempt: 1,
            crashes: 0,
        };
        *ledger = Some(Job {
            status: Status::Processing,
            epoch: 1,
            generation: asked.generation,
            sent: asked.generation as i8,
            holder: Some(asked.by),
            total,
            tasks,
        });
        return Answer::Claimed {
            way: Way::New,
            epoch: 1,
            generation: asked.generation,
            position: 0,
            attempt: 1,
            crashes: 0,
        };
    };
    let older = rows.generations && asked.generation < job.generation;
    let newer = asked.generation > job.generation;
    let sent = rows.sent && job.sent >= job.generation as i8;
    let generation = job.generation;
    let way = match job.status {
        // Row 0.
        _ if asked.conflict => return Answer::Conflict,
        // Row 2.
        Status::Pending | Status::Retrying | Status::Failed if newer => {
            return Answer::Foreign { generation };
        }
        // Rows 2a and 3.
        Status::Failed if !older => Way::Retried,
        Status::Failed if sent => return Answer::Stale,
        Status::Failed => return Answer::ParkAgain { generation },
        // Row 4.
        Status::Success | Status::Cancelled => return Answer::Finished,
        // Rows 5 and 6.
        _ if older && (job.holder.is_some() || sent) => return Answer::Stale,
        _ if older => return Answer::Superseded { generation },
        // Rows 7 and 8.
        _ if job.holder == Some(asked.by)
            && asked
                .running
                .is_some_and(|running| running == job.epoch || !rows.epoch_in_mine) =>
        {
            return Answer::Mine;
        }
        _ if job.holder == Some(asked.by) && rows.regained => Way::Regained,
        // Row 11, which asks for nothing that rows 9 and 10 could answer.
        _ if job.holder.is_none() => Way::Resumed,
        // Rows 9 and 10.
        _ if is_dead(signs, asked.redelivered, rows) => Way::TakenOver,
        _ => return Answer::Busy,
    };
    begin(job, asked, way, rows)
}

/// Row 9's condition.
fn is_dead(signs: Signs, redelivered: bool, rows: Rows) -> bool {
    match signs.pulse {
        Pulse::Stale | Pulse::Goodbye | Pulse::Forgotten => true,
        Pulse::Fresh => rows.two_witnesses && redelivered && signs.lock == Lock::Free,
    }
}

/// The job begins at its frontier, or is told to be a suspect.
fn begin(job: &mut Job, asked: Asked, way: Way, rows: Rows) -> Answer {
    let Some(position) = job.frontier() else {
        unreachable!("a job whose tasks are all SUCCESS is SUCCESS")
    };
    let task = &mut job.tasks[position];
    task.crashes = match way {
        Way::Retried => 0,
        Way::TakenOver => task.crashes + 1,
        _ => task.crashes,
    };
    let suspect = rows.suspects && !asked.alone && way != Way::Retried && task.crashes > 0;
    let begins = u8::from(task.status != Doing::Processing);
    task.attempt = match way {
        Way::Retried => 1,
        _ => task.attempt + begins - u8::from(suspect),
    };
    task.status = if suspect {
        Doing::Pending
    } else {
        Doing::Processing
    };
    job.epoch += 1;
    task.epoch = job.epoch;
    (job.status, job.holder) = match suspect {
        true => (Status::Pending, None),
        false => (Status::Processing, Some(asked.by)),
    };
    match suspect {
        true => Answer::Suspect {
            crashes: task.crashes,
        },
        false => Answer::Claimed {
            way,
            epoch: job.epoch,
            generation: job.generation,
            position: position as u8,
            attempt: task.attempt,
            crashes: task.crashes,
        },
    }
}
