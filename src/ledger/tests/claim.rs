//! The claim's table, row by row and in its order; then its races, with transactions held open as barriers.

use std::cell::Cell;

use super::*;
use crate::job::TaskSpec;

// ── row 1: nobody knows the job ──────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_new_job_begins_with_its_first_task_and_the_others_wait() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job(json!({"tasks": [
        "validate",
        {"handler": "upload", "label": "Upload image 1/5", "input": {"index": 1}},
        "list"
    ]}));

    let claimed = ada.claimed(&message).await;

    assert_eq!(
        (claimed.way, claimed.epoch, claimed.generation),
        (Way::New, Epoch(1), Generation(0))
    );
    assert_eq!(
        (claimed.position, claimed.attempt, claimed.crashes),
        (1, 1, 0)
    );
    assert!(claimed.results.is_empty());
    let job = database.job(message.id).await;
    assert_eq!(
        (job.status.as_str(), job.holder, job.attempts),
        ("PROCESSING", Some(ada.id()), 1)
    );
    assert_eq!(
        (job.epoch, job.generation, job.total, job.queue.as_str()),
        (1, 0, 3, "jobs")
    );
    let tasks = database.tasks(message.id).await;
    let brief: Vec<_> = tasks
        .iter()
        .map(|task| (task.position, task.status.as_str(), task.attempt))
        .collect();
    assert_eq!(
        brief,
        [(1, "PROCESSING", 1), (2, "PENDING", 0), (3, "PENDING", 0)]
    );
    assert_eq!(
        (tasks[0].epoch, tasks[0].started, tasks[1].started),
        (1, true, false)
    );
    assert_eq!(
        (tasks[1].handler.as_str(), tasks[1].label.as_str()),
        ("upload", "Upload image 1/5")
    );
    assert_eq!(
        (&tasks[0].input, tasks[1].input.as_deref()),
        (&None, Some(r#"{"index":1}"#))
    );
}

#[tokio::test]
async fn a_job_and_all_its_tasks_are_created_in_one_commit() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(40);
    ada.claimed(&message).await;
    let transactions: i64 = database
        .value("SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM cliquet.jobs UNION ALL SELECT xmin FROM cliquet.tasks) rows")
        .await;
    assert_eq!(transactions, 1);
    assert_eq!(database.tasks(message.id).await.len(), 40);
}

#[tokio::test]
async fn nobody_sees_a_job_without_all_its_tasks() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let mut looker = database.connect().await;
    let looked = Cell::new(0);
    let stream = async {
        let mut claims = 0;
        while claims < 40 || looked.get() < 3 {
            ada.claimed(&job_of(20)).await;
            claims += 1;
        }
    };
    tokio::pin!(stream);
    loop {
        let look = sqlx::query("SELECT count(*) FROM cliquet.jobs WHERE total <> (SELECT count(*) FROM cliquet.tasks WHERE job_id = id)")
            .fetch_one(&mut looker);
        tokio::select! {
            () = &mut stream => break,
            row = look => {
                assert_eq!(row.unwrap().try_get::<i64, _>(0).unwrap(), 0);
                looked.set(looked.get() + 1);
            }
        }
    }
}

#[tokio::test]
async fn a_new_job_takes_the_generation_its_message_carries() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let claimed = ada.claimed_by(of_generation(7, asks(&message))).await;
    assert_eq!(claimed.generation, Generation(7));
    let job = database.job(message.id).await;
    assert_eq!((job.generation, job.sent), (7, 7));
}

/// Generations end at 1,000,000,000. A job that began there could tell no stale copy from its own.
#[tokio::test]
async fn a_new_job_whose_message_claims_an_enormous_generation_has_room_left() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let claimed = ada
        .claimed_by(of_generation(1_000_000_000, asks(&message)))
        .await;
    assert_eq!(claimed.generation, Generation(1_000_000));
    ada.fail(stand(&message, &claimed)).await;
    let job = database.job(message.id).await;
    assert_eq!((job.generation, job.sent), (1_000_001, 1_000_000));
}

