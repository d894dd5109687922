//! Confirmed sends.
use tokio_util::sync::CancellationToken;

use super::{Address, BrokerError, Identity, Letter, Place, SendError, Topology};

/// Confirmed sends.
#[derive(Clone, Debug)]
pub struct Publisher {}

impl Publisher {
    /// Starts; connects in the background.
    pub fn start(
        _address: Address,
        _topology: Topology,
        _identity: Identity,
        _channels: usize,
        _declare: bool,
    ) -> Self {
        todo!()
    }
    /// One attempt.
    ///
    /// # Errors
    /// By variant.
    pub async fn send(&self, _place: &Place, _letter: &Letter) -> Result<(), SendError> {
        todo!()
    }
    /// Repeats until confirmed or cancelled.
    ///
    /// # Errors
    /// TooLarge and Cancelled only.
    pub async fn deliver(
        &self,
        _place: &Place,
        _letter: &Letter,
        _stop: &CancellationToken,
    ) -> Result<(), SendError> {
        todo!()
    }
    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        todo!()
    }
    /// Whether the broker blocks publishers.
    pub fn is_blocked(&self) -> bool {
        todo!()
    }
    /// Waits while the broker blocks publishers.
    pub async fn unblocked(&self) {
        todo!()
    }
    /// Messages ready in the queue at a place.
    ///
    /// # Errors
    /// By variant.
    pub async fn depth(&self, _place: &Place) -> Result<u32, BrokerError> {
        todo!()
    }
    /// Closes the connection.
    pub async fn close(&self) {
        todo!()
    }
}
