//! Group commit: transitions of many jobs that are ready at the same moment share one statement and one commit.
//!
//! A lane owns one connection for life. It takes whatever has arrived since the last commit, writes one statement for each
//! kind of transition, and answers each caller when the commit is back. It never waits for a group to fill, so one job
//! alone sees no delay.
//!
//! One lane writes while its commits are quick: one large group costs less than two small ones. When it takes longer (a
//! slow disk, a row that somebody keeps locked, a connection that is gone), the next lane takes what has arrived meanwhile.
//! A job's transitions stay in order whichever lane writes them, since a job has but one under way; and rows are locked in
//! the order of job ids, so that neither two lanes nor two processes which hold the same duplicates deadlock.
//!
//! A write is repeated until its outcome is known. That is safe because every verb is repeatable: it names the job, the
//! epoch and the attempt, and recognises its own earlier commit. A verb never ends in "perhaps".

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Holder, LedgerError,
    claim::Claim,
    connect::{LedgerAddress, Recovery, sentence},
    defer::Defer,
    fail::Fail,
    release::Release,
    sent::Sent,
    step::Step,
    tally::Tally,
};
use crate::{job::JobId, metrics::Transition, retry::RetryPolicy};

/// The most transitions in one statement; more than this gains nothing and makes neighbours wait.
const LARGEST_GROUP: usize = 512;
/// The heaviest group, in rows: a statement must end well within the lane's `statement_timeout`, or it would be repeated
/// for ever, and must fit into a message. The heaviest transition there can be fits alone.
pub(super) const HEAVIEST_GROUP: usize = 20_000;
/// A lane that writes for so long is not waited for: the next one takes what has arrived meanwhile. Longer than a
/// group of a hundred takes on a quick disk.
const TAKES_LONG: Duration = Duration::from_millis(5);
/// The most callers that wait for the lanes before the next ones wait for room.
const LANE_DEPTH: usize = 4096;
/// A write that Postgres does not answer for this long (a network that swallows packets) loses its connection.
/// Longer than Postgres's own `statement_timeout` on these connections, so it never cuts a healthy one.
pub(crate) const NO_ANSWER: Duration = Duration::from_secs(25);
/// The longest pause before a write is repeated on another connection. With longer ones jobs would wait while Postgres is back.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A group that cannot be decided after so many looks at fresh snapshots is a fault of ours, not a race.
const MOST_LOOKS: usize = 50;

/// One kind of transition: how a group of it is written.
pub(crate) trait Verb: Send + Sync + Sized + 'static {
    /// What the caller learns.
    type Answer: Send + 'static;

    /// What it is counted as.
    const TRANSITION: Transition;

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
    Step(Waiting<Step>),
    Claim(Waiting<Claim>),
    Fail(Waiting<Fail>),
    Defer(Waiting<Defer>),
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
writes!(Step, Claim, Fail, Defer, Release, Sent);

/// All lanes of a process.
#[derive(Clone)]
pub(crate) struct Lanes(mpsc::Sender<Write>);

impl Lanes {
    /// Starts `count` lanes; they connect when they are first used. They end when the last `Lanes` is dropped.
    pub(crate) fn start(
        address: &LedgerAddress,
        holder: &Arc<Holder>,
        count: usize,
        tally: &Arc<Tally>,
    ) -> (Self, JoinHandle<()>) {
        let lanes = (1..=count.max(1)).map(|number| Lane {
            address: address.clone(),
            holder: holder.clone(),
            number,
            connection: None,
            broken: false,
            tally: tally.clone(),
        });
        let (sender, inbox) = mpsc::channel(LANE_DEPTH);
        let running = tokio::spawn(take_turns(lanes.collect(), inbox));
        (Self(sender), running)
    }

