//! An operator takes a task for done.

use super::*;
use crate::job::{JobStatus, Position};

async fn skip_at(database: &Database, id: JobId, position: Option<Position>) -> Skipped {
    let pool = database.address.pool("operator", 1);
    crate::ledger::skip(&pool, id, position, &by("done by hand"))
        .await
        .unwrap()
}

async fn skip(database: &Database, id: JobId) -> Skipped {
    skip_at(database, id, None).await
}

/// The ways in which a job of three tasks comes to wait, none of them done.
#[derive(Clone, Copy, Debug)]
enum Waits {
    /// A task failed and is to be tried again.
    Retrying,
    /// A task failed for good.
    Failed,
    /// Its attempt was handed back.
    Released,
    /// It was put off without a failure.
    Deferred,
    /// It was enqueued in SQL, and no message was ever sent.
    Enqueued,
}

const ALL: [Waits; 5] = [
    Waits::Retrying,
    Waits::Failed,
    Waits::Released,
    Waits::Deferred,
    Waits::Enqueued,
];

async fn waiting(database: &Database, ada: &Worker, how: Waits, tasks: usize) -> Arc<JobMessage> {
    let message = job_of(tasks);
    if let Waits::Enqueued = how {
        enqueue(database, &message).await;
        return message;
    }
    let first = stand(&message, &ada.claimed(&message).await);
    match how {
        Waits::Retrying => drop(ada.fail(first).await),
        Waits::Failed => drop(ada.give_up(first).await),
        Waits::Released => drop(ada.ledger.release(message.id, first.epoch).await),
        Waits::Deferred => {
            let defer = Defer {
                stand: first,
                reason: "braked".into(),
                retry_in: Duration::from_secs(60),
                failure: None,
            };
            drop(ada.ledger.defer(defer).await);
        }
        Waits::Enqueued => unreachable!(),
    }
    message
}

#[tokio::test]
async fn the_job_goes_on_behind_the_task_however_it_came_to_wait() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for how in ALL {
        let message = waiting(&database, &ada, how, 3).await;
        let before = database.job(message.id).await;
        let skipped = skip(&database, message.id).await;
        let generation = Generation(before.generation + 1);
        let expected = Skipped::GoesOn {
            position: 1,
            generation,
        };
        assert_eq!(skipped, expected, "{how:?}");

        let job = database.job(message.id).await;
        assert_eq!(
            (
                job.status.as_str(),
                job.holder,
                job.error,
                job.epoch,
                job.sent
            ),
            ("PENDING", None, None, before.epoch + 1, before.sent),
            "{how:?}"
        );
        assert!(!job.finished && job.due_in.unwrap() <= 0.0, "{how:?}");
        let tasks = database.tasks(message.id).await;
        let first = &tasks[0];
        assert_eq!(
            (
                first.status.as_str(),
                first.result.as_deref(),
                first.attempt
            ),
            ("SUCCESS", None, 1),
            "{how:?}"
        );
        assert!(first.started && first.finished && first.error.is_none());
        assert_eq!(first.epoch, job.epoch, "{how:?}: as a claim leaves it");
        assert_eq!((tasks[1].status.as_str(), tasks[1].attempt), ("PENDING", 0));

        // A copy of the new generation runs the rest, from the next task on.
        let claimed = ada
            .claimed_by(of_generation(generation.0, asks(&message)))
            .await;
        assert_eq!(
            (claimed.position, claimed.way),
            (2, Way::Resumed),
            "{how:?}"
        );
        assert_eq!(claimed.results[0].result.get(), "null");
        let second = stand(&message, &claimed);
        assert_eq!(ada.done(second, json!(2)).await, Written::Committed);
        let end = ada.advance(after(second), json!(3), Next::Finish).await;
        assert_eq!(end, Written::Committed);
        assert_eq!(database.job(message.id).await.status, "SUCCESS");
    }
}

#[tokio::test]
async fn a_job_whose_last_task_is_skipped_is_over_and_owed_nothing() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for how in ALL {
        let message = waiting(&database, &ada, how, 1).await;
        let skipped = skip(&database, message.id).await;
        assert_eq!(skipped, Skipped::Over { position: 1 }, "{how:?}");
        let job = database.job(message.id).await;
        assert_eq!((job.status.as_str(), job.due_in), ("SUCCESS", None));
        assert!(
            job.finished && job.sent == job.generation,
            "{how:?}: {job:?}"
        );
        assert!(matches!(ada.claim(&message).await, Answer::Finished));
    }
    let mut reconciling = Reconciling::begin(ada.ledger.desk(), ada.ledger.holder())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reconciling.owed(Duration::ZERO).await.unwrap(), []);
    reconciling.end().await;
}

