//! The claim's table, once more: the model's own (`tests/model/table.rs`) against the statement. Whatever can stand in the
//! ledger, whatever can be asked and whatever signs of life a holder gives are combined, and both must say and write the same.

#[allow(dead_code)]
#[path = "../../../tests/model/table.rs"]
mod model;

use std::collections::BTreeMap;

use model::{Asked, Doing, Job, Lock, MOST_TASKS, Pulse, Rows, Signs, Status, Task};

use super::*;

/// The process that asks.
const ME: model::Id = 0;
const EPOCH: u8 = 7;
const GENERATION: u8 = 5;
/// Of a worker that the ledger does not know.
const NOBODY: i64 = 999_999;

/// One state of the ledger, and one question.
#[derive(Clone, Copy, Debug)]
struct Case {
    ledger: Option<Job>,
    asked: Asked,
    signs: Signs,
}

#[tokio::test]
async fn the_models_table_is_the_statements() {
    let database = Database::new().await;
    let me = database.worker("me").await;
    // It holds the locks of the others.
    let mut living = database.connect().await;
    let holders = holders(&database, &mut living, &me).await;
    let cases: BTreeMap<JobId, Case> = cases().map(|case| (JobId::new(), case)).collect();
    let claims: Vec<Claim> = cases.iter().map(|(id, case)| claim_of(*id, case)).collect();
    insert(&database, &cases, &claims, &holders).await;

    let began = Instant::now();
    let (mut answers, mut session) = (Vec::new(), database.connect().await);
    for group in claims.chunks(512) {
        let group: Vec<_> = group.iter().collect();
        let answered = lane::Verb::write(&mut session, me.ledger.holder(), &group).await;
        answers.extend(answered.unwrap());
    }
    let took = began.elapsed();

    let after = stored(&database, &holders).await;
    let (mut wrong, mut counts) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for ((id, case), answer) in cases.iter().zip(answers) {
        let mut ledger = case.ledger;
        let expected = model::claim(&mut ledger, 2, case.asked, case.signs, Rows::ALL);
        let real = answer.as_ref().map(in_the_models_words);
        *counts.entry(row(&expected)).or_default() += 1;
        if real != Some(expected) || after.get(id) != ledger.as_ref() {
            let stored = after.get(id);
            wrong.push(format!("{case:?}\n  the model: {expected:?}, {ledger:?}\n  Postgres:  {answer:?}, {stored:?}"));
        }
    }
    println!("{} claims in {took:.1?}: {counts:?}", cases.len());
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert_eq!(counts.len(), 14, "every row is met: {counts:?}");
}

#[tokio::test]
async fn a_jobs_first_delivery_is_row_1_of_the_models_table() {
    let database = Database::new().await;
    let me = database.worker("me").await;
    let holders = BTreeMap::from([(me.id(), ME)]);
    let message = job_of(2);
    let first = first_delivery(&message);
    assert!(first.is_first());
    let answer = me.ledger.claim(first).await.unwrap();
    let case = unknown().find(|case| !case.asked.alone && case.asked.generation == 0);
    let (mut ledger, case) = (None, case.unwrap());
    let expected = model::claim(&mut ledger, 2, case.asked, case.signs, Rows::ALL);
    assert_eq!(in_the_models_words(&answer), expected);
    assert_eq!(
        stored(&database, &holders).await.get(&message.id),
        ledger.as_ref()
    );
}

// ── what can be ──────────────────────────────────────────────────────────────────────────────────────────────────────

const ALIVE: Signs = Signs {
    lock: Lock::Held,
    pulse: Pulse::Fresh,
};

fn all_signs() -> impl Iterator<Item = Signs> {
    let locks = [Lock::Held, Lock::Free, Lock::FreeSinceRestart];
    let pulses = [Pulse::Fresh, Pulse::Stale, Pulse::Goodbye, Pulse::Forgotten];
    locks
        .into_iter()
        .flat_map(move |lock| pulses.map(|pulse| Signs { lock, pulse }))
}

/// Everything that can be asked.
fn questions() -> impl Iterator<Item = Asked> {
    let generations = [0, GENERATION - 1, GENERATION, GENERATION + 1];
    let runnings = [None, Some(EPOCH), Some(EPOCH - 1)];
    let flags = [(false, false), (false, true), (true, false), (true, true)];
    let conflicts = [false, true];
    generations.into_iter().flat_map(move |generation| {
        runnings.into_iter().flat_map(move |running| {
            flags.into_iter().flat_map(move |(redelivered, alone)| {
                conflicts.map(|conflict| Asked {
                    by: ME,
                    conflict,
                    generation,
                    redelivered,
                    running,
                    alone,
                })
            })
        })
    })
}

