//! A task's SUCCESS and what comes next.

use super::*;

/// A worker that runs the first task of a job of so many.
async fn running(database: &Database, tasks: usize) -> (Worker, Arc<JobMessage>, Stand) {
    let ada = database.worker("ada").await;
    let message = job_of(tasks);
    let stand = stand(&message, &ada.claimed(&message).await);
    (ada, message, stand)
}

#[tokio::test]
async fn success_of_a_task_and_the_start_of_the_next_share_one_commit() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 3).await;

    assert_eq!(ada.done(first, json!({"a": 1})).await, Written::Committed);

    let tasks = database.tasks(message.id).await;
    assert_eq!(
        (tasks[0].status.as_str(), tasks[0].finished),
        ("SUCCESS", true)
    );
    assert_eq!(tasks[0].result.as_deref(), Some(r#"{"a":1}"#));
    assert_eq!(
        (tasks[1].status.as_str(), tasks[1].attempt, tasks[1].epoch),
        ("PROCESSING", 1, 1)
    );
    assert_eq!(tasks[2].status, "PENDING");
    let shared: bool = database
        .value("SELECT count(DISTINCT xmin::text) = 1 FROM cliquet.tasks WHERE position < 3")
        .await;
    assert!(shared, "one transaction wrote both");
}

#[tokio::test]
async fn success_of_the_last_task_is_success_of_the_job() {
    let database = Database::new().await;
    let (ada, message, only) = running(&database, 1).await;
    let written = ada.advance(only, json!("done"), Next::Finish).await;
    assert_eq!(written, Written::Committed);
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("SUCCESS", None));
    assert_eq!((job.finished, job.due_in, job.error), (true, None, None));
    assert_eq!(database.statuses(message.id).await, ["SUCCESS"]);
}

#[tokio::test]
async fn a_job_handed_back_waits_with_its_next_task_not_begun() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    let written = ada.advance(first, json!(1), Next::HandBack).await;
    assert_eq!(written, Written::Committed);
    let job = database.job(message.id).await;
    assert_eq!((job.status.as_str(), job.holder), ("PENDING", None));
    assert!(job.due_in.is_some_and(|due| due <= 0.0), "{:?}", job.due_in);
    let tasks = database.tasks(message.id).await;
    assert_eq!(
        (tasks[0].status.as_str(), tasks[1].status.as_str()),
        ("SUCCESS", "PENDING")
    );
    assert_eq!((tasks[1].attempt, tasks[1].epoch), (0, 0));
    let again = ada.claimed(&message).await;
    assert_eq!(
        (again.way, again.position, again.attempt),
        (Way::Resumed, 2, 1)
    );
}

#[tokio::test]
async fn null_is_kept_as_no_result() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    ada.done(first, json!(null)).await;
    assert_eq!(database.tasks(message.id).await[0].result, None);
}

#[tokio::test]
async fn an_advance_whose_answer_was_lost_is_committed_once() {
    let database = Database::new().await;
    for next in [Next::Task, Next::Finish, Next::HandBack] {
        let (ada, message, first) = running(&database, 2).await;
        let stand = match next {
            Next::Finish => {
                ada.done(first, json!(1)).await;
                after(first)
            }
            _ => first,
        };
        assert_eq!(
            ada.advance(stand, json!("first"), next).await,
            Written::Committed
        );
        let before = database.all_of(message.id).await;
        assert_eq!(
            ada.advance(stand, json!("again"), next).await,
            Written::Committed
        );
        assert_eq!(database.all_of(message.id).await, before, "{next:?}");
    }
}

#[tokio::test]
async fn an_advance_whose_answer_was_lost_is_fenced_when_the_job_went_on_elsewhere() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    let bob = database.worker("bob").await;
    ada.done(first, json!(1)).await;
    stale(&database, &ada).await;
    bob.claimed(&message).await;
    let before = database.all_of(message.id).await;
    // It was committed. But she would begin the next task, which is bob's.
    assert_eq!(ada.done(first, json!(1)).await, Written::Fenced);
    assert_eq!(ada.ledger.fate(first).await, Some(Written::Fenced));
    assert_eq!(ada.done(after(first), json!(1)).await, Written::Fenced);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn an_advance_of_another_attempt_is_fenced() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    let before = database.all_of(message.id).await;
    for attempt in [0, 2] {
        for next in [Next::Task, Next::HandBack] {
            let written = ada
                .advance(Stand { attempt, ..first }, json!(1), next)
                .await;
            assert_eq!(written, Written::Fenced);
        }
    }
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn a_task_that_was_not_begun_cannot_succeed() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 3).await;
    assert_eq!(ada.done(after(first), json!(1)).await, Written::Fenced);
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING", "PENDING"]
    );
}

