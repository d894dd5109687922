//! How many messages wait in RabbitMQ's queues, asked at most once a second however many look.

use std::time::Duration;

use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use utoipa::ToSchema;

use super::App;
use crate::broker::{Address, Identity, Place, QueueDepths, Topology};

/// For so long an answer holds.
const HOLDS: Duration = Duration::from_secs(1);
/// How long RabbitMQ may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What a queue is to cliquet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Workers take jobs from here.
    Work,
    /// Jobs wait here before they are tried again.
    Delay,
    /// What was given up or never was a job.
    Dead,
}

/// One queue and what is in it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct QueueDepth {
    /// Its name.
    pub(super) name: String,
    /// What it is to cliquet.
    pub(super) role: Role,
    /// How long a message waits in it, when it is a delay queue.
    pub(super) delay_seconds: Option<f64>,
    /// Messages that wait in it.
    pub(super) ready: u64,
    /// Its consumers.
    pub(super) consumers: u64,
}

/// The last answer, and the connection that is asked.
pub(super) struct Depths(Mutex<Inner>);

struct Inner {
    queues: QueueDepths,
    last: Option<(Instant, Result<Vec<QueueDepth>, String>)>,
}

impl Depths {
    pub(super) fn new(address: Address, topology: Topology, identity: Identity) -> Self {
        Self(Mutex::new(Inner {
            queues: QueueDepths::new(address, topology, identity),
            last: None,
        }))
    }

    async fn look(&self) -> Result<Vec<QueueDepth>, String> {
        let mut inner = self.0.lock().await;
        if let Some((when, answer)) = &inner.last
            && when.elapsed() < HOLDS
        {
            return answer.clone();
        }
        let answer = match timeout(ANSWER, inner.queues.look()).await {
            Ok(Ok(found)) => Ok(found.into_iter().map(depth).collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "RabbitMQ does not answer within {} s",
                ANSWER.as_secs()
            )),
        };
        inner.last = Some((Instant::now(), answer.clone()));
        answer
    }

    pub(super) async fn close(&self) {
        self.0.lock().await.queues.close().await;
    }
}

fn depth((place, name, ready, consumers): (Place, String, u32, u32)) -> QueueDepth {
    let (role, delay_seconds) = match place {
        Place::Work => (Role::Work, None),
        Place::Rung(rung) => (Role::Delay, Some(rung.delay().as_secs_f64())),
        Place::Dead => (Role::Dead, None),
    };
    QueueDepth {
        name,
        role,
        delay_seconds,
        ready: ready.into(),
        consumers: consumers.into(),
    }
}

/// The work queue, the delay queues from the shortest on and the dead queue; those that are not there are left out.
///
/// # Errors
/// A sentence, when RabbitMQ is away or does not let this user look.
pub(super) async fn depths(app: &App) -> Result<Vec<QueueDepth>, String> {
    app.broker.look().await
}
