//! What is owed to the broker.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

async fn alone(worker: &Worker) -> Reconciling {
    Reconciling::begin(worker.ledger.desk(), worker.ledger.holder())
        .await
        .unwrap()
        .unwrap()
}

/// What is owed now, by a reconciler that comes and goes.
async fn owed(worker: &Worker, grace: Duration) -> Vec<Owed> {
    let mut reconciling = alone(worker).await;
    let owed = reconciling.owed(grace).await.unwrap();
    reconciling.end().await;
    owed
}

async fn abandoned(worker: &Worker) -> Vec<Owed> {
    let mut reconciling = alone(worker).await;
    let abandoned = reconciling.abandoned(worker.ledger.holder()).await.unwrap();
    reconciling.end().await;
    abandoned
}

/// A job that waits at generation 1 and has been due for so many seconds.
async fn due_for(database: &Database, worker: &Worker, seconds: i64) -> Arc<JobMessage> {
    let message = job_of(1);
    worker
        .fail(stand(&message, &worker.claimed(&message).await))
        .await;
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET next_attempt_at = now() - interval '{seconds} seconds' WHERE id = '{}'",
            message.id
        ))
        .await;
    message
}

#[tokio::test]
async fn a_job_that_is_due_for_longer_than_the_grace_is_owed() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let overdue = due_for(&database, &ada, 90).await;
    due_for(&database, &ada, 30).await;
    due_for(&database, &ada, -30).await;
    let owed = owed(&ada, MINUTE).await;
    assert_eq!(owed.len(), 1);
    assert_eq!(
        (owed[0].job, owed[0].generation),
        (overdue.id, Generation(1))
    );
    match owed[0].what {
        What::Overdue { by } => assert!(by >= Duration::from_secs(90) && by < 2 * MINUTE),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_held_job_and_one_that_is_over_are_not_owed() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    ada.claimed(&job_of(1)).await;
    ada.finish(&job_of(1)).await;
    assert_eq!(owed(&ada, Duration::ZERO).await, []);
    assert_eq!(abandoned(&ada).await, []);
}

#[tokio::test]
async fn a_job_enqueued_in_sql_is_owed_at_once() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    enqueue(&database, &message).await;
    assert_eq!(
        owed(&ada, MINUTE).await,
        [Owed {
            job: message.id,
            generation: Generation(0),
            what: What::Enqueued
        }]
    );
}

#[tokio::test]
async fn a_job_enqueued_for_later_is_owed_when_it_is_due() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    enqueue(&database, &job_of(2)).await;
    database
        .run("UPDATE cliquet.jobs SET next_attempt_at = now() + interval '1 hour'")
        .await;
    assert_eq!(owed(&ada, Duration::ZERO).await, []);
}

#[tokio::test]
async fn a_given_up_job_whose_copy_is_not_known_to_be_parked_is_owed() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (lost, parked, fresh) = (job_of(1), job_of(1), job_of(1));
    for message in [&lost, &parked, &fresh] {
        ada.give_up(stand(message, &ada.claimed(message).await))
            .await;
    }
    ada.ledger.sent(parked.id, Generation(1));
    until("what was sent is written", async || {
        database.job(parked.id).await.sent == 1
    })
    .await;
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET finished_at = now() - interval '2 minutes' WHERE id <> '{}'",
            fresh.id
        ))
        .await;
    assert_eq!(
        owed(&ada, MINUTE).await,
        [Owed {
            job: lost.id,
            generation: Generation(1),
            what: What::Unparked
        }]
    );
}

/// The worker that parked it was cut off from Postgres, and can say only now what the broker confirmed.
#[tokio::test]
async fn a_late_note_of_a_lost_copy_keeps_no_given_up_job_from_being_parked_again() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (unknown, known, fresh) = (job_of(1), job_of(1), job_of(1));
    for message in [&unknown, &known, &fresh] {
        ada.give_up(stand(message, &ada.claimed(message).await))
            .await;
    }
    let note = async |message: &Arc<JobMessage>, generation| {
        ada.ledger.sent(message.id, Generation(generation));
        until("the note is written", async || {
            database.job(message.id).await.sent == generation
        })
        .await;
    };
    note(&known, 1).await;
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET finished_at = now() - interval '2 minutes' WHERE id <> '{}'",
            fresh.id
        ))
        .await;

    let mut reconciling = alone(&ada).await;
    assert_eq!(reconciling.forgotten(MINUTE).await.unwrap(), 2);
    for message in [&unknown, &known, &fresh] {
        note(message, 1).await;
    }
    let mut owed = reconciling.owed(Duration::ZERO).await.unwrap();
    owed.sort_by_key(|owed| owed.job);
    assert_eq!(
        owed,
        [&unknown, &known].map(|message| Owed {
            job: message.id,
            generation: Generation(2),
            what: What::Unparked
        })
    );
    // What is parked now is known by its own generation.
    for message in [&unknown, &known] {
        note(message, 2).await;
    }
    assert_eq!(reconciling.owed(Duration::ZERO).await.unwrap(), []);
    reconciling.end().await;
}

