//! Workers and jobs: who lives, who is silent, and which jobs will not go on by themselves. Decided by the ledger's facts
//! alone; ages are the database's.

use std::{collections::BTreeSet, time::Duration};

use super::{Finding, RETRY_PARKED, postgres::Facts};
use crate::{
    broker::shell_word,
    job::JobId,
    ledger::{Backlog, LedgerError, ParkedGroup, Suspect, WorkerFacts},
    ops::words::Span,
};

pub(super) const WORKERS: &str = "workers.alive";
pub(super) const SILENT: &str = "workers.silent";
pub(super) const VERSIONS: &str = "workers.versions";
pub(super) const BRAKES: &str = "workers.brakes";
pub(super) const STUCK: &str = "jobs.stuck";
pub(super) const WAITING: &str = "jobs.waiting";
pub(super) const PARKED: &str = "jobs.parked";
pub(super) const SUSPECTS: &str = "jobs.suspects";

/// So long after a worker's patience its jobs are taken over, where another worker lives.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);
/// A job that is due for so long, while nothing waits in the work queue, has no message.
const NO_MESSAGE: Duration = Duration::from_secs(120);
/// A job that is due for so long waits behind many.
const LONG_WAIT: Duration = Duration::from_secs(15 * 60);
/// So many of a list are told.
const TOLD: usize = 5;

/// What the facts come to. `ready` is how many messages wait in the work queue, where RabbitMQ told it.
pub(super) fn judge(facts: &Facts, queue: &str, ready: Option<u32>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.workers {
        Ok(workers) => {
            findings.push(judge_living(workers, queue));
            findings.extend(judge_silent(workers));
            findings.push(judge_versions(workers));
            findings.extend(judge_brakes(workers));
            match &facts.held_by_nobody {
                Ok(nobodys) => findings.extend(judge_stuck(workers, *nobodys)),
                Err(error) => findings.push(unknown(STUCK, error)),
            }
            match &facts.backlog {
                Ok(backlog) => findings.extend(judge_waiting(workers, backlog, queue, ready)),
                Err(error) => findings.push(unknown(WAITING, error)),
            }
        }
        Err(error) => {
            for check in [WORKERS, SILENT, VERSIONS, BRAKES, STUCK, WAITING] {
                findings.push(unknown(check, error));
            }
        }
    }
    findings.push(match &facts.parked {
        Ok(parked) => judge_parked(parked),
        Err(error) => unknown(PARKED, error),
    });
    findings.push(match &facts.suspects {
        Ok(suspects) => judge_suspects(suspects),
        Err(error) => unknown(SUSPECTS, error),
    });
    findings
}

fn unknown(check: &'static str, error: &LedgerError) -> Finding {
    Finding::unchecked(check, error.to_string())
}

fn lives_on(workers: &[WorkerFacts], queue: &str) -> bool {
    workers
        .iter()
        .any(|worker| worker.lives() && worker.queue == queue)
}

fn who(worker: &WorkerFacts) -> String {
    format!("{} (pid {} on {})", worker.name, worker.pid, worker.host)
}

fn judge_living(workers: &[WorkerFacts], queue: &str) -> Finding {
    let living: Vec<_> = workers
        .iter()
        .filter(|worker| worker.lives() && worker.queue == queue)
        .collect();
    if living.is_empty() {
        return Finding::problem(
            WORKERS,
            format!("no worker lives for the queue {queue}"),
            "start one: `cliquet work --config cliquet.toml`",
        );
    }
    if let Some(absent) = living.iter().find(|worker| !worker.locked) {
        return Finding::warning(
            WORKERS,
            format!(
                "{} does not hold its lock in Postgres: it starts no task before it has connected again",
                who(absent)
            ),
            "this passes within seconds; if it stays, look into that worker's log for what keeps it from Postgres",
        );
    }
    let names: Vec<_> = living
        .iter()
        .take(TOLD)
        .map(|worker| worker.name.as_str())
        .collect();
    let held: i64 = living.iter().map(|worker| worker.holds).sum();
    Finding::well(
        WORKERS,
        format!(
            "{} live, by their heartbeats and their locks ({}{}); they run {held} jobs",
            living.len(),
            names.join(", "),
            if living.len() > TOLD { " …" } else { "" }
        ),
    )
}