#[tokio::test]
async fn what_is_held_or_over_stays_as_it_is() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (held, done, cancelled) = (job_of(2), job_of(1), job_of(1));
    ada.claimed(&held).await;
    ada.finish(&done).await;
    ada.claimed(&cancelled).await;
    cancel(&database, cancelled.id).await;
    for (id, status) in [
        (held.id, JobStatus::Processing),
        (done.id, JobStatus::Success),
        (cancelled.id, JobStatus::Cancelled),
    ] {
        let before = database.all_of(id).await;
        assert_eq!(skip(&database, id).await, Skipped::Refused(status));
        assert_eq!(database.all_of(id).await, before);
    }
    assert_eq!(skip(&database, JobId::new()).await, Skipped::NotFound);
    let skips = "SELECT count(*) FROM cliquet.interventions WHERE act = 'skip'";
    assert_eq!(database.value::<i64>(skips).await, 0);
}

#[tokio::test]
async fn a_task_at_which_the_job_does_not_stand_is_not_skipped() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = waiting(&database, &ada, Waits::Failed, 3).await;
    let before = database.all_of(message.id).await;
    for position in [0, 2, 4] {
        let stands_at = Skipped::StandsAt {
            status: JobStatus::Failed,
            frontier: Some(1),
        };
        assert_eq!(
            skip_at(&database, message.id, Some(position)).await,
            stands_at
        );
    }
    assert_eq!(database.all_of(message.id).await, before);
    // Asked twice with its position, it is skipped once.
    for skipped in [true, false] {
        let answer = skip_at(&database, message.id, Some(1)).await;
        assert_eq!(matches!(answer, Skipped::GoesOn { .. }), skipped);
    }
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PENDING", "PENDING"]
    );
}

/// Whatever of its messages is still under way is of an older generation.
#[tokio::test]
async fn copies_from_before_a_skip_bring_its_successor_and_are_stale_once_that_is_sent() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for how in [Waits::Retrying, Waits::Failed, Waits::Deferred] {
        let message = waiting(&database, &ada, how, 2).await;
        skip(&database, message.id).await;
        for older in [0, 1] {
            let claim = redelivered(of_generation(older, asks(&message)));
            let answer = ada.ledger.claim(claim).await.unwrap();
            assert!(
                matches!(answer, Answer::Superseded { generation: Generation(2), delay } if delay.is_zero()),
                "{how:?}, {older}: {answer:?}"
            );
        }
        let pool = database.address.pool("operator", 1);
        note_sent(&pool, message.id, Generation(2)).await.unwrap();
        for older in [0, 1] {
            let claim = of_generation(older, asks(&message));
            let answer = ada.ledger.claim(claim).await.unwrap();
            assert!(matches!(answer, Answer::Stale), "{how:?}: {answer:?}");
        }
        assert_eq!(database.statuses(message.id).await, ["SUCCESS", "PENDING"]);
    }
}

/// The operator's process ends between the commit and the copy.
#[tokio::test]
async fn a_skip_whose_copy_was_never_sent_is_owed_it() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let mut owed = Vec::new();
    for how in [Waits::Failed, Waits::Enqueued] {
        let message = waiting(&database, &ada, how, 2).await;
        skip(&database, message.id).await;
        owed.push(message.id);
    }
    let mut reconciling = Reconciling::begin(ada.ledger.desk(), ada.ledger.holder())
        .await
        .unwrap()
        .unwrap();
    let mut found: Vec<_> = reconciling
        .owed(Duration::ZERO)
        .await
        .unwrap()
        .iter()
        .map(|owed| owed.job)
        .collect();
    reconciling.end().await;
    found.sort();
    found.dedup();
    owed.sort();
    assert_eq!(found, owed);
}

#[tokio::test]
async fn a_former_holder_does_not_take_a_skip_for_its_own_success() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let first = stand(&message, &ada.claimed(&message).await);
    ada.fail(first).await;
    skip(&database, message.id).await;
    let before = database.all_of(message.id).await;
    assert_eq!(ada.done(first, json!("mine")).await, Written::Fenced);
    assert_eq!(ada.fail(first).await, Written::Fenced);
    assert_eq!(ada.ledger.fate(first).await, Some(Written::Fenced));
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_skip_that_waited_for_a_claim_finds_the_job_held() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = waiting(&database, &ada, Waits::Retrying, 2).await;
    let mut claimer = database.connect().await;
    on(&mut claimer, "BEGIN").await;
    let claim = of_generation(1, asks(&message));
    assert!(matches!(
        write(&mut claimer, &ada, claim).await,
        Some(Answer::Claimed(_))
    ));
    let skipping = tokio::spawn({
        let (pool, id) = (database.address.pool("operator", 1), message.id);
        async move { crate::ledger::skip(&pool, id, None, &by("late")).await }
    });
    database.blocked(1).await;
    on(&mut claimer, "COMMIT").await;
    assert_eq!(
        skipping.await.unwrap().unwrap(),
        Skipped::Refused(JobStatus::Processing)
    );
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}