#[tokio::test]
async fn what_a_broker_has_forgotten_is_owed_again_and_nothing_else() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (parked, fresh, others) = (job_of(1), job_of(1), job_of(1));
    for message in [&parked, &fresh, &others] {
        ada.give_up(stand(message, &ada.claimed(message).await))
            .await;
        ada.ledger.sent(message.id, Generation(1));
        until("what was sent is written", async || {
            database.job(message.id).await.sent == 1
        })
        .await;
    }
    let waits = due_for(&database, &ada, -90).await;
    ada.finish(&job_of(1)).await;
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET finished_at = finished_at - interval '2 minutes' WHERE id <> '{}'",
            fresh.id
        ))
        .await;
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET queue = 'others' WHERE id = '{}'",
            others.id
        ))
        .await;
    let before = database.job(waits.id).await.sent;
    let mut reconciling = alone(&ada).await;
    // Whoever dies after this leaves no mark, and the next one does it again.
    for _ in 0..2 {
        assert_eq!(reconciling.forgotten(MINUTE).await.unwrap(), 1);
    }
    assert_eq!(
        reconciling.owed(MINUTE).await.unwrap(),
        [Owed {
            job: parked.id,
            generation: Generation(3),
            what: What::Unparked
        }]
    );
    reconciling.end().await;
    for (message, sent) in [(&parked, 1), (&fresh, 1), (&others, 1), (&waits, before)] {
        assert_eq!(database.job(message.id).await.sent, sent);
    }
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_does_not_keep_all_from_reconciling() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (locked, other) = (
        due_for(&database, &ada, 90).await,
        due_for(&database, &ada, 90).await,
    );
    let mut keeper = database.connect().await;
    let lock = format!(
        "BEGIN; SELECT FROM cliquet.jobs WHERE id = '{}' FOR UPDATE",
        locked.id
    );
    on(&mut keeper, &lock).await;
    let mut reconciling = alone(&ada).await;
    reconciling
        .put_off(&[locked.id, other.id], MINUTE)
        .await
        .unwrap();
    let owed = reconciling.owed(MINUTE).await.unwrap();
    reconciling.end().await;
    assert_eq!(owed.len(), 1);
    assert_eq!(owed[0].job, locked.id);
}

#[tokio::test]
async fn a_server_that_goes_silent_ends_the_look_and_the_right_to_it() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let mut reconciling = alone(&ada).await;
    let silent = async |connection: &mut PgConnection| {
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT pg_sleep(60)")
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    };
    let told = reconciling
        .do_more(silent, |error| panic!("{error}"))
        .await
        .unwrap_err();
    assert!(told.to_string().contains("no answer"), "{told}");
    reconciling.end().await;
    // It is not asked whether it answers again: the connection is closed, and Postgres ends it with its transaction.
    database.terminate("cliquet ada desk").await;
    until("another has the right", async || {
        let begun = Reconciling::begin(bob.ledger.desk(), bob.ledger.holder()).await;
        begun.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn what_is_sent_is_never_unsent() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = due_for(&database, &ada, 0).await;
    for generation in [1, 0] {
        ada.ledger.sent(message.id, Generation(generation));
    }
    ada.claim(&job_of(1)).await; // the lane has written what was mentioned when it has answered twice
    ada.claim(&job_of(1)).await;
    assert_eq!(database.job(message.id).await.sent, 1);
}

#[tokio::test]
async fn jobs_of_another_queue_are_another_reconcilers() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    due_for(&database, &ada, 90).await;
    database
        .run("UPDATE cliquet.jobs SET queue = 'other'")
        .await;
    assert_eq!(owed(&ada, MINUTE).await, []);
}

#[tokio::test]
async fn jobs_of_dead_workers_are_abandoned_and_those_of_the_living_are_not() {
    let database = Database::new().await;
    let (ada, bob, eve) = (
        database.worker("ada").await,
        database.worker("bob").await,
        database.worker("eve").await,
    );
    let (stopped, silent, living) = (job_of(1), job_of(1), job_of(1));
    ada.claimed(&stopped).await;
    bob.claimed(&silent).await;
    eve.claimed(&living).await;
    ada.leave(&database).await;
    stale(&database, &bob).await;
    let mut jobs: Vec<_> = abandoned(&eve)
        .await
        .iter()
        .map(|owed| {
            assert_eq!(owed.what, What::Abandoned);
            owed.job
        })
        .collect();
    jobs.sort();
    assert_eq!(jobs, [stopped.id, silent.id]);
}

