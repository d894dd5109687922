//! An outage elsewhere: the handler that needs it is braked, nobody's attempts are used up, and it heals by itself.

use std::time::{Duration, Instant};

use cliquet::{broker::Place, config::Config};
use lapin::BasicProperties;
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use crate::support::{
    eventually,
    stage::{Stage, body},
};

/// One number from the test's database.
async fn count(stage: &Stage, sql: &'static str) -> i64 {
    sqlx::query(sql)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
        .get(0)
}

/// Waits until a worker tells in the ledger that so many probes of this handler have failed.
async fn braked(stage: &Stage, handler: &str, failed_probes: i64) -> Value {
    eventually(
        &format!("{handler} is braked and {failed_probes} probes have failed"),
        async || {
            let row = sqlx::query(
                "SELECT brake FROM cliquet.workers, jsonb_array_elements(brakes) AS brake
                  WHERE brake ->> 'handler' = $1 AND (brake ->> 'failed_probes')::int8 >= $2",
            )
            .bind(handler)
            .bind(failed_probes)
            .fetch_optional(&stage.pool)
            .await
            .unwrap();
            row.map(|row| row.get(0))
        },
    )
    .await
}

async fn all_succeed(stage: &Stage, jobs: &[Uuid]) {
    for job in jobs {
        stage.reaches(*job, "SUCCESS").await;
    }
}

