//! The words: what a job is, what a message says, and the states both go through.
//!
//! [`JobMessage::decode`] is the edge of the system: everything behind it is typed, bounded and storable.
//! A [`BadMessage`] says what is wrong, where in the document, and what was expected; the delivery is parked with it.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize, de};
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The largest message body, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// A message that is rebuilt from the ledger has its id and its kind in the body, which the publisher may have sent as
/// properties: by so much it may be longer than the original.
const PROPERTIES_BYTES: usize = 1024;
/// The most tasks a job may have.
pub const MAX_TASKS: usize = 10_000;
/// The longest `kind`, `handler` or `label`, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The longest sentence that is said of a bad message, in bytes.
const MAX_SENTENCE_BYTES: usize = 2_000;
/// The most attempts that a message may ask for.
pub const MAX_ATTEMPTS: u32 = 10_000;
/// The longest timeout that a message may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Names a job: the publisher chooses it, and publishing the same id twice is one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// A new id that sorts by time (UUID version 7).
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The place of a task in its job: 1, 2, 3 …
pub type Position = i32;

/// Grows with each claim of a job; every write names it, so a former holder's write changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

/// Grows each time a job's message is sent again; recognises stale copies. A publisher's own message is generation 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl Generation {
    /// The largest generation that a message may carry. A header above it is somebody's mistake or forgery.
    pub const MAX: Generation = Generation(1_000_000_000);

    /// The generation of the copy that replaces a message of this one.
    pub fn next(self) -> Self {
        Self((self.0 + 1).min(Self::MAX.0))
    }
}

macro_rules! statuses {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every status, in the order of a life.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The word, as the ledger and `--json` write it.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|status| status.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|status| status.as_str()).collect();
                    format!("there is no status {text:?}; the statuses are {}", known.join(", "))
                })
            }
        }
    };
}

statuses! {
    /// Where a job is in its life.
    JobStatus {
        /// Known, not held: waiting in the work queue.
        Pending = "PENDING",
        /// Held by a worker.
        Processing = "PROCESSING",
        /// A task failed; the job waits on a rung of the delay ladder.
        Retrying = "RETRYING",
        /// Every task is SUCCESS.
        Success = "SUCCESS",
        /// Given up and parked in the dead queue.
        Failed = "FAILED",
        /// An operator ended it.
        Cancelled = "CANCELLED",
    }
}

statuses! {
    /// Where a task is in its life.
    TaskStatus {
        /// Not begun, or its last attempt was handed back.
        Pending = "PENDING",
        /// Its handler was started (committed before it was).
        Processing = "PROCESSING",
        /// Its handler ended well (committed after it did); never undone.
        Success = "SUCCESS",
        /// Its last attempt failed.
        Failed = "FAILED",
    }
}

/// One step of a job, as the publisher asks for it.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// The name of the handler that does it.
    pub handler: String,
    /// What people read while it runs: `Upload image 2/5`.
    pub label: String,
    /// What the handler is given; `null` when the message has none.
    pub input: Box<RawValue>,
    /// Overrides the handler's own number of attempts.
    pub max_attempts: Option<u32>,
    /// Overrides the handler's own time limit for one attempt.
    pub timeout: Option<Duration>,
}

/// The result of an earlier task of the same job.
#[derive(Clone, Debug, Serialize)]
pub struct TaskResult {
    /// Where the task stands in its job, from 1.
    pub position: Position,
    /// The name of the handler that did it.
    pub handler: String,
    /// What the handler answered.
    pub result: Box<RawValue>,
}

