//! Creation, execution and order, seen by another connection.

use sqlx::Row;

use crate::support::stage::Stage;
use cliquet::broker::Place;

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_created_in_one_commit_in_their_order() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:one b:ok c:ok").await;
    stage.script.reached("one", 1).await;
    let rows = sqlx::query("SELECT position, handler, label, status::text, xmin::text FROM cliquet.tasks WHERE job_id = $1 ORDER BY position")
        .bind(job)
        .fetch_all(&stage.pool)
        .await
        .unwrap();
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {}",
                row.get::<i32, _>(0),
                row.get::<&str, _>(1),
                row.get::<&str, _>(2),
                row.get::<&str, _>(3)
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "1 a Step a PROCESSING",
            "2 b Step b PENDING",
            "3 c Step c PENDING"
        ]
    );
    let job_xmin: String = sqlx::query_scalar("SELECT xmin::text FROM cliquet.jobs WHERE id = $1")
        .bind(job)
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert!(
        rows.iter().all(|row| row.get::<String, _>(4) == job_xmin),
        "the job and its tasks are of one transaction"
    );
    stage.script.open("one").await;
    stage.reaches(job, "SUCCESS").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_after_a_failed_task_is_begun() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent c:ok d:ok").await;
    stage.reaches(job, "FAILED").await;
    assert_eq!(stage.script.positions(job).await, [1, 2]);
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:FAILED 3:PENDING 4:PENDING"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_many_tasks_runs_in_order() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish(&"a ".repeat(300)).await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(job).await,
        (1..=300).collect::<Vec<_>>()
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_kept_exactly_when_its_task_succeeds() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage
        .publish("a:write b:write-fail,write-fail,write c:write")
        .await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 2, 2, 3]);
    assert_eq!(stage.effects(job).await, [1, 2, 3]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicated_message_is_one_job_for_two_workers() {
    let stage = Stage::new().await;
    let (first, second) = (stage.worker(), stage.worker());
    let job = uuid::Uuid::now_v7();
    for _ in 0..5 {
        stage.publish_as(job, "a:write b:gate:two c:write").await;
    }
    stage.script.reached("two", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    stage.script.open("two").await;
    stage.reaches(job, "SUCCESS").await;
    stage.queues_are_empty().await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    assert_eq!(stage.effects(job).await, [1, 3]);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_earlier_tasks_are_there_after_a_resume() {
    let stage = Stage::new().await;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let recorder = seen.clone();
    let builder =
        stage
            .builder(stage.config())
            .handler("look", move |task: cliquet::TaskContext| {
                let recorder = recorder.clone();
                async move {
                    let by_name: Option<serde_json::Value> = task.result_of("a")?;
                    let by_position: Option<serde_json::Value> = task.result_at(2)?;
                    recorder
                        .lock()
                        .unwrap()
                        .push((by_name, by_position, task.results().len()));
                    if task.attempt() == 1 {
                        Err(cliquet::TaskError::retry("once more"))
                    } else {
                        Ok(())
                    }
                }
            });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    let job = stage.publish("a:ok b:ok look").await;
    stage.reaches(job, "SUCCESS").await;
    let expected = (
        Some(serde_json::json!({"did": "a", "attempt": 1})),
        Some(serde_json::json!({"did": "b", "attempt": 1})),
        2,
    );
    assert_eq!(*seen.lock().unwrap(), [expected.clone(), expected]);
    drop(stop);
    running.await.unwrap().unwrap();
    assert_eq!(stage.queues.depth(Place::Dead).await, 0);
}

/// A library that the handler calls may begin and commit transactions of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_nested_transaction_commits_nothing_of_its_own() {
    let stage = Stage::with_ladder(&["5s"]).await;
    let builder =
        stage
            .builder(stage.config())
            .handler("nest", async |task: cliquet::TaskContext| {
                let mut tx = task.transaction().await?;
                let mut inner = sqlx::Connection::begin(&mut *tx).await?;
                sqlx::query("INSERT INTO effects (job_id, position) VALUES ($1, 1)")
                    .bind(task.job_id().0)
                    .execute(&mut *inner)
                    .await?;
                inner.commit().await?;
                match task.attempt() {
                    1 => Err(cliquet::TaskError::retry("after the inner commit")),
                    _ => Ok(()),
                }
            });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(builder.run_until(async { drop(stopped.await) }));
    let job = stage.publish("nest").await;
    stage.reaches(job, "RETRYING").await;
    assert_eq!(stage.effects(job).await, [0; 0]);
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.effects(job).await, [1]);
    drop(stop);
    running.await.unwrap().unwrap();
}
