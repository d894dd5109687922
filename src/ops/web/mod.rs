//! HTTP for operators: health, metrics, the API and the page; beside a worker (`cliquet work --http`) or alone (`cliquet web`).
//!
//! In reading order: `command` (how it begins and ends), `server` (listening, limits, shutting down; `patience` for clients
//! that do not read), `guard` (who may ask: hosts, origins, the token; what every answer carries), `auth` (the token and the
//! sessions of browsers), `login`, `failure` (what is wrong, as JSON or as a page), `health`, `api` (one file a subject, and the
//! OpenAPI document that is made from them), `live` (one poller for everybody who watches), `depths` (RabbitMQ's queues),
//! `kept` (answers that many look at), `bulk`
//! (acts on many jobs), `redact` (what is hidden of a job), `page` (what people see).
//!
//! **The worker comes first.** Whatever is asked here has connections of its own to both services, few of them, and a place
//! among few that ask at a time; the rest waits a little and is then turned away.
//!
//! **A client that goes away ends no question.** The server drops a request's future when its connection is gone, and a
//! dropped call that owns a transaction may poison its connection. So whatever asks the ledger runs in a task of its own
//! ([`App::read`], [`App::act`]), which goes on to its end; only the waiting for it is bounded.

mod api;
mod auth;
mod bulk;
mod command;
mod depths;
mod failure;
mod guard;
mod health;
mod kept;
mod live;
mod login;
mod page;
mod patience;
mod redact;
mod server;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use command::{Beside, HELP, Web};

use super::acts::Acts;
use crate::{
    config::Config,
    ledger::{Groups, LedgerAddress, LedgerError, Overview, Reads, WorkerView},
    telemetry::metrics::Exposition,
};
use auth::{Refusals, Sessions, Token};
use depths::Depths;
use failure::Problem;
use health::Readiness;
use kept::Kept;
use live::Live;

/// So many questions are put to the ledger at a time, each over a connection of its own.
const READERS: usize = 4;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// How long an answer of the ledger is waited for. Postgres itself ends a statement before that.
const ANSWER: Duration = Duration::from_secs(8);

/// The most groups of like failures that are looked at.
const MOST_GROUPS: u32 = 500;

/// What every request shares.
struct App {
    reads: Reads,
    acts: Acts,
    config: Arc<Config>,
    live: Live,
    /// RabbitMQ's queues.
    broker: Depths,
    /// These are of all queues.
    overview: Kept<Overview>,
    groups: Kept<Groups>,
    workers: Kept<Vec<WorkerView>>,
    token: Option<Token>,
    sessions: Sessions,
    refusals: Refusals,
    readiness: Readiness,
    metrics: Exposition,
    /// Where it listens.
    address: SocketAddr,
    /// The ledger's address, for the log.
    database: LedgerAddress,
    readers: Arc<Semaphore>,
    /// One act on many jobs at a time.
    bulk: Arc<Semaphore>,
    /// What goes on to its end, whoever has gone away.
    tasks: TaskTracker,
    /// Nothing new begins.
    stop: CancellationToken,
}

/// [`App`], as every handler has it.
type Shared = Arc<App>;

impl App {
    /// Puts one question to the ledger, when it is its turn.
    async fn read<T, F>(&self, question: impl FnOnce(Reads) -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, LedgerError>> + Send + 'static,
        T: Send + 'static,
    {
        let answer = self.turn(question, |answer| async move { Some(answer) });
        answer.await?.ok_or_else(Problem::broken)
    }

    /// As [`App::read`], for an answer that may be large: what is made of it is made within the turn, so that not more of them
    /// are in memory than there are turns, and on a thread where nobody waits for it.
    async fn read_whole<T, F, M>(
        &self,
        question: impl FnOnce(Reads) -> F,
        make: impl FnOnce(T) -> M + Send + 'static,
    ) -> Result<M, Problem>
    where
        F: Future<Output = Result<T, LedgerError>> + Send + 'static,
        T: Send + 'static,
        M: Send + 'static,
    {
        let made = self.turn(question, |answer| async move {
            spawn_blocking(move || make(answer)).await.ok()
        });
        made.await?.ok_or_else(Problem::broken)
    }

    async fn turn<T, F, M, G>(
        &self,
        question: impl FnOnce(Reads) -> F,
        make: impl FnOnce(T) -> G + Send + 'static,
    ) -> Result<M, Problem>
    where
        F: Future<Output = Result<T, LedgerError>> + Send + 'static,
        G: Future<Output = M> + Send + 'static,
        T: Send + 'static,
        M: Send + 'static,
    {
        let turn = timeout(TURN, self.readers.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::away(format!(
                "{READERS} other questions are being answered, and none was done within {} s; ask again",
                TURN.as_secs()
            )));
        };
        let asked = question(self.reads.clone());
        let answer = self.tasks.spawn(async move {
            let made = match asked.await {
                Ok(answer) => Ok(make(answer).await),
                Err(error) => Err(error),
            };
            drop(turn);
            made
        });
        match timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Problem::broken()),
            Err(_) => Err(Problem::away(format!(
                "Postgres does not answer within {} s",
                ANSWER.as_secs()
            ))),
        }
    }

    /// Does something that goes on to its end, though nobody waits for it any more.
    async fn act<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = self.clone();
        let acting = async move {
            let done = act.await;
            app.overview.forget();
            app.groups.forget();
            app.workers.forget();
            done
        };
        self.tasks
            .spawn(acting)
            .await
            .map_err(|_| Problem::broken())
    }

    /// All queues at a glance.
    async fn overview(&self) -> Result<Arc<Overview>, Problem> {
        let read = self.read(|reads| async move { reads.overview(None).await });
        self.overview.or_read(read).await
    }

    /// The groups of like failures in all queues, the largest first.
    async fn groups(&self) -> Result<Arc<Groups>, Problem> {
        let read = self.read(|reads| async move { reads.groups(None, MOST_GROUPS).await });
        self.groups.or_read(read).await
    }

    /// The workers of all queues.
    async fn workers(&self) -> Result<Arc<Vec<WorkerView>>, Problem> {
        let read = self.read(|reads| async move { reads.workers(None).await });
        self.workers.or_read(read).await
    }
}

/// Every route. What is not open asks for the token, when there is one.
fn routes(app: &Shared) -> Router {
    let guarded = Router::new()
        .merge(api::routes())
        .route("/metrics", get(health::metrics))
        .merge(page::routes())
        .fallback(failure::nothing_here)
        .layer(middleware::from_fn(server::bounded))
        .layer(middleware::from_fn(server::let_in))
        .layer(middleware::from_fn_with_state(app.clone(), guard::admitted));
    let open = Router::new()
        .route("/livez", get(health::alive))
        .route("/readyz", get(health::ready))
        .merge(login::routes())
        .merge(page::files())
        .layer(middleware::from_fn(server::bounded));
    guarded
        .merge(open)
        .method_not_allowed_fallback(failure::wrong_method)
        .layer(middleware::from_fn_with_state(
            app.clone(),
            guard::from_here,
        ))
        .layer(middleware::from_fn_with_state(app.clone(), guard::dressed))
        .with_state(app.clone())
}
