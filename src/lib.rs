//! cliquet
pub mod job;
pub mod retry;
