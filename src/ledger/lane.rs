//! Group commit: transitions of many jobs that are ready at the same moment share one statement and one commit.
//!
//! A lane owns one connection for life. It takes whatever has arrived since its last commit, writes one statement per kind
//! of transition, and answers each caller when the commit is back. It never waits for a group to fill, so one job alone
//! sees no delay. A job always uses the same lane, so lanes of one process never lock each other's rows; rows are locked in
//! the order of job ids, so that two processes which hold the same duplicates cannot deadlock either.
//!
//! A write is repeated until its outcome is known. That is safe because every verb is repeatable: it names the job, the
//! epoch and the attempt, and recognises its own earlier commit. A verb never ends in "perhaps".

use std::{future::Future, sync::Arc, time::Duration};

use sqlx::{Connection, PgConnection};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Holder, LedgerError,
    advance::Advance,
    claim::Claim,
    connect::{LedgerAddress, Recovery, sentence},
    fail::Fail,
    release::Release,
    sent::Sent,
    tally::Tally,
};
use crate::{job::JobId, retry::RetryPolicy};

/// The most transitions in one statement; more than this gains nothing and makes neighbours wait.
const LARGEST_GROUP: usize = 512;
/// The heaviest group, in rows: a statement must end well within the lane's `statement_timeout`, or it would be repeated
/// for ever, and must fit into a message. The heaviest transition there can be fits alone.
pub(super) const HEAVIEST_GROUP: usize = 20_000;
/// The most callers that wait for one lane before its senders wait for room.
const LANE_DEPTH: usize = 4096;
/// A write that Postgres does not answer for this long (a network that swallows packets) loses its connection.
/// Longer than Postgres's own `statement_timeout` on these connections, so it never cuts a healthy one.
pub(crate) const NO_ANSWER: Duration = Duration::from_secs(25);
/// A group that cannot be decided after so many looks at fresh snapshots is a fault of ours, not a race.
const MOST_LOOKS: usize = 50;

/// One kind of transition: how a group of it is written.
pub(crate) trait Verb: Send + Sync + Sized + 'static {
    /// What the caller learns.
    type Answer: Send + 'static;

    /// The job it concerns.
    fn job(&self) -> JobId;

    /// How many rows it writes, or as much as them.
    fn weight(&self) -> usize {
        1
    }

    /// Writes the group, sorted by job id, in one commit. The answers are in the group's order; `None` means that the
    /// statement's snapshot was too old to decide, and that it is to be asked again.
    fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> impl Future<Output = Result<Vec<Option<Self::Answer>>, sqlx::Error>> + Send;
}

/// A transition and who waits for it.
pub(crate) struct Waiting<V: Verb> {
    verb: V,
    reply: oneshot::Sender<Result<V::Answer, LedgerError>>,
}

impl<V: Verb> Waiting<V> {
    fn answer(self, answer: Result<V::Answer, LedgerError>) {
        // Who no longer waits asks the ledger again when it needs to know.
        let _ = self.reply.send(answer);
    }
}

/// Whatever a lane can be asked to write.
pub(crate) enum Write {
    Claim(Waiting<Claim>),
    Advance(Waiting<Advance>),
    Fail(Waiting<Fail>),
    Release(Waiting<Release>),
    Sent(Waiting<Sent>),
}

macro_rules! writes {
    ($($verb:ident),+) => {
        $(impl From<Waiting<$verb>> for Write {
            fn from(waiting: Waiting<$verb>) -> Self {
                Write::$verb(waiting)
            }
        })+
    };
}
writes!(Claim, Advance, Fail, Release, Sent);

/// All lanes of a process.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<Vec<mpsc::Sender<Write>>>);

