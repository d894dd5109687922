//! A worker that was cut off from Postgres while an answer was on the way to it: when it comes at last, others have done
//! what the worker would begin now.

use std::{sync::Arc, time::Duration};

use lapin::BasicProperties;
use tokio::time::sleep;

use crate::{
    crew::Crew,
    ground::{Ground, QUEUE},
    jobs::{Act, Job},
    rabbit::{Rabbit, within},
    schedule::Service,
    worker::{Settings, executions},
};

const LONG: Duration = Duration::from_secs(30);

/// Two workers, and a job whose answer one of them waits for.
struct Scene {
    ground: Arc<Ground>,
    crew: Arc<Crew>,
    job: Job,
}

impl Scene {
    async fn of(tasks: Vec<Act>) -> Self {
        let ground = Ground::make().await;
        let settings = Settings {
            concurrency: 4,
            quick: true,
        };
        let crew = Crew::start(&ground, 2, settings).await;
        let mut rabbit = Rabbit::new(&ground.amqp_url);
        within(LONG, "both workers consume", async || {
            (rabbit.queue(QUEUE).await?.1 == 2).then_some(())
        })
        .await;
        let job = Job::of(tasks);
        Self { ground, crew, job }
    }

    async fn publish(&self) {
        let (body, properties) = (self.job.body(1), BasicProperties::default());
        let mut rabbit = Rabbit::new(&self.ground.amqp_url);
        assert!(rabbit.publish_once("", QUEUE, &body, properties).await);
    }

    /// The slot of the worker whose write waits for a lock of ours in Postgres.
    async fn waits(&self) -> usize {
        let lane: String = within(LONG, "a worker's write waits for a lock", async || {
            sqlx::query_scalar(
                "SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE '%lane%'",
            )
            .fetch_optional(&self.ground.pool)
            .await
            .unwrap()
        })
        .await;
        let mut slots = 0..2;
        slots
            .find(|slot| lane.contains(&self.crew.name(*slot)))
            .unwrap()
    }

    /// The network of that worker is closed, `lock` is given up, so that its write is committed, and the other worker ends
    /// the job; then the network is opened and the answer comes. Answers with what was begun: the position, and whether by
    /// the worker that was cut off.
    async fn answers_late(self, lock: sqlx::Transaction<'_, sqlx::Postgres>) -> Vec<(i32, bool)> {
        let cut_off = self.waits().await;
        let name = self.crew.name(cut_off);
        self.crew.proxy(cut_off, Service::Postgres).hold();
        lock.rollback().await.unwrap();
        within(LONG, "the other worker ends the job", async || {
            let status: String =
                sqlx::query_scalar("SELECT status::text FROM cliquet.jobs WHERE id = $1")
                    .bind(self.job.id)
                    .fetch_optional(&self.ground.pool)
                    .await
                    .unwrap()?;
            (status == "SUCCESS").then_some(())
        })
        .await;
        self.crew.proxy(cut_off, Service::Postgres).fair();
        within(LONG, "the worker is present in the ledger again", async || {
            let silent: f64 = sqlx::query_scalar(
                "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM cliquet.workers WHERE name = $1",
            )
            .bind(&name)
            .fetch_one(&self.ground.pool)
            .await
            .unwrap();
            (silent < 0.5).then_some(())
        })
        .await;
        sleep(Duration::from_secs(1)).await;
        self.crew.dismiss().await;
        let begun = executions(&self.ground.folder)
            .into_iter()
            .filter(|execution| execution.job == self.job.id)
            .map(|execution| (execution.position, execution.worker == name))
            .collect();
        self.ground.tidy();
        begun
    }
}

/// Its commit of the first task has also begun the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_learns_late_of_its_commit_begins_nothing_that_others_have_taken_over() {
    let scene = Scene::of(vec![Act::Hold, Act::Nothing]).await;
    let (ground, id) = (scene.ground.clone(), scene.job.id);
    scene.publish().await;
    within(LONG, "the first task is begun", async || {
        (!executions(&ground.folder).is_empty()).then_some(())
    })
    .await;
    let mut lock = ground.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM cliquet.tasks WHERE job_id = $1 AND position = 1 FOR UPDATE")
        .bind(id)
        .execute(&mut *lock)
        .await
        .unwrap();
    std::fs::write(ground.folder.join(format!("{id}.release")), "").unwrap();
    assert_eq!(scene.answers_late(lock).await, [(1, true), (2, false)]);
}

/// Its claim has begun the first task.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_learns_late_of_its_claim_begins_nothing_that_others_have_taken_over() {
    let scene = Scene::of(vec![Act::Nothing]).await;
    let ground = scene.ground.clone();
    // Whoever inserts this job has to wait whether it is there already.
    let mut lock = ground.pool.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO cliquet.jobs (id, queue, kind, payload, total, status, epoch, generation, sent, next_attempt_at)
         VALUES ($1, 'another', 'chaos', '1', 1, 'PENDING', 0, 0, 0, now())",
    )
    .bind(scene.job.id)
    .execute(&mut *lock)
    .await
    .unwrap();
    scene.publish().await;
    assert_eq!(scene.answers_late(lock).await, [(1, false)]);
}
