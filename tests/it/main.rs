//! Everything that needs a real broker or database. One binary, one file for each subject, each test a sentence.

mod broker;
mod support;
