//! What users write: handlers, the context they are given, and the errors they answer with.
//!
//! A handler is an async function. Its errors decide what follows: [`TaskError::retry`] (or `?` on any error) tries again
//! after a delay, [`TaskError::retry_after`] chooses the delay, [`TaskError::permanent`] parks the job.
//!
//! ```
//! use cliquet::{TaskContext, TaskError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Image { index: u32 }
//!
//! #[derive(Serialize)]
//! struct Uploaded { url: String }
//!
//! async fn upload_image(task: TaskContext, image: Image) -> Result<Uploaded, TaskError> {
//!     if image.index == 0 {
//!         return Err(TaskError::permanent("images are counted from 1"));
//!     }
//!     let key = task.idempotency_key(); // the same at every attempt: hand it to whom you call
//!     Ok(Uploaded { url: format!("https://images.example/{key}") })
//! }
//! ```

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    error::Error,
    fmt,
    future::Future,
    marker::PhantomData,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::{
    job::{JobId, JobMessage, Position, TaskResult, TaskSpec},
    ledger::{HandlerTransaction, Transaction},
    retry::RetryPolicy,
};

/// What a handler answers: its result as JSON, or what is to follow.
pub type TaskOutcome = Result<Box<RawValue>, TaskError>;

/// Does one task. Async functions are handlers already (see [`IntoHandler`]); implement this for what is no function.
pub trait Handler: Send + Sync + 'static {
    /// Runs one attempt. It is dropped at its timeout and when its job is cancelled.
    fn run(&self, task: TaskContext) -> BoxFuture<'static, TaskOutcome>;
}

/// Why an attempt failed, and what is to follow.
pub struct TaskError {
    what_next: WhatNext,
    message: String,
}

/// What is to follow a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhatNext {
    /// Try again after the policy's delay.
    Retry,
    /// Try again after this delay, or the ladder's rung nearest to it.
    RetryAfter(Duration),
    /// Park the job: trying again would not help.
    Permanent,
}

impl TaskError {
    /// Try again after the policy's delay; the job is parked after its last attempt.
    pub fn retry(message: impl fmt::Display) -> Self {
        Self {
            what_next: WhatNext::Retry,
            message: message.to_string(),
        }
    }

    /// Try again after this delay: the ladder's nearest rung to it, hence at most the ladder's longest.
    pub fn retry_after(message: impl fmt::Display, delay: Duration) -> Self {
        Self {
            what_next: WhatNext::RetryAfter(delay),
            message: message.to_string(),
        }
    }

    /// Park the job at once: trying again would not help.
    pub fn permanent(message: impl fmt::Display) -> Self {
        Self {
            what_next: WhatNext::Permanent,
            message: message.to_string(),
        }
    }

    /// What is to follow.
    pub fn what_next(&self) -> WhatNext {
        self.what_next
    }

    /// The error as people read it.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.what_next, self.message)
    }
}

/// `?` on any error means: try again. The message is the error with its causes.
impl<E: Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self {
            what_next: WhatNext::Retry,
            message,
        }
    }
}

/// A job as one run of it sees it: the message, and the results so far.
#[derive(Debug)]
pub(crate) struct JobInHand {
    pub(crate) message: Arc<JobMessage>,
    results: RwLock<Vec<TaskResult>>,
}

/// The most that all results of a job may have together, in bytes: they are in memory while it runs.
pub(crate) const MAX_RESULTS_BYTES: usize = 16 * 1024 * 1024;

impl JobInHand {
    pub(crate) fn new(message: Arc<JobMessage>, results: Vec<TaskResult>) -> Arc<Self> {
        Arc::new(Self {
            message,
            results: RwLock::new(results),
        })
    }

    pub(crate) fn spec(&self, position: Position) -> Option<&TaskSpec> {
        self.message.spec(position)
    }

    /// How many bytes the results so far have.
    pub(crate) fn results_bytes(&self) -> usize {
        let results = self.results.read().unwrap_or_else(PoisonError::into_inner);
        results.iter().map(|result| result.result.get().len()).sum()
    }

    pub(crate) fn record(&self, position: Position, result: Box<RawValue>) {
        let handler = self
            .spec(position)
            .map(|spec| spec.handler.clone())
            .unwrap_or_default();
        self.results
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(TaskResult {
                position,
                handler,
                result,
            });
    }
}