fn unknown() -> impl Iterator<Item = Case> {
    let asked = questions().filter(|asked| !asked.conflict);
    asked.map(|asked| Case {
        ledger: None,
        asked,
        signs: ALIVE,
    })
}

/// Everything that can stand in the ledger, with the signs of life of whoever holds the job.
fn ledgers() -> impl Iterator<Item = (Job, Signs)> {
    // The job's status, its frontier's, and which attempt that was.
    let ends = [
        (Status::Pending, Doing::Pending, 0),
        (Status::Pending, Doing::Pending, 1),
        (Status::Retrying, Doing::Failed, 1),
        // Put off by a brake, at the first attempt and at a later one.
        (Status::Retrying, Doing::Pending, 0),
        (Status::Retrying, Doing::Pending, 1),
        (Status::Failed, Doing::Failed, 2),
        // Given up because it could never be sent.
        (Status::Failed, Doing::Pending, 0),
        (Status::Cancelled, Doing::Failed, 1),
        (Status::Cancelled, Doing::Pending, 0),
        (Status::Success, Doing::Success, 1),
    ];
    let ends = ends.map(|(status, doing, attempt)| (status, doing, attempt, None, ALIVE));
    let mine = (Status::Processing, Doing::Processing, 2, Some(ME), ALIVE);
    let others = all_signs().zip(1..).map(|(signs, holder)| {
        (
            Status::Processing,
            Doing::Processing,
            2,
            Some(holder),
            signs,
        )
    });
    ends.into_iter().chain([mine]).chain(others).flat_map(
        |(status, doing, attempt, holder, signs)| {
            let sents = [-1, GENERATION as i8 - 1, GENERATION as i8];
            let crashes = [0, 2];
            let done = [0, 1];
            sents.into_iter().flat_map(move |sent| {
                crashes.into_iter().flat_map(move |crashes| {
                    done.map(|done| {
                        let frontier = Task {
                            status: doing,
                            epoch: EPOCH,
                            attempt,
                            crashes,
                        };
                        let before = Task {
                            status: Doing::Success,
                            epoch: 3,
                            attempt: 1,
                            crashes: 0,
                        };
                        let mut tasks = [Task::WAITING; MOST_TASKS];
                        tasks[..2].copy_from_slice(&match (done, doing) {
                            (0, Doing::Success) => [frontier, frontier],
                            (0, _) => [frontier, Task::WAITING],
                            _ => [before, frontier],
                        });
                        let job = Job {
                            status,
                            epoch: EPOCH,
                            generation: GENERATION,
                            sent,
                            holder,
                            total: 2,
                            tasks,
                        };
                        (job, signs)
                    })
                })
            })
        },
    )
}

fn cases() -> impl Iterator<Item = Case> {
    let known = ledgers().flat_map(|(job, signs)| {
        questions().map(move |asked| Case {
            ledger: Some(job),
            asked,
            signs,
        })
    });
    unknown().chain(known)
}

// ── between the model and Postgres ───────────────────────────────────────────────────────────────────────────────────

fn claim_of(id: JobId, case: &Case) -> Claim {
    let payload = if case.asked.conflict {
        "another"
    } else {
        "the same"
    };
    Claim {
        message: job(json!({"id": id, "payload": payload, "tasks": ["step_1", "step_2"]})),
        generation: Generation(case.asked.generation.into()),
        redelivered: case.asked.redelivered,
        running: case.asked.running.map(|epoch| Epoch(epoch.into())),
        alone: case.asked.alone,
    }
}

/// The workers that hold jobs: one for all signs of life that there can be, by their number in the ledger.
async fn holders(
    database: &Database,
    living: &mut PgConnection,
    me: &Worker,
) -> BTreeMap<i64, model::Id> {
    let mut holders = BTreeMap::from([(me.id(), ME)]);
    for (signs, holder) in all_signs().zip(1..) {
        let seen = if signs.pulse == Pulse::Stale {
            "interval '1 day'"
        } else {
            "interval '0'"
        };
        let patience = if signs.pulse == Pulse::Stale {
            "1 second"
        } else {
            "10 minutes"
        };
        let stopped = if signs.pulse == Pulse::Goodbye {
            "clock_timestamp()"
        } else {
            "NULL"
        };
        let locked = match signs.lock {
            Lock::FreeSinceRestart => "pg_postmaster_start_time() - interval '1 hour'",
            _ => "clock_timestamp()",
        };
        let sql = format!(
            "INSERT INTO cliquet.workers (name, host, pid, version, queue, patience, seen_at, stopped_at, locked_at)
             VALUES ('{signs:?}', 'here', 1, '0', 'jobs', '{patience}', clock_timestamp() - {seen}, {stopped}, {locked}) RETURNING id"
        );
        let mut id: i64 = database.value(&sql).await;
        if signs.lock == Lock::Held {
            on(
                living,
                &format!("SELECT pg_advisory_lock(lock_key) FROM cliquet.workers WHERE id = {id}"),
            )
            .await;
        }
        if signs.pulse == Pulse::Forgotten {
            database
                .run(&format!("DELETE FROM cliquet.workers WHERE id = {id}"))
                .await;
            id = NOBODY + i64::from(holder);
        }
        holders.insert(id, holder);
    }
    holders
}