// ── rows 2 and 3: given up ───────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_retry_of_a_given_up_job_starts_attempts_and_crashes_anew() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    let first = stand(&message, &ada.claimed(&message).await);
    ada.done(first, json!("one")).await;
    ada.fail(after(first)).await;
    let second = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!((second.position, second.attempt), (2, 2));
    ada.die(&database).await;
    let third = bob
        .claimed_by(redelivered(of_generation(1, asks(&message))))
        .await;
    assert_eq!((third.attempt, third.crashes), (2, 1));
    bob.give_up(stand(&message, &third)).await;

    let retried = bob.claimed_by(of_generation(2, asks(&message))).await;

    assert_eq!(
        (retried.way, retried.position, retried.generation),
        (Way::Retried, 2, Generation(2))
    );
    assert_eq!((retried.attempt, retried.crashes), (1, 0));
    let task = database.tasks(message.id).await.remove(1);
    assert_eq!(
        (task.status.as_str(), task.error, task.crashes),
        ("PROCESSING", None, 0)
    );
    let job = database.job(message.id).await;
    assert_eq!((job.error, job.finished), (None, false));
}

#[tokio::test]
async fn a_generation_that_was_never_given_out_does_not_retry_a_given_up_job() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = given_up(&ada).await;
    for forged in [2, 1_000_000_000] {
        foreign(&database, &ada, of_generation(forged, asks(&message))).await;
    }
    let retried = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!(
        (retried.way, retried.generation),
        (Way::Retried, Generation(1))
    );
}

