//! `cliquet doctor`: each finding is provoked for real, and the commands of its remedy are pasted, into a shell or a session of
//! Postgres, to see that they do what they are said to. (Not those that end a process or look into a node's own files.)

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cliquet::{broker::Place, config::Config};
use lapin::types::AMQPValue;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{
    Queues,
    binary::{Binary, Ended},
    eventually, rabbitmqctl,
    services::Services,
    stage::Stage,
};

/// Every check that there is.
const CHECKS: [&str; 29] = [
    "postgres.connection",
    "postgres.version",
    "postgres.writable",
    "postgres.migrations",
    "postgres.privileges",
    "postgres.plans",
    "postgres.durability",
    "postgres.autovacuum",
    "postgres.connections",
    "postgres.transactions",
    "rabbitmq.connection",
    "rabbitmq.version",
    "rabbitmq.publishing",
    "rabbitmq.queues",
    "rabbitmq.consumers",
    "rabbitmq.dead_queue",
    "rabbitmq.permissions",
    "rabbitmq.consumer_timeout",
    "rabbitmq.alarms",
    "rabbitmq.nodes",
    "rabbitmq.policies",
    "workers.alive",
    "workers.silent",
    "workers.versions",
    "workers.brakes",
    "jobs.stuck",
    "jobs.waiting",
    "jobs.parked",
    "jobs.suspects",
];

/// What a run found, by check; of several findings of one check, the last.
struct Found(BTreeMap<String, Value>, Ended);

impl Found {
    fn state(&self, check: &str) -> &str {
        self.0[check]["state"].as_str().unwrap()
    }

    /// What was found by a check that is not well, and its remedy.
    #[track_caller]
    fn told(&self, check: &str, state: &str) -> (&str, &str) {
        let finding = &self.0[check];
        assert_eq!(finding["state"], state, "{finding}");
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        (text("found"), text("remedy"))
    }
}

/// Runs it; whatever it finds, it says something about every check, and its status is that of its findings.
async fn examine(binary: &Binary) -> Found {
    let ended = binary.run(&["doctor", "--json"]).await;
    let findings: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut order: Vec<_> = findings
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect();
    order.dedup();
    assert_eq!(order, CHECKS, "{ended:?}");
    for finding in &findings {
        let state = finding["state"].as_str().unwrap();
        assert!(["ok", "warning", "problem", "unchecked"].contains(&state));
        assert!(!finding["found"].as_str().unwrap().is_empty());
        let to_mend = matches!(state, "warning" | "problem");
        assert_eq!(finding["remedy"].is_string(), to_mend, "{finding}");
    }
    let problems = findings.iter().any(|finding| finding["state"] == "problem");
    assert_eq!(ended.code, Some(i32::from(problems)), "{ended:?}");
    let found = findings
        .iter()
        .map(|finding| {
            let check = finding["check"].as_str().unwrap().to_owned();
            (check, finding.clone())
        })
        .collect();
    Found(found, ended)
}

