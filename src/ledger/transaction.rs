//! The transaction that a handler may ask for: what it writes commits together with its task's SUCCESS, or not at all.
//!
//! Nothing here is wrapped in `select!` or a timeout. A handler that is cut short in the middle of a statement leaves its
//! connection in an unknown state, so such a connection is closed and never goes back to the pool.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

pub(super) type Manager = <Postgres as sqlx::Database>::TransactionManager;

type Slot = Arc<Mutex<Option<PoolConnection<Postgres>>>>;

/// One attempt's transaction: opened when the handler first asks for it, ended by the ledger alone.
#[derive(Clone, Debug)]
pub struct HandlerTransaction {
    pool: PgPool,
    slot: Slot,
}

/// The open transaction, lent to the handler; a `&mut PgConnection` for `sqlx` (`.execute(&mut *tx)`).
///
/// It has no `commit`: the ledger commits it with the task's SUCCESS. Let it go out of scope before the handler returns.
#[derive(Debug)]
pub struct Transaction(OwnedMappedMutexGuard<Option<PoolConnection<Postgres>>, PgConnection>);

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
    pub(crate) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            slot: Slot::default(),
        }
    }

    /// Opens the transaction, or lends the open one again.
    ///
    /// # Errors
    /// `PoolTimedOut` or a connection error when Postgres is away; `InvalidArgument` while an earlier loan is still held.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut open = self.slot.clone().try_lock_owned().map_err(|_| {
            sqlx::Error::InvalidArgument(
                "this task's transaction is already lent: drop the first before asking again"
                    .into(),
            )
        })?;
        if open.is_none() {
            *open = Some(begun(&self.pool).await?);
        }
        match OwnedMutexGuard::try_map(open, |open| open.as_deref_mut()) {
            Ok(guard) => Ok(Transaction(guard)),
            Err(_) => Err(sqlx::Error::PoolClosed),
        }
    }

    /// Takes the open transaction for the ledger to end, if the handler asked for one.
    ///
    /// # Errors
    /// [`StillLent`] when something of the handler's lives on and holds it.
    pub(crate) fn take(&self) -> Result<Option<PoolConnection<Postgres>>, StillLent> {
        self.slot
            .try_lock()
            .map(|mut open| open.take())
            .map_err(|_| StillLent)
    }

    /// Ends it without a trace after a handler that was cut short: the connection is closed, Postgres rolls back.
    pub(crate) fn abandon(&self) {
        if let Ok(open) = self.take() {
            discard(open);
        }
    }
}

/// A connection with an open transaction. Connections that died idle, as all do in a restart of Postgres, are found out by
/// their BEGIN, and are no failure of the handler's attempt while another can be had.
async fn begun(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let mut more = pool.options().get_max_connections();
    loop {
        let mut connection = pool.acquire().await?;
        // However this attempt ends, an open transaction must never go back to the pool: only `give_back` returns it.
        connection.close_on_drop();
        match Manager::begin(&mut connection, None).await {
            Ok(_) => return Ok(connection),
            Err(error) if more == 0 => return Err(error),
            Err(_) => more -= 1,
        }
    }
}

/// The handler returned while a part of it still held the transaction.
#[derive(Debug)]
pub(crate) struct StillLent;

/// Closes a connection whose state is unknown instead of giving it back to the pool.
pub(crate) fn discard(connection: Option<PoolConnection<Postgres>>) {
    if let Some(mut connection) = connection {
        connection.close_on_drop();
    }
}

/// Gives a connection in good order back to the pool, which tests it once more, off everybody's path.
pub(crate) fn give_back(mut connection: PoolConnection<Postgres>) {
    tokio::spawn(connection.return_to_pool());
}
