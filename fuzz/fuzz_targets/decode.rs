//! Whatever bytes a queue delivers: the decoder never panics and never takes long, and what it accepts is a job that Postgres
//! can store and that is the same after it was written and read again.
//!
//! ```sh
//! cargo +nightly fuzz run decode fuzz/corpus/decode fuzz/seeds -- -max_total_time=600 -dict=fuzz/decode.dict -max_len=8192
//! ```
//!
//! The first byte says which AMQP properties come with the body; the rest is the body.

#![no_main]

// The decoder alone, by its path: it stands on the lowest floor and needs nothing else of the crate, and so neither does
// the fuzzer's build.
#[allow(dead_code)]
#[path = "../../src/job.rs"]
mod job;

use std::time::{Duration, Instant};

use job::{JobMessage, MAX_ATTEMPTS, MAX_NAME_CHARS, MAX_TASKS, MAX_TIMEOUT};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};

/// Far longer than any body takes, under a sanitizer, on a busy machine.
const LONGEST: Duration = Duration::from_secs(5);
const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";

fuzz_target!(|input: &[u8]| {
    let (properties, body) = match input.split_first() {
        Some((first, rest)) => (*first, rest),
        None => (0, input),
    };
    let message_id = match properties % 4 {
        0 => Some(ID),
        1 => Some("no id"),
        _ => None,
    };
    let message_type = (properties & 4 == 0).then_some("a.kind");

    let began = Instant::now();
    let decoded = JobMessage::decode(body, message_id, message_type);
    assert!(began.elapsed() < LONGEST, "took {:?}", began.elapsed());

    match decoded {
        Err(bad) => {
            assert!(!bad.reason.is_empty() && !bad.sentence.trim().is_empty());
        }
        Ok(job) => accepted(&job),
    }
});

fn accepted(job: &JobMessage) {
    assert!((1..=MAX_TASKS).contains(&job.tasks.len()));
    name(&job.kind);
    storable(&job.payload);
    for task in &job.tasks {
        name(&task.handler);
        name(&task.label);
        storable(&task.input);
        assert!(task.max_attempts.is_none_or(|most| (1..=MAX_ATTEMPTS).contains(&most)));
        assert!(task.timeout.is_none_or(|limit| limit.as_millis() >= 1 && limit <= MAX_TIMEOUT));
    }
    // What the reconciler sends is read back as the very same job, and so is what is written of that.
    let written = job.encode();
    let again = JobMessage::decode(&written, None, None)
        .unwrap_or_else(|bad| panic!("what was accepted is refused when it comes again: {bad}"));
    assert_eq!(again.id, job.id);
    assert_eq!(again.fingerprint, job.fingerprint);
    assert_eq!(again.kind, job.kind);
    assert_eq!(again.tasks.len(), job.tasks.len());
    assert_eq!(again.encode(), written);
}

/// A text column, and one line for people.
fn name(text: &str) {
    assert!(!text.trim().is_empty() && text.chars().count() <= MAX_NAME_CHARS);
    assert!(!text.chars().any(char::is_control));
}

/// A `json` column that every reader can read, and that turns into `jsonb` where somebody asks for it.
fn storable(json: &RawValue) {
    assert!(!json.get().contains('\0'));
    let value: Value = serde_json::from_str(json.get()).expect("what is stored is JSON");
    no_nul(&value);
}

fn no_nul(value: &Value) {
    match value {
        Value::String(text) => assert!(!text.contains('\0')),
        Value::Array(values) => values.iter().for_each(no_nul),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            assert!(!key.contains('\0'));
            no_nul(value);
        }),
        _ => {}
    }
}
