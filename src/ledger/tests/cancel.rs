//! An operator ends jobs.

use super::*;
use crate::job::JobStatus;

/// Cancels jobs over a connection of the operator's.
async fn cancelled(database: &Database, ids: &[JobId]) -> Vec<(JobId, Cancelled)> {
    let pool = database.address.pool("operator", 1);
    crate::ledger::cancel(&pool, ids, &by("not wanted"))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_cancelled_job_is_over_and_says_why() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    ada.claimed(&message).await;
    cancelled(&database, &[message.id]).await;
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("CANCELLED", None));
    assert_eq!(
        (job.error.as_deref(), job.finished),
        (Some("not wanted"), true)
    );
    assert_eq!((job.epoch, job.due_in), (2, None));
    assert_eq!(database.statuses(message.id).await, ["FAILED", "PENDING"]);
}

#[tokio::test]
async fn each_job_has_its_answer_in_the_order_asked() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (held, over, nobody) = (job_of(1), job_of(1), JobId::new());
    ada.claimed(&held).await;
    ada.finish(&over).await;
    assert_eq!(
        cancelled(&database, &[over.id, nobody, held.id]).await,
        [
            (over.id, Cancelled::AlreadyOver(JobStatus::Success)),
            (nobody, Cancelled::NotFound),
            (held.id, Cancelled::Cancelled),
        ]
    );
    assert_eq!(
        cancelled(&database, &[held.id]).await,
        [(held.id, Cancelled::AlreadyOver(JobStatus::Cancelled))]
    );
}

#[tokio::test]
async fn a_cancel_that_waited_for_an_advance_fences_the_task_behind_it() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(3);
    let first = stand(&message, &ada.claimed(&message).await);
    let mut holder = database.connect().await;
    on(&mut holder, "BEGIN").await;
    write(&mut holder, &ada, advance(first, json!(1), Next::Task)).await;
    let cancelling = tokio::spawn({
        let (pool, id) = (database.address.pool("operator", 1), message.id);
        async move { crate::ledger::cancel(&pool, &[id], &by("not wanted")).await }
    });
    database.blocked(1).await;
    on(&mut holder, "COMMIT").await;
    cancelling.await.unwrap().unwrap();
    assert_eq!(ada.done(after(first), json!(2)).await, Written::Fenced);
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "FAILED", "PENDING"]
    );
}

#[tokio::test]
async fn a_cancel_that_waited_for_the_end_finds_the_job_over() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let only = stand(&message, &ada.claimed(&message).await);
    let mut holder = database.connect().await;
    on(&mut holder, "BEGIN").await;
    write(&mut holder, &ada, advance(only, json!(1), Next::Finish)).await;
    let cancelling = tokio::spawn({
        let (pool, id) = (database.address.pool("operator", 1), message.id);
        async move { crate::ledger::cancel(&pool, &[id], &by("not wanted")).await }
    });
    database.blocked(1).await;
    on(&mut holder, "COMMIT").await;
    assert_eq!(
        cancelling.await.unwrap().unwrap(),
        [(message.id, Cancelled::AlreadyOver(JobStatus::Success))]
    );
}

#[tokio::test]
async fn a_cancelled_job_is_owed_nothing() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    ada.fail(stand(&message, &ada.claimed(&message).await))
        .await;
    cancelled(&database, &[message.id]).await;
    let mut reconciling = Reconciling::begin(ada.ledger.desk(), ada.ledger.holder())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reconciling.owed(Duration::ZERO).await.unwrap(), []);
    reconciling.end().await;
}

#[tokio::test]
async fn a_cancel_waits_a_few_seconds_for_a_job_that_somebody_keeps_locked_and_changes_nothing() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    ada.claimed(&message).await;
    let before = database.all_of(message.id).await;
    let mut other = database.connect().await;
    on(&mut other, "BEGIN; SELECT FROM cliquet.jobs FOR UPDATE").await;
    let pool = database.address.pool("operator", 1);
    let ids = [message.id];
    let act = by("now");
    let cancelling = crate::ledger::cancel(&pool, &ids, &act);
    match tokio::time::timeout(DEADLINE, cancelling).await.unwrap() {
        Err(error) if error.is_locked() => {}
        other => panic!("{other:?}"),
    }
    on(&mut other, "ROLLBACK").await;
    assert_eq!(database.all_of(message.id).await, before);
}