impl Lanes {
    /// Starts `count` lanes; they connect when they are first used. They end when the last `Lanes` is dropped.
    pub(crate) fn start(
        address: &LedgerAddress,
        holder: &Arc<Holder>,
        count: usize,
        tally: &Arc<Tally>,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let (senders, tasks) = (1..=count.max(1))
            .map(|number| {
                let (sender, inbox) = mpsc::channel(LANE_DEPTH);
                let lane = Lane {
                    address: address.clone(),
                    holder: holder.clone(),
                    number,
                    connection: None,
                    tally: tally.clone(),
                };
                (sender, tokio::spawn(lane.run(inbox)))
            })
            .unzip();
        (Self(Arc::new(senders)), tasks)
    }

    /// Writes one transition and waits for its commit.
    pub(crate) async fn write<V: Verb>(&self, verb: V) -> Result<V::Answer, LedgerError>
    where
        Write: From<Waiting<V>>,
    {
        let lane = self.lane_of(verb.job());
        let (reply, answer) = oneshot::channel();
        lane.send(Waiting { verb, reply }.into())
            .await
            .map_err(|_| LedgerError::Closed)?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Hands over a transition that nobody waits for; it is lost if the lane is full or the process ends.
    pub(crate) fn mention<V: Verb>(&self, verb: V)
    where
        Write: From<Waiting<V>>,
    {
        let _ = self.lane_of(verb.job()).try_send(
            Waiting {
                verb,
                reply: oneshot::channel().0,
            }
            .into(),
        );
    }

    fn lane_of(&self, job: JobId) -> &mpsc::Sender<Write> {
        let (high, low) = job.0.as_u64_pair();
        &self.0[(high ^ low) as usize % self.0.len()]
    }
}

struct Lane {
    address: LedgerAddress,
    holder: Arc<Holder>,
    number: usize,
    connection: Option<PgConnection>,
    tally: Arc<Tally>,
}

impl Lane {
    async fn run(mut self, mut inbox: mpsc::Receiver<Write>) {
        let mut arrived = Vec::with_capacity(LARGEST_GROUP);
        while inbox.recv_many(&mut arrived, LARGEST_GROUP).await > 0 {
            let (mut claims, mut advances, mut fails, mut releases, mut sents) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for write in arrived.drain(..) {
                match write {
                    Write::Claim(waiting) => claims.push(waiting),
                    Write::Advance(waiting) => advances.push(waiting),
                    Write::Fail(waiting) => fails.push(waiting),
                    Write::Release(waiting) => releases.push(waiting),
                    Write::Sent(waiting) => sents.push(waiting),
                }
            }
            self.write_group(advances).await;
            self.write_group(fails).await;
            self.write_group(releases).await;
            self.write_group(claims).await;
            self.write_group(sents).await;
        }
        if let Some(connection) = self.connection {
            let _ = timeout(Duration::from_secs(1), connection.close()).await;
        }
    }

    /// Writes until every transition of the group has its answer.
    async fn write_group<V: Verb>(&mut self, mut group: Vec<Waiting<V>>) {
        group.sort_by_key(|waiting| waiting.verb.job());
        while !group.is_empty() {
            // Two transitions of one job never share a statement: it would see the row once.
            let (mut seen, mut weight) = (None, 0);
            let (now, later): (Vec<_>, Vec<_>) = group.into_iter().partition(|waiting| {
                let first = seen != Some(waiting.verb.job());
                seen = Some(waiting.verb.job());
                let heavier = weight + waiting.verb.weight();
                let goes = first && (weight == 0 || heavier <= HEAVIEST_GROUP);
                if goes {
                    weight = heavier;
                }
                goes
            });
            self.write_distinct(now).await;
            group = later;
        }
    }

