//! Handlers in any language, run by the binary itself: `cliquet work` from its first log line to its exit status.

use std::fs;

use cliquet::broker::Place;
use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};

use crate::support::{binary::Binary, eventually, stage::Stage};

/// A handler that is one line of shell.
fn sh(name: &str, script: &str, more: &str) -> String {
    format!("[handlers.{name}]\nexec = [\"sh\", \"-c\", '''{script}''']\n{more}\n")
}

fn header(properties: &BasicProperties, name: &str) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => format!("{other:?}"),
    }
}

/// Whether a process runs; a zombie, which waits for a parent that may never look, does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

const LISTING: &str = r#"
import json, sys
document = json.load(sys.stdin)
task, price = document["task"], document["job"]["payload"]["price"]
with open("calls", "a") as calls:
    calls.write(f"{task['position']}.{task['attempt']} {task['idempotency_key']}\n")
if task["input"] == "flaky" and task["attempt"] <= 2:
    sys.exit(f"the store answered 503 to {task['label']}")
print(json.dumps({"price": price + task["position"], "before": [done["result"]["price"] for done in document["results"]]}))
"#;

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_twice_is_resumed_at_its_task_and_given_the_results_before_it() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        "[handlers.step]\nexec = [\"python3\", \"listing.py\"]",
    );
    binary.file("listing.py", LISTING);
    let mut worker = binary.work();
    let task = |n: u32, input: &str| json!({"handler": "step", "label": format!("Step {n}/5"), "input": input});
    let tasks: Vec<_> = (1..=5)
        .map(|n| task(n, if n == 3 { "flaky" } else { "" }))
        .collect();
    let message = json!({"kind": "shop.publish", "payload": {"price": 40}, "tasks": tasks});
    let job = binary.publish(&message.to_string()).await;
    stage.reaches(job, "SUCCESS").await;

    let calls: Vec<_> = [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1), (5, 1)]
        .map(|(position, attempt)| format!("{position}.{attempt} {job}:{position}"))
        .into();
    assert_eq!(
        binary.written("calls").await.lines().collect::<Vec<_>>(),
        calls
    );

    let shown = binary.show(job).await;
    assert_eq!(
        keys(&shown),
        [
            "attempts",
            "created_at",
            "done",
            "epoch",
            "error",
            "failures",
            "finished_at",
            "generation",
            "holder",
            "id",
            "interventions",
            "kind",
            "next_attempt_at",
            "payload",
            "queue",
            "started_at",
            "status",
            "tasks",
            "total"
        ]
    );
    assert_eq!(
        (&shown["status"], &shown["done"], &shown["total"]),
        (&json!("SUCCESS"), &json!(5), &json!(5))
    );
    assert_eq!(
        (&shown["payload"], &shown["attempts"]),
        (&json!({"price": 40}), &json!(3))
    );
    let task = &shown["tasks"][4];
    assert_eq!(
        keys(task),
        [
            "attempt",
            "crashes",
            "error",
            "finished_at",
            "handler",
            "input",
            "label",
            "position",
            "result",
            "started_at",
            "status"
        ]
    );
    assert_eq!(
        task["result"],
        json!({"price": 45, "before": [41, 42, 43, 44]})
    );
    let failures = shown["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 2);
    assert_eq!(
        keys(&failures[1]),
        [
            "attempt",
            "epoch",
            "error",
            "failed_at",
            "position",
            "started_at",
            "worker"
        ]
    );
    assert_eq!(
        (&failures[1]["position"], &failures[1]["attempt"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(failures[1]["error"], "the store answered 503 to Step 3/5");

    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    stage.queues_are_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_program_end_and_leaves_with_status_0() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        &sh(
            "slow",
            "echo $$ >began; while test ! -e go; do sleep 0.02; done; echo '\"in time\"'",
            "",
        ),
    );
    let mut worker = binary.work();
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["slow", "slow"]}"#)
        .await;
    binary.written("began").await;
    worker.signal("TERM");
    eventually("the worker says that it was asked to stop", async || {
        binary
            .written("log")
            .await
            .contains("asked to stop")
            .then_some(())
    })
    .await;
    binary.file("go", "");
    assert_eq!(worker.ended().await, Some(0));
    let shown = binary.show(job).await;
    assert_eq!(shown["tasks"][0]["result"], "in time");
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:PENDING");
    assert_eq!(shown["failures"], json!([]), "stopping is nobody's failure");
    // The rest of the job was handed back for another worker.
    let mut other = binary.work();
    stage.reaches(job, "SUCCESS").await;
    other.signal("INT");
    assert_eq!(other.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_65_parks_the_job_at_once() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        &sh(
            "picky",
            "echo called >>calls; echo 'no such product' >&2; exit 65",
            "",
        ),
    );
    let _worker = binary.work();
    let job = binary.publish(r#"{"kind": "k", "tasks": ["picky"]}"#).await;
    stage.reaches(job, "FAILED").await;
    let (_, properties) = stage.queues.take(Place::Dead).await;
    assert_eq!(header(&properties, "cliquet-reason"), "permanent");
    assert_eq!(header(&properties, "cliquet-error"), "no such product");
    assert_eq!(binary.written("calls").await, "called\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_over_its_time_limit_ends_with_its_children() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        &sh(
            "endless",
            "trap '' TERM; sleep 600 & echo $! >child; echo $$ >program; wait",
            "timeout = \"5s\"\nmax_attempts = 1",
        ),
    );
    let _worker = binary.work();
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["endless"]}"#)
        .await;
    let (program, child) = (
        binary.written("program").await,
        binary.written("child").await,
    );
    assert!(runs(&program) && runs(&child));
    stage.reaches(job, "FAILED").await;
    eventually("program and child are gone", async || {
        (!runs(&program) && !runs(&child)).then_some(())
    })
    .await;
    assert_eq!(
        binary.show(job).await["error"],
        "the attempt exceeded its time limit of 5s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_tried_again_with_a_sentence() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        "[handlers.gone]\nexec = [\"./not-yet\"]\nmax_attempts = 30\n",
    );
    let _worker = binary.work();
    let job = binary.publish(r#"{"kind": "k", "tasks": ["gone"]}"#).await;
    stage.reaches(job, "RETRYING").await;
    let error = binary.show(job).await["failures"][0]["error"].clone();
    assert!(
        error.as_str().unwrap().starts_with(
            "cannot start `./not-yet`, as seen from the worker's directory: there is no such file"
        ),
        "{error}"
    );
    // A deployment brings it.
    let program = binary.file("coming", "#!/bin/sh\necho 7\n");
    fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    fs::rename(&program, program.with_file_name("not-yet")).unwrap();
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(binary.show(job).await["tasks"][0]["result"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_handler_no_worker_has_says_which_there_are() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, &sh("upload", "true", ""));
    let _worker = binary.work();
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["uplaod"]}"#)
        .await;
    let error = eventually("the task has failed", async || {
        let found: Option<String> =
            sqlx::query_scalar("SELECT error FROM cliquet.failures WHERE job_id = $1 LIMIT 1")
                .bind(job)
                .fetch_optional(&stage.pool)
                .await
                .unwrap();
        found
    })
    .await;
    assert!(
        error.contains("uplaod") && error.contains("upload"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_job_ends_its_program_and_the_children_of_it() {
    let stage = Stage::new().await;
    let binary = Binary::on(
        &stage,
        &sh(
            "endless",
            "sleep 600 & echo $! >child; echo $$ >program; wait",
            "",
        ),
    );
    let _worker = binary.work();
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["endless"]}"#)
        .await;
    let (program, child) = (
        binary.written("program").await,
        binary.written("child").await,
    );
    binary.run(&["cancel", &job.to_string()]).await.done();
    // The next heartbeat tells the worker.
    eventually("program and child are gone", async || {
        (!runs(&program) && !runs(&child)).then_some(())
    })
    .await;
    stage.queues_are_empty().await;
    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_given_a_stated_list_of_variables_and_no_password() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(
        &stage,
        "[handlers.look]\nexec = [\"cp\", \"/proc/self/environ\", \"seen\"]\nenv = [\"IMAGE_STORE\", \"NOT_SET\"]\n",
    );
    binary.set("IMAGE_STORE", "https://images.example");
    binary.set("IMAGE_STORE_TOKEN", "pl4nted");
    binary.set("PGPASSWORD", "pl4nted");
    let mut worker = binary.work();
    let job = binary.publish(r#"{"kind": "k", "tasks": ["look"]}"#).await;
    stage.reaches(job, "SUCCESS").await;
    let seen = binary.written("seen").await;
    let mut names: Vec<_> = seen
        .split_terminator('\0')
        .map(|variable| variable.split_once('=').unwrap().0)
        .filter(|name| *name != "HOME")
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "CLIQUET_IDEMPOTENCY_KEY",
            "CLIQUET_JOB_ID",
            "CLIQUET_JOB_KIND",
            "CLIQUET_TASK_ATTEMPT",
            "CLIQUET_TASK_POSITION",
            "IMAGE_STORE",
            "PATH"
        ]
    );
    assert!(
        seen.contains(&format!("CLIQUET_IDEMPOTENCY_KEY={job}:1\0")),
        "{seen:?}"
    );

    worker.signal("TERM");
    worker.ended().await;
    let password = url::Url::parse(&stage.database).unwrap();
    let password = password.password().unwrap_or("pl4nted");
    let log = binary.written("log").await;
    assert!(!log.contains(password), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_one_json_object_a_line_when_asked() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, &sh("a", "true", ""));
    let mut worker = binary.work_with(&["--json"]);
    stage
        .queues
        .publish(b"nonsense", BasicProperties::default())
        .await;
    stage.queues.take(Place::Dead).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    let log = binary.written("log").await;
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["level"] == "WARN" && line["reason"] == "not_json"),
        "{log}"
    );
}
