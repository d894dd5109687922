//! One job: how far it is, what can be done with it, its tasks on a line of time, attempts with their errors, its data.

mod acts;
mod tasks;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    json,
    parts::{self, chip, count, error, exact, icon, job_path, percent, short, time},
};
use crate::{
    job::{JobStatus, TaskStatus},
    ledger::{Act, JobDetail, TaskView},
    ops::words::one_line,
};
use acts::acts;
use tasks::tasks;

/// A document is shown up to so many characters.
const MOST: usize = 4_000;
/// More tasks than this are one bar of progress instead of a piece for each.
const PIECES: usize = 60;

/// What the tab says: `2/7 Upload image 2/5 …`.
pub(super) fn title(detail: &JobDetail) -> String {
    let job = &detail.job;
    let end = match (job.status, frontier(detail)) {
        (JobStatus::Processing, Some(task)) => format!("{} …", one_line(&task.label)),
        (status, _) => format!("{status} {}", one_line(&job.kind)),
    };
    format!("{}/{} {end}", job.done, job.total)
}

/// The whole page; with `whole`, nothing is cut.
pub(super) fn job(detail: &JobDetail, whole: bool, now: DateTime<Utc>) -> Markup {
    let job = &detail.job;
    html! {
        div.heading {
            h1 { (short(&job.kind, 80)) }
            (chip(job.status))
        }
        p.subtle { code.id { (job.id) } }
        (progress(detail))
        p #status .lead role="status" { (sentence(detail)) }
        @if let (JobStatus::Retrying, Some(due)) = (job.status, job.next_attempt_at) {
            p.muted { @if due > now { "The next attempt is due " } @else { "The next attempt waits for a worker, due " } (time(due, now)) "." }
        }
        @if let Some(text) = &job.error { div #trouble .card.trouble { h2.off { "Error" } (error(text)) } }
        (acts(detail))
        (tasks(detail, whole, now))
        (interventions(detail, now))
        section #payload .card {
            h2 { "Payload" }
            (document(detail, &detail.payload, whole))
        }
        (facts(detail, now))
    }
}

/// The task a job stands at.
fn frontier(detail: &JobDetail) -> Option<&TaskView> {
    detail
        .tasks
        .iter()
        .find(|task| task.status != TaskStatus::Success)
}

/// What is going on, in a sentence that changes only when that changes: it is read out.
fn sentence(detail: &JobDetail) -> String {
    let job = &detail.job;
    let done = format!("{} of {} done", job.done, count(job.total.into(), "task"));
    let label = |task: &TaskView| one_line(&task.label);
    match (job.status, frontier(detail)) {
        (JobStatus::Success, _) => match job.total {
            1 => "Its one task is done.".to_owned(),
            total => format!("All {} are done.", count(total.into(), "task")),
        },
        (JobStatus::Processing, Some(task)) => {
            let again = if task.attempt > 1 {
                format!(" (attempt {})", task.attempt)
            } else {
                String::new()
            };
            format!("{done}. Now: {} …{again}", label(task))
        }
        (JobStatus::Retrying, Some(task)) => {
            format!("{done}. It waits for another attempt of: {}", label(task))
        }
        (JobStatus::Failed, Some(task)) => format!("{done}. Given up at: {}", label(task)),
        (JobStatus::Pending, Some(task)) => {
            format!("{done}. It waits for a worker; next: {}", label(task))
        }
        (JobStatus::Cancelled, _) => format!("{done}. It was cancelled."),
        (_, None) => format!("{done}."),
    }
}

/// A bar with a piece for each task, in the colour and (for whoever does not see it) the words of what is done.
fn progress(detail: &JobDetail) -> Markup {
    let job = &detail.job;
    let piece = 100.0 / detail.tasks.len().max(1) as f64;
    html! {
        div.progressbar role="progressbar" aria-label="Tasks done" aria-valuemin="0" aria-valuemax=(job.total) aria-valuenow=(job.done)
            aria-valuetext={ (job.done) " of " (job.total) } {
            svg aria-hidden="true" focusable="false" {
                @if detail.tasks.len() <= PIECES {
                    @for (index, task) in detail.tasks.iter().enumerate() {
                        rect class={ "f-" (task.status.as_str()) } x=(percent(index as f64 * piece)) width=(percent(piece * 0.96)) height="100%" rx="3" {}
                    }
                } @else {
                    rect.f-PENDING width="100%" height="100%" rx="3" {}
                    rect.f-SUCCESS width=(percent(job.done as f64 * piece)) height="100%" rx="3" {}
                }
            }
        }
    }
}

fn interventions(detail: &JobDetail, now: DateTime<Utc>) -> Markup {
    html! {
        @if !detail.interventions.is_empty() {
            section #people .card {
                h2 { "What people did" }
                ol.plain {
                    @for done in &detail.interventions {
                        li {
                            strong { (short(&done.operator, 60)) }
                            (match done.act { Act::Retry => " retried it ", Act::Cancel => " cancelled it ", Act::Skip => " skipped task " })
                            @if let (Act::Skip, Some(position)) = (done.act, done.position) { (position) " " }
                            (time(done.at, now))
                            @if let Some(reason) = &done.reason { ": " q { (short(reason, 500)) } }
                        }
                    }
                }
            }
        }
    }
}

