//! What a benchmark tells.

use std::time::Duration;

use serde::Serialize;

use super::{
    Bench, Does,
    browsers::{Answers, Looks},
    worker::Counts,
};
use crate::{
    config::Config,
    ledger::{Audit, Updates},
    ops::{Desk, failure::Failure},
};

/// The figures, as `--json` prints them; what was not measured is null.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    tasks_per_second: Option<f64>,
    jobs_per_second: Option<f64>,
    commits_per_second: Option<f64>,
    tasks_per_commit: Option<f64>,
    latency_ms: Option<Latency>,
    cpu_seconds_per_1000_tasks: Option<f64>,
    peak_rss_bytes: Option<u64>,
    pub(super) verified: bool,
    /// Of the updates of `cliquet.tasks` meanwhile, by whomever: how many were heap-only. Postgres counts late.
    heap_only_updates: Option<f64>,
    /// Dead rows of `cliquet.tasks` that wait for autovacuum, as Postgres estimates them.
    dead_rows: i64,
    seconds: Option<f64>,
    jobs: i64,
    tasks: i64,
    tasks_each: u32,
    concurrency: u16,
    handler: &'static str,
    payload_bytes: u32,
    rate: u32,
    /// Finished tasks that lay in the ledger before.
    history: u32,
    /// The same backlog twice more, while people look.
    watched: Option<Watched>,
    /// What is wrong, when `verified` is false.
    wrong: Vec<String>,
    #[serde(skip)]
    expected: u64,
    #[serde(skip)]
    transactions: bool,
}

/// From handing a job to the broker until a reader saw its SUCCESS.
#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
    jobs: usize,
}

/// What browsers cost, and how long their pages take.
#[derive(Debug, Serialize)]
struct Watched {
    browsers: u32,
    tasks_per_second: Option<f64>,
    /// Beside the throughput before and after them: 0.97 is 3 % less.
    ratio: Option<f64>,
    #[serde(flatten)]
    answers: Answers,
}

impl Report {
    pub(super) fn new(bench: &Bench, config: &Config) -> Self {
        Self {
            expected: u64::from(bench.jobs) + u64::from(bench.rate) * u64::from(bench.rate_seconds),
            transactions: bench.handler == Does::Transaction,
            tasks_each: bench.tasks,
            concurrency: config.concurrency,
            handler: bench.handler.name(),
            payload_bytes: bench.payload_bytes,
            rate: bench.rate,
            history: bench.history,
            ..Self::default()
        }
    }

    /// The backlog is worked through: what the worker says of itself since it was started, and what the ledger holds.
    pub(super) fn backlog(&mut self, ended: &Counts, audit: &Audit) {
        let (tasks, commits) = (audit.tasks as f64, ended.commits as f64);
        self.seconds = Some(audit.seconds);
        self.tasks_per_second = Some(tasks / audit.seconds);
        self.jobs_per_second = Some(audit.jobs as f64 / audit.seconds);
        self.commits_per_second = Some(commits / audit.seconds);
        self.tasks_per_commit = Some(tasks / commits);
        self.cpu_seconds_per_1000_tasks = ended.cpu_seconds.map(|seconds| seconds * 1000.0 / tasks);
    }

    pub(super) fn latencies(&mut self, mut latencies: Vec<Duration>) {
        latencies.sort_unstable();
        self.latency_ms = (!latencies.is_empty()).then(|| Latency {
            p50: milliseconds(percentile(&latencies, 0.50)),
            p99: milliseconds(percentile(&latencies, 0.99)),
            max: milliseconds(percentile(&latencies, 1.0)),
            jobs: latencies.len(),
        });
    }

    /// All is over: is every task SUCCESS with exactly one attempt, and nothing left?
    pub(super) fn end(&mut self, ended: &Counts, audit: Audit, waiting: u32) {
        self.peak_rss_bytes = ended.peak_rss_bytes;
        (self.jobs, self.tasks) = (audit.jobs, audit.tasks);
        let tasks = self.expected as i64 * i64::from(self.tasks_each);
        let effects = if self.transactions { tasks } else { 0 };
        let mut expect = |what: &str, found: i64, expected: i64| {
            if found != expected {
                self.wrong
                    .push(format!("{what}: {found} instead of {expected}"));
            }
        };
        expect("jobs in the ledger", audit.jobs, self.expected as i64);
        expect(
            "jobs SUCCESS after one claim",
            audit.jobs_done_once,
            self.expected as i64,
        );
        expect("tasks in the ledger", audit.tasks, tasks);
        expect(
            "tasks SUCCESS in their first attempt",
            audit.tasks_done_once,
            tasks,
        );
        expect("executions of a handler", ended.tasks as i64, tasks);
        expect("failures", audit.failures, 0);
        expect("rows written by handlers", audit.effects, effects);
        expect("tasks that wrote one", audit.effects_distinct, effects);
        expect("messages left in the queues", i64::from(waiting), 0);
        self.verified = self.wrong.is_empty();
    }

    pub(super) fn updates(&mut self, before: Updates, after: Updates) {
        let (all, heap_only) = (after.all - before.all, after.heap_only - before.heap_only);
        self.heap_only_updates = (all > 0).then(|| heap_only as f64 / all as f64);
        self.dead_rows = after.dead_rows;
    }