#[tokio::test]
async fn a_dead_worker_that_holds_nothing_is_cleared_once_it_has_been_dead_for_a_while() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let cleared = "SELECT cleared_at IS NOT NULL FROM cliquet.workers WHERE name = 'ada'";
    let id = ada.id();
    ada.leave(&database).await;
    abandoned(&bob).await;
    assert!(
        !database.value::<bool>(cleared).await,
        "its last claim may be on its way"
    );
    database
        .run("UPDATE cliquet.workers SET stopped_at = now() - interval '2 minutes', seen_at = now() - interval '3 minutes' WHERE name = 'ada'")
        .await;
    abandoned(&bob).await;
    assert!(database.value::<bool>(cleared).await);

    // A worker that was only silent, and speaks again, may hold jobs again.
    let message = job_of(1);
    bob.claimed(&message).await;
    database
        .run(&format!("UPDATE cliquet.jobs SET holder = {id}; UPDATE cliquet.workers SET seen_at = now(), stopped_at = now() WHERE id = {id}"))
        .await;
    assert_eq!(abandoned(&bob).await.len(), 1);
}

#[tokio::test]
async fn a_worker_with_abandoned_jobs_is_not_cleared() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    ada.claimed(&job_of(1)).await;
    stale(&database, &ada).await;
    for _ in 0..2 {
        assert_eq!(abandoned(&bob).await.len(), 1);
    }
}

#[tokio::test]
async fn a_job_that_was_looked_after_is_put_off() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = due_for(&database, &ada, 90).await;
    let later = due_for(&database, &ada, -90).await;
    let mut reconciling = alone(&ada).await;
    reconciling
        .put_off(&[message.id, later.id], 10 * MINUTE)
        .await
        .unwrap();
    assert_eq!(reconciling.owed(Duration::ZERO).await.unwrap(), []);
    reconciling.end().await;
    let due = |due: Option<f64>| due.unwrap().round() as i64;
    assert_eq!(due(database.job(message.id).await.due_in), 600);
    assert!(due(database.job(later.id).await.due_in) <= 90);
}

#[tokio::test]
async fn one_reconciler_looks_after_a_queue_at_a_time() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let begin = |worker: &Worker| {
        let (pool, holder) = (worker.ledger.desk().clone(), worker.presence.holder());
        async move { Reconciling::begin(&pool, &holder).await.unwrap() }
    };
    let first = begin(&ada).await.unwrap();
    assert!(begin(&bob).await.is_none());
    assert!(begin(&ada).await.is_none());
    first.end().await;
    assert!(begin(&bob).await.is_some());
}

#[tokio::test]
async fn a_reconciler_that_is_cut_short_lets_others_look() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    drop(alone(&ada).await);
    until("another may reconcile", async || {
        Reconciling::begin(bob.ledger.desk(), bob.ledger.holder())
            .await
            .unwrap()
            .is_some()
    })
    .await;
}

/// Which index Postgres takes for which part is its own affair (15 and 17 differ); that it reads nothing in vain is ours.
#[tokio::test]
async fn what_waits_on_the_rungs_is_not_read() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    due_for(&database, &ada, 90).await;
    database
        .run(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
             SELECT gen_random_uuid(), 1, 1, 1, now() + interval '1 hour', 1, 'PENDING', 'jobs', 'test', 'null' FROM generate_series(1, 3000)",
        )
        .await;
    database.run("ANALYZE cliquet.jobs").await;
    let mut connection = database.connect().await;
    let prepare = format!("PREPARE owed(text, float8) AS {}", crate::ledger::due::OWED);
    on(&mut connection, &prepare).await;
    let explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) EXECUTE owed('jobs', 5)";
    let plan = plan(&mut connection, explain).await;
    let (removed, plan) = (read_in_vain(&plan), plan.join("\n"));
    assert!(removed <= 2, "{removed} rows were read in vain:\n{plan}"); // the job that is due, by the other two parts
    assert!(plan.contains("rows=1"), "{plan}");
}

