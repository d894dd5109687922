//! A crash sweep: a worker's process is killed at every boundary of its work in turn, and another goes on.
//!
//! Each scene is played once without a kill, to learn which fail points it passes and how often; then once for each of these
//! passages, with a process that dies there. What is counted afterwards is exact, position by position.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use cliquet::{
    broker::Place,
    config::Config,
    fail_point::FailPoint::{self, *},
};
use futures::{FutureExt, future::join_all};
use lapin::BasicProperties;
use sqlx::Row;
use uuid::Uuid;

use crate::support::{
    detour::Detour,
    eventually,
    stage::{Stage, WorkerProcess, body},
};

/// How many scenes are played at the same time, each on a stage of its own.
const STAGES: usize = 6;

/// What a worker goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// A job with a transaction, a plain handler, a failure that is retried over a rung, and an end.
    Ordinary,
    /// A job that fails for good.
    GivenUp,
    /// A message that is no job.
    Bad,
    /// The worker is asked to stop, and its running task is cut short.
    CutShort,
    /// The worker is asked to stop, and its running task ends.
    Drained,
    /// Each task runs under a delivery of its own.
    HandedOver,
    /// Another worker runs the job.
    Busy,
    /// This worker runs the job under another delivery.
    OneTooMany,
    /// The job's delivery is lost and comes again.
    Adopted,
    /// The job was enqueued in SQL.
    Enqueued,
    /// A worker has died in the job already.
    Suspected,
}

/// What must be true of the job in the end, whoever was killed, and whenever.
struct Told {
    scenario: &'static str,
    status: &'static str,
    /// How often each task's handler is called if nobody is killed.
    calls: &'static [usize],
    attempts: &'static [i32],
    /// The positions that write in a transaction.
    effects: &'static [i32],
    crashes: i64,
    failures: i64,
}

impl Scene {
    const ALL: [Self; 11] = [
        Self::Ordinary,
        Self::GivenUp,
        Self::Bad,
        Self::CutShort,
        Self::Drained,
        Self::HandedOver,
        Self::Busy,
        Self::OneTooMany,
        Self::Adopted,
        Self::Enqueued,
        Self::Suspected,
    ];

    fn told(self) -> Told {
        let gated = Told {
            scenario: "a:write b:gate:GATE c:write",
            status: "SUCCESS",
            calls: &[1, 1, 1],
            attempts: &[1, 1, 1],
            effects: &[1, 3],
            crashes: 0,
            failures: 0,
        };
        match self {
            Self::Ordinary => Told {
                scenario: "a:write b:ok c:write-fail,write d:ok",
                calls: &[1, 1, 2, 1],
                attempts: &[1, 1, 2, 1],
                failures: 1,
                ..gated
            },
            Self::GivenUp => Told {
                scenario: "a:write b:permanent c:ok",
                status: "FAILED",
                calls: &[1, 1, 0],
                attempts: &[1, 1, 0],
                effects: &[1],
                failures: 1,
                ..gated
            },
            Self::Bad => Told {
                scenario: "",
                calls: &[],
                attempts: &[],
                effects: &[],
                ..gated
            },
            // The attempt that was cut short, and the one that counts.
            Self::CutShort => Told {
                calls: &[1, 2, 1],
                ..gated
            },
            Self::HandedOver | Self::Enqueued => Told {
                scenario: "a:write b:ok c:write",
                ..gated
            },
            // The first worker dies after b's handler.
            Self::Suspected => Told {
                scenario: "a:ok b:write c:ok",
                calls: &[1, 2, 1],
                effects: &[2],
                crashes: 1,
                failures: 1,
                ..gated
            },
            Self::Drained | Self::Busy | Self::OneTooMany | Self::Adopted => gated,
        }
    }

