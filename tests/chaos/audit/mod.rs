//! Whether all of it is true: every accepted job, every row of the effects, every execution and every message that is left.

mod effects;
mod evidence;
mod jobs;
mod queues;
mod runs;

use std::time::Duration;

use cliquet::{broker::Place, broker::Topology, retry::Ladder};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::{
    crew::Crew,
    faults::Faults,
    ground::{Ground, QUEUE, now_us, span},
    load::Published,
    rabbit::Rabbit,
    report::Report,
    worker::RUNGS,
};

/// How long the workers have for what is left, once everything is healthy.
const QUIET: Duration = Duration::from_secs(60);
/// How long after the work queue was deleted, for RabbitMQ's sake: what a rung dead-lettered while there was no such queue
/// it tries again after three minutes, and shows nowhere meanwhile; the reconciler's copies may have to pass the same rung,
/// and a job whose message was lost twice waits for its minute.
const QUIET_AFTER_DELETION: Duration = Duration::from_secs(420);

/// The queues of the run.
pub fn topology() -> Topology {
    let rungs: Vec<_> = RUNGS.iter().map(ToString::to_string).collect();
    Topology::new(QUEUE, Ladder::try_from(rungs).unwrap()).unwrap()
}

/// Waits until every job in the ledger is over and no message waits or is at a worker.
pub async fn quiet(ground: &Ground, crew: &Crew, faults: &Faults, report: &mut Report) {
    let (began, mut rabbit, mut calm) = (Instant::now(), Rabbit::new(&ground.amqp_url), 0);
    let topology = topology();
    let places: Vec<_> = topology
        .places()
        .into_iter()
        .filter(|place| *place != Place::Dead)
        .map(|place| topology.name(place))
        .collect();
    let deleted = faults.deletions().last().map(|deletion| deletion.at);
    let left = deleted.map_or(Duration::ZERO, |at| {
        QUIET_AFTER_DELETION.saturating_sub(span(at, now_us()))
    });
    let most = QUIET.max(left);
    let mut told = Instant::now();
    while began.elapsed() < most {
        let unfinished: Option<i64> = sqlx::query_scalar(
            "SELECT count(*) FROM cliquet.jobs WHERE status NOT IN ('SUCCESS', 'FAILED', 'CANCELLED')",
        )
        .fetch_one(&ground.pool)
        .await
        .ok();
        let (mut waiting, mut consumers) = (0, 0);
        for place in &places {
            let queue = rabbit.queue(place).await;
            waiting += queue.map_or(1, |(ready, _)| ready);
            consumers += queue.map_or(0, |(_, consumers)| consumers);
        }
        let unacknowledged = ground.management.unacknowledged(QUEUE).await;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!(
                "chaos: waiting for quiet: {unfinished:?} jobs unfinished, {waiting} messages wait, {unacknowledged:?} at workers, {consumers} consumers"
            );
        }
        // The broker's own count is as old as some seconds.
        let is_calm = unfinished == Some(0)
            && waiting == 0
            && unacknowledged == Some(0)
            && consumers as usize == crew.workers();
        calm = if is_calm { calm + 1 } else { 0 };
        if calm >= 5 {
            report.count(
                "seconds until all was quiet",
                began.elapsed().as_secs() as i64,
            );
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
    report.fault(format!(
        "not quiet within {} s although everything is healthy",
        most.as_secs()
    ));
}

/// After the workers have left.
pub async fn audit(
    ground: &Ground,
    crew: &Crew,
    faults: &Faults,
    published: &Published,
    report: &mut Report,
) {
    evidence::put_beside_the_ledger(ground, crew, faults, published).await;
    jobs::jobs(&ground.pool, published, report).await;
    effects::effects(&ground.pool, published, report).await;
    effects::history(&ground.pool, report).await;
    runs::runs(&ground.pool, report).await;
    queues::queues(ground, published, report).await;
}

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The rows of a question that should have none, each as a sentence.
async fn none(pool: &PgPool, report: &mut Report, what: &str, sql: &'static str) {
    let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
    report.count(what, rows.len() as i64);
    for row in rows.iter().take(5) {
        report.fault(format!("{what}: {row}"));
    }
    if rows.len() > 5 {
        report.fault(format!("{what}: and {} more", rows.len() - 5));
    }
}
