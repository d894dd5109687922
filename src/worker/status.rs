//! How it is with a worker, for whoever has to say whether it is ready.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use super::Crew;

/// How it is with one worker: cheap to clone, and asked as often as one likes. It keeps nothing of the worker alive.
///
/// See [`Worker::status`](super::Worker::status).
#[derive(Clone)]
pub struct Status(Arc<watch::Sender<Stage>>);

enum Stage {
    /// It does not run yet, or waits for Postgres.
    Beginning,
    /// It is known to the ledger, and waits for RabbitMQ.
    Registered,
    /// It consumes, or did.
    Working {
        crew: Weak<Crew>,
        consuming: watch::Receiver<bool>,
    },
}

impl Default for Status {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Beginning)))
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Status").field(&self.obstacles()).finish()
    }
}

impl Status {
    /// Whether the worker takes jobs: it has begun to consume, its lock in Postgres and both connections to RabbitMQ are
    /// there, as far as this side knows, and nobody has asked it to stop.
    pub fn is_ready(&self) -> bool {
        self.obstacles().is_empty()
    }

    /// What keeps it from taking jobs, a sentence each; empty while nothing does.
    pub fn obstacles(&self) -> Vec<&'static str> {
        let stage = self.0.borrow();
        let (crew, consuming) = match &*stage {
            Stage::Beginning => return vec!["the worker waits for Postgres before it begins"],
            Stage::Registered => return vec!["the worker waits for RabbitMQ before it begins"],
            Stage::Working { crew, consuming } => (crew, consuming),
        };
        let Some(crew) = crew.upgrade() else {
            return vec!["the worker has stopped"];
        };
        if crew.drain.is_cancelled() {
            return vec!["the worker is stopping: running tasks end, and no more jobs are taken"];
        }
        let mut found = Vec::new();
        let mut unless = |well: bool, sentence| {
            if !well {
                found.push(sentence);
            }
        };
        unless(
            crew.session().is_some(),
            "the worker's lock in Postgres is lost: Postgres is away",
        );
        unless(
            *consuming.borrow(),
            "RabbitMQ hands the worker no messages: the connection that consumes is away",
        );
        unless(
            crew.publisher.is_connected(),
            "the worker cannot send messages: the connection to RabbitMQ that publishes is away",
        );
        unless(
            !crew.publisher.is_blocked(),
            "RabbitMQ blocks publishers, so no job begins: it runs short of memory or disk",
        );
        found
    }

    pub(super) fn registered(&self) {
        self.0.send_replace(Stage::Registered);
    }

    pub(super) fn working(&self, crew: &Arc<Crew>, consuming: watch::Receiver<bool>) {
        self.0.send_replace(Stage::Working {
            crew: Arc::downgrade(crew),
            consuming,
        });
    }
}
