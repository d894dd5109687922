//! What the harness knows of its own, put beside the ledger: what was asked for, the workers' journals, and what was done
//! to the workers.

use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    crew::Crew, faults::Faults, ground::Ground, jobs::Job, load::Published, worker::executions,
};

/// For how long a worker that leaves may have let go of its jobs before its process ends, in microseconds.
const LEAVES: i64 = 1_000_000;

const TABLES: &str = "
CREATE TABLE asked (job_id uuid, position int, handler text, label text, input text, PRIMARY KEY (job_id, position));
CREATE TABLE executions (number bigint GENERATED ALWAYS AS IDENTITY, worker text, job_id uuid, position int, attempt int,
                         began timestamptz, ended timestamptz);
-- What may take a worker's jobs from it: a process ended, was paused (and went on), was stopped (and killed before it went
-- on), or was cut off from Postgres. The network is that of all processes of a slot.
CREATE TABLE strokes (worker text, what text, since timestamptz, until timestamptz);
";

/// Beside each execution: when its task became SUCCESS, who held the job when it began (in the ledger's own words and by the
/// clock of this one machine), and whether its worker had just come out of a pause. Beside each takeover: whether anything
/// had been done to the former holder.
const JUDGED: &str = "
CREATE INDEX ON executions (job_id, position);
CREATE INDEX ON task_history (job_id, position, at);
CREATE INDEX ON job_history (job_id, at);
ANALYZE;
CREATE TABLE judged AS
SELECT executions.*, worker.id AS worker_id,
       (SELECT min(history.at) FROM task_history history
         WHERE history.job_id = executions.job_id AND history.position = executions.position AND history.status = 'SUCCESS') AS success,
       (SELECT min(history.at) FROM task_history history
         WHERE history.job_id = executions.job_id AND history.position = executions.position - 1 AND history.status = 'SUCCESS') AS former_success,
       (SELECT history.holder FROM job_history history
         WHERE history.job_id = executions.job_id AND history.at <= executions.began
         ORDER BY history.at DESC, history.number DESC LIMIT 1) AS holder,
       EXISTS (SELECT FROM strokes WHERE strokes.what = 'paused' AND strokes.worker = executions.worker
                                     AND executions.began BETWEEN strokes.until AND strokes.until + interval '1 s') AS paused
  FROM executions LEFT JOIN cliquet.workers worker ON worker.name = executions.worker;
CREATE TABLE takeovers AS
SELECT failure.job_id, failure.position, failure.epoch, failure.worker, failure.started_at, failure.failed_at,
       EXISTS (SELECT FROM strokes
                WHERE strokes.worker IN (failure.worker, split_part(failure.worker, '.', 1))
                  AND strokes.since <= failure.failed_at AND strokes.until >= failure.started_at) AS explained
  FROM cliquet.failures failure WHERE failure.error LIKE 'the worker died, or was cut off%';
";

pub async fn put_beside_the_ledger(
    ground: &Ground,
    crew: &Crew,
    faults: &Faults,
    published: &Published,
) {
    let pool = &ground.pool;
    sqlx::raw_sql(TABLES).execute(pool).await.unwrap();
    for some in published.accepted.chunks(1_000) {
        asked(pool, some).await;
    }
    journals(ground).await;
    for pause in crew.pauses() {
        let what = if pause.went_on { "paused" } else { "stopped" };
        stroke(pool, &pause.worker, what, pause.from, pause.to).await;
    }
    for end in crew.ends() {
        // For good. What it had sent to Postgres may be committed later than that.
        stroke(pool, &end.worker, "ended", end.alive - LEAVES, i64::MAX / 2).await;
    }
    for trouble in faults.troubles() {
        let slot = format!("w{}", trouble.slot + 1);
        stroke(pool, &slot, "cut off", trouble.from, trouble.to).await;
    }
    sqlx::raw_sql(JUDGED).execute(pool).await.unwrap();
}

async fn asked(pool: &PgPool, jobs: &[Job]) {
    let (mut ids, mut positions, mut handlers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut labels, mut inputs) = (Vec::new(), Vec::new());
    for job in jobs {
        for (index, act) in job.tasks.iter().enumerate() {
            let (label, input) = job.task(index);
            ids.push(job.id);
            positions.push(index as i32 + 1);
            handlers.push(act.handler());
            labels.push(label);
            inputs.push(input);
        }
    }
    sqlx::query("INSERT INTO asked SELECT * FROM unnest($1::uuid[], $2::int4[], $3::text[], $4::text[], $5::text[])")
        .bind(ids)
        .bind(positions)
        .bind(handlers)
        .bind(labels)
        .bind(inputs)
        .execute(pool)
        .await
        .unwrap();
}

/// In the order in which they began.
async fn journals(ground: &Ground) {
    for some in executions(&ground.folder).chunks(5_000) {
        sqlx::query(
            "INSERT INTO executions (worker, job_id, position, attempt, began, ended)
             SELECT worker, job_id, position, attempt, timestamptz 'epoch' + began * interval '1 us',
                    timestamptz 'epoch' + ended * interval '1 us'
               FROM unnest($1::text[], $2::uuid[], $3::int4[], $4::int4[], $5::int8[], $6::int8[])
                    WITH ORDINALITY AS journal (worker, job_id, position, attempt, began, ended, place)
              ORDER BY place",
        )
        .bind(some.iter().map(|one| one.worker.clone()).collect::<Vec<String>>())
        .bind(some.iter().map(|one| one.job).collect::<Vec<Uuid>>())
        .bind(some.iter().map(|one| one.position).collect::<Vec<i32>>())
        .bind(some.iter().map(|one| one.attempt).collect::<Vec<i32>>())
        .bind(some.iter().map(|one| one.began).collect::<Vec<i64>>())
        .bind(some.iter().map(|one| one.ended).collect::<Vec<Option<i64>>>())
        .execute(&ground.pool)
        .await
        .unwrap();
    }
}

async fn stroke(pool: &PgPool, worker: &str, what: &str, since: i64, until: i64) {
    sqlx::query(
        "INSERT INTO strokes VALUES ($1, $2, timestamptz 'epoch' + $3 * interval '1 us', timestamptz 'epoch' + $4 * interval '1 us')",
    )
    .bind(worker)
    .bind(what)
    .bind(since)
    .bind(until)
    .execute(pool)
    .await
    .unwrap();
}
