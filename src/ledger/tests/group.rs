//! Group commit: what jobs share, and what they must not feel of each other.

use super::*;

/// One job after another, so that a lane is free again before the next is asked for.
async fn stands_of(worker: &Worker, jobs: &[Arc<JobMessage>]) -> Vec<Stand> {
    let mut stands = Vec::new();
    for message in jobs {
        stands.push(stand(message, &worker.claimed(message).await));
    }
    stands
}

/// A worker whose only lane waits for a row that this connection has locked; what is asked now goes into one group later.
async fn held_up(database: &Database) -> (Worker, PgConnection, tokio::task::JoinHandle<Written>) {
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let first = stand(&message, &ada.claimed(&message).await);
    let mut barrier = database.connect().await;
    let lock = format!(
        "BEGIN; SELECT FROM cliquet.tasks WHERE job_id = '{}' FOR UPDATE",
        message.id
    );
    on(&mut barrier, &lock).await;
    let waiting = asked(&ada, advance(first, json!(1), Next::Task));
    database.blocked(1).await;
    (ada, barrier, waiting)
}

/// Asks for an advance, and goes on without its answer.
fn asked(worker: &Worker, advance: Advance) -> tokio::task::JoinHandle<Written> {
    let ledger = worker.ledger.clone();
    tokio::spawn(async move { ledger.advance(advance).await.unwrap() })
}

/// Lets everything that was spawned run until it waits, so that the lane's inbox holds what was asked.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn transitions_that_are_ready_together_share_one_commit() {
    let database = Database::new().await;
    let jobs: Vec<_> = (0..50).map(|_| job_of(2)).collect();
    let other = database.worker("other").await;
    let stands = stands_of(&other, &jobs).await;
    let (ada, mut barrier, first) = held_up(&database).await;

    let advances: Vec<_> = stands
        .iter()
        .map(|&stand| asked(&ada, advance(stand, json!(1), Next::Task)))
        .collect();
    let admitted: Vec<_> = (0..10).map(|_| job_of(2)).collect();
    let claims: Vec<_> = admitted
        .iter()
        .map(|message| {
            let (ledger, claim) = (ada.ledger.clone(), first_delivery(message));
            tokio::spawn(async move { ledger.claim(claim).await.unwrap() })
        })
        .collect();
    settled().await;
    on(&mut barrier, "COMMIT").await;

    assert_eq!(first.await.unwrap(), Written::Committed);
    for advance in advances {
        assert_eq!(advance.await.unwrap(), Written::Committed);
    }
    for claim in claims {
        match claim.await.unwrap() {
            Answer::Claimed(claimed) => assert_eq!(claimed.way, Way::New),
            other => panic!("{other:?}"),
        }
    }
    let ids: Vec<_> = jobs
        .iter()
        .chain(&admitted)
        .map(|job| format!("'{}'", job.id))
        .collect();
    let commits: i64 = database
        .value(&format!(
            "SELECT count(DISTINCT xmin::text) FROM cliquet.tasks WHERE job_id IN ({})",
            ids.join(", ")
        ))
        .await;
    assert_eq!(commits, 1);
}

#[tokio::test]
async fn a_job_alone_is_written_at_once_in_a_commit_for_each_of_its_tasks_and_one_for_its_claim() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE commits (transaction xid8, statement timestamptz);
              CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                  INSERT INTO commits VALUES (pg_current_xact_id(), statement_timestamp()); RETURN NULL; END $$;
              CREATE TRIGGER note AFTER INSERT OR UPDATE ON cliquet.jobs FOR EACH STATEMENT EXECUTE FUNCTION note();
              CREATE TRIGGER note AFTER INSERT OR UPDATE ON cliquet.tasks FOR EACH STATEMENT EXECUTE FUNCTION note();")
        .await;
    let ada = database.worker("ada").await;
    ada.finish(&job_of(5)).await;
    let commits: i64 = database
        .value("SELECT count(DISTINCT transaction) FROM commits")
        .await;
    let statements: i64 = database
        .value("SELECT count(DISTINCT statement) FROM commits")
        .await;
    assert_eq!((commits, statements), (6, 6));
}