/// A worker whose heartbeat stopped while its session stands is not dead: it hangs, or its host is suspended.
fn judge_silent(workers: &[WorkerFacts]) -> Vec<Finding> {
    let hanging: Vec<_> = workers
        .iter()
        .filter(|worker| worker.stale && !worker.stopped && worker.locked)
        .map(|worker| {
            Finding::problem(
                SILENT,
                format!(
                    "{} has been silent for {} and its connection stands: it hangs, or its host is suspended",
                    who(worker),
                    Span(worker.silent_for)
                ),
                format!(
                    "on {}: `kill -9 {}`. Its jobs go on elsewhere, and whatever it still writes has no effect",
                    worker.host, worker.pid
                ),
            )
        })
        .collect();
    if !hanging.is_empty() {
        return hanging;
    }
    let dead: Vec<_> = workers
        .iter()
        .filter(|worker| worker.stale && !worker.stopped)
        .map(who)
        .collect();
    vec![Finding::well(
        SILENT,
        match dead.len() {
            0 => "nobody is silent".to_owned(),
            count => format!(
                "{count} ended without a goodbye within a day: {}",
                dead.join(", ")
            ),
        },
    )]
}

fn judge_versions(workers: &[WorkerFacts]) -> Finding {
    let versions: BTreeSet<_> = workers
        .iter()
        .filter(|worker| worker.lives())
        .map(|worker| worker.version.as_str())
        .collect();
    let list = versions.iter().copied().collect::<Vec<_>>().join(", ");
    match versions.len() {
        0 => Finding::well(VERSIONS, "no worker lives"),
        1 => Finding::well(VERSIONS, format!("all are {list}")),
        _ => Finding::warning(
            VERSIONS,
            format!("workers of several versions live: {list}"),
            "nothing is wrong while a deployment is under way; otherwise stop the older ones (SIGTERM)",
        ),
    }
}

fn judge_brakes(workers: &[WorkerFacts]) -> Vec<Finding> {
    let braked: Vec<_> = workers
        .iter()
        .filter(|worker| worker.lives())
        .flat_map(|worker| worker.brakes.iter().map(move |brake| (worker, brake)))
        .map(|(worker, brake)| {
            let millis = Duration::from_millis;
            Finding::problem(
                BRAKES,
                format!(
                    "{} has braked the handler {} for {} after {} failures in a row; {} probes have failed; the last error: {}",
                    worker.name,
                    brake.handler,
                    Span(millis(brake.on_for_ms)),
                    brake.failures,
                    brake.failed_probes,
                    brake.last_error
                ),
                format!(
                    "mend what {} needs; its jobs wait, use up no attempts and go on by themselves ({})",
                    brake.handler,
                    match brake.probing {
                        true => "a probe runs now".to_owned(),
                        false => format!("the next probe in {}", Span(millis(brake.next_probe_ms))),
                    }
                ),
            )
        })
        .collect();
    if braked.is_empty() {
        return vec![Finding::well(BRAKES, "no handler is braked")];
    }
    braked
}

