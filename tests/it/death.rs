//! Workers that die, hang or stop, and what becomes of their jobs.

use std::time::{Duration, Instant};

use cliquet::fail_point::FailPoint;

use crate::support::{eventually, stage::Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_no_task() {
    let stage = Stage::new().await;
    // Longer than this test waits: what takes over is told by the two witnesses, and by no heartbeat.
    let patient = [("STAGE_PATIENCE_MS", "600000")];
    let mut first = stage.process_with("first", &patient);
    let job = stage.publish("a:write b:write-gate:two c:write").await;
    stage.script.reached("two", 1).await;
    let second = stage.process_with("second", &patient);
    eventually("both workers are known", || async {
        let workers = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM cliquet.workers WHERE locked_at IS NOT NULL",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        (workers == 2).then_some(())
    })
    .await;

    first.kill();
    let killed = Instant::now();
    stage.script.reached("two", 2).await;
    let resumed = killed.elapsed();
    stage.script.open("two").await;
    stage.reaches(job, "SUCCESS").await;

    assert_eq!(stage.script.positions(job).await, [1, 2, 2, 3]);
    assert_eq!(
        stage.effects(job).await,
        [1, 2, 3],
        "what the killed worker wrote in its transaction is not there"
    );
    assert_eq!(
        stage
            .number(
                "SELECT crashes::bigint FROM cliquet.tasks WHERE job_id = $1 AND position = 2",
                job
            )
            .await,
        1
    );
    assert_eq!(
        stage
            .number(
                "SELECT attempt::bigint FROM cliquet.tasks WHERE job_id = $1 AND position = 2",
                job
            )
            .await,
        1
    );
    eprintln!("resumed {} ms after the kill", resumed.as_millis());
    stage.queues_are_empty().await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_ends_its_task_and_hands_the_rest_back() {
    let stage = Stage::new().await;
    let trace = format!("{}/{}", env!("CARGO_TARGET_TMPDIR"), uuid::Uuid::new_v4());
    let mut first = stage.process_with("first", &[("CLIQUET_FAIL_POINT_TRACE", &trace)]);
    let job = stage.publish("a:ok b:gate:two c:ok").await;
    stage.script.reached("two", 1).await;
    first.signal("TERM");
    eventually("it is leaving", async || {
        let passed = std::fs::read_to_string(&trace).unwrap_or_default();
        passed
            .lines()
            .any(|point| point == FailPoint::Draining.name())
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:PROCESSING 3:PENDING",
        "the running task goes on"
    );
    stage.script.open("two").await;
    assert_eq!(first.ended().await, Some(0));
    let _ = std::fs::remove_file(&trace);
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:SUCCESS 3:PENDING");
    assert_eq!(stage.status(job).await.as_deref(), Some("PENDING"));

    let second = stage.worker();
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    assert_eq!(
        stage
            .number(
                "SELECT count(*) FROM cliquet.failures WHERE job_id = $1",
                job
            )
            .await,
        0
    );
    stage.queues_are_empty().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_the_deadline_cut_short_is_not_counted() {
    let stage = Stage::new().await;
    let worker = stage.worker_with(cliquet::config::Config {
        drain_timeout: Duration::from_millis(300),
        ..stage.config()
    });
    let job = stage.publish("a:write-gate:one b:ok").await;
    stage.script.reached("one", 1).await;
    worker.stop().await;
    assert_eq!(stage.tasks(job).await, "1:PENDING 2:PENDING");
    assert_eq!(
        stage
            .number(
                "SELECT attempt::bigint FROM cliquet.tasks WHERE job_id = $1 AND position = 1",
                job
            )
            .await,
        0
    );
    assert_eq!(stage.effects(job).await, [0; 0]);

    stage.script.open("one").await;
    let next = stage.worker();
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        stage
            .number(
                "SELECT attempt::bigint FROM cliquet.tasks WHERE job_id = $1 AND position = 1",
                job
            )
            .await,
        1
    );
    assert_eq!(
        stage
            .number(
                "SELECT crashes::bigint FROM cliquet.tasks WHERE job_id = $1 AND position = 1",
                job
            )
            .await,
        0
    );
    assert_eq!(stage.effects(job).await, [1]);
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    let stage = Stage::new().await;
    let mut worker = stage.process("impatient");
    let job = stage.publish("a:gate:one").await;
    stage.script.reached("one", 1).await;
    worker.signal("TERM");
    // Two that come before it is scheduled are one.
    let ended = eventually("it leaves", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        worker.signal("TERM");
        worker.try_status()
    });
    assert_eq!(ended.await.code(), Some(143));

    stage.script.open("one").await;
    let next = stage.worker();
    stage.reaches(job, "SUCCESS").await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_taken_over_and_fenced() {
    let stage = Stage::new().await;
    let mut hung = stage.process_with("hung", &[("STAGE_PATIENCE_MS", "3000")]);
    let job = stage.publish("a:ok b:write-gate:two c:write").await;
    stage.script.reached("two", 1).await;
    hung.signal("STOP");
    let second = stage.process("second");
    // No witness: its sockets are open, so the broker does not redeliver and the lock is held. The heartbeat decides, and
    // the reconciler brings the message.
    stage.script.reached("two", 2).await;
    stage.script.open("two").await;
    stage.reaches(job, "SUCCESS").await;
    hung.signal("CONT");
    hung.signal("TERM");
    assert_eq!(hung.ended().await, Some(0));
    assert_eq!(
        stage.effects(job).await,
        [2, 3],
        "the fenced worker's transaction changed nothing"
    );
    assert_eq!(stage.tasks(job).await, "1:SUCCESS 2:SUCCESS 3:SUCCESS");
    stage.queues_are_empty().await;
    drop(second);
}

/// Each of them is a suspect: they run one at a time. A rung would bring them back together, and of each wave one would go on.
#[tokio::test(flavor = "multi_thread")]
async fn the_many_jobs_of_a_killed_worker_go_on_in_turn_and_wait_on_no_rung() {
    let stage = Stage::new().await;
    let many = [("STAGE_CONCURRENCY", "16")];
    let mut first = stage.process_with("first", &many);
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(stage.publish("a:gate:one b:ok").await);
    }
    stage.script.reached("one", 8).await;
    let second = stage.process_with("second", &many);
    eventually("both workers are known", || async {
        let workers = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM cliquet.workers WHERE locked_at IS NOT NULL",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        (workers == 2).then_some(())
    })
    .await;

    first.kill();
    stage.script.open("one").await;
    for job in &jobs {
        stage.reaches(*job, "SUCCESS").await;
    }
    let epochs: Vec<i64> = sqlx::query_scalar("SELECT epoch FROM cliquet.jobs")
        .fetch_all(&stage.pool)
        .await
        .unwrap();
    // The first run, the crash that was counted, and the run that had its turn. Every time on a rung is one more: where they
    // came back together, the last of the eight had ten. On a slow machine the last may not wait for its turn to the end.
    let later = epochs.iter().filter(|epoch| **epoch > 3).count();
    assert!(
        later <= 2 && epochs.iter().all(|epoch| (3..=5).contains(epoch)),
        "{epochs:?}"
    );
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_worker_is_parked_and_its_neighbours_go_on() {
    let stage = Stage::new().await;
    let poison = stage.publish("a:ok b:kill c:ok").await;
    let mut good = Vec::new();
    for _ in 0..20 {
        good.push(stage.publish("a:ok b:ok c:ok").await);
    }
    // A supervisor that restarts the worker, as systemd does.
    let mut deaths = 0;
    let mut worker = stage.process("restarted");
    eventually("the poison is parked", || {
        let ended = worker.try_ended();
        if ended {
            deaths += 1;
            worker = stage.process("restarted");
        }
        let status = stage.status(poison);
        async move { (status.await.as_deref() == Some("FAILED")).then_some(()) }
    })
    .await;
    assert_eq!(deaths, 3);
    for job in good {
        stage.reaches(job, "SUCCESS").await;
    }
    assert_eq!(stage.tasks(poison).await, "1:SUCCESS 2:FAILED 3:PENDING");
    let error: String = sqlx::query_scalar("SELECT error FROM cliquet.jobs WHERE id = $1")
        .bind(poison)
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert!(
        error.starts_with("the worker died 3 times while it ran this task"),
        "{error}"
    );
}