#[tokio::test]
async fn an_older_copy_of_a_given_up_job_is_parked_again() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = given_up(&ada).await;
    let before = database.all_of(message.id).await;
    match ada.claim(&message).await {
        Answer::ParkAgain { generation, error } => {
            assert_eq!((generation, error.as_str()), (Generation(1), "no luck"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn an_older_copy_of_a_job_known_to_be_parked_is_stale() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = given_up(&ada).await;
    sent(&database, &ada, &message, 1).await;
    assert!(matches!(ada.claim(&message).await, Answer::Stale));
}

// ── row 4: over ──────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_job_that_succeeded_is_finished_whatever_comes() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let first = stand(&message, &ada.claimed(&message).await);
    ada.fail(first).await;
    let second = stand(
        &message,
        &ada.claimed_by(of_generation(1, asks(&message))).await,
    );
    ada.done(second, json!(1)).await;
    ada.advance(after(second), json!(2), Next::Finish).await;
    let before = database.all_of(message.id).await;
    for generation in [0, 1, 2] {
        for claim in [asks(&message), redelivered(asks(&message))] {
            let running = Some(second.epoch);
            let claim = of_generation(generation, Claim { running, ..claim });
            let answer = ada.ledger.claim(claim).await.unwrap();
            assert!(matches!(answer, Answer::Finished), "{answer:?}");
        }
    }
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_cancelled_job_is_finished() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    ada.claimed(&message).await;
    cancel(&database, message.id).await;
    assert!(matches!(ada.claim(&message).await, Answer::Finished));
}

// ── rows 5 and 6: an older generation ────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn an_older_copy_of_a_held_job_is_stale_even_for_its_holder_and_even_when_the_holder_is_dead()
{
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.fail(stand(&message, &ada.claimed(&message).await))
        .await;
    let held = ada.claimed_by(of_generation(1, asks(&message))).await;
    let own = Claim {
        running: Some(held.epoch),
        ..asks(&message)
    };
    assert!(matches!(
        ada.ledger.claim(own).await.unwrap(),
        Answer::Stale
    ));
    assert!(matches!(bob.claim(&message).await, Answer::Stale));
    ada.die(&database).await;
    let again = bob.ledger.claim(redelivered(asks(&message))).await.unwrap();
    assert!(matches!(again, Answer::Stale), "{again:?}");
}

#[tokio::test]
async fn an_older_copy_of_a_waiting_job_is_superseded_by_what_is_due_later() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = retrying(&ada).await;
    match ada.claim(&message).await {
        Answer::Superseded { generation, delay } => {
            assert_eq!(generation, Generation(1));
            assert!(
                delay > Duration::from_secs(30) && delay <= Duration::from_secs(60),
                "{delay:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_older_copy_of_an_overdue_job_is_superseded_without_delay() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = retrying(&ada).await;
    database
        .run("UPDATE cliquet.jobs SET next_attempt_at = now() - interval '1 hour'")
        .await;
    let answer = ada.claim(&message).await;
    assert!(
        matches!(
            answer,
            Answer::Superseded {
                delay: Duration::ZERO,
                ..
            }
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn an_older_copy_of_a_waiting_job_whose_successor_was_sent_is_stale() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = retrying(&ada).await;
    sent(&database, &ada, &message, 1).await;
    assert!(matches!(ada.claim(&message).await, Answer::Stale));
}

// ── rows 7 and 8: our own ────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_job_that_this_process_runs_is_mine_whatever_the_witnesses_say() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let claimed = ada.claimed(&message).await;
    stale(&database, &ada).await;
    let before = database.all_of(message.id).await;
    let mine = Claim {
        running: Some(claimed.epoch),
        ..redelivered(asks(&message))
    };
    assert!(matches!(
        ada.ledger.claim(mine).await.unwrap(),
        Answer::Mine
    ));
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_job_held_without_knowing_is_regained_and_counts_no_crash() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let lost = ada.claimed(&message).await;
    stale(&database, &ada).await;

    let regained = ada.claimed_by(redelivered(asks(&message))).await;

    assert_eq!((regained.way, regained.epoch), (Way::Regained, Epoch(2)));
    assert_eq!(
        (regained.position, regained.attempt, regained.crashes),
        (1, 1, 0)
    );
    assert!(database.failures(message.id).await.is_empty());
    assert_eq!(
        ada.done(stand(&message, &lost), json!(1)).await,
        Written::Fenced
    );
}

#[tokio::test]
async fn an_older_run_of_the_same_process_does_not_keep_a_job_from_being_regained() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let older = ada.claimed(&message).await;
    ada.claimed(&message).await;
    let claim = Claim {
        running: Some(older.epoch),
        ..asks(&message)
    };
    assert_eq!(ada.claimed_by(claim).await.way, Way::Regained);
}

// ── rows 9 and 10: held by another ───────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_redelivery_takes_over_from_a_holder_whose_lock_is_free_and_counts_a_crash() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(3);
    ada.done(stand(&message, &ada.claimed(&message).await), json!("one"))
        .await;
    ada.die(&database).await;

    let taken = bob.claimed_by(redelivered(asks(&message))).await;

    assert_eq!(
        (taken.way, taken.epoch, taken.position),
        (Way::TakenOver, Epoch(2), 2)
    );
    assert_eq!((taken.attempt, taken.crashes), (1, 1));
    let job = database.job(message.id).await;
    assert_eq!(
        (job.status.as_str(), job.holder, job.attempts),
        ("PROCESSING", Some(bob.id()), 2)
    );
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PROCESSING", "PENDING"]
    );
    let failures = database.failures(message.id).await;
    assert_eq!(failures.len(), 1);
    let crash = &failures[0];
    assert_eq!(
        (
            crash.position,
            crash.attempt,
            crash.epoch,
            crash.worker.as_str()
        ),
        (2, 1, 1, "ada")
    );
    assert!(
        crash.error.contains("the worker died"),
        "it says {:?}",
        crash.error
    );
}

#[tokio::test]
async fn a_free_lock_alone_is_no_death() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    busy(&database, &bob, asks(&message)).await;
}

#[tokio::test]
async fn a_redelivery_alone_is_no_death() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    busy(&database, &bob, redelivered(asks(&message))).await;
}

#[tokio::test]
async fn a_lock_that_a_restart_of_postgres_freed_is_no_witness() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.die(&database).await;
    database
        .run("UPDATE cliquet.workers SET locked_at = pg_postmaster_start_time() - interval '1 second' WHERE name = 'ada'")
        .await;
    busy(&database, &bob, redelivered(asks(&message))).await;
}

#[tokio::test]
async fn a_stale_heartbeat_lets_anybody_take_over() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    stale(&database, &ada).await;
    let taken = bob.claimed_by(asks(&message)).await;
    assert_eq!((taken.way, taken.crashes), (Way::TakenOver, 1));
}

#[tokio::test]
async fn a_stopped_worker_keeps_nothing() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    ada.leave(&database).await;
    assert_eq!(bob.claimed_by(asks(&message)).await.way, Way::TakenOver);
}

#[tokio::test]
async fn a_worker_that_nobody_knows_keeps_nothing() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    database
        .run("DELETE FROM cliquet.workers WHERE name = 'ada'")
        .await;
    assert_eq!(bob.claimed_by(asks(&message)).await.way, Way::TakenOver);
    assert_eq!(database.failures(message.id).await[0].worker, "unknown");
}

