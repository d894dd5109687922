//! Jobs in whose next task a worker has died: the crash is counted by whoever receives them, and they begin only alone.

use super::*;

fn wary(claim: Claim) -> Claim {
    Claim {
        alone: false,
        ..claim
    }
}

#[tokio::test]
async fn a_dead_workers_job_that_is_merely_received_counts_its_crash_and_begins_nothing() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    ada.claimed(&message).await;
    ada.die(&database).await;

    let answer = bob
        .ledger
        .claim(wary(redelivered(asks(&message))))
        .await
        .unwrap();

    assert!(
        matches!(answer, Answer::Suspect { crashes: 1 }),
        "{answer:?}"
    );
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("PENDING", None));
    assert_eq!(database.statuses(message.id).await, ["PENDING", "PENDING"]);
    assert_eq!(database.failures(message.id).await.len(), 1);
    let task = &database.tasks(message.id).await[0];
    assert_eq!((task.attempt, task.crashes), (0, 1));
}

#[tokio::test]
async fn a_process_that_dies_after_it_received_a_suspect_casts_no_new_suspicion_on_it() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    bob.ledger
        .claim(wary(redelivered(asks(&message))))
        .await
        .unwrap();
    bob.die(&database).await;
    let eve = database.worker("eve").await;

    let again = eve
        .ledger
        .claim(wary(redelivered(asks(&message))))
        .await
        .unwrap();
    assert!(matches!(again, Answer::Suspect { crashes: 1 }), "{again:?}");

    let alone = eve.claimed_by(redelivered(asks(&message))).await;
    assert_eq!(
        (alone.way, alone.attempt, alone.crashes),
        (Way::Resumed, 1, 1)
    );
}

#[tokio::test]
async fn a_job_whose_suspected_task_ended_well_is_no_suspect() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    ada.claimed(&message).await;
    ada.die(&database).await;
    let alone = bob.claimed_by(redelivered(asks(&message))).await;
    bob.done(stand(&message, &alone), json!("one")).await;
    bob.ledger.release(message.id, alone.epoch).await.unwrap();

    let next = bob.claimed_by(wary(asks(&message))).await;
    assert_eq!((next.position, next.crashes), (2, 0));
}
