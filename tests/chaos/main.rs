//! Chaos: real workers under load while a schedule drawn from a seed takes everything away from them that can be taken,
//! and an audit, to the row, of what became of every job. `deploy/dev chaos` runs it for as long as you like.
//!
//! In reading order: `schedule` (what happens when; the same seed is the same schedule), `faults` (how it is done), `proxy`
//! (the network between workers and services), `jobs` (what is asked for), `load` (how it is published), `worker` (how it is
//! done), `audit` (whether all of it is true), `times` (how long a return takes), `report`. Beside them `poison`: a task that
//! kills its process.
//!
//! Everything happens on services of the run's own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod crew;
mod dice;
mod faults;
mod fenced;
mod ground;
mod jobs;
mod load;
mod poison;
mod proxy;
mod rabbit;
mod report;
mod run;
mod schedule;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../it/support/services.rs"]
mod services;
mod times;
mod worker;