#[tokio::test]
async fn a_lane_that_waits_does_not_hold_up_the_others() {
    let database = Database::new().await;
    let ada = database.worker_with("ada", 2).await;
    let (stuck, free) = (job_of(2), job_of(2));
    let first = stand(&stuck, &ada.claimed(&stuck).await);
    let mut barrier = database.connect().await;
    on(&mut barrier, "BEGIN; SELECT FROM cliquet.tasks FOR UPDATE").await;
    let waiting = asked(&ada, advance(first, json!(1), Next::Task));
    database.blocked(1).await;
    ada.finish(&free).await;
    assert!(!waiting.is_finished());
    on(&mut barrier, "COMMIT").await;
    assert_eq!(waiting.await.unwrap(), Written::Committed);
}

/// JSON that serde reads and Postgres does not: it is nested too deep for its parser.
fn unstorable() -> Box<RawValue> {
    let depth = 100_000;
    raw(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)))
}

#[tokio::test]
async fn a_result_that_postgres_refuses_fails_alone() {
    let database = Database::new().await;
    let jobs: Vec<_> = (0..5).map(|_| job_of(2)).collect();
    let other = database.worker("other").await;
    let stands = stands_of(&other, &jobs).await;
    let (ada, mut barrier, first) = held_up(&database).await;

    let advances: Vec<_> = stands
        .iter()
        .enumerate()
        .map(|(index, &stand)| {
            let mut advance = advance(stand, json!(1), Next::Task);
            if index == 2 {
                advance.result = unstorable();
            }
            let ledger = ada.ledger.clone();
            tokio::spawn(async move { ledger.advance(advance).await })
        })
        .collect();
    settled().await;
    on(&mut barrier, "COMMIT").await;

    first.await.unwrap();
    for (index, advance) in advances.into_iter().enumerate() {
        match (index, advance.await.unwrap()) {
            (2, Err(LedgerError::Refused(why))) => assert!(why.contains("stack depth"), "{why}"),
            (2, other) => panic!("{other:?}"),
            (_, written) => assert_eq!(written.unwrap(), Written::Committed),
        }
    }
    assert_eq!(
        database.statuses(jobs[2].id).await,
        ["PROCESSING", "PENDING"]
    );
}

#[tokio::test]
async fn a_job_that_postgres_refuses_is_not_created_and_its_neighbours_are() {
    let database = Database::new().await;
    let (ada, mut barrier, first) = held_up(&database).await;
    let mut jobs: Vec<_> = (0..4).map(|_| job_of(2)).collect();
    jobs[1] = Arc::new(JobMessage {
        kind: "a\0b".into(),
        ..(*jobs[1]).clone()
    });
    let claims: Vec<_> = jobs
        .iter()
        .map(|message| {
            let (ledger, claim) = (ada.ledger.clone(), first_delivery(message));
            tokio::spawn(async move { ledger.claim(claim).await })
        })
        .collect();
    settled().await;
    on(&mut barrier, "COMMIT").await;
    first.await.unwrap();
    for (index, claim) in claims.into_iter().enumerate() {
        match (index, claim.await.unwrap()) {
            (1, Err(LedgerError::Refused(_))) => {}
            (0 | 2 | 3, Ok(Answer::Claimed(_))) => {}
            (_, other) => panic!("{index}: {other:?}"),
        }
    }
    assert!(database.tasks(jobs[1].id).await.is_empty());
}

