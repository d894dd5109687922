//! Workers, and what each is doing now.

use std::{cmp::Reverse, time::Duration};

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::parts::{count, exact, icon, job_path, number, short, time};
use crate::{
    ledger::{Running, WorkerView},
    ops::words::{Span, between},
    retry::BrakeState,
};

/// So many workers that have ended are shown.
const ENDED: usize = 10;

/// One worker in a few lines: its name and the first things it does.
pub(super) fn line(worker: &WorkerView, now: DateTime<Utc>) -> Markup {
    let shown = &worker.running[..worker.running.len().min(3)];
    let more = worker.jobs - shown.len() as i64;
    html! {
        div.worker {
            strong { (short(&worker.name, 40)) } " " (state(worker, now))
            @if !worker.alive && worker.jobs > 0 { p.muted { "Left behind:" } }
            @for running in shown { (doing(worker, running, now)) }
            @if !shown.is_empty() && more > 0 { p.muted { "and " (number(more)) " more" } }
            @if shown.is_empty() && more > 0 { p.muted { (count(more, "job")) ", none for long" } }
        }
    }
}

/// Those alive first, then those that may hold jobs all the same; of each sort the newest first.
pub(super) fn in_order(workers: &[WorkerView]) -> Vec<&WorkerView> {
    let mut workers: Vec<_> = workers.iter().collect();
    workers.sort_by_key(|worker| {
        let place = match (worker.alive, worker.jobs) {
            (true, _) => 0,
            (false, 1..) => 1,
            (false, _) => 2,
        };
        (place, Reverse(worker.started_at), Reverse(worker.id))
    });
    workers
}

/// `2 workers hold 40 jobs; 32 jobs are held by a dead worker`. What the dead hold nobody works on.
pub(super) fn held(workers: &[WorkerView]) -> String {
    let sum = |alive| {
        let holders = workers
            .iter()
            .filter(|worker| worker.alive == alive && (alive || worker.jobs > 0));
        holders.fold((0, 0), |(number, jobs), worker| {
            (number + 1, jobs + worker.jobs)
        })
    };
    let ((alive, jobs), (dead, lost)) = (sum(true), sum(false));
    let mut text = match alive {
        0 => "No worker runs".to_owned(),
        1 => format!("1 worker holds {}", count(jobs, "job")),
        _ => format!("{} hold {}", count(alive, "worker"), count(jobs, "job")),
    };
    if dead > 0 {
        let are = if lost == 1 { "is" } else { "are" };
        let by = match dead {
            1 => "a dead worker".to_owned(),
            _ => count(dead, "dead worker"),
        };
        text.push_str(&format!("; {} {are} held by {by}", count(lost, "job")));
    }
    text
}

/// All workers that are alive or may hold a job, and some that ended within the last hour.
pub(super) fn workers(workers: &[WorkerView], now: DateTime<Utc>) -> Markup {
    let ordered = in_order(workers);
    let kept = ordered
        .iter()
        .filter(|worker| worker.alive || worker.jobs > 0)
        .count();
    let (shown, others) = ordered.split_at((kept + ENDED).min(ordered.len()));
    html! {
        h1 { "Workers" }
        p #status .lead { (held(workers)) "." }
        @if workers.is_empty() {
            div.card { p.empty { "None has run within the last hour. Start one: " code { "cliquet work" } } }
        }
        @for worker in shown { (card(worker, now)) }
        @if !others.is_empty() {
            p.muted { (count(others.len() as i64, "other worker")) " ended within the last hour." }
        }
    }
}

fn card(worker: &WorkerView, now: DateTime<Utc>) -> Markup {
    html! {
        section.card id={ "worker-" (worker.id) } {
            h2 { (short(&worker.name, 60)) " " (state(worker, now)) }
            dl.pairs {
                div { dt { "Queue" } dd { code { (short(&worker.queue, 60)) } } }
                div { dt { "Host" } dd { (short(&worker.host, 60)) ", process " (worker.pid) } }
                div { dt { "Version" } dd { (short(&worker.version, 40)) } }
                div { dt { "Started" } dd { (exact(worker.started_at, now)) } }
                div { dt { "Heartbeat" } dd { (time(worker.seen_at, now)) } }
                @if let Some(stopped) = worker.stopped_at { div { dt { "Stopped" } dd { (exact(stopped, now)) } } }
                @for brake in brakes(&worker.brakes) {
                    div {
                        dt { "Brake" }
                        dd {
                            code { (short(&brake.handler, 60)) } " waits: " (count(brake.failures.into(), "failure")) " in a row, for "
                            (Span(Duration::from_millis(brake.on_for_ms))) ". " (short(&brake.last_error, 120))
                        }
                    }
                }
            }
            @if worker.jobs == 0 {
                p.empty { "It holds no job." }
            } @else if worker.running.is_empty() {
                p.empty { "It holds " (count(worker.jobs, "job")) ", none for long." }
            } @else {
                h3 { @if worker.alive { "Doing now" } @else { "Left behind, for another worker to take over" } }
                @for running in &worker.running { (doing(worker, running, now)) }
                @if worker.jobs > worker.running.len() as i64 {
                    p.muted { "and " (number(worker.jobs - worker.running.len() as i64)) " more" }
                }
            }
        }
    }
}