    /// The points that the scene is there for; the others are swept in others.
    fn swept(self) -> &'static [FailPoint] {
        match self {
            Self::Ordinary => FailPoint::ALL,
            Self::GivenUp => &[
                BeforeFail,
                AfterFail,
                RunEnded,
                Settling,
                BeforePublish,
                Published,
                Confirmed,
                BeforeSent,
                AfterSent,
                BeforeAcknowledge,
                AfterAcknowledge,
            ],
            Self::Bad => &[
                Settling,
                BeforePublish,
                Published,
                Confirmed,
                BeforeAcknowledge,
                AfterAcknowledge,
            ],
            Self::CutShort => &[
                AfterHandler,
                BeforeRelease,
                AfterRelease,
                RunEnded,
                Settling,
                BeforeRequeue,
                AfterRequeue,
                BeforeGoodbye,
                AfterGoodbye,
            ],
            Self::Drained => &[
                Draining,
                AfterHandler,
                BeforeAdvance,
                AfterAdvance,
                RunEnded,
                Settling,
                BeforeRequeue,
                AfterRequeue,
                BeforeGoodbye,
            ],
            Self::HandedOver => &[
                BeforeClaim,
                AfterClaim,
                AfterAdvance,
                AfterCommit,
                BeforePublish,
                Published,
                Confirmed,
                BeforeSent,
                AfterSent,
                BeforeAcknowledge,
                AfterAcknowledge,
            ],
            Self::Busy => &[
                Registered,
                BeforeClaim,
                AfterClaim,
                Settling,
                BeforePublish,
                Published,
                Confirmed,
                BeforeSent,
                AfterSent,
                BeforeAcknowledge,
                AfterAcknowledge,
            ],
            Self::OneTooMany => &[Settling, BeforeAcknowledge, AfterAcknowledge],
            Self::Adopted => &[AfterClaim, Adopted, BeforeAcknowledge],
            Self::Enqueued => &[
                Reconciling,
                BeforePublish,
                Published,
                Confirmed,
                ReconciledOne,
                BeforeSent,
                AfterSent,
                PutOff,
                BeforeClaim,
                AfterClaim,
            ],
            Self::Suspected => &[
                BeforeClaim,
                AfterClaim,
                Begun,
                BeforeHandler,
                AfterHandler,
                AfterCommit,
            ],
        }
    }
}

/// Where a process is to die: at which passage of which point.
type Passage = (FailPoint, usize);

/// One performance of a scene.
struct Played {
    /// What the first worker has passed, in order.
    trace: Vec<FailPoint>,
    /// Whether an attempt of its was under way when it was killed: its handler was called, and nothing of it committed.
    in_flight: Option<i32>,
}

