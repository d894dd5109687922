//! Least privilege: every worker of these tests runs under a worker's rights alone (see `support/privileges.rs`); here is
//! what those rights and the others' are not enough for.

use cliquet::{TaskContext, Worker, broker::Place, config::Config};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    privileges::{broker_as, database_as, permissions},
    stage::{Stage, body},
};

async fn enters(stage: &Stage, role: &str) -> PgConnection {
    let url = database_as(&stage.database, role).await;
    PgConnection::connect(&url).await.unwrap()
}

/// That Postgres refuses each statement for want of a right, and of nothing else.
async fn may_not(connection: &mut PgConnection, statements: &[&str]) {
    for statement in statements {
        let refused = sqlx::raw_sql(AssertSqlSafe(statement.to_string()))
            .execute(&mut *connection)
            .await;
        let error = refused.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_the_tests_run_under_a_workers_rights_alone() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:write b:fail,ok").await;
    stage.reaches(job, "SUCCESS").await;
    let users: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cliquet %'",
    )
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    assert_eq!(users, ["cliquet_test_worker"]);
    let address = url::Url::parse(&stage.config().amqp_url).unwrap();
    assert_eq!(address.username(), "cliquet_test_worker");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_change_no_job_into_another_and_no_history() {
    let stage = Stage::new().await;
    let mut worker = enters(&stage, "cliquet_worker").await;
    may_not(
        &mut worker,
        &[
            "UPDATE cliquet.jobs SET payload = '1'",
            "UPDATE cliquet.jobs SET total = 1",
            "UPDATE cliquet.tasks SET handler = 'other'",
            "UPDATE cliquet.failures SET error = 'none'",
            "DELETE FROM cliquet.failures",
            "DELETE FROM cliquet.jobs",
            "DELETE FROM cliquet.tasks",
            "TRUNCATE cliquet.workers",
            "DELETE FROM cliquet.migrations",
            "CREATE TABLE cliquet.mine (id int)",
            "ALTER TABLE cliquet.jobs ADD COLUMN mine int",
            "DROP SCHEMA cliquet CASCADE",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_everything_and_changes_nothing() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok").await;
    stage.reaches(job, "SUCCESS").await;
    let mut reader = enters(&stage, "cliquet_reader").await;
    may_not(
        &mut reader,
        &[
            "UPDATE cliquet.jobs SET status = 'CANCELLED'",
            "INSERT INTO cliquet.failures (job_id, epoch, position, attempt, worker, error) VALUES (gen_random_uuid(), 1, 1, 1, 'w', 'e')",
            "DELETE FROM cliquet.workers",
            "SELECT cliquet.succeed(gen_random_uuid(), 1, 1, 1, NULL, 'finish')",
        ],
    )
    .await;
    let mut binary = Binary::on(&stage, "");
    binary.set(
        "DATABASE_URL",
        &database_as(&stage.database, "cliquet_reader").await,
    );
    let nothing = permissions(&["--json", "--prefix", "t-", "reader", "eve"]);
    if let Some(url) = broker_as(&stage.queues.amqp_url, "cliquet_test_reader", &nothing).await {
        binary.set("AMQP_URL", &url);
    }
    binary.show(job).await;
    let listed = binary.run(&["jobs", "--json"]).await.done();
    assert!(listed.contains(&job.to_string()), "{listed}");
    let ended = binary.run(&["doctor", "--for", "reader"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = binary.run(&["cancel", &job.to_string()]).await.failed(1);
    assert!(said.contains("permission denied"), "{said}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_enqueues_within_its_own_transaction_and_sees_nothing() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let mut publisher = enters(&stage, "cliquet_publisher").await;
    let id = Uuid::now_v7();
    let enqueue = format!(
        "BEGIN;
         INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
         VALUES ('{id}', 0, 0, -1, now(), 2, 'PENDING', '{}', 'test', '{{}}') ON CONFLICT (id) DO NOTHING;
         INSERT INTO cliquet.tasks (job_id, position, handler, label) VALUES ('{id}', 1, 'a', 'A'), ('{id}', 2, 'b', 'B')
         ON CONFLICT (job_id, position) DO NOTHING;
         COMMIT",
        stage.queues.name(Place::Work)
    );
    // The same id twice is one job.
    for _ in 0..2 {
        sqlx::raw_sql(AssertSqlSafe(enqueue.clone()))
            .execute(&mut publisher)
            .await
            .unwrap();
    }
    stage.reaches(id, "SUCCESS").await;
    may_not(
        &mut publisher,
        &[
            "SELECT payload FROM cliquet.jobs",
            "SELECT result FROM cliquet.tasks",
            "UPDATE cliquet.jobs SET status = 'CANCELLED'",
            "DELETE FROM cliquet.jobs",
            "INSERT INTO cliquet.jobs (id, holder) VALUES (gen_random_uuid(), 1)",
            "SELECT error FROM cliquet.failures",
            "SELECT name FROM cliquet.workers",
        ],
    )
    .await;
    let mut binary = Binary::on(&stage, "");
    binary.set(
        "DATABASE_URL",
        &database_as(&stage.database, "cliquet_publisher").await,
    );
    let doctor = binary
        .run(&["doctor", "--for", "publisher", "--json"])
        .await;
    let rights = doctor
        .out
        .lines()
        .find(|line| line.contains("postgres.privileges"));
    assert!(rights.unwrap().contains(r#""state":"ok""#), "{doctor:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_migrates_and_what_it_makes_later_is_readable_at_once() {
    let stage = Stage::new().await;
    database_as(&stage.database, "cliquet_worker").await;
    let mut owner = enters(&stage, "cliquet_owner").await;
    let mut reader = enters(&stage, "cliquet_reader").await;
    let migration = "SET ROLE cliquet_owner; CREATE TABLE cliquet.later (id int); DROP SCHEMA IF EXISTS nowhere; CREATE SCHEMA IF NOT EXISTS cliquet";
    sqlx::raw_sql(migration).execute(&mut owner).await.unwrap();
    sqlx::raw_sql("SELECT id FROM cliquet.later")
        .execute(&mut reader)
        .await
        .unwrap();
    may_not(&mut reader, &["DELETE FROM cliquet.later"]).await;

    // As `cliquet migrate` runs, from nothing on.
    let url = database_as(&stage.database, "cliquet_owner").await;
    let mut admin = PgConnection::connect(&stage.database).await.unwrap();
    sqlx::raw_sql(
        "DROP SCHEMA cliquet CASCADE; ALTER ROLE cliquet_test_owner SET role = 'cliquet_owner'",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    let mut binary = Binary::on(&stage, "");
    binary.set("DATABASE_URL", &url);
    binary.run(&["migrate"]).await.done();
    let owner: String = sqlx::query_scalar(
        "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'cliquet'",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert_eq!(owner, "cliquet_owner");
    // And with the file once more, a worker works.
    database_as(&stage.database, "cliquet_worker").await;
    let worker = stage.worker();
    let job = stage.publish("a:write").await;
    stage.reaches(job, "SUCCESS").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_declare_works_where_others_made_the_queues() {
    let stage = Stage::new().await;
    let queue = stage.queues.name(Place::Work);
    let undeclaring = permissions(&["--json", "--queue", &queue, "--no-declare", "worker", "bob"]);
    let Some(amqp_url) = broker_as(
        &stage.queues.amqp_url,
        "cliquet_test_undeclaring",
        &undeclaring,
    )
    .await
    else {
        panic!("this test needs the broker's management API: set RABBITMQ_MANAGEMENT_URL");
    };
    let config = Config {
        amqp_url: amqp_url.clone(),
        declare: false,
        ..stage.config()
    };
    let worker = stage.worker_with(config.clone());
    let retried = stage.publish("a:fail,ok b:write").await;
    let parked = stage.publish("a:permanent").await;
    stage.reaches(retried, "SUCCESS").await;
    stage.reaches(parked, "FAILED").await;
    stage.queues.take(Place::Dead).await;
    stage.queues_are_empty().await;

    let mut binary = Binary::on(&stage, "");
    binary.set("AMQP_URL", &amqp_url);
    binary.set("CLIQUET_DECLARE", "false");
    binary.set(
        "DATABASE_URL",
        &database_as(&stage.database, "cliquet_worker").await,
    );
    let found = binary.run(&["doctor", "--json"]).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    let queues = found
        .out
        .lines()
        .find(|line| line.contains("rabbitmq.queues"));
    assert!(
        queues.unwrap().contains("may not compare the arguments"),
        "{found:?}"
    );
    worker.stop().await;

    // With `declare` left on, it says what it lacks; and so does `doctor`.
    let declares = Config {
        declare: true,
        ..config
    };
    let refused = Worker::builder()
        .config(declares)
        .handler("a", async |_: TaskContext| Ok(()))
        .run_until(std::future::pending())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("does not permit it"),
        "{refused}"
    );
    binary.set("CLIQUET_DECLARE", "true");
    let found = binary.run(&["doctor", "--json"]).await;
    let rights = found
        .out
        .lines()
        .find(|line| line.contains("rabbitmq.permissions"));
    assert!(
        rights
            .unwrap()
            .contains("configure, although `declare` is on"),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_of_messages_publishes_and_takes_nothing() {
    let stage = Stage::new().await;
    let queue = stage.queues.name(Place::Work);
    let publisher = permissions(&["--json", "--queue", &queue, "publisher", "bob"]);
    let Some(amqp_url) =
        broker_as(&stage.queues.amqp_url, "cliquet_test_publisher", &publisher).await
    else {
        panic!("this test needs the broker's management API: set RABBITMQ_MANAGEMENT_URL");
    };
    let mut binary = Binary::with(&stage.queues, "");
    binary.set("AMQP_URL", &amqp_url);
    binary.set("CLIQUET_DECLARE", "false");
    let id = Uuid::now_v7();
    let message = body(id, "a:ok");
    let printed = binary.feed(&["publish", "-"], &message).await.done();
    assert_eq!(printed.trim(), id.to_string());

    let connection = lapin::Connection::connect(&amqp_url, Default::default())
        .await
        .unwrap();
    for refused in ["take", "make"] {
        let channel = connection.create_channel().await.unwrap();
        let answer = match refused {
            "take" => channel
                .basic_get(queue.as_str().into(), Default::default())
                .await
                .map(drop),
            _ => {
                let name = format!("{queue}.mine");
                let made =
                    channel.queue_declare(name.into(), Default::default(), Default::default());
                made.await.map(drop)
            }
        };
        let error = answer.expect_err(refused).to_string();
        assert!(
            error.contains("ACCESS_REFUSED") || error.contains("refused"),
            "{error}"
        );
    }

    // It is write that lets it publish, and doctor tells who lacks it.
    let nothing = permissions(&["--json", "reader", "eve"]);
    let reader = broker_as(&stage.queues.amqp_url, "cliquet_test_reader", &nothing).await;
    binary.set("AMQP_URL", &reader.unwrap());
    binary.set("DATABASE_URL", &stage.database);
    let doctor = binary
        .run(&["doctor", "--for", "publisher", "--json"])
        .await;
    let rights = doctor
        .out
        .lines()
        .find(|line| line.contains("rabbitmq.permissions"));
    assert!(rights.unwrap().contains("lacks write"), "{doctor:?}");

    let worker = stage.worker();
    stage.reaches(id, "SUCCESS").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lacks_a_right_says_so_at_once_and_takes_no_job() {
    let stage = Stage::new().await;
    sqlx::raw_sql("REVOKE UPDATE (brakes) ON cliquet.workers FROM cliquet_worker; REVOKE INSERT ON cliquet.failures FROM cliquet_worker")
        .execute(&stage.pool)
        .await
        .unwrap();
    stage.publish("a:ok").await;
    let refused = stage
        .builder(stage.config())
        .run_until(std::future::pending())
        .await
        .unwrap_err()
        .to_string();
    for part in [
        "UPDATE (brakes) on workers",
        "INSERT on failures",
        "deploy/postgres-roles.sql",
        "GRANT INSERT ON cliquet.failures TO",
    ] {
        assert!(refused.contains(part), "{part} is not in: {refused}");
    }
    assert_eq!(
        stage.queues.depth(cliquet::broker::Place::Work).await,
        1,
        "nobody took it"
    );
}
