use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::timeout};
use uuid::Uuid;

use super::*;
use crate::{
    job::JobMessage,
    ledger::HandlerTransaction,
    task::{JobInHand, WhatNext},
};

const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";
/// Far longer than any of these programs needs, far shorter than the 300 s that the long ones would sleep.
const LONG: Duration = Duration::from_secs(20);

/// The second task of a job, at its third attempt, with this result of the first.
fn task_after(result: Box<RawValue>) -> TaskContext {
    let body = json!({
        "id": ID, "kind": "shop.publish", "payload": {"product_id": 42},
        "tasks": ["validate", {"handler": "upload", "label": "Upload image 1/5", "input": {"index": 1}}],
    });
    let message = JobMessage::decode(body.to_string().as_bytes(), None, None).unwrap();
    let results = vec![TaskResult {
        position: 1,
        handler: "validate".into(),
        result,
    }];
    TaskContext {
        job: JobInHand::new(message.into(), results),
        position: 2,
        attempt: 3,
        state: Default::default(),
        cancellation: CancellationToken::new(),
        transaction: HandlerTransaction::nowhere(),
    }
}

fn task() -> TaskContext {
    task_after(null())
}

fn exec(command: &[&str]) -> Exec {
    Exec::new(command.iter().map(|part| part.to_string()).collect()).unwrap()
}