#[tokio::test]
async fn a_job_cannot_end_before_its_last_task() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    let early = ada
        .ledger
        .advance(advance(first, json!(1), Next::Finish))
        .await;
    assert!(matches!(early, Err(LedgerError::Refused(_))), "{early:?}");
    assert_eq!(
        database.statuses(message.id).await,
        ["PROCESSING", "PENDING"]
    );
    assert_eq!(database.job(message.id).await.status, "PROCESSING");
}

#[tokio::test]
async fn a_cancelled_job_fences_its_holder() {
    let database = Database::new().await;
    let (ada, message, first) = running(&database, 2).await;
    cancel(&database, message.id).await;
    let before = database.all_of(message.id).await;
    assert_eq!(ada.done(first, json!(1)).await, Written::Fenced);
    assert_eq!(ada.fail(first).await, Written::Fenced);
    assert_eq!(database.all_of(message.id).await, before);
}

#[tokio::test]
async fn an_advance_locks_no_task_while_it_waits_for_a_jobs_row() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let (earlier, later) = (job_of(2), job_of(1));
    assert!(earlier.id < later.id);
    let stands = [
        stand(&earlier, &ada.claimed(&earlier).await),
        stand(&later, &ada.claimed(&later).await),
    ];
    let mut barrier = database.connect().await;
    let lock = format!(
        "BEGIN; SELECT FROM cliquet.jobs WHERE id = '{}' FOR UPDATE",
        later.id
    );
    on(&mut barrier, &lock).await;
    let (ledger, mut lane) = (ada.ledger.clone(), database.connect().await);
    let group = tokio::spawn(async move {
        let group = [
            advance(stands[0], json!(1), Next::Task),
            advance(stands[1], json!(1), Next::Finish),
        ];
        let group: Vec<_> = group.iter().collect();
        lane::Verb::write(&mut lane, ledger.holder(), &group)
            .await
            .unwrap()
    });
    database.blocked(1).await;
    on(
        &mut barrier,
        "SELECT FROM cliquet.tasks FOR UPDATE NOWAIT; COMMIT",
    )
    .await;
    assert_eq!(group.await.unwrap(), [Some(Written::Committed); 2]);
}

#[tokio::test]
async fn every_row_is_looked_up_whatever_the_planner_knows_of_the_tables() {
    let database = Database::new().await;
    let (first_day, many, gone) = (
        "SELECT",
        "INSERT INTO cliquet.jobs (id, epoch, generation, sent, finished_at, total, status, queue, kind, payload)
         SELECT gen_random_uuid(), 1, 0, 0, clock_timestamp(), 1, 'SUCCESS', 'q', 'k', '{}' FROM generate_series(1, 5000)",
        "DELETE FROM cliquet.jobs",
    );
    for done in [
        first_day,
        // The planner takes them for empty for ever.
        "VACUUM ANALYZE cliquet.jobs",
        "VACUUM ANALYZE cliquet.tasks",
        many,
        gone,
        // Many pages and nothing on them: an index of all jobs costs as much to walk along as one of them to look up. An index
        // that is made then tells the planner so.
        "CREATE INDEX made ON cliquet.jobs (finished_at) WHERE finished_at < '-infinity'",
    ] {
        database.run(done).await;
        let mut writer = PgConnection::connect_with(&database.address.writer_options("test"))
            .await
            .unwrap();
        for plan in plans::plans(&mut writer).await.unwrap() {
            let whole = plan.lines.join("\n");
            assert_eq!(plan.complaint(), None, "{done}:\n{whole}");
            let mut looked_up = 0;
            for (line, next) in plan.lines.iter().zip(plan.lines.iter().skip(1)) {
                if line.contains("_pkey") {
                    // The rows of a step are found by their place: what is looked up by the job alone grows with the job.
                    let by_place = next.contains("\"position\" =") || plan.name != "step";
                    assert!(line.contains("jobs_") || by_place, "{whole}");
                    looked_up += 1;
                }
            }
            assert!(looked_up > 0, "{whole}");
        }
    }
}
