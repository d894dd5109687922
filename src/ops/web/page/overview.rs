//! The overview: how many jobs are where, the last hour, the queues as a ladder, what workers do, what fails alike.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    chart::charts,
    filter, groups,
    parts::{count, icon, number, percent, query},
    workers,
};
use crate::{
    job::JobStatus,
    ledger::{Find, Group, Overview, WorkerView},
    ops::{
        web::depths::{QueueDepth, Role},
        words::Span,
    },
};

/// So many groups and workers stand here; the others on their own pages.
pub(super) const FEW: usize = 5;

/// What the overview is made of. What could not be read is a sentence.
pub(super) struct Seen {
    pub(super) overview: Overview,
    pub(super) depths: Result<Vec<QueueDepth>, String>,
    pub(super) workers: Vec<WorkerView>,
    pub(super) groups: Vec<Group>,
}

pub(super) fn overview(seen: &Seen, now: DateTime<Utc>) -> Markup {
    let Seen {
        overview,
        depths,
        workers,
        groups,
    } = seen;
    html! {
        h1 { "Overview" }
        p #status .lead { (sentence(seen)) " " span.since { "As of " (overview.as_of.format("%H:%M:%S")) "." } }
        section aria-labelledby="by-status" {
            h2 #by-status .off { "Jobs by status" }
            ul.tiles {
                @for status in JobStatus::ALL {
                    @let found = overview.jobs.iter().find(|count| count.status == *status);
                    @let (jobs, estimated) = found.map_or((0, false), |count| (count.jobs, count.estimated));
                    li { (tile(*status, jobs, estimated)) }
                }
            }
        }
        (charts(&overview.minutes))
        div.columns {
            div {
                section #queues .card {
                    h2 { "Queues" }
                    @match depths {
                        Ok(depths) if depths.is_empty() => (no_queues()),
                        Ok(depths) => (ladder(depths)),
                        Err(sentence) => p.muted { "RabbitMQ does not say how long its queues are: " (sentence) },
                    }
                }
            }
            div {
                section #failing .card {
                    h2 { "Failing alike" }
                    @if groups.is_empty() {
                        p.empty { (icon("SUCCESS")) "Nothing fails." }
                    } @else {
                        ol.plain {
                            @for group in groups { li { (groups::line(group, now)) } }
                        }
                        p.more { a href="/groups" { "All groups, and what to do with them" } }
                    }
                }
                section #workers .card {
                    h2 { "Workers" }
                    @if workers.is_empty() {
                        p.empty { "No worker runs. Start one: " code { "cliquet work" } }
                    } @else {
                        ul.plain {
                            @for worker in workers::in_order(workers).into_iter().take(FEW) { li { (workers::line(worker, now)) } }
                        }
                        @if workers.len() > FEW {
                            p.more { a href="/workers" { "All " (workers.len()) " workers" } }
                        }
                    }
                }
            }
        }
    }
}

/// The whole in one sentence, for whoever has a second.
fn sentence(seen: &Seen) -> String {
    let of = |status| {
        seen.overview
            .jobs
            .iter()
            .find(|count| count.status == status)
            .map_or(0, |count| count.jobs)
    };
    let mut text = workers::held(&seen.workers);
    let (failed, retrying) = (of(JobStatus::Failed), of(JobStatus::Retrying));
    if retrying > 0 {
        text.push_str(&format!(
            "; {} {} for another attempt",
            count(retrying, "job"),
            if retrying == 1 { "waits" } else { "wait" }
        ));
    }
    if failed > 0 {
        text.push_str(&format!(
            "; {} {} parked",
            count(failed, "job"),
            if failed == 1 { "is" } else { "are" }
        ));
    }
    if let Some(seconds) = seen
        .overview
        .oldest_due_seconds
        .filter(|seconds| *seconds >= 1.0)
    {
        let span = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
        text.push_str(&format!(
            "; the oldest job that is due has waited for {}",
            Span(span)
        ));
    }
    text.push('.');
    text
}

fn tile(status: JobStatus, jobs: i64, estimated: bool) -> Markup {
    let word = status.as_str();
    let path = filter::path(
        &Find {
            status: vec![status],
            ..Find::default()
        },
        None,
    );
    html! {
        a.tile.{ "s-" (word) } .none[jobs == 0] href=(path) {
            strong { @if estimated { "about " } (number(jobs)) }
            span.word { (icon(word)) (word) }
        }
    }
}