fn sh(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

async fn run(exec: &Exec, task: TaskContext) -> TaskOutcome {
    timeout(LONG, exec.run(task)).await.expect("it hangs")
}

async fn result(exec: &Exec) -> Value {
    let result = run(exec, task()).await.expect("it failed");
    serde_json::from_str(result.get()).unwrap()
}

async fn failure(exec: &Exec) -> (WhatNext, String) {
    let error = run(exec, task()).await.expect_err("it succeeded");
    (error.what_next(), error.message().to_owned())
}

/// A new directory, removed at the end of its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("cliquet-exec-{}", Uuid::now_v7()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The process id that a program writes to a file.
    async fn pid(&self, name: &str) -> i32 {
        let read = || {
            fs::read_to_string(self.file(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let deadline = Instant::now() + LONG;
        loop {
            match read() {
                Some(pid) => return pid,
                None => assert!(Instant::now() < deadline, "no process wrote {name}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether a process runs; a zombie, which waits for a parent that may never look, does not.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some(Some('Z' | 'X')))
}

fn ends_within(pid: i32, limit: Duration) {
    let deadline = Instant::now() + limit;
    while runs(pid) {
        assert!(Instant::now() < deadline, "process {pid} still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn what_a_program_prints_is_its_result() {
    assert_eq!(
        result(&sh(r#"echo ' {"url": "u", "n": [1]} '"#)).await,
        json!({"url": "u", "n": [1]})
    );
    assert_eq!(result(&sh("echo noise >&2; printf 7")).await, json!(7));
}

#[tokio::test]
async fn nothing_printed_is_null() {
    assert_eq!(result(&sh("true")).await, json!(null));
    assert_eq!(result(&sh(r"printf ' \n\t'")).await, json!(null));
    assert_eq!(result(&sh("exec >&-; sleep 0.05")).await, json!(null));
}

#[tokio::test]
async fn a_program_is_told_its_job_its_task_and_the_results_so_far() {
    let told = run(&exec(&["cat"]), task_after(RawValue::TRUE.to_owned())).await;
    let told: Value = serde_json::from_str(told.unwrap().get()).unwrap();
    assert_eq!(
        told,
        json!({
            "job": {"id": ID, "kind": "shop.publish", "payload": {"product_id": 42}},
            "task": {"position": 2, "handler": "upload", "label": "Upload image 1/5", "input": {"index": 1},
                     "attempt": 3, "idempotency_key": format!("{ID}:2")},
            "results": [{"position": 1, "handler": "validate", "result": true}],
        })
    );
}

#[tokio::test]
async fn a_program_that_reads_no_json_finds_its_task_in_the_environment() {
    let script = r#"printf '"%s %s %s %s %s"' "$CLIQUET_JOB_ID" "$CLIQUET_JOB_KIND" "$CLIQUET_TASK_POSITION" \
                    "$CLIQUET_TASK_ATTEMPT" "$CLIQUET_IDEMPOTENCY_KEY""#;
    assert_eq!(
        result(&sh(script)).await,
        json!(format!("{ID} shop.publish 2 3 {ID}:2"))
    );
}

#[tokio::test]
async fn the_exit_code_decides_whether_it_is_tried_again() {
    for (code, what_next) in [
        (1, WhatNext::Retry),
        (2, WhatNext::Retry),
        (64, WhatNext::Retry),
        (65, WhatNext::Permanent),
        (75, WhatNext::Retry),
        (127, WhatNext::Retry),
        (255, WhatNext::Retry),
    ] {
        let found = failure(&sh(&format!("echo 'no photo {code}' >&2; exit {code}"))).await;
        assert_eq!(found, (what_next, format!("no photo {code}")));
    }
}

#[tokio::test]
async fn a_failure_without_words_names_the_program_and_the_code() {
    let dir = Scratch::new();
    fs::write(dir.file("upload.sh"), "exit 3").unwrap();
    let script = exec(&["sh", "upload.sh"]).dir(&dir.0);
    assert_eq!(
        failure(&script).await.1,
        "sh upload.sh ended with exit code 3 and wrote nothing to standard error"
    );
    assert_eq!(
        failure(&sh("printf ' \n' >&2; exit 65")).await,
        (
            WhatNext::Permanent,
            "sh ended with exit code 65 and wrote nothing to standard error".into()
        )
    );
}

#[tokio::test]
async fn a_program_killed_by_a_signal_is_tried_again_and_the_signal_named() {
    let (what_next, message) = failure(&sh("echo half >&2; kill -SEGV $$")).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert_eq!(
        message,
        "sh was killed by SIGSEGV; its standard error ends: half"
    );
    let (_, message) = failure(&sh("kill -KILL $$")).await;
    assert!(message.contains("SIGKILL"), "{message}");
    assert!(message.contains("wrote nothing"), "{message}");
}

#[tokio::test]
async fn what_is_not_json_is_shown_escaped_and_tried_again() {
    let (what_next, message) = failure(&sh(r"printf 'upload\tdone\033[31m\0'")).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert!(message.contains("not JSON"), "{message}");
    assert!(
        message.contains(r#""upload\tdone\u{1b}[31m\0""#),
        "{message}"
    );
    for script in [
        "echo '{} {}'",
        "echo '{\"a\":'",
        r"printf '\377'",
        r#"printf '"\377"'"#,
    ] {
        let (_, message) = failure(&sh(script)).await;
        assert!(message.contains("not JSON"), "{script}: {message}");
    }
    let (_, message) = failure(&sh("head -c 100000 /dev/zero | tr '\\0' x")).await;
    assert!(message.len() < 1000, "{}", message.len());
}

#[tokio::test]
async fn output_over_the_limit_ends_the_program_for_good() {
    let dir = Scratch::new();
    let script = format!(
        "echo $$ > {}; while :; do echo 1234567890; done",
        dir.file("pid").display()
    );
    let (what_next, message) = failure(&sh(&script).output_limit(100_000)).await;
    assert_eq!(what_next, WhatNext::Permanent);
    assert!(message.contains("100000 bytes"), "{message}");
    ends_within(dir.pid("pid").await, LONG);

    let five = sh("printf 12345");
    assert_eq!(result(&five.clone().output_limit(5)).await, json!(12345));
    failure(&five.output_limit(4)).await;
}

#[tokio::test]
async fn the_error_is_the_end_of_standard_error() {
    // "é" has two bytes and the cut falls into one of them.
    let script = r"i=0; while [ $i -lt 9000 ]; do printf '\303\251'; i=$((i+1)); done >&2; printf 'x\0the end \n\n' >&2; exit 1";
    let (_, message) = failure(&sh(script)).await;
    assert!(
        message.ends_with("éx\u{fffd}the end"),
        "{}",
        message.escape_debug()
    );
    assert!(message.starts_with("…é"), "{}", message.escape_debug());
    assert!(message.len() <= ERROR_BYTES + "…".len() + "\u{fffd}".len());
    assert!(message.len() > ERROR_BYTES - 10);

    let flood = sh("head -c 20000000 /dev/zero >&2; echo >&2; echo last >&2; exit 1");
    assert!(failure(&flood).await.1.ends_with("\nlast"));
    let broken = sh(r"printf '\377 oops' >&2; exit 1");
    assert_eq!(failure(&broken).await.1, "\u{fffd} oops");
}

#[tokio::test]
async fn a_missing_program_is_tried_again_and_its_path_named() {
    let (what_next, message) = failure(&exec(&["cliquet-no-such-program"])).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert!(
        message.contains("`cliquet-no-such-program`") && message.contains("PATH ("),
        "{message}"
    );

    let dir = Scratch::new();
    let (what_next, message) = failure(&exec(&["./upload"]).dir(&dir.0)).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert!(message.contains("no such file"), "{message}");
    assert!(message.contains(&dir.0.display().to_string()), "{message}");

    fs::write(dir.file("upload"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.file("upload"), fs::Permissions::from_mode(0o644)).unwrap();
    let (what_next, message) = failure(&exec(&["./upload"]).dir(&dir.0)).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert!(message.contains("may not execute"), "{message}");

    let (what_next, message) = failure(&sh("true").dir(dir.file("gone"))).await;
    assert_eq!(what_next, WhatNext::Retry);
    assert!(
        message.contains("directory") && message.contains("gone"),
        "{message}"
    );
}

#[tokio::test]
async fn a_program_runs_in_its_directory() {
    let dir = Scratch::new();
    let here = result(&sh(r#"printf '"%s"' "$(pwd -P)""#).dir(&dir.0)).await;
    assert_eq!(
        Path::new(here.as_str().unwrap()),
        dir.0.canonicalize().unwrap()
    );
}

#[test]
fn a_command_needs_a_program_and_no_nul() {
    let new = |command: &[&str]| Exec::new(command.iter().map(|part| part.to_string()).collect());
    assert!(new(&[]).unwrap_err().contains("no program"));
    assert!(new(&["", "x"]).unwrap_err().contains("no program"));
    assert!(new(&["sh", "a\0b"]).unwrap_err().contains(r"a\0b"));
}

fn eight_mebibytes() -> Box<RawValue> {
    serde_json::value::to_raw_value(&"x".repeat(8 << 20)).unwrap()
}

#[tokio::test]
async fn a_program_may_ignore_its_input() {
    for script in [
        "echo 1",
        "exec <&-; sleep 0.05; echo 1",
        "sleep 0.05; echo 1",
    ] {
        assert_eq!(result(&sh(script)).await, json!(1), "{script}");
        let much = run(&sh(script), task_after(eight_mebibytes())).await;
        assert_eq!(much.unwrap().get(), "1", "{script}");
    }
}

#[tokio::test]
async fn a_program_may_print_much_before_it_reads_much() {
    let script = "head -c 900000 /dev/zero | tr '\\0' ' '; head -c 900000 /dev/zero >&2; wc -c";
    let read = run(&sh(script), task_after(eight_mebibytes()))
        .await
        .unwrap();
    assert!(read.get().parse::<usize>().unwrap() > 8 << 20);
}

#[tokio::test]
async fn the_workers_secrets_do_not_reach_the_program() {
    const PLANTED: &str = "CLIQUET_TEST_SECRET";
    if std::env::var_os(PLANTED).is_none() {
        // A test cannot change its own environment safely: it runs itself once more, with the secrets planted.
        let this = "handlers::exec::tests::the_workers_secrets_do_not_reach_the_program";
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this])
            .env(PLANTED, "hunter2")
            .env("DATABASE_URL", "postgres://user:hunter2@db/shop")
            .env("SHOP_TOKEN", "asked for")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let all = exec(&[
        "python3",
        "-c",
        "import json, os; print(json.dumps(dict(os.environ)))",
    ]);
    let seen = result(
        &all.clone()
            .env(vec!["SHOP_TOKEN".into(), "NOT=ONE\0".into()]),
    )
    .await;
    let seen = seen.as_object().unwrap();
    assert_eq!(seen["SHOP_TOKEN"], "asked for");
    assert!(seen.contains_key("PATH"));
    assert!(!seen.contains_key(PLANTED) && !seen.contains_key("DATABASE_URL"));
    let unasked = result(&all).await;
    assert!(unasked.get("SHOP_TOKEN").is_none());
    assert!(!unasked.to_string().contains("hunter2"));
}

/// A program and a child that both ignore SIGTERM and leave their process ids in the directory.
fn stubborn(dir: &Scratch) -> Exec {
    let dir = dir.0.display();
    sh(&format!(
        "trap '' TERM; sleep 300 & echo $! > {dir}/child; echo $$ > {dir}/leader; wait; sleep 300"
    ))
}

#[tokio::test]
async fn a_timeout_kills_the_program_and_its_children() {
    let dir = Scratch::new();
    let exec = stubborn(&dir);
    let attempt = async {
        tokio::select! {
            _ = exec.run(task()) => panic!("it ended"),
            pids = async { (dir.pid("leader").await, dir.pid("child").await) } => pids,
        }
    };
    let (leader, child) = timeout(LONG, attempt).await.unwrap();
    assert!(runs(leader) && runs(child));
    let deadline = Instant::now() + LONG;
    while runs(leader) || runs(child) {
        assert!(Instant::now() < deadline, "{leader} or {child} still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Waited for as well: no zombie is left.
    while Path::new(&format!("/proc/{leader}")).exists() {
        assert!(Instant::now() < deadline, "{leader} is a zombie");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_attempt_that_is_dropped_at_once_starts_no_program() {
    let dir = Scratch::new();
    // A name of its own, which /proc shows for as long as the process is there, be it as a zombie.
    std::os::unix::fs::symlink("/bin/sleep", dir.file("never-started")).unwrap();
    let exec = exec(&["./never-started", "300"]).dir(&dir.0);
    let mut attempt = exec.run(task());
    assert!(futures::poll!(&mut attempt).is_pending());
    drop(attempt);
    tokio::task::yield_now().await;
    let started = fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read_to_string(process.path().join("stat"))
            .is_ok_and(|stat| stat.contains("(never-started)"))
    });
    assert!(!started);
}

#[tokio::test]
async fn a_program_that_is_cut_short_may_clean_up() {
    let dir = Scratch::new();
    let here = dir.0.display();
    let script = format!(
        "trap 'echo bye; echo bye >&2; sleep 0.02; echo $$ > {here}/cleaned; exit' TERM; echo $$ > {here}/leader
         while :; do sleep 0.02; done"
    );
    let exec = sh(&script);
    tokio::select! {
        _ = exec.run(task()) => panic!("it ended"),
        _ = dir.pid("leader") => {}
    }
    dir.pid("cleaned").await;
}

#[test]
fn a_runtime_that_shuts_down_kills_the_program_and_its_children() {
    let dir = Scratch::new();
    let exec = stubborn(&dir);
    let runtime = Runtime::new().unwrap();
    let (leader, child) = runtime.block_on(async {
        tokio::spawn(async move { exec.run(task()).await });
        (dir.pid("leader").await, dir.pid("child").await)
    });
    assert!(runs(leader) && runs(child));
    drop(runtime);
    ends_within(leader, LONG);
    ends_within(child, LONG);
}

#[tokio::test]
async fn a_child_that_holds_the_output_open_does_not_hang_the_task() {
    let dir = Scratch::new();
    let here = dir.0.display();
    let began = Instant::now();
    let left = sh(&format!("echo 1; sleep 300 & echo $! > {here}/child"));
    assert_eq!(result(&left).await, json!(1));
    assert!(began.elapsed() < Duration::from_secs(10));
    ends_within(dir.pid("child").await, LONG);
}

#[tokio::test]
async fn a_child_that_holds_nothing_open_is_killed_too() {
    let dir = Scratch::new();
    let here = dir.0.display();
    let left = sh(&format!(
        "sleep 300 >/dev/null 2>&1 & echo $! > {here}/child; echo 1"
    ));
    assert_eq!(result(&left).await, json!(1));
    ends_within(dir.pid("child").await, LONG);
}

#[tokio::test]
async fn a_child_may_finish_the_output_shortly_after_the_program() {
    let late = sh("printf '[1,'; (sleep 0.02; printf '2]') &");
    assert_eq!(result(&late).await, json!([1, 2]));
}

#[tokio::test]
async fn a_child_that_left_the_group_does_not_hang_the_task() {
    let dir = Scratch::new();
    let here = dir.0.display();
    let left = sh(&format!(
        "echo 1; setsid sh -c 'echo $$ > {here}/child; exec sleep 300' &
                            while ! [ -s {here}/child ]; do sleep 0.01; done"
    ));
    assert_eq!(result(&left).await, json!(1));
    let daemon = dir.pid("child").await;
    assert!(runs(daemon));
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon).unwrap(),
        Signal::KILL,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_programs_run_at_once() {
    let all = (0..100).map(|n| async move {
        assert_eq!(result(&sh(&format!("cat >/dev/null; echo {n}"))).await, n);
    });
    futures::future::join_all(all).await;
}
