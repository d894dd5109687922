//! A handler's own transaction.

use super::*;

/// A worker in the first task of a job of two, and the task's transaction; `orders` is the user's table.
async fn running(database: &Database) -> (Worker, Arc<JobMessage>, Stand, HandlerTransaction) {
    database
        .run("CREATE TABLE orders (number int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        .await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    let stand = stand(&message, &ada.claimed(&message).await);
    let transaction = ada.ledger.transaction();
    (ada, message, stand, transaction)
}

async fn order(transaction: &HandlerTransaction, number: i32) {
    let mut tx = transaction.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ($1)")
        .bind(number)
        .execute(&mut *tx)
        .await
        .unwrap();
}

async fn orders(database: &Database) -> i64 {
    database.value("SELECT count(*) FROM orders").await
}

/// Commits the SUCCESS with what the handler wrote.
async fn commit(transaction: &HandlerTransaction, stand: Stand) -> Committed {
    let open = transaction.take().unwrap().unwrap();
    advance(stand, json!("ordered"), Next::Task)
        .commit_with(open)
        .await
}

#[tokio::test]
async fn what_a_handler_writes_commits_with_its_success() {
    let database = Database::new().await;
    let (_ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    order(&transaction, 2).await;
    assert_eq!(orders(&database).await, 0);

    assert!(matches!(commit(&transaction, stand).await, Committed::Yes));

    assert_eq!(orders(&database).await, 2);
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PROCESSING"]
    );
    let shared: bool = database
        .value("SELECT count(DISTINCT xmin::text) = 1 FROM (SELECT xmin FROM orders UNION ALL SELECT xmin FROM cliquet.tasks) rows")
        .await;
    assert!(shared, "one transaction wrote all of it");
}

#[tokio::test]
async fn what_a_fenced_handler_wrote_is_rolled_back() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    let bob = database.worker("bob").await;
    order(&transaction, 1).await;
    stale(&database, &ada).await;
    bob.claimed(&message).await;
    let before = database.all_of(message.id).await;

    let committed = commit(&transaction, stand).await;

    assert!(matches!(committed, Committed::Fenced), "{committed:?}");
    assert_eq!(orders(&database).await, 0);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_handlers_commit_that_waited_for_a_takeover_is_fenced() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    let bob = database.worker("bob").await;
    order(&transaction, 1).await;
    stale(&database, &ada).await;
    let mut taker = database.connect().await;
    on(&mut taker, "BEGIN").await;
    write(&mut taker, &bob, asks(&message)).await;
    let late = tokio::spawn(async move { commit(&transaction, stand).await });
    database.blocked(1).await;
    on(&mut taker, "COMMIT").await;
    assert!(matches!(late.await.unwrap(), Committed::Fenced));
    assert_eq!(orders(&database).await, 0);
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_handlers_commit_does_not_repeat_the_task() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    let bob = database.worker("bob").await;
    order(&transaction, 1).await;
    stale(&database, &ada).await;
    let mut open = transaction.take().unwrap().unwrap();
    write(
        open.session.connection(),
        &ada,
        advance(stand, json!(1), Next::Task),
    )
    .await;
    let claim = tokio::spawn({
        let (ledger, claim) = (bob.ledger.clone(), asks(&message));
        async move { ledger.claim(claim).await.unwrap() }
    });
    database.blocked(1).await;
    on(open.session.connection(), "COMMIT").await;
    match claim.await.unwrap() {
        Answer::Claimed(claimed) => assert_eq!(claimed.position, 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(orders(&database).await, 1);
}

#[tokio::test]
async fn a_constraint_that_fails_at_commit_keeps_nothing() {
    let database = Database::new().await;
    let (_ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    order(&transaction, 1).await;
    match commit(&transaction, stand).await {
        Committed::No(sentence) => assert!(sentence.contains("orders_pkey"), "{sentence}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(orders(&database).await, 0);
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}

#[tokio::test]
async fn a_transaction_that_a_statement_broke_keeps_nothing() {
    let database = Database::new().await;
    let (_ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    let mut tx = transaction.begin().await.unwrap();
    assert!(sqlx::raw_sql("SELECT 1/0").execute(&mut *tx).await.is_err());
    drop(tx);
    let committed = commit(&transaction, stand).await;
    assert!(matches!(committed, Committed::No(_)), "{committed:?}");
    assert_eq!(orders(&database).await, 0);
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}

#[tokio::test]
async fn a_second_loan_of_an_open_transaction_is_an_error() {
    let database = Database::new().await;
    let (_ada, _, _, transaction) = running(&database).await;
    let first = transaction.begin().await.unwrap();
    let second = transaction.begin().await.unwrap_err();
    assert!(second.to_string().contains("already lent"), "{second}");
    assert!(transaction.take().is_err());
    drop(first);
    assert!(transaction.begin().await.is_ok());
}

#[tokio::test]
async fn a_handler_that_asks_for_no_transaction_costs_no_connection() {
    let database = Database::new().await;
    let (ada, _, _, transaction) = running(&database).await;
    assert!(transaction.take().unwrap().is_none());
    drop(ada);
    no_handler_sessions(&database).await;
}

#[tokio::test]
async fn an_abandoned_transaction_is_rolled_back_and_its_connection_closed() {
    let database = Database::new().await;
    let (ada, _, _, transaction) = running(&database).await;
    order(&transaction, 1).await;
    transaction.abandon();
    no_handler_sessions(&database).await;
    assert_eq!(orders(&database).await, 0);
    assert!(ada.ledger.transaction().begin().await.is_ok());
}

#[tokio::test]
async fn a_handler_cut_short_in_the_middle_of_a_query_leaves_nothing_behind() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    let handler = tokio::spawn({
        let transaction = transaction.clone();
        async move {
            let mut tx = transaction.begin().await.unwrap();
            sqlx::query("SELECT pg_sleep(600)")
                .execute(&mut *tx)
                .await
                .unwrap();
        }
    });
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    until("the handler is in its query", async || {
        database.value::<i64>(sleeping).await == 1
    })
    .await;
    handler.abort();
    let _ = handler.await;
    transaction.abandon();

    // Every session that there may be can be had, and none is in the middle of something.
    let mut connections = Vec::new();
    for _ in 0..3 {
        let another = ada.ledger.transaction();
        let mut tx = another.begin().await.unwrap();
        let row = sqlx::query("SELECT 42").fetch_one(&mut *tx).await;
        assert_eq!(row.unwrap().get::<i32, _>(0), 42);
        connections.push(tx);
    }
    // Postgres finds out that the other end has gone when the query ends.
    database
        .run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")
        .await;
    assert_eq!(orders(&database).await, 0);
    assert_eq!(ada.done(stand, json!(1)).await, Written::Committed);
    assert_eq!(
        database.statuses(message.id).await,
        ["SUCCESS", "PROCESSING"]
    );
}

#[tokio::test]
async fn a_transaction_whose_opening_was_cut_short_is_opened_anew() {
    let database = Database::new().await;
    let (ada, _, _, transaction) = running(&database).await;
    order(&transaction, 1).await;
    transaction.take().unwrap().unwrap().roll_back().await;
    for polls in 1..12 {
        let transaction = ada.ledger.transaction();
        // Polled so often and then dropped, as a handler's own time limit does it.
        let mut beginning = Box::pin(transaction.begin());
        for _ in 0..polls {
            if futures::poll!(&mut beginning).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(beginning);
        let mut tx = transaction.begin().await.unwrap();
        sqlx::raw_sql("SAVEPOINT one") // refused outside of a transaction
            .execute(&mut *tx)
            .await
            .unwrap();
        drop(tx);
        transaction.abandon();
    }
}

#[tokio::test]
async fn connections_that_died_idle_are_no_failure_of_a_handler() {
    let database = Database::new().await;
    let (ada, _, stand, transaction) = running(&database).await;
    let others: Vec<_> = (0..3).map(|_| ada.ledger.transaction()).collect();
    for (number, other) in (2..).zip(&others) {
        order(other, number).await;
    }
    for other in &others {
        other.take().unwrap().unwrap().roll_back().await;
    }
    assert_eq!(ada.ledger.idle_sessions(), 3);
    assert_eq!(database.terminate("cliquet ada handlers").await, 3);
    order(&transaction, 1).await;
    assert!(matches!(commit(&transaction, stand).await, Committed::Yes));
}

#[tokio::test]
async fn a_connection_goes_back_to_the_pool_after_its_commit() {
    let database = Database::new().await;
    let (ada, _, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    commit(&transaction, stand).await;
    assert_eq!(ada.ledger.idle_sessions(), 1);
}

/// Every session taken, the first one's task ready to be committed, and one more handler that waits for a session.
async fn all_taken(
    database: &Database,
) -> (
    Worker,
    Stand,
    Vec<HandlerTransaction>,
    tokio::task::JoinHandle<HandlerTransaction>,
) {
    let (ada, _, stand, first) = running(database).await;
    let mut taken = vec![first];
    taken.extend((1..SESSIONS).map(|_| ada.ledger.transaction()));
    for (number, transaction) in (1..).zip(&taken) {
        order(transaction, number).await;
    }
    let last = ada.ledger.transaction();
    let waiting = tokio::spawn(async move {
        order(&last, 100).await;
        last
    });
    until("a handler waits", async || {
        ada.ledger.waiting_handlers() == 1
    })
    .await;
    (ada, stand, taken, waiting)
}

const OPEN_AND_IDLE: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = 'cliquet ada handlers' AND state LIKE 'idle in transaction%'";

#[tokio::test]
async fn a_commit_begins_the_transaction_of_a_handler_that_waits() {
    let database = Database::new().await;
    let (ada, stand, taken, waiting) = all_taken(&database).await;
    assert!(matches!(commit(&taken[0], stand).await, Committed::Yes));
    assert_eq!(ada.ledger.begun_sessions(), 1);
    let last = waiting.await.unwrap();
    assert_eq!(
        orders(&database).await,
        1,
        "what the last one wrote is in a transaction of its own"
    );
    last.take().unwrap().unwrap().roll_back().await;
    assert_eq!(orders(&database).await, 1);
    assert_eq!(ada.ledger.begun_sessions(), 0);
    assert_eq!(database.value::<i64>(OPEN_AND_IDLE).await, 3, "the others");
}

#[tokio::test]
async fn no_session_rests_with_a_transaction_open_when_nobody_waits_any_more() {
    let database = Database::new().await;
    let (ada, stand, taken, waiting) = all_taken(&database).await;
    let committed = async { commit(&taken[0], stand).await };
    let gone = async { waiting.abort() };
    assert!(matches!(tokio::join!(committed, gone).0, Committed::Yes));
    assert_eq!(ada.ledger.idle_sessions(), 1);
    assert_eq!(ada.ledger.begun_sessions(), 0);
    assert_eq!(database.value::<i64>(OPEN_AND_IDLE).await, 3, "the others");
}

#[tokio::test]
async fn a_transaction_that_was_begun_in_advance_and_lay_is_begun_anew() {
    let database = Database::new().await;
    let (ada, stand, taken, waiting) = all_taken(&database).await;
    assert!(matches!(commit(&taken[0], stand).await, Committed::Yes));
    waiting.abort();
    let _ = waiting.await;
    assert_eq!(ada.ledger.begun_sessions(), 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before: chrono::DateTime<chrono::Utc> = database.value("SELECT clock_timestamp()").await;
    let late = ada.ledger.transaction();
    let mut tx = late.begin().await.unwrap();
    let now = sqlx::query_scalar::<_, chrono::DateTime<chrono::Utc>>("SELECT now()");
    let now = now.fetch_one(&mut *tx).await.unwrap();
    assert!(now > before, "its now() is when it was asked for");
    drop(tx);
    order(&late, 200).await;
    assert_eq!(orders(&database).await, 1);
}

#[tokio::test]
async fn a_transaction_that_was_begun_for_a_handler_who_is_gone_is_ended_by_the_next_heartbeat() {
    let database = Database::new().await;
    let (ada, stand, taken, waiting) = all_taken(&database).await;
    assert!(matches!(commit(&taken[0], stand).await, Committed::Yes));
    waiting.abort();
    let _ = waiting.await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(ada.ledger.begun_sessions(), 1);
    ada.ledger.tidy().await;
    assert_eq!(
        (ada.ledger.begun_sessions(), ada.ledger.idle_sessions()),
        (0, 1)
    );
    assert_eq!(database.value::<i64>(OPEN_AND_IDLE).await, 3, "the others");
}

#[tokio::test]
async fn a_handler_that_ignores_errors_and_begins_again_and_again_commits_nothing_by_itself() {
    let database = Database::new().await;
    let (_ada, _message, stand, transaction) = running(&database).await;
    let mut tx = transaction.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES (1)")
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("SELECT 1 / 0")
        .execute(&mut *tx)
        .await
        .unwrap_err();
    for _ in 0..10 {
        if let Ok(mut inner) = tx.begin().await {
            let insert = sqlx::query("INSERT INTO orders VALUES (2)");
            let _ = insert.execute(&mut *inner).await;
            let _ = inner.commit().await;
        }
    }
    drop(tx);
    let committed = commit(&transaction, stand).await;
    assert!(matches!(committed, Committed::No(_)), "{committed:?}");
    assert_eq!(orders(&database).await, 0);
}

#[tokio::test]
async fn a_part_of_a_handler_that_lives_on_cannot_open_a_transaction_that_nobody_commits() {
    let database = Database::new().await;
    let (_ada, _message, _stand, transaction) = running(&database).await;
    let lives_on = transaction.clone();
    assert!(transaction.take().unwrap().is_none());
    let refused = lives_on.begin().await.unwrap_err().to_string();
    assert!(refused.contains("this task has ended"), "{refused}");
}

#[tokio::test]
async fn a_connection_that_dies_before_the_commit_keeps_nothing() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    assert_eq!(database.terminate("cliquet ada handlers").await, 1);
    // The COMMIT goes along with what stands before it, so nobody knows whether it was reached.
    let committed = commit(&transaction, stand).await;
    assert!(matches!(committed, Committed::Unknown(_)), "{committed:?}");
    assert_eq!(orders(&database).await, 0);
    assert_eq!(ada.ledger.fate(stand).await, None);
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}

/// Runs a commit that hangs in Postgres' COMMIT, kills its session there, and answers with what the handler's side knows.
async fn killed_in_commit(
    database: &Database,
    transaction: &HandlerTransaction,
    stand: Stand,
) -> Committed {
    database
        .run("CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(1); RETURN NULL; END $$;
              CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()")
        .await;
    let mut barrier = database.connect().await;
    on(&mut barrier, "SELECT pg_advisory_lock(1)").await;
    order(transaction, 1).await;
    let committing = tokio::spawn({
        let transaction = transaction.clone();
        async move { commit(&transaction, stand).await }
    });
    database.blocked(1).await;
    database.terminate("cliquet ada handlers").await;
    committing.await.unwrap()
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_unknown_until_the_ledger_is_asked() {
    let database = Database::new().await;
    let (ada, _, stand, transaction) = running(&database).await;
    let committed = killed_in_commit(&database, &transaction, stand).await;
    assert!(matches!(committed, Committed::Unknown(_)), "{committed:?}");
    assert_eq!(ada.ledger.fate(stand).await, None);
    assert_eq!(orders(&database).await, 0);
}

#[tokio::test]
async fn the_fate_of_a_commit_is_what_the_ledger_holds() {
    let database = Database::new().await;
    let (ada, message, stand, transaction) = running(&database).await;
    assert_eq!(ada.ledger.fate(stand).await, None);
    order(&transaction, 1).await;
    commit(&transaction, stand).await;
    assert_eq!(ada.ledger.fate(stand).await, Some(Written::Committed));
    let bob = database.worker("bob").await;
    stale(&database, &ada).await;
    bob.claimed(&message).await;
    assert_eq!(ada.ledger.fate(after(stand)).await, Some(Written::Fenced));
    // It was committed, and nothing may follow from that any more: the job is bob's.
    assert_eq!(ada.ledger.fate(stand).await, Some(Written::Fenced));
}

#[tokio::test]
async fn the_fate_of_a_commit_waits_for_one_that_is_in_flight() {
    let database = Database::new().await;
    let (ada, _, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    let mut open = transaction.take().unwrap().unwrap();
    write(
        open.session.connection(),
        &ada,
        advance(stand, json!(1), Next::Task),
    )
    .await;
    let fate = tokio::spawn({
        let ledger = ada.ledger.clone();
        async move { ledger.fate(stand).await }
    });
    database.blocked(1).await;
    on(open.session.connection(), "COMMIT").await;
    assert_eq!(fate.await.unwrap(), Some(Written::Committed));
}

/// Waits until no session of a handler is left.
async fn no_handler_sessions(database: &Database) {
    until("handlers' sessions have ended", async || {
        database
            .value("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%handlers'")
            .await
    })
    .await;
}

#[tokio::test]
async fn a_transaction_that_nobody_ended_does_not_go_back_to_the_pool() {
    let database = Database::new().await;
    let (ada, _, _, transaction) = running(&database).await;
    order(&transaction, 1).await;
    drop(transaction);
    no_handler_sessions(&database).await;
    assert_eq!(
        (orders(&database).await, ada.ledger.idle_sessions()),
        (0, 0)
    );
}

#[tokio::test]
async fn a_nested_transaction_left_open_keeps_nothing() {
    let database = Database::new().await;
    let (_ada, message, stand, transaction) = running(&database).await;
    order(&transaction, 1).await;
    let mut tx = transaction.begin().await.unwrap();
    std::mem::forget(sqlx::Acquire::begin(&mut *tx).await.unwrap());
    drop(tx);
    let committed = commit(&transaction, stand).await;
    assert!(matches!(committed, Committed::No(_)), "{committed:?}");
    no_handler_sessions(&database).await;
    assert_eq!(orders(&database).await, 0);
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
}

#[tokio::test]
async fn a_nested_transaction_whose_opening_was_cut_short_takes_nothing_out_of_the_outer_one() {
    let database = Database::new().await;
    let (ada, _, _, first) = running(&database).await;
    order(&first, 0).await;
    first.take().unwrap().unwrap().roll_back().await;
    for polls in 1..10 {
        let transaction = ada.ledger.transaction();
        let mut tx = transaction.begin().await.unwrap();
        let mut nested = Box::pin(sqlx::Acquire::begin(&mut *tx));
        for _ in 0..polls {
            if futures::poll!(&mut nested).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        drop(nested);
        // A handler that does not mind, and writes on.
        let _ = sqlx::query("INSERT INTO orders VALUES ($1)")
            .bind(polls)
            .execute(&mut *tx)
            .await;
        drop(tx);
        // Nothing of it is there before the ledger commits.
        assert_eq!(orders(&database).await, 0, "after {polls} polls");
        drop(transaction);
    }
}

#[tokio::test]
async fn a_handlers_commit_looks_its_rows_up_in_a_session_of_any_settings() {
    let database = Database::new().await;
    // The planner takes the tables for empty, and reading an empty table whole is the cheapest.
    database.run("VACUUM ANALYZE cliquet.jobs").await;
    database.run("VACUUM ANALYZE cliquet.tasks").await;
    let scans = |kind: &str| {
        format!(
            "SELECT sum({kind})::int8 FROM pg_stat_user_tables WHERE relname IN ('jobs', 'tasks')"
        )
    };
    // Sessions count what they did when they end: those that made the tables have.
    until("no other session is left", async || {
        database
            .value("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'")
            .await
    })
    .await;
    let before: i64 = database.value(&scans("seq_scan")).await;
    let ada = database.worker("ada").await;
    for _ in 0..3 {
        let message = job_of(8);
        let mut stand = stand(&message, &ada.claimed(&message).await);
        while stand.position < 8 {
            let transaction = ada.ledger.transaction();
            drop(transaction.begin().await.unwrap());
            let committed = commit(&transaction, stand).await;
            assert!(matches!(committed, Committed::Yes), "{committed:?}");
            stand.position += 1;
        }
        let transaction = ada.ledger.transaction();
        drop(transaction.begin().await.unwrap());
        let open = transaction.take().unwrap().unwrap();
        let committed = advance(stand, json!(1), Next::Finish)
            .commit_with(open)
            .await;
        assert!(matches!(committed, Committed::Yes), "{committed:?}");
    }
    drop(ada);
    no_handler_sessions(&database).await;
    // Sessions count what they did when they end.
    until("the sessions are counted", async || {
        database.value::<i64>(&scans("idx_scan")).await >= 24
    })
    .await;
    assert_eq!(database.value::<i64>(&scans("seq_scan")).await, before);
}

#[tokio::test]
async fn a_result_with_every_kind_of_quote_is_stored_to_the_letter() {
    let database = Database::new().await;
    let (_ada, message, stand, transaction) = running(&database).await;
    let mut tx = transaction.begin().await.unwrap();
    // A session in which a backslash means something in an ordinary literal.
    sqlx::raw_sql("SET standard_conforming_strings = off")
        .execute(&mut *tx)
        .await
        .unwrap();
    drop(tx);
    let result = json!({ "quotes": "'; ROLLBACK; --", "path": "C:\\'\\\\", "dollar": "$1 $$" });
    let open = transaction.take().unwrap().unwrap();
    let committed = advance(stand, result.clone(), Next::Task)
        .commit_with(open)
        .await;
    assert!(matches!(committed, Committed::Yes), "{committed:?}");
    let stored = database.tasks(message.id).await.remove(0).result.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&stored).unwrap(), result);
}

#[tokio::test]
async fn a_handler_waits_for_a_postgres_that_is_away() {
    let database = Database::new().await;
    let options = database.address.options("away");
    let server = (options.get_host().to_owned(), options.get_port());
    // A port on which nobody listens, until the server "is back" behind it.
    let place = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = place.local_addr().unwrap().port();
    drop(place);
    let sessions = transaction::Sessions::new(options.host("127.0.0.1").port(port), 1);
    let transaction = HandlerTransaction::new(sessions);
    let waiting = tokio::spawn({
        let transaction = transaction.clone();
        async move { transaction.begin().await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it is no failure of the attempt");
    let back = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .unwrap();
    let forwarding = tokio::spawn(async move {
        let (mut client, _) = back.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    waiting.await.unwrap().unwrap();
    forwarding.abort();
}