#[tokio::test]
async fn each_takeover_counts_one_more_crash_of_the_same_attempt() {
    let database = Database::new().await;
    let bob = database.worker("bob").await;
    let message = job_of(1);
    bob.ledger
        .release(message.id, bob.claimed(&message).await.epoch)
        .await
        .unwrap();
    for crashes in 0..3 {
        let ada = database.worker("ada").await;
        let claimed = ada.claimed_by(redelivered(asks(&message))).await;
        assert_eq!((claimed.attempt, claimed.crashes), (1, crashes));
        ada.die(&database).await;
    }
    assert_eq!(database.failures(message.id).await.len(), 2);
}

// ── row 11: waiting ──────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_waiting_job_goes_on_at_its_failed_task_with_the_next_attempt() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(3);
    let first = stand(&message, &ada.claimed(&message).await);
    ada.done(first, json!(1)).await;
    ada.fail(after(first)).await;

    let resumed = bob.claimed_by(of_generation(1, asks(&message))).await;

    assert_eq!(
        (resumed.way, resumed.epoch, resumed.generation),
        (Way::Resumed, Epoch(2), Generation(1))
    );
    assert_eq!(
        (resumed.position, resumed.attempt, resumed.crashes),
        (2, 2, 0)
    );
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PROCESSING", "PENDING"]
    );
    let job = database.job(message.id).await;
    assert_eq!((job.error, job.due_in), (None, None));
}

#[tokio::test]
async fn a_generation_that_was_never_given_out_does_not_run_a_waiting_job_early() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = retrying(&ada).await;
    for forged in [2, 1_000_000_000] {
        foreign(&database, &ada, of_generation(forged, asks(&message))).await;
    }
    let resumed = ada.claimed_by(of_generation(1, asks(&message))).await;
    assert_eq!(
        (resumed.way, resumed.generation),
        (Way::Resumed, Generation(1))
    );
}

/// Postgres may have lost its latest commits, and with them the generation that a message carries. While the ledger says
/// that somebody holds the job, that message is all that can bring it to its holder, or to somebody else.
#[tokio::test]
async fn a_held_job_is_regained_or_taken_over_whatever_generation_its_message_claims() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    let asked = of_generation(1_000_000_000, asks(&message));
    busy(&database, &bob, asked.clone()).await;
    let regained = ada.claimed_by(asked.clone()).await;
    assert_eq!(
        (regained.way, regained.generation),
        (Way::Regained, Generation(0))
    );
    ada.die(&database).await;
    let taken = bob.claimed_by(redelivered(asked)).await;
    assert_eq!(
        (taken.way, taken.generation),
        (Way::TakenOver, Generation(0))
    );
    assert_eq!(database.job(message.id).await.generation, 0);
}

#[tokio::test]
async fn a_resumed_run_is_given_the_earlier_results_to_the_letter() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let letters = [
        r#"{"b": [1, 2.50, {"a":null}],  "a":"é \u0041 \ud83d\ude00 \ud800","b":1e400}"#,
        "null",
        r#""text""#,
        r#""\u0000""#,
        "123456789012345678901234567890",
        "[]",
    ];
    let message = job_of(letters.len() + 1);
    let mut stand = stand(&message, &ada.claimed(&message).await);
    for letter in letters {
        let (result, next) = (raw(letter), Next::Task);
        let advance = Advance {
            stand,
            result,
            next,
        };
        assert_eq!(
            ada.ledger.advance(advance).await.unwrap(),
            Written::Committed
        );
        stand = after(stand);
    }
    ada.ledger.release(message.id, stand.epoch).await.unwrap();

    let results = bob.claimed(&message).await.results;

    let told: Vec<_> = results.iter().map(|result| result.result.get()).collect();
    assert_eq!(told, letters);
    let places: Vec<_> = results
        .iter()
        .map(|result| (result.position, result.handler.as_str()))
        .collect();
    assert_eq!((places[0], places[5]), ((1, "step_1"), (6, "step_6")));
}