#[tokio::test]
async fn two_claims_of_one_job_in_one_group_are_answered_one_after_the_other() {
    let database = Database::new().await;
    let (ada, mut barrier, first) = held_up(&database).await;
    let message = job_of(2);
    let claims = [(); 2].map(|()| {
        let (ledger, claim) = (ada.ledger.clone(), first_delivery(&message));
        tokio::spawn(async move { ledger.claim(claim).await.unwrap() })
    });
    settled().await;
    on(&mut barrier, "COMMIT").await;
    first.await.unwrap();
    let mut ways = Vec::new();
    for claim in claims {
        match claim.await.unwrap() {
            Answer::Claimed(claimed) => ways.push((claimed.way, claimed.epoch)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ways, [(Way::New, Epoch(1)), (Way::Regained, Epoch(2))]);
}

#[tokio::test]
async fn two_tasks_of_one_job_in_one_group_are_written_in_their_order() {
    let database = Database::new().await;
    let other = database.worker("other").await;
    let message = job_of(3);
    let first = stands_of(&other, std::slice::from_ref(&message)).await[0];
    let (ada, mut barrier, held) = held_up(&database).await;
    let advances = [first, after(first)]
        .map(|stand| asked(&ada, advance(stand, json!(stand.position), Next::Task)));
    settled().await;
    on(&mut barrier, "COMMIT").await;
    held.await.unwrap();
    for advance in advances {
        assert_eq!(advance.await.unwrap(), Written::Committed);
    }
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "SUCCESS", "PROCESSING"]
    );
}

