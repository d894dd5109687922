//! Step: what happens to a job in the ordinary course. A job that nobody knew is admitted, with its first task begun; or a
//! task ended well, and what comes next begins. Both share one statement and one commit, since a lane has both to write at
//! almost every moment.
//!
//! An admission takes effect only for a job that nobody knows. Everything else about a claim is decided by the claim's own
//! statement, which is then asked: [`Claim`](super::Claim).
//!
//! Rows are locked in one order, here and in the claim: rows of `jobs` by id, then their tasks, then new ids. So two processes
//! that hold the same duplicates do not deadlock here.
//!
//! Nothing in this statement leaves the planner a choice, whatever it knows of the tables: `= ANY (ARRAY[…])` stands where
//! an equality would. To the planner that is no equality, so it sees no order that a walk through the whole index could
//! serve, and the only way to a row is to look it up. (With an equality, and statistics from when the tables were empty, it
//! walked through the index for every row. A range of one value pins the plan too, but walks to the end of the job.)

use std::{sync::LazyLock, time::Duration};

use sqlx::{PgConnection, Row};

use super::{
    Holder,
    advance::{Advance, Next, Written, written},
    claim::{Claim, Claimed, Way, bind_jobs, bind_tasks, created_tasks},
    lane::{Verb, column},
};
use crate::{
    fail_point::cut,
    job::{Epoch, Generation, JobId},
    metrics::Transition,
};

/// One step of one job.
#[derive(Debug)]
pub(crate) enum Step {
    /// The first delivery of a job, as it seems.
    Admit(Claim),
    /// One task ended well.
    Advance(Advance),
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// The job is there and ours.
    Admitted(Box<Claimed>),
    /// The job was there already: nothing was changed, and the claim is to be asked.
    Known,
    /// The task's end is written, or fenced.
    Advanced(Written),
}

/// What a group consists of. A statement has only the parts that its group needs: each part costs, even for no rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Jobs are admitted.
    pub(super) admits: bool,
    /// Tasks end, and the next ones begin.
    pub(super) moves: bool,
    /// Jobs end, or are handed back.
    pub(super) ends: bool,
}

/// The statements, by their parts.
static STATEMENTS: LazyLock<[String; 8]> = LazyLock::new(|| {
    std::array::from_fn(|index| {
        statement(Parts {
            admits: index & 1 != 0,
            moves: index & 2 != 0,
            ends: index & 4 != 0,
        })
    })
});

const ENDED: &str = r"ended AS (
    UPDATE cliquet.jobs job
       SET status = CASE v.next WHEN 'finish' THEN 'SUCCESS' ELSE 'PENDING' END::cliquet.job_status, holder = NULL,
           finished_at = CASE v.next WHEN 'finish' THEN clock_timestamp() END,
           next_attempt_at = CASE v.next WHEN 'hand_back' THEN clock_timestamp() END
      FROM v WHERE v.next <> 'task' AND job.id = ANY (ARRAY[v.job_id]) AND job.epoch = v.epoch AND job.status = 'PROCESSING'
               AND (v.next <> 'finish' OR v.position = job.total)
               AND (SELECT task.status = 'PROCESSING' AND task.epoch = v.epoch AND task.attempt = v.attempt
                      FROM cliquet.tasks task WHERE task.job_id = v.job_id AND task.position = v.position)
    RETURNING job.id
)";

/// What follows is the condition on the job.
const DONE: &str = r"done AS (
    UPDATE cliquet.tasks task SET status = 'SUCCESS', finished_at = clock_timestamp(), result = v.result::json
      FROM v WHERE task.job_id = ANY (ARRAY[v.job_id]) AND task.position = v.position
               AND task.status = 'PROCESSING' AND task.epoch = v.epoch AND task.attempt = v.attempt
               AND ";
const DONE_RETURNS: &str = r"
    RETURNING task.job_id, task.position, task.epoch, v.next
)";
/// `IN` stands inside an `OR` so that the planner hashes the small list instead of joining row by row with it. The count
/// is there to be reckoned first: it keeps the order of the locks.
const OF_ENDED: &str = "(v.next = 'task' OR v.job_id IN (SELECT ended.id FROM ended)) AND (SELECT count(*) FROM ended) >= 0";
const OF_MOVED: &str = "v.next = 'task'";

const BEGUN: &str = r"begun AS (
    UPDATE cliquet.tasks task SET status = 'PROCESSING', epoch = done.epoch, attempt = task.attempt + 1, started_at = clock_timestamp()
      FROM done WHERE done.next = 'task' AND task.job_id = ANY (ARRAY[done.job_id]) AND task.position = done.position + 1 AND task.status = 'PENDING'
    RETURNING 1
)";

/// What follows is the condition that keeps it behind the others.
const CREATED: &str = r"created AS (
    INSERT INTO cliquet.jobs (id, queue, kind, payload, fingerprint, total, status, epoch, generation, sent, holder, attempts, created_at, started_at)
    SELECT asked.id, $2, asked.kind, asked.payload::json, asked.fingerprint, asked.total, 'PROCESSING', 1, 0, 0, $1, 1,
           statement_timestamp(), statement_timestamp()
      FROM unnest($3::uuid[], $4::bytea[], $5::text[], $6::text[], $7::int4[]) AS asked (id, fingerprint, kind, payload, total)
     WHERE ";
