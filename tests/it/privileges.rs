//! Least privilege: every worker of these tests runs under a worker's rights alone (see `support/privileges.rs`); here is
//! what those rights and the others' are not enough for, and how they are given.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use cliquet::{TaskContext, Worker, broker::Place, config::Config};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::support::{
    binary::{Binary, Ended},
    database_url, eventually,
    privileges::{broker_as, database_as, deploy, permissions},
    stage::{Stage, body},
};

async fn enters(stage: &Stage, role: &str) -> PgConnection {
    let url = database_as(&stage.database, role).await;
    PgConnection::connect(&url).await.unwrap()
}

/// The binary with the rights of a role in Postgres.
async fn binary_as(stage: &Stage, role: &str) -> Binary {
    let mut binary = Binary::on(stage, "");
    let url = database_as(&stage.database, role).await;
    binary.set("DATABASE_URL", &url);
    binary
}

/// The same user of the tests' broker, with the permissions that the script prints for these arguments.
async fn broker_user(stage: &Stage, user: &str, arguments: &[&str]) -> String {
    let mut all = vec!["--json"];
    all.extend(arguments);
    all.push("bob");
    let url = broker_as(&stage.queues.amqp_url, user, &permissions(&all)).await;
    url.unwrap_or_else(|| {
        panic!("this test needs the broker's management API: set RABBITMQ_MANAGEMENT_URL")
    })
}

