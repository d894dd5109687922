//! `cliquet bench`: what it counts and what it leaves. Never a time: machines differ.

use std::{fs::File, process::Stdio};

use cliquet::broker::{Address, Identity, QueueState, Topology};
use cliquet::retry::Ladder;
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    stage::{Stage, WorkerProcess},
};

/// A benchmark's name that no other test has.
fn name() -> String {
    Uuid::new_v4().simple().to_string()[..30].to_owned()
}

async fn bench(binary: &Binary, arguments: &[&str]) -> Value {
    let arguments: Vec<_> = ["bench", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let ended = binary.run_long(&arguments).await;
    serde_json::from_str(ended.done().trim()).unwrap()
}

/// Rows and queues of a benchmark of this name.
async fn leavings(stage: &Stage, name: &str) -> Vec<String> {
    let queue = format!("cliquet.bench.{name}");
    let mut found = Vec::new();
    for table in ["jobs", "workers", "activity"] {
        let sql = format!("SELECT count(*) FROM cliquet.{table} WHERE queue LIKE $1 || '%'");
        let rows: i64 = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&queue)
            .fetch_one(&stage.pool)
            .await
            .unwrap()
            .get(0);
        found.extend((rows > 0).then(|| format!("{rows} rows of {table}")));
    }
    let orphans = "SELECT (SELECT count(*) FROM cliquet.tasks WHERE job_id NOT IN (SELECT id FROM cliquet.jobs))
                        + (SELECT count(*) FROM pg_class WHERE relname LIKE 'effects of %')";
    let rows: i64 = sqlx::query(orphans)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
        .get(0);
    found
        .extend((rows > 0).then(|| format!("{rows} tasks without a job, or the table of effects")));
    let ladder = Ladder::new([std::time::Duration::from_secs(1)]).unwrap();
    let topology = Topology::new(&queue, ladder).unwrap();
    let address = Address::parse(&stage.queues.amqp_url).unwrap();
    let identity = Identity {
        name: "test".into(),
    };
    for (queue, state) in topology.inspect(&address, &identity).await.unwrap() {
        if matches!(state, QueueState::Right { .. }) {
            found.push(queue.name);
        }
    }
    found
}

#[tokio::test]
async fn a_benchmark_with_browsers_tells_what_they_cost_and_how_long_pages_take() {
    let (stage, name) = (Stage::new().await, name());
    let binary = Binary::on(&stage, "");
    let arguments = [
        "--name",
        &name,
        "--jobs",
        "600",
        "--rate",
        "0",
        "--history",
        "5000",
        "--browsers",
        "2",
        "--click-every",
        "10ms",
    ];
    let report = bench(&binary, &arguments).await;
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!(
        (&report["jobs"], &report["history"]),
        (&600.into(), &5_000.into())
    );
    let watched = &report["watched"];
    for figure in ["tasks_per_second", "ratio"] {
        assert!(
            watched[figure].as_f64().unwrap() > 0.0,
            "{figure}: {report}"
        );
    }
    for question in ["list", "groups"] {
        assert!(
            watched[question]["answers"].as_u64().unwrap() > 0,
            "{question}: {report}"
        );
        assert!(
            watched[question]["p95"].as_f64().unwrap() > 0.0,
            "{question}: {report}"
        );
    }
    assert_eq!(leavings(&stage, &name).await, [""; 0]);
}