fn document(detail: &JobDetail, json: &serde_json::value::RawValue, whole: bool) -> Markup {
    let link = format!("{}?whole=1", job_path(detail.job.id));
    json::shown(json.get(), (!whole).then_some(MOST), &link)
}

fn facts(detail: &JobDetail, now: DateTime<Utc>) -> Markup {
    let job = &detail.job;
    html! {
        section #facts .card {
            h2 { "More" }
            dl.pairs {
                div { dt { "Queue" } dd { code { (short(&job.queue, 80)) } } }
                div { dt { "Created" } dd { (exact(job.created_at, now)) } }
                @if let Some(at) = job.started_at { div { dt { "Started" } dd { (exact(at, now)) } } }
                @if let Some(at) = job.finished_at { div { dt { "Finished" } dd { (exact(at, now)) } } }
                @if let Some(holder) = &job.holder { div { dt { "Worker" } dd { (short(holder, 80)) } } }
                div { dt { "Claims" } dd { (job.attempts) } }
                div { dt { "Message" } dd { "generation " (job.generation.0) ", epoch " (job.epoch.0) } }
                div { dt { "As JSON" } dd { a href={ "/api/v1" (job_path(job.id)) } { "everything about it" } } }
            }
            p.more { (icon("PENDING")) a href={ "/jobs" (parts::query([("kind", job.kind.as_str())])) } { "Other jobs of this kind" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, detail, failure, intervention, raw, task};

    fn halfway() -> JobDetail {
        let mut job = detail(
            "RETRYING",
            vec![
                task(1, TaskStatus::Success, Some(0), Some(10)),
                task(2, TaskStatus::Failed, Some(20), Some(30)),
                task(3, TaskStatus::Pending, None, None),
            ],
        );
        job.failures = vec![failure(2, 1, 20, 30)];
        job
    }

    #[test]
    fn everything_that_comes_from_a_job_is_escaped() {
        let evil = "\"><script>alert(1)</script>";
        let mut detail = halfway();
        detail.job.kind = evil.to_owned();
        detail.job.queue = evil.to_owned();
        detail.job.error = Some(evil.repeat(20));
        detail.job.holder = Some(evil.to_owned());
        detail.payload = raw(&serde_json::json!(evil).to_string());
        detail.failures[0].error = evil.to_owned();
        detail.failures[0].worker = evil.to_owned();
        detail.interventions = vec![intervention(Act::Skip, evil, Some(evil))];
        for task in &mut detail.tasks {
            task.label = evil.to_owned();
            task.handler = format!("{evil}{}", task.position);
            task.input = Some(raw(&serde_json::json!({ evil: evil }).to_string()));
            task.result = Some(raw(&serde_json::json!([evil]).to_string()));
        }
        let shown = job(&detail, false, at(100)).into_string();
        assert!(!shown.contains("<script"), "{shown}");
        assert!(shown.matches("&lt;script&gt;").count() > 20);
    }

    #[test]
    fn the_title_and_the_sentence_say_how_far_it_is() {
        let mut job = halfway();
        assert_eq!(
            sentence(&job),
            "1 of 3 tasks done. It waits for another attempt of: Step 2"
        );
        job.job.status = JobStatus::Processing;
        job.tasks[1].status = TaskStatus::Processing;
        job.tasks[1].attempt = 2;
        assert_eq!(title(&job), "1/3 Step 2 …");
        assert_eq!(
            sentence(&job),
            "1 of 3 tasks done. Now: Step 2 … (attempt 2)"
        );
        job.job.status = JobStatus::Failed;
        assert_eq!(title(&job), "1/3 FAILED test");
    }

    #[test]
    fn what_people_did_is_told_with_its_reason() {
        let mut job = halfway();
        job.interventions = vec![
            intervention(Act::Skip, "ada", Some("the store has it")),
            intervention(Act::Retry, "bo", None),
        ];
        let shown = interventions(&job, at(60)).into_string();
        assert!(
            shown.contains("<strong>ada</strong> skipped task 2 "),
            "{shown}"
        );
        assert!(
            shown.contains("<q>the store has it</q>")
                && shown.contains("<strong>bo</strong> retried it "),
            "{shown}"
        );
        assert!(
            interventions(&detail("PENDING", Vec::new()), at(0))
                .into_string()
                .is_empty()
        );
    }

    #[test]
    fn a_long_document_is_cut_unless_the_whole_is_asked_for() {
        let mut long = halfway();
        long.payload = raw(&format!("[{}1]", "1234567890,".repeat(2_000)));
        let link = format!("/jobs/{}?whole=1", long.job.id);
        assert!(job(&long, false, at(0)).into_string().contains(&link));
        assert!(!job(&long, true, at(0)).into_string().contains(&link));
    }
}
