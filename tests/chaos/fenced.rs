//! A worker that was cut off from Postgres while the answer to its commit was on the way.

use std::time::Duration;

use lapin::BasicProperties;
use tokio::time::sleep;

use crate::{
    crew::Crew,
    ground::{Ground, QUEUE},
    jobs::{Act, Job},
    rabbit::{Rabbit, within},
    schedule::Service,
    worker::{Settings, executions},
};

const LONG: Duration = Duration::from_secs(30);

/// Its commit of the first task has also begun the second; when the answer comes at last, others have done that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_cut_off_begins_nothing_that_others_have_taken_over() {
    let ground = Ground::make().await;
    let settings = Settings {
        concurrency: 4,
        quick: true,
    };
    let crew = Crew::start(&ground, 2, settings).await;
    let mut rabbit = Rabbit::new(&ground.amqp_url);
    within(LONG, "both workers consume", async || {
        (rabbit.queue(QUEUE).await?.1 == 2).then_some(())
    })
    .await;
    let job = Job::of(vec![Act::Hold, Act::Nothing]);
    let body = job.body(1);
    assert!(
        rabbit
            .publish_once("", QUEUE, &body, BasicProperties::default())
            .await
    );
    let of_the_job = || {
        let mut all = executions(&ground.folder);
        all.retain(|execution| execution.job == job.id);
        all
    };
    let first = within(LONG, "the first task is begun", async || {
        of_the_job().into_iter().next()
    })
    .await;
    let cut_off = (0..2)
        .find(|slot| crew.name(*slot) == first.worker)
        .unwrap();

    // The commit waits in Postgres for a lock of ours; its answer finds the network closed.
    let mut lock = ground.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM cliquet.tasks WHERE job_id = $1 AND position = 1 FOR UPDATE")
        .bind(job.id)
        .execute(&mut *lock)
        .await
        .unwrap();
    std::fs::write(ground.folder.join(format!("{}.release", job.id)), "").unwrap();
    within(LONG, "the commit waits", async || {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .fetch_one(&ground.pool)
            .await
            .unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    crew.proxy(cut_off, Service::Postgres).hold();
    lock.rollback().await.unwrap();

    within(LONG, "the other worker ends the job", async || {
        let status: String =
            sqlx::query_scalar("SELECT status::text FROM cliquet.jobs WHERE id = $1")
                .bind(job.id)
                .fetch_one(&ground.pool)
                .await
                .unwrap();
        (status == "SUCCESS").then_some(())
    })
    .await;
    crew.proxy(cut_off, Service::Postgres).fair();
    within(LONG, "the worker is present in the ledger again", async || {
        let silent: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM cliquet.workers WHERE name = $1",
        )
        .bind(&first.worker)
        .fetch_one(&ground.pool)
        .await
        .unwrap();
        (silent < 0.5).then_some(())
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    crew.dismiss().await;

    let begun: Vec<_> = of_the_job()
        .into_iter()
        .map(|execution| (execution.position, execution.worker == first.worker))
        .collect();
    assert_eq!(
        begun,
        [(1, true), (2, false)],
        "position, and whether by the worker that was cut off"
    );
    ground.tidy();
}
