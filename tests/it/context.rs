//! What a handler in Rust is given, and what its answers lead to.

use std::sync::{Arc, Mutex};

use cliquet::{TaskContext, TaskError};
use lapin::BasicProperties;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::stage::Stage;

#[derive(Deserialize)]
struct Image {
    index: u32,
}

#[derive(Deserialize)]
struct Product {
    product_id: u64,
}

#[derive(Serialize)]
struct Uploaded {
    url: String,
}

struct Store(&'static str);

type Told = Arc<Mutex<Vec<Value>>>;

async fn validate(task: TaskContext, product: Product) -> Result<u64, TaskError> {
    let told = task.state::<Told>()?;
    told.lock()
        .unwrap()
        .push(json!([task.position(), task.label(), product.product_id]));
    Ok(product.product_id)
}

async fn upload(task: TaskContext, image: Image) -> Result<Uploaded, TaskError> {
    let store = task.state::<Store>()?;
    let product: Product = task.payload()?;
    let validated: Option<u64> = task.result_of("validate")?;
    let told = task.state::<Told>()?;
    told.lock().unwrap().push(json!([
        task.position(),
        task.total(),
        task.handler(),
        task.label(),
        task.attempt(),
        task.kind(),
        task.idempotency_key(),
        product.product_id,
        validated,
        image.index,
        task.payload_json().get(),
        task.cancellation().is_cancelled(),
    ]));
    Ok(Uploaded {
        url: format!("{}/{}", store.0, image.index),
    })
}

async fn lost(task: TaskContext) -> Result<(), TaskError> {
    task.state::<String>()?;
    Ok(())
}

async fn run(stage: &Stage, tasks: Value, until: &str) -> (Uuid, Vec<Value>) {
    let told = Told::default();
    let builder = stage
        .builder(stage.config())
        .handler("validate", validate)
        .handler("upload", upload)
        .handler("lost", lost)
        .state(Store("https://images.example"))
        .state(told.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    let id = Uuid::now_v7();
    let message =
        json!({"id": id, "kind": "shop.publish", "payload": {"product_id": 42}, "tasks": tasks});
    stage
        .queues
        .publish(message.to_string().as_bytes(), BasicProperties::default())
        .await;
    stage.reaches(id, until).await;
    drop(stop);
    running.await.unwrap().unwrap();
    let told = told.lock().unwrap().clone();
    (id, told)
}

async fn error(stage: &Stage, job: Uuid) -> String {
    sqlx::query_scalar("SELECT error FROM cliquet.jobs WHERE id = $1")
        .bind(job)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_knows_its_job_its_place_and_what_came_before() {
    let stage = Stage::new().await;
    let upload = json!({"handler": "upload", "label": "Upload image 1/1", "input": {"index": 1}});
    let (job, told) = run(&stage, json!(["validate", upload]), "SUCCESS").await;
    assert_eq!(
        told,
        [
            json!([1, "validate", 42]),
            json!([
                2,
                2,
                "upload",
                "Upload image 1/1",
                1,
                "shop.publish",
                format!("{job}:2"),
                42,
                42,
                1,
                r#"{"product_id":42}"#,
                false
            ]),
        ]
    );
    let result: Value =
        sqlx::query_scalar("SELECT result FROM cliquet.tasks WHERE job_id = $1 AND position = 2")
            .bind(job)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
    assert_eq!(result, json!({"url": "https://images.example/1"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_does_not_fit_parks_the_job_and_says_where() {
    let stage = Stage::new().await;
    let (job, _) = run(
        &stage,
        json!([{"handler": "upload", "input": {"index": "one"}}]),
        "FAILED",
    )
    .await;
    let error = error(&stage, job).await;
    assert!(
        error.contains("the task's input does not fit") && error.contains("`index`"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_state_is_told_by_its_type() {
    let stage = Stage::new().await;
    let (job, _) = run(
        &stage,
        json!([{"handler": "lost", "max_attempts": 1}]),
        "FAILED",
    )
    .await;
    assert!(
        error(&stage, job)
            .await
            .starts_with("no state of type alloc::string::String")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_nobody_could_read_again_parks_the_job() {
    let stage = Stage::new().await;
    let builder = stage
        .builder(stage.config())
        .handler("nul", async |_: TaskContext| Ok("a\0b"))
        .handler("large", async |_: TaskContext| Ok("x".repeat(1024 * 1024)));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    for (handler, words) in [
        ("nul", "holds a NUL character"),
        ("large", "the limit is 1048576"),
    ] {
        let job = stage.publish(handler).await;
        stage.reaches(job, "FAILED").await;
        assert!(
            error(&stage, job).await.contains(words),
            "{}",
            error(&stage, job).await
        );
    }
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_outlives_its_handler_fails_the_task() {
    let stage = Stage::new().await;
    let kept = Arc::new(Mutex::new(None));
    let keeper = kept.clone();
    let builder = stage
        .builder(stage.config())
        .handler("keep", move |task: TaskContext| {
            let keeper = keeper.clone();
            async move {
                let mut tx = task.transaction().await?;
                sqlx::query("INSERT INTO effects (job_id, position) VALUES ($1, 1)")
                    .bind(task.job_id().0)
                    .execute(&mut *tx)
                    .await?;
                *keeper.lock().unwrap() = Some(tx);
                Ok(())
            }
        });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    let job = stage.publish("keep").await;
    stage.reaches(job, "FAILED").await;
    assert!(
        error(&stage, job)
            .await
            .contains("still held its transaction")
    );
    drop(kept.lock().unwrap().take());
    assert_eq!(stage.effects(job).await, [0; 0]);
    drop(stop);
    running.await.unwrap().unwrap();
}
