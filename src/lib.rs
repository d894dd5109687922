//! cliquet
pub mod broker;
pub mod config;
pub mod job;
pub mod ledger;
pub mod ops;
pub mod retry;
pub mod task;
pub mod telemetry;
pub use task::{Handler, TaskContext, TaskError};