/// Plays the scene with a worker that dies at the passage, or with one that lives to its end, and judges what there is then.
async fn play(stage: &Stage, scene: Scene, end: Option<Passage>) -> Played {
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
            None
        }
        Scene::Enqueued => {
            enqueue(stage, job, &scenario).await;
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
                scene == Scene::Bad || times(AfterSent) == times(Confirmed)
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

    // What the dead worker leaves behind.
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
    let mut other = holder.unwrap_or_else(|| stage.worker());
    stage.script.open(&gate).await;
    eventually("the job is over", async || {
        is_over(stage, scene, job).await.then_some(())
    })
    .await;
    // What the dead worker had not settled may come back only now, and what this one has not settled does when it stops.
    while {
        nothing_waits(stage).await;
        other.stop().await;
        left(stage).await > 0
    } {
        other = stage.worker();
    }
    let parked = stage.queues.depth(Place::Dead).await;
    match scene {
        // A copy that was sent, and once more by whoever could not know.
        Scene::GivenUp | Scene::Bad => assert!((1..=2).contains(&parked), "{parked} are parked"),
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

async fn nothing_waits(stage: &Stage) {
    eventually("no message waits", async || {
        (left(stage).await == 0).then_some(())
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
    let mut expected = told.calls.to_vec();
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
    let failures = stage
        .number(
            "SELECT count(*) FROM cliquet.failures WHERE job_id = $1",
            job,
        )
        .await;
    assert_eq!(
        failures,
        told.failures + i64::from(held),
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
        Scene::HandedOver => environment.push(("STAGE_HAND_OVER_AFTER_MS", "0")),
        _ => {}
    }
    stage.process_with(&stage.queues.identity.name, &environment)
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

async fn is_over(stage: &Stage, scene: Scene, job: Uuid) -> bool {
    match scene {
        Scene::Bad => stage.queues.depth(Place::Dead).await > 0,
        // The parked copy is there, and the ledger knows.
        Scene::GivenUp => {
            let sql = "SELECT count(*) FROM cliquet.jobs WHERE id = $1 AND status = 'FAILED' AND sent = generation";
            stage.number(sql, job).await == 1
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

/// Plays all of these on several stages, and answers with what became of each. A stage on which something went wrong is
/// not used again.
async fn play_all(
    plays: Vec<(Scene, Option<Passage>)>,
) -> Vec<(Scene, Option<Passage>, Result<Played, String>)> {
    let left = Mutex::new(plays.into_iter());
    let stages = (0..STAGES).map(async |_| {
        let (mut stage, mut played, mut used) = (None, Vec::new(), Vec::new());
        loop {
            let next = left.lock().unwrap().next();
            let Some((scene, end)) = next else {
                used.extend(stage);
                return (played, used);
            };
            let on = match stage.take() {
                Some(on) => on,
                None => Stage::new().await,
            };
            let outcome = AssertUnwindSafe(play(&on, scene, end)).catch_unwind();
            let outcome = match outcome.await {
                Ok(outcome) => {
                    stage = Some(on);
                    Ok(outcome)
                }
                Err(panic) => {
                    used.push(on);
                    let text = panic.downcast_ref::<String>().cloned();
                    let word = || panic.downcast_ref::<&str>().map(ToString::to_string);
                    Err(text.or_else(word).unwrap_or_default())
                }
            };
            played.push((scene, end, outcome));
        }
    });
    // A stage that goes away stops the thread, and with it the others' connections: all go at the end.
    let (played, _used): (Vec<_>, Vec<_>) = join_all(stages).await.into_iter().unzip();
    played.into_iter().flatten().collect()
}

/// The attempt that is under way at these points is made once more, and no other ever is.
const IN_FLIGHT: [FailPoint; 4] = [AfterHandler, BeforeAdvance, BeforeCommit, BeforeFail];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_boundary_loses_nothing_and_does_nothing_twice() {
    let began = Instant::now();
    let rehearsals = play_all(Scene::ALL.map(|scene| (scene, None)).to_vec()).await;
    let mut plays = Vec::new();
    for (scene, _, rehearsal) in rehearsals {
        let trace = rehearsal
            .unwrap_or_else(|error| panic!("{scene:?}, with nobody killed: {error}"))
            .trace;
        let begins = match scene {
            Scene::CutShort | Scene::Drained => {
                trace.iter().position(|passed| *passed == Draining).unwrap()
            }
            _ => 0,
        };
        for (index, point) in trace.iter().enumerate().skip(begins) {
            let passage = trace[..=index]
                .iter()
                .filter(|passed| *passed == point)
                .count();
            // How often a copy finds its job busy depends on the machine; one hand-over is as the other.
            let sure = passage == 1 || !matches!(scene, Scene::Busy | Scene::HandedOver);
            if sure && scene.swept().contains(point) {
                plays.push((scene, Some((*point, passage))));
            }
        }
        let unseen: Vec<_> = scene
            .swept()
            .iter()
            .filter(|point| !trace.contains(point))
            .collect();
        assert!(
            scene == Scene::Ordinary || unseen.is_empty(),
            "{scene:?} never passes {unseen:?}"
        );
    }
    let swept: BTreeSet<_> = plays
        .iter()
        .filter_map(|(_, end)| *end)
        .map(|(point, _)| point)
        .collect();
    let unseen: Vec<_> = FailPoint::ALL
        .iter()
        .filter(|point| !swept.contains(point))
        .collect();
    assert!(unseen.is_empty(), "no scene passes {unseen:?}");

    let (kills, mut again) = (plays.len(), 0);
    let mut wrong = Vec::new();
    for (scene, end, outcome) in play_all(plays).await {
        let (point, passage) = end.unwrap();
        let expected = scene == Scene::Ordinary && IN_FLIGHT.contains(&point);
        match outcome {
            Err(error) => wrong.push(format!("{scene:?}, {}:{passage}: {error}", point.name())),
            Ok(played) if scene == Scene::Ordinary && played.in_flight.is_some() != expected => {
                wrong.push(format!(
                    "{scene:?}, {}:{passage}: in flight was {:?}",
                    point.name(),
                    played.in_flight
                ))
            }
            Ok(played) => again += usize::from(played.in_flight.is_some()),
        }
    }
    let took = began.elapsed();
    eprintln!(
        "{kills} kills at {} points; {again} attempts were made once more; {took:.1?}",
        FailPoint::ALL.len()
    );
    assert!(
        wrong.is_empty(),
        "{} of {kills} went wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
