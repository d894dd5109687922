//! What a failure leads to: a rung, the dead queue, or nothing at all.

use cliquet::broker::Place;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use sqlx::Row;
use std::time::{Duration, Instant};
use uuid::Uuid;

use crate::support::stage::{Stage, body};

fn text(properties: &BasicProperties, header: &str) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    match headers.inner().get(header) {
        Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        Some(AMQPValue::LongLongInt(number)) => number.to_string(),
        Some(AMQPValue::LongInt(number)) => number.to_string(),
        Some(AMQPValue::LongUInt(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// The last error that the ledger keeps for a job.
async fn last_failure(stage: &Stage, job: Uuid) -> String {
    sqlx::query("SELECT error FROM cliquet.failures WHERE job_id = $1 ORDER BY epoch DESC LIMIT 1")
        .bind(job)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_attempt_a_job_is_parked_with_its_reason() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:fail c:ok").await;
    stage.reaches(job, "FAILED").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 2, 2]);
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:FAILED 3:PENDING");

    let (parked, properties) = stage.queues.take(Place::Dead).await;
    assert_eq!(parked, body(job, "a:ok b:fail c:ok"));
    assert_eq!(text(&properties, "cliquet-reason"), "exhausted");
    assert_eq!(
        text(&properties, "cliquet-error"),
        "attempt 3 fails as told"
    );
    assert_eq!(text(&properties, "cliquet-task"), "Step b (2/3)");
    assert_eq!(text(&properties, "cliquet-attempts"), "3");
    assert_eq!(text(&properties, "cliquet-generation"), "3");
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_parks_at_once() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:permanent b:ok").await;
    stage.reaches(job, "FAILED").await;
    assert_eq!(stage.script.positions(job).await, [1]);
    let (_, properties) = stage.queues.take(Place::Dead).await;
    assert_eq!(text(&properties, "cliquet-reason"), "permanent");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_a_parked_message_back_retries_the_job_where_it_stopped() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent,ok c:ok").await;
    stage.reaches(job, "FAILED").await;
    let (parked, properties) = stage.queues.take(Place::Dead).await;
    stage.queues.publish(&parked, properties.clone()).await;
    // Attempts start anew, so attempt 1 fails again and is parked again under the next generation.
    let (parked, again) = stage.queues.take(Place::Dead).await;
    assert_eq!(text(&properties, "cliquet-generation"), "1");
    assert_eq!(text(&again, "cliquet-generation"), "2");
    assert_eq!(
        stage.script.positions(job).await,
        [1, 2, 2],
        "task 1 is SUCCESS and never runs again"
    );

    // An older copy cannot undo the parking.
    stage.queues.publish(&parked, properties).await;
    worker.stop().await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 2]);
    assert_eq!(stage.status(job).await.as_deref(), Some("FAILED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handlers_own_delay_wins_over_the_policy() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let begun = Instant::now();
    let job = stage.publish("a:after:1000,ok").await;
    stage.reaches(job, "SUCCESS").await;
    assert!(
        begun.elapsed() >= Duration::from_millis(1000),
        "{:?}",
        begun.elapsed()
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure_with_its_words() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:panic,ok").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        last_failure(&stage, job).await,
        "the handler panicked: as told"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_over_its_time_limit_is_a_failure() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = Uuid::now_v7();
    let mut message: Value = serde_json::from_slice(&body(job, "a:hang,ok")).unwrap();
    message["tasks"][0]["timeout_seconds"] = 1.0.into();
    stage
        .queues
        .publish(message.to_string().as_bytes(), BasicProperties::default())
        .await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        last_failure(&stage, job).await,
        "the attempt exceeded its time limit of 1s"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tasks_own_number_of_attempts_wins_over_the_policy() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = Uuid::now_v7();
    let mut message: Value = serde_json::from_slice(&body(job, "a:fail")).unwrap();
    message["tasks"][0]["max_attempts"] = 1.into();
    stage
        .queues
        .publish(message.to_string().as_bytes(), BasicProperties::default())
        .await;
    stage.reaches(job, "FAILED").await;
    assert_eq!(stage.script.positions(job).await, [1]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_handler_is_tried_again_since_a_newer_worker_may_know_it() {
    let stage = Stage::with_ladder(&["5s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:ok unheard:ok").await;
    stage.reaches(job, "RETRYING").await;
    let error = last_failure(&stage, job).await;
    assert!(
        error.starts_with("no handler named \"unheard\" on this worker"),
        "{error}"
    );
    worker.stop().await;

    let newer = stage
        .builder(stage.config())
        .handler("unheard", async |_: cliquet::TaskContext| Ok(()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(newer.run_until(async { drop(stopped.await) }));
    stage.reaches(job, "SUCCESS").await;
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_parked_at_once_with_its_body_untouched() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let mut headers = FieldTable::default();
    headers.insert(
        "traceparent".into(),
        AMQPValue::LongString("00-abc-def-01".into()),
    );
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_correlation_id("mine".into());
    let bad = b"{\"id\": 7, \"kind\": \"k\" \xff";
    stage.queues.publish(bad, properties).await;
    let (parked, properties) = stage.queues.take(Place::Dead).await;
    assert_eq!(parked, bad);
    assert_eq!(text(&properties, "cliquet-reason"), "not_utf8");
    assert!(
        text(&properties, "cliquet-error").contains("byte 22"),
        "{}",
        text(&properties, "cliquet-error")
    );
    assert_eq!(text(&properties, "traceparent"), "00-abc-def-01");
    assert_eq!(
        properties.correlation_id().as_ref().map(|id| id.as_str()),
        Some("mine")
    );
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_content_is_parked_as_a_conflict() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok").await;
    stage.reaches(job, "SUCCESS").await;
    stage.publish_as(job, "a:ok b:ok").await;
    let (_, properties) = stage.queues.take(Place::Dead).await;
    assert_eq!(text(&properties, "cliquet-reason"), "conflict");
    assert_eq!(stage.tasks(job).await, "1:SUCCESS");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_only_differs_in_form_is_the_same_job() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok").await;
    stage.reaches(job, "SUCCESS").await;
    let message: Value = serde_json::from_slice(&body(job, "a:ok")).unwrap();
    let pretty = serde_json::to_vec_pretty(&message).unwrap();
    stage
        .queues
        .publish(&pretty, BasicProperties::default())
        .await;
    stage.queues_are_empty().await;
    assert_eq!(stage.script.positions(job).await, [1]);
    worker.stop().await;
}
