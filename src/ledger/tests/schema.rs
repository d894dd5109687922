//! The schema's versions, and what its constraints refuse.

use super::*;

#[tokio::test]
async fn an_empty_database_is_migrated() {
    let database = Database::empty().await;
    let states = migrate(&database.address).await.unwrap();
    assert!(states.len() >= 3 && states.iter().all(|state| state.applied_now));
    check(&database.address).await.unwrap();
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = Database::new().await;
    let states = migrate(&database.address).await.unwrap();
    assert!(states.iter().all(|state| !state.applied_now));
}

#[tokio::test]
async fn a_check_names_what_is_missing_and_the_command_that_brings_it() {
    let database = Database::empty().await;
    match check(&database.address).await {
        Err(LedgerError::Schema(sentence)) => {
            assert!(sentence.contains("1 (jobs and tasks)"), "{sentence}");
            assert!(sentence.contains("cliquet migrate"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    migrate(&database.address).await.unwrap();
    database
        .run("DELETE FROM cliquet.migrations WHERE version = 2")
        .await;
    match check(&database.address).await {
        Err(LedgerError::Schema(sentence)) => {
            assert!(sentence.contains("missing 2 (failures). Run"), "{sentence}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_newer_database_is_accepted_by_the_check() {
    let database = Database::new().await;
    database
        .run("INSERT INTO cliquet.migrations (version, description, success, checksum, execution_time) VALUES (9999, 'of a later version', true, '', 0)")
        .await;
    check(&database.address).await.unwrap();
}

#[tokio::test]
async fn the_list_of_migrations_is_in_cliquets_own_schema() {
    let database = Database::new().await;
    let schemas: String = database
        .value("SELECT string_agg(DISTINCT schemaname, ' ') FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
        .await;
    assert_eq!(schemas, "cliquet");
    let versions: i64 = database
        .value("SELECT count(*) FROM cliquet.migrations")
        .await;
    assert!(versions >= 3);
}

#[tokio::test]
async fn migrations_at_the_same_time_are_done_once() {
    let database = Database::empty().await;
    let migrations = (0..4).map(|_| migrate(&database.address));
    for states in futures::future::join_all(migrations).await {
        states.unwrap();
    }
    check(&database.address).await.unwrap();
}

#[tokio::test]
async fn a_migration_that_would_keep_workers_from_a_table_gives_up_and_says_so() {
    let database = Database::new().await;
    // The sixth sets the tables' storage, again and again with the same end.
    database
        .run("DELETE FROM cliquet.migrations WHERE version = 6")
        .await;
    let mut backup = database.connect().await;
    on(
        &mut backup,
        "BEGIN; LOCK TABLE cliquet.tasks IN SHARE UPDATE EXCLUSIVE MODE",
    )
    .await;
    match migrate(&database.address).await {
        Err(LedgerError::Unavailable(sentence)) => assert!(
            sentence.contains("somebody else holds")
                && sentence.contains("run `cliquet migrate` again"),
            "{sentence}"
        ),
        other => panic!("{other:?}"),
    }
    on(&mut backup, "COMMIT").await;
    migrate(&database.address).await.unwrap();
    check(&database.address).await.unwrap();
}

/// As CREATE INDEX CONCURRENTLY leaves it when it fails.
#[tokio::test]
async fn an_index_that_is_invalid_is_not_taken_for_one() {
    let database = Database::new().await;
    for (version, index) in [(12, "jobs_looked_for"), (14, "jobs_of_any_age")] {
        database
            .run(&format!(
                "DELETE FROM cliquet.migrations WHERE version = {version};
                 UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'cliquet.{index}'::regclass"
            ))
            .await;
        match migrate(&database.address).await {
            Err(LedgerError::Schema(sentence)) => assert!(
                sentence.contains(&format!("cliquet.{index}")) && sentence.contains("DROP INDEX"),
                "{sentence}"
            ),
            other => panic!("{other:?}"),
        }
        database.run(&format!("DROP INDEX cliquet.{index}")).await;
        migrate(&database.address).await.unwrap();
        check(&database.address).await.unwrap();
    }
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named_without_its_password() {
    let address = LedgerAddress::parse("postgres://ada:s3cret@127.0.0.1:1/shop").unwrap();
    match check(&address).await {
        Err(LedgerError::Unavailable(sentence)) => {
            assert!(
                sentence.contains("ada@127.0.0.1:1/shop") && !sentence.contains("s3cret"),
                "{sentence}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_constraints_refuse_states_that_cannot_be() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (held, waiting, over) = (job_of(2), job_of(1), job_of(1));
    ada.claimed(&held).await;
    ada.fail(stand(&waiting, &ada.claimed(&waiting).await))
        .await;
    ada.finish(&over).await;
    let whole = "columns_belong_together";
    for (id, change, constraint) in [
        (held.id, "jobs SET holder = NULL", whole),
        (waiting.id, "jobs SET holder = 1", whole),
        (held.id, "jobs SET next_attempt_at = now()", whole),
        (waiting.id, "jobs SET next_attempt_at = NULL", whole),
        (over.id, "jobs SET finished_at = NULL", whole),
        (held.id, "jobs SET finished_at = now()", whole),
        (over.id, "jobs SET error = 'but'", whole),
        (waiting.id, "jobs SET error = NULL", whole),
        (held.id, "tasks SET finished_at = now()", whole),
        (over.id, "tasks SET error = 'but'", whole),
        (waiting.id, "tasks SET error = NULL", whole),
        (held.id, "tasks SET result = '1'", whole),
        (held.id, "tasks SET attempt = 0", whole),
        (held.id, "tasks SET started_at = NULL", whole),
        (held.id, "tasks SET position = 1", "tasks_pkey"),
    ] {
        let key = if change.starts_with("jobs") {
            "id"
        } else {
            "job_id"
        };
        let refusal = database
            .refusal(&format!("UPDATE cliquet.{change} WHERE {key} = '{id}'"))
            .await;
        assert!(refusal.contains(constraint), "{change}: {refusal}");
    }
}

/// What breaks while the list is read is no damage of the list: who asks waits, and asks again.
#[tokio::test]
async fn a_connection_that_breaks_during_a_check_is_waited_for() {
    let database = Database::new().await;
    let mut lock = database.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE cliquet.migrations IN ACCESS EXCLUSIVE MODE")
        .execute(&mut lock)
        .await
        .unwrap();
    let address = database.address.clone();
    let checked = tokio::spawn(async move { check(&address).await });
    let end = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'cliquet schema' AND wait_event_type = 'Lock') AS ended";
    while database.value::<i64>(end).await == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    match checked.await.unwrap() {
        Err(LedgerError::Unavailable(sentence)) => {
            assert!(sentence.contains("administrator command"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}