/// One job, as the publisher asks for it: the decoded message.
///
/// ```
/// use cliquet::job::JobMessage;
///
/// let body = br#"{"id": "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11", "kind": "shop.publish",
///                 "tasks": ["validate", {"handler": "upload", "label": "Upload image 1/5", "input": {"index": 1}}]}"#;
/// let job = JobMessage::decode(body, None, None)?;
/// assert_eq!(job.tasks[0].label, "validate");
/// assert_eq!(job.tasks[1].input.get(), r#"{"index": 1}"#);
///
/// let bad = JobMessage::decode(br#"{"kind": "shop.publish", "tasks": ["validate"]}"#, None, None).unwrap_err();
/// assert_eq!(bad.reason, "no_id");
/// # Ok::<(), cliquet::job::BadMessage>(())
/// ```
#[derive(Clone, Debug)]
pub struct JobMessage {
    /// Names the job.
    pub id: JobId,
    /// What sort of job it is; people filter by it.
    pub kind: String,
    /// What all tasks of the job share; kept to the letter.
    pub payload: Box<RawValue>,
    /// The tasks in their order; never empty.
    pub tasks: Vec<TaskSpec>,
    /// SHA-256 of the content, blind to white space, the order of keys and shorthand; two messages of one id must agree in it.
    pub fingerprint: Fingerprint,
}

/// SHA-256 of what a message asks for; see [`JobMessage::fingerprint`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// The first 12 hexadecimal digits: enough to tell two apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a message is parked without a run: a stable code for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct BadMessage {
    /// A stable code; the header `cliquet-reason` of the parked copy.
    pub reason: &'static str,
    /// What is wrong, where, and what was expected; the header `cliquet-error` of the parked copy.
    pub sentence: String,
}

impl BadMessage {
    pub(crate) fn new(reason: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            reason,
            sentence: cut(sentence.into()),
        }
    }
}

/// What quotes a message may be as long as the message, and it goes to a log line. What is wrong stands at the beginning,
/// what was expected at the end.
fn cut(sentence: String) -> String {
    if sentence.len() <= MAX_SENTENCE_BYTES {
        return sentence;
    }
    let end = sentence.floor_char_boundary(MAX_SENTENCE_BYTES * 2 / 3);
    let begin = sentence.ceil_char_boundary(sentence.len() - MAX_SENTENCE_BYTES / 4);
    format!("{} … {}", &sentence[..end], &sentence[begin..])
}

impl JobMessage {
    /// The task at this position, from 1.
    pub(crate) fn spec(&self, position: Position) -> Option<&TaskSpec> {
        self.tasks
            .get(usize::try_from(position).ok()?.checked_sub(1)?)
    }

    /// Reads a message's body. The AMQP properties `message_id` and `type` stand in for an `id` and a `kind` that the body lacks.
    ///
    /// # Errors
    /// A [`BadMessage`] for whatever breaks a rule of the message: it is never a panic and never a partial job.
    pub fn decode(
        body: &[u8],
        message_id: Option<&str>,
        message_type: Option<&str>,
    ) -> Result<Self, BadMessage> {
        if body.len() > MAX_BODY_BYTES + PROPERTIES_BYTES {
            return Err(BadMessage::new(
                "too_large",
                format!(
                    "the body has {} bytes; the limit is {MAX_BODY_BYTES}. Store large data elsewhere and send its address",
                    body.len()
                ),
            ));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            BadMessage::new(
                "not_utf8",
                format!(
                    "the body is not UTF-8 (byte {}); a job is a JSON object in UTF-8",
                    error.valid_up_to()
                ),
            )
        })?;
        let wire: WireJob = parse(text)?;

