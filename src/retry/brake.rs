//! The brake: many failures of one handler in a row mean an outage elsewhere, and an outage must not use up attempts.
//!
//! Once it is on, the handler's tasks wait on rungs without running, but for one at a time: the *probe*. Probes come at
//! growing pauses, up to a limit. A success, a probe's or that of a task that ran already, lets everything run again.
//!
//! What counts is a failure that trying again may mend. A permanent one says something about its job and nothing about the
//! service behind the handler. And one job alone, however often it fails, is no outage: the brake goes on only when the
//! failures in a row are those of several jobs. Otherwise a job that always fails would hold up its handler, and would
//! never be parked.
//!
//! A probe's failure is not counted as an attempt, no more than the waiting of the others: the job that happens to be the
//! probe, again and again in a long outage, would be given up for nothing.
//!
//! Pure: the time is given, and nothing here logs or locks. The state of a worker's brakes is kept by `worker`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RetryPolicy;
use crate::job::JobId;

/// The first pause before a probe.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So much of an error is kept in a brake's state, in characters.
const LONGEST_ERROR: usize = 300;

/// The brake of one handler in one worker.
#[derive(Debug)]
pub(crate) struct Brake {
    /// So many failures in a row.
    after: u32,
    pauses: RetryPolicy,
    failures: u32,
    /// Whose failures they are.
    whose: Whose,
    last_error: String,
    on: Option<On>,
    /// Probes so far, so that each has a number.
    probes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Whose {
    Nobodys,
    One(JobId),
    Several,
}

/// While it is on.
#[derive(Debug)]
struct On {
    since: Instant,
    /// How many probes have failed.
    failed: u32,
    next: Instant,
    /// The probe that runs now.
    probing: Option<u64>,
}

/// Whether a task may run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pass {
    /// The brake is off.
    Free,
    /// It is on, and this task finds out whether it may go off.
    Probe(u64),
    /// It is on: the task waits for about so long.
    Wait(Duration),
}

/// What a failure led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failed {
    /// It counts, as any failure does.
    Counts,
    /// It counts, and the brake is on from here.
    Trips,
    /// A probe's: it does not count, and its task waits for so long.
    Probe(Duration),
}

/// The brake went off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Released {
    /// For how long it was on.
    pub(crate) lasted: Duration,
    /// How many probes had failed.
    pub(crate) failed: u32,
}

/// A brake that is on, as the ledger keeps it with the worker's heartbeat. Spans, not times: they are reckoned from the
/// heartbeat's time, which is the database's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakeState {
    /// The handler.
    pub handler: String,
    /// Its failures in a row.
    pub failures: u32,
    /// For how long the brake has been on, in milliseconds.
    pub on_for_ms: u64,
    /// How many probes have failed.
    pub failed_probes: u32,
    /// When the next probe may run, in milliseconds from the heartbeat; 0 when the next task is one.
    pub next_probe_ms: u64,
    /// Whether one runs now.
    pub probing: bool,
    /// What the last failure said.
    pub last_error: String,
}

impl Brake {
    /// A brake that goes on `after` so many failures in a row, with pauses of at most `longest` between probes.
    pub(crate) fn new(after: u32, longest: Duration) -> Self {
        Self {
            after,
            pauses: RetryPolicy {
                max_attempts: u32::MAX,
                initial: FIRST_PAUSE.min(longest),
                max: longest,
                multiplier: 2.0,
                jitter: 0.3,
            },
            failures: 0,
            whose: Whose::Nobodys,
            last_error: String::new(),
            on: None,
            probes: 0,
        }
    }

    /// Asks for a task that is about to run.
    pub(crate) fn pass(&mut self, now: Instant) -> Pass {
        let Some(on) = &mut self.on else {
            return Pass::Free;
        };
        if on.probing.is_none() && on.next <= now {
            self.probes += 1;
            on.probing = Some(self.probes);
            return Pass::Probe(self.probes);
        }
        // About when the next probe is due, and not all at once.
        let pause = self.pauses.delay(on.failed + 1);
        Pass::Wait(pause.max(on.next.saturating_duration_since(now)))
    }

