//! One performance of a scene: a worker that dies at one passage, another that goes on, and the exact counts afterwards.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use cliquet::{
    broker::Place,
    config::Config,
    fail_point::FailPoint::{self, *},
};
use lapin::BasicProperties;
use sqlx::Row;
use uuid::Uuid;

use super::scene::{Scene, Told};
use crate::support::{
    detour::Detour,
    eventually,
    stage::{Stage, WorkerProcess, body},
};

/// Where a process is to die: at which passage of which point.
pub(super) type Passage = (FailPoint, usize);

/// One performance of a scene.
pub(super) struct Played {
    /// What the first worker has passed, in order.
    pub(super) trace: Vec<FailPoint>,
    /// Whether an attempt of its was under way when it was killed: its handler was called, and nothing of it committed.
    pub(super) in_flight: Option<i32>,
}

/// Plays the scene with a worker that dies at the passage, or with one that lives to its end, and judges what there is then.
pub(super) async fn play(stage: &Stage, scene: Scene, end: Option<Passage>) -> Played {
    let told = scene.told();
    let job = Uuid::now_v7();
    let gate = job.to_string();
    let scenario = told.scenario.replace("GATE", &gate);
    let trace = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("trace-{job}"));

    let holder = match scene {
        Scene::Busy => {
            // Its prefetch is used up by the one job, so the duplicate goes to the other worker.
            let holder = stage.worker_with(Config {
                concurrency: 1,
                ..stage.config()
            });
            stage.publish_as(job, &scenario).await;
            stage.script.reached(&gate, 1).await;
            Some(holder)
        }
        Scene::Suspected => {
            stage.publish_as(job, &scenario).await;
            let mut first = start(stage, scene, Some((AfterHandler, 2)), None);
            let ended = status(&mut first).await;
            assert_eq!(ended.signal(), Some(9), "the first worker: {ended:?}");
            stage.let_go(&named(stage)).await;
            None
        }
        Scene::Enqueued => {
            enqueue(stage, job, &scenario).await;
            None
        }
        // Published once the brake is on.
        Scene::Braked => None,
        Scene::Forgotten => {
            stage.publish_as(job, &scenario).await;
            let parking = stage.worker();
            eventually("the job is parked, and the ledger knows", async || {
                is_over(stage, scene, job).await.then_some(())
            })
            .await;
            parking.stop().await;
            forget(stage, job).await;
            None
        }
        Scene::Bad => {
            let bad = BasicProperties::default().with_message_id(job.to_string().into());
            stage.queues.publish(b"no job", bad).await;
            None
        }
        _ => {
            stage.publish_as(job, &scenario).await;
            None
        }
    };

    let detour = Detour::to(&stage.queues.amqp_url).await;
    let mut worker = start(stage, scene, end, Some((&trace, &detour)));
    let pid = worker.pid() as i32;
    match scene {
        Scene::CutShort | Scene::Drained => {
            at_gate(stage, &mut worker, &gate).await;
            ask_to_stop(&mut worker);
            if scene == Scene::Drained {
                passed(&mut worker, &trace, Draining, 1).await;
                stage.script.open(&gate).await;
            }
        }
        Scene::Busy => {
            stage.publish_as(job, &scenario).await;
            passed(&mut worker, &trace, AfterAcknowledge, 1).await;
            stage.script.open(&gate).await;
        }
        Scene::OneTooMany => {
            at_gate(stage, &mut worker, &gate).await;
            stage.publish_as(job, &scenario).await;
            passed(&mut worker, &trace, AfterAcknowledge, 1).await;
            stage.script.open(&gate).await;
        }
        Scene::Braked => {
            // Others' failures have put the brake on.
            for _ in 0..2 {
                stage.publish(&format!("b:needs:{gate}")).await;
            }
            until(&mut worker, "the handler is braked", async || {
                // By this one: what those that were killed have told stays.
                let sql = "SELECT brakes IS NOT NULL FROM cliquet.workers WHERE pid = $1 ORDER BY id DESC LIMIT 1";
                let told: Option<bool> = sqlx::query_scalar(sql)
                    .bind(pid)
                    .fetch_optional(&stage.pool)
                    .await
                    .unwrap();
                told == Some(true)
            })
            .await;
            stage.publish_as(job, &scenario).await;
            until(&mut worker, "the job is put off", async || {
                let sql = "SELECT count(*) FROM cliquet.jobs WHERE id = $1 AND status = 'RETRYING' AND generation > 0";
                stage.number(sql, job).await == 1
            })
            .await;
            passed(&mut worker, &trace, AfterAcknowledge, 3).await;
            stage.script.open(&gate).await;
        }
        Scene::Adopted => {
            at_gate(stage, &mut worker, &gate).await;
            detour.cut();
            passed(&mut worker, &trace, Adopted, 1).await;
            stage.script.open(&gate).await;
        }
        _ => {}
    }
    if !matches!(scene, Scene::CutShort | Scene::Drained) {
        until(&mut worker, "the job is over", async || {
            is_over(stage, scene, job).await
        })
        .await;
        until(
            &mut worker,
            "the ledger knows which copies are confirmed",
            async || {
                let passed = read(&trace);
                let times = |point| passed.iter().filter(|passed| **passed == point).count();
                match scene {
                    Scene::Bad => true,
                    // Copies of several jobs may be noted in one statement.
                    Scene::Braked => times(AfterSent) > 0,
                    _ => times(AfterSent) == times(Confirmed),
                }
            },
        )
        .await;
        ask_to_stop(&mut worker);
    }
    let ended = status(&mut worker).await;
    match end {
        Some(_) => assert_eq!(ended.signal(), Some(9), "the worker outlived it: {ended:?}"),
        None => assert_eq!(ended.code(), Some(0), "{ended:?}"),
    }
    let read = read(&trace);
    let _ = std::fs::remove_file(&trace);

    // What the dead worker leaves behind, once Postgres has done what it was asked to: it does not see at once that nobody
    // is there to hear the answer.
    stage.let_go(&named(stage)).await;
    let held: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM cliquet.jobs job JOIN cliquet.workers worker ON worker.id = job.holder
                         WHERE job.id = $1 AND worker.pid = $2)",
    )
    .bind(job)
    .bind(pid)
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    let in_flight: Option<i32> = sqlx::query_scalar(
        "SELECT task.position FROM cliquet.tasks task JOIN calls USING (job_id, position, attempt)
          WHERE task.job_id = $1 AND task.status = 'PROCESSING' AND calls.pid = $2",
    )
    .bind(job)
    .bind(pid)
    .fetch_optional(&stage.pool)
    .await
    .unwrap();

    // Another goes on.
    stage.script.open(&gate).await;
    let mut other = holder.unwrap_or_else(|| stage.worker());
    eventually("the job is over", async || {
        is_over(stage, scene, job).await.then_some(())
    })
    .await;
    // What the dead worker had not settled may come back only now, and what this one has not settled does when it stops.
    while {
        nothing_is_left_to_do(stage).await;
        other.stop().await;
        left(stage).await > 0
    } {
        other = stage.worker();
    }
    let parked = stage.queues.depth(Place::Dead).await;
    match scene {
        // A copy that was sent, and once more by whoever could not know.
        Scene::GivenUp | Scene::Bad | Scene::Forgotten => {
            assert!((1..=2).contains(&parked), "{parked} are parked")
        }
        _ => assert_eq!(parked, 0, "a copy is parked"),
    }
    stage.queues.purge(Place::Dead).await;
    if scene != Scene::Bad {
        judge(stage, job, &told, scene, held, in_flight).await;
    }
    Played {
        trace: read,
        in_flight,
    }
}