/// The commands in a text: they stand between backticks.
fn commands(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Has a shell run it, as a person in the folder of the sources does, with these lines typed in. In its PATH are the cliquet
/// of this build and the rabbitmqctl of the tests' broker. Answers with what it prints.
fn paste(binary: &Binary, command: &str, typed: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let quoted = |name: &str| std::env::var(name).map(|value| format!("{name}='{value}' "));
    let rabbitmqctl = match std::env::var("CLIQUET_RABBITMQCTL") {
        Ok(program) => program,
        Err(_) => format!(
            "{}{root}/deploy/dev rabbitmqctl",
            quoted("CLIQUET_DEV_DIR").unwrap_or_default()
        ),
    };
    let script = binary.file(
        "rabbitmqctl",
        &format!("#!/bin/sh\nexec env {rabbitmqctl} \"$@\"\n"),
    );
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let cliquet = binary.command(&[]);
    let mut path = script.parent().unwrap().display().to_string();
    for further in [
        Path::new(cliquet.get_program())
            .parent()
            .unwrap()
            .to_str()
            .unwrap(),
        &std::env::var("PATH").unwrap(),
    ] {
        path = format!("{path}:{further}");
    }
    let environment = cliquet
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut shell = Command::new("sh")
        .args(["-c", command])
        .current_dir(root)
        .env_clear()
        .envs(environment)
        .env("PATH", path)
        .env(
            "CLIQUET_CONFIG",
            script.with_file_name("cliquet.toml").as_os_str(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    let _ = stdin.write_all(typed.as_bytes());
    drop(stdin);
    let ended = shell.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(ended.stdout), text(ended.stderr));
    assert!(ended.status.success(), "{command}: {out}{err}");
    // rabbitmqctl ends well when it could not do what it was asked.
    assert!(!err.contains("rror"), "{command}: {out}{err}");
    out
}

/// Has Postgres run it, as psql does: one statement after the other, in one session.
async fn paste_sql(stage: &Stage, command: &str) {
    let mut session = stage.pool.acquire().await.unwrap();
    for statement in command.split("; ") {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut *session)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    session.close_on_drop();
}

fn management_url() -> String {
    std::env::var("RABBITMQ_MANAGEMENT_URL")
        .expect("RABBITMQ_MANAGEMENT_URL is not set: `eval \"$(deploy/dev env)\"`")
}

async fn on(stage: &Stage, sql: String) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&stage.pool)
        .await
        .unwrap();
}

