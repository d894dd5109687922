//! One message to be sent.
use crate::job::Generation;

use super::Delivery;

/// One message to be sent.
#[derive(Clone, Debug)]
pub struct Letter {}

impl Letter {
    /// A fresh message.
    pub fn new(_body: impl Into<Vec<u8>>, _message_id: &str, _message_type: &str) -> Self {
        todo!()
    }
    /// The copy of a delivery.
    pub fn copy_of(_delivery: &Delivery) -> Self {
        todo!()
    }
    /// Sets the generation.
    #[must_use]
    pub fn generation(self, _generation: Generation) -> Self {
        todo!()
    }
    /// Sets the hops.
    #[must_use]
    pub fn hops(self, _hops: u32) -> Self {
        todo!()
    }
    /// Sets the mark redelivered.
    #[must_use]
    pub fn redelivered(self, _redelivered: bool) -> Self {
        todo!()
    }
    /// Says why it is parked.
    #[must_use]
    pub fn parked(
        self,
        _reason: &str,
        _error: &str,
        _task: Option<&str>,
        _attempts: Option<u32>,
    ) -> Self {
        todo!()
    }
    /// Bytes of the body.
    pub fn size(&self) -> usize {
        todo!()
    }
}
