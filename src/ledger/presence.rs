//! The two witnesses of a worker's life on the Postgres side: a session advisory lock held for as long as the process
//! lives, and a heartbeat. One row a worker, however many jobs it holds.
//!
//! When a process is killed the kernel closes its sockets and Postgres frees the lock at once; the heartbeat's age decides
//! where the lock cannot (a worker that hangs or is cut off). A worker that has lost the session of its lock starts no task
//! before it has it again, since others may take its silence for its death.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection, PgConnection, Row};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Duty, Health, Holder, LedgerError, Tally,
    connect::{LedgerAddress, sentence},
};
use crate::{
    fail_point::cut,
    job::{Epoch, JobId},
    metrics::{Metrics, Wire},
    retry::{BrakeState, RetryPolicy},
};

/// What a worker says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) queue: String,
    /// Others take the worker for dead when its heartbeat is older than this.
    pub(crate) patience: Duration,
}

/// This process in the ledger: its row, its lock, its heartbeat.
pub(crate) struct Presence {
    address: LedgerAddress,
    holder: Arc<Holder>,
    session: Option<PgConnection>,
    /// How long a beat may take before its session is given up: well below the patience of others.
    no_answer: Duration,
    present: watch::Sender<Present>,
    /// How often the lock was taken.
    sessions: u64,
    /// The handlers that are braked, as JSON; told with each beat.
    brakes: Option<String>,
    /// What the lanes have done, of which each beat tells.
    tally: Arc<Tally>,
    metrics: Arc<Metrics>,
}

/// The session of the lock in which tasks may start; none while it is lost.
pub(crate) type Present = Option<u64>;

/// How long a heartbeat may take before its session is given up; short, since a session that hangs is no witness.
const NO_ANSWER: Duration = Duration::from_secs(10);

/// Workers that were dead a week ago and held nothing are forgotten, and so is what anybody did two hours ago.
const REGISTER: &str = r"
WITH forgotten AS (
    DELETE FROM cliquet.workers worker
     WHERE worker.cleared_at < statement_timestamp() - interval '7 days' AND worker.cleared_at > worker.seen_at
), past AS (
    DELETE FROM cliquet.activity WHERE minute < statement_timestamp() - interval '2 hours'
)
INSERT INTO cliquet.workers (name, host, pid, version, queue, patience)
VALUES ($1, $2, $3, $4, $5, make_interval(secs => $6)) RETURNING id";

/// What has ended since the last beat, in the minute of this one. The worker tells totals, and the difference is taken here: a
/// beat that is sent again, since its answer got lost, adds nothing. Nobody else writes these rows.
macro_rules! told {
    () => {
        r"told AS (
    INSERT INTO cliquet.activity (worker, minute, queue, succeeded, failed)
    SELECT worker.id, date_trunc('minute', statement_timestamp()), worker.queue, $2 - worker.succeeded, $3 - worker.failed
      FROM cliquet.workers worker WHERE worker.id = $1 AND ($2 > worker.succeeded OR $3 > worker.failed)
    ON CONFLICT (worker, minute)
    DO UPDATE SET succeeded = activity.succeeded + excluded.succeeded, failed = activity.failed + excluded.failed
), past AS (
    DELETE FROM cliquet.activity WHERE worker = $1 AND minute < statement_timestamp() - interval '2 hours'
)"
    };
}

/// What it still holds stays told: it is stuck until another worker has taken it over. Its brakes end with it.
const GOODBYE: &str = concat!(
    "WITH ",
    told!(),
    r", stuck AS MATERIALIZED (
    SELECT array_agg(job.id ORDER BY job.created_at) AS running
      FROM cliquet.workers worker JOIN cliquet.jobs job ON job.id = ANY (worker.running)
     WHERE worker.id = $1 AND job.holder = $1 AND job.status = 'PROCESSING'
)
UPDATE cliquet.workers
   SET stopped_at = clock_timestamp(), brakes = NULL, succeeded = $2, failed = $3,
       in_hand = coalesce(cardinality((SELECT running FROM stuck)), 0), running = (SELECT running FROM stuck)
 WHERE id = $1"
);

/// Which of these runs are no longer ours: cancelled, or taken over. The rest is told: all of them by number, and which they are
/// if they have been there for a second.
const BEAT: &str = concat!(
    "WITH ",
    told!(),
    r", run AS MATERIALIZED (
    SELECT v.job_id, v.epoch, job.epoch IS DISTINCT FROM v.epoch OR job.status <> 'PROCESSING' AS lost, job.created_at
      FROM unnest($4::uuid[], $5::int8[]) AS v (job_id, epoch)
      LEFT JOIN cliquet.jobs job ON job.id = v.job_id
), beat AS (
    UPDATE cliquet.workers
       SET seen_at = clock_timestamp(), brakes = $6::jsonb, succeeded = $2, failed = $3,
           in_hand = (SELECT count(*) FROM run WHERE NOT run.lost),
           running = (SELECT array_agg(run.job_id ORDER BY run.created_at) FROM run
                       WHERE NOT run.lost AND run.created_at < statement_timestamp() - interval '1 second')
     WHERE id = $1
)
SELECT run.job_id, run.epoch FROM run WHERE run.lost"
);