/// What a database says of itself.
async fn database_name(stage: &Stage) -> String {
    sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_works_has_no_problem() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:ok").await;
    stage.reaches(job, "SUCCESS").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("RABBITMQ_MANAGEMENT_URL", &management_url());
    let found = examine(&binary).await;
    assert_eq!(found.1.code, Some(0), "{:?}", found.1);
    for check in CHECKS {
        match check {
            // Other tests use the same server, and its sessions, at the same time.
            "postgres.connections" | "postgres.transactions" => {}
            // What a node's own settings say is told nowhere.
            "rabbitmq.consumer_timeout" => assert_eq!(found.state(check), "unchecked"),
            _ => assert_eq!(found.state(check), "ok", "{}", found.0[check]),
        }
    }

    // For people, with the same status; what is told nowhere else is missing without the management API.
    let plain = Binary::on(&stage, "");
    let ended = plain.run(&["doctor"]).await;
    assert!(ended.err.contains("0 problems"), "{ended:?}");
    let words = ended.done();
    assert!(words.contains("ok         workers.alive"), "{words}");
    assert!(words.contains("unchecked  rabbitmq.nodes"), "{words}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_away_is_a_finding_and_the_other_is_examined() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, "");
    binary.set("DATABASE_URL", "postgres://ada:s3cret@127.0.0.1:1/shop");
    let found = examine(&binary).await;
    found.told("postgres.connection", "problem");
    assert!(!found.1.out.contains("s3cret"));
    assert_eq!(found.state("rabbitmq.queues"), "ok");
    for check in CHECKS
        .iter()
        .filter(|check| !check.starts_with("rabbitmq."))
    {
        if *check != "postgres.connection" {
            assert_eq!(found.state(check), "unchecked", "{check}");
        }
    }

    let mut binary = Binary::on(&stage, "");
    binary.set("AMQP_URL", "amqp://ada:s3cret@127.0.0.1:1");
    binary.set("RABBITMQ_MANAGEMENT_URL", "http://ada:s3cret@127.0.0.1:1");
    let found = examine(&binary).await;
    found.told("rabbitmq.connection", "problem");
    assert!(!found.1.out.contains("s3cret"));
    assert_eq!(found.state("postgres.plans"), "ok");
    assert_eq!(found.state("rabbitmq.nodes"), "unchecked");

    let mut binary = Binary::on(&stage, "");
    let wrong = stage.queues.amqp_url.replace("guest:guest", "guest:wrong");
    binary.set("AMQP_URL", &wrong);
    let found = examine(&binary).await;
    let (words, remedy) = found.told("rabbitmq.connection", "problem");
    assert!(words.contains("refuses the connection"), "{words}");
    // Neither needs the password in its arguments.
    let [asks, lists] = commands(remedy)[..] else {
        panic!("{remedy}")
    };
    paste(&binary, asks, "guest\n");
    let listed = paste(&binary, lists, "");
    assert!(listed.contains(".*"), "{listed}");
    assert_eq!(found.state("rabbitmq.version"), "ok", "it is told to all");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_wrong_use() {
    let queues = Queues::new().await;
    let mut binary = Binary::with(&queues, "");
    let said = binary.run(&["doctor"]).await.failed(2);
    assert!(said.contains("DATABASE_URL is not set"), "{said}");
    binary.set("DATABASE_URL", "postgres://ada:s3cret@127.0.0.1:1/shop");
    binary.set("RABBITMQ_MANAGEMENT_URL", "https://ada:s3cret@rabbit");
    let said = binary.run(&["doctor"]).await.failed(2);
    assert!(
        said.contains("RABBITMQ_MANAGEMENT_URL") && !said.contains("s3cret"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_that_are_missing_changed_or_newer_are_told_apart() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, "");
    on(&stage, "INSERT INTO cliquet.migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)".into()).await;
    let found = examine(&binary).await;
    let (words, _) = found.told("postgres.migrations", "warning");
    assert!(words.contains("9999 (later)"), "{words}");

    on(
        &stage,
        "UPDATE cliquet.migrations SET checksum = '' WHERE version = 2".into(),
    )
    .await;
    let found = examine(&binary).await;
    let (words, remedy) = found.told("postgres.migrations", "problem");
    assert!(words.contains("migrated by another build"), "{words}");
    assert!(remedy.starts_with("run the cliquet that"), "{remedy}");

    on(&stage, "DROP SCHEMA cliquet CASCADE".into()).await;
    let found = examine(&binary).await;
    let (words, remedy) = found.told("postgres.migrations", "problem");
    assert!(words.contains("1 (jobs and tasks)"), "{words}");
    paste(&binary, commands(remedy)[0], "");
    assert_eq!(examine(&binary).await.state("postgres.migrations"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_lacking_is_named_with_the_grant_that_gives_it() {
    let stage = Stage::new().await;
    let role = format!("poor_{}", Uuid::new_v4().simple());
    on(
        &stage,
        format!("CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT USAGE ON SCHEMA cliquet TO {role};
                 GRANT SELECT ON ALL TABLES IN SCHEMA cliquet TO {role}; GRANT INSERT, UPDATE ON cliquet.jobs, cliquet.tasks TO {role};
                 GRANT INSERT, DELETE, UPDATE (seen_at) ON cliquet.workers TO {role}; REVOKE EXECUTE ON FUNCTION cliquet.succeed FROM PUBLIC"),
    )
    .await;
    let mut url = url::Url::parse(&stage.database).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("poor")).unwrap();
    let mut binary = Binary::on(&stage, "");
    binary.set("DATABASE_URL", url.as_str());
    let found = examine(&binary).await;
    let (words, remedy) = found.told("postgres.privileges", "problem");
    assert!(
        words.ends_with(": INSERT on failures; UPDATE (locked_at, stopped_at, cleared_at, brakes, succeeded, failed, in_hand, running) on workers; INSERT, DELETE on activity; UPDATE (succeeded, failed) on activity; EXECUTE of succeed; EXECUTE of job_is_whole; EXECUTE of task_is_whole"),
        "{words}"
    );
    assert_eq!(found.state("postgres.plans"), "unchecked");

    paste_sql(&stage, commands(remedy)[0]).await;
    let found = examine(&binary).await;
    assert_eq!(found.state("postgres.privileges"), "ok");
    assert_eq!(found.state("postgres.plans"), "ok");
    on(&stage, format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_postgres_slow_or_forgetful_is_found() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, "");
    let name = database_name(&stage).await;
    on(
        &stage,
        "ALTER TABLE cliquet.tasks DROP CONSTRAINT tasks_pkey; ALTER TABLE cliquet.jobs SET (autovacuum_enabled = off)".into(),
    )
    .await;
    on(
        &stage,
        format!("ALTER DATABASE {name} SET synchronous_commit = off; ALTER DATABASE {name} SET default_transaction_read_only = on"),
    )
    .await;
    let found = examine(&binary).await;
    let (words, _) = found.told("postgres.plans", "problem");
    assert!(words.contains("Seq Scan on tasks"), "{words}");
    let (words, vacuum) = found.told("postgres.autovacuum", "problem");
    assert!(words.contains("for the table jobs"), "{words}");
    let (words, commit) = found.told("postgres.durability", "problem");
    assert!(words.starts_with("synchronous_commit is off"), "{words}");
    let (_, writable) = found.told("postgres.writable", "problem");
    // This one comes first: nothing else can be changed before.
    for remedy in [writable, commit, vacuum] {
        paste_sql(&stage, commands(remedy)[0]).await;
    }
    let found = examine(&binary).await;
    for check in ["writable", "durability", "autovacuum"] {
        assert_eq!(found.state(&format!("postgres.{check}")), "ok");
    }
}

/// Settings of a role, and of a role in one database, are found and put right there; and so are its limits.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_for_a_role_is_put_right_for_that_role() {
    let stage = Stage::new().await;
    let name = database_name(&stage).await;
    let role = format!("Odd {}", Uuid::new_v4().simple());
    on(
        &stage,
        format!(
            "CREATE ROLE \"{role}\" LOGIN PASSWORD 'odd' CONNECTION LIMIT 30 IN ROLE cliquet_worker, cliquet_reader;
             ALTER ROLE \"{role}\" SET synchronous_commit = off;
             ALTER ROLE \"{role}\" SET track_counts = off;
             ALTER ROLE \"{role}\" IN DATABASE {name} SET default_transaction_read_only = on"
        ),
    )
    .await;
    let mut url = url::Url::parse(&stage.database).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("odd")).unwrap();
    let mut binary = Binary::on(&stage, "");
    binary.set("DATABASE_URL", url.as_str());
    let found = examine(&binary).await;
    let checks = [
        "postgres.writable",
        "postgres.durability",
        "postgres.autovacuum",
    ];
    for check in checks {
        let (words, remedy) = found.told(check, "problem");
        assert!(remedy.contains("ALTER ROLE \"Odd "), "{words}: {remedy}");
        paste_sql(&stage, commands(remedy)[0]).await;
    }
    let (words, remedy) = found.told("postgres.connections", "warning");
    assert!(words.starts_with("1 of 30 sessions of the role"), "{words}");
    assert!(
        remedy.contains("raise the role's CONNECTION LIMIT"),
        "{remedy}"
    );
    let found = examine(&binary).await;
    for check in checks {
        assert_eq!(found.state(check), "ok", "{}", found.0[check]);
    }
    on(
        &stage,
        format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\""),
    )
    .await;
}

/// It lets in, and then answers nothing more, or hangs up: that is a problem like a server that is not there, and the doctor
/// waits for neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_stops_answering_is_a_problem_and_not_waited_for() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, "");
    let mut lock = stage.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE cliquet.migrations IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let found = examine(&binary).await;
    let (words, remedy) = found.told("postgres.connection", "problem");
    assert!(
        words.contains("let us in, and then: ") && words.contains("lock timeout"),
        "{words}"
    );
    paste_sql(&stage, commands(remedy)[0]).await;
    assert_eq!(found.state("jobs.parked"), "unchecked");

    let ended = async {
        eventually("the doctor waits, and its session is ended", async || {
            let ended: Vec<bool> = sqlx::query_scalar(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name LIKE 'cliquet doctor%' AND wait_event_type = 'Lock'",
            )
            .fetch_all(&stage.pool)
            .await
            .unwrap();
            (!ended.is_empty()).then_some(())
        })
        .await;
    };
    let (found, ()) = tokio::join!(examine(&binary), ended);
    let (words, _) = found.told("postgres.connection", "problem");
    assert!(words.contains("administrator command"), "{words}");
    lock.rollback().await.unwrap();
    assert_eq!(examine(&binary).await.state("postgres.connection"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_missing_or_wrong_are_named() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, "");
    let rung = stage.queues.rung(0);
    stage.queues.delete(rung).await;
    let found = examine(&binary).await;
    let (words, remedy) = found.told("rabbitmq.queues", "problem");
    assert!(words.contains(&stage.queues.name(rung)), "{words}");
    paste(&binary, commands(remedy)[0], "");
    assert_eq!(examine(&binary).await.state("rabbitmq.queues"), "ok");

    stage.queues.delete(rung).await;
    let another_delay = [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-message-ttl", AMQPValue::LongLongInt(77)),
    ];
    stage.queues.declare_otherwise(rung, &another_delay).await;
    let found = examine(&binary).await;
    let (words, _) = found.told("rabbitmq.queues", "problem");
    assert!(
        words.contains("inequivalent arg") && words.contains(&stage.queues.name(rung)),
        "{words}"
    );
    let [_, counts, deletes] = commands(words)[..] else {
        panic!("{words}")
    };
    let counted = paste(&binary, counts, "");
    let empty = format!("{}\t0", stage.queues.name(rung));
    assert!(counted.lines().any(|line| line == empty), "{counted}");
    paste(&binary, deletes, "");
    paste(&binary, "cliquet topology declare", "");
    let found = examine(&binary).await;
    assert_eq!(found.state("rabbitmq.queues"), "ok");
    let (words, _) = found.told("rabbitmq.consumers", "warning");
    assert!(words.contains("nobody consumes"), "{words}");
    stage.publish("a:ok").await;
    let (words, _) = {
        let found = examine(&binary).await;
        let (words, remedy) = found.told("rabbitmq.consumers", "problem");
        (words.to_owned(), remedy.to_owned())
    };
    assert!(words.starts_with("1 messages wait"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_jobs_are_told_by_handler_and_reason_and_are_a_warning() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let jobs = [
        stage.publish("a:permanent").await,
        stage.publish("a:permanent").await,
        stage.publish("b:nonsense").await,
    ];
    for job in jobs {
        stage.reaches(job, "FAILED").await;
    }
    let binary = Binary::on(&stage, "");
    eventually("three messages lie in the dead queue", async || {
        let found = examine(&binary).await;
        found.0["rabbitmq.dead_queue"]["found"]
            .as_str()
            .unwrap()
            .starts_with("3 messages")
            .then_some(())
    })
    .await;
    let found = examine(&binary).await;
    let (words, remedy) = found.told("jobs.parked", "warning");
    assert!(
        words.starts_with("3 jobs were given up: 2 × a (never again, as told), such as "),
        "{words}"
    );
    assert!(words.contains("1 × b (the script knows no"), "{words}");
    assert_eq!(found.1.code, Some(0), "{:?}", found.1);
    assert_eq!(binary.run(&["doctor", "--strict"]).await.code, Some(1));
    let ids = jobs.map(|job| job.to_string());
    let retry: Vec<_> = ["retry"]
        .into_iter()
        .chain(ids.iter().map(String::as_str))
        .collect();
    let [shows, all, retries] = commands(remedy)[..] else {
        panic!("{remedy}")
    };
    paste(&binary, &shows.replace("ID", &ids[0]), "");
    assert_eq!(all, "cliquet dead retry --all"); // its own tests paste it
    // Without a limit of its own it would be the newest 20.
    assert!(retries.contains("--limit 100000"), "{retries}");
    let printed = paste_list(&binary, retries, &retry).await;
    assert_eq!(printed.lines().count(), 3, "{printed}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_and_one_that_was_killed_are_told_apart() {
    let stage = Stage::new().await;
    let mut worker = stage.process_with("ada", &[("STAGE_PATIENCE_MS", "3000")]);
    let job = stage.publish("a:hang").await;
    stage.reaches(job, "PROCESSING").await;
    let binary = Binary::on(&stage, "");
    assert_eq!(examine(&binary).await.state("workers.alive"), "ok");

    worker.signal("STOP");
    let found = eventually("its silence is noticed", async || {
        let found = examine(&binary).await;
        (found.state("workers.silent") == "problem").then_some(found)
    })
    .await;
    let (words, remedy) = found.told("workers.silent", "problem");
    assert!(words.starts_with("ada (pid "), "{words}");
    assert!(remedy.contains("kill -9 "), "{remedy}");
    found.told("workers.alive", "problem");
    found.told("jobs.stuck", "problem");

    worker.signal("CONT");
    worker.kill();
    let found = eventually("its death is noticed", async || {
        let found = examine(&binary).await;
        (found.state("workers.silent") == "ok" && found.state("jobs.stuck") == "problem")
            .then_some(found)
    })
    .await;
    let (words, remedy) = found.told("jobs.stuck", "problem");
    assert!(words.starts_with("1 jobs are held by ada"), "{words}");
    assert!(remedy.starts_with("start a worker"), "{remedy}");
}

/// A job whose message is lost, and whose holder is dead, or even forgotten, goes on by the remedy alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_job_is_found_and_its_remedy_has_it_taken_over() {
    for forgotten in [false, true] {
        let stage = Stage::new().await;
        let name = "ada's \"first\"";
        let mut ada = stage.process_with(name, &[("STAGE_PATIENCE_MS", "3000")]);
        let job = stage.publish("a:gate:g b:ok").await;
        stage.script.reached("g", 1).await;
        ada.kill();
        stage.let_go(name).await;
        eventually("its message is back", async || {
            (stage.queues.depth(Place::Work).await == 1).then_some(())
        })
        .await;
        stage.queues.purge(Place::Work).await;
        stage.script.open("g").await;
        on(
            &stage,
            match forgotten {
                true => "DELETE FROM cliquet.workers",
                false => "UPDATE cliquet.workers SET seen_at = now() - interval '10 minutes'",
            }
            .into(),
        )
        .await;
        // One that lives, and does not look after the job by itself.
        let bob = stage.worker_with(Config {
            reconcile_every: Duration::from_secs(3_600),
            ..stage.config()
        });
        let binary = Binary::on(&stage, "");
        let found = eventually("it is stuck, and bob lives", async || {
            let found = examine(&binary).await;
            (found.state("workers.alive") == "ok" && found.state("jobs.stuck") == "problem")
                .then_some(found)
        })
        .await;
        let (words, remedy) = found.told("jobs.stuck", "problem");
        assert_eq!(words.contains("has forgotten"), forgotten, "{words}");
        let printed = paste_list(&binary, commands(remedy)[0], &["retry", &job.to_string()]).await;
        assert_eq!(printed.trim(), job.to_string());
        stage.reaches(job, "SUCCESS").await;
        assert_eq!(stage.script.positions(job).await, [1, 1, 2]);
        assert_eq!(examine(&binary).await.state("jobs.stuck"), "ok");
        bob.stop().await;
    }
}

/// A command that needs jq. Where there is none, what it comes to is run in its place.
async fn paste_list(binary: &Binary, command: &str, comes_to: &[&str]) -> String {
    match Command::new("jq").arg("--version").output() {
        Ok(_) => paste(binary, command, ""),
        Err(_) => binary.run(comes_to).await.done(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_runs_may_be_retried_and_runs_once() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:g b:ok").await;
    stage.script.reached("g", 1).await;
    let binary = Binary::on(&stage, "");
    let ended = binary.run(&["retry", &job.to_string()]).await;
    assert!(
        ended
            .err
            .contains("if that worker is dead, the next one takes it over"),
        "{ended:?}"
    );
    assert_eq!(ended.done().trim(), job.to_string());
    stage.script.open("g").await;
    stage.reaches(job, "SUCCESS").await;
    stage.queues_are_empty().await;
    assert_eq!(stage.script.positions(job).await, [1, 2]);
    worker.stop().await;
}

/// What `deploy/rabbitmq-permissions.sh` is told to print gives what was lacking.
#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_lacking_is_granted_by_what_the_remedy_prints() {
    let stage = Stage::new().await;
    let user = format!("poor {}", Uuid::new_v4().simple());
    rabbitmqctl(&["add_user", &user, "poor"]);
    rabbitmqctl(&["set_permissions", &user, "^$", "^$", "^$"]);
    let mut url = url::Url::parse(&stage.queues.amqp_url).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("poor")).unwrap();
    let mut binary = Binary::on(&stage, "");
    binary.set("AMQP_URL", url.as_str());
    let found = examine(&binary).await;
    let (words, remedy) = found.told("rabbitmq.permissions", "problem");
    assert!(
        words.contains("configure") && words.contains("write"),
        "{words}"
    );
    let printed = paste(&binary, commands(remedy)[0], "");
    paste(&binary, &printed, "");
    let mended = eventually("it has its permissions", async || {
        let found = examine(&binary).await;
        (found.state("rabbitmq.permissions") == "unchecked").then_some(found)
    })
    .await;
    assert_eq!(mended.state("rabbitmq.publishing"), "ok");
    let (words, _) = mended.told("rabbitmq.permissions", "unchecked");
    let may = format!("{user} may publish and declare; ");
    assert!(words.starts_with(&may), "{words}");
    let listed = paste(&binary, commands(words)[0], "");
    assert!(listed.contains("amq"), "{listed}");
    rabbitmqctl(&["delete_user", &user]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_braked_handler_is_told_with_its_last_error() {
    let stage = Stage::new().await;
    let worker = stage.worker_with(Config {
        brake_after: 2,
        ..stage.config()
    });
    for _ in 0..3 {
        stage.publish("b:needs:shop").await;
    }
    let binary = Binary::on(&stage, "");
    let found = eventually("the brake is told", async || {
        let found = examine(&binary).await;
        (found.state("workers.brakes") == "problem").then_some(found)
    })
    .await;
    let (words, _) = found.told("workers.brakes", "problem");
    assert!(
        words.contains("has braked the handler b") && words.ends_with("shop is away"),
        "{words}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_in_vain_is_found_and_its_remedy_sends_it() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let worker = stage.worker_with(Config {
        reconcile_every: Duration::from_secs(3_600),
        ..stage.config()
    });
    let job = stage.publish("a:after:3600000,ok").await;
    stage.reaches(job, "RETRYING").await;
    eventually("its copy lies in the delay queue", async || {
        (stage.queues.depth(stage.queues.rung(1)).await == 1).then_some(())
    })
    .await;
    stage.queues.purge(stage.queues.rung(1)).await;
    on(
        &stage,
        "UPDATE cliquet.jobs SET next_attempt_at = now() - interval '10 minutes'".into(),
    )
    .await;
    // Longer due, and another matter.
    let enqueue = |queue: &str| {
        format!(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload)
             VALUES (gen_random_uuid(), 0, 0, -1, now() - interval '20 minutes', 1, 'PENDING', '{queue}', 'k', 'null')"
        )
    };
    on(&stage, enqueue(&stage.queues.name(Place::Work))).await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LADDER", "200ms, 1h");
    let found = examine(&binary).await;
    let (words, remedy) = found.told("jobs.waiting", "problem");
    assert!(words.contains("their messages are lost"), "{words}");
    let [retry] = commands(remedy)[..] else {
        panic!("{remedy}")
    };
    assert_eq!(paste(&binary, retry, "").trim(), job.to_string());
    stage.reaches(job, "SUCCESS").await;
    on(&stage, "DELETE FROM cliquet.jobs WHERE sent < 0".into()).await;
    assert_eq!(examine(&binary).await.state("jobs.waiting"), "ok");

    on(&stage, enqueue("else where")).await;
    let found = examine(&binary).await;
    let (words, remedy) = found.told("jobs.waiting", "problem");
    assert!(
        words.contains("1 jobs wait in the queue else where"),
        "{words}"
    );
    assert!(
        remedy.contains("`CLIQUET_QUEUE='else where' cliquet work`"),
        "{remedy}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_in_which_a_worker_died_is_a_suspect() {
    let stage = Stage::new().await;
    let mut first = stage.process("ada");
    let job = stage.publish("a:kill").await;
    first.ended().await;
    // Its death is counted by the next one, which dies too; and so on. Before that happens, nobody is told.
    let mut second = stage.process("bob");
    second.ended().await;
    on(&stage, format!("UPDATE cliquet.jobs SET status = 'PENDING', holder = NULL, next_attempt_at = now() + interval '1 hour' WHERE id = '{job}'")).await;
    let found = examine(&Binary::on(&stage, "")).await;
    let (words, _) = found.told("jobs.suspects", "warning");
    assert!(words.contains(&format!("{job} (a, ")), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_shortens_what_waits_is_found() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let mut binary = Binary::on(&stage, "");
    binary.set("RABBITMQ_MANAGEMENT_URL", &management_url());
    let name = stage.queues.topology.name(stage.queues.rung(0));
    let pattern = format!("^{}$", name.replace('.', "\\."));
    let policy = format!("p-{}", Uuid::new_v4());
    rabbitmqctl(&["set_policy", &policy, &pattern, r#"{"message-ttl": 5}"#]);
    let found = eventually("the policy is told", async || {
        let found = examine(&binary).await;
        (found.state("rabbitmq.policies") == "problem").then_some(found)
    })
    .await;
    let (words, remedy) = found.told("rabbitmq.policies", "problem");
    let listed: Vec<_> = commands(remedy)
        .into_iter()
        .map(|command| paste(&binary, command, ""))
        .collect();
    assert!(
        listed.len() == 2 && listed[0].contains(&policy),
        "{listed:?}"
    );
    rabbitmqctl(&["clear_policy", &policy]);
    assert!(
        words.contains("message-ttl = 5") && words.contains(&name),
        "{words}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_server_and_alarms_of_a_broker_are_told_and_mended() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms"]).await;
    let plain = Binary::on(&stage, "");
    let settings = [
        ("postgres.durability", "fsync"),
        ("postgres.durability", "full_page_writes"),
        ("postgres.durability", "synchronous_commit"),
        ("postgres.autovacuum", "autovacuum"),
        ("postgres.autovacuum", "track_counts"),
    ];
    for (_, name) in settings {
        paste_sql(&stage, &format!("ALTER SYSTEM SET {name} = off")).await;
    }
    paste_sql(&stage, "SELECT pg_reload_conf()").await;
    let found = eventually("the settings are told", async || {
        let found = examine(&plain).await;
        let told = |(check, name): (&str, &str)| {
            found.0[check]["found"].as_str().unwrap().contains(name)
                && found.state(check) == "problem"
        };
        settings.into_iter().all(told).then_some(found)
    })
    .await;
    for check in ["postgres.durability", "postgres.autovacuum"] {
        let (words, remedy) = found.told(check, "problem");
        assert!(words.contains(" and "), "{words}");
        for command in commands(remedy) {
            paste_sql(&stage, command).await;
        }
    }
    eventually("the settings are right again", async || {
        let found = examine(&plain).await;
        let ok = |check| found.state(check) == "ok";
        (ok("postgres.durability") && ok("postgres.autovacuum")).then_some(())
    })
    .await;

    assert_eq!(examine(&plain).await.state("rabbitmq.alarms"), "ok");
    services.run(&["rabbitmqctl", "set_vm_memory_high_watermark", "0.00001"]);
    let found = eventually("the alarm is told over AMQP", async || {
        let found = examine(&plain).await;
        (found.state("rabbitmq.alarms") == "problem").then_some(found)
    })
    .await;
    let (words, _) = found.told("rabbitmq.publishing", "problem");
    assert!(words.contains("low on memory"), "{words}");

    let told = services.run(&["env"]);
    let url = told
        .lines()
        .find_map(|line| line.strip_prefix("export RABBITMQ_MANAGEMENT_URL="))
        .unwrap();
    let mut binary = Binary::on(&stage, "");
    binary.set("RABBITMQ_MANAGEMENT_URL", url.trim_matches('\''));
    let found = eventually("the alarm is told by the management API", async || {
        let found = examine(&binary).await;
        (found.state("rabbitmq.alarms") == "problem").then_some(found)
    })
    .await;
    let (words, _) = found.told("rabbitmq.alarms", "problem");
    assert!(words.contains("has a memory"), "{words}");

    services.run(&["rabbitmqctl", "set_vm_memory_high_watermark", "0.6"]);
    eventually("all is well again", async || {
        (examine(&binary).await.state("rabbitmq.alarms") == "ok").then_some(())
    })
    .await;
}
