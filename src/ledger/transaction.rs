//! The transaction that a handler may ask for: what it writes commits together with its task's SUCCESS, or not at all.
//!
//! A handler that is cut short in the middle of a statement leaves its session in an unknown state, so such a session is
//! closed and never used again; so is one whose server does not answer.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions, PgConnection, Postgres, postgres::PgConnectOptions};
use sqlx_core::transaction::TransactionManager;
use tokio::{
    sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tracing::warn;

use super::{
    connect::sentence,
    lane::{LONGEST_PAUSE, NO_ANSWER},
};
use crate::retry::RetryPolicy;

type Manager = <Postgres as sqlx::Database>::TransactionManager;
type Slot = Arc<Mutex<Option<Session>>>;

/// What sqlx counts in a session between the handler's own transactions. Not 1: a BEGIN inside of it that fails, or is cut
/// short, makes sqlx roll back one level too many, and at 1 that would be a real ROLLBACK, after which the handler would
/// write without a transaction, or commit by itself. At 2 and more it names a savepoint that is not there, and nothing of the
/// transaction can be kept. A handler may try again and again after an error that it ignores, so there are some to spare.
const DEPTH: usize = 32;
/// A transaction that was begun in advance is taken as it is for so long: its `now()` is when it was begun.
const JUST_BEGUN: Duration = Duration::from_millis(5);
/// A session that nobody used for so long is not used again.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// Nor is one that is so old: an address that has moved is to be found.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The sessions in which handlers' transactions run: so many at a time, made when they are needed, and used again.
///
/// sqlx's pool would ask each connection once more after its use, a round trip for every task. Here the next BEGIN finds
/// out whether a session is alive; and while handlers wait for a session, the COMMIT of one brings the BEGIN of the next.
pub(super) struct Sessions {
    options: PgConnectOptions,
    places: Arc<Semaphore>,
    /// How many handlers wait for a place.
    waiting: AtomicUsize,
    idle: StdMutex<Vec<Session>>,
}

/// One session with a transaction open, or idle between two.
///
/// sqlx counts the depth of a session's transactions, and where it counts one, what a handler or its library begins is a
/// savepoint. The real BEGIN and COMMIT are sent as they are, and sqlx's count stays at [`DEPTH`] from one transaction to the
/// next.
#[derive(Debug)]
pub(crate) struct Session {
    connection: PgConnection,
    made: Instant,
    used: Instant,
    /// Whether its next transaction was begun with the last one's COMMIT.
    begun: bool,
    /// Given up with the session.
    place: Option<OwnedSemaphorePermit>,
}

/// Without the options, which show the password.
impl fmt::Debug for Sessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) fn new(options: PgConnectOptions, most: usize) -> Arc<Self> {
        Arc::new(Self {
            options,
            places: Arc::new(Semaphore::new(most)),
            waiting: AtomicUsize::new(0),
            idle: StdMutex::default(),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        let places = self.places.clone();
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        self.waiting.fetch_add(1, Relaxed);
        let _counted = Counted(&self.waiting);
        places
            .acquire_owned()
            .await
            .map_err(|_| sqlx::Error::PoolClosed)
    }

    fn is_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// How many sessions wait to be used again.
    #[cfg(test)]
    pub(super) fn idle_sessions(&self) -> usize {
        self.idle().len()
    }

    /// How many of them have their next transaction open already.
    #[cfg(test)]
    pub(super) fn begun_sessions(&self) -> usize {
        self.idle().iter().filter(|session| session.begun).count()
    }

    /// How many handlers wait for a session.
    #[cfg(test)]
    pub(super) fn waiting_handlers(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A session with an open transaction. Sessions that died idle, as all do in a restart of Postgres, are found out by
    /// their BEGIN. That Postgres is away, or has no room for another session, is no failure of the handler's attempt: it
    /// waits, as long as its own time limit lets it.
    async fn begin(&self) -> Result<Session, sqlx::Error> {
        let place = self.place().await?;
        loop {
            let Some(mut session) = self.idle().pop() else {
                break;
            };
            if !session.is_fresh() {
                continue;
            }
            let ready = match session.begun {
                true if session.used.elapsed() < JUST_BEGUN => Ok(()),
                true => session.run("ROLLBACK; BEGIN").await,
                false => session.run("BEGIN").await,
            };
            match ready {
                Ok(()) => {
                    session.place = Some(place);
                    return Ok(session);
                }
                // A server that does not answer one does not answer the others either.
                Err(error) if error.as_database_error().is_none() => self.idle().clear(),
                Err(_) => {}
            }
        }
        let pauses = RetryPolicy::reconnecting(LONGEST_PAUSE);
        let mut failures = 0;
        let connection = loop {
            let error = match timeout(NO_ANSWER, Box::pin(self.connect())).await {
                Ok(Ok(connection)) => break connection,
                Ok(Err(error)) if !passes(&error) => return Err(error),
                Ok(Err(error)) => sentence(&error),
                Err(_) => format!("no answer from Postgres for {} s", NO_ANSWER.as_secs()),
            };
            failures += 1;
            if failures == 1 || failures % 30 == 0 {
                warn!(error, failures, "a handler waits for its transaction");
            }
            sleep(pauses.delay(failures)).await;
        };
        let now = Instant::now();
        Ok(Session {
            connection,
            made: now,
            used: now,
            begun: false,
            place: Some(place),
        })
    }

    /// A new connection, in a transaction, with sqlx's count at [`DEPTH`].
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        for _ in 0..DEPTH {
            Manager::begin(&mut connection, None).await?;
        }
        sqlx::raw_sql("RELEASE SAVEPOINT _sqlx_savepoint_1")
            .execute(&mut connection)
            .await?;
        Ok(connection)
    }

    /// Takes a session back whose transaction has ended in order; or answers with it, if its next transaction is open and
    /// nobody is there to have it.
    fn keep(&self, mut session: Session) -> Option<Session> {
        session.used = Instant::now();
        let mut idle = self.idle();
        idle.retain(Session::is_fresh);
        let begun = idle.iter().filter(|session| session.begun).count();
        if session.begun && begun >= self.waiting.load(Relaxed) {
            return Some(session);
        }
        let place = session.place.take();
        idle.push(session);
        drop((idle, place));
        None
    }

    /// Ends what was begun for handlers who were cut short while they waited: no session rests with a transaction open.
    pub(super) async fn tidy(&self) {
        // While all are in use the next handler finds them.
        while let Ok(place) = self.places.clone().try_acquire_owned() {
            let found = {
                let mut idle = self.idle();
                let rests =
                    |session: &Session| session.begun && session.used.elapsed() > JUST_BEGUN;
                idle.iter().position(rests).map(|index| idle.remove(index))
            };
            let Some(mut session) = found else { return };
            session.place = Some(place);
            if session.run("ROLLBACK").await.is_ok() {
                session.begun = false;
                self.keep(session);
            }
        }
    }
}

/// One of those who wait, until it is dropped: a handler may be cut short while it waits.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Session {
    fn is_fresh(&self) -> bool {
        self.used.elapsed() < IDLE && self.made.elapsed() < LIFETIME
    }

