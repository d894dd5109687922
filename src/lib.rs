//! cliquet
pub mod handlers;
pub mod job;
pub mod ledger;
pub mod retry;
pub mod task;
pub use task::{Handler, TaskContext, TaskError};
