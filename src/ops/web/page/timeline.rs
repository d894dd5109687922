//! When each task ran, as bars on one line of time.
//!
//! Places are per cent of the whole, so that a bar is right at any width of the screen, and nothing needs a style.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::parts::percent;
use crate::{
    job::TaskStatus,
    ledger::{FailureView, JobDetail, TaskView},
    ops::words::Span,
};

/// The thinnest bar, in per cent: a task of a millisecond in a job of an hour is seen.
const THINNEST: f64 = 0.8;

/// From the first attempt of a job to its end, or to now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimeLine {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bar {
    /// Where it begins, in per cent of the line.
    pub(super) x: f64,
    /// How long it is, in per cent of the line.
    pub(super) width: f64,
    /// How it ended; PROCESSING while it has not.
    pub(super) status: TaskStatus,
}

impl TimeLine {
    /// The line of a job; none when nothing of it has begun.
    pub(super) fn of(detail: &JobDetail, now: DateTime<Utc>) -> Option<Self> {
        let (tasks, failures) = (&detail.tasks, &detail.failures);
        let begun = tasks.iter().filter_map(|task| task.started_at);
        let failed = failures
            .iter()
            .map(|failure| failure.started_at.unwrap_or(failure.failed_at));
        let from = begun.chain(failed).min()?;
        let ended = tasks.iter().filter_map(|task| task.finished_at);
        let last = ended
            .chain(failures.iter().map(|failure| failure.failed_at))
            .max();
        let goes_on = (!detail.job.is_over()).then_some(now);
        // The database's clock made the times, this machine's says `now`: it may be behind.
        let to = last
            .into_iter()
            .chain(goes_on)
            .chain(Some(from + TimeDelta::milliseconds(1)))
            .max()?;
        Some(Self { from, to })
    }

    /// The attempts of a task: those that failed, and the present or last one.
    pub(super) fn bars(&self, task: &TaskView, failures: &[FailureView]) -> Vec<Bar> {
        let own = || {
            failures
                .iter()
                .filter(|failure| failure.position == task.position)
        };
        let mut bars: Vec<_> = own()
            .map(|failure| {
                let from = failure.started_at.unwrap_or(failure.failed_at);
                self.bar(from, failure.failed_at, TaskStatus::Failed)
            })
            .collect();
        let last = match (task.status, task.started_at, task.finished_at) {
            (TaskStatus::Processing, Some(from), _) => Some((from, self.to)),
            (TaskStatus::Success, Some(from), Some(to)) => Some((from, to)),
            // Its failure is among the others, unless the job was cancelled while it ran.
            (TaskStatus::Failed, Some(from), Some(to))
                if own().all(|failure| failure.started_at != Some(from)) =>
            {
                Some((from, to))
            }
            _ => None,
        };
        bars.extend(last.map(|(from, to)| self.bar(from, to, task.status)));
        bars
    }

    fn bar(&self, from: DateTime<Utc>, to: DateTime<Utc>, status: TaskStatus) -> Bar {
        let whole = seconds(self.to - self.from).max(0.001);
        let place =
            |time: DateTime<Utc>| (seconds(time - self.from) / whole * 100.0).clamp(0.0, 100.0);
        let x = place(from).min(100.0 - THINNEST);
        let width = (place(to) - x).max(THINNEST);
        Bar { x, width, status }
    }

    /// The bars of one task. What they show is also said in words beside them.
    pub(super) fn track(&self, task: &TaskView, failures: &[FailureView]) -> Markup {
        html! {
            svg.track aria-hidden="true" focusable="false" {
                @for at in ["25%", "50%", "75%"] { line.grid x1=(at) x2=(at) y1="0" y2="100%" {} }
                @for bar in self.bars(task, failures) {
                    rect class={ "f-" (bar.status.as_str()) } x=(percent(bar.x)) width=(percent(bar.width)) y="3" height="8" rx="2" {}
                }
            }
        }
    }

    /// What the places on the line are, in time since its beginning.
    pub(super) fn axis(&self) -> Markup {
        let whole = self.to - self.from;
        html! {
            div.axis aria-hidden="true" {
                @for part in 0..=4 {
                    span { (Span((whole * part / 4).to_std().unwrap_or_default())) }
                }
            }
        }
    }

    /// How long it is.
    pub(super) fn length(&self) -> Span {
        Span((self.to - self.from).to_std().unwrap_or_default())
    }
}

fn seconds(span: TimeDelta) -> f64 {
    span.as_seconds_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, detail, failure, task};

    #[test]
    fn bars_lie_where_their_attempts_were() {
        let mut job = detail(
            "PROCESSING",
            vec![
                task(1, TaskStatus::Success, Some(0), Some(10)),
                task(2, TaskStatus::Processing, Some(50), None),
                task(3, TaskStatus::Pending, None, None),
            ],
        );
        job.failures = vec![failure(2, 1, 10, 20), failure(2, 2, 30, 40)];
        let line = TimeLine::of(&job, at(100)).unwrap();
        let bars = |index: usize| -> Vec<_> {
            let bars = line.bars(&job.tasks[index], &job.failures);
            bars.iter()
                .map(|bar| (bar.x, bar.width, bar.status))
                .collect()
        };
        assert_eq!(bars(0), [(0.0, 10.0, TaskStatus::Success)]);
        assert_eq!(
            bars(1),
            [
                (10.0, 10.0, TaskStatus::Failed),
                (30.0, 10.0, TaskStatus::Failed),
                (50.0, 50.0, TaskStatus::Processing),
            ]
        );
        assert_eq!(bars(2), []);
    }

    #[test]
    fn the_shortest_task_is_seen_and_nothing_leaves_the_line() {
        let job = detail(
            "SUCCESS",
            vec![
                task(1, TaskStatus::Success, Some(0), Some(0)),
                task(2, TaskStatus::Success, Some(10_000), Some(10_000)),
            ],
        );
        let line = TimeLine::of(&job, at(99_999)).unwrap();
        for task in &job.tasks {
            for bar in line.bars(task, &[]) {
                assert!(
                    bar.width >= THINNEST && bar.x >= 0.0 && bar.x + bar.width <= 100.0 + 1e-9,
                    "{bar:?}"
                );
            }
        }
        // A job that is over ends where its last task ended, whenever it is looked at.
        assert_eq!(line.to, at(10_000));
    }

    #[test]
    fn a_clock_that_is_behind_or_a_job_of_no_length_breaks_nothing() {
        let job = detail(
            "PROCESSING",
            vec![task(1, TaskStatus::Processing, Some(50), None)],
        );
        let line = TimeLine::of(&job, at(0)).unwrap();
        let bars = line.bars(&job.tasks[0], &[]);
        assert_eq!((bars[0].x, bars[0].width), (0.0, 100.0));
        let none = detail("PENDING", vec![task(1, TaskStatus::Pending, None, None)]);
        assert_eq!(TimeLine::of(&none, at(0)), None);
    }

    #[test]
    fn a_task_that_failed_has_a_bar_for_each_attempt_and_no_more() {
        let mut job = detail(
            "FAILED",
            vec![task(1, TaskStatus::Failed, Some(20), Some(30))],
        );
        job.failures = vec![failure(1, 1, 0, 10), failure(1, 2, 20, 30)];
        let line = TimeLine::of(&job, at(500)).unwrap();
        assert_eq!(line.bars(&job.tasks[0], &job.failures).len(), 2);
        // Cancelled while it ran: no failure tells of it.
        job.failures.pop();
        assert_eq!(line.bars(&job.tasks[0], &job.failures).len(), 2);
    }
}
