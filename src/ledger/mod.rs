//! ledger
mod transaction;
pub use transaction::{HandlerTransaction, Transaction};
