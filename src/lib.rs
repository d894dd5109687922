//! cliquet
pub mod broker;
pub mod job;
pub mod retry;
