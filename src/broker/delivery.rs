//! One message at this worker.
use crate::job::{BadMessage, Generation};

/// One arrival of a message; settle it exactly once.
#[derive(Debug)]
pub struct Delivery {}

/// What our own headers of a message say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Generation.
    pub generation: Generation,
    /// How often a copy found its job busy.
    pub hops: u32,
    /// Whether the original of a busy copy was redelivered.
    pub redelivered: bool,
}

/// How settling ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The broker was told.
    Done,
    /// It could not be told: it will deliver the message again.
    Lost,
}

impl Delivery {
    /// The body.
    pub fn body(&self) -> &[u8] {
        todo!()
    }
    /// The AMQP property message_id.
    pub fn message_id(&self) -> Option<&str> {
        todo!()
    }
    /// The AMQP property type.
    pub fn message_type(&self) -> Option<&str> {
        todo!()
    }
    /// A header that is text.
    pub fn header(&self, _name: &str) -> Option<&str> {
        todo!()
    }
    /// The broker's flag.
    pub fn redelivered(&self) -> bool {
        todo!()
    }
    /// Our own headers.
    ///
    /// # Errors
    /// bad_header.
    pub fn marks(&self) -> Result<Marks, BadMessage> {
        todo!()
    }
    /// Whether it can still be settled.
    pub fn is_alive(&self) -> bool {
        todo!()
    }
    /// Acknowledges.
    pub async fn acknowledge(&self) -> Settled {
        todo!()
    }
    /// Gives it back.
    pub async fn requeue(&self) -> Settled {
        todo!()
    }
}
