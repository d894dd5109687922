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
//! A write whose row somebody else keeps locked is told apart from its group, and waits on a connection of its own: it
//! holds up neither its neighbours nor a lane.
//!
//! A write is repeated until its outcome is known. That is safe because every verb is repeatable: it names the job, the
//! epoch and the attempt, and recognises its own earlier commit. A verb never ends in "perhaps".

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
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
/// The most writes that wait apart for a row that somebody else keeps locked; further ones hold up a lane.
const MOST_APART: usize = 8;
/// A group that cannot be decided after so many looks at fresh snapshots is a fault of ours, not a race.
const MOST_LOOKS: usize = 50;

/// One column of a group: what its statement unnests.
pub(super) fn column<T, C>(group: &[&T], value: impl Fn(&T) -> C) -> Vec<C> {
    group.iter().map(|row| value(row)).collect()
}

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
        let apart = Arc::new(Semaphore::new(MOST_APART));
        let lanes = (1..=count.max(1)).map(|number| Lane {
            address: address.clone(),
            holder: holder.clone(),
            number,
            connection: None,
            broken: false,
            tally: tally.clone(),
            apart: Apart::Places(apart.clone()),
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
    apart: Apart,
}

/// Where a write waits for a lock.
enum Apart {
    /// In a place apart from its lane, while there is one.
    Places(Arc<Semaphore>),
    /// Here: this is such a place.
    Here(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
}

/// Why a group was not written.
enum Unwritten {
    /// Postgres refuses the data, and would always.
    Refused(String),
    /// Somebody else keeps one of the rows locked.
    Locked,
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
        // Whether a lock is waited for here.
        let mut patient = matches!(self.apart, Apart::Here(_));
        while !group.is_empty() {
            match self.write_once(&group, patient).await {
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
                // One refused or locked row must not harm its neighbours: each is written alone, and the bad one fails alone.
                Err(unwritten) if group.len() > 1 => {
                    if let Unwritten::Refused(error) = unwritten {
                        warn!(
                            lane = self.number,
                            group = group.len(),
                            error,
                            "Postgres refused a group; writing it one by one"
                        );
                    }
                    for waiting in group {
                        Box::pin(self.write_distinct(vec![waiting])).await;
                    }
                    return;
                }
                Err(Unwritten::Locked) => match self.place_apart() {
                    Some(place) => {
                        tokio::spawn(self.apart_in(place).alone(group));
                        return;
                    }
                    None => patient = true,
                },
                Err(Unwritten::Refused(refusal)) => {
                    group.into_iter().for_each(|waiting| {
                        waiting.answer(Err(LedgerError::Refused(refusal.clone())))
                    });
                    return;
                }
            }
        }
    }

    /// A place for a write that has to wait for a lock, if this is none itself and one is free.
    fn place_apart(&self) -> Option<OwnedSemaphorePermit> {
        match &self.apart {
            Apart::Places(places) => places.clone().try_acquire_owned().ok(),
            Apart::Here(_) => None,
        }
    }

    /// A lane for one write, beside this one.
    fn apart_in(&self, place: OwnedSemaphorePermit) -> Self {
        Self {
            address: self.address.clone(),
            holder: self.holder.clone(),
            number: self.number,
            connection: None,
            tally: self.tally.clone(),
            broken: false,
            apart: Apart::Here(place),
        }
    }

    /// Boxed, so that the compiler does not look for the end of a lane that begins a lane.
    fn alone<V: Verb>(mut self, group: Vec<Waiting<V>>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.write_distinct(group).await })
    }

    /// One statement, repeated until its outcome is known. A `patient` write waits for a lock; another one says so.
    async fn write_once<V: Verb>(
        &mut self,
        group: &[Waiting<V>],
        patient: bool,
    ) -> Result<Vec<Option<V::Answer>>, Unwritten> {
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
                            Recovery::Refused => {
                                return Err(Unwritten::Refused(sentence(&error)));
                            }
                            Recovery::Locked if group.len() > 1 || !patient => {
                                return Err(Unwritten::Locked);
                            }
                            // A deadlock passes at once; a row that somebody keeps locked is worth telling.
                            Recovery::Repeat | Recovery::Locked => {
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
                                return Err(Unwritten::Refused(sentence(&error)));
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
                Box::pin(PgConnection::connect_with(&options)),
            );
            self.connection = Some(connecting.await.map_err(|_| sqlx::Error::PoolTimedOut)??);
            if std::mem::take(&mut self.broken) {
                self.tally.lane_is_back();
            }
        }
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}