impl Presence {
    /// Registers this process and takes its lock, waiting for a database that is not there yet.
    ///
    /// # Errors
    /// [`LedgerError::Schema`] when the database is not migrated, [`LedgerError::Denied`] when it does not let us in or gives us
    /// fewer rights than a worker needs; nothing else ends the wait.
    pub(crate) async fn begin(address: &LedgerAddress, about: &About) -> Result<Self, LedgerError> {
        let pauses = RetryPolicy::reconnecting(Duration::from_secs(1));
        let mut failures = 0;
        loop {
            // Neither owns a transaction, and a connection that does not answer is dropped.
            let begun = async {
                super::check(address).await?;
                may_work(address).await?;
                Ok(Self::register(address, about).await)
            };
            let begun = timeout(NO_ANSWER * 3, begun).await.unwrap_or_else(|_| {
                Err(LedgerError::Unavailable(format!(
                    "no answer from Postgres at {address} for {} s",
                    (NO_ANSWER * 3).as_secs()
                )))
            });
            let error = match begun {
                Ok(registered) => match registered {
                    Ok(presence) => {
                        if failures > 0 {
                            info!(database = %address, failures, "Postgres is there; the worker begins");
                        }
                        return Ok(presence);
                    }
                    Err(error) => LedgerError::unavailable(address, &error),
                },
                // A question that was refused was no row of a job's: it took too long, or somebody had a catalog locked.
                Err(error @ (LedgerError::Unavailable(_) | LedgerError::Refused(_))) => error,
                Err(schema) => return Err(schema),
            };
            failures += 1;
            if failures == 1 || failures % 20 == 0 {
                warn!(%error, failures, "waiting for Postgres");
            }
            sleep(pauses.delay(failures)).await;
        }
    }

    async fn register(address: &LedgerAddress, about: &About) -> Result<Self, sqlx::Error> {
        let mut session = open(address, &about.name).await?;
        let row = sqlx::query(REGISTER)
            .bind(&about.name)
            .bind(&about.host)
            .bind(std::process::id() as i32)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(&about.queue)
            .bind(about.patience.as_secs_f64())
            .fetch_one(&mut session)
            .await?;
        let holder = Holder {
            id: row.try_get("id")?,
            name: about.name.clone(),
            queue: about.queue.clone(),
        };
        let mut presence = Self {
            address: address.clone(),
            holder: Arc::new(holder),
            session: None,
            no_answer: NO_ANSWER.min(about.patience / 3),
            present: watch::Sender::new(None),
            sessions: 0,
            brakes: None,
            tally: Arc::default(),
            metrics: Arc::default(),
        };
        presence.lock(session).await?;
        presence.resume(); // it runs nothing yet
        Ok(presence)
    }

    pub(crate) fn holder(&self) -> Arc<Holder> {
        self.holder.clone()
    }

    /// From now on these are told how it is with the session.
    pub(crate) fn tell(&mut self, metrics: Arc<Metrics>) {
        metrics.connected(Wire::Heartbeat, false);
        metrics.heartbeat();
        self.metrics = metrics;
    }

    /// From now on each beat tells what these count.
    pub(crate) fn tell_what_ends(&mut self, tally: Arc<Tally>) {
        self.tally = tally;
    }

    /// The session while tasks may start: the lock is held, and since it was taken a beat has told which runs are lost.
    pub(crate) fn watch(&self) -> watch::Receiver<Present> {
        self.present.subscribe()
    }

    /// The brakes that are on, which the next beat tells.
    pub(crate) fn tell_brakes(&mut self, on: &[BrakeState]) {
        self.brakes = match on {
            [] => None,
            on => serde_json::to_string(on).ok(),
        };
    }

    /// Lets tasks start again, once the runs that the last [`beat`](Self::beat) told are stopped. Not before: while the
    /// session was lost others may have taken them over, and done what they would begin now.
    pub(crate) fn resume(&self) {
        let now = Some(self.sessions);
        self.present
            .send_if_modified(|present| std::mem::replace(present, now) != now);
    }

