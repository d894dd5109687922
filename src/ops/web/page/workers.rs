//! Workers, and what each is doing now.

use std::time::Duration;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::parts::{count, exact, icon, job_path, number, short, time};
use crate::{
    ledger::{Running, WorkerView},
    ops::words::{Span, between},
    retry::BrakeState,
};

/// One worker in a few lines: its name and the first things it does.
pub(super) fn line(worker: &WorkerView, now: DateTime<Utc>) -> Markup {
    html! {
        div.worker {
            strong { (short(&worker.name, 40)) } " " (state(worker, now))
            @for running in worker.running.iter().take(3) { (doing(running, now)) }
            @if worker.jobs > 3 { p.muted { "and " (number(worker.jobs - 3)) " more" } }
        }
    }
}

/// All workers: those alive, and those that died within the last hour.
pub(super) fn workers(workers: &[WorkerView], now: DateTime<Utc>) -> Markup {
    let alive = workers.iter().filter(|worker| worker.alive).count();
    let jobs: i64 = workers.iter().map(|worker| worker.jobs).sum();
    html! {
        h1 { "Workers" }
        p #status .lead {
            @if alive == 0 { "No worker runs." }
            @else { (count(alive as i64, "worker")) (if alive == 1 { " holds " } else { " hold " }) (count(jobs, "job")) "." }
        }
        @if workers.is_empty() {
            div.card { p.empty { "None has run within the last hour. Start one: " code { "cliquet work" } } }
        }
        @for worker in workers { (card(worker, now)) }
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
            @if worker.running.is_empty() {
                p.empty { "It holds no job." }
            } @else {
                h3 { "Doing now" }
                @for running in &worker.running { (doing(running, now)) }
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

fn doing(running: &Running, now: DateTime<Utc>) -> Markup {
    html! {
        p.doing {
            (icon("PROCESSING"))
            a href=(job_path(running.job)) { (short(&running.label, 60)) " …" }
            " " span.muted {
                (short(&running.kind, 40))
                @if let Some(since) = running.since { ", for " (between(since, now)) }
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
        assert!(card(&dead, at(100)).into_string().contains("silent since"));
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
}