/// What a handler is given: the job, its own place in it, what came before, and the means to do it once.
#[derive(Clone)]
pub struct TaskContext {
    pub(crate) job: Arc<JobInHand>,
    pub(crate) position: Position,
    pub(crate) attempt: u32,
    pub(crate) state: Arc<State>,
    pub(crate) cancellation: CancellationToken,
    pub(crate) transaction: HandlerTransaction,
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext")
            .field("job", &self.job_id())
            .field("position", &self.position)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl TaskContext {
    fn spec(&self) -> &TaskSpec {
        // The run makes contexts for positions that exist; a job always has a first task.
        self.job
            .spec(self.position)
            .unwrap_or(&self.job.message.tasks[0])
    }

    /// The job's id.
    pub fn job_id(&self) -> JobId {
        self.job.message.id
    }

    /// The job's kind.
    pub fn kind(&self) -> &str {
        &self.job.message.kind
    }

    /// This task's place in its job, from 1.
    pub fn position(&self) -> Position {
        self.position
    }

    /// How many tasks the job has.
    pub fn total(&self) -> usize {
        self.job.message.tasks.len()
    }

    /// The name of the handler.
    pub fn handler(&self) -> &str {
        &self.spec().handler
    }

    /// What people read while the task runs.
    pub fn label(&self) -> &str {
        &self.spec().label
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The job's payload, as the publisher wrote it.
    pub fn payload_json(&self) -> &RawValue {
        &self.job.message.payload
    }

    /// The job's payload as a type.
    ///
    /// # Errors
    /// [`WhatNext::Permanent`], with what does not fit and where.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        read("the job's payload", self.payload_json())
    }

    /// This task's input as the publisher wrote it; `null` when it has none.
    pub fn input_json(&self) -> &RawValue {
        &self.spec().input
    }

    /// This task's input as a type; a task that has no input of its own is given the job's payload.
    ///
    /// # Errors
    /// [`WhatNext::Permanent`], with what does not fit and where.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        match self.input_json().get() {
            "null" => read(
                "the job's payload (the task has no input of its own)",
                self.payload_json(),
            ),
            _ => read("the task's input", self.input_json()),
        }
    }

    /// The results of all earlier tasks, by position.
    pub fn results(&self) -> Vec<TaskResult> {
        self.with_results(|results| results.to_vec())
    }

    /// The result of the task at a position; `None` if that task is not before this one.
    ///
    /// # Errors
    /// [`WhatNext::Permanent`], when the result is not of this type.
    pub fn result_at<T: DeserializeOwned>(
        &self,
        position: Position,
    ) -> Result<Option<T>, TaskError> {
        self.find_result(|result| result.position == position)
    }

    /// The result of the nearest earlier task that this handler did; `None` if there is none.
    ///
    /// # Errors
    /// [`WhatNext::Permanent`], when the result is not of this type.
    pub fn result_of<T: DeserializeOwned>(&self, handler: &str) -> Result<Option<T>, TaskError> {
        self.find_result(|result| result.handler == handler)
    }

    fn find_result<T: DeserializeOwned>(
        &self,
        wanted: impl Fn(&TaskResult) -> bool,
    ) -> Result<Option<T>, TaskError> {
        self.with_results(|results| {
            results
                .iter()
                .rev()
                .find(|result| wanted(result))
                .map(|result| {
                    read(
                        &format!("the result of task {}", result.position),
                        &result.result,
                    )
                })
                .transpose()
        })
    }

    fn with_results<T>(&self, look: impl FnOnce(&[TaskResult]) -> T) -> T {
        look(
            &self
                .job
                .results
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// `job_id:position`: the same at every attempt of this task. Hand it to whatever the task calls, so that a repeated
    /// call is known there as the same one.
    pub fn idempotency_key(&self) -> String {
        format!("{}:{}", self.job_id(), self.position)
    }

    /// Cancelled when the job is cancelled or taken over. The handler is dropped then in any case; this is for what it spawned.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }

    /// What was given to [`Builder::state`](crate::worker::Builder::state).
    ///
    /// # Errors
    /// [`WhatNext::Retry`], when the worker was given no state of this type (a newer worker may have it).
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, TaskError> {
        self.state.get().ok_or_else(|| {
            TaskError::retry(format!(
                "no state of type {} was given to the worker's builder",
                type_name::<T>()
            ))
        })
    }

    /// A database transaction that commits together with this task's SUCCESS: what is written through it is there exactly
    /// once, or not at all. Opened at the first call. Let it go out of scope before the handler returns.
    ///
    /// # Errors
    /// Any `sqlx::Error` of reaching the database; `?` on it means: try again.
    pub async fn transaction(&self) -> Result<Transaction, sqlx::Error> {
        self.transaction.begin().await
    }
}

fn read<T: DeserializeOwned>(what: &str, json: &RawValue) -> Result<T, TaskError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json.get())).map_err(
        |error| {
            let path = error.path().to_string();
            let place = if path == "." {
                String::new()
            } else {
                format!(" at `{path}`")
            };
            TaskError::permanent(format!(
                "{what} does not fit {}{place}: {}",
                type_name::<T>(),
                error.into_inner()
            ))
        },
    )
}