/// What `cliquet doctor --json` says of one check.
fn told<'a>(doctor: &'a Ended, check: &str) -> &'a str {
    let line = doctor.out.lines().find(|line| line.contains(check));
    line.unwrap_or_else(|| panic!("nothing about {check}: {doctor:?}"))
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
    let mut binary = binary_as(&stage, "cliquet_reader").await;
    let reader = broker_user(&stage, "cliquet_test_reader", &["--prefix", "t-", "reader"]).await;
    binary.set("AMQP_URL", &reader);
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
    let mut binary = binary_as(&stage, "cliquet_publisher").await;
    // Who enqueues in SQL alone needs nothing of RabbitMQ.
    let reader = broker_user(&stage, "cliquet_test_reader", &["--prefix", "t-", "reader"]).await;
    binary.set("AMQP_URL", &reader);
    let doctor = binary
        .run(&["doctor", "--for", "publisher", "--json"])
        .await;
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let rights = told(&doctor, "postgres.privileges");
    assert!(rights.contains(r#""state":"ok""#), "{rights}");
    let publishing = told(&doctor, "rabbitmq.publishing");
    assert!(
        publishing.contains(r#""state":"warning""#) && publishing.contains("in SQL alone"),
        "{publishing}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_migrates_and_what_it_makes_later_is_readable_at_once() {
    let stage = Stage::new().await;
    database_as(&stage.database, "cliquet_worker").await;
    let mut owner = enters(&stage, "cliquet_owner").await;
    let mut reader = enters(&stage, "cliquet_reader").await;
    // The file is run for each of them, and no more.
    let mut publisher = enters(&stage, "cliquet_publisher").await;
    let migration = "SET ROLE cliquet_owner; CREATE TABLE cliquet.later (id int); DROP SCHEMA IF EXISTS nowhere; CREATE SCHEMA IF NOT EXISTS cliquet";
    sqlx::raw_sql(migration).execute(&mut owner).await.unwrap();
    sqlx::raw_sql("SELECT id FROM cliquet.later")
        .execute(&mut reader)
        .await
        .unwrap();
    may_not(&mut reader, &["DELETE FROM cliquet.later"]).await;

    // A later migration may have each row checked by a new function. Whoever writes rows has to execute it.
    let migration = "CREATE FUNCTION cliquet.is_later(id uuid) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN id IS NOT NULL; END';
                     ALTER TABLE cliquet.jobs ADD CONSTRAINT later CHECK (cliquet.is_later(id)) NOT VALID";
    sqlx::raw_sql(migration).execute(&mut owner).await.unwrap();
    let enqueue = "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
                   VALUES (gen_random_uuid(), 0, 0, -1, now(), 2, 'PENDING', 'q', 'test', '{}')";
    sqlx::raw_sql(enqueue)
        .execute(&mut publisher)
        .await
        .unwrap();
    let worker = stage.worker();
    let job = stage.publish("a:write").await;
    stage.reaches(job, "SUCCESS").await;
    worker.stop().await;
    may_not(&mut reader, &["SELECT cliquet.is_later(NULL)"]).await;

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
    let amqp_url = broker_user(
        &stage,
        "cliquet_test_undeclaring",
        &["--queue", &queue, "--no-declare", "worker"],
    )
    .await;
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

    let mut binary = binary_as(&stage, "cliquet_worker").await;
    binary.set("AMQP_URL", &amqp_url);
    binary.set("CLIQUET_DECLARE", "false");
    let found = binary.run(&["doctor", "--json"]).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    let queues = told(&found, "rabbitmq.queues");
    assert!(queues.contains("may not compare the arguments"), "{queues}");
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
    let rights = told(&found, "rabbitmq.permissions");
    assert!(
        rights.contains("configure, although `declare` is on"),
        "{rights}"
    );
}

/// The form that the README tells, for one queue: the worker makes what is missing of it, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_the_permissions_of_one_queue_makes_its_queues_and_works() {
    let stage = Stage::new().await;
    let queue = stage.queues.name(Place::Work);
    for place in stage.queues.topology.places() {
        stage.queues.delete(place).await;
    }
    stage.queues.unmark().await;
    let amqp_url = broker_user(
        &stage,
        "cliquet_test_declaring",
        &["--queue", &queue, "worker"],
    )
    .await;
    let worker = stage.worker_with(Config {
        amqp_url: amqp_url.clone(),
        ..stage.config()
    });
    eventually("the queues are made", async || {
        let channel = stage.queues.channel().await;
        let passive = lapin::options::QueueDeclareOptions::durable().passive();
        let found = channel.queue_declare(
            stage.queues.name(Place::Dead).into(),
            passive,
            Default::default(),
        );
        found.await.ok().map(drop)
    })
    .await;
    eventually("a worker consumes", async || {
        let channel = stage.queues.channel().await;
        let passive = lapin::options::QueueDeclareOptions::durable().passive();
        let found = channel.queue_declare(queue.as_str().into(), passive, Default::default());
        (found.await.ok()?.consumer_count() == 1).then_some(())
    })
    .await;
    let retried = stage.publish("a:fail,ok b:write").await;
    let parked = stage.publish("a:permanent").await;
    stage.reaches(retried, "SUCCESS").await;
    stage.reaches(parked, "FAILED").await;
    stage.queues.take(Place::Dead).await;
    eventually("it leaves the mark", async || {
        let channel = stage.queues.channel().await;
        let passive = lapin::options::ExchangeDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let (mark, kind) = (stage.queues.name(Place::Dead), lapin::ExchangeKind::Fanout);
        let found = channel.exchange_declare(mark.into(), kind, passive, Default::default());
        found.await.ok()
    })
    .await;
    let mut binary = binary_as(&stage, "cliquet_worker").await;
    binary.set("AMQP_URL", &amqp_url);
    let found = binary.run(&["doctor", "--json"]).await;
    assert!(
        told(&found, "rabbitmq.queues").contains(r#""state":"ok""#),
        "{found:?}"
    );
    // Another queue is not its own, not even one whose name begins like it.
    binary.set("CLIQUET_QUEUE", &format!("{queue}s"));
    let said = binary.run(&["topology", "declare"]).await.failed(1);
    assert!(said.contains("does not permit it"), "{said}");
    worker.stop().await;
}

/// Who looks, retries, cancels and skips: an operator in Postgres, a publisher in RabbitMQ, and default settings.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_retries_cancels_and_skips_with_a_publishers_permissions() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let config = stage.config();
    let worker = stage.worker_with(config);
    let mut binary = binary_as(&stage, "cliquet_operator").await;
    binary.set("CLIQUET_LADDER", "200ms, 1h");
    let queue = stage.queues.name(Place::Work);
    let publisher = broker_user(
        &stage,
        "cliquet_test_publisher",
        &["--queue", &queue, "publisher"],
    )
    .await;
    binary.set("AMQP_URL", &publisher);
    binary.set("CLIQUET_OPERATOR", "olga");
    let [retried, cancelled, skipped] = [
        stage.publish("a:after:3600000,ok").await,
        stage.publish("a:after:3600000,ok").await,
        stage.publish("a:after:3600000,ok b:ok").await,
    ];
    for job in [retried, cancelled, skipped] {
        stage.reaches(job, "RETRYING").await;
    }
    binary.run(&["retry", &retried.to_string()]).await.done();
    stage.reaches(retried, "SUCCESS").await;
    binary.run(&["cancel", &cancelled.to_string()]).await.done();
    stage.reaches(cancelled, "CANCELLED").await;
    let skip = ["skip", &skipped.to_string(), "--reason", "done by hand"];
    binary.run(&skip).await.done();
    stage.reaches(skipped, "SUCCESS").await;
    assert_eq!(stage.script.positions(skipped).await, [1, 2]);
    for (job, act) in [(retried, "retry"), (cancelled, "cancel"), (skipped, "skip")] {
        let shown = binary.show(job).await;
        let done = &shown["interventions"][0];
        assert_eq!(
            (&done["act"], &done["operator"]),
            (&act.into(), &"olga".into()),
            "{shown}"
        );
    }
    // Nothing but the rights is looked at: the connection is another user's, with no right to take.
    let found = binary.run(&["doctor", "--for", "operator", "--json"]).await;
    let rights = told(&found, "postgres.privileges");
    assert!(rights.contains(r#""state":"ok""#), "{rights}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_change_no_job_into_another_and_no_history_and_deletes_nothing() {
    let stage = Stage::new().await;
    let mut operator = enters(&stage, "cliquet_operator").await;
    may_not(
        &mut operator,
        &[
            "UPDATE cliquet.jobs SET payload = '1'",
            "UPDATE cliquet.jobs SET kind = 'other'",
            "UPDATE cliquet.tasks SET handler = 'other'",
            "UPDATE cliquet.tasks SET input = '1'",
            "UPDATE cliquet.failures SET error = 'none'",
            "UPDATE cliquet.tasks SET result = '1'",
            "UPDATE cliquet.interventions SET operator = 'somebody else'",
            "INSERT INTO cliquet.interventions (job_id, at, act, operator) VALUES (gen_random_uuid(), now() - interval '1 day', 'skip', 'o')",
            "INSERT INTO cliquet.interventions (id, job_id, act, operator) OVERRIDING SYSTEM VALUE VALUES (1, gen_random_uuid(), 'skip', 'o')",
            "INSERT INTO cliquet.jobs (id) VALUES (gen_random_uuid())",
            "INSERT INTO cliquet.failures (job_id, epoch, position, attempt, worker, error) VALUES (gen_random_uuid(), 1, 1, 1, 'w', 'e')",
            "UPDATE cliquet.workers SET stopped_at = now()",
            "DELETE FROM cliquet.jobs",
            "DELETE FROM cliquet.tasks",
            "DELETE FROM cliquet.failures",
            "DELETE FROM cliquet.interventions",
            "DELETE FROM cliquet.activity",
            "SELECT cliquet.succeed(gen_random_uuid(), 1, 1, 1, NULL, 'finish')",
        ],
    )
    .await;
}

/// What a worker may write is not enough: who acts has to be able to write down that he did.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_act_is_told_the_grant_and_nothing_is_done() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:after:3600000,ok").await;
    stage.reaches(job, "RETRYING").await;
    worker.stop().await;
    for role in ["cliquet_worker", "cliquet_reader"] {
        let mut binary = binary_as(&stage, role).await;
        binary.set("CLIQUET_LADDER", "200ms, 1h");
        for act in [
            &["retry", &job.to_string()][..],
            &["cancel", &job.to_string()],
            &["skip", &job.to_string(), "--reason", "no"],
        ] {
            let said = binary.run(act).await.failed(1);
            let user = role.replace("cliquet_", "cliquet_test_");
            let grant = format!("GRANT cliquet_operator TO \"{user}\"");
            assert!(
                said.contains("permission denied") && said.contains(&grant),
                "{said}"
            );
        }
    }
    assert_eq!(stage.status(job).await.as_deref(), Some("RETRYING"));
    assert_eq!(stage.queues.depth(Place::Work).await, 0, "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_of_messages_publishes_and_takes_nothing() {
    let stage = Stage::new().await;
    let queue = stage.queues.name(Place::Work);
    let amqp_url = broker_user(
        &stage,
        "cliquet_test_publisher",
        &["--queue", &queue, "publisher"],
    )
    .await;
    // `declare` is on, as it is by default: who may not make queues publishes all the same.
    let mut binary = Binary::with(&stage.queues, "");
    binary.set("AMQP_URL", &amqp_url);
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
    let reader = broker_user(&stage, "cliquet_test_reader", &["reader"]).await;
    binary.set("AMQP_URL", &reader);
    binary.set("DATABASE_URL", &stage.database);
    let doctor = binary.run(&["doctor", "--json"]).await;
    let rights = told(&doctor, "rabbitmq.permissions");
    assert!(
        rights.contains("lacks configure") && rights.contains("; and write"),
        "{rights}"
    );

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

fn roles() -> String {
    std::fs::read_to_string(deploy("postgres-roles.sql")).unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    ran.map(drop)
}

async fn has(connection: &mut PgConnection, user: &str, table: &str, right: &str) -> bool {
    sqlx::query_scalar("SELECT has_table_privilege($1, $2, $3)")
        .bind(user)
        .bind(table)
        .bind(right)
        .fetch_one(connection)
        .await
        .unwrap()
}

/// The file is run while workers work: nobody waits for it, and it waits for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_are_made_again_while_the_tables_are_in_use() {
    let stage = Stage::new().await;
    let mut user = enters(&stage, "cliquet_worker").await;
    run(
        &mut user,
        "BEGIN; UPDATE cliquet.workers SET seen_at = now(); LOCK TABLE cliquet.jobs, cliquet.tasks IN ROW EXCLUSIVE MODE",
    )
    .await
    .unwrap();
    let mut admin = PgConnection::connect(&stage.database).await.unwrap();
    let ran = tokio::time::timeout(Duration::from_secs(30), run(&mut admin, &roles())).await;
    ran.expect("it waits for those who use the tables").unwrap();
    run(&mut user, "SELECT FROM cliquet.jobs; COMMIT")
        .await
        .unwrap();
}

/// psql sends one statement after the other. When it ends in the middle, nobody has lost a right.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_roles_that_is_cut_short_changes_nothing() {
    let stage = Stage::new().await;
    let mut admin = PgConnection::connect(&stage.database).await.unwrap();
    let roles = roles();
    let (half, _) = roles.split_once("GRANT SELECT ON ALL TABLES").unwrap();
    assert!(half.contains("REVOKE ALL ON ALL TABLES"));
    let name = url::Url::parse(&stage.database).unwrap();
    let name = name.path().trim_start_matches('/');
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut psql = Command::new(root.join("deploy/dev"))
        .args(["psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    stdin.write_all(half.as_bytes()).unwrap();
    drop(stdin);
    assert!(psql.wait().unwrap().success());
    assert!(has(&mut admin, "cliquet_worker", "cliquet.jobs", "INSERT").await);
}

/// No superuser: one who may create roles and owns the database. Under names of their own, since roles are the whole
/// server's.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_are_made_by_one_who_creates_roles_and_owns_the_database() {
    let tag = format!("t{}", Uuid::new_v4().simple());
    let roles = [
        "owner",
        "worker",
        "publisher",
        "reader",
        "operator",
        "pruner",
    ]
    .iter()
    .fold(roles(), |text, role| {
        text.replace(&format!("cliquet_{role}"), &format!("{tag}_{role}"))
    });
    let mut superuser = PgConnection::connect(&database_url()).await.unwrap();
    for statement in [
        format!("CREATE ROLE {tag}_admin LOGIN CREATEROLE PASSWORD 'least'"),
        format!("CREATE DATABASE {tag} OWNER {tag}_admin"),
    ] {
        run(&mut superuser, &statement).await.unwrap();
    }
    let url = |user: &str| {
        let mut url = url::Url::parse(&database_url()).unwrap();
        url.set_path(&tag);
        url.set_username(&format!("{tag}_{user}")).unwrap();
        url.set_password(Some("least")).unwrap();
        String::from(url)
    };
    let mut binary = Binary::bare();
    // What another role has migrated before becomes the owner's.
    binary.set("DATABASE_URL", &url("admin"));
    binary.run(&["migrate"]).await.done();
    let mut admin = PgConnection::connect(&url("admin")).await.unwrap();
    let mut user = PgConnection::connect(&url("admin")).await.unwrap();
    run(
        &mut user,
        "BEGIN; LOCK TABLE cliquet.tasks IN ROW SHARE MODE",
    )
    .await
    .unwrap();
    // A table changes its owner and is in use: it gives up, and nothing has changed.
    let hurried = roles.replace("lock_timeout = '5s'", "lock_timeout = '100ms'");
    let refused = run(&mut admin, &hurried).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("55P03"), "{refused}");
    run(&mut admin, "ROLLBACK").await.unwrap();
    run(&mut user, "ROLLBACK").await.unwrap();
    let made: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_roles WHERE rolname LIKE $1 || '%'")
            .bind(&tag)
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert_eq!(made, 1, "only the admin's own");

    for _ in 0..2 {
        run(&mut admin, &roles).await.unwrap();
    }
    let owners: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'cliquet'",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(owners, [format!("{tag}_owner")]);
    for role in ["worker", "publisher", "reader", "operator"] {
        let user =
            format!("CREATE ROLE {tag}_of_{role} LOGIN PASSWORD 'least' IN ROLE {tag}_{role}");
        run(&mut admin, &user).await.unwrap();
        binary.set("DATABASE_URL", &url(&format!("of_{role}")));
        let doctor = binary.run(&["doctor", "--json", "--for", role]).await;
        let rights = told(&doctor, "postgres.privileges");
        assert!(rights.contains(r#""state":"ok""#), "{rights}");
    }
    drop((admin, user));
    run(&mut superuser, &format!("DROP DATABASE {tag} WITH (FORCE)"))
        .await
        .unwrap();
    for role in [
        "of_worker",
        "of_publisher",
        "of_reader",
        "of_operator",
        "worker",
        "publisher",
        "reader",
        "operator",
        "pruner",
        "owner",
        "admin",
    ] {
        run(&mut superuser, &format!("DROP ROLE {tag}_{role}"))
            .await
            .unwrap();
    }
}
