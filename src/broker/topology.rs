//! Topology.
use crate::retry::{Ladder, Rung};

use super::{Address, BrokerError, Identity};

/// Where a letter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The work queue.
    Work,
    /// A delay queue of the ladder.
    Rung(Rung),
    /// The dead queue.
    Dead,
}

/// One queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSpec {
    /// Its place.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    pub role: String,
    /// Its arguments, as definitions JSON writes them.
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

/// All queues of one work queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    queue: String,
    ladder: Ladder,
}

impl Topology {
    /// The queues of the work queue `queue`.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(queue: &str, ladder: Ladder) -> Result<Self, String> {
        Ok(Self {
            queue: queue.into(),
            ladder,
        })
    }

    /// The ladder.
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// The name of the queue at a place.
    pub fn name(&self, place: Place) -> String {
        match place {
            Place::Work => self.queue.clone(),
            Place::Rung(rung) => format!("{}.delay.{}", self.queue, rung.label()),
            Place::Dead => format!("{}.dead", self.queue),
        }
    }

    /// Every place: work, the rungs shortest first, dead.
    pub fn places(&self) -> Vec<Place> {
        todo!()
    }

    /// Every queue.
    pub fn queues(&self) -> Vec<QueueSpec> {
        todo!()
    }

    /// Definitions JSON.
    pub fn definitions(&self, _vhost: &str) -> serde_json::Value {
        todo!()
    }

    /// Declares.
    ///
    /// # Errors
    /// Any.
    pub async fn declare(
        &self,
        _address: &Address,
        _identity: &Identity,
    ) -> Result<(), BrokerError> {
        todo!()
    }

    /// Verifies.
    ///
    /// # Errors
    /// Any.
    pub async fn verify(
        &self,
        _address: &Address,
        _identity: &Identity,
    ) -> Result<(), BrokerError> {
        todo!()
    }
}