        let id = match (wire.id.as_deref(), message_id) {
            (Some(id), _) => id.parse().map_err(|_| bad_id("`id`", id))?,
            (None, Some(id)) => id
                .parse()
                .map_err(|_| bad_id("the AMQP property message_id", id))?,
            (None, None) => {
                return Err(BadMessage::new(
                    "no_id",
                    "the job has no id: give it `id`, a UUID, or the AMQP property message_id",
                ));
            }
        };
        let kind = wire.kind.as_deref().or(message_type).ok_or_else(|| {
            BadMessage::new(
                "no_kind",
                "the job has no kind: give it `kind`, a string, or the AMQP property type",
            )
        })?;
        let tasks = wire.tasks.unwrap_or_default();
        if tasks.is_empty() {
            return Err(BadMessage::new(
                "no_tasks",
                "the job has no tasks: `tasks` must list at least one handler",
            ));
        }
        if tasks.len() > MAX_TASKS {
            return Err(BadMessage::new(
                "too_many_tasks",
                format!(
                    "`tasks` has {} entries; the limit is {MAX_TASKS}",
                    tasks.len()
                ),
            ));
        }
        let tasks = tasks
            .into_iter()
            .enumerate()
            .map(|(index, task)| task.check(index))
            .collect::<Result<_, _>>()?;
        Self::assemble(id, name("`kind`", kind)?, wire.payload, tasks)
    }

    /// A job made in this process rather than read from a message; the same rules hold.
    ///
    /// # Errors
    /// A [`BadMessage`] when a name is too long, a string holds a NUL, or there are no tasks or too many.
    pub fn new(
        id: JobId,
        kind: &str,
        payload: &impl Serialize,
        tasks: Vec<TaskSpec>,
    ) -> Result<Self, BadMessage> {
        let payload = raw("`payload`", payload)?;
        let draft = Self {
            id,
            kind: kind.to_owned(),
            payload,
            tasks,
            fingerprint: Fingerprint([0; 32]),
        };
        Self::decode(&draft.encode(), None, None)
    }

    /// The message's body: what [`decode`](Self::decode) reads back as the same job.
    pub fn encode(&self) -> Vec<u8> {
        let wire = WireJob {
            id: Some(self.id.to_string()),
            kind: Some(self.kind.clone()),
            payload: Some(self.payload.clone()),
            tasks: Some(
                self.tasks
                    .iter()
                    .map(|task| {
                        WireTask(WireTaskObject {
                            handler: task.handler.clone(),
                            label: (task.label != task.handler).then(|| task.label.clone()),
                            input: (task.input.get() != "null").then(|| task.input.clone()),
                            max_attempts: task.max_attempts,
                            timeout_seconds: task.timeout.map(|timeout| timeout.as_secs_f64()),
                        })
                    })
                    .collect(),
            ),
        };
        // Strings, numbers and text that was JSON before: there is nothing here that could fail to serialise.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    pub(crate) fn assemble(
        id: JobId,
        kind: String,
        payload: Option<Box<RawValue>>,
        tasks: Vec<TaskSpec>,
    ) -> Result<Self, BadMessage> {
        let payload = payload.unwrap_or_else(null);
        let mut hasher = Sha256::new();
        hash_text(&mut hasher, &kind);
        hash_value(&mut hasher, &storable("payload", &payload)?);
        for (index, task) in tasks.iter().enumerate() {
            hash_text(&mut hasher, &task.handler);
            hash_text(&mut hasher, &task.label);
            hash_value(
                &mut hasher,
                &storable(&format!("tasks[{index}].input"), &task.input)?,
            );
            hasher.update(task.max_attempts.unwrap_or(0).to_be_bytes());
            hasher.update(task.timeout.unwrap_or_default().as_nanos().to_be_bytes());
        }
        Ok(Self {
            id,
            kind,
            payload,
            tasks,
            fingerprint: Fingerprint(hasher.finalize().into()),
        })
    }
}

/// Feeds one string, with its length, so that no two lists of strings feed the same bytes.
fn hash_text(hasher: &mut Sha256, text: &str) {
    hasher.update((text.len() as u64).to_be_bytes());
    hasher.update(text);
}

/// Feeds one value with its keys in order, whatever order the map keeps them in.
fn hash_value(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            hasher.update([b'{']);
            for (key, value) in entries {
                hash_text(hasher, key);
                hash_value(hasher, value);
            }
            hasher.update([b'}']);
        }
        Value::Array(values) => {
            hasher.update([b'[']);
            values.iter().for_each(|value| hash_value(hasher, value));
            hasher.update([b']']);
        }
        Value::String(text) => {
            hasher.update([b'"']);
            hash_text(hasher, text);
        }
        scalar => hash_text(hasher, &scalar.to_string()),
    }
}

