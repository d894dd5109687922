//! Old jobs are deleted: those that are to go, whole, and in nobody's way.

use std::time::Duration;

use cliquet::{broker::Place, config::Config, job::JobStatus};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    privileges::database_as,
    stage::{Stage, WorkerProcess},
};

/// Makes a job look as if it had been over for so many days, and been made a day before.
async fn age(stage: &Stage, job: Uuid, days: i32) {
    let aged = sqlx::query(
        "UPDATE cliquet.jobs SET created_at = now() - make_interval(days => $2 + 1),
                finished_at = CASE WHEN finished_at IS NOT NULL THEN now() - make_interval(days => $2) END WHERE id = $1",
    )
    .bind(job)
    .bind(days)
    .execute(&stage.pool)
    .await
    .unwrap();
    assert_eq!(aged.rows_affected(), 1);
}

/// How many rows of the ledger belong to a job: its own, its tasks, its failed attempts.
async fn rows(stage: &Stage, job: Uuid) -> (i64, i64, i64) {
    let count = "SELECT (SELECT count(*) FROM cliquet.jobs WHERE id = $1),
                        (SELECT count(*) FROM cliquet.tasks WHERE job_id = $1),
                        (SELECT count(*) FROM cliquet.failures WHERE job_id = $1)";
    sqlx::query_as(count)
        .bind(job)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

async fn total(stage: &Stage) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM cliquet.jobs")
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

/// So many jobs of two tasks that have been SUCCESS for a hundred days.
async fn many_old_jobs(stage: &Stage, count: i32) {
    let old = format!(
        "WITH job AS (
             INSERT INTO cliquet.jobs (id, epoch, generation, sent, created_at, started_at, finished_at, attempts, total, status, queue, kind, payload)
             SELECT gen_random_uuid(), 1, 0, 0, now() - interval '100 days' - number * interval '1 second',
                    now() - interval '100 days', now() - interval '100 days', 1, 2, 'SUCCESS', '{}', 'old', '{{}}'
               FROM generate_series(1, {count}) number RETURNING id
         )
         INSERT INTO cliquet.tasks (job_id, position, epoch, started_at, finished_at, attempt, status, handler, label)
         SELECT job.id, position, 1, now() - interval '100 days', now() - interval '100 days', 1, 'SUCCESS', 'a', 'A'
           FROM job, generate_series(1, 2) position",
        stage.queues.name(Place::Work)
    );
    sqlx::raw_sql(AssertSqlSafe(old))
        .execute(&stage.pool)
        .await
        .unwrap();
}

