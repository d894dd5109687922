//! The protocol, model-checked with `stateright`: two workers, one job, everything that they may do, and every fault at any
//! moment, up to so many.
//!
//! In reading order: `words` (what a state of the world is made of), `table` (the claim), `ledger`, `worker`, `outside` (the
//! other steps), `steps` (which of them are faults), `promises` (what must hold), `rules` (what can be taken away), `protocol`
//! (the model as the checker sees it); then the tests: `holds`, `needed`, `behaviour`.
//!
//! - The claim's table is the one that is built: `src/ledger/tests/table.rs` runs it against the real statement. The other
//!   steps were written after the code, and nothing compares them with it but a reader: who changes what a worker, a write or
//!   the reconciler does changes it here.
//! - Faults: a crash, a broken connection, a lost lock session, a stale heartbeat while the run goes on, a lost answer of a
//!   claim or a write, a lost confirm, a run that breaks off, a message doubled or dead-lettered, a broker that loses its data,
//!   a stop, a hand-over, an operator's retry, move, cancel and skip. So counts, too, that a brake puts a task off, since it may do so
//!   for ever; that it does so before the handler begins or after a probe is one here, and when a brake is on is no part of it.
//!   A handler may fail at any time, which is no fault.
//! - Safety is asked of every state. That the job can still end, and a job that was given up be seen in the dead queue, is asked
//!   of every state too, by a search through steps that are normal: no fault, no handler that fails. The reconciler may help
//!   only where the broker itself has lost a message, or where it has to send the first one: nothing else may rest on it.
//! - Promise 2 excuses a worker that was paused, or cut off without having noticed, when its job was taken over: it may begin a
//!   task once more. The excuse ends with the next word that reaches its run: a write's answer, a heartbeat, or that its own
//!   lock is gone.
//! - Time is no part of it: what may happen after a while may happen at once. Nor are the contents of messages, groups of
//!   several jobs, and what a statement does that has to wait for a lock: the ledger's own tests show those.
//! - Nor is a broker that never had the mark: it is there in the beginning. Nor that old jobs are deleted.
//! - Where nothing comes of a delay between two steps of one process, it takes them together, and faults of its own hit it in
//!   between (`Protocol::next_at_once`). `one_fault_between_any_two_steps_breaks_no_promise` does without that, and
//!   `two_faults_before_a_task_begins_break_no_promise` where a promise would break first if it were wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod behaviour;
mod checks;
mod holds;
mod ledger;
mod needed;
mod outside;
mod promises;
mod protocol;
mod rules;
mod steps;
// Some of its words are there for the ledger's test of it.
#[allow(dead_code)]
mod table;
mod tell;
mod words;
mod worker;