    /// The same backlog was worked through again: without any browser, and while so many looked.
    pub(super) fn watched(&mut self, browsers: u32, alone: Vec<Self>, watched: Vec<(Self, Looks)>) {
        let (with, looks): (Vec<_>, Vec<_>) = watched.into_iter().unzip();
        // All have the same number of tasks: the mean of the time that each takes.
        let rate = |runs: &[&Self]| {
            let taken = runs
                .iter()
                .filter_map(|run| run.tasks_per_second?.recip().into());
            runs.len() as f64 / taken.sum::<f64>()
        };
        let watched = rate(&with.iter().collect::<Vec<_>>());
        let without: Vec<_> = std::iter::once(&*self).chain(&alone).collect();
        self.watched = Some(Watched {
            browsers,
            tasks_per_second: Some(watched),
            ratio: Some(watched / rate(&without)),
            answers: Answers::of(&looks.concat()),
        });
        for run in alone.into_iter().chain(with) {
            self.verified &= run.verified;
            self.wrong.extend(run.wrong);
        }
    }

    pub(super) fn print(&self, desk: &mut Desk) -> Result<(), Failure> {
        if desk.json {
            return desk.output.json(self);
        }
        for line in self.lines() {
            desk.output.line(line)?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let does = match self.transactions {
            true => "tasks with a transaction",
            false => "no-op tasks",
        };
        if let (Some(tasks), Some(jobs), Some(commits), Some(each)) = (
            self.tasks_per_second,
            self.jobs_per_second,
            self.commits_per_second,
            self.tasks_per_commit,
        ) {
            lines.push(format!(
                "throughput  {tasks:.0} tasks/s, {jobs:.0} jobs/s of {} {does}, {} in flight",
                self.tasks_each, self.concurrency
            ));
            lines.push(format!(
                "commits     {commits:.0} a second, {each:.1} tasks in each"
            ));
        }
        if let Some(latency) = &self.latency_ms {
            lines.push(format!(
                "latency     p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms, from publishing to a visible SUCCESS ({} jobs at {} a second)",
                latency.p50, latency.p99, latency.max, latency.jobs, self.rate
            ));
        }
        let cpu = self
            .cpu_seconds_per_1000_tasks
            .map(|seconds| format!("{seconds:.3} CPU seconds for 1,000 tasks"));
        let memory = self
            .peak_rss_bytes
            .map(|bytes| format!("at most {:.0} MiB of memory", bytes as f64 / 1_048_576.0));
        let worker: Vec<_> = [cpu, memory].into_iter().flatten().collect();
        if !worker.is_empty() {
            lines.push(format!("worker      {}", worker.join(", ")));
        }
        if let Some(share) = self.heap_only_updates {
            lines.push(format!(
                "storage     {:.1} % of the updates of tasks were heap-only",
                share * 100.0
            ));
        }
        if let Some(watched) = &self.watched {
            if let (Some(tasks), Some(ratio)) = (watched.tasks_per_second, watched.ratio) {
                lines.push(format!(
                    "watched     {tasks:.0} tasks/s, {ratio:.3} of that before and after, while {} browsers had the page open, with {} finished tasks before",
                    watched.browsers, self.history
                ));
            }
            lines.extend(watched.answers.lines());
        }
        lines.push(match self.verified {
            true => format!(
                "verified    {} tasks of {} jobs are SUCCESS, each with exactly one attempt; the queues are empty",
                self.tasks, self.jobs
            ),
            false => format!("NOT VERIFIED  {}", self.wrong.join("; ")),
        });
        lines
    }
}

/// The smallest of the sorted values that at least this share of them does not exceed.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_value_that_so_many_do_not_exceed() {
        let values: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 0.50), Duration::from_millis(100));
        assert_eq!(percentile(&values, 0.99), Duration::from_millis(198));
        assert_eq!(percentile(&values, 1.0), Duration::from_millis(200));
        assert_eq!(percentile(&values[..1], 0.99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn what_does_not_add_up_is_named_and_nothing_is_verified() {
        let mut report = Report {
            expected: 10,
            tasks_each: 5,
            ..Report::default()
        };
        let right = Audit {
            jobs: 10,
            jobs_done_once: 10,
            tasks: 50,
            tasks_done_once: 50,
            ..Audit::default()
        };
        let counts = Counts {
            tasks: 50,
            ..Counts::default()
        };
        report.end(&counts, right, 0);
        assert!(report.verified, "{:?}", report.wrong);
        for (counts, audit, waiting, words) in [
            (
                Counts {
                    tasks: 51,
                    ..counts
                },
                right,
                0,
                "executions of a handler: 51 instead of 50",
            ),
            (
                counts,
                Audit {
                    tasks_done_once: 49,
                    ..right
                },
                0,
                "first attempt: 49",
            ),
            (
                counts,
                Audit {
                    jobs_done_once: 9,
                    ..right
                },
                0,
                "one claim: 9",
            ),
            (
                counts,
                Audit {
                    effects: 1,
                    ..right
                },
                0,
                "rows written by handlers: 1",
            ),
            (counts, right, 2, "left in the queues: 2"),
        ] {
            report.wrong.clear();
            report.end(&counts, audit, waiting);
            assert!(
                !report.verified && report.wrong.join(";").contains(words),
                "{:?}",
                report.wrong
            );
        }
    }
}