    /// A task of the handler ended well.
    pub(crate) fn succeeded(&mut self, now: Instant) -> Option<Released> {
        (self.failures, self.whose) = (0, Whose::Nobodys);
        self.on.take().map(|on| Released {
            lasted: now.saturating_duration_since(on.since),
            failed: on.failed,
        })
    }

    /// A task of the handler failed in a way that trying again may mend.
    pub(crate) fn failed(
        &mut self,
        job: JobId,
        probe: Option<u64>,
        error: &str,
        now: Instant,
    ) -> Failed {
        self.failures = self.failures.saturating_add(1);
        self.whose = match self.whose {
            Whose::Nobodys => Whose::One(job),
            Whose::One(other) if other == job => Whose::One(job),
            _ => Whose::Several,
        };
        self.last_error = shown(error);
        match &mut self.on {
            // One that ran before the brake went on, or a probe of an outage that is over.
            Some(on) if probe.is_none() || on.probing != probe => Failed::Counts,
            Some(on) => {
                on.probing = None;
                on.failed = on.failed.saturating_add(1);
                let pause = self.pauses.delay(on.failed + 1);
                on.next = now + pause;
                Failed::Probe(pause)
            }
            None if self.after > 0
                && self.failures >= self.after
                && self.whose == Whose::Several =>
            {
                self.on = Some(On {
                    since: now,
                    failed: 0,
                    next: now + self.pauses.delay(1),
                    probing: None,
                });
                Failed::Trips
            }
            None => Failed::Counts,
        }
    }

    /// A probe ended without telling anything (the worker stops, the job is somebody else's): the next task is one.
    pub(crate) fn undecided(&mut self, probe: u64) {
        if let Some(on) = &mut self.on
            && on.probing == Some(probe)
        {
            on.probing = None;
        }
    }

    /// What is to be told of it, while it is on.
    pub(crate) fn state(&self, handler: &str, now: Instant) -> Option<BrakeState> {
        let on = self.on.as_ref()?;
        let millis = |span: Duration| span.as_millis() as u64;
        Some(BrakeState {
            handler: shown(handler),
            failures: self.failures,
            on_for_ms: millis(now.saturating_duration_since(on.since)),
            failed_probes: on.failed,
            next_probe_ms: millis(on.next.saturating_duration_since(now)),
            probing: on.probing.is_some(),
            last_error: self.last_error.clone(),
        })
    }
}

