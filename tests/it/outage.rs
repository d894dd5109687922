//! Services that go away under running jobs. Each test has services of its own, so that nobody else is disturbed.

use std::time::{Duration, Instant};

use cliquet::config::Config;

use crate::support::{eventually, services::Services, stage::Stage};

async fn stage(services: &Services) -> Stage {
    Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_the_broker_restarts_and_redeliveries_are_adopted() {
    let services = Services::start();
    let stage = stage(&services).await;
    let worker = stage.worker();
    let held = stage.publish("a:ok b:gate:two c:gate:three d:ok").await;
    let failing = stage.publish("a:gate:first,ok b:ok").await;
    stage.script.reached("two", 1).await;
    stage.script.reached("first", 1).await;

    tokio::task::block_in_place(|| services.run(&["restart", "rabbitmq"]));
    let restarted = Instant::now();
    let later = stage.publish("a:ok").await;
    stage.reaches(later, "SUCCESS").await;
    eprintln!(
        "consuming again {} ms after the restart",
        restarted.elapsed().as_millis()
    );

    stage.script.open("two").await;
    stage.script.open("first").await;
    stage.script.reached("three", 1).await;
    stage.script.open("three").await;
    stage.reaches(held, "SUCCESS").await;
    stage.reaches(failing, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(held).await,
        [1, 2, 3, 4],
        "no task ran twice"
    );
    assert_eq!(
        stage
            .number("SELECT epoch FROM cliquet.jobs WHERE id = $1", held)
            .await,
        1,
        "the run was never taken over"
    );
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_when_the_database_is_back() {
    let services = Services::start();
    let stage = stage(&services).await;
    let worker = stage.worker();
    let mut jobs = vec![stage.publish("a:ok b:gate:two c:write d:fail,ok").await];
    stage.script.reached("two", 1).await;

    tokio::task::block_in_place(|| services.run(&["stop", "postgres"]));
    for _ in 0..5 {
        jobs.push(stage.publish("a:write b:ok").await);
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    tokio::task::block_in_place(|| services.run(&["start", "postgres"]));
    stage.script.open("two").await;
    for job in &jobs {
        stage.reaches(*job, "SUCCESS").await;
        assert_eq!(stage.effects(*job).await.len(), 1);
    }
    assert_eq!(
        stage.script.positions(jobs[0]).await,
        [1, 2, 3, 4, 4],
        "no task ran twice but the one that failed"
    );
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_services_that_are_not_there_yet() {
    let services = Services::start();
    let stage = stage(&services).await;
    let job = stage.publish("a:ok b:write").await;
    tokio::task::block_in_place(|| {
        services.run(&["stop", "postgres"]);
        services.run(&["stop", "rabbitmq"]);
    });
    let worker = stage.worker();
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::task::block_in_place(|| {
        services.run(&["start", "postgres"]);
        services.run(&["start", "rabbitmq"]);
    });
    stage.reaches(job, "SUCCESS").await;
    stage.queues_are_empty().await;
    worker.stop().await;
}

/// When Postgres is back every heartbeat is old; that says nothing of the workers.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_longer_than_patience_kills_nobody() {
    let services = Services::start();
    let stage = stage(&services).await;
    let quick = || Config {
        patience: Duration::from_secs(6),
        ..stage.config()
    };
    let (first, second) = (stage.worker_with(quick()), stage.worker_with(quick()));
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(stage.publish("a:gate:go b:ok").await);
    }
    stage.script.reached("go", 6).await;

    tokio::task::block_in_place(|| services.run(&["stop", "postgres"]));
    for job in &jobs {
        stage.publish_as(*job, "a:gate:go b:ok").await; // duplicates, which ask for the job as soon as they can
    }
    tokio::time::sleep(Duration::from_secs(8)).await;
    tokio::task::block_in_place(|| services.run(&["start", "postgres"]));
    tokio::time::sleep(Duration::from_secs(7)).await;
    stage.script.open("go").await;
    for job in &jobs {
        stage.reaches(*job, "SUCCESS").await;
        assert_eq!(
            stage.script.positions(*job).await,
            [1, 2],
            "no task ran twice"
        );
        assert_eq!(
            stage
                .number(
                    "SELECT count(*) FROM cliquet.failures WHERE job_id = $1",
                    *job
                )
                .await,
            0
        );
    }
    stage.queues_are_empty().await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_the_broker_is_alive_in_the_ledger() {
    let services = Services::start();
    let stage = stage(&services).await;
    tokio::task::block_in_place(|| services.run(&["stop", "rabbitmq"]));
    let worker = stage.worker_with(Config {
        patience: Duration::from_secs(1),
        ..stage.config()
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Whoever does not beat is silent for three seconds, and from now on for longer.
    eventually("the worker is alive", async || {
        let silent: Option<f64> = sqlx::query_scalar(
            "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM cliquet.workers",
        )
        .fetch_optional(&stage.pool)
        .await
        .unwrap();
        (silent? < 1.0).then_some(())
    })
    .await;
    worker.stop().await;
}