    /// Writes one transition and waits for its commit.
    pub(crate) async fn write<V: Verb>(&self, verb: V) -> Result<V::Answer, LedgerError>
    where
        Write: From<Waiting<V>>,
    {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Waiting { verb, reply }.into())
            .await
            .map_err(|_| LedgerError::Closed)?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Hands over a transition that nobody waits for; it is lost if the inbox is full or the process ends.
    pub(crate) fn mention<V: Verb>(&self, verb: V)
    where
        Write: From<Waiting<V>>,
    {
        let reply = oneshot::channel().0;
        let _ = self.0.try_send(Waiting { verb, reply }.into());
    }
}

/// Gives what arrives to a lane, and to the next one when that takes long.
async fn take_turns(mut idle: Vec<Lane>, mut inbox: mpsc::Receiver<Write>) {
    let mut writing = FuturesUnordered::new();
    let (mut arrived, mut last) = (Vec::with_capacity(LARGEST_GROUP), 0);
    loop {
        let count = tokio::select! {
            count = inbox.recv_many(&mut arrived, LARGEST_GROUP) => count,
            Some(lane) = writing.next(), if !writing.is_empty() => {
                idle.push(lane);
                continue;
            }
        };
        if count == 0 {
            break;
        }
        // Where many write, whoever is ready to run now may have something to write: it goes along. This waits for nobody.
        if count > 1 || last > 1 {
            yield_now().await;
        }
        while arrived.len() < LARGEST_GROUP
            && let Ok(write) = inbox.try_recv()
        {
            arrived.push(write);
        }
        last = arrived.len();
        while idle.is_empty() {
            idle.extend(writing.next().await);
        }
        // The first one, whose connection is warm.
        idle.sort_unstable_by_key(|lane| std::cmp::Reverse(lane.number));
        let Some(lane) = idle.pop() else { return };
        // Boxed, so that it can go on while others are looked after. It is never dropped on the way.
        writing.push(Box::pin(lane.write(std::mem::take(&mut arrived))));
        tokio::select! {
            lane = writing.next() => idle.extend(lane),
            () = sleep(TAKES_LONG) => {}
        }
    }
    while let Some(lane) = writing.next().await {
        idle.push(lane);
    }
    let closing = idle.into_iter().filter_map(|lane| lane.connection);
    let closing = closing.map(|connection| timeout(Duration::from_secs(1), connection.close()));
    join_all(closing).await;
}

struct Lane {
    address: LedgerAddress,
    holder: Arc<Holder>,
    number: usize,
    connection: Option<PgConnection>,
    /// Whether it had one that broke.
    broken: bool,
    tally: Arc<Tally>,
}

impl Lane {
    /// Writes all of it.
    async fn write(mut self, arrived: Vec<Write>) -> Self {
        let (mut steps, mut claims, mut fails) = (Vec::new(), Vec::new(), Vec::new());
        let (mut defers, mut releases, mut sents) = (Vec::new(), Vec::new(), Vec::new());
        for write in arrived {
            match write {
                Write::Step(waiting) => steps.push(waiting),
                Write::Claim(waiting) => claims.push(waiting),
                Write::Fail(waiting) => fails.push(waiting),
                Write::Defer(waiting) => defers.push(waiting),
                Write::Release(waiting) => releases.push(waiting),
                Write::Sent(waiting) => sents.push(waiting),
            }
        }
        self.write_group(steps).await;
        self.write_group(fails).await;
        self.write_group(defers).await;
        self.write_group(releases).await;
        self.write_group(claims).await;
        self.write_group(sents).await;
        self
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
        let pauses = RetryPolicy::reconnecting(LONGEST_PAUSE);
        let verbs: Vec<&V> = group.iter().map(|waiting| &waiting.verb).collect();
        let holder = self.holder.clone();
        let (mut failures, mut repeats) = (0, 0);
        loop {
            let error = match self.connected().await {
                Ok(connection) => {
                    let began = Instant::now();
                    match timeout(NO_ANSWER, V::write(connection, &holder, &verbs)).await {
                        Ok(Ok(answers)) => {
                            self.tally
                                .committed(V::TRANSITION, group.len(), began.elapsed());
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
            self.broken |= self.connection.take().is_some();
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
            if std::mem::take(&mut self.broken) {
                self.tally.lane_is_back();
            }
        }
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}