    #[cfg(test)]
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Whether the handler ended every transaction that it opened inside of this one.
    pub(super) fn is_whole(&self) -> bool {
        Manager::get_transaction_depth(&self.connection) == DEPTH
    }

    /// Runs statements as they are, in one round trip. A server that does not answer is given up with the session.
    pub(super) async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        // Every text that is handed in is written here in the ledger, with its values quoted.
        let statements = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        match timeout(NO_ANSWER, statements.execute(&mut self.connection)).await {
            Ok(ran) => ran.map(|_| ()),
            Err(_) => Err(sqlx::Error::Protocol(format!(
                "no answer from Postgres for {} s",
                NO_ANSWER.as_secs()
            ))),
        }
    }
}

/// Whether an error of connecting passes by itself: the server is away, starts, stops, or has no room.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(refusal) => refusal
            .code()
            .is_some_and(|code| code == "53300" || code.starts_with("57P")),
        _ => false,
    }
}

/// One attempt's transaction: opened when the handler first asks for it, ended by the ledger alone.
#[derive(Clone, Debug)]
pub struct HandlerTransaction {
    sessions: Arc<Sessions>,
    slot: Slot,
    /// The attempt has ended: what a part of the handler that lives on would write now, nobody would commit.
    over: Arc<AtomicBool>,
}