fn parse(text: &str) -> Result<WireJob, BadMessage> {
    // A derived struct would also read an array, field after field.
    if !text.trim_start().starts_with('{') && serde_json::from_str::<de::IgnoredAny>(text).is_ok() {
        let shown: String = text.trim_start().chars().take(20).collect();
        return Err(BadMessage::new(
            "not_an_object",
            format!(
                "the message is JSON but no object (it begins {shown:?}); a job is an object with `id`, `kind`, `payload` and `tasks`"
            ),
        ));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let job = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if error.is_data() {
            let place = if path == "." {
                "the message".to_owned()
            } else {
                format!("`{path}`")
            };
            BadMessage::new("wrong_shape", format!("{place}: {error}"))
        } else {
            BadMessage::new(
                "not_json",
                format!("the body is not JSON: {error}; a job is a JSON object in UTF-8"),
            )
        }
    })?;
    json.end().map_err(|error| {
        BadMessage::new(
            "not_json",
            format!("the body goes on after the JSON object: {error}"),
        )
    })?;
    Ok(job)
}

fn bad_id(place: &str, id: &str) -> BadMessage {
    let shown: String = id.chars().take(60).collect();
    BadMessage::new(
        "bad_id",
        format!("{place}: {shown:?} is not a UUID, such as 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11"),
    )
}

fn name(place: &str, text: &str) -> Result<String, BadMessage> {
    let length = text.chars().count();
    if text.trim().is_empty() {
        return Err(BadMessage::new(
            "empty_name",
            format!("{place} is empty; expected 1 to {MAX_NAME_CHARS} characters"),
        ));
    }
    if length > MAX_NAME_CHARS {
        return Err(BadMessage::new(
            "name_too_long",
            format!("{place} has {length} characters; the limit is {MAX_NAME_CHARS}"),
        ));
    }
    if text.contains('\0') {
        return Err(nul(place));
    }
    if text.chars().any(char::is_control) {
        return Err(BadMessage::new(
            "control_character",
            format!("{place} holds a control character; names are one line of plain text"),
        ));
    }
    Ok(text.to_owned())
}

fn nul(place: &str) -> BadMessage {
    BadMessage::new(
        "nul",
        format!("{place} holds a NUL character (\\u0000), which Postgres cannot store; remove it"),
    )
}

/// Reads a part that is kept to the letter, and finds what Postgres could not store or other readers could not read.
pub(crate) fn storable(place: &str, text: &RawValue) -> Result<Value, BadMessage> {
    let value = serde_json::from_str(text.get()).map_err(|error| {
        BadMessage::new(
            "not_json",
            format!("`{place}` cannot be read: {error} (counted from where `{place}` begins)"),
        )
    })?;
    match find_nul(&value) {
        Some(mut steps) => {
            steps.push(place.to_owned());
            steps.reverse();
            Err(nul(&format!("`{}`", steps.concat())))
        }
        None => Ok(value),
    }
}

/// The way to a NUL, its last step first. It is written down only where there is one: with it at each step of the search,
/// 250,000 values below a long key would take minutes.
fn find_nul(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => text.contains('\0').then(Vec::new),
        Value::Array(values) => values.iter().enumerate().find_map(|(index, value)| {
            let mut steps = find_nul(value)?;
            steps.push(format!("[{index}]"));
            Some(steps)
        }),
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            if key.contains('\0') {
                return Some(Vec::new());
            }
            let mut steps = find_nul(value)?;
            steps.push(format!(".{key}"));
            Some(steps)
        }),
        _ => None,
    }
}

pub(crate) fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

fn raw(place: &str, value: &impl Serialize) -> Result<Box<RawValue>, BadMessage> {
    serde_json::value::to_raw_value(value)
        .map_err(|error| BadMessage::new("not_json", format!("{place} is not JSON: {error}")))
}

