//! The commands for people, as they meet them: what is printed where, exit statuses, and sentences that say what to do.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use cliquet::broker::Place;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use sqlx::Row;
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;

use crate::support::{
    Queues, amqp_url,
    binary::{Binary, Ended},
    eventually,
    stage::{Stage, body},
};

/// One JSON object a line.
fn objects(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[track_caller]
fn says(told: &str, words: &[&str]) {
    for words in words {
        assert!(told.contains(words), "{told}\ndoes not say {words:?}");
    }
}

/// Takes the tables away, as in a database that nobody has migrated.
async fn unmigrated() -> Stage {
    let stage = Stage::new().await;
    sqlx::raw_sql("DROP SCHEMA cliquet CASCADE")
        .execute(&stage.pool)
        .await
        .unwrap();
    stage
}

// work: what stops it before it begins

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_an_unmigrated_database_says_so_and_stops() {
    let stage = unmigrated().await;
    let binary = Binary::on(&stage, "[handlers.a]\nexec = [\"true\"]\n");
    let told = binary.run(&["work"]).await.failed(1);
    says(
        &told,
        &[
            "is not migrated: missing 1 (jobs and tasks)",
            "Run `cliquet migrate`",
        ],
    );
    assert_eq!(
        stage.queues.depth(Place::Work).await,
        0,
        "it took no message"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_stops_a_worker_with_the_brokers_sentence() {
    let stage = Stage::new().await;
    stage.queues.delete(Place::Work).await;
    stage
        .queues
        .declare_otherwise(
            Place::Work,
            &[("x-queue-type", AMQPValue::LongString("classic".into()))],
        )
        .await;
    let binary = Binary::on(&stage, "[handlers.a]\nexec = [\"true\"]\n");
    let told = binary.run(&["work"]).await.failed(1);
    says(
        &told,
        &[
            "PRECONDITION_FAILED - inequivalent arg 'x-",
            &stage.queues.name(Place::Work),
            "delete it (`rabbitmqctl delete_queue",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_handlers_says_how_to_name_one() {
    let binary = Binary::bare();
    let told = binary.run(&["work"]).await.failed(2);
    says(&told, &["there are no handlers", "[handlers.", "--config"]);
}

#[tokio::test]
async fn a_misspelt_key_is_told_with_its_line_and_the_nearest_key() {
    let binary = Binary::bare();
    binary.file(
        "cliquet.toml",
        "queue = \"jobs\"\n\n[retry]\nmax_atempts = 3\n",
    );
    for command in [&["work"][..], &["jobs"], &["topology", "declare"]] {
        let told = binary.run(command).await.failed(2);
        assert_eq!(
            told,
            "error: cliquet.toml:4: there is no key `max_atempts` in [retry]; did you mean `max_attempts`?\n"
        );
    }
}

#[tokio::test]
async fn a_command_that_lacks_an_address_names_the_variable() {
    let mut binary = Binary::bare();
    for command in [&["migrate"][..], &["jobs"]] {
        says(
            &binary.run(command).await.failed(2),
            &["DATABASE_URL is not set", "postgres://USER:PASSWORD@"],
        );
    }
    binary.set("AMQP_URL", "http://localhost");
    says(
        &binary.run(&["topology", "declare"]).await.failed(2),
        &["AMQP_URL", "amqp://"],
    );
}

#[tokio::test]
async fn wrong_use_has_exit_status_2_and_help_0() {
    let binary = Binary::bare();
    for arguments in [
        &["wrok"][..],
        &["show"],
        &["show", "17"],
        &["jobs", "--status", "DONE"],
        &["jobs", "--limit", "0"],
        &["retry"],
    ] {
        binary.run(arguments).await.failed(2);
    }
    let told = binary.run(&["show", "17"]).await.failed(2);
    says(
        &told,
        &["a job's id is a UUID", "`cliquet jobs` lists them"],
    );
    let help = binary.run(&["--help"]).await.done();
    for command in [
        "work", "publish", "jobs", "show", "retry", "cancel", "skip", "migrate", "topology",
    ] {
        says(&help, &[&format!("\n  {command} ")]);
        says(
            &binary.run(&[command, "--help"]).await.done(),
            &["--json", "--config <FILE>"],
        );
    }
}

// migrate

#[tokio::test(flavor = "multi_thread")]
async fn migrating_twice_applies_each_migration_once() {
    let stage = unmigrated().await;
    let binary = Binary::on(&stage, "");
    let first = objects(&binary.run(&["migrate", "--json"]).await.done());
    let second = objects(&binary.run(&["migrate", "--json"]).await.done());
    let applied = |lines: &[Value]| {
        lines
            .iter()
            .map(|line| (line["version"].clone(), line["applied_now"].clone()))
            .collect::<Vec<_>>()
    };
    let expected = |now: bool| {
        (1..=15)
            .map(|version| (json!(version), json!(now)))
            .collect::<Vec<_>>()
    };
    assert_eq!(applied(&first), expected(true));
    assert_eq!(applied(&second), expected(false));
    let third = binary.run(&["migrate"]).await;
    says(&third.err, &["is up to date"]);
    says(&third.done(), &["VERSION", "was there  jobs and tasks"]);
}

// publish

#[tokio::test(flavor = "multi_thread")]
async fn publishing_prints_the_ids_one_a_line_in_their_order() {
    let queues = Queues::new().await;
    let binary = Binary::with(&queues, "");
    let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    let text: String = ids
        .map(|id| String::from_utf8(body(id, "a b")).unwrap() + "\n")
        .concat();
    binary.file("jobs.jsonl", &text);
    let printed = binary.run(&["publish", "jobs.jsonl"]).await.done();
    assert_eq!(printed, ids.map(|id| format!("{id}\n")).concat());
    // There is no order between jobs in the queue.
    let mut sent = BTreeSet::new();
    for _ in ids {
        let (body, properties) = queues.take(Place::Work).await;
        let property = properties.message_id().as_ref().map(ToString::to_string);
        sent.insert((property, body));
    }
    assert_eq!(
        sent,
        BTreeSet::from(ids.map(|id| (Some(id.to_string()), body(id, "a b")))),
        "as they were written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_from_a_pipe_gives_a_job_the_id_that_it_lacks() {
    let queues = Queues::new().await;
    let binary = Binary::with(&queues, "");
    let message = r#"{"kind": "hello", "tasks": ["greet", "part"]}"#;
    let printed = binary
        .feed(&["publish", "-", "--json"], message.as_bytes())
        .await
        .done();
    let line: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        line,
        json!({"id": line["id"], "line": 1, "kind": "hello", "tasks": 2})
    );
    let (sent, properties) = queues.take(Place::Work).await;
    assert_eq!(sent, message.as_bytes());
    let property = properties.message_id().as_ref().map(ToString::to_string);
    assert_eq!(property.as_deref(), line["id"].as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_line_is_named_and_nothing_is_published() {
    let queues = Queues::new().await;
    queues.declare().await;
    let binary = Binary::with(&queues, "");
    binary.file(
        "jobs.jsonl",
        "{\"kind\":\"a\",\"tasks\":[\"t\"]}\n\n{\"kind\":\"a\",\"tasks\":[]}\n{\"kind\":\"a\",\"tasks\":[\"t\"]}\n",
    );
    let ended = binary.run(&["publish", "jobs.jsonl"]).await;
    assert_eq!(ended.out, "");
    says(
        &ended.failed(1),
        &["error: line 3: ", "tasks", "error: nothing is published"],
    );
    assert_eq!(queues.depth(Place::Work).await, 0);
    let told = binary.run(&["publish", "missing.jsonl"]).await.failed(1);
    says(&told, &["missing.jsonl cannot be read"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_where_the_queue_is_missing_says_which_command_makes_it() {
    let queues = Queues::new().await;
    let mut binary = Binary::with(&queues, "");
    binary.set("CLIQUET_DECLARE", "false");
    let id = Uuid::now_v7();
    let told = binary
        .feed(&["publish", "-"], &body(id, "a"))
        .await
        .failed(1);
    says(
        &told,
        &[
            &queues.name(Place::Work),
            "does not exist",
            "`cliquet topology declare`",
            &id.to_string(),
        ],
    );
}

// jobs and show

#[tokio::test(flavor = "multi_thread")]
async fn jobs_lists_by_status_kind_and_limit_newest_first() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let binary = Binary::on(&stage, "");
    let mut done = Vec::new();
    for _ in 0..3 {
        let job = stage.publish("a").await;
        stage.reaches(job, "SUCCESS").await;
        done.push(job.to_string());
    }
    let failed = binary
        .publish(r#"{"kind": "other", "tasks": ["a", {"handler": "b", "input": "permanent"}]}"#)
        .await;
    stage.reaches(failed, "FAILED").await;
    worker.stop().await;
    let listed = async |arguments: &[&str]| {
        let arguments = [&["jobs", "--json"], arguments].concat();
        objects(&binary.run(&arguments).await.done())
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let failed = failed.to_string();
    assert_eq!(listed(&[]).await, [&*failed, &done[2], &done[1], &done[0]]);
    assert_eq!(listed(&["--limit", "2"]).await, [&*failed, &done[2]]);
    assert_eq!(
        listed(&["--status", "SUCCESS", "--limit", "1"]).await,
        [&*done[2]]
    );
    assert_eq!(listed(&["--status", "FAILED,CANCELLED"]).await, [&*failed]);
    assert_eq!(listed(&["--kind", "other"]).await, [&*failed]);
    assert!(
        listed(&["--kind", "other", "--status", "SUCCESS"])
            .await
            .is_empty()
    );

    let counts = binary.run(&["jobs", "--count", "--json"]).await.done();
    assert_eq!(
        objects(&counts),
        [
            json!({"status": "SUCCESS", "jobs": 3}),
            json!({"status": "FAILED", "jobs": 1})
        ]
    );
    let table = binary.run(&["jobs"]).await.done();
    let row = table.lines().nth(1).unwrap();
    says(
        row,
        &[&failed, "FAILED", "1/2", "other", "never again, as told"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_id_is_told_with_exit_status_1() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, "");
    let id = Uuid::now_v7().to_string();
    for command in [
        &["show", &id][..],
        &["retry", &id],
        &["cancel", &id],
        &["skip", &id, "--reason", "none"],
    ] {
        let ended = binary.run(command).await;
        assert_eq!(ended.out, "", "{command:?}");
        says(&ended.failed(1), &["error: the ledger knows no job", &id]);
    }
    let asked = binary.run(&["retry", "--json", &id]).await;
    assert_eq!(objects(&asked.out)[0]["outcome"], "not_found");
    asked.failed(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn show_tells_every_failed_attempt_with_its_whole_error() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:fail").await;
    stage.reaches(job, "FAILED").await;
    worker.stop().await;
    let binary = Binary::on(&stage, "");
    let shown = binary.run(&["show", &job.to_string()]).await.done();
    says(
        &shown,
        &[
            "status    FAILED, 1 of 2 tasks done",
            "Step b (b)",
            "#2 Step b (b), attempt 1,",
            "attempt 1 fails as told",
            "attempt 2 fails as told",
            "attempt 3 fails as told",
        ],
    );
    assert!(!shown.contains('\x1b'), "no escape sequences in a pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_in_a_pipe_prints_a_line_at_each_change_and_ends_with_0_on_success() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let worker = stage.worker();
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LADDER", "200ms, 1h");
    // The watch begins before anybody knows the job.
    let job = Uuid::now_v7();
    let mut watch = binary.follow(&["show", "--watch", &job.to_string()]);
    says(&watch.complains().await, &["waiting until a worker takes"]);
    stage
        .publish_as(job, "a:gate:one b:gate:two c:after:3600000,ok")
        .await;
    assert_eq!(
        watch.line().await.as_deref(),
        Some("PROCESSING 0/3 Step a …")
    );
    stage.script.open("one").await;
    assert_eq!(
        watch.line().await.as_deref(),
        Some("PROCESSING 1/3 Step b …")
    );
    stage.script.open("two").await;
    let mut waits = watch.line().await.unwrap();
    if waits.starts_with("PROCESSING 2/3 Step c") {
        // It looked between the task's beginning and its failure.
        waits = watch.line().await.unwrap();
    }
    says(
        &waits,
        &[
            "RETRYING   2/3 Step c: attempt 1 failed, again in ",
            ": later, as told",
        ],
    );
    binary.run(&["retry", &job.to_string()]).await.done();
    let ended = watch.ended().await;
    says(ended.out.lines().last().unwrap(), &["SUCCESS    3/3 in "]);
    ended.done();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_ends_with_1_on_a_failure_and_its_sentence() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let binary = Binary::on(&stage, "");
    let job = stage.publish("a:ok b:permanent").await.to_string();
    let ended = binary.run(&["show", "--watch", &job]).await;
    assert_eq!(
        ended.out.lines().last(),
        Some("FAILED     1/2 Step b: never again, as told")
    );
    ended.failed(1);
    let ended = binary.run(&["show", "--watch", "--json", &job]).await;
    let lines = objects(&ended.out);
    assert_eq!(lines.len(), 1, "it is over: {lines:?}");
    assert_eq!(
        (&lines[0]["status"], &lines[0]["task"]["label"]),
        (&json!("FAILED"), &json!("Step b"))
    );
    ended.failed(1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_job_that_is_cancelled_ends_the_watch_with_the_reason() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let binary = Binary::on(&stage, "");
    let job = stage.publish("a:ok b:gate:shut").await.to_string();
    let mut watch = binary.follow(&["show", "--watch", &job]);
    while watch.line().await.as_deref() != Some("PROCESSING 1/2 Step b …") {}
    let printed = binary
        .run(&["cancel", &job, "--reason", "the price is wrong"])
        .await
        .done();
    assert_eq!(printed, format!("{job}\n"));
    let ended = watch.ended().await;
    assert_eq!(ended.out, "CANCELLED  1/2 the price is wrong\n");
    ended.failed(1);
    worker.stop().await;
}

// retry

#[tokio::test(flavor = "multi_thread")]
async fn retrying_a_failed_job_runs_it_on_where_it_stopped() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        "[handlers.a]\nexec = [\"sh\", \"-c\", 'echo a >>calls']\n[handlers.b]\nexec = [\"sh\", \"-c\", 'echo b >>calls; test -e mended || exit 65']\n",
    );
    let _worker = binary.work();
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["a", "b", "a"]}"#)
        .await;
    stage.reaches(job, "FAILED").await;
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:FAILED 3:PENDING");
    binary.file("mended", "");
    let id = job.to_string();
    let retried = objects(&binary.run(&["retry", "--json", &id]).await.done());
    assert_eq!(
        retried,
        [
            json!({"id": id, "outcome": "published", "status": "FAILED", "generation": 1, "error": null})
        ]
    );
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(binary.written("calls").await, "a\nb\nb\na\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn retrying_a_job_that_is_done_is_refused() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a").await;
    stage.reaches(job, "SUCCESS").await;
    let binary = Binary::on(&stage, "");
    let ended = binary.run(&["retry", &job.to_string()]).await;
    assert_eq!(ended.out, "");
    says(
        &ended.failed(1),
        &["is SUCCESS: every task is done", "under another id"],
    );
    worker.stop().await;
    assert_eq!(stage.script.positions(job).await, [1]);
    stage.queues_are_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_waits_no_longer_however_often_it_is_retried() {
    let stage = Stage::with_ladder(&["200ms", "10s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:after:10000,gate:on b:ok").await;
    stage.reaches(job, "RETRYING").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LADDER", "200ms, 10s");
    let id = job.to_string();
    // Two operators at the same moment.
    let (one, two) = {
        let retry = ["retry", &id];
        tokio::join!(binary.run(&retry), binary.run(&retry))
    };
    assert!(
        one.code == Some(0) || two.code == Some(0),
        "{one:?} {two:?}"
    );
    stage.script.reached("on", 1).await;
    let early =
        "SELECT count(*) FROM cliquet.failures f JOIN cliquet.tasks t USING (job_id, position)
                 WHERE job_id = $1 AND t.started_at < f.failed_at + interval '9 s'";
    assert_eq!(stage.number(early, job).await, 1);
    stage.script.open("on").await;
    stage.reaches(job, "SUCCESS").await;
    // The copies of the two retries and the one that waits are of one job.
    stage.queues.purge(stage.queues.rung(1)).await;
    stage.queues_are_empty().await;
    worker.stop().await;
    assert_eq!(stage.script.positions(job).await, [1, 1, 2]);
}

// cancel

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_what_is_not_over_and_refuses_what_is() {
    let stage = Stage::with_ladder(&["200ms", "10s"]).await;
    let worker = stage.worker();
    let (done, waits) = (
        stage.publish("a").await,
        stage.publish("a:after:10000 b:ok").await,
    );
    stage.reaches(done, "SUCCESS").await;
    stage.reaches(waits, "RETRYING").await;
    let binary = Binary::on(&stage, "");
    let (done, waiting) = (done.to_string(), waits.to_string());
    let ended = binary.run(&["cancel", "--json", &done, &waiting]).await;
    assert_eq!(
        objects(&ended.out),
        [
            json!({"id": done, "outcome": "already_over", "status": "SUCCESS"}),
            json!({"id": waiting, "outcome": "cancelled", "status": "CANCELLED"})
        ]
    );
    says(
        &ended.failed(1),
        &[&format!("job {done} is SUCCESS already")],
    );
    // Twice is what was asked for.
    binary.run(&["cancel", &waiting]).await.done();
    says(
        &binary.run(&["retry", &waiting]).await.failed(1),
        &["a cancelled job stays so"],
    );
    // Its copy returns from the delay queue and is nobody's job any more.
    stage.queues_are_empty().await;
    worker.stop().await;
    assert_eq!(stage.script.positions(waits).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_races_with_an_advance_fences_the_task_that_the_advance_began() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:on b:ok c:ok").await;
    stage.script.reached("on", 1).await;
    // The advance from task 1 to task 2, written but not committed.
    let mut advance = stage.pool.begin().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "UPDATE cliquet.tasks SET status = 'SUCCESS', finished_at = clock_timestamp(), result = 'null' WHERE job_id = '{job}' AND position = 1;
         UPDATE cliquet.tasks t SET status = 'PROCESSING', attempt = attempt + 1, epoch = j.epoch, started_at = clock_timestamp()
           FROM cliquet.jobs j WHERE j.id = t.job_id AND t.job_id = '{job}' AND position = 2"
    )))
    .execute(&mut *advance)
    .await
    .unwrap();

    let binary = Binary::on(&stage, "");
    let cancel = binary.follow(&["cancel", &job.to_string()]);
    eventually("the cancel waits for the advance", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND application_name = 'cliquet command line' AND wait_event_type = 'Lock'";
        let waiting = sqlx::query(waits).fetch_one(&stage.pool).await.unwrap();
        (waiting.get::<i64, _>(0) == 1).then_some(())
    })
    .await;
    advance.commit().await.unwrap();
    assert_eq!(cancel.ended().await.done(), format!("{job}\n"));

    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:FAILED 3:PENDING");
    stage.script.open("on").await;
    worker.stop().await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:FAILED 3:PENDING",
        "its holder is fenced off"
    );
}

// skip, and who did what

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_task_is_not_executed_and_the_job_goes_on_behind_it() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent c:ok").await;
    stage.reaches(job, "FAILED").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_OPERATOR", "olga");
    let id = job.to_string();
    // Not where it stands, and not without a reason.
    let elsewhere = ["skip", &id, "--position", "3", "--reason", "by hand"];
    says(
        &binary.run(&elsewhere).await.failed(1),
        &["stands at task 2 now, not at 3"],
    );
    binary.run(&["skip", &id]).await.failed(2);
    binary.run(&["skip", &id, "--reason", " "]).await.failed(2);
    let skip = [
        "skip",
        &id,
        "--position",
        "2",
        "--reason",
        "by hand",
        "--json",
    ];
    let printed = objects(&binary.run(&skip).await.done());
    assert_eq!(
        printed,
        [json!({"id": id, "outcome": "done", "status": "PENDING", "generation": 2, "error": null})]
    );
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:SUCCESS 3:SUCCESS");
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    says(
        &binary.run(&skip).await.failed(1),
        &["is SUCCESS already, and stays so"],
    );
    let shown = binary.run(&["show", &id]).await.done();
    says(
        &shown,
        &[
            "what people did, oldest first:\n  skip of #2, ",
            " by olga: by hand\n",
        ],
    );
    // The parked copy is of an older generation. Moved back, it is nobody's.
    let (body, _) = stage.queues.take(Place::Dead).await;
    assert!(!body.is_empty());
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_last_task_is_skipped_is_done_and_needs_no_message() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent").await;
    stage.reaches(job, "FAILED").await;
    worker.stop().await;
    let mut binary = Binary::on(&stage, "");
    binary.set("USER", "oleg");
    let printed = binary
        .run(&["skip", &job.to_string(), "--reason", "sold"])
        .await
        .done();
    assert_eq!(printed, format!("{job}\n"));
    assert_eq!(stage.status(job).await.as_deref(), Some("SUCCESS"));
    assert_eq!(stage.queues.depth(Place::Work).await, 0);
    let shown = binary.show(job).await;
    assert_eq!(
        (
            &shown["interventions"][0]["operator"],
            &shown["interventions"][0]["reason"]
        ),
        (&json!("oleg"), &json!("sold"))
    );
    stage.queues.take(Place::Dead).await;
}

/// What is committed is done, whoever is away: told as a failure, it would be repeated and take the next task.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_cannot_be_sent_is_done_with_a_warning_and_sent_later() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:permanent b:ok c:ok").await;
    stage.reaches(job, "FAILED").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("AMQP_URL", "amqp://127.0.0.1:1");
    let id = job.to_string();
    let skip = ["skip", &id, "--reason", "by hand", "--json"];
    let ended = binary.run(&skip).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    says(
        &ended.err,
        &[
            "warning: task 1 of job",
            "is skipped, and that is written",
            "cliquet retry",
        ],
    );
    let told = &objects(&ended.out)[0];
    assert_eq!(
        (&told["outcome"], &told["status"], &told["generation"]),
        (&json!("done"), &json!("PENDING"), &json!(2))
    );
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:PENDING 3:PENDING");
    let binary = Binary::on(&stage, "");
    binary.run(&["retry", &id]).await.done();
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    stage.queues.take(Place::Dead).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_and_a_cancel_are_told_with_who_did_them_and_why() {
    let stage = Stage::with_ladder(&["200ms", "10s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:after:10000,gate:on").await;
    stage.reaches(job, "RETRYING").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LADDER", "200ms, 10s");
    let id = job.to_string();
    let retry = ["retry", &id, "--operator", "olga", "--reason", "mended"];
    binary.run(&retry).await.done();
    stage.script.reached("on", 1).await;
    let cancel = ["cancel", &id, "--operator", "oleg"];
    binary.run(&cancel).await.done();
    stage.reaches(job, "CANCELLED").await;
    let shown = binary.show(job).await;
    let told: Vec<_> = shown["interventions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|done| {
            (
                done["act"].clone(),
                done["operator"].clone(),
                done["reason"].clone(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (json!("retry"), json!("olga"), json!("mended")),
            (json!("cancel"), json!("oleg"), json!(null)),
        ]
    );
    assert_eq!(shown["error"], "cancelled by an operator");
    stage.script.open("on").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_by_handler_error_and_time_and_a_page_after_the_other() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let binary = Binary::on(&stage, "");
    let mut made = Vec::new();
    for steps in ["a:permanent", "a:ok b:permanent", "a:ok"] {
        let job = stage.publish(steps).await;
        let status = if steps == "a:ok" { "SUCCESS" } else { "FAILED" };
        stage.reaches(job, status).await;
        made.push(job.to_string());
    }
    worker.stop().await;
    let listed = async |arguments: &[&str]| {
        let arguments = [&["jobs", "--json"], arguments].concat();
        let ended = binary.run(&arguments).await;
        let told = ended.err.clone();
        let ids: Vec<_> = objects(&ended.done())
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, told)
    };
    for (arguments, expected) in [
        (&["--handler", "b"][..], vec![&made[1]]),
        (&["--error", "NEVER again"], vec![&made[1], &made[0]]),
        (&["--error", "nobody says this"], vec![]),
        (&["--since", "1h"], vec![&made[2], &made[1], &made[0]]),
        (&["--until", "1h"], vec![]),
        (
            &[
                "--since",
                "2020-01-01T00:00:00Z",
                "--until",
                "2021-01-01T00:00:00Z",
            ],
            vec![],
        ),
    ] {
        let (ids, told) = listed(arguments).await;
        assert_eq!(ids.iter().collect::<Vec<_>>(), expected, "{arguments:?}");
        assert!(!told.contains("--after"), "{told}");
    }
    let (ids, told) = listed(&["--limit", "2"]).await;
    assert_eq!(ids, made[1..].iter().rev().cloned().collect::<Vec<_>>());
    let (_, place) = told.trim().split_once("--after ").unwrap();
    let (ids, _) = listed(&["--after", place]).await;
    assert_eq!(ids, made[..1]);
    for wrong in [["--since", "soon"], ["--after", "7"]] {
        binary.run(&["jobs", wrong[0], wrong[1]]).await.failed(2);
    }
}

// topology

#[tokio::test(flavor = "multi_thread")]
async fn topology_declare_makes_what_verify_missed() {
    let queues = Queues::new().await;
    let binary = Binary::with(&queues, "");
    let ended = binary.run(&["topology", "verify", "--json"]).await;
    let states: Vec<_> = objects(&ended.out)
        .iter()
        .map(|queue| queue["state"].clone())
        .collect();
    assert_eq!(states, ["missing"; 4]);
    says(
        &ended.failed(1),
        &["4 of 4 queues are not there; `cliquet topology declare` makes them"],
    );

    let declared = objects(&binary.run(&["topology", "declare", "--json"]).await.done());
    let names: Vec<_> = declared
        .iter()
        .map(|queue| queue["queue"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<_> = queues
        .topology
        .queues()
        .into_iter()
        .map(|queue| queue.name)
        .collect();
    assert_eq!(names, expected);
    binary.run(&["topology", "declare"]).await.done();
    let verified = binary.run(&["topology", "verify"]).await.done();
    for name in names {
        let row = verified
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        says(row.unwrap_or(&verified), &["right", "0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_verify_tells_which_queue_differs_in_the_brokers_words() {
    let queues = Queues::new().await;
    queues.declare().await;
    let rung = queues.rung(0);
    queues.delete(rung).await;
    queues
        .declare_otherwise(
            rung,
            &[("x-queue-type", AMQPValue::LongString("quorum".into()))],
        )
        .await;
    let binary = Binary::with(&queues, "");
    let ended = binary.run(&["topology", "verify", "--json"]).await;
    let wrong: Vec<_> = objects(&ended.out)
        .into_iter()
        .filter(|queue| queue["state"] != "right")
        .collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!(
        (&wrong[0]["queue"], &wrong[0]["state"]),
        (&json!(queues.name(rung)), &json!("wrong"))
    );
    says(
        &ended.failed(1),
        &["inequivalent arg", &queues.name(rung), "delete_queue"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_definitions_are_json_for_import_and_need_no_broker() {
    let queues = Queues::new().await;
    let mut binary = Binary::with(&queues, "");
    let printed = binary.run(&["topology", "definitions"]).await.done();
    let definitions: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        definitions,
        queues.topology.definitions(queues.address.vhost())
    );
    binary.set("AMQP_URL", "amqp://nobody:nothing@127.0.0.1:1/shop");
    let printed = binary
        .run(&["topology", "definitions", "--json"])
        .await
        .done();
    let definitions: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(definitions["queues"][0]["vhost"], "shop");
}

// secrets and pipes

/// A password that must never be seen, in every place and with every mistake that makes a command fail.
#[tokio::test(flavor = "multi_thread")]
async fn no_failing_command_prints_a_password() {
    const PLANTED: &str = "pl4nted";
    let amqp = url::Url::parse(&amqp_url()).unwrap();
    let broker = format!(
        "{}:{}",
        amqp.host_str().unwrap(),
        amqp.port().unwrap_or(5672)
    );
    let id = Uuid::now_v7().to_string();
    let wrong = |template: &str| template.replace("PW", PLANTED);
    let (amqp_urls, database_urls) = (
        [
            &format!("amqp://guest:PW@{broker}"),
            "amqp://guest:PW@127.0.0.1:1",
            "amqp://guest:PW/x@127.0.0.1",
            "amqp://guest:PW#x@127.0.0.1",
            "amqp://guest:1/PW@127.0.0.1",
            "amqp://guest:PW@127.0.0.1:99999",
            "amqp://guest:PW@127.0.0.1/a/b",
            "amqp://guest:PW@127.0.0.1/?nonsense=1&heartbeat=x",
            "http://guest:PW@127.0.0.1",
            "guest:PW@127.0.0.1",
        ],
        [
            "postgres://guest:PW@127.0.0.1:1/none",
            "postgres://guest:PW/x@127.0.0.1/none",
            "postgres://guest:PW#x@127.0.0.1/none",
            "postgres://guest:1/PW@127.0.0.1/none",
            "postgres://guest:1?PW@127.0.0.1/none",
            "postgres://guest@127.0.0.1:1/none?pasword=PW",
            "postgres://guest:PW@127.0.0.1:99999/none",
            "postgres://guest:PW@127.0.0.1/none?sslmode=nonsense",
            "mysql://guest:PW@127.0.0.1/none",
            "guest:PW@127.0.0.1/none",
        ],
    );
    let mut binaries = Vec::new();
    for (variable, urls) in [
        ("AMQP_URL", &amqp_urls[..]),
        ("DATABASE_URL", &database_urls),
    ] {
        for url in urls {
            let mut binary = Binary::bare();
            binary.file("cliquet.toml", "[handlers.a]\nexec = [\"true\"]\n");
            binary.file("job.json", r#"{"kind": "k", "tasks": ["a"]}"#);
            binary.set(variable, &wrong(url));
            binaries.push((variable, url.to_string(), binary));
        }
    }
    let in_file = Binary::bare();
    in_file.file(
        "cliquet.toml",
        &wrong("amqp_url = \"amqp://guest:PW@127.0.0.1:1\" oops\n"),
    );
    binaries.push(("AMQP_URL", "the file".into(), in_file));

    let commands = |variable: &str| match variable {
        "AMQP_URL" => vec![
            vec!["topology", "declare"],
            vec!["topology", "verify"],
            vec!["publish", "job.json"],
        ],
        _ => vec![
            vec!["migrate"],
            vec!["jobs"],
            vec!["show", &id],
            vec!["retry", &id],
            vec!["cancel", &id],
        ],
    };
    let asked = binaries.iter().flat_map(|(variable, url, binary)| {
        commands(variable)
            .into_iter()
            .map(move |command| async move {
                let ended: Ended = binary.run(&command).await;
                let about = format!("{command:?} with {url}: {ended:?}");
                assert!(matches!(ended.code, Some(1 | 2)), "{about}");
                assert!(!ended.err.is_empty(), "{about}");
                for said in [&ended.out, &ended.err] {
                    assert!(!said.contains(PLANTED), "{about}");
                }
            })
    });
    // One after the other they would take long to fail.
    use futures::StreamExt;
    futures::stream::iter(asked)
        .buffer_unordered(8)
        .collect::<Vec<_>>()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_turned_away_prints_no_password() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, "[handlers.a]\nexec = [\"true\"]\n");
    let mut url = url::Url::parse(&amqp_url()).unwrap();
    url.set_password(Some("pl4nted")).unwrap();
    binary.set("AMQP_URL", url.as_str());
    binary.set(
        "DATABASE_URL",
        &format!("{}?pasword=pl4nted", stage.database),
    );
    let told = binary.run(&["work"]).await.failed(1);
    says(&told, &["error: RabbitMQ at ", "refuses the connection"]);
    assert!(!told.contains("pl4nted"), "{told}");
    let database = url::Url::parse(&stage.database).unwrap();
    if let Some(password) = database.password() {
        assert!(!told.contains(password), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_is_closed_is_no_panic() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent").await;
    stage.reaches(job, "FAILED").await;
    worker.stop().await;
    let binary = Binary::on(&stage, "");
    let id = job.to_string();
    for (arguments, code) in [
        (&["jobs"][..], 0),
        (&["jobs", "--json"], 0),
        (&["show", &id], 0),
        (&["show", "--watch", &id], 1),
        (&["topology", "verify"], 0),
        (&["topology", "definitions"], 0),
        (&["migrate"], 0),
        (&["--help"], 0),
        (&["show", "17"], 2),
        (&["retry", &Uuid::now_v7().to_string()], 1),
    ] {
        let mut command = binary.command(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
        assert_eq!(ended.await.unwrap().code(), Some(code), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_after_the_first_line_loses_no_job() {
    let queues = Queues::new().await;
    queues.declare().await;
    let binary = Binary::with(&queues, "");
    let text: String = (0..300)
        .map(|_| String::from_utf8(body(Uuid::now_v7(), "a")).unwrap() + "\n")
        .collect();
    binary.file("jobs.jsonl", &text);
    let mut child = tokio::process::Command::from(binary.command(&["publish", "jobs.jsonl"]))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    first.parse::<Uuid>().unwrap();
    drop(lines);
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    assert_eq!(queues.depth(Place::Work).await, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_command_prints_the_next_one_reads() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let worker = stage.worker();
    let mut jobs = BTreeSet::new();
    for _ in 0..2 {
        let job = stage.publish("a:after:3600000").await;
        stage.reaches(job, "RETRYING").await;
        jobs.insert(job.to_string());
    }
    let binary = Binary::on(&stage, "");
    let listed = binary
        .run(&["jobs", "--status", "RETRYING", "--json"])
        .await
        .done();
    let ids: Vec<_> = objects(&listed)
        .iter()
        .map(|job| job["id"].as_str().unwrap().to_owned())
        .collect();
    let mut cancel = vec!["cancel"];
    cancel.extend(ids.iter().map(String::as_str));
    let printed = binary.run(&cancel).await.done();
    let cancelled: BTreeSet<_> = printed.lines().map(str::to_owned).collect();
    assert_eq!(cancelled, jobs);
    worker.stop().await;
}