/// The open transaction, lent to the handler; a `&mut PgConnection` for `sqlx` (`.execute(&mut *tx)`).
///
/// It has no `commit`: the ledger commits it with the task's SUCCESS. Let it go out of scope before the handler returns.
#[derive(Debug)]
pub struct Transaction(OwnedMappedMutexGuard<Option<Session>, PgConnection>);

impl Deref for Transaction {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl HandlerTransaction {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        Self {
            sessions,
            slot: Slot::default(),
            over: Arc::default(),
        }
    }

    /// One that can never be opened.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self::new(Sessions::new(
            PgConnectOptions::new_without_pgpass().port(1),
            1,
        ))
    }

    /// Opens the transaction, or lends the open one again.
    ///
    /// # Errors
    /// A connection error when Postgres is away; `InvalidArgument` while an earlier loan is still held, or when the handler
    /// has returned.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut open = self.slot.clone().try_lock_owned().map_err(|_| {
            sqlx::Error::InvalidArgument(
                "this task's transaction is already lent: drop the first before asking again"
                    .into(),
            )
        })?;
        if self.over.load(Relaxed) {
            return Err(sqlx::Error::InvalidArgument(
                "this task has ended: what is written now would never be committed".into(),
            ));
        }
        if open.is_none() {
            *open = Some(self.sessions.begin().await?);
        }
        let lent = OwnedMutexGuard::try_map(open, |open| {
            open.as_mut().map(|session| &mut session.connection)
        });
        match lent {
            Ok(guard) => Ok(Transaction(guard)),
            Err(_) => Err(sqlx::Error::PoolClosed),
        }
    }

    /// Takes the open transaction for the ledger to end, if the handler asked for one.
    ///
    /// # Errors
    /// [`StillLent`] when something of the handler's lives on and holds it.
    pub(crate) fn take(&self) -> Result<Option<Open>, StillLent> {
        let mut slot = self.slot.try_lock().map_err(|_| StillLent)?;
        // Under the lock, as it is read: nobody opens one in between.
        self.over.store(true, Relaxed);
        Ok(slot.take().map(|session| Open {
            session,
            sessions: self.sessions.clone(),
        }))
    }

    /// Ends it without a trace after a handler that was cut short: the session is closed, Postgres rolls back.
    pub(crate) fn abandon(&self) {
        drop(self.take());
    }
}

/// An open transaction that the handler has done with. Dropped, its session is closed, and Postgres rolls back.
#[derive(Debug)]
pub(crate) struct Open {
    pub(super) session: Session,
    sessions: Arc<Sessions>,
}

impl Open {
    /// Ends it after a failure that left its session in order.
    pub(crate) async fn roll_back(mut self) {
        if self.session.is_whole() && self.session.run("ROLLBACK").await.is_ok() {
            self.session.begun = false;
            self.keep().await;
        }
    }

    /// Runs the statements that end it with a COMMIT, and gives the session back to be used again. When other handlers wait
    /// for a session, the next transaction is begun in the same round trip.
    ///
    /// # Errors
    /// What Postgres refused, or what became of the connection; the session is in the state that this left it in.
    pub(super) async fn commit(mut self, sql: &str) -> Result<(), (sqlx::Error, Self)> {
        let chained = self.sessions.is_wanted();
        let ran = match chained {
            true => self.session.run(&format!("{sql}; BEGIN")).await,
            false => self.session.run(sql).await,
        };
        if let Err(error) = ran {
            return Err((error, self));
        }
        self.session.begun = chained;
        self.keep().await;
        Ok(())
    }

    /// Gives the session back, to be used again.
    async fn keep(self) {
        let Some(mut unwanted) = self.sessions.keep(self.session) else {
            return;
        };
        // Those who waited were served by others.
        if unwanted.run("ROLLBACK").await.is_ok() {
            unwanted.begun = false;
            self.sessions.keep(unwanted);
        }
    }
}

/// The handler returned while a part of it still held the transaction.
#[derive(Debug)]
pub(crate) struct StillLent;