async fn orphans(stage: &Stage) -> i64 {
    let orphans = "SELECT count(*) FROM cliquet.tasks task WHERE NOT EXISTS (SELECT FROM cliquet.jobs job WHERE job.id = task.job_id)";
    sqlx::query_scalar(orphans)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

async fn holds_nothing(stage: &Stage, place: Place) {
    eventually("the queue is empty", async || {
        (stage.queues.depth(place).await == 0).then_some(())
    })
    .await;
}

#[track_caller]
fn says(told: &str, words: &[&str]) {
    for words in words {
        assert!(told.contains(words), "{told}\ndoes not say {words:?}");
    }
}

async fn pruned(binary: &Binary, options: &[&str]) -> Value {
    let arguments = [&["prune", "--json"], options].concat();
    serde_json::from_str(&binary.run(&arguments).await.done()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_has_been_over_for_long_is_deleted_and_as_a_whole() {
    let stage = Stage::with_ladder(&["200ms", "5s"]).await;
    let worker = stage.worker();
    let binary = Binary::on(&stage, "");
    let publish = async |scenario: &str, status: &str| {
        let job = stage.publish(scenario).await;
        stage.reaches(job, status).await;
        job
    };
    let done = publish("a b:fail,ok", "SUCCESS").await;
    let young = publish("a", "SUCCESS").await;
    let failed = publish("a b:permanent", "FAILED").await;
    let unparked = publish("a:permanent", "FAILED").await;
    let cancelled = publish("a:after:60000", "RETRYING").await;
    binary.run(&["cancel", &cancelled.to_string()]).await.done();
    // Its message finds it over; deleted before that, it would run anew.
    for rung in 0..2 {
        holds_nothing(&stage, stage.queues.rung(rung)).await;
    }
    holds_nothing(&stage, Place::Work).await;
    let waiting = publish("a:after:60000", "RETRYING").await;
    let held = stage.publish("a:gate:shut").await;
    stage.script.reached("shut", 1).await;
    for job in [done, failed, unparked, cancelled, waiting, held] {
        age(&stage, job, 40).await;
    }
    age(&stage, young, 20).await;
    let (before, of_done) = (total(&stage).await, rows(&stage, done).await);
    assert_eq!(of_done, (1, 2, 1));

    let counted = pruned(&binary, &["--older-than", "30d", "--dry-run"]).await;
    let expected = json!({"SUCCESS": 1, "CANCELLED": 1});
    assert_eq!(
        (&counted["jobs"], &counted["dry_run"]),
        (&expected, &json!(true))
    );
    assert_eq!(total(&stage).await, before, "it only counted");
    let nothing = pruned(&binary, &["--older-than", "30d", "--queue", "another"]).await;
    assert_eq!(
        (&nothing["jobs"], &nothing["complete"]),
        (&json!({}), &json!(true))
    );

    let deleted = pruned(&binary, &["--older-than", "30d"]).await;
    assert_eq!(
        (&deleted["jobs"], &deleted["complete"]),
        (&expected, &json!(true))
    );
    assert_eq!(
        (&deleted["tasks"], &deleted["failures"]),
        (&json!(3), &json!(2))
    );
    for gone in [done, cancelled] {
        assert_eq!(rows(&stage, gone).await, (0, 0, 0), "{gone}");
    }
    for kept in [young, failed, unparked, waiting, held] {
        assert_eq!(rows(&stage, kept).await.0, 1, "{kept}");
    }
    assert_eq!(orphans(&stage).await, 0);

    // FAILED by its name alone, and not while its parked copy is owed to the dead queue.
    // Nobody is there to park it again.
    stage.script.open("shut").await;
    stage.reaches(held, "SUCCESS").await;
    worker.stop().await;
    sqlx::query("UPDATE cliquet.jobs SET sent = generation - 1 WHERE id = $1")
        .bind(unparked)
        .execute(&stage.pool)
        .await
        .unwrap();
    let ended = binary
        .run(&["prune", "--older-than", "30d", "--status", "FAILED"])
        .await;
    says(
        &ended.err,
        &[
            "1 jobs are deleted",
            "stay in the dead queue",
            "cliquet dead drop",
        ],
    );
    says(&ended.done(), &["FAILED  1"]);
    assert_eq!(rows(&stage, failed).await, (0, 0, 0));
    assert_eq!(rows(&stage, unparked).await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_may_be_stopped_and_goes_on_and_forgets_dead_workers() {
    const JOBS: i32 = 60_000;
    let stage = Stage::new().await;
    many_old_jobs(&stage, JOBS).await;
    let young = stage.publish("a").await;
    let worker = stage.worker();
    stage.reaches(young, "SUCCESS").await;
    worker.stop().await;
    sqlx::raw_sql(
        "UPDATE cliquet.workers SET seen_at = now() - interval '41 days', cleared_at = now() - interval '40 days'",
    )
    .execute(&stage.pool)
    .await
    .unwrap();

    let binary = Binary::on(&stage, "");
    let prune = ["prune", "--older-than", "30d", "--json"];
    let child = binary
        .command(&prune)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    eventually("a part is deleted", async || {
        (total(&stage).await < i64::from(JOBS)).then_some(())
    })
    .await;
    let sent = std::process::Command::new("kill")
        .args(["-s", "INT", &id.to_string()])
        .status();
    assert!(sent.unwrap().success());
    let ended = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    assert_eq!(ended.status.code(), Some(1), "not everything was done");
    let told: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(told["complete"], false);
    let left = total(&stage).await - 1;
    assert_eq!(told["jobs"]["SUCCESS"], i64::from(JOBS) - left);
    assert!(left > 0, "it was stopped on its way");
    assert_eq!(orphans(&stage).await, 0, "each batch is whole");

    let began = std::time::Instant::now();
    let told = binary.run_long(&prune).await.done();
    let told: Value = serde_json::from_str(told.trim()).unwrap();
    println!(
        "{left} jobs of two tasks were deleted in {:?}",
        began.elapsed()
    );
    assert_eq!(
        (&told["jobs"]["SUCCESS"], &told["complete"]),
        (&json!(left), &json!(true))
    );
    assert_eq!(told["workers"], 1);
    assert_eq!(total(&stage).await, 1);
    assert_eq!(rows(&stage, young).await.0, 1);
    assert_eq!(orphans(&stage).await, 0);
    assert_eq!(pruned(&binary, &prune[1..3]).await["jobs"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_an_operator_retries_meanwhile_is_not_deleted() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a b:permanent").await;
    stage.reaches(job, "FAILED").await;
    worker.stop().await;
    age(&stage, job, 40).await;
    // A claim that is about to commit.
    let mut claim = PgConnection::connect(&stage.database).await.unwrap();
    let mut claim = claim.begin().await.unwrap();
    sqlx::query("UPDATE cliquet.jobs SET status = 'PENDING', finished_at = NULL, error = NULL, next_attempt_at = now() WHERE id = $1")
        .bind(job)
        .execute(&mut *claim)
        .await
        .unwrap();
    let binary = Binary::on(&stage, "");
    let prune = ["--older-than", "30d", "--status", "FAILED,SUCCESS"];
    let (told, ()) = tokio::join!(pruned(&binary, &prune), async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cliquet prune' AND wait_event_type = 'Lock'";
        eventually("prune waits for the claim", async || {
            let waiting: i64 = sqlx::query_scalar(waits)
                .fetch_one(&stage.pool)
                .await
                .unwrap();
            (waiting == 1).then_some(())
        })
        .await;
        claim.commit().await.unwrap();
    });
    assert_eq!(
        (&told["jobs"], &told["complete"]),
        (&json!({}), &json!(true))
    );
    assert_eq!(rows(&stage, job).await, (1, 2, 1), "nothing of it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_duplicate_of_a_deleted_job_runs_anew() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a b").await;
    stage.reaches(job, "SUCCESS").await;
    stage.publish_as(job, "a b").await;
    stage.queues_are_empty().await;
    assert_eq!(stage.script.positions(job).await, [1, 2], "it is known");
    age(&stage, job, 40).await;
    let binary = Binary::on(&stage, "");
    pruned(&binary, &["--older-than", "30d"]).await;
    stage.publish_as(job, "a b").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 1, 2]);
    worker.stop().await;
}

/// A job that only the reconciler sends.
async fn enqueue(stage: &Stage) -> Uuid {
    let id = Uuid::now_v7();
    let enqueue = format!(
        "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
         VALUES ('{id}', 0, 0, -1, now(), 1, 'PENDING', '{}', 'test', '{{}}');
         INSERT INTO cliquet.tasks (job_id, position, handler, label) VALUES ('{id}', 1, 'a', 'A')",
        stage.queues.name(Place::Work)
    );
    sqlx::raw_sql(AssertSqlSafe(enqueue))
        .execute(&stage.pool)
        .await
        .unwrap();
    id
}

/// The database's address for a worker that may prune, too.
async fn pruning_worker(stage: &Stage) -> String {
    let url = database_as(&stage.database, "cliquet_pruner").await;
    let user = "cliquet_test_pruning_worker";
    let made = format!(
        "DO $$ BEGIN
             CREATE ROLE {user} LOGIN PASSWORD 'least' IN ROLE cliquet_worker, cliquet_pruner;
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
         END $$"
    );
    sqlx::raw_sql(AssertSqlSafe(made))
        .execute(&stage.pool)
        .await
        .unwrap();
    let mut url = url::Url::parse(&url).unwrap();
    url.set_username(user).unwrap();
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_deletes_old_jobs_by_itself_where_its_settings_say_so() {
    let stage = Stage::new().await;
    let first = stage.worker();
    let (failed, young) = (stage.publish("a:permanent").await, stage.publish("a").await);
    stage.reaches(failed, "FAILED").await;
    stage.reaches(young, "SUCCESS").await;
    first.stop().await;
    age(&stage, failed, 40).await;
    age(&stage, young, 20).await;
    many_old_jobs(&stage, 3_000).await;
    let config = Config {
        prune_after: Some(Duration::from_secs(30 * 24 * 3600)),
        ..stage.config()
    };

    // Under a worker's rights alone it says what it lacks, and works on.
    let mut binary = Binary::on(&stage, "[handlers.a]\nexec = [\"true\"]\n");
    binary.set("CLIQUET_PRUNE_AFTER", "30d");
    let mut process: WorkerProcess = binary.work();
    eventually("it says which role it lacks", async || {
        let log = binary.written("log").await;
        log.contains("cliquet_pruner").then_some(())
    })
    .await;
    let job = stage.publish("a").await;
    stage.reaches(job, "SUCCESS").await;
    process.signal("TERM");
    process.ended().await;
    let log = binary.written("log").await;
    assert_eq!(
        log.matches("old jobs are not deleted").count(),
        1,
        "once: {log}"
    );
    assert_eq!(total(&stage).await, 3_003);

    // Without the setting, nothing is deleted, whatever the rights.
    let allowed = Config {
        database_url: pruning_worker(&stage).await,
        ..config
    };
    let keeps = stage.worker_with(Config {
        prune_after: None,
        ..allowed.clone()
    });
    // The second is sent by a look after one that would have deleted.
    for _ in 0..2 {
        let job = enqueue(&stage).await;
        stage.reaches(job, "SUCCESS").await;
    }
    keeps.stop().await;
    assert_eq!(total(&stage).await, 3_005);

    let prunes = stage.worker_with(allowed.clone());
    eventually("the old ones are deleted", async || {
        (total(&stage).await == 5).then_some(())
    })
    .await;
    // And it reconciles as ever.
    let job = enqueue(&stage).await;
    stage.reaches(job, "SUCCESS").await;
    prunes.stop().await;
    assert_eq!(rows(&stage, failed).await.0, 1);
    assert_eq!(rows(&stage, young).await.0, 1);
    assert_eq!(orphans(&stage).await, 0);

    let all = stage.worker_with(Config {
        prune_status: vec![JobStatus::Failed],
        ..allowed
    });
    eventually("FAILED as well, when it is named", async || {
        (rows(&stage, failed).await == (0, 0, 0)).then_some(())
    })
    .await;
    all.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_prunes_sees_and_changes_nothing_else() {
    let stage = Stage::new().await;
    many_old_jobs(&stage, 10).await;
    let url = database_as(&stage.database, "cliquet_pruner").await;
    let mut pruner = PgConnection::connect(&url).await.unwrap();
    for statement in [
        "SELECT payload FROM cliquet.jobs",
        "SELECT result FROM cliquet.tasks",
        "SELECT error FROM cliquet.failures",
        "UPDATE cliquet.jobs SET status = 'CANCELLED'",
        "UPDATE cliquet.tasks SET status = 'PENDING'",
        "INSERT INTO cliquet.jobs (id) VALUES (gen_random_uuid())",
        "TRUNCATE cliquet.jobs",
    ] {
        let refused = sqlx::raw_sql(statement).execute(&mut pruner).await;
        let error = refused.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    let mut binary = Binary::on(&stage, "");
    binary.set("DATABASE_URL", &url);
    let told = pruned(&binary, &["--older-than", "30d"]).await;
    assert_eq!(told["jobs"]["SUCCESS"], 10);
    assert_eq!(total(&stage).await, 0);
    // A reader is told which role it lacks.
    many_old_jobs(&stage, 1).await;
    let reader = database_as(&stage.database, "cliquet_reader").await;
    binary.set("DATABASE_URL", &reader);
    let told = binary
        .run(&["prune", "--older-than", "30d"])
        .await
        .failed(1);
    says(&told, &["permission denied", "cliquet_pruner"]);
}

#[tokio::test]
async fn what_is_not_over_or_too_young_cannot_be_pruned() {
    let binary = Binary::bare();
    for wrong in [
        &["prune"][..],
        &["prune", "--older-than", "30"],
        &["prune", "--older-than", "59m"],
        &["prune", "--older-than", "30d", "--status", "PROCESSING"],
        &["prune", "--older-than", "30d", "--status", "DONE"],
    ] {
        binary.run(wrong).await.failed(2);
    }
    let told = binary
        .run(&["prune", "--older-than", "59m"])
        .await
        .failed(2);
    says(&told, &["at least 1h", "would run them anew"]);
}