#[tokio::test]
async fn jobs_of_many_tasks_do_not_grow_a_group_beyond_what_a_statement_can_do() {
    let database = Database::new().await;
    let (ada, mut barrier, first) = held_up(&database).await;
    let claims: Vec<_> = (0..5)
        .map(|_| {
            let (ledger, claim) = (ada.ledger.clone(), first_delivery(&job_of(9_000)));
            tokio::spawn(async move { ledger.claim(claim).await.unwrap() })
        })
        .collect();
    settled().await;
    on(&mut barrier, "COMMIT").await;
    first.await.unwrap();
    for claim in claims {
        assert!(matches!(claim.await.unwrap(), Answer::Claimed(_)));
    }
    let heaviest: i64 = database
        .value("SELECT max(tasks) FROM (SELECT count(*) AS tasks FROM cliquet.tasks GROUP BY xmin::text) groups")
        .await;
    assert_eq!(heaviest, 18_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_whose_sessions_are_killed_write_everything_once() {
    let database = Database::new().await;
    let ada = Arc::new(database.worker_with("ada", 2).await);
    let jobs: Vec<_> = (0..150).map(|_| job_of(5)).collect();
    let runs: Vec<_> = jobs
        .iter()
        .map(|message| {
            let (ada, message) = (ada.clone(), message.clone());
            tokio::spawn(async move { ada.finish(&message).await })
        })
        .collect();
    let mut killed = 0;
    while !runs.iter().all(|run| run.is_finished()) {
        if killed < 12 {
            killed += database.terminate("cliquet ada lane %").await;
        }
        sleep(Duration::from_millis(3)).await;
    }
    for run in runs {
        run.await.unwrap();
    }
    assert!(killed > 0);
    for message in &jobs {
        let job = database.job(message.id).await;
        assert_eq!(job.status, "SUCCESS");
        // A claim whose answer was lost is repeated, and regains the job.
        assert_eq!(i64::from(job.attempts), job.epoch);
        for task in database.tasks(message.id).await {
            assert_eq!(
                (task.status.as_str(), task.attempt, task.crashes),
                ("SUCCESS", 1, 0)
            );
            assert_eq!(task.epoch, job.epoch);
        }
        assert!(database.failures(message.id).await.is_empty());
    }
}

#[tokio::test]
async fn a_write_that_dies_in_flight_is_repeated_until_it_is_committed() {
    let database = Database::new().await;
    let (_ada, mut barrier, waiting) = held_up(&database).await;
    assert_eq!(database.terminate("cliquet ada lane %").await, 1);
    on(&mut barrier, "COMMIT").await;
    assert_eq!(waiting.await.unwrap(), Written::Committed);
    let tasks = database
        .value::<String>(
            "SELECT string_agg(status::text || attempt, ' ' ORDER BY position) FROM cliquet.tasks",
        )
        .await;
    assert_eq!(tasks, "SUCCESS1 PROCESSING1");
}

#[tokio::test]
async fn a_write_that_dies_in_flight_is_fenced_when_the_job_was_taken_meanwhile() {
    let database = Database::new().await;
    let (ada, mut barrier, waiting) = held_up(&database).await;
    let bob = database.worker("bob").await;
    stale(&database, &ada).await;
    let id: uuid::Uuid = database.value("SELECT id FROM cliquet.jobs").await;
    let message = crate::ledger::message(ada.ledger.desk(), JobId(id))
        .await
        .unwrap()
        .unwrap()
        .message;
    let taken = write(&mut barrier, &bob, asks(&Arc::new(message))).await;
    assert!(matches!(taken, Some(Answer::Claimed(_))), "{taken:?}");
    database.terminate("cliquet ada lane %").await;
    on(&mut barrier, "COMMIT").await;
    assert_eq!(waiting.await.unwrap(), Written::Fenced);
    let results: i64 = database
        .value("SELECT count(result) FROM cliquet.tasks")
        .await;
    assert_eq!(results, 0);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_regained_by_the_lane_itself() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    // The claim that is in flight has been committed already, by this very process, when it is asked again.
    let mut barrier = database.connect().await;
    on(&mut barrier, "BEGIN").await;
    write(&mut barrier, &ada, asks(&message)).await;
    let claim = tokio::spawn({
        let (ledger, claim) = (ada.ledger.clone(), first_delivery(&message));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    database.terminate("cliquet ada lane %").await;
    on(&mut barrier, "COMMIT").await;
    match claim.await.unwrap() {
        Answer::Claimed(claimed) => assert_eq!(
            (claimed.way, claimed.epoch, claimed.attempt, claimed.crashes),
            (Way::Regained, Epoch(2), 1, 0)
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lane_that_postgres_keeps_waiting_for_a_row_repeats_the_write() {
    let database = Database::new().await;
    let name = &database.name;
    database
        .run(&format!(
            "ALTER DATABASE {name} SET log_min_messages = 'fatal'"
        ))
        .await;
    let (ada, mut barrier, waiting) = held_up(&database).await;
    let lane = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cliquet ada lane %'";
    let before: i32 = database.value(lane).await;
    // As its lock_timeout would, only sooner: the statement ends with an error and the session lives.
    database
        .run(&format!("SELECT pg_cancel_backend({before})"))
        .await;
    database.blocked(1).await;
    on(&mut barrier, "COMMIT").await;
    assert_eq!(waiting.await.unwrap(), Written::Committed);
    drop(ada);
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_holds_up_neither_its_group_nor_the_lane() {
    let database = Database::new().await;
    let (ada, mut barrier, first) = held_up(&database).await;
    // These wait for the lane, which waits for the row: one group, of which one row is locked for good.
    let locked = job_of(2);
    let other = database.worker("other").await;
    let mut asked_for = Vec::new();
    for message in [&locked, &job_of(2), &job_of(2)] {
        let stand = stand(message, &other.claimed(message).await);
        asked_for.push(stand);
    }
    let mut keeper = database.connect().await;
    let lock = format!(
        "BEGIN; SELECT FROM cliquet.tasks WHERE job_id = '{}' FOR UPDATE",
        locked.id
    );
    on(&mut keeper, &lock).await;
    let mut waiting: Vec<_> = asked_for
        .into_iter()
        .map(|stand| asked(&ada, advance(stand, json!(1), Next::Task)))
        .collect();
    settled().await;
    on(&mut barrier, "COMMIT").await;
    assert_eq!(first.await.unwrap(), Written::Committed);
    let stuck = waiting.remove(0);
    for neighbour in waiting {
        assert_eq!(neighbour.await.unwrap(), Written::Committed);
    }
    // Nor what comes later.
    ada.finish(&job_of(2)).await;
    assert!(!stuck.is_finished());
    on(&mut keeper, "COMMIT").await;
    assert_eq!(stuck.await.unwrap(), Written::Committed);
}

#[tokio::test]
async fn what_is_asked_of_closed_lanes_says_so() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (lanes, running) = lane::Lanes::start(
        &database.address,
        &ada.presence.holder(),
        1,
        &Arc::default(),
    );
    running.abort();
    let _ = running.await;
    let closed = lanes.write(asks(&job_of(1))).await;
    assert!(matches!(closed, Err(LedgerError::Closed)), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_on_the_hot_path_stay_heap_only() {
    let database = Database::new().await;
    let quick = format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        database.name
    );
    database.run(&quick).await;
    let ada = Arc::new(database.worker("ada").await);
    let runs: Vec<_> = (0..8)
        .map(|_| {
            let ada = ada.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    let jobs: Vec<_> = (0..8).map(|_| job_of(5)).collect();
                    futures::future::join_all(jobs.iter().map(|message| ada.finish(message))).await;
                }
            })
        })
        .collect();
    for run in runs {
        run.await.unwrap();
    }
    drop(ada);
    // Sessions count their last updates when they end.
    until("the lanes have ended", async || {
        database
            .value("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cliquet ada lane %'")
            .await
    })
    .await;
    for (table, updates) in [("jobs", 512), ("tasks", 512 * 9)] {
        let counts = |column: &str| {
            format!(
                "SELECT {column} FROM pg_stat_user_tables WHERE schemaname = 'cliquet' AND relname = '{table}'"
            )
        };
        until("all updates are counted", async || {
            database.value::<i64>(&counts("n_tup_upd")).await >= updates
        })
        .await;
        let hot: i64 = database.value(&counts("n_tup_hot_upd")).await;
        // One lane whose commits wait for no disk has all of them on their page. With an index on what is updated it would be
        // none, and on pages without room every second.
        assert!(
            hot * 100 >= updates * 80,
            "{table}: {hot} of {updates} updates were heap-only"
        );
    }
}

#[tokio::test]
async fn an_admission_of_a_job_that_is_known_changes_nothing_and_the_claim_is_asked() {
    let database = Database::new().await;
    let (ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let (held, over) = (job_of(2), job_of(1));
    ada.claimed(&held).await;
    ada.finish(&over).await;
    for message in [&held, &over] {
        let before = database.all_of(message.id).await;
        let mut lane = database.connect().await;
        let admission = Step::Admit(first_delivery(message));
        let known = write(&mut lane, &bob, admission).await;
        assert!(matches!(known, Some(Stepped::Known)), "{known:?}");
        assert_eq!(database.all_of(message.id).await, before);
    }
    assert!(matches!(bob.claim(&held).await, Answer::Busy));
    assert!(matches!(bob.claim(&over).await, Answer::Finished));
    let conflict = Arc::new(JobMessage {
        fingerprint: crate::job::Fingerprint([7; 32]),
        ..(*held).clone()
    });
    assert!(matches!(
        bob.claim(&conflict).await,
        Answer::Conflict { .. }
    ));
}

#[tokio::test]
async fn an_admission_whose_answer_was_lost_is_regained_without_a_crash() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let mut lane = database.connect().await;
    let admitted = write(&mut lane, &ada, Step::Admit(first_delivery(&message))).await;
    assert!(
        matches!(admitted, Some(Stepped::Admitted(_))),
        "{admitted:?}"
    );
    // Its answer is lost, and the lane asks again.
    let claimed = ada.claimed(&message).await;
    assert_eq!(
        (claimed.way, claimed.epoch, claimed.attempt, claimed.crashes),
        (Way::Regained, Epoch(2), 1, 0)
    );
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}