    /// One heartbeat. Answers with those of the running jobs that are no longer this worker's; takes the lock again, and
    /// waits for it, when its session was lost. Then no task starts before [`resume`](Self::resume). `running` is asked anew
    /// at each attempt: a run that began just before the loss was noticed is among them.
    pub(crate) async fn beat(
        &mut self,
        running: impl Fn() -> Vec<(JobId, Epoch)>,
    ) -> Vec<(JobId, Epoch)> {
        // So often that it is back long before others lose their patience with it.
        let pauses = RetryPolicy::reconnecting(self.no_answer.min(Duration::from_secs(1)));
        let mut failures = 0;
        loop {
            let no_answer = self.no_answer;
            let attempt = match timeout(no_answer, self.try_beat(&running())).await {
                Ok(attempt) => attempt,
                Err(_) => Err(sqlx::Error::Protocol(format!(
                    "no answer from Postgres for {} ms",
                    no_answer.as_millis()
                ))),
            };
            match attempt {
                Ok(lost) => {
                    if failures > 0 {
                        info!(failures, "the worker is present in the ledger again");
                    }
                    self.metrics.heartbeat();
                    return lost;
                }
                Err(error) => {
                    self.metrics.disconnected(Wire::Heartbeat);
                    // Dropped, not closed in order: what it was doing is unknown.
                    self.session = None;
                    self.present.send_replace(None);
                    failures += 1;
                    if failures == 1 || failures % 20 == 0 {
                        warn!(
                            database = %self.address, error = sentence(&error), failures,
                            "the heartbeat's session is lost; no task starts before it is back"
                        );
                    }
                    sleep(pauses.delay(failures)).await;
                }
            }
        }
    }

    async fn try_beat(
        &mut self,
        running: &[(JobId, Epoch)],
    ) -> Result<Vec<(JobId, Epoch)>, sqlx::Error> {
        if self.session.is_none() {
            let session = open(&self.address, &self.holder.name).await?;
            self.lock(session).await?;
            self.metrics.connected(Wire::Heartbeat, true);
        }
        let (succeeded, failed) = self.ended();
        let session = self.session.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let rows = sqlx::query(BEAT)
            .bind(self.holder.id)
            .bind(succeeded)
            .bind(failed)
            .bind(running.iter().map(|(job, _)| job.0).collect::<Vec<_>>())
            .bind(running.iter().map(|(_, epoch)| epoch.0).collect::<Vec<_>>())
            .bind(&self.brakes)
            .fetch_all(session)
            .await?;
        rows.iter()
            .map(|row| Ok((JobId(row.try_get("job_id")?), Epoch(row.try_get("epoch")?))))
            .collect()
    }

    /// How many tasks ended well, and how many attempts failed, as the ledger keeps it.
    fn ended(&self) -> (i64, i64) {
        let (succeeded, failed) = self.tally.ended();
        let kept = |count| i64::try_from(count).unwrap_or(i64::MAX);
        (kept(succeeded), kept(failed))
    }

    /// Takes the lock on this session. That is no heartbeat yet: a worker that could lock and not beat would look alive, and do
    /// nothing. It can only wait for a claimer that is just trying it, which is an instant.
    async fn lock(&mut self, mut session: PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT pg_advisory_lock(lock_key) FROM cliquet.workers WHERE id = $1")
            .bind(self.holder.id)
            .fetch_optional(&mut session)
            .await?;
        sqlx::query("UPDATE cliquet.workers SET locked_at = clock_timestamp(), stopped_at = NULL WHERE id = $1")
            .bind(self.holder.id)
            .execute(&mut session)
            .await?;
        self.session = Some(session);
        self.sessions += 1;
        Ok(())
    }

    /// Says goodbye: whatever the worker still holds may be taken over at once.
    pub(crate) async fn end(mut self) {
        let (succeeded, failed) = self.ended();
        if let Some(mut session) = self.session.take() {
            cut!(BeforeGoodbye);
            let goodbye = sqlx::query(GOODBYE)
                .bind(self.holder.id)
                .bind(succeeded)
                .bind(failed)
                .execute(&mut session);
            if timeout(Duration::from_secs(2), goodbye).await.is_ok() {
                cut!(AfterGoodbye);
                let _ = timeout(Duration::from_secs(1), session.close()).await;
            }
        }
    }
}

/// Whether our role has a worker's rights. A worker that lacks one would take jobs, and repeat for ever what it may not do.
async fn may_work(address: &LedgerAddress) -> Result<(), LedgerError> {
    let role = address.user();
    let lacking = Health::open(address)
        .await?
        .lacking(Duty::Worker, role)
        .await?;
    if lacking.is_empty() {
        return Ok(());
    }
    let rights: Vec<_> = lacking.iter().map(|lacking| &*lacking.right).collect();
    let grants: Vec<_> = lacking.iter().map(|lacking| &*lacking.grant).collect();
    Err(LedgerError::Denied(format!(
        "the role `{role}` may not do a worker's work in {address}: it lacks {}. Run deploy/postgres-roles.sql again after `cliquet migrate`, or: {}",
        rights.join("; "),
        grants.join("; ")
    )))
}

async fn open(address: &LedgerAddress, name: &str) -> Result<PgConnection, sqlx::Error> {
    let options = address.writer_options(&format!("{name} heartbeat"));
    timeout(
        Duration::from_secs(10),
        PgConnection::connect_with(&options),
    )
    .await
    .map_err(|_| sqlx::Error::PoolTimedOut)?
}
