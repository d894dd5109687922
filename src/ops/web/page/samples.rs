//! Jobs, workers and queues for the tests of the views.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::RawValue;

use crate::{
    job::{Epoch, Generation, JobId, JobStatus, Position, TaskStatus},
    ledger::{
        Act, FailureView, Group, Intervention, JobDetail, JobSummary, Running, TaskView, WorkerView,
    },
    ops::web::depths::{QueueDepth, Role},
};

const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";

/// So many seconds after a fixed time.
pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(1_790_000_000 + seconds)
}

pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

pub(super) fn id() -> JobId {
    ID.parse().unwrap()
}

pub(super) fn summary(status: &str, done: i64, total: i32) -> JobSummary {
    JobSummary {
        id: id(),
        kind: "test".to_owned(),
        status: status.parse::<JobStatus>().unwrap(),
        queue: "jobs".to_owned(),
        generation: Generation(0),
        epoch: Epoch(1),
        error: None,
        done,
        total,
        label: None,
        created_at: at(0),
        started_at: Some(at(0)),
        finished_at: None,
        next_attempt_at: None,
        attempts: 1,
        holder: None,
    }
}

pub(super) fn detail(status: &str, tasks: Vec<TaskView>) -> JobDetail {
    let done = tasks
        .iter()
        .filter(|task| task.status == TaskStatus::Success)
        .count();
    JobDetail {
        job: summary(status, done as i64, tasks.len() as i32),
        payload: raw("{\"n\": 1}"),
        tasks,
        failures: Vec::new(),
        interventions: Vec::new(),
    }
}

pub(super) fn task(
    position: Position,
    status: TaskStatus,
    from: Option<i64>,
    to: Option<i64>,
) -> TaskView {
    TaskView {
        position,
        handler: "upload_image".to_owned(),
        label: format!("Step {position}"),
        status,
        attempt: i32::from(from.is_some()),
        crashes: 0,
        error: None,
        input: None,
        result: None,
        started_at: from.map(at),
        finished_at: to.map(at),
    }
}

pub(super) fn failure(position: Position, attempt: i32, from: i64, to: i64) -> FailureView {
    FailureView {
        position,
        attempt,
        epoch: Epoch(attempt.into()),
        worker: "ada".to_owned(),
        error: "HTTP 503".to_owned(),
        started_at: Some(at(from)),
        failed_at: at(to),
    }
}

pub(super) fn intervention(act: Act, operator: &str, reason: Option<&str>) -> Intervention {
    Intervention {
        at: at(40),
        act,
        operator: operator.to_owned(),
        reason: reason.map(str::to_owned),
        position: Some(2),
    }
}

pub(super) fn group(failed: i64, retrying: i64) -> Group {
    Group {
        id: "ab12".to_owned(),
        handler: Some("upload_image".to_owned()),
        error: "HTTP 503 <b>".to_owned(),
        jobs: failed + retrying,
        failed,
        retrying,
        latest: at(0),
        example: id(),
    }
}

pub(super) fn worker(name: &str, alive: bool) -> WorkerView {
    WorkerView {
        id: 7,
        name: name.to_owned(),
        host: "host".to_owned(),
        pid: 42,
        version: "0.1.0".to_owned(),
        queue: "jobs".to_owned(),
        alive,
        started_at: at(0),
        seen_at: at(60),
        stopped_at: None,
        running: vec![Running {
            job: id(),
            kind: "shop.publish".to_owned(),
            position: 3,
            label: "Upload image <2/5>".to_owned(),
            since: Some(at(60)),
        }],
        jobs: 5,
        brakes: serde_json::Value::Null,
    }
}

pub(super) fn queue(name: &str, role: Role, delay_seconds: Option<f64>, ready: u64) -> QueueDepth {
    QueueDepth {
        name: name.to_owned(),
        role,
        delay_seconds,
        ready,
        consumers: 0,
    }
}
