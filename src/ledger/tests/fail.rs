//! Failing an attempt, and handing one back.

use super::*;

async fn running(database: &Database) -> (Worker, Arc<JobMessage>, Stand) {
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let stand = stand(&message, &ada.claimed(&message).await);
    (ada, message, stand)
}

#[tokio::test]
async fn a_failure_says_why_when_it_is_due_and_which_copy_is_the_next() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;

    assert_eq!(ada.fail(first).await, Written::Committed);

    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("RETRYING", None));
    assert_eq!((job.generation, job.sent), (1, 0));
    assert_eq!(
        (job.error.as_deref(), job.finished),
        (Some("no luck"), false)
    );
    assert!(
        job.due_in.is_some_and(|due| (50.0..=60.0).contains(&due)),
        "{:?}",
        job.due_in
    );
    let task = database.tasks(message.id).await.remove(0);
    assert_eq!((task.status.as_str(), task.finished), ("FAILED", true));
    assert_eq!((task.error.as_deref(), task.attempt), (Some("no luck"), 1));
}

#[tokio::test]
async fn a_job_that_is_given_up_is_failed_and_due_never() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    assert_eq!(ada.give_up(first).await, Written::Committed);
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("FAILED", None));
    assert_eq!((job.generation, job.finished, job.due_in), (1, true, None));
    assert_eq!(database.statuses(message.id).await, ["FAILED", "PENDING"]);
}

#[tokio::test]
async fn every_failed_attempt_stays_in_the_history() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.fail(first).await;
    let second = ada.claimed_by(of_generation(1, asks(&message))).await;
    let failure = Fail {
        error: "no luck again".into(),
        ..fail(stand(&message, &second), None)
    };
    ada.ledger.fail(failure).await.unwrap();
    let failures = database.failures(message.id).await;
    let told: Vec<_> = failures
        .iter()
        .map(|failure| (failure.position, failure.attempt, failure.error.as_str()))
        .collect();
    assert_eq!(told, [(1, 1, "no luck"), (1, 2, "no luck again")]);
    assert_eq!(failures[0].worker, "ada");
}

#[tokio::test]
async fn a_failure_whose_answer_was_lost_is_committed_once() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.fail(first).await;
    let before = database.all_of(message.id).await;
    assert_eq!(ada.fail(first).await, Written::Committed);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_failure_of_another_attempt_or_position_changes_nothing() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    let before = database.all_of(message.id).await;
    assert_eq!(
        ada.fail(Stand {
            attempt: 2,
            ..first
        })
        .await,
        Written::Fenced
    );
    assert_eq!(ada.fail(after(first)).await, Written::Fenced);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn an_error_that_postgres_cannot_store_is_kept_in_other_letters() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    let failure = Fail {
        error: "a\0b".into(),
        ..fail(first, None)
    };
    assert_eq!(ada.ledger.fail(failure).await.unwrap(), Written::Committed);
    assert_eq!(
        database.job(message.id).await.error.as_deref(),
        Some("a\u{fffd}b")
    );
}

#[tokio::test]
async fn an_attempt_that_is_handed_back_does_not_count() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.fail(first).await;
    let second = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!(second.attempt, 2);

    let released = ada.ledger.release(message.id, second.epoch).await.unwrap();

    assert_eq!(released, Written::Committed);
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("PENDING", None));
    assert!(job.due_in.is_some_and(|due| due <= 0.0), "{:?}", job.due_in);
    let task = database.tasks(message.id).await.remove(0);
    assert_eq!(
        (task.status.as_str(), task.attempt, task.started),
        ("PENDING", 1, false)
    );
    let third = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!((third.attempt, third.crashes), (2, 0));
}

#[tokio::test]
async fn a_job_is_handed_back_once() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database).await;
    ada.ledger.release(message.id, first.epoch).await.unwrap();
    let before = database.all_of(message.id).await;
    let again = ada.ledger.release(message.id, first.epoch).await.unwrap();
    assert_eq!(again, Written::Fenced);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn failures_and_releases_lock_no_task_while_they_wait_for_a_jobs_row() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let jobs = [job_of(1), job_of(1), job_of(1), job_of(1)];
    let mut stands = Vec::new();
    for message in &jobs {
        stands.push(stand(message, &ada.claimed(message).await));
    }
    let mut barrier = database.connect().await;
    let lock = format!(
        "BEGIN; SELECT FROM cliquet.jobs WHERE id IN ('{}', '{}') FOR UPDATE",
        jobs[1].id, jobs[3].id
    );
    on(&mut barrier, &lock).await;
    let (ledger, mut lane) = (ada.ledger.clone(), database.connect().await);
    let failing = tokio::spawn({
        let (ledger, stands) = (ledger.clone(), stands.clone());
        async move {
            let group = [fail(stands[0], None), fail(stands[1], None)];
            let group: Vec<_> = group.iter().collect();
            let answers = lane::Verb::write(&mut lane, ledger.holder(), &group).await;
            assert_eq!(answers.unwrap(), [Some(Written::Committed); 2]);
        }
    });
    let mut lane = database.connect().await;
    let releasing = tokio::spawn(async move {
        let release = |stand: Stand| Release {
            job: stand.job,
            epoch: stand.epoch,
        };
        let group = [release(stands[2]), release(stands[3])];
        let group: Vec<_> = group.iter().collect();
        let answers = lane::Verb::write(&mut lane, ledger.holder(), &group).await;
        assert_eq!(answers.unwrap(), [Some(Written::Committed); 2]);
    });
    database.blocked(2).await;
    on(
        &mut barrier,
        "SELECT FROM cliquet.tasks FOR UPDATE NOWAIT; COMMIT",
    )
    .await;
    failing.await.unwrap();
    releasing.await.unwrap();
}