// ── conflicts ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn another_content_under_the_same_id_is_a_conflict_in_every_state() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for state in ["held", "given up", "over"] {
        let message = job_of(1);
        let claimed = ada.claimed(&message).await;
        match state {
            "given up" => drop(ada.give_up(stand(&message, &claimed)).await),
            "over" => drop(
                ada.advance(stand(&message, &claimed), json!(1), Next::Finish)
                    .await,
            ),
            _ => {}
        }
        let before = database.all_of(message.id).await;
        let other = job(json!({"id": message.id, "tasks": ["something else"]}));
        match ada.ledger.claim(of_generation(3, asks(&other))).await {
            Ok(Answer::Conflict { stored }) => assert_eq!(stored, message.fingerprint),
            other => panic!("{state}: {other:?}"),
        }
        assert_eq!(database.all_of(message.id).await, before);
    }
}

#[tokio::test]
async fn a_job_enqueued_in_sql_is_claimed_by_a_message_that_agrees() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job(
        json!({"payload": {"product": 42}, "tasks": ["validate", {"handler": "list", "input": [1]}]}),
    );
    enqueue(&database, &message).await;
    let claimed = ada.claimed(&message).await;
    assert_eq!(
        (claimed.way, claimed.position, claimed.attempt),
        (Way::Resumed, 1, 1)
    );
}

#[tokio::test]
async fn a_message_that_disagrees_with_a_job_enqueued_in_sql_is_a_conflict() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    enqueue(&database, &message).await;
    let other = job(json!({"id": message.id, "tasks": ["something else"]}));
    let answer = ada.claim(&other).await;
    assert!(
        matches!(answer, Answer::Conflict { stored } if stored == message.fingerprint),
        "{answer:?}"
    );
    assert_eq!(database.statuses(message.id).await, ["PENDING"; 2]);
}

#[tokio::test]
async fn a_job_enqueued_in_sql_that_cannot_be_read_is_refused() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    enqueue(&database, &message).await;
    database
        .run(r#"UPDATE cliquet.jobs SET payload = '{"a": "\u0000"}'"#)
        .await;
    match ada.ledger.claim(asks(&message)).await {
        Err(LedgerError::Refused(why)) => assert!(why.contains("NUL"), "{why}"),
        other => panic!("{other:?}"),
    }
}

