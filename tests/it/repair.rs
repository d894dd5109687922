//! What the ledger and the broker do not agree about, and how they come to agree; operators among the causes.

use std::time::Duration;

use cliquet::{
    broker::Place,
    config::Config,
    job::JobId,
    ledger::{By, message},
};

use crate::support::{eventually, stage::Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_message_is_lost_is_sent_again() {
    let stage = Stage::with_ladder(&["8s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:fail,ok c:ok").await;
    stage.reaches(job, "RETRYING").await;
    let rung = stage.queues.rung(0);
    eventually("the copy is on its rung", async || {
        (stage.queues.depth(rung).await == 1).then_some(())
    })
    .await;
    stage.queues.purge(rung).await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 2, 3]);
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_rebuilt_from_the_ledger_is_the_same_job() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent").await;
    stage.reaches(job, "FAILED").await;
    let stored = message(&stage.pool, JobId(job)).await.unwrap().unwrap();
    assert_eq!(stored.generation.0, 1);
    let original = crate::support::stage::body(job, "a:ok b:permanent");
    let original = cliquet::job::JobMessage::decode(&original, None, None).unwrap();
    assert_eq!(stored.message.fingerprint, original.fingerprint);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_holds_its_delivery_for_long_is_handed_over_between_two_tasks() {
    let stage = Stage::new().await;
    let worker = stage.worker_with(Config {
        hand_over_after: Duration::ZERO,
        ..stage.config()
    });
    let job = stage.publish("a:ok b:ok c:ok").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    assert_eq!(
        stage
            .number("SELECT epoch FROM cliquet.jobs WHERE id = $1", job)
            .await,
        3,
        "each task ran under a delivery of its own"
    );
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_copy_changes_nothing_and_does_not_run_the_job_early() {
    let stage = Stage::with_ladder(&["8s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:fail,ok b:ok").await;
    stage.reaches(job, "RETRYING").await;
    // The publisher's own message once more: generation 0, while the ledger waits for generation 1.
    stage.publish_as(job, "a:fail,ok b:ok").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stage.status(job).await.as_deref(), Some("RETRYING"));
    assert_eq!(stage.script.positions(job).await, [1]);
    stage.reaches(job, "SUCCESS").await;
    stage.queues_are_empty().await;
    worker.stop().await;
    assert_eq!(stage.script.positions(job).await, [1, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_running_job_whose_channel_died_are_adopted() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:one b:gate:two").await;
    stage.script.reached("one", 1).await;
    let closed = stage.queues.close_connections("consume").await;
    assert_eq!(closed, 1);
    // The redelivery waits for no gate: it is adopted while the handler still runs.
    tokio::time::sleep(Duration::from_millis(800)).await;
    stage.script.open("one").await;
    stage.script.reached("two", 1).await;
    stage.script.open("two").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2]);
    stage.queues_are_empty().await;
    worker.stop().await;
    assert_eq!(stage.queues.depth(Place::Dead).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_is_fenced_off_and_its_handler_dropped() {
    let stage = Stage::new().await;
    let worker = stage.worker_with(Config {
        drain_timeout: Duration::from_secs(60),
        ..stage.config()
    });
    let job = stage.publish("a:write b:write-gate:never c:write").await;
    stage.script.reached("never", 1).await;
    let cancelled = cliquet::ledger::cancel(
        &stage.pool,
        &[JobId(job)],
        &By::new("ada", Some("nobody wants it")),
    )
    .await
    .unwrap();
    assert_eq!(cancelled.len(), 1);
    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
    stage.queues_are_empty().await;
    // Nobody opens the gate: the handler ends since it is dropped, and the worker has nothing to wait for.
    tokio::time::sleep(Duration::from_millis(700)).await;
    worker.stop().await;
    assert_eq!(stage.effects(job).await, [1]);
    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
    assert_eq!(stage.script.positions(job).await, [1, 2]);
}

/// A job that a user's own transaction puts into the ledger: known, never sent.
pub async fn enqueue(stage: &Stage, payload: &str, handler: &str) -> uuid::Uuid {
    let id = uuid::Uuid::now_v7();
    sqlx::query(
        "WITH job AS (
             INSERT INTO cliquet.jobs (id, queue, kind, payload, total, status, epoch, generation, sent, next_attempt_at)
             VALUES ($1, $2, 'test', $3::json, 1, 'PENDING', 0, 0, -1, now()))
         INSERT INTO cliquet.tasks (job_id, position, handler, label, input) VALUES ($1, 1, $4, 'Step', '\"ok\"')",
    )
    .bind(id)
    .bind(stage.queues.name(Place::Work))
    .bind(payload)
    .bind(handler)
    .execute(&stage.pool)
    .await
    .unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_enqueued_in_sql_is_sent_and_run() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = enqueue(&stage, r#"{"n": 1}"#, "a").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1]);
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_never_be_sent_is_given_up_and_stops_nobody() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let unreadable = enqueue(&stage, r#""\u0000""#, "a").await;
    let unnamed = enqueue(&stage, "1", "a\nb").await;
    let good = enqueue(&stage, "1", "a").await;
    stage.reaches(good, "SUCCESS").await;
    for job in [unreadable, unnamed] {
        stage.reaches(job, "FAILED").await;
        let error: String = sqlx::query_scalar("SELECT error FROM cliquet.jobs WHERE id = $1")
            .bind(job)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
        assert!(
            error.starts_with("this job cannot be sent to a worker"),
            "{error}"
        );
    }
    stage.queues_are_empty().await;
    worker.stop().await;
}