/// The document as it travels: every field may be missing, none may be of another type, unknown ones are for later versions.
#[derive(Serialize, Deserialize)]

struct WireJob {
    id: Option<String>,
    kind: Option<String>,
    payload: Option<Box<RawValue>>,
    tasks: Option<Vec<WireTask>>,
}

struct WireTask(WireTaskObject);

impl Serialize for WireTask {
    /// A task that is nothing but its handler is written as a string again, so that a message does not grow on its way.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            WireTaskObject {
                handler,
                label: None,
                input: None,
                max_attempts: None,
                timeout_seconds: None,
            } => serializer.serialize_str(handler),
            task => task.serialize(serializer),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireTaskObject {
    handler: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<f64>,
}

impl<'de> Deserialize<'de> for WireTask {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shorthand;
        impl<'de> de::Visitor<'de> for Shorthand {
            type Value = WireTask;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a task: a handler's name, or an object with `handler`")
            }
            fn visit_str<E: de::Error>(self, handler: &str) -> Result<WireTask, E> {
                let handler = handler.to_owned();
                Ok(WireTask(WireTaskObject {
                    handler,
                    label: None,
                    input: None,
                    max_attempts: None,
                    timeout_seconds: None,
                }))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<WireTask, A::Error> {
                WireTaskObject::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(WireTask)
            }
        }
        deserializer.deserialize_any(Shorthand)
    }
}

