//! The upstream: publishes jobs all the time, with confirms, and much that it should not.
//!
//! It keeps what a publisher with an outbox keeps: which jobs were accepted. A job is accepted when its publish is confirmed
//! and not returned, or when the transaction that enqueued it is committed. When the work queue is deleted, what lies in it
//! is gone, and what no worker has seen yet nobody else knows of. Which jobs these are is known, one by one, and exactly
//! they are published again. That is the only reason for which anything is published again once it was accepted.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use sqlx::PgPool;
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use crate::{
    dice::Dice,
    faults::{Deletion, Faults},
    ground::{EXCHANGE, Ground, QUEUE, now_us},
    jobs::{self, Job},
    rabbit::Rabbit,
};

/// How many jobs are published in a second, while everything is healthy.
const RATE: u64 = 50;
/// So many in a second must be accepted in the end, or the load was none.
pub const LEAST_RATE: u64 = RATE / 10;
/// The header by which a message that is no job is found again.
pub const GARBAGE: &str = "chaos-garbage";
/// The header that tells a copy whose generation the publisher made up, and which.
pub const FORGED: &str = "chaos-forged";

/// What a publisher with an outbox keeps of the jobs that were confirmed.
#[derive(Default)]
pub struct Outbox {
    /// Those that were not found in the ledger when it was last asked.
    unknown: HashSet<Uuid>,
    /// Those that were lost with the queue.
    lost: HashSet<Uuid>,
}

impl Outbox {
    fn confirmed(&mut self, job: Uuid) {
        self.unknown.insert(job);
        self.lost.remove(&job);
    }

    /// Whether the ledger knows every job except some of these. Not, when it cannot be asked.
    pub async fn knows_all_but(&mut self, these: &HashSet<Uuid>, pool: &PgPool) -> bool {
        let asked: Vec<Uuid> = self.unknown.difference(these).copied().collect();
        if asked.is_empty() {
            return true;
        }
        let known = sqlx::query_scalar("SELECT id FROM cliquet.jobs WHERE id = ANY($1)")
            .bind(asked)
            .fetch_all(pool)
            .await;
        for known in known.unwrap_or_default() {
            self.unknown.remove(&known);
        }
        self.unknown.is_subset(these)
    }

    /// These were in a queue that is deleted; which of them the ledger may not know.
    pub fn lose(&mut self, these: &HashSet<Uuid>) -> HashSet<Uuid> {
        let lost: HashSet<_> = self.unknown.intersection(these).copied().collect();
        self.unknown.retain(|job| !lost.contains(job));
        self.lost.extend(&lost);
        lost
    }
}

#[derive(Default)]
pub struct Published {
    pub accepted: Vec<Job>,
    /// What each message that is no job was, by its number, and when it was accepted.
    pub garbage: Vec<(&'static str, i64)>,
    pub by_queue: u64,
    pub by_exchange: u64,
    pub by_sql: u64,
    pub duplicates: u64,
    pub forged: u64,
    /// After their queue was deleted.
    pub again: u64,
    /// Attempts to publish that were not confirmed.
    pub refused: u64,
    /// What was lost with the work queue.
    pub deletions: Vec<Deletion>,
}

pub struct Upstream {
    seed: u64,
    ground: Arc<Ground>,
    faults: Arc<Faults>,
    rabbit: Rabbit,
    pub published: Published,
    looked: Instant,
}

impl Upstream {
    pub fn new(seed: u64, ground: &Arc<Ground>, faults: &Arc<Faults>) -> Self {
        Self {
            seed,
            ground: ground.clone(),
            faults: faults.clone(),
            rabbit: Rabbit::new(&ground.amqp_url),
            published: Published::default(),
            looked: Instant::now(),
        }
    }

    /// Publishes until `stop`.
    pub async fn publish(mut self, stop: Arc<AtomicBool>) -> Self {
        let mut dice = Dice::of(&[self.seed, 4]);
        let mut next = Instant::now();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            next = (next + Duration::from_millis(1_000 / RATE)).max(Instant::now());
            sleep_until(next).await;
            let job = Job::drawn(self.seed, number);
            self.accept(job, &mut dice).await;
            match dice.below(100) {
                0..6 => self.duplicate(&mut dice).await,
                6..10 => self.forge(&mut dice).await,
                10..13 => self.litter(&mut dice).await,
                _ => {}
            }
            if self.looked.elapsed() > Duration::from_secs(5) {
                self.publish_lost_again().await;
                self.looked = Instant::now();
            }
        }
        self
    }

    async fn accept(&mut self, job: Job, dice: &mut Dice) {
        let body = job.body(self.seed);
        match dice.below(20) {
            0 => {
                self.enqueue(&job).await;
                self.published.by_sql += 1;
            }
            1..6 => {
                let sent = self.send(EXCHANGE, &body, FieldTable::default());
                sent.await.confirmed(job.id);
                self.published.by_exchange += 1;
            }
            _ => {
                let sent = self.send("", &body, FieldTable::default());
                sent.await.confirmed(job.id);
                self.published.by_queue += 1;
            }
        }
        self.published.accepted.push(job);
    }