/// How many messages are left to be worked on, when nobody has any.
async fn left(stage: &Stage) -> u32 {
    let mut left = 0;
    for place in stage.queues.topology.places() {
        if place != Place::Dead {
            left += stage.queues.depth(place).await;
        }
    }
    left
}

/// A worker that is asked to stop hands back what it has just begun: it has time for the jobs that are beside the scene's, too.
async fn nothing_is_left_to_do(stage: &Stage) {
    let over = "SELECT count(*) = 0 FROM cliquet.jobs WHERE status NOT IN ('SUCCESS', 'FAILED')";
    eventually("every job is over and no message waits", async || {
        let over: bool = sqlx::query_scalar(over)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
        (over && left(stage).await == 0).then_some(())
    })
    .await;
}

/// Exact counts, position by position.
async fn judge(
    stage: &Stage,
    job: Uuid,
    told: &Told,
    scene: Scene,
    held: bool,
    in_flight: Option<i32>,
) {
    assert_eq!(stage.status(job).await.as_deref(), Some(told.status));
    let mut calls = vec![0; told.calls.len()];
    for position in stage.script.positions(job).await {
        calls[position as usize - 1] += 1;
    }
    let failures = stage
        .number(
            "SELECT count(*) FROM cliquet.failures WHERE job_id = $1",
            job,
        )
        .await;
    let mut expected = told.calls.to_vec();
    let probes = match scene {
        Scene::Braked => failures - told.failures - i64::from(held),
        _ => 0,
    };
    if probes > 0 {
        expected[1] += probes as usize;
    }
    match in_flight {
        // It was to be cut short in any case.
        Some(_) if scene == Scene::CutShort => {}
        Some(position) => expected[position as usize - 1] += 1,
        None => {}
    }
    assert_eq!(
        calls, expected,
        "the handlers' calls; in flight was {in_flight:?}"
    );
    assert_eq!(
        stage.effects(job).await,
        told.effects,
        "what the handlers wrote in their transactions"
    );
    let rows = sqlx::query(
        "SELECT attempt, crashes FROM cliquet.tasks WHERE job_id = $1 ORDER BY position",
    )
    .bind(job)
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    let attempts: Vec<i32> = rows.iter().map(|row| row.get("attempt")).collect();
    let crashes: i64 = rows
        .iter()
        .map(|row| i64::from(row.get::<i32, _>("crashes")))
        .sum();
    assert_eq!(
        attempts, told.attempts,
        "an attempt that a crash cut short does not count"
    );
    assert_eq!(
        crashes,
        told.crashes + i64::from(held),
        "crashes; held: {held}"
    );
    assert_eq!(
        failures,
        told.failures + i64::from(held) + probes,
        "the failures that are written down"
    );
}

