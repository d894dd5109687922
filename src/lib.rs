//! cliquet
pub mod broker;
pub mod config;
pub mod job;
pub mod ledger;
pub mod retry;
pub mod task;
pub mod worker;
pub use task::{Handler, TaskContext, TaskError};
pub use worker::Worker;
