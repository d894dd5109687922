//! **cliquet** runs jobs that arrive as RabbitMQ messages, executes each task with a commit to Postgres, requeues failures
//! to a delay queue, and resumes a redelivered job at its first task that is not SUCCESS.
//!
//! A *cliquet* is a ratchet: it turns one way, tooth by tooth, and a pawl keeps what has been gained. Here a tooth is a
//! task, the pawl is a Postgres commit, and the force that turns it is RabbitMQ.
//!
//! ```no_run
//! use cliquet::{TaskContext, TaskError, Worker};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Product { product_id: u64 }
//!
//! #[derive(Deserialize)]
//! struct Image { index: u32 }
//!
//! #[derive(Serialize)]
//! struct Uploaded { url: String }
//!
//! async fn validate(_: TaskContext, product: Product) -> Result<(), TaskError> {
//!     match product.product_id {
//!         0 => Err(TaskError::permanent("there is no product 0")),
//!         _ => Ok(()),
//!     }
//! }
//!
//! async fn upload_image(task: TaskContext, image: Image) -> Result<Uploaded, TaskError> {
//!     let bytes = std::fs::read(format!("{}.jpg", image.index))?; // any error means: try again later
//!     let mut tx = task.transaction().await?;                     // commits together with this task's SUCCESS
//!     cliquet::sqlx::query("INSERT INTO images (bytes) VALUES ($1)").bind(bytes).execute(&mut *tx).await?;
//!     Ok(Uploaded { url: format!("https://images.example/{}", task.idempotency_key()) })
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), cliquet::WorkerError> {
//!     Worker::builder()
//!         .handler("validate_product", validate)
//!         .handler("upload_image", upload_image)
//!         .run()
//!         .await
//! }
//! ```
//!
//! This page is where the design lives: the words, the protocol, what must always hold, and the map of the modules.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | job | one unit of work a publisher asks for: id, kind, payload, and its tasks |
//! | task | one step of a job, at position 1..N, done by a named *handler*; PENDING, PROCESSING, SUCCESS, FAILED |
//! | attempt | one execution of a task, from 1; one that a crash or a stop cut short is not counted |
//! | delivery | one arrival of a message at a worker; *settled* exactly once |
//! | claim | a worker becoming the one *holder* of a job |
//! | epoch | grows with each claim; every later write names it, so a former holder's write changes nothing |
//! | generation | grows each time a job's message is sent again; recognises stale copies |
//! | frontier | a job's first task that is not SUCCESS: the only one that anybody may write |
//! | rung | one delay queue; the *ladder* is all of them |
//! | settle | end a delivery: acknowledge, put back, or replace it by a copy (publish, confirm, acknowledge) |
//! | ledger | the Postgres side: the single source of truth |
//! | operator | whoever looks after jobs; what they do, a retry, a cancel or a skip, is kept with the job as an *intervention* |
//! | skip | an operator takes the frontier for done: it becomes SUCCESS without having run |
//!
//! A job is PENDING (known, not held), PROCESSING (held), RETRYING (a task failed; it waits on a rung), SUCCESS, FAILED
//! (given up; parked in the dead queue) or CANCELLED.
//!
//! # What is promised
//!
//! *Task state exactly once; a handler's writes through its transaction exactly once; every other side effect at least
//! once, with a stable idempotency key `job_id:position`.*
//!
//! 1. An acknowledgement is sent only after every task's SUCCESS is committed, or after the copy that replaces it is
//!    confirmed, or when the claim says that somebody else owns the job.
//! 2. SUCCESS is never undone and never committed twice, and no current holder executes such a task again, whatever is
//!    redelivered, duplicated, killed or restarted. (A worker that was paused beyond its heartbeat may begin a task once
//!    more; its writes change nothing.)
//! 3. A task starts only when every task before it is SUCCESS.
//! 4. What a handler writes through its transaction is there exactly when its task is SUCCESS: never twice, never without. (A
//!    task that an operator skipped is SUCCESS without it, and the job's history says so.)
//! 5. At most one holder's writes take effect in any epoch; a fenced worker changes nothing.
//! 6. Every job that was accepted reaches SUCCESS, FAILED or CANCELLED, or waits on a rung or in a queue that people see.
//! 7. There is no resume mode: first delivery, redelivery and operator's retry go through the same claim.
//! 8. Nothing is decided by comparing the clocks of two machines; times in decisions are the database's.
//! 9. SQL is written in [`ledger`] only, AMQP is spoken in [`broker`] only, only the ledger commits, and only settling
//!    acknowledges.
//!
//! # The protocol
//!
//! A delivery is decoded, its job is *claimed* with one statement (a first delivery of a job that nobody knows, row 1, shares
//! it with what other jobs have to write), run task by task, and settled. The claim answers with the first row that matches:
//!
//! | # | the ledger says | answer | how the delivery ends |
//! |---|---|---|---|
//! | 0 | the id is known with another content | Conflict | parked with both fingerprints |
//! | 1 | no such job | **Claimed**: inserted, first task PROCESSING | after the run |
//! | 2 | not held, not over, and the message is of a newer generation | Foreign: the ledger never gave it out | parked with both generations |
//! | 2a | FAILED, and the message is of this generation | **Claimed**: an operator's retry; attempts and crashes start anew | after the run |
//! | 3 | FAILED, older generation | ParkAgain: the parked copy may never have been sent | parked again |
//! | 4 | SUCCESS or CANCELLED | Finished | acknowledged |
//! | 5 | older generation, job held | Stale | acknowledged |
//! | 6 | older generation, not held | Superseded: the successor may never have been sent | the successor is sent again |
//! | 7 | held by this process at the epoch it runs | Mine | a run that lost its delivery adopts this one; otherwise acknowledged |
//! | 8 | held by this process otherwise (an answer got lost) | **Claimed**, no crash | after the run |
//! | 9 | held; redelivered and the holder's lock is free, or its heartbeat is stale, or it said goodbye | **Claimed**: a takeover; a task left PROCESSING has crashed once more | after the run |
//! | 10 | held | Busy | copy of the same generation to a short rung, longer at each hop |
//! | 11 | not held | **Claimed**: from the first task that is not SUCCESS | after the run |
//!
//! In rows 3 and 6 a copy that is known to be confirmed (`jobs.sent`) is not sent again: the older one is Stale.
//!
//! A claim that would begin a task in which a worker has died is answered *Suspect* instead, unless it was made with the
//! process's one permit for such jobs: the crash is counted, nobody holds the job and nothing has begun. Whoever gets the
//! permit within some seconds claims once more with it; otherwise a copy waits on a short rung, as with Busy.
//!
//! **A task's life is visible to every reader.** PROCESSING is committed before the handler runs, SUCCESS or FAILED after
//! it. SUCCESS of task k and PROCESSING of task k+1 share a commit, and the claim's commit holds the first PROCESSING: N+1
//! commits for N tasks.
//!
//! **Two witnesses for a death.** A worker holds a session advisory lock in Postgres for as long as it lives, and writes a
//! heartbeat. When it is killed, the kernel closes both its sockets: RabbitMQ redelivers, and Postgres frees the lock. Both
//! together let the next worker go on at once; one alone (a broker's restart redelivers everything, a database's restart
//! frees every lock) does not. Otherwise the heartbeat's age decides, and only a silence that Postgres was there to hear
//! counts. A worker that lost its lock starts no task before it has it again, and has stopped the runs that others took over
//! meanwhile.
//!
//! **The fence.** Every write names job, position, epoch and attempt. A claim raises the epoch of the job and of its
//! frontier, the only task a former holder could still write; so its commit, with its handler's own writes, changes no row
//! and rolls back. Cancelling is the same act, and so is skipping: an operator takes the frontier of a job that nobody holds
//! for done, and the job goes on behind it under the next generation.
//!
//! **Failing.** One commit writes FAILED, the error, the next generation and the due time; then the copy is published and
//! confirmed; then the delivery is acknowledged. A crash between any two of these repeats work that the next claim
//! recognises: always towards a duplicate, never towards a loss.
//!
//! **Writes are repeatable.** When a connection dies with a commit's outcome unknown, the same write is sent again and
//! recognises its own earlier commit by epoch and attempt; when somebody else has claimed the job since, it is fenced all the
//! same, or its run would begin a task that is no longer its own. No verb of the ledger ever ends in "perhaps", so no claim is
//! abandoned with its answer lost; a run of ours that breaks off all the same is released by the next heartbeat.
//!
//! **Crashes are counted apart from failures.** A takeover that finds a task PROCESSING counts a crash of that task. Jobs
//! with a crash behind them run one at a time in a worker, so that the next death has one suspect, and one that was merely
//! received when the process died is not counted again. After `crash_limit` crashes the job is parked.
//!
//! **The brake.** After `brake_after` failures of one handler in a row, of more than one job, an outage elsewhere is likely,
//! and would use up everybody's attempts. That handler's tasks are then *deferred*: written and copied as a failure is, with
//! the next generation and a due time, but without a failure, and with the attempt that was begun given back. One task at a
//! time runs all the same, as a probe, at growing pauses; the first success, anybody's, lets everything run. A probe's failure
//! is kept in the history and not counted. Each worker process has its own brakes and tells them with its heartbeat.
//!
//! **The reconciler** sends the message of every job that the ledger says is owed one: due and unheld (while messages wait
//! in the work queue only after ten minutes, since its own is most likely among them), held by a dead worker, given up
//! without a confirmed copy in the dead queue, or enqueued in SQL (`sent < 0`). One publish too many is harmless: it dies
//! at the claim. A job that could never be sent (what was enqueued is no job) is given up with the reason. A message that
//! is rebuilt from the ledger has the publisher's content, but not the publisher's own headers. A broker that lost its disk
//! is recognised by the *mark*, an exchange that nobody publishes to: where it is missing, whatever is given up is parked
//! again. (Where workers do not declare the queues, they leave no mark.)
//!
//! **Pruning.** Where `prune_after` says so, whoever reconciles also deletes jobs that have been over for that long, with what is
//! left of its pause; `cliquet prune` does the same at once. A job that is deleted is unknown: row 1 takes a late duplicate of its
//! message for a new job.
//!
//! **Operators** look and act over the command line, HTTP or SQL. What they do goes through the same claim as everything else: a
//! retry is one more copy of the present generation, a cancel takes the epoch, and a *skip* is a claim, the SUCCESS of its one
//! task and the end of that claim in one commit, only while nobody holds the job. Each act leaves an *intervention* with who did
//! it and why (`cliquet.interventions`); a skip and a cancel in the same commit, a retry when its copy is confirmed. What workers
//! do is told with their heartbeats (`cliquet.activity`, one row a worker and minute), and the lists that people ask for have
//! a partial index in which a job that never fails is never entered: neither costs the hot path anything. *The worker comes
//! first*: whoever looks has connections of his own, read-only and with 5 s for a statement, one reading serves everybody who
//! watches, and what many look at stands for a second or as many times as long as it took. HTTP is for this machine, or for
//! whoever has the token: there are no users, and the name of an operator is a note for colleagues. The page is rendered here, by
//! the same code for the first look and for live ones, so that it needs no build, no foreign host and hardly a script.
//!
//! **Where a worker may die** is listed in `fail_point`, and a test kills one at each of these boundaries. In a release build
//! they do not exist.
//!
//! **It is model-checked.** `tests/model/` is this protocol as a model for `stateright`: two workers, one job, every step in
//! every order, and faults at any of them: crash, broken connection, lost lock session, stale heartbeat, lost answer or
//! confirm, a run that breaks off, duplicates, a wiped broker, stop, hand-over, a braked handler, an operator's retry, move,
//! cancel and skip. In each state promises 1 to 6 hold, and the job can still end by normal steps alone, with a copy in the dead queue
//! if it was given up; by the reconciler's only where the broker itself lost a message (or was never sent one).
//!
//! | test | what was looked at |
//! |---|---|
//! | `two_tasks_and_any_two_faults_break_no_promise` | 949,506 states |
//! | `three_tasks_and_any_two_faults_break_no_promise` | 2,555,580 states |
//! | `three_lost_answers_or_crashes_…`, `three_acts_of_operators_or_crashes_break_no_promise` | three faults of these kinds: 190,604 and 189,751 states |
//! | `two_faults_before_a_task_begins_break_no_promise` | a claim's answer, its run and its first task with any delay between them: 1,521,371 states |
//! | `one_fault_between_any_two_steps_breaks_no_promise` | the same model with nothing taken together: 243,443 states |
//! | `any_three_faults_break_no_promise` | 63,338,939 states, before there were skips; 17 minutes and 8 GB, by hand |
//! | `without_the_fence_…`, `without_row_8_…`, and eighteen more | a rule is taken away, and the checker tells how a promise is broken |
//! | `the_generation_check_is_for_behaviour`, and four more | a rule is taken away, and every promise holds |
//! | `the_models_table_is_the_statements` | the model's claim and the real statement agree in all of 26,544 questions |
//!
//! Of promise 2 the model excuses only a worker that was paused, or cut off without having noticed, when its job was taken
//! over; and only until the next word reaches its run: a write's answer, a heartbeat, or that its own lock is gone. That is
//! why a worker without its lock starts nothing, why the first heartbeat with it stops what others took over, and why a claim
//! that was answered in a later session is handed back: without any of these the checker finds a task that is done again.
//!
//! # What was decided otherwise than first drawn
//!
//! | first | now | why |
//! |---|---|---|
//! | a claim raises the epoch on all tasks left | on the frontier only | nobody can write another task; a retry of 10,000 tasks costs one row |
//! | each heartbeat asks the ledger what it holds | it releases what this process knows it lost | an index on `holder` would make every job's end a cold update |
//! | indexes by status and holder | partial indexes on `next_attempt_at` and `sent` | the hot path then touches no indexed column, not even in a predicate |
//! | an index by age | one with a condition that is always true, and that no write says | no write can be planned with it: where Postgres took the table for empty, it looked ids up in it, and read it whole for each |
//! | a foreign key from tasks to jobs | none | both are written by one statement; the key check would lock the job's row once more for every task |
//! | `payload` and `result` as `jsonb` | `json` | kept to the letter, so a message rebuilt from the ledger has the same fingerprint, and any number fits |
//! | [`task`] below [`ledger`] | above it | a handler's context lends the ledger's transaction |
//! | a suspect is claimed, then waits | it is claimed in two steps | jobs that a dying process had merely received were counted as crashed, and parked |
//! | a stale heartbeat is a death | not while Postgres itself was away | after an outage longer than `patience`, living workers took each other's jobs |
//! | a job's results without limit | 16 MiB together | they are read at each claim and are in memory while the job runs |
//! | `x-delivery-limit` as large as can be | 1,000 | a message that the AMQP client cannot read ends the connection at each delivery; only the limit takes it away |
//! | a job always uses the same lane | any lane may write it | one large group costs less than two small ones, and a write that waits for somebody's lock goes on apart |
//! | a claim for every delivery | a job's first delivery is an admission, which shares a commit with advances | nothing is to be decided for a job that nobody knows; the claim is asked when it is known |
//! | sqlx's pool for handlers' transactions | sessions of our own | the pool asks each connection once more after its use, one round trip a task |
//! | a braked handler's tasks go to the rungs without running | they are claimed, and deferred in the ledger | only the claim knows which task is next, and people see why it waits |
//! | any failures in a row brake a handler | those of more than one job | a job that always fails would hold up its handler, and never be parked |
//! | tasks start as soon as the lost lock is taken again | once the beat after it has told which runs are lost; a claim that was answered in a later session is handed back | a worker that had been cut off while the answer to its commit or its claim was on the way began a task that others had done |
//! | pauses of up to 5 s between attempts to reach a service | 1 s, and an attempt that takes longer is overtaken by another | workers slept while the broker was back; the client does not notice a broker that goes away in its greeting |
//! | a list reads the newest jobs until it has found enough | it walks along a small partial index that only jobs in trouble are in, and stops after 20 ms or some thousand rows | what people look for is rare: one FAILED among a million SUCCESS |
//! | `retry_after` of any length | at most the ladder's longest rung | every delay is a queue; make the ladder longer where hours are needed |
//!
//! # Speed
//!
//! A task costs one commit, and commits of jobs that are ready at the same moment are one: a *lane* owns a connection,
//! takes whatever has arrived since its last commit and writes it as one statement. It waits for no group to fill. One lane
//! writes; the next takes over what arrives while a write takes long. `deploy/dev bench` sets the whole real path beside
//! pgbench on the same machine, and `cliquet bench` measures anybody's own services. What was tried, on 2 cores that also
//! ran both services (tasks/s of jobs of five no-op tasks, with 64 and with 256 in flight):
//!
//! | tried | brought |
//! |---|---|
//! | two lanes, each for half of the ids, a statement for each kind of transition | 16,000 and 35,900: where it began |
//! | conditions that leave the planner no choice ([`ledger`], `step.rs`) | a database that was vacuumed while it was empty: 3,600 → 36,000. The plan was made for an empty table and walked through the index for every row |
//! | *not kept:* a range of one value as such a condition | Postgres finds its beginning and walks on to the end of the job: a task of a job of 10,000 cost six times one of a job of ten; now it costs less |
//! | one lane that writes, others that help | 15,500 → 20,200 and 33,800 → 36,000: groups are twice as large, and a statement's fixed cost (0.25 ms) is shared by more |
//! | a job's admission shares the statement of the advances | 19 → 24 tasks in a commit; 20,200 → 21,700 |
//! | a lane yields once before it takes its group | 24 → 33 and 82 → 118 tasks in a commit |
//! | statements that have only the parts that their group needs | one job at a time: p50 4.8 → 4.4 ms |
//! | range checks of single columns left to the decoder | p50 4.4 → 4.2 ms; Postgres parses a table's CHECK constraints for every statement |
//! | acknowledgements that are ready together share a frame | RabbitMQ's CPU for 1,000 tasks 9.2 → 6.6 ms with 256 in flight; 36,300 → 38,600 |
//! | own sessions for handlers' transactions, SUCCESS and COMMIT in one message | tasks with a transaction 3,400 → 5,300; the worker's CPU for 1,000 of them 128 → 77 ms |
//! | while handlers wait for a session, a COMMIT brings the next BEGIN | CPU for 1,000 tasks with a transaction: Postgres 231 → 213 ms, the worker 79 → 69; 4,900 → 5,270 |
//! | a row's columns are checked by one function, which a session keeps, instead of nine constraints that are read anew | a transaction with a handler's INSERT, alone in Postgres: 95 → 84 µs (74 without any check) |
//! | no yield while jobs come one by one | one job at a time: p50 4.1 → 4.0 ms, a part of it because the benchmark looked more often |
//! | pages of `tasks` a third full, both tables analyzed less often | heap-only updates over ten minutes 90 → 99 % |
//! | metrics told at every step ([`metrics`]) | cost nothing that could be measured: the worker's CPU for 1,000 tasks with 256 in flight 16.3 ms before, 15.8 without a recorder, 15.9 with Prometheus's (medians of six) |
//! | what is rare in the futures of a delivery and a commit is boxed, and they are pinned where they enter their spans | they had 18 and 15 KB and were moved: memmove 6.5 → under 3 % of the worker, whose CPU for 1,000 tasks fell from 24.3 to 21.8 ms with 64 in flight |
//! | an index by age that no write can be planned with (migration 13) | a table that was taken for empty: Postgres's CPU for 1,000 tasks 120 to 340 → 45 ms, 14 → 33 tasks in a commit |
//! | a search that goes on is done in strides and ends after 20 ms, and all who watch share one reading of the overview | with 5 million tasks, ten browsers and full load: lists at the 95th percentile 127 to 155 → 37 ms, a job's page 8; the worker does 2 % less with them than without (before: 5 to 15 %) |
//! | *not kept:* a second lane as soon as as many wait as are being written | 33 → 13 to 19 tasks in a commit, Postgres's CPU a quarter more, and no more tasks, with 64 or 256 in flight |
//! | *not kept:* one short CHECK, written out, in place of the function | nothing: 49.8 ms for 1,000 tasks beside 47.3 |
//! | *not kept:* EXECUTE of a prepared statement that calls the function | nothing: 95 µs as well |
//! | *not kept:* no CHECK constraints at all | 7 to 14 % more; that columns belong together is worth it |
//! | *not kept:* prefetching half as many again as may run | 5 to 18 % more with 64 in flight (an acknowledgement brings the next delivery only once RabbitMQ has that acknowledgement on its disk), nothing or less with 256; but where jobs take minutes, those would wait here while other workers have nothing to do |
//! | *not kept:* RabbitMQ's schedulers do not spin | nothing that could be measured |
//! | *not kept:* SUCCESS and the next PROCESSING as one UPDATE of both rows | no less: Postgres's CPU for 1,000 tasks 55 ms beside 50, 16,100 beside 17,300 (and it would need an error to tell a race with a takeover) |
//! | *not tried:* asynchronous commits that one connection flushes for all | readers would see a SUCCESS that a crash of Postgres takes back |
//!
//! What limits it now. 64 in flight (2.1 to 2.7 times pgbench's two commits, by hour): one Postgres backend, the lane's, with
//! 45 ms of CPU for 1,000 tasks, four fifths of a core, and its fsync beside that (`perf`: half of it in the executor, flat; a
//! tenth each in the row checks, in fsync and in finding rows). Transactions (0.53 to 0.62 times): Postgres, the worker and
//! RabbitMQ need 213, 69 and 38 ms for 1,000 tasks of two cores, of which pgbench alone needs 204. One job alone (4.0 to 7.3 ms):
//! its commits one after the other, each with its flush, and some twenty wake-ups.
//!
//! # Errors, by what can be done about them
//!
//! | error | variant | what to do |
//! |---|---|---|
//! | [`job::BadMessage`] | (one) | the publisher mends the message; it is parked with the sentence |
//! | [`TaskError`] | retry, retry after, permanent | what the handler says |
//! | [`ledger::LedgerError`] | Unavailable | wait: the write is repeated |
//! | | Denied | mend the address |
//! | | Schema | migrate |
//! | | Refused | the job fails with Postgres's words |
//! | | Closed | the worker is leaving; the delivery comes again |
//! | [`broker::BrokerError`], [`broker::SendError`] | by variant | wait, mend the topology, mend the rights |
//! | [`WorkerError`] | Config, Ledger, Broker | the worker cannot begin: mend what it names |
//!
//! # The map
//!
//! Folders are the words above; imports go down only.
//!
//! - 0, words: [`job`] (ids, the message, statuses); [`metrics`] (what is counted and measured: one table of all names);
//!   `fail_point` (where tests kill a worker); `pace` (how often something is looked at)
//! - 1: [`retry`] (policy, ladder, brake), [`ledger`] (Postgres: one verb a file, lanes with group commit), [`broker`] (RabbitMQ:
//!   topology, consuming, confirmed publishing)
//! - 2: [`task`] (what users write), [`handlers`] (ready-made ones), [`config`], [`telemetry`] (log lines,
//!   Prometheus's text, OpenTelemetry's spans)
//! - 3: [`worker`] (the story: `delivery`, `run`, `settlement`, `reconcile`)
//! - 4: [`ops`] (for people: the command line; `ops/web`: HTTP with health, metrics, the API and the page)
//!
//! `deploy/postgres-roles.sql` and `deploy/rabbitmq-permissions.sh` give each user what it needs and no more; the workers of
//! the integration tests (`tests/it`) run under exactly these.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[doc(hidden)]
pub mod fail_point;

pub mod broker;
pub mod config;
pub mod handlers;
pub mod job;
pub mod ledger;
pub mod metrics;
pub mod ops;
mod pace;
pub mod retry;
pub mod task;
pub mod telemetry;
mod tls;
pub mod worker;

pub use sqlx;
pub use task::{Handler, HandlerOptions, TaskContext, TaskError};
pub use worker::{Worker, WorkerError};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