/// Starts a worker that dies at a passage.
fn start(
    stage: &Stage,
    scene: Scene,
    end: Option<Passage>,
    watched: Option<(&Path, &Detour)>,
) -> WorkerProcess {
    let end = end.map(|(point, passage)| format!("{}:{passage}", point.name()));
    let mut environment = Vec::new();
    if let Some(end) = &end {
        environment.push(("CLIQUET_FAIL_POINT", end.as_str()));
    }
    if let Some((trace, detour)) = watched {
        environment.push(("CLIQUET_FAIL_POINT_TRACE", trace.to_str().unwrap()));
        environment.push(("STAGE_AMQP", &detour.amqp_url));
    }
    match scene {
        Scene::CutShort => environment.push(("STAGE_DRAIN_TIMEOUT_MS", "100")),
        Scene::Braked => environment.push(("STAGE_BRAKE_AFTER", "2")),
        Scene::HandedOver => environment.push(("STAGE_HAND_OVER_AFTER_MS", "0")),
        _ => {}
    }
    stage.process_with(&named(stage), &environment)
}

/// What a worker is called that is to die, so that its sessions are told from those of another. As long as it may be: Postgres
/// keeps 63 bytes of `cliquet NAME heartbeat`.
fn named(stage: &Stage) -> String {
    format!("mortal {}", stage.queues.identity.name)
}

