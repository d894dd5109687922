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
        matches!(answer, Answer::Suspect { crashes: 1, .. }),
        "{answer:?}"
    );
    assert_eq!(answer.died_in(), Some(1));
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
    assert!(
        matches!(again, Answer::Suspect { crashes: 1, .. }),
        "{again:?}"
    );
    assert_eq!(again.died_in(), None, "it was taken over before");

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

#[tokio::test]
async fn the_crash_of_a_suspect_is_told_of_the_attempt_that_crashed() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.fail(stand(&message, &ada.claimed(&message).await))
        .await;
    ada.claimed_by(of_generation(1, asks(&message))).await;
    ada.die(&database).await;
    let received = wary(redelivered(of_generation(1, asks(&message))));
    bob.ledger.claim(received).await.unwrap();
    let crash = database.failures(message.id).await.remove(1);
    assert_eq!(
        (crash.attempt, crash.epoch, crash.worker.as_str()),
        (2, 2, "ada")
    );
}

#[tokio::test]
async fn a_failed_attempt_of_a_suspect_counts() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    let first = bob.claimed_by(redelivered(asks(&message))).await;
    bob.fail(stand(&message, &first)).await;
    let received = wary(of_generation(1, asks(&message)));
    let answer = bob.ledger.claim(received).await.unwrap();
    assert!(
        matches!(answer, Answer::Suspect { crashes: 1, .. }),
        "{answer:?}"
    );
    let second = bob.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
}

#[tokio::test]
async fn a_suspect_that_is_received_is_due_again_in_a_while() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    let received = wary(redelivered(asks(&message)));
    bob.ledger.claim(received).await.unwrap();
    let job = database.job(message.id).await;
    assert!(
        job.due_in.is_some_and(|due| (50.0..=60.0).contains(&due)),
        "{:?}",
        job.due_in
    );
    assert_eq!((job.attempts, job.epoch), (1, 2));
}

#[tokio::test]
async fn a_suspect_held_without_knowing_is_let_go_and_counts_no_crash() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    let lost = bob.claimed_by(redelivered(asks(&message))).await;
    let answer = bob.ledger.claim(wary(asks(&message))).await.unwrap();
    assert!(
        matches!(answer, Answer::Suspect { crashes: 1, .. }),
        "{answer:?}"
    );
    assert_eq!(
        bob.done(stand(&message, &lost), json!(1)).await,
        Written::Fenced
    );
    let again = bob.claimed_by(asks(&message)).await;
    assert_eq!((again.attempt, again.crashes), (1, 1));
}

#[tokio::test]
async fn an_operators_retry_of_a_suspect_is_no_suspect() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    let taken = bob.claimed_by(redelivered(asks(&message))).await;
    bob.give_up(stand(&message, &taken)).await;
    let retried = bob.claimed_by(wary(of_generation(1, asks(&message)))).await;
    assert_eq!((retried.way, retried.crashes), (Way::Retried, 0));
}

#[tokio::test]
async fn a_job_that_never_crashed_needs_not_be_alone() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let first = ada.claimed_by(wary(asks(&message))).await;
    ada.fail(stand(&message, &first)).await;
    let second = ada.claimed_by(wary(of_generation(1, asks(&message)))).await;
    assert_eq!((first.way, second.way), (Way::New, Way::Resumed));
}