/// One line that Postgres can keep.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line
        .replace('\0', "\u{fffd}")
        .chars()
        .take(LONGEST_ERROR)
        .collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn job(number: u128) -> JobId {
        JobId(uuid::Uuid::from_u128(number))
    }

    /// A brake that goes on after three failures, and is on.
    fn braked(now: Instant) -> Brake {
        let mut brake = Brake::new(3, LONGEST);
        assert_eq!(brake.failed(job(1), None, "away", now), Failed::Counts);
        assert_eq!(brake.failed(job(2), None, "away", now), Failed::Counts);
        assert_eq!(brake.failed(job(1), None, "away", now), Failed::Trips);
        brake
    }

    #[test]
    fn so_many_failures_in_a_row_put_it_on_and_a_success_begins_anew() {
        let now = Instant::now();
        let mut brake = Brake::new(3, LONGEST);
        for number in 0..20 {
            assert_eq!(brake.failed(job(1), None, "away", now), Failed::Counts);
            assert_eq!(brake.failed(job(2), None, "away", now), Failed::Counts);
            assert_eq!(brake.pass(now), Pass::Free, "{number}");
            assert_eq!(brake.succeeded(now), None);
        }
        assert!(matches!(braked(now).pass(now), Pass::Wait(_)));
    }

    #[test]
    fn one_job_alone_is_no_outage() {
        let now = Instant::now();
        let mut brake = Brake::new(3, LONGEST);
        for _ in 0..50 {
            assert_eq!(brake.failed(job(1), None, "bad", now), Failed::Counts);
        }
        assert_eq!(brake.failed(job(2), None, "bad", now), Failed::Trips);
    }

    #[test]
    fn zero_switches_it_off() {
        let now = Instant::now();
        let mut brake = Brake::new(0, LONGEST);
        for number in 0..1_000 {
            assert_eq!(brake.failed(job(number), None, "away", now), Failed::Counts);
        }
        assert_eq!(brake.pass(now), Pass::Free);
    }

    #[test]
    fn one_probe_runs_at_a_time_and_pauses_grow_to_the_limit() {
        let mut now = Instant::now();
        let mut brake = braked(now);
        let mut pauses = Vec::new();
        for round in 1..=12 {
            // Whoever comes too early waits at least until the next probe is due.
            let Pass::Wait(wait) = brake.pass(now) else {
                panic!("round {round}: a probe before its time")
            };
            now += wait;
            let Pass::Probe(number) = brake.pass(now) else {
                panic!("round {round}: no probe when it was due")
            };
            assert!(matches!(brake.pass(now), Pass::Wait(_)), "one at a time");
            match brake.failed(job(1), Some(number), "still away", now) {
                Failed::Probe(pause) => pauses.push(pause),
                other => panic!("{other:?}"),
            }
        }
        assert!(pauses[0] < Duration::from_secs(3), "{pauses:?}");
        assert!(pauses[8] > Duration::from_secs(15), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST), "{pauses:?}");
        let state = brake.state("upload", now).unwrap();
        assert_eq!((state.failures, state.failed_probes), (15, 12));
        assert_eq!(state.last_error, "still away");
    }

    #[test]
    fn any_success_lets_everything_run_again() {
        let now = Instant::now();
        let mut brake = braked(now);
        let later = now + LONGEST;
        assert!(matches!(brake.pass(later), Pass::Probe(_)));
        let released = brake.succeeded(later).unwrap();
        assert_eq!((released.lasted, released.failed), (LONGEST, 0));
        assert_eq!(brake.pass(later), Pass::Free);
        assert_eq!(brake.state("upload", later), None);
    }

    #[test]
    fn a_probe_that_tells_nothing_leaves_its_place_to_the_next_task() {
        let now = Instant::now();
        let mut brake = braked(now);
        let later = now + LONGEST;
        let Pass::Probe(first) = brake.pass(later) else {
            panic!()
        };
        brake.undecided(first);
        let Pass::Probe(second) = brake.pass(later) else {
            panic!()
        };
        // The first one is late: it says nothing about the second.
        brake.undecided(first);
        assert_eq!(
            brake.failed(job(1), Some(first), "late", later),
            Failed::Counts
        );
        assert!(matches!(brake.pass(later), Pass::Wait(_)));
        assert!(matches!(
            brake.failed(job(1), Some(second), "away", later),
            Failed::Probe(_)
        ));
    }

    #[test]
    fn tasks_that_ran_before_the_brake_went_on_count_and_move_no_probe() {
        let now = Instant::now();
        let mut brake = braked(now);
        let before = brake.state("upload", now).unwrap();
        assert_eq!(brake.failed(job(9), None, "away", now), Failed::Counts);
        let after = brake.state("upload", now).unwrap();
        assert_eq!(after.next_probe_ms, before.next_probe_ms);
        assert_eq!(after.failures, before.failures + 1);
    }

    #[test]
    fn whatever_a_handler_says_can_be_kept() {
        assert_eq!(shown("a\0b\n  c"), "a\u{fffd}b c");
        assert_eq!(shown(&"é".repeat(400)).chars().count(), LONGEST_ERROR + 1);
    }
}