/// A job as a user's own transaction puts it into the ledger.
async fn enqueue(stage: &Stage, job: Uuid, scenario: &str) {
    let message: serde_json::Value = serde_json::from_slice(&body(job, scenario)).unwrap();
    sqlx::query(
        "WITH job AS (
             INSERT INTO cliquet.jobs (id, queue, kind, payload, total, status, epoch, generation, sent, next_attempt_at)
             VALUES ($1, $2, $3->>'kind', ($3->'payload')::json, jsonb_array_length($3->'tasks'), 'PENDING', 0, 0, -1, now()))
         INSERT INTO cliquet.tasks (job_id, position, handler, label, input)
         SELECT $1, position, task->>'handler', task->>'label', (task->'input')::json
           FROM jsonb_array_elements($3->'tasks') WITH ORDINALITY AS tasks (task, position)",
    )
    .bind(job)
    .bind(stage.queues.name(Place::Work))
    .bind(message)
    .execute(&stage.pool)
    .await
    .unwrap();
}

/// What a broker that has lost its disk leaves: no parked copy, and no mark. The job is parked for long enough to be owed
/// one; those of earlier performances would be owed theirs, too.
async fn forget(stage: &Stage, job: Uuid) {
    stage.queues.purge(Place::Dead).await;
    stage.queues.unmark().await;
    for sql in [
        "DELETE FROM cliquet.jobs WHERE id <> $1",
        "UPDATE cliquet.jobs SET finished_at = finished_at - interval '1 minute' WHERE id = $1",
    ] {
        let query = sqlx::query(sql).bind(job);
        query.execute(&stage.pool).await.unwrap();
    }
}

async fn is_over(stage: &Stage, scene: Scene, job: Uuid) -> bool {
    match scene {
        Scene::Bad => stage.queues.depth(Place::Dead).await > 0,
        // The parked copy is there, and the ledger knows.
        Scene::GivenUp | Scene::Forgotten => {
            let sql = "SELECT count(*) FROM cliquet.jobs WHERE id = $1 AND status = 'FAILED' AND sent = generation";
            stage.number(sql, job).await == 1 && stage.queues.depth(Place::Dead).await > 0
        }
        _ => stage.status(job).await.as_deref() == Some(scene.told().status),
    }
}

/// Waits for something that may not happen, since the worker dies before.
async fn until(worker: &mut WorkerProcess, what: &str, mut question: impl AsyncFnMut() -> bool) {
    eventually(&format!("{what}, or the worker has ended"), async || {
        (worker.try_ended() || question().await).then_some(())
    })
    .await;
}

fn ask_to_stop(worker: &mut WorkerProcess) {
    if !worker.try_ended() {
        worker.signal("TERM");
    }
}

async fn passed(worker: &mut WorkerProcess, trace: &Path, point: FailPoint, times: usize) {
    let what = format!("it passes {}", point.name());
    until(worker, &what, async || {
        read(trace)
            .iter()
            .filter(|passed| **passed == point)
            .count()
            >= times
    })
    .await;
}

async fn at_gate(stage: &Stage, worker: &mut WorkerProcess, gate: &str) {
    until(worker, "a handler stands at the gate", async || {
        let reached: Option<i32> = sqlx::query_scalar("SELECT reached FROM gates WHERE name = $1")
            .bind(gate)
            .fetch_optional(&stage.pool)
            .await
            .unwrap();
        reached.is_some()
    })
    .await;
}

async fn status(worker: &mut WorkerProcess) -> std::process::ExitStatus {
    eventually("the worker's process has ended", || {
        std::future::ready(worker.try_status())
    })
    .await
}

fn read(trace: &Path) -> Vec<FailPoint> {
    let text = std::fs::read_to_string(trace).unwrap_or_default();
    let point = |line| {
        *FailPoint::ALL
            .iter()
            .find(|point| point.name() == line)
            .unwrap()
    };
    text.lines().map(point).collect()
}
