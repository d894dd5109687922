//! Everything that needs a real broker or database. One binary, one file for each subject, each test a sentence.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod blocked;
mod brake;
mod broker;
mod cli;
mod completions;
mod context;
mod dashboards;
mod dead;
mod death;
mod doctor;
mod exec;
mod hostile;
mod house;
mod long_tasks;
mod order;
mod outage;
mod page;
mod privileges;
mod prune;
mod publish;
mod repair;
mod resume;
mod retry;
mod secrets;
mod support;
#[cfg(debug_assertions)] // there are no fail points otherwise
mod sweep;
mod tls;
mod traces;
mod web;
mod web_api;
mod web_limits;
mod web_ready;
mod web_schema;
mod wiped;
