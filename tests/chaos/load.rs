//! The upstream: publishes jobs all the time, with confirms, and much that it should not.
//!
//! It keeps what a publisher with an outbox keeps: which jobs were accepted, and when. A job is accepted when its publish is
//! confirmed and not returned, or when the transaction that enqueued it is committed. When the work queue was deleted,
//! what lay in it is gone, and what no worker had seen yet nobody else knows of: such jobs are published again until the
//! ledger knows them. That is the only reason for which anything is published again once it was accepted.

use std::{
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
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::{
    dice::Dice,
    faults::Faults,
    ground::{EXCHANGE, Ground, QUEUE, now_us},
    jobs::{self, Job},
    rabbit::Rabbit,
};

/// How many jobs are published in a second.
const RATE: u64 = 50;
/// The header by which a message that is no job is found again.
pub const GARBAGE: &str = "chaos-garbage";
/// The header that tells a forged copy.
pub const FORGED: &str = "chaos-forged";

pub struct Accepted {
    pub job: Job,
    /// In microseconds since 1970.
    pub at: i64,
}

#[derive(Default)]
pub struct Published {
    pub accepted: Vec<Accepted>,
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
    /// When the work queue was deleted.
    pub deleted: Vec<i64>,
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
                self.send(EXCHANGE, &body, FieldTable::default()).await;
                self.published.by_exchange += 1;
            }
            _ => {
                self.send("", &body, FieldTable::default()).await;
                self.published.by_queue += 1;
            }
        }
        let at = now_us();
        self.published.accepted.push(Accepted { job, at });
    }

    /// Publishes until it is confirmed, which may be once too often.
    async fn send(&mut self, exchange: &str, body: &[u8], headers: FieldTable) {
        loop {
            let properties = BasicProperties::default().with_headers(headers.clone());
            let sent = self
                .rabbit
                .publish_once(exchange, QUEUE, body, properties)
                .await;
            if sent {
                return;
            }
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
        accepted[accepted.len() - back].job.body(self.seed)
    }

    async fn duplicate(&mut self, dice: &mut Dice) {
        let body = self.earlier(dice);
        self.send("", &body, FieldTable::default()).await;
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
        headers.insert(FORGED.into(), AMQPValue::LongLongInt(1));
        self.send("", &body, headers).await;
        self.published.forged += 1;
    }

    async fn litter(&mut self, dice: &mut Dice) {
        let (what, body) = jobs::garbage(dice);
        let mut headers = FieldTable::default();
        let number = self.published.garbage.len() as i64;
        headers.insert(GARBAGE.into(), AMQPValue::LongLongInt(number));
        self.send("", &body, headers).await;
        self.published.garbage.push((what, now_us()));
    }

    /// What was accepted before the queue was deleted and is unknown to the ledger; whether there was any.
    pub async fn publish_lost_again(&mut self) -> bool {
        let Some(deleted) = self.faults.deletions().last().copied() else {
            return false;
        };
        let at_risk: Vec<&Accepted> = self
            .published
            .accepted
            .iter()
            .filter(|accepted| accepted.at <= deleted)
            .collect();
        let ids: Vec<Uuid> = at_risk.iter().map(|accepted| accepted.job.id).collect();
        let unknown: Result<Vec<Uuid>, _> = sqlx::query_scalar(
            "SELECT id FROM unnest($1::uuid[]) AS asked (id) WHERE NOT EXISTS (SELECT FROM cliquet.jobs job WHERE job.id = asked.id)",
        )
        .bind(ids)
        .fetch_all(&self.ground.pool)
        .await;
        // Postgres may be away: the next look finds them.
        let Ok(unknown) = unknown else {
            return false;
        };
        let lost: Vec<Vec<u8>> = at_risk
            .iter()
            .filter(|accepted| unknown.contains(&accepted.job.id))
            .map(|accepted| accepted.job.body(self.seed))
            .collect();
        for body in &lost {
            self.send("", body, FieldTable::default()).await;
            self.published.again += 1;
        }
        !lost.is_empty()
    }
}
