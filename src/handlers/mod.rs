//! Ready-made handlers, for tasks whose work is not written in Rust.
//!
//! [`Exec`] runs a program. It is registered like any other handler, and is what `exec = […]` in the configuration makes.

pub mod exec;

pub use exec::Exec;