impl WireTask {
    fn check(self, index: usize) -> Result<TaskSpec, BadMessage> {
        let WireTask(task) = self;
        let place = |field: &str| format!("`tasks[{index}].{field}`");
        let handler = name(&place("handler"), &task.handler)?;
        let label = match &task.label {
            Some(label) => name(&place("label"), label)?,
            None => handler.clone(),
        };
        if let Some(attempts) = task.max_attempts
            && !(1..=MAX_ATTEMPTS).contains(&attempts)
        {
            let place = place("max_attempts");
            return Err(BadMessage::new(
                "out_of_range",
                format!("{place} is {attempts}; expected 1 to {MAX_ATTEMPTS}"),
            ));
        }
        let timeout = match task.timeout_seconds {
            None => None,
            Some(seconds) => Some(
                Duration::try_from_secs_f64(seconds)
                    .ok()
                    .filter(|timeout| *timeout <= MAX_TIMEOUT)
                    .map(|timeout| Duration::from_millis(timeout.as_millis() as u64)) // as the ledger keeps it
                    .filter(|timeout| !timeout.is_zero())
                    .ok_or_else(|| {
                        let (place, most) = (place("timeout_seconds"), MAX_TIMEOUT.as_secs());
                        BadMessage::new(
                            "out_of_range",
                            format!("{place} is {seconds}; expected 0.001 to {most}"),
                        )
                    })?,
            ),
        };
        Ok(TaskSpec {
            handler,
            label,
            input: task.input.unwrap_or_else(null),
            max_attempts: task.max_attempts,
            timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";

    fn decode(body: &str) -> Result<JobMessage, BadMessage> {
        JobMessage::decode(body.as_bytes(), None, None)
    }

    fn reason(body: impl AsRef<[u8]>) -> (&'static str, String) {
        let bad =
            JobMessage::decode(body.as_ref(), None, None).expect_err("a bad message was accepted");
        (bad.reason, bad.sentence)
    }

    #[test]
    fn the_designs_example_is_read_whole() {
        let job = decode(&format!(
            r#"{{"id": "{ID}", "kind": "shop.publish", "payload": {{"product_id": 42}},
                "tasks": ["validate_product", {{"handler": "upload_image", "label": "Upload image 1/5", "input": {{"index": 1}}}},
                          {{"handler": "create_listing", "max_attempts": 5, "timeout_seconds": 30}}]}}"#
        ))
        .unwrap();
        assert_eq!(job.id.to_string(), ID);
        assert_eq!(job.payload.get(), r#"{"product_id": 42}"#);
        let labels: Vec<_> = job.tasks.iter().map(|task| task.label.as_str()).collect();
        assert_eq!(
            labels,
            ["validate_product", "Upload image 1/5", "create_listing"]
        );
        assert_eq!(job.tasks[2].max_attempts, Some(5));
        assert_eq!(job.tasks[2].timeout, Some(Duration::from_secs(30)));
    }

    #[test]
    fn properties_stand_in_for_a_missing_id_and_kind() {
        let job = JobMessage::decode(br#"{"tasks": ["a"]}"#, Some(ID), Some("k")).unwrap();
        assert_eq!((job.id.to_string().as_str(), job.kind.as_str()), (ID, "k"));
    }

    #[test]
    fn every_kind_of_bad_input_is_told_apart() {
        let job = |rest: &str| format!(r#"{{"id": "{ID}", "kind": "k", {rest}}}"#);
        let long = "x".repeat(201);
        let cases: Vec<(Vec<u8>, &str, &str)> = vec![
            (b"".to_vec(), "not_json", "EOF"),
            (b"\xff\xfe".to_vec(), "not_utf8", "byte 0"),
            (b"{".to_vec(), "not_json", "line 1 column 1"),
            (b"[1]".to_vec(), "not_an_object", "a job is an object"),
            (b"7".to_vec(), "not_an_object", "a job is an object"),
            (b"{} x".to_vec(), "not_json", "goes on"),
            (
                br#"{"kind": "k", "tasks": ["a"]}"#.to_vec(),
                "no_id",
                "message_id",
            ),
            (
                br#"{"id": "seven", "kind": "k", "tasks": ["a"]}"#.to_vec(),
                "bad_id",
                "\"seven\"",
            ),
            (br#"{"id": 7}"#.to_vec(), "wrong_shape", "`id`"),
            (
                format!(r#"{{"id": "{ID}", "tasks": ["a"]}}"#).into_bytes(),
                "no_kind",
                "`kind`",
            ),
            (
                job(r#""tasks": []"#).into_bytes(),
                "no_tasks",
                "at least one",
            ),
            (
                job(r#""payload": 1"#).into_bytes(),
                "no_tasks",
                "at least one",
            ),
            (
                job(r#""tasks": ["a", 7]"#).into_bytes(),
                "wrong_shape",
                "`tasks[1]`",
            ),
            (
                job(r#""tasks": [{"label": "x"}]"#).into_bytes(),
                "wrong_shape",
                "handler",
            ),
            (
                job(r#""tasks": [{"handler": "a", "timeout_seconds": "1"}]"#).into_bytes(),
                "wrong_shape",
                "`tasks[0].timeout_seconds`",
            ),
            (
                job(r#""tasks": [{"handler": "a", "timeout_seconds": -1}]"#).into_bytes(),
                "out_of_range",
                "`tasks[0].timeout_seconds`",
            ),
            (
                job(r#""tasks": [{"handler": "a", "max_attempts": 0}]"#).into_bytes(),
                "out_of_range",
                "expected 1 to",
            ),
            (
                job(&format!(r#""tasks": ["{long}"]"#)).into_bytes(),
                "name_too_long",
                "`tasks[0].handler`",
            ),
            (
                job(r#""tasks": [""]"#).into_bytes(),
                "empty_name",
                "`tasks[0].handler`",
            ),
            (
                job(r#""tasks": ["a\u0000"]"#).into_bytes(),
                "nul",
                "`tasks[0].handler`",
            ),
            (
                job(r#""tasks": ["a\nb"]"#).into_bytes(),
                "control_character",
                "`tasks[0].handler`",
            ),
            (
                job(r#""payload": {"a": ["\u0000"]}, "tasks": ["a"]"#).into_bytes(),
                "nul",
                "`payload.a[0]`",
            ),
            (
                job(r#""payload": "\ud800", "tasks": ["a"]"#).into_bytes(),
                "not_json",
                "payload",
            ),
            (
                job(r#""payload": 1e999, "tasks": ["a"]"#).into_bytes(),
                "not_json",
                "`payload`",
            ),
            (
                job(&format!(
                    r#""payload": {}1{}, "tasks": ["a"]"#,
                    "[".repeat(9000),
                    "]".repeat(9000)
                ))
                .into_bytes(),
                "not_json",
                "`payload`",
            ),
            (
                job(&format!(r#""tasks": [{}"a"]"#, r#""a","#.repeat(MAX_TASKS))).into_bytes(),
                "too_many_tasks",
                "10001",
            ),
            (vec![b' '; MAX_BODY_BYTES + 1025], "too_large", "1049601"),
            (
                job(r#""id": "again", "tasks": ["a"]"#).into_bytes(),
                "wrong_shape",
                "duplicate field `id`",
            ),
        ];
        for (body, code, words) in cases {
            let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            let (found, sentence) = reason(&body);
            assert_eq!(found, code, "{shown}: {sentence}");
            assert!(
                sentence.contains(words),
                "{shown}: {sentence:?} does not say {words:?}"
            );
        }
    }

    #[test]
    fn a_fingerprint_sees_the_content_and_nothing_else() {
        let a = decode(&format!(
            r#"{{"id":"{ID}","kind":"k","payload":{{"a":1,"b":[2]}},"tasks":["t"]}}"#
        ))
        .unwrap();
        let same = decode(&format!(
            r#"{{ "tasks": [{{"label": "t", "handler": "t", "input": null}}], "payload": {{"b": [ 2 ], "a": 1}}, "kind": "k", "id": "{ID}", "later": 1}}"#
        ))
        .unwrap();
        let other = decode(&format!(
            r#"{{"id":"{ID}","kind":"k","payload":{{"a":1,"b":[3]}},"tasks":["t"]}}"#
        ))
        .unwrap();
        assert_eq!(a.fingerprint, same.fingerprint);
        assert_ne!(a.fingerprint, other.fingerprint);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[^\0]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[^\0]{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(body in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = JobMessage::decode(&body, None, None);
        }

        #[test]
        fn no_json_makes_decode_panic(id in json(), kind in json(), payload in json(), tasks in json()) {
            let body = serde_json::json!({"id": id, "kind": kind, "payload": payload, "tasks": tasks}).to_string();
            let _ = JobMessage::decode(body.as_bytes(), None, None);
        }

        #[test]
        fn what_is_accepted_survives_encode_and_decode(
            id in any::<u128>(), kind in "[a-z.]{1,200}", payload in json(),
            tasks in prop::collection::vec(
                ("[a-zé_/]{1,40}", prop::option::of("[A-Z a-z0-9/]{0,30}x"), json(), prop::option::of(1..=MAX_ATTEMPTS), prop::option::of(0.001f64..1e6)), 1..8),
        ) {
            let tasks: Vec<_> = tasks.into_iter().map(|(handler, label, input, attempts, timeout)| {
                let mut task = serde_json::json!({"handler": handler, "input": input});
                if let Some(label) = label { task["label"] = label.into(); }
                if let Some(attempts) = attempts { task["max_attempts"] = attempts.into(); }
                if let Some(timeout) = timeout { task["timeout_seconds"] = timeout.into(); }
                task
            }).collect();
            let body = serde_json::json!({"id": Uuid::from_u128(id), "kind": kind, "payload": payload, "tasks": tasks}).to_string();
            let once = JobMessage::decode(body.as_bytes(), None, None).unwrap();
            let twice = JobMessage::decode(&once.encode(), None, None).unwrap();
            prop_assert_eq!(once.fingerprint, twice.fingerprint);
            prop_assert_eq!(once.encode(), twice.encode());
        }
    }
}
