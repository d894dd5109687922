//! Connections.

/// Who connects: shown by the broker's tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The worker's name.
    pub name: String,
}
