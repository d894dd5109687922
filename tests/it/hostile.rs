//! Input that means harm, or looks as if: whatever a queue can hold and a program can print, to a real worker process. Every
//! message ends parked with its reason or as a job that failed with one, and the same process goes on with the next.

use cliquet::{
    broker::Place,
    job::{JobMessage, MAX_BODY_BYTES},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    stage::{Stage, WorkerProcess, body},
};

const CASE: &str = "case";

/// `ok` does what it is asked; `say` prints the file of the task's input, and `fail` fails with it.
const HANDLERS: &str = r#"
[handlers.ok]
exec = ["true"]
[handlers.say]
exec = ["sh", "-c", 'cat -- "$(sed "s/.*\"input\":\"\([a-z0-9]*\)\".*/\1/")"']
[handlers.fail]
exec = ["sh", "-c", 'cat -- "$(sed "s/.*\"input\":\"\([a-z0-9]*\)\".*/\1/")" >&2; exit 65']
"#;

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default().with_headers(table)
}

fn text(properties: &BasicProperties, name: &str) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => format!("{other:?}"),
    }
}

/// A message with these bytes where `PAYLOAD` stands.
fn with_payload(payload: &[u8]) -> Vec<u8> {
    let id = Uuid::now_v7();
    let mut body =
        format!(r#"{{"id": "{id}", "kind": "k", "tasks": ["ok"], "payload": "#).into_bytes();
    body.extend_from_slice(payload);
    body.push(b'}');
    body
}

fn with_tasks(tasks: &str) -> Vec<u8> {
    let id = Uuid::now_v7();
    format!(r#"{{"id": "{id}", "kind": "k", "tasks": {tasks}}}"#).into_bytes()
}

fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

/// Bodies that are no job, the code and a part of the sentence that each is parked with.
fn bad_bodies() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let mut cut_short = with_payload(b"\"\xe2\x82");
    cut_short.truncate(cut_short.len() - 1);
    let tasks = |count: usize| format!("[{}]", vec!["\"ok\""; count].join(","));
    vec![
        (b"".to_vec(), "not_json", "EOF"),
        (b"\0\0\0\0".to_vec(), "not_json", "line 1 column 1"),
        ("\u{feff}{}".into(), "not_json", "line 1 column 1"),
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "not_utf8", "byte 1"),
        (cut_short, "not_utf8", "UTF-8"),
        (with_payload(b"\"\xc0\xaf\""), "not_utf8", "UTF-8"),
        (b"[[1], 2]".to_vec(), "not_an_object", "an object"),
        ("[".repeat(500_000).into_bytes(), "wrong_shape", "expected"),
        ("{\"a\":".repeat(150_000).into_bytes(), "not_json", "EOF"),
        (
            with_payload(nested(128).as_bytes()),
            "not_json",
            "recursion limit",
        ),
        (
            with_payload(nested(400_000).as_bytes()),
            "not_json",
            "recursion limit",
        ),
        (
            with_tasks(&format!(
                r#"[{{"handler": "ok", "input": {}}}]"#,
                nested(10_000)
            )),
            "not_json",
            "tasks[0].input",
        ),
        (with_payload(b"1e400"), "not_json", "out of range"),
        (
            with_payload("9".repeat(1_000_000).as_bytes()),
            "not_json",
            "out of range",
        ),
        (with_payload(b"NaN"), "not_json", "expected"),
        (with_payload(b"+1"), "not_json", "expected"),
        (with_payload(br#""\ud800""#), "not_json", "payload"),
        (
            with_payload(br#"{"a": "\udc00\ud800"}"#),
            "not_json",
            "payload",
        ),
        (
            with_payload(br#"{"a": ["\u0000"]}"#),
            "nul",
            "`payload.a[0]`",
        ),
        (with_payload(br#"{"\u0000": 1}"#), "nul", "`payload`"),
        (with_payload(b"\"\0\""), "not_json", "control character"),
        (
            with_payload(b"1, \"id\": \"x\""),
            "wrong_shape",
            "duplicate field `id`",
        ),
        (
            with_payload(b"1, \"payload\": 2"),
            "wrong_shape",
            "duplicate field `payload`",
        ),
        (
            with_payload(b"1} {"),
            "not_json",
            "goes on after the JSON object",
        ),
        (with_tasks(r#"["\ud800"]"#), "not_json", "hex escape"),
        (with_tasks(r#"["a\u0000b"]"#), "nul", "`tasks[0]"),
        (with_tasks(r#"["a\nb"]"#), "control_character", "`tasks[0]"),
        (
            with_tasks(r#"[{"handler": "ok", "handler": "say"}]"#),
            "wrong_shape",
            "duplicate field `handler`",
        ),
        (
            with_tasks(r#"[{"handler": "ok", "max_attempts": 1e30}]"#),
            "wrong_shape",
            "tasks[0]",
        ),
        (
            with_tasks(r#"[{"handler": "ok", "max_attempts": -1}]"#),
            "wrong_shape",
            "tasks[0]",
        ),
        (
            with_tasks(r#"[{"handler": "ok", "timeout_seconds": 1e300}]"#),
            "out_of_range",
            "timeout_seconds",
        ),
        (
            with_tasks(r#"[{"handler": ["sh", "-c", "reboot"]}]"#),
            "wrong_shape",
            "handler",
        ),
        (with_tasks(r#"{"0": "ok"}"#), "wrong_shape", "`tasks`"),
        // A sentence that quotes them does not quote all of it.
        (
            with_tasks(&format!("{:?}", "x".repeat(1_000_000))),
            "wrong_shape",
            "expected a sequence",
        ),
        (
            with_payload(format!("{{\"{}\": \"\\u0000\"}}", "k".repeat(1_000_000)).as_bytes()),
            "nul",
            "holds a NUL",
        ),
        (with_tasks("[]"), "no_tasks", "no tasks"),
        (with_tasks(&tasks(10_001)), "too_many_tasks", "10001"),
        (
            with_payload(format!("\"{}\"", "x".repeat(16 * 1024 * 1024 - 200)).as_bytes()),
            "too_large",
            "limit is 1048576",
        ),
    ]
}

/// Headers of cliquet's own as no worker writes them, and a part of the sentence.
fn bad_headers() -> Vec<(&'static str, AMQPValue, &'static str)> {
    let long = |text: &str| AMQPValue::LongString(text.into());
    let mut table = FieldTable::default();
    table.insert("a".into(), AMQPValue::Boolean(true));
    vec![
        ("cliquet-generation", long("3"), "the text \"3\""),
        ("cliquet-generation", long(""), "the text"),
        (
            "cliquet-generation",
            AMQPValue::LongString(vec![0, 159, 146, 150].into()),
            "the text",
        ),
        ("cliquet-generation", AMQPValue::LongLongInt(-1), "is -1"),
        (
            "cliquet-generation",
            AMQPValue::LongLongInt(i64::MIN),
            "-9223372036854775808",
        ),
        (
            "cliquet-generation",
            AMQPValue::LongLongInt(i64::MAX),
            "9223372036854775807",
        ),
        ("cliquet-generation", AMQPValue::Double(-0.5), "is -0.5"),
        ("cliquet-generation", AMQPValue::Boolean(true), "is true"),
        ("cliquet-generation", AMQPValue::Void, "Void"),
        (
            "cliquet-generation",
            AMQPValue::FieldTable(table),
            "FieldTable",
        ),
        ("cliquet-hops", AMQPValue::LongInt(-7), "is -7"),
        (
            "cliquet-hops",
            AMQPValue::LongLongInt(i64::MAX),
            "9223372036854775807",
        ),
        ("cliquet-hops", long("many"), "the text \"many\""),
        ("cliquet-redelivered", long("true"), "the text \"true\""),
        ("cliquet-redelivered", AMQPValue::LongInt(1), "is 1"),
    ]
}

/// A good job runs on this very process, which was never anything but well.
async fn goes_on(stage: &Stage, binary: &Binary, worker: &mut WorkerProcess) {
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["ok", "ok"]}"#)
        .await;
    stage.reaches(job, "SUCCESS").await;
    stage.queues_are_empty().await;
    assert!(!worker.try_ended(), "the worker's process has ended");
    let log = binary.written("log").await;
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_no_job_is_parked_with_what_is_wrong_and_the_worker_goes_on() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLERS);
    let mut worker = binary.work();
    let mut cases: Vec<_> = bad_bodies()
        .into_iter()
        .map(|(body, reason, words)| (body, BasicProperties::default(), reason, words))
        .collect();
    for (name, value, words) in bad_headers() {
        let good = with_tasks("[\"ok\"]");
        cases.push((good, headers(&[(name, value)]), "bad_header", words));
    }
    let no_id = || br#"{"kind": "k", "tasks": ["ok"]}"#.to_vec();
    for (id, reason, words) in [
        (None, "no_id", "no id"),
        (Some("../../etc/passwd"), "bad_id", "is not a UUID"),
        (Some("' OR 1=1 --"), "bad_id", "is not a UUID"),
    ] {
        let properties = BasicProperties::default();
        let properties = match id {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        cases.push((no_id(), properties, reason, words));
    }

    for (number, (body, properties, ..)) in cases.iter().enumerate() {
        let mut table = properties.headers().clone().unwrap_or_default();
        table.insert(
            CASE.into(),
            AMQPValue::LongString(number.to_string().into()),
        );
        stage
            .queues
            .publish(body, properties.clone().with_headers(table))
            .await;
    }
    let mut left: Vec<_> = (0..cases.len()).collect();
    while !left.is_empty() {
        let (parked, properties) = stage.queues.take(Place::Dead).await;
        let number: usize = text(&properties, CASE).parse().unwrap();
        left.retain(|case| *case != number);
        let (body, _, reason, words) = &cases[number];
        let shown = String::from_utf8_lossy(&body[..body.len().min(150)]);
        let (said, error) = (
            text(&properties, "cliquet-reason"),
            text(&properties, "cliquet-error"),
        );
        assert_eq!(said, *reason, "{shown}: {error}");
        assert!(
            error.contains(words),
            "{shown}: {error:?} does not say {words:?}"
        );
        assert!(parked == *body, "{shown}: its body was changed");
        assert!(error.len() < 2_100, "{shown}: {} bytes", error.len());
    }
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM cliquet.jobs")
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert_eq!(known, 0, "a message that is no job became one");
    for line in binary.written("log").await.lines() {
        let begin = line.chars().take(200).collect::<String>();
        assert!(line.len() < 5_000, "{} bytes: {begin}", line.len());
    }
    goes_on(&stage, &binary, &mut worker).await;
}

/// Odd, and a job all the same: it runs as it is, and everybody can read it.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_harmful_is_run_as_it_is() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLERS);
    let mut worker = binary.work();
    let many = format!("[{}]", vec!["\"ok\""; 30].join(","));
    let deep = nested(126);
    let unicode = "\"\\ud83d\\ude00 \u{202e}\u{7f}\u{ffff} ';DROP TABLE cliquet.jobs;--\"";
    for (payload, tasks) in [
        (deep.as_str(), "[\"ok\"]"),
        (
            "{\"a\": 1, \"a\": 2, \"\": {\"__proto__\": null}}",
            "[\"ok\"]",
        ),
        (
            "[1e-400, 1e308, 123456789012345678901234567890, -0.0]",
            "[\"ok\"]",
        ),
        (
            unicode,
            "[{\"handler\": \"ok\", \"label\": \"';DROP TABLE cliquet.tasks;-- \u{202e}%s%n{}\"}]",
        ),
        ("null", many.as_str()),
    ] {
        let id = Uuid::now_v7();
        let message = format!(
            "{{\"id\": \"{id}\", \"kind\": \"$(reboot)\", \"payload\": {payload}, \"tasks\": {tasks}, \"epoch\": 99, \"status\": \"SUCCESS\"}}"
        );
        stage
            .queues
            .publish(message.as_bytes(), BasicProperties::default())
            .await;
        stage.reaches(id, "SUCCESS").await;
        assert_eq!(
            stage
                .number("SELECT epoch FROM cliquet.jobs WHERE id = $1", id)
                .await,
            1
        );
        let stored: String =
            sqlx::query_scalar("SELECT payload::text FROM cliquet.jobs WHERE id = $1")
                .bind(id)
                .fetch_one(&stage.pool)
                .await
                .unwrap();
        assert_eq!(stored, payload);
        binary.run(&["show", &id.to_string()]).await.done();
        binary.show(id).await;
    }
    goes_on(&stage, &binary, &mut worker).await;
}

/// The job with this one task, which is tried once; the sentence it ends with.
async fn given_up(stage: &Stage, handler: &str, input: &Value) -> String {
    let id = Uuid::now_v7();
    let message = json!({"id": id, "kind": "k", "tasks": [{"handler": handler, "input": input, "max_attempts": 1}]});
    stage
        .queues
        .publish(message.to_string().as_bytes(), BasicProperties::default())
        .await;
    stage.reaches(id, "FAILED").await;
    let (_, properties) = stage.queues.take(Place::Dead).await;
    let error: String = sqlx::query_scalar("SELECT error FROM cliquet.jobs WHERE id = $1")
        .bind(id)
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    let parked = text(&properties, "cliquet-error");
    let shared = error.floor_char_boundary(1_000);
    assert!(
        parked.starts_with(&error[..shared]),
        "{parked} is not {error}"
    );
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_name_runs_nothing_that_is_not_configured() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLERS);
    let trap = binary.file("trap", "#!/bin/sh\ntouch sprung\n");
    let mut permissions = std::fs::metadata(&trap).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&trap, permissions).unwrap();
    let mut worker = binary.work();
    for name in [
        trap.to_str()
            .unwrap()
            .chars()
            .rev()
            .take(190)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<String>()
            .as_str(),
        "./trap",
        "trap",
        "ok/../trap",
        "../../../../bin/sh",
        "sh -c 'touch sprung'",
        "$(touch sprung)",
        "ok;./trap",
        "ok ",
        "OK",
    ] {
        let error = given_up(&stage, name, &json!("touch sprung")).await;
        assert!(
            error.contains("no handler named") && error.contains(name),
            "{name:?}: {error}"
        );
    }
    goes_on(&stage, &binary, &mut worker).await;
    assert!(
        !trap.with_file_name("sprung").exists(),
        "a handler's name was run"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_postgres_or_a_reader_cannot_take_fails_its_job_with_the_cause() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLERS);
    let mut worker = binary.work();
    for (number, (printed, words)) in [
        (&br#"{"a": ["\u0000"]}"#[..], "`result.a[0]` holds a NUL"),
        (br#"{"\u0000": 1}"#, "holds a NUL"),
        (br#""\ud800""#, "`result` cannot be read"),
        (br#""\udc00\ud800 ""#, "`result` cannot be read"),
        (b"\"\0\"", "not JSON"),
        (b"\"\xff\"", "not JSON"),
        (b"NaN", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"1e400", "out of range"),
        (b"[-1E+9999]", "out of range"),
        ("9".repeat(400).as_bytes(), "out of range"),
        (nested(128).as_bytes(), "recursion limit"),
        (nested(5_000).as_bytes(), "recursion limit"),
        (nested(500_000).as_bytes(), "recursion limit"),
        ("{\"a\":".repeat(200_000).as_bytes(), "not JSON"),
        (
            "x".repeat(2 * 1024 * 1024).as_bytes(),
            "limit of 1048576 bytes",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let file = format!("f{number}");
        std::fs::write(binary.file(&file, ""), printed).unwrap();
        let error = given_up(&stage, "say", &json!(file)).await;
        let shown = String::from_utf8_lossy(&printed[..printed.len().min(60)]);
        assert!(
            error.contains(words),
            "{shown}: {error:?} does not say {words:?}"
        );
    }
    for (number, (complaint, words)) in [
        (&b"a\0b"[..], "a\u{fffd}b"),
        (b"caf\xe9 \xff\xfe", "caf\u{fffd}"),
        (b"\xed\xa0\x80", "\u{fffd}"),
        ("\u{1b}[31m red \u{202e}".as_bytes(), "red"),
        (&[b'x'; 3_000_000], "xxx"),
        (b"", "exit code 65"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = format!("g{number}");
        std::fs::write(binary.file(&file, ""), complaint).unwrap();
        let error = given_up(&stage, "fail", &json!(file)).await;
        assert!(error.contains(words), "{error:?} does not say {words:?}");
        assert!(error.len() < 10_000, "{} bytes", error.len());
    }
    goes_on(&stage, &binary, &mut worker).await;
}

/// All that the ledger says of a job, in one text.
async fn known(stage: &Stage, job: Uuid) -> String {
    sqlx::query(
        "SELECT row_to_json(job)::text || (SELECT json_agg(task ORDER BY position)::text FROM cliquet.tasks task WHERE job_id = $1)
           FROM cliquet.jobs job WHERE id = $1",
    )
    .bind(job)
    .fetch_one(&stage.pool)
    .await
    .unwrap()
    .get(0)
}

fn forged(generation: i64) -> BasicProperties {
    headers(&[
        ("cliquet-generation", AMQPValue::LongLongInt(generation)),
        ("cliquet-hops", AMQPValue::LongLongInt(u32::MAX.into())),
        ("cliquet-redelivered", AMQPValue::Boolean(true)),
        ("cliquet-epoch", AMQPValue::LongLongInt(i64::MAX)),
        ("cliquet-attempts", AMQPValue::LongLongInt(0)),
        ("x-delivery-count", AMQPValue::LongLongInt(999)),
    ])
}

const GENERATIONS: [i64; 4] = [2, 77, 999_999_999, 1_000_000_000];

/// A job that waits, one that was given up, one that runs and one that is done meet copies of generations that no worker
/// ever sent, with every other mark forged too.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_foreign_generation_or_epoch_changes_nothing() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let mut config = stage.config();
    config.retry.initial = std::time::Duration::from_secs(3600);
    config.retry.max = std::time::Duration::from_secs(3600);
    let worker = stage.worker_with(config);

    let waiting = "a:ok b:fail";
    let job = stage.publish(waiting).await;
    stage.reaches(job, "RETRYING").await;
    unmoved(&stage, job, waiting, "foreign_generation").await;

    let hopeless = "a:permanent";
    let job = stage.publish(hopeless).await;
    stage.reaches(job, "FAILED").await;
    stage.queues.take(Place::Dead).await;
    unmoved(&stage, job, hopeless, "foreign_generation").await;

    let done = "a:ok";
    let job = stage.publish(done).await;
    stage.reaches(job, "SUCCESS").await;
    unmoved(&stage, job, done, "").await;
    assert_eq!(stage.script.positions(job).await, [1]);
    worker.stop().await;
}

/// Copies of all generations change nothing of a job that nobody holds; they are parked with the reason, or just taken away
/// when the job is over.
async fn unmoved(stage: &Stage, job: Uuid, scenario: &str, reason: &str) {
    // Nobody waits for this when the copy is sent.
    eventually("its copy is known to be sent", async || {
        let owed = "SELECT generation - sent FROM cliquet.jobs WHERE id = $1";
        (stage.number(owed, job).await == 0).then_some(())
    })
    .await;
    let before = known(stage, job).await;
    for generation in GENERATIONS {
        stage
            .queues
            .publish(&body(job, scenario), forged(generation))
            .await;
        if !reason.is_empty() {
            let (parked, properties) = stage.queues.take(Place::Dead).await;
            assert_eq!(parked, body(job, scenario));
            assert_eq!(text(&properties, "cliquet-reason"), reason);
            let error = text(&properties, "cliquet-error");
            assert!(
                error.contains(&format!("generation {generation} "))
                    && error.contains("cliquet retry"),
                "{error}"
            );
        }
    }
    eventually("the copies are gone", async || {
        (stage.queues.depth(Place::Work).await == 0 && stage.queues.depth(Place::Dead).await == 0)
            .then_some(())
    })
    .await;
    assert_eq!(known(stage, job).await, before);
}

/// Its holder is alive, whatever the copy says: nobody else begins, and its own message ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_copy_of_a_running_job_takes_it_from_nobody() {
    let stage = Stage::new().await;
    let (ada, bob) = (stage.worker(), stage.worker());
    let scenario = "a:gate:g b:ok";
    let job = stage.publish(scenario).await;
    stage.script.reached("g", 1).await;
    let before = known(&stage, job).await;
    for generation in [0, 1, 1_000_000_000] {
        for _ in 0..3 {
            stage
                .queues
                .publish(&body(job, scenario), forged(generation))
                .await;
        }
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(known(&stage, job).await, before);
    stage.script.open("g").await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2]);
    assert_eq!(
        stage
            .number("SELECT generation FROM cliquet.jobs WHERE id = $1", job)
            .await,
        0
    );
    stage.queues_are_empty().await;
    ada.stop().await;
    bob.stop().await;
}

/// A job whose very first message claims to be the last possible copy of itself still fails, waits, and ends as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_begins_at_an_enormous_generation_is_retried_as_any_other() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let (job, scenario) = (Uuid::now_v7(), "a:fail,fail,ok b:ok");
    stage
        .queues
        .publish(&body(job, scenario), forged(1_000_000_000))
        .await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        stage
            .number("SELECT generation FROM cliquet.jobs WHERE id = $1", job)
            .await,
        1_000_002
    );
    assert_eq!(stage.queues.depth(Place::Dead).await, 0);
    stage.queues_are_empty().await;
    worker.stop().await;
}

/// Bodies of the largest size that are as dear to read as can be, each in a time that nobody notices. What grows faster than
/// the body takes minutes here; the bound is far from what a busy machine needs.
#[test]
fn a_body_at_its_limits_is_read_in_a_bounded_time() {
    for (name, body) in dear_bodies() {
        assert!(body.len() <= MAX_BODY_BYTES, "{name}: {}", body.len());
        let (tell, told) = std::sync::mpsc::channel();
        let began = std::time::Instant::now();
        std::thread::spawn(move || tell.send(JobMessage::decode(&body, None, None).map(drop)));
        let read = told.recv_timeout(std::time::Duration::from_secs(10));
        println!("{name}: {:?}", began.elapsed());
        let read = read.unwrap_or_else(|_| panic!("{name}: not read within 10 s"));
        assert_eq!(read, Ok(()), "{name}");
    }
}

/// Each is a job.
fn dear_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let half = MAX_BODY_BYTES / 2 - 200;
    let tasks = |task: &str| format!("[{}]", vec![task; 10_000].join(","));
    let numbers = vec!["1"; half / 2].join(",");
    let long_keys = (0..1_000).map(|n| format!("\"{}{n}\":{n}", "k".repeat(1_000)));
    let short_keys = (0..90_000).map(|n| format!("\"{n}\":1"));
    let object = |keys: Vec<String>| format!("{{{}}}", keys.join(","));
    // As deep as may be, with a long key on the way.
    let deep = format!(
        "{}{{\"{}\":[{numbers}]}}{}",
        "[".repeat(124),
        "k".repeat(half - 400),
        "]".repeat(124)
    );
    vec![
        (
            "10,000 tasks",
            with_tasks(&tasks(
                r#"{"handler":"ok","input":[[[["\u00e9"]]]],"later":[1,2,{}],"max_attempts":7}"#,
            )),
        ),
        (
            "many values below a long key",
            with_payload(format!("{{\"{}\":[{numbers}]}}", "k".repeat(half)).as_bytes()),
        ),
        (
            "many values deep below a long key",
            with_payload(deep.as_bytes()),
        ),
        (
            "long keys that differ at their end",
            with_payload(object(long_keys.collect()).as_bytes()),
        ),
        (
            "many keys",
            with_payload(object(short_keys.collect()).as_bytes()),
        ),
        (
            "one key again and again",
            with_payload(object(vec!["\"k\":1".into(); 170_000]).as_bytes()),
        ),
        (
            "a long fraction",
            with_payload(format!("0.{}", "1".repeat(2 * half)).as_bytes()),
        ),
        (
            "escapes",
            with_payload(format!("\"{}\"", "\\u00e9".repeat(half / 3)).as_bytes()),
        ),
        (
            "unknown fields",
            format!(
                r#"{{"id":"{}","kind":"k",{}"tasks":["ok"]}}"#,
                Uuid::now_v7(),
                (0..90_000)
                    .map(|n| format!("\"{n}\":1,"))
                    .collect::<String>()
            )
            .into_bytes(),
        ),
    ]
}