fn judge_stuck(workers: &[WorkerFacts], nobodys: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for worker in workers
        .iter()
        .filter(|worker| !worker.lives() && worker.holds > 0)
    {
        let late = worker.silent_for > worker.patience + TAKEN_OVER_WITHIN;
        let alone = !lives_on(workers, &worker.queue);
        let found = format!(
            "{} jobs are held by {}, who has been {} for {}",
            worker.holds,
            who(worker),
            if worker.stopped { "gone" } else { "silent" },
            Span(worker.silent_for)
        );
        findings.push(if late || alone {
            Finding::problem(
                STUCK,
                found,
                if alone {
                    format!(
                        "start a worker on the queue {}: it takes them over",
                        worker.queue
                    )
                } else {
                    format!(
                        "{}; look into the workers' logs for why the reconciler does not",
                        send_again(Some(&worker.name))
                    )
                },
            )
        } else {
            Finding::warning(
                STUCK,
                found,
                "nothing: another worker is about to take them over",
            )
        });
    }
    if nobodys > 0 {
        findings.push(Finding::problem(
            STUCK,
            format!("{nobodys} jobs are held by workers that the ledger has forgotten"),
            send_again(None),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::well(
            STUCK,
            "every job that runs is held by a worker that lives",
        ));
    }
    findings
}

/// Sends the messages of what a dead worker holds again. One that lives may have the same name: what it runs it keeps.
fn send_again(holder: Option<&str>) -> String {
    let filter = format!(
        "select(.holder == {}) | .id",
        serde_json::Value::from(holder)
    );
    format!(
        "`cliquet jobs --status PROCESSING --limit 100000 --json | jq -r {} | xargs cliquet retry` sends their messages again, and the next worker takes them over",
        shell_word(&filter)
    )
}

fn judge_waiting(
    workers: &[WorkerFacts],
    backlog: &[Backlog],
    own: &str,
    ready: Option<u32>,
) -> Vec<Finding> {
    let span = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let mut findings = Vec::new();
    for waiting in backlog {
        let queue = &waiting.queue;
        let (oldest, unsent) = (span(waiting.oldest), span(waiting.oldest_unsent));
        let all = waiting.due + waiting.later + waiting.unsent;
        let start = || {
            format!(
                "start a worker on it: `CLIQUET_QUEUE={} cliquet work`",
                shell_word(queue)
            )
        };
        if !lives_on(workers, queue) {
            findings.push(Finding::problem(
                WAITING,
                format!("{all} jobs wait in the queue {queue} and no worker lives for it"),
                start(),
            ));
            continue;
        }
        if waiting.unsent > 0 && unsent > NO_MESSAGE {
            findings.push(Finding::problem(
                WAITING,
                format!(
                    "{} jobs were enqueued in SQL for the queue {queue} and never sent; the oldest has waited for {}",
                    waiting.unsent,
                    Span(unsent)
                ),
                "look into the workers' logs: the reconciler cannot publish",
            ));
        }
        let example = waiting
            .example
            .map(|id| JobId(id).to_string())
            .unwrap_or_default();
        if queue == own && ready == Some(0) && oldest > NO_MESSAGE {
            findings.push(Finding::problem(
                WAITING,
                format!(
                    "{} jobs are due and nothing waits in the queue {queue}: their messages are lost and not sent again; the oldest has been due for {}",
                    waiting.due,
                    Span(oldest)
                ),
                format!("`cliquet retry {example}` sends its message again; look into the workers' logs for why the reconciler does not"),
            ));
        } else if oldest > LONG_WAIT {
            findings.push(Finding::warning(
                WAITING,
                format!(
                    "{} jobs of the queue {queue} are due, the oldest for {}: workers do not keep up",
                    waiting.due,
                    Span(oldest)
                ),
                "start more workers, or raise `concurrency`",
            ));
        }
    }
    if findings.is_empty() {
        let sum = |count: fn(&Backlog) -> i64| backlog.iter().map(count).sum::<i64>();
        findings.push(Finding::well(
            WAITING,
            format!(
                "{} jobs are due, {} wait on delay queues, {} are about to be sent",
                sum(|waiting| waiting.due),
                sum(|waiting| waiting.later),
                sum(|waiting| waiting.unsent)
            ),
        ));
    }
    findings
}

fn judge_parked(parked: &[ParkedGroup]) -> Finding {
    let all: i64 = parked.iter().map(|group| group.jobs).sum();
    if all == 0 {
        return Finding::well(PARKED, "none");
    }
    let groups = parked.iter().take(TOLD).map(|group| {
        format!(
            "{} × {} ({}), such as {}",
            group.jobs,
            if group.handler.is_empty() {
                "before any task"
            } else {
                &group.handler
            },
            group.error,
            JobId(group.example)
        )
    });
    Finding::warning(
        PARKED,
        format!(
            "{all} jobs were given up: {}",
            groups.collect::<Vec<_>>().join("; ")
        ),
        format!(
            "`cliquet show ID` tells everything about one; once the cause is mended: `cliquet dead retry --all`, or for some: {RETRY_PARKED}"
        ),
    )
}

fn judge_suspects(suspects: &[Suspect]) -> Finding {
    if suspects.is_empty() {
        return Finding::well(SUSPECTS, "no waiting job has killed a worker");
    }
    let jobs = suspects.iter().take(TOLD).map(|suspect| {
        format!(
            "{} ({}, {} times)",
            suspect.job(),
            suspect.handler,
            suspect.crashes
        )
    });
    Finding::warning(
        SUSPECTS,
        format!(
            "workers have died in {} waiting jobs, which run one at a time: {}",
            suspects.len(),
            jobs.collect::<Vec<_>>().join(", ")
        ),
        "look for why in the system's log (out of memory?); after `crash_limit` deaths a job is parked, and `cliquet cancel ID` ends one now",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn ada() -> WorkerFacts {
        WorkerFacts {
            name: "ada".into(),
            host: "here".into(),
            pid: 7,
            version: "0.1.0".into(),
            queue: "jobs".into(),
            silent_for: Duration::from_secs(1),
            patience: Duration::from_secs(15),
            stopped: false,
            stale: false,
            locked: true,
            holds: 2,
            brakes: Vec::new(),
        }
    }

    fn dead(silent_for: u64) -> WorkerFacts {
        WorkerFacts {
            silent_for: Duration::from_secs(silent_for),
            stale: true,
            locked: false,
            ..ada()
        }
    }

    fn backlog(due: i64, oldest: f64) -> Backlog {
        Backlog {
            queue: "jobs".into(),
            due,
            later: 3,
            oldest,
            example: Some(uuid::Uuid::nil()),
            unsent: 0,
            oldest_unsent: 0.0,
        }
    }

    #[test]
    fn a_worker_lives_by_its_heartbeat_and_its_lock() {
        let state = |worker| judge_living(&[worker], "jobs").state;
        assert_eq!(state(ada()), State::Ok);
        assert_eq!(
            state(WorkerFacts {
                locked: false,
                ..ada()
            }),
            State::Warning
        );
        assert_eq!(state(dead(60)), State::Problem);
        assert_eq!(judge_living(&[ada()], "other").state, State::Problem);
    }

    #[test]
    fn one_that_hangs_is_told_from_one_that_is_dead() {
        assert_eq!(judge_silent(&[dead(60)])[0].state, State::Ok);
        let hanging = WorkerFacts {
            locked: true,
            ..dead(60)
        };
        let finding = judge_silent(&[hanging]).remove(0);
        assert_eq!(finding.state, State::Problem);
        assert!(finding.remedy.unwrap().contains("on here: `kill -9 7`"));
    }

    #[test]
    fn jobs_of_the_dead_are_stuck_when_nobody_takes_them_over() {
        let states = |workers: &[WorkerFacts], nobodys| -> Vec<_> {
            let findings = judge_stuck(workers, nobodys);
            findings.into_iter().map(|finding| finding.state).collect()
        };
        assert_eq!(states(&[ada()], 0), [State::Ok]);
        assert_eq!(states(&[dead(20)], 0), [State::Problem], "nobody is left");
        assert_eq!(states(&[ada(), dead(20)], 0), [State::Warning], "at once");
        assert_eq!(states(&[ada(), dead(100)], 0), [State::Problem], "late");
        assert_eq!(states(&[ada()], 4), [State::Problem]);
    }

    #[test]
    fn jobs_that_wait_in_vain_are_told_from_those_that_wait_their_turn() {
        let state = |workers: &[WorkerFacts], waiting, ready| {
            judge_waiting(workers, &[waiting], "jobs", ready)[0].state
        };
        assert_eq!(state(&[ada()], backlog(5, 60.0), Some(0)), State::Ok);
        assert_eq!(state(&[ada()], backlog(5, 300.0), Some(0)), State::Problem);
        assert_eq!(state(&[ada()], backlog(5, 300.0), Some(900)), State::Ok);
        assert_eq!(
            state(&[ada()], backlog(5, 3_000.0), Some(900)),
            State::Warning
        );
        assert_eq!(state(&[], backlog(5, 1.0), Some(5)), State::Problem);
        let unsent = Backlog {
            unsent: 1,
            oldest_unsent: 600.0,
            ..backlog(0, 0.0)
        };
        assert_eq!(state(&[ada()], unsent, Some(0)), State::Problem);
    }

    #[test]
    fn workers_of_several_versions_are_told() {
        let newer = WorkerFacts {
            version: "0.2.0".into(),
            ..ada()
        };
        assert_eq!(judge_versions(&[ada(), ada()]).state, State::Ok);
        assert_eq!(judge_versions(&[ada(), newer]).state, State::Warning);
    }
}