fn no_queues() -> Markup {
    html! {
        p.muted {
            "They are not there yet. A worker makes them when it begins, or " code { "cliquet topology declare" } " does."
        }
    }
}

/// The work queue, the rungs below it, and the dead queue: each with what waits there, beside each other by size.
fn ladder(depths: &[QueueDepth]) -> Markup {
    let most = depths.iter().map(|queue| queue.ready).max().unwrap_or(0);
    html! {
        table.ladder {
            caption.off { "Messages that wait in each queue" }
            thead.off { tr { th scope="col" { "Queue" } th scope="col" { "Share" } th scope="col" { "Messages" } } }
            tbody {
                @for queue in depths {
                    tr.{ (role(queue)) } .none[queue.ready == 0] {
                        th scope="row" { (name(queue)) }
                        td.rung aria-hidden="true" {
                            svg focusable="false" {
                                line x1="0" x2="100%" y1="50%" y2="50%" {}
                                @if queue.ready > 0 {
                                    rect x="0" y="3" height="8" rx="3" width=(percent(share(queue.ready, most))) {}
                                }
                            }
                        }
                        td.number {
                            (number(i64::try_from(queue.ready).unwrap_or(i64::MAX)))
                            @if queue.role == Role::Work {
                                // None at all is the answer to why nothing is done.
                                span.muted { " for " (count(i64::try_from(queue.consumers).unwrap_or(i64::MAX), "consumer")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn role(queue: &QueueDepth) -> &'static str {
    match queue.role {
        Role::Work => "work",
        Role::Delay => "delay",
        Role::Dead => "dead",
    }
}

fn name(queue: &QueueDepth) -> Markup {
    let words = match queue.role {
        Role::Work => "wait for a worker".to_owned(),
        Role::Dead => "parked".to_owned(),
        Role::Delay => {
            let delay = queue
                .delay_seconds
                .and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok());
            delay
                .map(|delay| format!("after {}", Span(delay)))
                .unwrap_or_default()
        }
    };
    html! {
        @if queue.role == Role::Delay { span title=(queue.name) { (words) } }
        @else { code { (queue.name) } " " span.muted { (words) } }
    }
}

/// Depths differ by powers of ten: the root lets a few messages be seen beside thousands.
fn share(ready: u64, most: u64) -> f64 {
    match most {
        0 => 0.0,
        most => ((ready as f64 / most as f64).sqrt() * 100.0).clamp(2.0, 100.0),
    }
}

/// The list of what a group holds.
pub(super) fn group_path(group: &Group) -> String {
    format!("/jobs{}", query([("likeness", group.id.as_str())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::StatusCount;
    use crate::ops::web::page::samples::{at, queue};

    fn nothing() -> Seen {
        Seen {
            overview: Overview {
                jobs: Vec::new(),
                minutes: Vec::new(),
                oldest_due_seconds: None,
                as_of: at(0),
            },
            depths: Ok(Vec::new()),
            workers: Vec::new(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn an_empty_ledger_is_told_calmly() {
        let shown = overview(&nothing(), at(0)).into_string();
        for words in [
            "No worker runs.",
            "Nothing fails.",
            "cliquet work",
            "cliquet topology declare",
            "href=\"/jobs?status=FAILED\"",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }

    #[test]
    fn a_broker_that_is_away_hides_nothing_else() {
        let mut seen = nothing();
        seen.overview.jobs = vec![StatusCount {
            status: JobStatus::Failed,
            jobs: 12_345,
            estimated: true,
        }];
        seen.depths = Err("RabbitMQ is away <since noon>".to_owned());
        let shown = overview(&seen, at(0)).into_string();
        assert!(
            shown.contains("RabbitMQ is away &lt;since noon&gt;") && shown.contains("about 12,345"),
            "{shown}"
        );
        assert!(shown.contains("12,345 jobs are parked."), "{shown}");
    }

    #[test]
    fn the_ladder_shows_a_single_message_beside_thousands() {
        let depths = [
            queue("jobs", Role::Work, None, 40_000),
            queue("jobs.delay.00002s", Role::Delay, Some(2.0), 1),
            queue("jobs.delay.00600s", Role::Delay, Some(600.0), 0),
            queue("jobs.dead", Role::Dead, None, 400),
        ];
        let shown = ladder(&depths).into_string();
        let widths: Vec<_> = shown
            .split("width=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert_eq!(widths, ["100.00%", "2.00%", "10.00%"]);
        assert!(
            shown.contains("after 2.0s") && shown.contains("after 10m"),
            "{shown}"
        );
    }
}