#[tokio::test]
async fn the_oldest_job_that_is_due_is_this_queues_and_was_looked_up() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let oldest = async || ada.ledger.oldest_due().await.unwrap();
    assert_eq!(oldest().await, Duration::ZERO, "nothing waits");
    due_for(&database, &ada, -30).await;
    assert_eq!(oldest().await, Duration::ZERO, "nothing is due");
    due_for(&database, &ada, 30).await;
    let eldest = due_for(&database, &ada, 90).await;
    let waits = oldest().await;
    assert!(waits >= Duration::from_secs(90) && waits < 2 * MINUTE);
    database
        .run(&format!(
            "UPDATE cliquet.jobs SET queue = 'others' WHERE id = '{}'",
            eldest.id
        ))
        .await;
    assert!(oldest().await < MINUTE, "the others' is not this queue's");

    // Neither what is over nor what waits for later is read, when nothing of this queue is due.
    database
        .run(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, total, status, queue, kind, payload, started_at, finished_at, attempts)
             SELECT gen_random_uuid(), 1, 0, 0, 1, 'SUCCESS', 'jobs', 'test', 'null', now(), now(), 1 FROM generate_series(1, 3000)",
        )
        .await;
    database
        .run(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
             SELECT gen_random_uuid(), 1, 1, 1, now() + interval '1 hour', 1, 'PENDING', 'jobs', 'test', 'null' FROM generate_series(1, 3000)",
        )
        .await;
    database
        .run("UPDATE cliquet.jobs SET next_attempt_at = now() + interval '1 hour' WHERE next_attempt_at < now() AND queue = 'jobs'")
        .await;
    assert_eq!(oldest().await, Duration::ZERO);
    let mut connection = database.connect().await;
    let prepare = format!("PREPARE oldest(text) AS {}", crate::ledger::due::OLDEST);
    on(&mut connection, &prepare).await;
    let explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) EXECUTE oldest('jobs')";
    let plan = plan(&mut connection, explain).await;
    let (removed, plan) = (read_in_vain(&plan), plan.join("\n"));
    assert!(plan.contains("using jobs_due"), "{plan}");
    assert_eq!(removed, 1, "the others' job that is due:\n{plan}");
}

/// The lines of a plan.
async fn plan(connection: &mut PgConnection, explain: &'static str) -> Vec<String> {
    let rows = sqlx::query(explain).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// How many rows were read and thrown away.
fn read_in_vain(plan: &[String]) -> u64 {
    plan.iter()
        .filter_map(|line| line.trim().strip_prefix("Rows Removed by "))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn a_silence_since_postgres_began_is_no_death() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let message = job_of(1);
    ada.claimed(&message).await;
    database
        .run(
            "UPDATE cliquet.workers SET patience = clock_timestamp() - pg_postmaster_start_time() + interval '1 hour',
                    seen_at = pg_postmaster_start_time() - interval '2 hours' WHERE name = 'ada'",
        )
        .await;
    assert!(matches!(bob.claim(&message).await, Answer::Busy));
    assert_eq!(abandoned(&bob).await, []);
}

#[tokio::test]
async fn what_is_enqueued_does_not_wait_behind_a_backlog() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    database
        .run(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
             SELECT gen_random_uuid(), 0, 0, 0, now() - interval '1 hour', 1, 'PENDING', 'jobs', 'test', 'null' FROM generate_series(1, 700)",
        )
        .await;
    let message = job_of(1);
    enqueue(&database, &message).await;
    let owed = owed(&ada, MINUTE).await;
    assert!(owed.contains(&Owed {
        job: message.id,
        generation: Generation(0),
        what: What::Enqueued
    }));
    assert_eq!(owed.len(), 501);
}

#[tokio::test]
async fn a_job_that_was_late_for_long_is_put_off_for_as_long() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let hour = due_for(&database, &ada, 3600).await;
    let week = due_for(&database, &ada, 7 * 24 * 3600).await;
    let mut reconciling = alone(&ada).await;
    reconciling
        .put_off(&[hour.id, week.id], MINUTE)
        .await
        .unwrap();
    reconciling.end().await;
    for (message, hours) in [(hour, 1.0), (week, 6.0)] {
        let due = database.job(message.id).await.due_in.unwrap() / 3600.0;
        assert!((due - hours).abs() < 0.1, "{due} instead of {hours} hours");
    }
}

#[tokio::test]
async fn what_could_never_be_sent_is_given_up_with_the_reason() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (broken, held) = (job_of(1), job_of(1));
    enqueue(&database, &broken).await;
    ada.claimed(&held).await;
    let mut reconciling = alone(&ada).await;
    for message in [&broken, &held] {
        reconciling.condemn(message.id, "no job").await.unwrap();
    }
    reconciling.end().await;
    let job = database.job(broken.id).await;
    assert_eq!(
        (job.status.as_str(), job.error.as_deref()),
        ("FAILED", Some("no job"))
    );
    assert_eq!(database.job(held.id).await.status, "PROCESSING");
    assert_eq!(owed(&ada, Duration::ZERO).await, []);
}

#[tokio::test]
async fn what_was_given_up_and_can_never_be_parked_keeps_its_reason_and_is_owed_no_more() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    let claimed = ada.claimed(&message).await;
    ada.give_up(stand(&message, &claimed)).await;
    let before = database.job(message.id).await.error;
    assert_eq!(owed(&ada, Duration::ZERO).await.len(), 1);
    let mut reconciling = alone(&ada).await;
    reconciling.condemn(message.id, "no job").await.unwrap();
    reconciling.end().await;
    assert_eq!(database.job(message.id).await.error, before);
    assert_eq!(owed(&ada, Duration::ZERO).await, []);
}