/// Whatever the user gave to the builder, by type.
#[derive(Clone, Default)]
pub(crate) struct State(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl State {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(state));
    }

    fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>())?.clone().downcast().ok()
    }
}

/// What can be registered as a handler: `async fn(TaskContext) -> Result<T, TaskError>`,
/// `async fn(TaskContext, Input) -> Result<T, TaskError>` with `Input: Deserialize` and `T: Serialize`, or a [`Handler`].
///
/// The marker `M` only keeps the three apart, as in axum's handlers; it is always inferred.
pub trait IntoHandler<M> {
    /// The handler behind it.
    fn into_handler(self) -> Arc<dyn Handler>;
}

/// Marks what is a [`Handler`] already.
#[derive(Debug)]
pub struct Itself;

impl<H: Handler> IntoHandler<Itself> for H {
    fn into_handler(self) -> Arc<dyn Handler> {
        Arc::new(self)
    }
}

struct Function<F, M>(F, PhantomData<fn() -> M>);

impl<F, Fut, T> IntoHandler<fn(TaskContext) -> T> for F
where
    F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, TaskError>> + Send + 'static,
    T: Serialize + 'static,
{
    fn into_handler(self) -> Arc<dyn Handler> {
        Arc::new(Function::<F, fn(TaskContext) -> T>(self, PhantomData))
    }
}

impl<F, Fut, T> Handler for Function<F, fn(TaskContext) -> T>
where
    F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, TaskError>> + Send + 'static,
    T: Serialize + 'static,
{
    fn run(&self, task: TaskContext) -> BoxFuture<'static, TaskOutcome> {
        let answer = (self.0)(task);
        Box::pin(async move { write(&answer.await?) })
    }
}

impl<F, Fut, I, T> IntoHandler<fn(TaskContext, I) -> T> for F
where
    F: Fn(TaskContext, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, TaskError>> + Send + 'static,
    I: DeserializeOwned + 'static,
    T: Serialize + 'static,
{
    fn into_handler(self) -> Arc<dyn Handler> {
        Arc::new(Function::<F, fn(TaskContext, I) -> T>(self, PhantomData))
    }
}

impl<F, Fut, I, T> Handler for Function<F, fn(TaskContext, I) -> T>
where
    F: Fn(TaskContext, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, TaskError>> + Send + 'static,
    I: DeserializeOwned + 'static,
    T: Serialize + 'static,
{
    fn run(&self, task: TaskContext) -> BoxFuture<'static, TaskOutcome> {
        match task.input() {
            Ok(input) => {
                let answer = (self.0)(task, input);
                Box::pin(async move { write(&answer.await?) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

fn write(result: &impl Serialize) -> TaskOutcome {
    serde_json::value::to_raw_value(result).map_err(|error| {
        TaskError::permanent(format!(
            "the handler's result cannot be written as JSON: {error}"
        ))
    })
}

/// How one handler is run, where it differs from the worker's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HandlerOptions {
    /// When to try again, in place of the worker's policy.
    pub retry: Option<RetryPolicy>,
    /// The time limit of one attempt; none by default.
    pub timeout: Option<Duration>,
    /// After so many failures in a row it is braked, in place of the worker's `brake_after`; 0 never.
    pub brake_after: Option<u32>,
}

/// A handler with its options.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) options: HandlerOptions,
}

/// All handlers of a worker, by name.
#[derive(Clone, Default)]
pub(crate) struct Registry(HashMap<String, Registered>);

impl Registry {
    pub(crate) fn insert(
        &mut self,
        name: String,
        handler: Arc<dyn Handler>,
        options: HandlerOptions,
    ) {
        self.0.insert(name, Registered { handler, options });
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Registered> {
        self.0.get(name)
    }

    pub(crate) fn options(&self) -> impl Iterator<Item = (&str, HandlerOptions)> {
        self.0
            .iter()
            .map(|(name, registered)| (name.as_str(), registered.options))
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}