fn state(worker: &WorkerView, now: DateTime<Utc>) -> Markup {
    html! {
        @if worker.alive {
            span.chip.s-SUCCESS { (icon("SUCCESS")) "alive" }
        } @else if worker.stopped_at.is_some() {
            span.chip.s-CANCELLED { (icon("CANCELLED")) "stopped" }
        } @else {
            span.chip.s-FAILED { (icon("FAILED")) "silent since " (time(worker.seen_at, now)) }
        }
    }
}

/// What a worker does, or has left behind: as far as the ledger can tell, the tasks of a dead one stand still.
fn doing(worker: &WorkerView, running: &Running, now: DateTime<Utc>) -> Markup {
    let since = running.since.filter(|_| worker.alive);
    html! {
        p.doing {
            @if worker.alive { (icon("PROCESSING")) }
            a href=(job_path(running.job)) { (short(&running.label, 60)) @if worker.alive { " …" } }
            " " span.muted {
                (short(&running.kind, 40))
                @if let Some(since) = since { ", for " (between(since, now)) }
            }
        }
    }
}

/// The handlers that are braked. Another version may tell them otherwise: then nothing is said of them.
fn brakes(told: &serde_json::Value) -> Vec<BrakeState> {
    let brakes = told.as_array().into_iter().flatten();
    brakes
        .filter_map(|brake| serde_json::from_value(brake.clone()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, worker};

    #[test]
    fn a_worker_says_what_it_is_doing() {
        let shown = card(&worker("ada", true), at(100)).into_string();
        for words in [
            "Upload image &lt;2/5&gt; …",
            "alive",
            "for 40s",
            "and 4 more",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }

    #[test]
    fn a_braked_handler_is_told_and_an_unknown_form_breaks_nothing() {
        let mut braked = worker("ada", true);
        braked.brakes = serde_json::json!([{
            "handler": "upload_image", "failures": 21, "on_for_ms": 180_000, "failed_probes": 2,
            "next_probe_ms": 0, "probing": false, "last_error": "HTTP <503>"
        }, {"later": 1}]);
        let shown = card(&braked, at(100)).into_string();
        assert!(
            shown.contains("waits: 21 failures in a row, for 3m. HTTP &lt;503&gt;"),
            "{shown}"
        );
        assert_eq!(shown.matches("<dt>Brake").count(), 1);
    }

    #[test]
    fn a_dead_worker_is_told_as_such() {
        let mut dead = worker("ada", false);
        let at_a_glance = line(&dead, at(100)).into_string();
        for words in ["Left behind:", "Upload image", "and 4 more"] {
            assert!(at_a_glance.contains(words), "{words}: {at_a_glance}");
        }
        let shown = card(&dead, at(100)).into_string();
        assert!(
            shown.contains("silent since") && shown.contains("Left behind"),
            "{shown}"
        );
        for words in ["Doing now", "…", "for 40s"] {
            assert!(!shown.contains(words), "{words}: {shown}");
        }
        dead.stopped_at = Some(at(90));
        dead.running.clear();
        dead.jobs = 0;
        let shown = card(&dead, at(100)).into_string();
        assert!(
            shown.contains("stopped") && shown.contains("It holds no job."),
            "{shown}"
        );
        assert!(
            workers(&[], at(0))
                .into_string()
                .contains("No worker runs.")
        );
    }

    #[test]
    fn the_living_come_first_and_what_the_silent_hold_is_told_apart() {
        let with = |id, alive, jobs| {
            let mut worker = worker("ada", alive);
            (worker.id, worker.jobs) = (id, jobs);
            worker
        };
        let all = [
            with(1, false, 0),
            with(2, false, 32),
            with(3, true, 5),
            with(4, false, 0),
            with(5, true, 3),
        ];
        let order: Vec<_> = in_order(&all).iter().map(|worker| worker.id).collect();
        assert_eq!(order, [5, 3, 2, 4, 1]);
        assert_eq!(
            held(&all),
            "2 workers hold 8 jobs; 32 jobs are held by a dead worker"
        );
        assert_eq!(held(&all[..1]), "No worker runs");
        assert_eq!(
            held(&[with(1, true, 1), with(2, false, 1), with(3, false, 0)]),
            "1 worker holds 1 job; 1 job is held by a dead worker"
        );
        let ended: Vec<_> = (0..40).map(|id| with(id, false, 0)).collect();
        let shown = workers(&[&all[..], &ended].concat(), at(0)).into_string();
        assert_eq!(shown.matches("<section").count(), 3 + ENDED);
        assert!(shown.contains("32 other workers ended"), "{shown}");
    }
}