/// A worker takes the job at the same moment, with a copy of the present generation or of one that is yet to come.
#[tokio::test]
async fn a_claim_that_waited_for_a_skip_does_not_begin_the_skipped_task() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for (how, generation) in [
        (Waits::Retrying, 1),
        (Waits::Failed, 1),
        (Waits::Released, 0),
        (Waits::Retrying, 2),
    ] {
        let message = waiting(&database, &ada, how, 2).await;
        let mut operator = database.connect().await;
        on(&mut operator, "BEGIN").await;
        let skipped = super::super::skip::skip_in(&mut operator, message.id, None, &by("now"))
            .await
            .unwrap();
        assert!(matches!(skipped, Skipped::GoesOn { .. }));
        let claiming = tokio::spawn({
            let (ledger, claim) = (
                ada.ledger.clone(),
                of_generation(generation, asks(&message)),
            );
            async move { ledger.claim(claim).await.unwrap() }
        });
        database.blocked(1).await;
        on(&mut operator, "COMMIT").await;
        match claiming.await.unwrap() {
            Answer::Superseded { .. } => assert_ne!(generation, 2, "{how:?}"),
            // Somebody has guessed the next generation: then it is the next task.
            Answer::Claimed(claimed) => assert_eq!((generation, claimed.position), (2, 2)),
            other => panic!("{how:?}: {other:?}"),
        }
        assert_eq!(database.statuses(message.id).await[0], "SUCCESS");
    }
}

#[tokio::test]
async fn a_skip_waits_a_few_seconds_for_a_job_that_somebody_keeps_locked_and_changes_nothing() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = waiting(&database, &ada, Waits::Failed, 2).await;
    let before = database.all_of(message.id).await;
    let mut other = database.connect().await;
    on(&mut other, "BEGIN; SELECT FROM cliquet.jobs FOR UPDATE").await;
    let pool = database.address.pool("operator", 1);
    match crate::ledger::skip(&pool, message.id, None, &by("now")).await {
        Err(LedgerError::Unavailable(sentence)) => {
            assert!(
                sentence.contains("somebody keeps the job locked")
                    && sentence.contains("nothing was changed"),
                "{sentence}"
            );
        }
        other => panic!("{other:?}"),
    }
    on(&mut other, "ROLLBACK").await;
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn what_was_done_to_a_job_is_told_with_it_and_goes_with_it() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = waiting(&database, &ada, Waits::Failed, 3).await;
    let pool = database.address.pool("operator", 1);
    record_retry(&pool, message.id, &By::new("oleg", None))
        .await
        .unwrap();
    skip(&database, message.id).await;
    cancel(&database, message.id).await;
    // A second time there is nothing to cancel, and nothing to tell.
    super::super::cancel(&pool, &[message.id], &by("again"))
        .await
        .unwrap();
    let told: Vec<_> = Reads::new(pool)
        .job(message.id)
        .await
        .unwrap()
        .unwrap()
        .interventions
        .into_iter()
        .map(|done| (done.act, done.operator, done.reason, done.position))
        .collect();
    let olga = || "olga".to_owned();
    assert_eq!(
        told,
        [
            (Act::Retry, "oleg".to_owned(), None, None),
            (Act::Skip, olga(), Some("done by hand".into()), Some(1)),
            (Act::Cancel, olga(), Some("not wanted".into()), None),
        ]
    );
    // The failure that was skipped is in the history all the same.
    assert_eq!(database.failures(message.id).await.len(), 1);

    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '1 day', finished_at = now() - interval '1 day'")
        .await;
    let status = [JobStatus::Cancelled];
    let mut pruner = Pruner::open(&database.address, LEAST_AGE, &status, None)
        .await
        .unwrap();
    while !pruner.pruning.is_over() {
        pruner.step(false).await.unwrap();
    }
    pruner.close().await;
    let left =
        "SELECT (SELECT count(*) FROM cliquet.jobs) + (SELECT count(*) FROM cliquet.interventions)";
    assert_eq!(database.value::<i64>(left).await, 0);
}

#[tokio::test]
async fn a_retry_of_a_job_that_is_pruned_meanwhile_leaves_no_row() {
    let database = Database::new().await;
    let pool = database.address.pool("operator", 1);
    record_retry(&pool, JobId::new(), &by("late"))
        .await
        .unwrap();
    let rows = "SELECT count(*) FROM cliquet.interventions";
    assert_eq!(database.value::<i64>(rows).await, 0);
}

#[tokio::test]
async fn who_is_connected_to_what_only_reads_is_told_so_before_anything_is_sent() {
    let database = Database::new().await;
    may_act(&database.address.pool("operator", 1))
        .await
        .unwrap();
    match may_act(&database.address.reader_pool("operator", 1)).await {
        Err(LedgerError::Denied(sentence)) => assert!(
            sentence.contains("only reads") && sentence.contains("nothing can be changed there"),
            "{sentence}"
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_without_any_task_has_none_to_skip() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = waiting(&database, &ada, Waits::Enqueued, 1).await;
    database.run("DELETE FROM cliquet.tasks").await;
    let stands_at = Skipped::StandsAt {
        status: JobStatus::Pending,
        frontier: None,
    };
    assert_eq!(skip(&database, message.id).await, stands_at);
}