const CREATED_RETURNS: &str = r"
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), ";

/// The statement of a group with these parts.
pub(super) fn statement(
    Parts {
        admits,
        moves,
        ends,
    }: Parts,
) -> String {
    let advances = moves || ends;
    let (mut parts, mut changed) = (Vec::new(), Vec::new());
    if advances {
        parts.push(
            "v AS (
    SELECT * FROM unnest($15::uuid[], $16::int4[], $17::int8[], $18::int4[], $19::text[], $20::text[])
        AS v (job_id, position, epoch, attempt, result, next)
)"
            .to_owned(),
        );
        if ends {
            parts.push(ENDED.to_owned());
        }
        let condition = if ends { OF_ENDED } else { OF_MOVED };
        parts.push([DONE, condition, DONE_RETURNS].concat());
        if moves {
            parts.push(BEGUN.to_owned());
        }
        changed.push("SELECT done.job_id FROM done");
    }
    if admits {
        let behind = match (moves, ends) {
            (true, _) => "(SELECT count(*) FROM done) >= 0 AND (SELECT count(*) FROM begun) >= 0",
            (false, true) => "(SELECT count(*) FROM done) >= 0",
            (false, false) => "true",
        };
        parts.push([CREATED, behind, CREATED_RETURNS, created_tasks!()].concat());
        changed.push("SELECT created.id FROM created");
    }
    format!("WITH {}\n{}", parts.join(", "), changed.join(" UNION ALL "))
}

impl Step {
    fn admission(&self) -> Option<&Claim> {
        match self {
            Step::Admit(claim) => Some(claim),
            Step::Advance(_) => None,
        }
    }

    fn advance(&self) -> Option<&Advance> {
        match self {
            Step::Advance(advance) => Some(advance),
            Step::Admit(_) => None,
        }
    }
}

impl Verb for Step {
    type Answer = Stepped;
    const TRANSITION: Transition = Transition::Step;

    fn job(&self) -> JobId {
        match self {
            Step::Admit(claim) => claim.job(),
            Step::Advance(advance) => advance.stand.job,
        }
    }

    fn weight(&self) -> usize {
        match self {
            Step::Admit(claim) => claim.weight(),
            Step::Advance(advance) => advance.weight(),
        }
    }

    async fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Stepped>>, sqlx::Error> {
        let claims: Vec<_> = group.iter().filter_map(|step| step.admission()).collect();
        let advances: Vec<_> = group.iter().filter_map(|step| step.advance()).collect();
        let ends = advances
            .iter()
            .filter(|advance| advance.next != Next::Task)
            .count();
        let parts = usize::from(!claims.is_empty())
            | usize::from(ends < advances.len()) << 1
            | usize::from(ends > 0) << 2;
        cut!(BeforeAdmission if !claims.is_empty());
        cut!(BeforeAdvance if !advances.is_empty());
        let query = sqlx::query(STATEMENTS[parts].as_str());
        let query = bind_tasks(bind_jobs(query, holder, &claims), &claims);
        let rows = query
            .bind(column(&advances, |advance| advance.stand.job.0))
            .bind(column(&advances, |advance| advance.stand.position))
            .bind(column(&advances, |advance| advance.stand.epoch.0))
            .bind(column(&advances, |advance| advance.stand.attempt as i32))
            .bind(columns(&advances, Advance::stored))
            .bind(column(&advances, |advance| advance.next.as_str()))
            .fetch_all(&mut *connection)
            .await?;
        cut!(AfterAdmission if !claims.is_empty());
        cut!(AfterAdvance if !advances.is_empty());
        let mut changed = rows
            .iter()
            .map(|row| row.try_get(0).map(JobId))
            .collect::<Result<Vec<_>, _>>()?;
        changed.sort_unstable();
        let stands = column(&advances, |advance| advance.stand);
        let mut ends = written(connection, &changed, &stands, "SUCCESS")
            .await?
            .into_iter();
        Ok(group
            .iter()
            .map(|step| match step {
                Step::Advance(_) => ends.next().flatten().map(Stepped::Advanced),
                Step::Admit(claim) if changed.binary_search(&claim.message.id).is_ok() => {
                    Some(Stepped::Admitted(Box::new(FIRST_CLAIM)))
                }
                Step::Admit(_) => Some(Stepped::Known),
            })
            .collect())
    }
}

/// What an admission entitles to.
const FIRST_CLAIM: Claimed = Claimed {
    epoch: Epoch(1),
    generation: Generation(0),
    position: 1,
    attempt: 1,
    crashes: 0,
    way: Way::New,
    results: Vec::new(),
    age: Duration::ZERO,
};

fn columns<'q, C>(advances: &[&'q Advance], value: impl Fn(&'q Advance) -> C) -> Vec<C> {
    advances.iter().map(|advance| value(advance)).collect()
}