// ── races ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_claim_a_new_job_at_once_get_it_once() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    for _ in 0..200 {
        let message = job_of(2);
        let answers = tokio::join!(ada.claim(&message), bob.claim(&message));
        match answers {
            (Answer::Claimed(_), Answer::Busy) | (Answer::Busy, Answer::Claimed(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(
            database.statuses(message.id).await,
            ["PROCESSING", "PENDING"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_redeliveries_of_a_dead_workers_jobs_take_each_over_once() {
    let database = Database::new().await;
    let (ada, bob, eve) = (
        database.worker("ada").await,
        database.worker("bob").await,
        database.worker("eve").await,
    );
    let jobs: Vec<_> = (0..150).map(|_| job_of(2)).collect();
    for message in &jobs {
        ada.claimed(message).await;
    }
    ada.die(&database).await;
    for message in &jobs {
        let claim = |worker: &Worker| {
            let (ledger, claim) = (worker.ledger.clone(), redelivered(asks(message)));
            async move { ledger.claim(claim).await.unwrap() }
        };
        match tokio::join!(claim(&bob), claim(&eve)) {
            (Answer::Claimed(_), Answer::Busy) | (Answer::Busy, Answer::Claimed(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(database.tasks(message.id).await[0].crashes, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_claim_the_same_many_jobs_at_once_get_each_once() {
    let database = Database::new().await;
    let (ada, bob) = (
        database.worker_with("ada", 2).await,
        database.worker_with("bob", 3).await,
    );
    let jobs: Vec<_> = (0..300).map(|_| job_of(1)).collect();
    let all = |worker: &Worker, reverse: bool| {
        let mut jobs = jobs.clone();
        if reverse {
            jobs.reverse();
        }
        let ledger = worker.ledger.clone();
        async move {
            let claims = jobs.iter().map(|message| ledger.claim(asks(message)));
            let answers = futures::future::join_all(claims).await;
            answers
                .into_iter()
                .filter(|answer| matches!(answer, Ok(Answer::Claimed(_))))
                .count()
        }
    };
    let (adas, bobs) = tokio::join!(all(&ada, false), all(&bob, true));
    assert_eq!(adas + bobs, 300);
}

#[tokio::test]
async fn a_claim_that_loses_the_race_to_insert_looks_again() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    let mut winner = database.connect().await;
    on(&mut winner, "BEGIN").await;
    write(&mut winner, &ada, asks(&message)).await;
    let claim = tokio::spawn({
        let (ledger, claim) = (bob.ledger.clone(), asks(&message));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    on(&mut winner, "COMMIT").await;
    assert!(matches!(claim.await.unwrap(), Answer::Busy));
}

#[tokio::test]
async fn a_claim_that_wins_because_the_other_rolled_back_creates_the_job() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    let mut loser = database.connect().await;
    on(&mut loser, "BEGIN").await;
    write(&mut loser, &ada, asks(&message)).await;
    let claim = tokio::spawn({
        let (ledger, claim) = (bob.ledger.clone(), asks(&message));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    on(&mut loser, "ROLLBACK").await;
    match claim.await.unwrap() {
        Answer::Claimed(claimed) => assert_eq!(claimed.way, Way::New),
        other => panic!("{other:?}"),
    }
    assert_eq!(database.job(message.id).await.holder, Some(bob.id()));
}

/// What a takeover answers, and what is left, when it had to wait for this write of the holder in the second task of so many.
async fn takeover_after<V: lane::Verb>(
    tasks: usize,
    holders_write: impl FnOnce(Stand) -> V,
) -> (Answer, Vec<String>, JobRow) {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(tasks);
    let first = stand(&message, &ada.claimed(&message).await);
    ada.done(first, json!("one")).await;
    stale(&database, &ada).await;
    let mut holder = database.connect().await;
    on(&mut holder, "BEGIN").await;
    write(&mut holder, &ada, holders_write(after(first))).await;
    let claim = tokio::spawn({
        let (ledger, claim) = (bob.ledger.clone(), redelivered(asks(&message)));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    on(&mut holder, "COMMIT").await;
    let answer = claim.await.unwrap();
    (
        answer,
        database.statuses(message.id).await,
        database.job(message.id).await,
    )
}

#[tokio::test]
async fn a_takeover_that_waited_for_an_advance_goes_on_behind_it() {
    let (answer, statuses, job) =
        takeover_after(3, |stand| advance(stand, json!("two"), Next::Task)).await;
    match answer {
        Answer::Claimed(claimed) => {
            assert_eq!(
                (claimed.way, claimed.position, claimed.crashes),
                (Way::TakenOver, 3, 1)
            );
            let told: Vec<_> = claimed
                .results
                .iter()
                .map(|result| result.result.get())
                .collect();
            assert_eq!(told, [r#""one""#, r#""two""#]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(statuses, ["SUCCESS", "SUCCESS", "PROCESSING"]);
    assert_eq!(job.epoch, 2);
}

#[tokio::test]
async fn a_takeover_that_waited_for_the_end_finds_the_job_finished() {
    let (answer, _, job) =
        takeover_after(2, |stand| advance(stand, json!("two"), Next::Finish)).await;
    assert!(matches!(answer, Answer::Finished), "{answer:?}");
    assert_eq!((job.status.as_str(), job.epoch), ("SUCCESS", 1));
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_hand_back_resumes_behind_it() {
    let (answer, statuses, _) =
        takeover_after(3, |stand| advance(stand, json!("two"), Next::HandBack)).await;
    match answer {
        Answer::Claimed(claimed) => assert_eq!(
            (
                claimed.way,
                claimed.position,
                claimed.attempt,
                claimed.crashes
            ),
            (Way::Resumed, 3, 1, 0)
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(statuses, ["SUCCESS", "SUCCESS", "PROCESSING"]);
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_failure_is_superseded_by_the_retry() {
    let (answer, statuses, job) =
        takeover_after(3, |stand| fail(stand, Some(Duration::from_secs(60)))).await;
    assert!(
        matches!(
            answer,
            Answer::Superseded {
                generation: Generation(1),
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(statuses, ["SUCCESS", "FAILED", "PENDING"]);
    assert_eq!(job.status, "RETRYING");
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_release_resumes_without_a_crash() {
    let (answer, statuses, _) = takeover_after(3, |stand| Release {
        job: stand.job,
        epoch: stand.epoch,
    })
    .await;
    match answer {
        Answer::Claimed(claimed) => assert_eq!(
            (claimed.way, claimed.attempt, claimed.crashes),
            (Way::Resumed, 1, 0)
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(statuses, ["SUCCESS", "PROCESSING", "PENDING"]);
}

#[tokio::test]
async fn a_claim_that_waited_for_a_worker_younger_than_its_look_finds_it_alive() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    let claimed = ada.claimed(&message).await;
    ada.ledger.release(message.id, claimed.epoch).await.unwrap();
    let mut barrier = database.connect().await;
    on(&mut barrier, "BEGIN; SELECT FROM cliquet.jobs FOR UPDATE").await;
    let claim = tokio::spawn({
        let (ledger, claim) = (bob.ledger.clone(), redelivered(asks(&message)));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    let young = database.worker("young").await;
    write(&mut barrier, &young, asks(&message)).await;
    on(&mut barrier, "COMMIT").await;
    let answer = claim.await.unwrap();
    assert!(matches!(answer, Answer::Busy), "{answer:?}");
    assert_eq!(database.job(message.id).await.holder, Some(young.id()));
}

#[tokio::test]
async fn a_claim_that_had_to_wait_does_not_take_its_own_wait_for_a_stale_heartbeat() {
    let database = Database::new().await;
    let (mut ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    let mut barrier = database.connect().await;
    on(&mut barrier, "BEGIN; SELECT FROM cliquet.jobs FOR UPDATE").await;
    database
        .run("UPDATE cliquet.workers SET seen_at = clock_timestamp(), patience = '5s' WHERE name = 'ada'")
        .await;
    // On a connection whose waits have no limit: a lane's would end, and the claim be written anew.
    let claim = tokio::spawn({
        let (mut patient, claim) = (database.connect().await, asks(&message));
        async move { write(&mut patient, &bob, claim).await }
    });
    database.blocked(1).await;
    until("the claim has waited for longer than the patience", async || {
        database.value("SELECT seen_at < clock_timestamp() - patience FROM cliquet.workers WHERE name = 'ada'").await
    })
    .await;
    ada.presence.beat(Vec::new).await;
    on(&mut barrier, "COMMIT").await;
    let answer = claim.await.unwrap();
    assert!(matches!(answer, Some(Answer::Busy)), "{answer:?}");
}

// ── the fence ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_former_holder_changes_nothing() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    let former = stand(&message, &ada.claimed(&message).await);
    stale(&database, &ada).await;
    bob.claimed(&message).await;
    let before = database.all_of(message.id).await;

    for next in [Next::Task, Next::Finish, Next::HandBack] {
        assert_eq!(
            ada.advance(former, json!("late"), next).await,
            Written::Fenced
        );
    }
    assert_eq!(ada.fail(former).await, Written::Fenced);
    assert_eq!(ada.give_up(former).await, Written::Fenced);
    let released = ada.ledger.release(message.id, former.epoch).await.unwrap();
    assert_eq!(released, Written::Fenced);

    assert_eq!(database.all_of(message.id).await, before);
}

/// What the former holder's write answers when it had to wait for a takeover; it has changed nothing.
async fn after_takeover<V: lane::Verb<Answer = Written>>(
    former_holders_write: impl FnOnce(Stand) -> V,
) -> Option<Written> {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    let former = stand(&message, &ada.claimed(&message).await);
    stale(&database, &ada).await;
    let (mut taker, mut late) = (database.connect().await, database.connect().await);
    on(&mut taker, "BEGIN").await;
    write(&mut taker, &bob, asks(&message)).await;
    let verb = former_holders_write(former);
    let late = tokio::spawn(async move { write(&mut late, &ada, verb).await });
    database.blocked(1).await;
    on(&mut taker, "COMMIT").await;
    let before = database.all_of(message.id).await;
    let answer = late.await.unwrap();
    assert_eq!(database.all_of(message.id).await, before);
    assert_eq!(database.job(message.id).await.holder, Some(bob.id()));
    answer
}

#[tokio::test]
async fn an_advance_that_waited_for_a_takeover_is_fenced() {
    let answer = after_takeover(|stand| advance(stand, json!("late"), Next::Task)).await;
    assert_eq!(answer, Some(Written::Fenced));
}

#[tokio::test]
async fn an_end_that_waited_for_a_takeover_is_fenced() {
    for next in [Next::Finish, Next::HandBack] {
        let answer = after_takeover(|stand| advance(stand, json!("late"), next)).await;
        assert_eq!(answer, Some(Written::Fenced));
    }
}

#[tokio::test]
async fn a_failure_that_waited_for_a_takeover_is_fenced() {
    let answer = after_takeover(|stand| fail(stand, None)).await;
    assert_eq!(answer, Some(Written::Fenced));
}

#[tokio::test]
async fn a_release_that_waited_for_a_takeover_is_fenced() {
    let answer = after_takeover(|stand| Release {
        job: stand.job,
        epoch: stand.epoch,
    })
    .await;
    assert_eq!(answer, Some(Written::Fenced));
}

#[tokio::test]
async fn an_advance_that_waited_for_a_takeover_that_failed_is_committed() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(2);
    let holder = stand(&message, &ada.claimed(&message).await);
    stale(&database, &ada).await;
    let mut taker = database.connect().await;
    on(&mut taker, "BEGIN").await;
    write(&mut taker, &bob, asks(&message)).await;
    let advance = tokio::spawn({
        let ledger = ada.ledger.clone();
        async move {
            ledger
                .advance(advance(holder, json!(1), Next::Task))
                .await
                .unwrap()
        }
    });
    database.blocked(1).await;
    on(&mut taker, "ROLLBACK").await;
    assert_eq!(advance.await.unwrap(), Written::Committed);
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PROCESSING"]
    );
}

// ── states ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A job that was given up at generation 1.
async fn given_up(worker: &Worker) -> Arc<JobMessage> {
    let message = job_of(1);
    let claimed = worker.claimed(&message).await;
    worker.give_up(stand(&message, &claimed)).await;
    message
}

/// A job that waits for a minute at generation 1.
async fn retrying(worker: &Worker) -> Arc<JobMessage> {
    let message = job_of(1);
    let claimed = worker.claimed(&message).await;
    worker.fail(stand(&message, &claimed)).await;
    message
}

/// Tells the ledger that this copy is confirmed.
async fn sent(database: &Database, worker: &Worker, message: &JobMessage, generation: i64) {
    worker.ledger.sent(message.id, Generation(generation));
    until("what was sent is written", async || {
        database.job(message.id).await.sent == generation
    })
    .await;
}

/// The claim is answered Foreign and changes nothing.
async fn foreign(database: &Database, worker: &Worker, claim: Claim) {
    let job = claim.message.id;
    let before = database.all_of(job).await;
    let answer = worker.ledger.claim(claim).await.unwrap();
    assert!(
        matches!(
            answer,
            Answer::Foreign {
                generation: Generation(1)
            }
        ),
        "{answer:?}"
    );
    assert_eq!(database.all_of(job).await, before);
}

/// The claim is answered Busy and changes nothing.
async fn busy(database: &Database, worker: &Worker, claim: Claim) {
    let job = claim.message.id;
    let before = database.all_of(job).await;
    let answer = worker.ledger.claim(claim).await.unwrap();
    assert!(matches!(answer, Answer::Busy), "{answer:?}");
    assert_eq!(database.all_of(job).await, before);
}

#[test]
fn what_a_message_can_ask_for_fits_into_one_group() {
    let task = TaskSpec {
        handler: "h".into(),
        label: "l".into(),
        input: raw("null"),
        max_attempts: None,
        timeout: None,
    };
    let largest = JobMessage {
        tasks: vec![task; crate::job::MAX_TASKS],
        payload: raw(&format!("\"{}\"", "x".repeat(crate::job::MAX_BODY_BYTES))),
        ..(*job_of(1)).clone()
    };
    assert!(lane::Verb::weight(&asks(&Arc::new(largest))) < lane::HEAVIEST_GROUP);
}

#[tokio::test]
async fn a_silence_that_postgres_was_not_there_to_hear_is_no_death() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    // As after an outage that was longer than everybody's patience: Postgres is younger than the silence.
    database
        .run("UPDATE cliquet.workers SET seen_at = seen_at - interval '20 years', patience = '10 years' WHERE name = 'ada'")
        .await;
    let answer = bob.claim(&message).await;
    assert!(matches!(answer, Answer::Busy), "{answer:?}");
}
