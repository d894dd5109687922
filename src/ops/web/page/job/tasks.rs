//! A job's tasks on a line of time, each with its attempts, its input and its result.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    super::{
        parts::{count, error, exact, job_path, short, task_chip},
        timeline::TimeLine,
    },
    document, frontier,
};
use crate::{
    job::{Position, TaskStatus},
    ledger::{Act, FailureView, JobDetail, TaskView},
    ops::words::between,
};

/// A job of more tasks is shown around the one it stands at.
const MANY: usize = 100;
/// So many done tasks are shown before that one.
const BEFORE: usize = 10;
/// Which tasks are shown: all, or those around the one the job stands at.
fn window(total: usize, frontier: usize, whole: bool) -> std::ops::Range<usize> {
    if whole || total <= MANY {
        return 0..total;
    }
    let from = frontier.min(total).saturating_sub(BEFORE).min(total - MANY);
    from..from + MANY
}

pub(super) fn tasks(detail: &JobDetail, whole: bool, now: DateTime<Utc>) -> Markup {
    let line = TimeLine::of(detail, now);
    let at = detail
        .tasks
        .iter()
        .position(|task| task.status != TaskStatus::Success);
    let shown = window(detail.tasks.len(), at.unwrap_or(detail.tasks.len()), whole);
    let (before, after) = (shown.start, detail.tasks.len() - shown.end);
    let all = format!("{}?whole=1", job_path(detail.job.id));
    html! {
        section #all-tasks .card aria-labelledby="tasks" {
            div.heading {
                h2 #tasks { "Tasks" }
                @if let Some(line) = &line { span.muted { (line.length()) " from the first attempt" (if detail.job.is_over() { " to the end" } else { " to now" }) } }
            }
            @if let Some(line) = &line { (line.axis()) }
            @if before > 0 { p.more { a href=(all) { (count(before as i64, "earlier task")) } } }
            ol.tasks start=(before + 1) {
                @for task in detail.tasks.get(shown.clone()).unwrap_or_default() {
                    (one_task(detail, task, line.as_ref(), whole, now))
                }
            }
            @if after > 0 { p.more { a href=(all) { (count(after as i64, "later task")) } } }
        }
    }
}

fn one_task(
    detail: &JobDetail,
    task: &TaskView,
    line: Option<&TimeLine>,
    whole: bool,
    now: DateTime<Utc>,
) -> Markup {
    let failures: Vec<_> = detail
        .failures
        .iter()
        .filter(|failure| failure.position == task.position)
        .collect();
    let current = frontier(detail).is_some_and(|frontier| frontier.position == task.position);
    html! {
        li id={ "task-" (task.position) } class={ "task" @if current { " current" } } aria-current=[current.then_some("step")] {
            div.task-line {
                span.position { span.off { "Task " } (task.position) }
                span.label {
                    (short(&task.label, 80))
                    @if task.label != task.handler { " " code.muted { (short(&task.handler, 60)) } }
                    @if skipped(detail, task.position) { " " span.muted { "skipped by an operator" } }
                }
                (task_chip(task.status))
                span.took { (took(task, now)) }
            }
            @if let Some(line) = line { (line.track(task, &detail.failures)) }
            @let has = |json: &Option<Box<serde_json::value::RawValue>>| json.as_ref().is_some_and(|json| json.get() != "null");
            @if has(&task.input) || has(&task.result) || !failures.is_empty() || task.crashes > 0 {
                details id={ "more-" (task.position) } open[current && !failures.is_empty()] {
                    summary { (contents(has(&task.input), has(&task.result), failures.len())) }
                    div.more-of-it {
                        @if task.crashes > 0 { p { (count(task.crashes.into(), "worker")) " died while it ran." } }
                        @if !failures.is_empty() { (attempts(&failures, now)) }
                        @if let Some(input) = task.input.as_ref().filter(|_| has(&task.input)) { h3 { "Input" } (document(detail, input, whole)) }
                        @if let Some(result) = task.result.as_ref().filter(|_| has(&task.result)) { h3 { "Result" } (document(detail, result, whole)) }
                    }
                }
            }
        }
    }
}

/// What a fold holds: `2 failed attempts, input, result`.
fn contents(input: bool, result: bool, failures: usize) -> String {
    let mut words = Vec::new();
    if failures > 0 {
        words.push(count(failures as i64, "failed attempt"));
    }
    words.extend(input.then(|| "input".to_owned()));
    words.extend(result.then(|| "result".to_owned()));
    let mut text = words.join(", ");
    if text.is_empty() {
        text.push_str("crashes");
    }
    // The first letter of a heading is large; all of these are ASCII.
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

fn attempts(failures: &[&FailureView], now: DateTime<Utc>) -> Markup {
    html! {
        ol.attempts {
            @for failure in failures {
                li {
                    p { strong { "Attempt " (failure.attempt) } " failed " (exact(failure.failed_at, now))
                        @if let Some(started) = failure.started_at { " after " (between(started, failure.failed_at)) }
                        span.muted { " in " (short(&failure.worker, 60)) }
                    }
                    (error(&failure.error))
                }
            }
        }
    }
}

fn took(task: &TaskView, now: DateTime<Utc>) -> Markup {
    let spent = match (task.status, task.started_at, task.finished_at) {
        (TaskStatus::Processing, Some(started), _) => {
            Some(format!("for {}", between(started, now)))
        }
        (_, Some(started), Some(finished)) => Some(between(started, finished).to_string()),
        _ => None,
    };
    html! {
        @if task.attempt > 1 { "attempt " (task.attempt) @if spent.is_some() { ", " } }
        @if let Some(spent) = spent { (spent) }
    }
}

fn skipped(detail: &JobDetail, position: Position) -> bool {
    detail
        .interventions
        .iter()
        .any(|done| done.act == Act::Skip && done.position == Some(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, detail, task};

    #[test]
    fn of_many_tasks_those_around_the_current_one_are_shown() {
        assert_eq!(window(100, 50, false), 0..100);
        assert_eq!(window(10_000, 0, false), 0..100);
        assert_eq!(window(10_000, 5_000, false), 4_990..5_090);
        assert_eq!(window(10_000, 10_000, false), 9_900..10_000);
        assert_eq!(window(10_000, 5_000, true), 0..10_000);
        let tasks = (1..=500)
            .map(|position| task(position, TaskStatus::Success, Some(0), Some(1)))
            .collect();
        let shown = self::tasks(&detail("SUCCESS", tasks), false, at(2)).into_string();
        assert!(
            shown.contains("400 earlier tasks")
                && shown.contains("<ol class=\"tasks\" start=\"401\">"),
            "{shown}"
        );
    }

    #[test]
    fn folds_are_named_by_what_they_hold() {
        assert_eq!(contents(true, true, 2), "2 failed attempts, input, result");
        assert_eq!(contents(true, false, 0), "Input");
        assert_eq!(contents(false, false, 0), "Crashes");
    }
}