/// Writes down what the ledgers of these cases say.
async fn insert(
    database: &Database,
    cases: &BTreeMap<JobId, Case>,
    claims: &[Claim],
    holders: &BTreeMap<i64, model::Id>,
) {
    let holder = |wanted| {
        holders
            .iter()
            .find(|(_, holder)| **holder == wanted)
            .map(|(id, _)| *id)
    };
    let known: Vec<_> = cases
        .iter()
        .zip(claims)
        .filter_map(|((id, case), claim)| Some((id, case.ledger?, claim)))
        .collect();
    // What is stored is the same content for all.
    let same = claims
        .iter()
        .find(|claim| claim.message.payload.get().contains("same"))
        .unwrap();
    let mut session = database.connect().await;
    sqlx::query(
        "INSERT INTO cliquet.jobs (id, status, epoch, generation, sent, holder, fingerprint, total, queue, kind, payload, error, started_at, finished_at, next_attempt_at)
         SELECT id, status::cliquet.job_status, epoch, generation, sent, holder, $7, 2, 'jobs', 'test', '\"the same\"',
                CASE WHEN status IN ('RETRYING', 'FAILED', 'CANCELLED') THEN 'no luck' END, clock_timestamp(),
                CASE WHEN status IN ('SUCCESS', 'FAILED', 'CANCELLED') THEN clock_timestamp() END,
                CASE WHEN status IN ('PENDING', 'RETRYING') THEN clock_timestamp() END
           FROM unnest($1::uuid[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) AS job (id, status, epoch, generation, sent, holder)",
    )
    .bind(known.iter().map(|(id, ..)| id.0).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, job, _)| format!("{:?}", job.status).to_uppercase()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, job, _)| i64::from(job.epoch)).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, job, _)| i64::from(job.generation)).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, job, _)| i64::from(job.sent)).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, job, _)| job.holder.and_then(holder)).collect::<Vec<_>>())
    .bind(&same.message.fingerprint.0[..])
    .execute(&mut session)
    .await
    .unwrap();
    let tasks: Vec<_> = known
        .iter()
        .flat_map(|(id, job, _)| {
            job.tasks
                .into_iter()
                .take(2)
                .zip(1..)
                .map(|(task, position)| (id.0, position, task))
        })
        .collect();
    sqlx::query(
        "INSERT INTO cliquet.tasks (job_id, position, status, epoch, attempt, crashes, handler, label, started_at, finished_at, error)
         SELECT job_id, position, status::cliquet.task_status, epoch, attempt, crashes, 'step', 'step', CASE WHEN attempt > 0 THEN clock_timestamp() END,
                CASE WHEN status IN ('SUCCESS', 'FAILED') THEN clock_timestamp() END, CASE status WHEN 'FAILED' THEN 'no luck' END
           FROM unnest($1::uuid[], $2::int4[], $3::text[], $4::int8[], $5::int4[], $6::int4[]) AS task (job_id, position, status, epoch, attempt, crashes)",
    )
    .bind(tasks.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
    .bind(tasks.iter().map(|(_, position, _)| *position).collect::<Vec<i32>>())
    .bind(tasks.iter().map(|(.., task)| format!("{:?}", task.status).to_uppercase()).collect::<Vec<_>>())
    .bind(tasks.iter().map(|(.., task)| i64::from(task.epoch)).collect::<Vec<_>>())
    .bind(tasks.iter().map(|(.., task)| i32::from(task.attempt)).collect::<Vec<_>>())
    .bind(tasks.iter().map(|(.., task)| i32::from(task.crashes)).collect::<Vec<_>>())
    .execute(&mut session)
    .await
    .unwrap();
}