    /// Publishes until it is confirmed, which may be once too often; not while the queue is being deleted. Whoever writes
    /// down what was confirmed does so before that.
    async fn send(
        &mut self,
        exchange: &str,
        body: &[u8],
        headers: FieldTable,
    ) -> OwnedMutexGuard<Outbox> {
        loop {
            let outbox = self.faults.outbox.clone().lock_owned().await;
            let properties = BasicProperties::default().with_headers(headers.clone());
            let sent = self
                .rabbit
                .publish_once(exchange, QUEUE, body, properties)
                .await;
            if sent {
                return outbox;
            }
            drop(outbox);
            self.published.refused += 1;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// A job that a transaction of the user's own puts into the ledger.
    async fn enqueue(&mut self, job: &Job) {
        while let Err(error) = self.enqueue_once(job).await {
            assert!(
                error.as_database_error().is_none_or(|error| {
                    let code = error.code().unwrap_or_default();
                    // Postgres stops, starts or has been killed.
                    code.starts_with("57P")
                }),
                "a job cannot be enqueued: {error}"
            );
            self.published.refused += 1;
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn enqueue_once(&self, job: &Job) -> Result<(), sqlx::Error> {
        let mut transaction = self.ground.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO cliquet.jobs (id, queue, kind, payload, total, status, epoch, generation, sent, next_attempt_at)
             VALUES ($1, $2, 'chaos', $3::json, $4, 'PENDING', 0, 0, -1, now()) ON CONFLICT DO NOTHING",
        )
        .bind(job.id)
        .bind(QUEUE)
        .bind(Job::payload(self.seed))
        .bind(job.tasks.len() as i32)
        .execute(&mut *transaction)
        .await?;
        // Where the answer of an earlier commit was lost, the job is there already.
        if inserted.rows_affected() == 0 {
            return Ok(());
        }
        for (index, act) in job.tasks.iter().enumerate() {
            let (label, input) = job.task(index);
            sqlx::query("INSERT INTO cliquet.tasks (job_id, position, handler, label, input) VALUES ($1, $2, $3, $4, $5::json)")
                .bind(job.id)
                .bind(index as i32 + 1)
                .bind(act.handler())
                .bind(label)
                .bind(input)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    /// One of the jobs before, a recent one more often than not.
    fn earlier(&self, dice: &mut Dice) -> Vec<u8> {
        let accepted = &self.published.accepted;
        let among = match dice.chance(0.7) {
            true => accepted.len().min(20),
            false => accepted.len(),
        };
        let back = dice.below(among as u64) as usize + 1;
        accepted[accepted.len() - back].body(self.seed)
    }

    async fn duplicate(&mut self, dice: &mut Dice) {
        let body = self.earlier(dice);
        drop(self.send("", &body, FieldTable::default()).await);
        self.published.duplicates += 1;
    }

    /// A copy with headers of cliquet's own: a stale generation, now and then one that is ahead, hops, a forged mark.
    async fn forge(&mut self, dice: &mut Dice) {
        let body = self.earlier(dice);
        let mut headers = FieldTable::default();
        let generation = dice.below(3) as i64;
        headers.insert(
            "cliquet-generation".into(),
            AMQPValue::LongLongInt(generation),
        );
        headers.insert(
            "cliquet-hops".into(),
            AMQPValue::LongLongInt(dice.below(5) as i64),
        );
        headers.insert(
            "cliquet-redelivered".into(),
            AMQPValue::Boolean(dice.chance(0.5)),
        );
        headers.insert(FORGED.into(), AMQPValue::LongLongInt(generation));
        drop(self.send("", &body, headers).await);
        self.published.forged += 1;
    }

    async fn litter(&mut self, dice: &mut Dice) {
        let (what, body) = jobs::garbage(dice);
        let mut headers = FieldTable::default();
        let number = self.published.garbage.len() as i64;
        headers.insert(GARBAGE.into(), AMQPValue::LongLongInt(number));
        let sent = self.send("", &body, headers).await;
        self.published.garbage.push((what, now_us()));
        drop(sent);
    }

    /// Publishes what was lost with the queue.
    pub async fn publish_lost_again(&mut self) {
        let lost = self.faults.outbox.lock().await.lost.clone();
        let accepted = self.published.accepted.iter();
        let lost: Vec<_> = accepted
            .filter(|job| lost.contains(&job.id))
            .map(|job| (job.id, job.body(self.seed)))
            .collect();
        for (job, body) in lost {
            let sent = self.send("", &body, FieldTable::default()).await;
            { sent }.confirmed(job);
            self.published.again += 1;
        }
    }
}