/// Publishes a job whose second task may fail as often as it likes before it is given up.
async fn publish_patient(stage: &Stage, scenario: &str) -> Uuid {
    let job = Uuid::now_v7();
    let mut message: Value = serde_json::from_slice(&body(job, scenario)).unwrap();
    message["tasks"][1]["max_attempts"] = json!(1_000);
    let message = message.to_string();
    let plain = BasicProperties::default();
    stage.queues.publish(message.as_bytes(), plain).await;
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_elsewhere_uses_up_no_attempts_and_heals_by_itself() {
    let stage = Stage::new().await;
    let config = Config {
        brake_after: 5,
        ..stage.config()
    };
    let (limit, at_once) = (5, i64::from(config.concurrency));
    let worker = stage.worker_with(config);
    let mut jobs = Vec::new();
    for _ in 0..40 {
        jobs.push(stage.publish("a:ok b:needs:shop c:ok").await);
    }

    // Twelve probes take longer than all attempts of a job would.
    let brake = braked(&stage, "b", 12).await;
    assert_eq!(brake["last_error"], "shop is away");
    let unharmed = stage.publish("d:ok").await;
    stage.reaches(unharmed, "SUCCESS").await;
    eventually("every job waits with the reason", async || {
        let waiting = count(
            &stage,
            "SELECT count(*) FROM cliquet.jobs WHERE status = 'RETRYING' AND error LIKE 'the handler \"b\" is braked after % failures in a row, the last: shop is away.%'",
        );
        (waiting.await >= 35).then_some(())
    })
    .await;
    assert_eq!(
        count(
            &stage,
            "SELECT count(*) FROM cliquet.jobs WHERE status = 'FAILED'"
        )
        .await,
        0
    );

    stage.script.open("shop").await;
    let back = Instant::now();
    all_succeed(&stage, &jobs).await;
    eprintln!(
        "all {} jobs are done {} ms after the service was back",
        jobs.len(),
        back.elapsed().as_millis()
    );
    let counted = count(
        &stage,
        "SELECT sum(attempt - 1)::int8 FROM cliquet.tasks WHERE position = 2",
    )
    .await;
    assert!(
        counted <= limit + at_once,
        "{counted} attempts were used up; those that put the brake on, and what ran then, may be"
    );
    // Whatever ran and was not counted was a probe, and is in the history.
    let failures = count(&stage, "SELECT count(*) FROM cliquet.failures").await;
    let called = count(&stage, "SELECT count(*) FROM calls WHERE position = 2").await;
    assert!(failures - counted >= 12, "{failures} - {counted}");
    assert_eq!(called, 40 + failures);
    let others = count(&stage, "SELECT count(*) FROM calls WHERE position <> 2").await;
    assert_eq!(others, 81, "what is done is not done again");
    eventually("the brake is off", async || {
        let on = count(
            &stage,
            "SELECT count(*) FROM cliquet.workers WHERE brakes IS NOT NULL",
        );
        (on.await == 0).then_some(())
    })
    .await;
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_while_a_handler_is_braked_lose_no_job() {
    let stage = Stage::new().await;
    let mut jobs = Vec::new();
    for _ in 0..40 {
        jobs.push(publish_patient(&stage, "a:ok b:needs:shop c:write").await);
    }
    for name in ["ada", "bob"] {
        let mut worker = stage.process(name);
        // The row of the one before still says that it was braked.
        eventually(&format!("{name} has braked the handler"), async || {
            let row = sqlx::query("SELECT FROM cliquet.workers WHERE name = $1 AND (brakes #>> '{0,failed_probes}')::int > 1")
                .bind(name)
                .fetch_optional(&stage.pool)
                .await
                .unwrap();
            row.map(drop)
        })
        .await;
        worker.kill();
    }
    stage.script.open("shop").await;
    let mut eve = stage.process("eve");
    all_succeed(&stage, &jobs).await;
    for job in &jobs {
        assert_eq!(stage.effects(*job).await, [3]);
    }
    let unfinished =
        "SELECT count(*) FROM (SELECT FROM cliquet.tasks WHERE status <> 'SUCCESS') task";
    assert_eq!(count(&stage, unfinished).await, 0);
    stage.queues_are_empty().await;
    eve.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_braked_handler_survive_the_loss_of_every_delay_queue() {
    let stage = Stage::new().await;
    let config = Config {
        brake_after: 3,
        ..stage.config()
    };
    let worker = stage.worker_with(config);
    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.push(stage.publish("a:ok b:needs:shop").await);
    }
    braked(&stage, "b", 2).await;
    for rung in [stage.queues.rung(0), stage.queues.rung(1)] {
        stage.queues.purge(rung).await;
    }
    stage.script.open("shop").await;
    all_succeed(&stage, &jobs).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panics_and_time_limits_put_the_brake_on_and_a_permanent_error_does_not() {
    let stage = Stage::new().await;
    let config = Config {
        brake_after: 4,
        ..stage.config()
    };
    let worker = stage.worker_with(config);
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(stage.publish("a:permanent").await);
    }
    for job in &jobs {
        stage.reaches(*job, "FAILED").await;
    }
    stage.publish("b:panic").await;
    let job = Uuid::now_v7();
    let mut message: Value = serde_json::from_slice(&body(job, "b:hang")).unwrap();
    message["tasks"][0]["timeout_seconds"] = json!(0.05);
    let message = message.to_string();
    stage
        .queues
        .publish(message.as_bytes(), BasicProperties::default())
        .await;
    braked(&stage, "b", 1).await;
    let others = count(
        &stage,
        "SELECT count(*) FROM cliquet.workers, jsonb_array_elements(brakes) AS brake WHERE brake ->> 'handler' <> 'b'",
    );
    assert_eq!(others.await, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_that_always_fails_is_parked_and_brakes_nobody() {
    let stage = Stage::new().await;
    let config = Config {
        brake_after: 1,
        ..stage.config()
    };
    let worker = stage.worker_with(config);
    let bad = stage.publish("b:fail").await;
    stage.reaches(bad, "FAILED").await;
    assert_eq!(stage.script.positions(bad).await, [1, 1, 1]);
    stage.queues.take(Place::Dead).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_own_limit_wins_and_zero_never_brakes() {
    let stage = Stage::new().await;
    let config = Config {
        brake_after: 2,
        ..stage.config()
    };
    let options = cliquet::HandlerOptions {
        brake_after: Some(0),
        ..Default::default()
    };
    let away = async |_: cliquet::TaskContext| Err::<(), _>(cliquet::TaskError::retry("away"));
    let builder = stage
        .builder(config)
        .handler_with("unbraked", away, options);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    let jobs = [
        stage.publish("unbraked:x").await,
        stage.publish("unbraked:x").await,
    ];
    for job in jobs {
        stage.reaches(job, "FAILED").await;
    }
    drop(stop);
    tokio::time::timeout(Duration::from_secs(60), running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