    async fn write_distinct<V: Verb>(&mut self, mut group: Vec<Waiting<V>>) {
        let mut looks = 0;
        while !group.is_empty() {
            match self.write_once(&group).await {
                Ok(answers) => {
                    let undecided = group.into_iter().zip(answers).filter_map(
                        |(waiting, answer)| match answer {
                            Some(answer) => {
                                waiting.answer(Ok(answer));
                                None
                            }
                            None => Some(waiting),
                        },
                    );
                    group = undecided.collect();
                    looks += 1;
                    if looks > MOST_LOOKS {
                        let sentence = format!(
                            "its state was in no known relation to the write after {MOST_LOOKS} looks"
                        );
                        group.into_iter().for_each(|waiting| {
                            waiting.answer(Err(LedgerError::Refused(sentence.clone())))
                        });
                        return;
                    }
                    if looks > 3 && !group.is_empty() {
                        sleep(Duration::from_millis(5)).await;
                    }
                }
                // One refused row must not fail its neighbours: each is written alone, and the bad one fails alone.
                Err(refusal) if group.len() > 1 => {
                    warn!(lane = self.number, group = group.len(), error = %refusal, "Postgres refused a group; writing it one by one");
                    for waiting in group {
                        Box::pin(self.write_distinct(vec![waiting])).await;
                    }
                    return;
                }
                Err(refusal) => {
                    group.into_iter().for_each(|waiting| {
                        waiting.answer(Err(LedgerError::Refused(refusal.clone())))
                    });
                    return;
                }
            }
        }
    }

    /// One statement, repeated until its outcome is known. `Err` is a refusal of the data.
    async fn write_once<V: Verb>(
        &mut self,
        group: &[Waiting<V>],
    ) -> Result<Vec<Option<V::Answer>>, String> {
        let pauses = RetryPolicy::reconnecting(Duration::from_secs(2));
        let verbs: Vec<&V> = group.iter().map(|waiting| &waiting.verb).collect();
        let holder = self.holder.clone();
        let (mut failures, mut repeats) = (0, 0);
        loop {
            let error = match self.connected().await {
                Ok(connection) => {
                    match timeout(NO_ANSWER, V::write(connection, &holder, &verbs)).await {
                        Ok(Ok(answers)) => {
                            self.tally.committed();
                            if failures > 0 {
                                info!(
                                    lane = self.number,
                                    failures, "the ledger can be written again"
                                );
                            }
                            return Ok(answers);
                        }
                        Ok(Err(error)) => match Recovery::of(&error) {
                            Recovery::Refused => return Err(sentence(&error)),
                            // A deadlock passes at once; a row that somebody keeps locked is worth telling.
                            Recovery::Repeat => {
                                repeats += 1;
                                if repeats % 3 == 0 {
                                    warn!(
                                        lane = self.number,
                                        repeats,
                                        waiting = group.len(),
                                        error = sentence(&error),
                                        "a row is locked by somebody else; the write is repeated"
                                    );
                                }
                                sleep(Duration::from_millis(2)).await;
                                continue;
                            }
                            // A statement that is too long for its time limit may be too long for ever: smaller ones.
                            Recovery::Reconnect
                                if group.len() > 1
                                    && failures >= 1
                                    && error.as_database_error().is_some() =>
                            {
                                return Err(sentence(&error));
                            }
                            Recovery::Reconnect => sentence(&error),
                        },
                        Err(_) => format!("no answer from Postgres for {} s", NO_ANSWER.as_secs()),
                    }
                }
                Err(error) => sentence(&error),
            };
            // The connection is dropped, not closed in order: what it was doing is unknown.
            self.connection = None;
            failures += 1;
            if failures == 1 || failures % 30 == 0 {
                warn!(
                    lane = self.number, failures, waiting = group.len(), database = %self.address, error,
                    "the ledger cannot be written; the jobs wait and the write is repeated"
                );
            }
            sleep(pauses.delay(failures)).await;
        }
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if self.connection.is_none() {
            let options = self
                .address
                .writer_options(&format!("{} lane {}", self.holder.name, self.number));
            let connecting = timeout(
                Duration::from_secs(10),
                PgConnection::connect_with(&options),
            );
            self.connection = Some(connecting.await.map_err(|_| sqlx::Error::PoolTimedOut)??);
        }
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}