#[tokio::test]
async fn a_benchmark_counts_every_task_once_and_leaves_nothing() {
    let (stage, name) = (Stage::new().await, name());
    let binary = Binary::on(&stage, "");
    let (other, worker) = (stage.publish("a:ok b:ok").await, stage.worker());
    stage.reaches(other, "SUCCESS").await;
    worker.stop().await;

    let arguments = [
        "--name",
        &name,
        "--jobs",
        "40",
        "--tasks",
        "3",
        "--rate",
        "20",
        "--rate-seconds",
        "1",
    ];
    let report = bench(&binary, &arguments).await;
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!(
        (report["jobs"].as_i64(), report["tasks"].as_i64()),
        (Some(60), Some(180))
    );
    assert_eq!(report["latency_ms"]["jobs"], 20);
    for figure in [
        "tasks_per_second",
        "jobs_per_second",
        "commits_per_second",
        "tasks_per_commit",
        "peak_rss_bytes",
    ] {
        assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
    let (tasks, jobs) = (&report["tasks_per_second"], &report["jobs_per_second"]);
    assert!((tasks.as_f64().unwrap() / jobs.as_f64().unwrap() - 3.0).abs() < 0.01);
    // A job of three takes four commits when it is alone, and none that is shared is counted for each who shares it.
    let each = report["tasks_per_commit"].as_f64().unwrap();
    assert!((0.7..40.0).contains(&each), "{report}");
    assert!(report["cpu_seconds_per_1000_tasks"].is_number());

    assert_eq!(leavings(&stage, &name).await, [""; 0]);
    assert_eq!(
        stage.status(other).await.as_deref(),
        Some("SUCCESS"),
        "others' rows stay"
    );
}

#[tokio::test]
async fn a_benchmark_of_transactions_writes_one_row_for_each_task() {
    let (stage, name) = (Stage::new().await, name());
    let binary = Binary::on(&stage, "");
    let arguments = [
        "--name",
        &name,
        "--jobs",
        "20",
        "--tasks",
        "4",
        "--rate",
        "0",
        "--handler",
        "transaction",
    ];
    let report = bench(&binary, &arguments).await;
    // It compares the rows that handlers wrote with the tasks, and different tasks among them.
    assert_eq!(
        (report["verified"].as_bool(), report["tasks"].as_i64()),
        (Some(true), Some(80)),
        "{report}"
    );
    assert!(report["latency_ms"].is_null());
    // Each of them has a commit of its own.
    assert!(
        report["tasks_per_commit"].as_f64().unwrap() < 1.0,
        "{report}"
    );
    assert_eq!(leavings(&stage, &name).await, [""; 0]);
}

#[tokio::test]
async fn a_benchmark_that_is_interrupted_leaves_nothing_and_has_its_queue_for_itself() {
    let (stage, name) = (Stage::new().await, name());
    let binary = Binary::on(&stage, "");
    let said = binary.file("said", "");
    let arguments = [
        "bench",
        "--name",
        &name,
        "--jobs",
        "30",
        "--rate",
        "5",
        "--rate-seconds",
        "600",
    ];
    let running = binary
        .command(&arguments)
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut running = WorkerProcess::of(running);
    eventually("the backlog is done", async || {
        std::fs::read_to_string(&said)
            .unwrap()
            .contains("jobs done")
            .then_some(())
    })
    .await;
    assert!(!leavings(&stage, &name).await.is_empty());

    let second = binary.run(&["bench", "--name", &name]).await.failed(1);
    assert!(
        second.contains("at work on the queue") && second.contains("--name"),
        "{second}"
    );

    running.signal("TERM");
    assert_eq!(running.ended().await, Some(1));
    assert_eq!(leavings(&stage, &name).await, [""; 0]);
    let said = std::fs::read_to_string(&said).unwrap();
    assert!(
        said.contains("error: the benchmark was interrupted"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn what_a_killed_benchmark_left_is_removed_by_the_next() {
    let (stage, name) = (Stage::new().await, name());
    let binary = Binary::on(&stage, "");
    let report = bench(
        &binary,
        &[
            "--name",
            &name,
            "--jobs",
            "10",
            "--rate",
            "0",
            "--keep-rows",
        ],
    )
    .await;
    assert_eq!(report["verified"], true);
    assert_eq!(
        leavings(&stage, &name).await[..2],
        ["10 rows of jobs", "1 rows of workers"]
    );
    // By which its sessions are known to whoever removes its rows.
    let worker: String = sqlx::query_scalar("SELECT name FROM cliquet.workers")
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert_eq!(worker, format!("cliquet.bench.{name}"));
    let report = bench(&binary, &["--name", &name, "--jobs", "10", "--rate", "0"]).await;
    assert_eq!(
        (report["verified"].as_bool(), report["jobs"].as_i64()),
        (Some(true), Some(10))
    );
    assert_eq!(leavings(&stage, &name).await, [""; 0]);
}

#[tokio::test]
async fn benchmarks_of_transactions_run_beside_each_other() {
    let (stage, one, other) = (Stage::new().await, name(), name());
    let binary = Binary::on(&stage, "");
    let (first, second) = (side_by_side(&one), side_by_side(&other));
    let reports = tokio::join!(bench(&binary, &first), bench(&binary, &second));
    for report in [reports.0, reports.1] {
        assert_eq!(report["verified"], true, "{report}");
    }
    for name in [one, other] {
        assert_eq!(leavings(&stage, &name).await, [""; 0]);
    }
}

fn side_by_side(name: &str) -> [&str; 10] {
    [
        "--name",
        name,
        "--jobs",
        "30",
        "--rate",
        "20",
        "--rate-seconds",
        "1",
        "--handler",
        "transaction",
    ]
}
