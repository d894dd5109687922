//! Putting a task off without a failure.

use super::*;

async fn running(database: &Database) -> (Worker, Arc<JobMessage>, Stand) {
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let stand = stand(&message, &ada.claimed(&message).await);
    (ada, message, stand)
}

fn defer(stand: Stand) -> Defer {
    Defer {
        stand,
        reason: "the handler is braked".into(),
        retry_in: Duration::from_secs(60),
        failure: None,
    }
}

#[tokio::test]
async fn a_deferred_task_waits_with_its_reason_and_no_attempt_is_used_up() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.fail(first).await;
    let second = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!(second.attempt, 2);

    let written = ada.ledger.defer(defer(stand(&message, &second))).await;

    assert_eq!(written.unwrap(), Written::Committed);
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("RETRYING", None));
    assert_eq!((job.generation, job.sent), (2, 0));
    assert_eq!(job.error.as_deref(), Some("the handler is braked"));
    assert!(
        job.due_in.is_some_and(|due| (50.0..=60.0).contains(&due)),
        "{:?}",
        job.due_in
    );
    let task = database.tasks(message.id).await.remove(0);
    assert_eq!(
        (task.status.as_str(), task.attempt, task.error, task.started),
        ("PENDING", 1, None, false)
    );
    assert_eq!(database.failures(message.id).await.len(), 1);
    let third = ada.claimed_by(of_generation(2, asks(&message))).await;
    assert_eq!((third.attempt, third.crashes), (2, 0));
}

#[tokio::test]
async fn a_probe_is_kept_in_the_history_and_does_not_count() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    let probe = Defer {
        failure: Some("still away\0".into()),
        ..defer(first)
    };
    assert_eq!(ada.ledger.defer(probe).await.unwrap(), Written::Committed);
    let failures = database.failures(message.id).await;
    assert_eq!(failures.len(), 1);
    assert_eq!(
        (failures[0].attempt, failures[0].error.as_str()),
        (1, "still away\u{fffd}")
    );
    assert_eq!(database.tasks(message.id).await[0].attempt, 0);
    let again = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!(again.attempt, 1);
}

#[tokio::test]
async fn a_deferral_whose_answer_was_lost_is_committed_once() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.ledger.defer(defer(first)).await.unwrap();
    let before = database.all_of(message.id).await;
    let again = ada.ledger.defer(defer(first)).await.unwrap();
    assert_eq!(again, Written::Committed);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_fenced_worker_defers_nothing() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    let bob = database.worker("bob").await;
    ada.die(&database).await;
    let taken = bob.claimed_by(redelivered(asks(&message))).await;
    assert_eq!(taken.way, Way::TakenOver);
    let before = database.all_of(message.id).await;
    // As the former holder would write it.
    let written = bob.ledger.defer(defer(first)).await.unwrap();
    assert_eq!(written, Written::Fenced);
    let elsewhere = defer(Stand {
        position: 2,
        ..stand(&message, &taken)
    });
    assert_eq!(bob.ledger.defer(elsewhere).await.unwrap(), Written::Fenced);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_message_older_than_a_deferral_brings_its_successor() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.ledger.defer(defer(first)).await.unwrap();
    match ada.claim(&message).await {
        Answer::Superseded { generation, delay } => {
            assert_eq!(generation, Generation(1));
            assert!(delay > Duration::from_secs(50), "{delay:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_deferred_job_whose_copy_is_lost_is_owed() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    let soon = Defer {
        retry_in: Duration::ZERO,
        ..defer(first)
    };
    ada.ledger.defer(soon).await.unwrap();
    let mut reconciling = Reconciling::begin(ada.ledger.desk(), ada.ledger.holder())
        .await
        .unwrap()
        .unwrap();
    let owed = reconciling.owed(Duration::ZERO).await.unwrap();
    reconciling.end().await;
    assert_eq!(owed.len(), 1);
    assert_eq!(
        (owed[0].job, owed[0].generation),
        (message.id, Generation(1))
    );
    assert!(matches!(owed[0].what, What::Overdue { .. }));
}