/// What the ledger says now.
async fn stored(database: &Database, holders: &BTreeMap<i64, model::Id>) -> BTreeMap<JobId, Job> {
    let mut session = database.connect().await;
    let rows = sqlx::query(
        "SELECT job.id, job.status::text, job.epoch, job.generation, job.sent, job.holder, job.total,
                array_agg(task.status::text ORDER BY position) AS statuses, array_agg(task.epoch ORDER BY position) AS epochs,
                array_agg(task.attempt ORDER BY position) AS attempts, array_agg(task.crashes ORDER BY position) AS crashes
           FROM cliquet.jobs job JOIN cliquet.tasks task ON task.job_id = job.id GROUP BY job.id",
    )
    .fetch_all(&mut session)
    .await
    .unwrap();
    let small = |number: i64| u8::try_from(number).unwrap();
    let read = |row: &sqlx::postgres::PgRow| {
        let (statuses, epochs): (Vec<String>, Vec<i64>) = (row.get("statuses"), row.get("epochs"));
        let (attempts, crashes): (Vec<i32>, Vec<i32>) = (row.get("attempts"), row.get("crashes"));
        let mut tasks = [Task::WAITING; MOST_TASKS];
        for (index, task) in tasks.iter_mut().enumerate().take(statuses.len()) {
            *task = Task {
                status: match statuses[index].as_str() {
                    "PENDING" => Doing::Pending,
                    "PROCESSING" => Doing::Processing,
                    "SUCCESS" => Doing::Success,
                    _ => Doing::Failed,
                },
                epoch: small(epochs[index]),
                attempt: small(attempts[index].into()),
                crashes: small(crashes[index].into()),
            };
        }
        let job = Job {
            status: match row.get("status") {
                "PENDING" => Status::Pending,
                "PROCESSING" => Status::Processing,
                "RETRYING" => Status::Retrying,
                "SUCCESS" => Status::Success,
                "FAILED" => Status::Failed,
                _ => Status::Cancelled,
            },
            epoch: small(row.get("epoch")),
            generation: small(row.get("generation")),
            sent: i8::try_from(row.get::<i64, _>("sent")).unwrap(),
            holder: row.get::<Option<i64>, _>("holder").map(|id| holders[&id]),
            total: small(row.get::<i32, _>("total").into()),
            tasks,
        };
        (JobId(row.get("id")), job)
    };
    rows.iter().map(read).collect()
}

fn in_the_models_words(answer: &Answer) -> model::Answer {
    let small = |number: i64| u8::try_from(number).unwrap();
    match answer {
        Answer::Claimed(claimed) => model::Answer::Claimed {
            way: match claimed.way {
                Way::New => model::Way::New,
                Way::Retried => model::Way::Retried,
                Way::Regained => model::Way::Regained,
                Way::TakenOver => model::Way::TakenOver,
                Way::Resumed => model::Way::Resumed,
            },
            epoch: small(claimed.epoch.0),
            generation: small(claimed.generation.0),
            position: small(claimed.position.into()) - 1,
            attempt: small(claimed.attempt.into()),
            crashes: small(claimed.crashes.into()),
        },
        Answer::Conflict { .. } => model::Answer::Conflict,
        Answer::Foreign { generation } => model::Answer::Foreign {
            generation: small(generation.0),
        },
        Answer::ParkAgain { generation, .. } => model::Answer::ParkAgain {
            generation: small(generation.0),
        },
        Answer::Finished => model::Answer::Finished,
        Answer::Stale => model::Answer::Stale,
        Answer::Superseded { generation, .. } => model::Answer::Superseded {
            generation: small(generation.0),
        },
        Answer::Mine => model::Answer::Mine,
        Answer::Busy => model::Answer::Busy,
        Answer::Suspect { crashes, .. } => model::Answer::Suspect {
            crashes: small((*crashes).into()),
        },
    }
}

fn row(answer: &model::Answer) -> &'static str {
    match answer {
        model::Answer::Claimed { way, .. } => match way {
            model::Way::New => "new",
            model::Way::Retried => "retried",
            model::Way::Regained => "regained",
            model::Way::TakenOver => "taken over",
            model::Way::Resumed => "resumed",
        },
        model::Answer::Conflict => "conflict",
        model::Answer::Foreign { .. } => "foreign",
        model::Answer::ParkAgain { .. } => "park again",
        model::Answer::Finished => "finished",
        model::Answer::Stale => "stale",
        model::Answer::Superseded { .. } => "superseded",
        model::Answer::Mine => "mine",
        model::Answer::Busy => "busy",
        model::Answer::Suspect { .. } => "suspect",
    }
}
