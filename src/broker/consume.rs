//! Consuming.
use tokio::sync::watch;

use super::{Address, BrokerError, Delivery, Identity, Topology};

/// Deliveries from the work queue.
#[derive(Debug)]
pub struct Consumer {}

impl Consumer {
    /// Starts.
    ///
    /// # Errors
    /// What waiting cannot mend.
    pub async fn start(
        _address: Address,
        _topology: Topology,
        _identity: Identity,
        _prefetch: u16,
        _declare: bool,
    ) -> Result<Self, BrokerError> {
        todo!()
    }
    /// The next delivery; None only after stop. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        todo!()
    }
    /// Whether it is connected and consuming.
    pub fn is_connected(&self) -> bool {
        todo!()
    }
    /// Watches is_connected.
    pub fn state(&self) -> watch::Receiver<bool> {
        todo!()
    }
    /// Takes no more; hands back what was not handed out.
    pub async fn stop(&mut self) {
        todo!()
    }
    /// Closes the connection.
    pub async fn close(self) {
        todo!()
    }
}
