//! When to try again: the policy draws a delay, the ladder snaps it to a delay queue.
//!
//! The only place that names the `backoff` crate. Jitter is a property of the draw, never a per-message expiry: in one
//! queue a long delay would block the short ones behind it, so every delay is a queue of its own (a *rung*), and
//! neighbouring rungs are close enough that failures which happen together do not come back together.
//!
//! The brake, for outages elsewhere, is in a file of its own.

mod brake;

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};
use serde::Deserialize;

pub use brake::BrakeState;
pub(crate) use brake::{Brake, Failed, Pass};

/// How often and how soon a task is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; after the last one the job is parked.
    pub max_attempts: u32,
    /// The delay after the first failure, before jitter.
    pub initial: Duration,
    /// No delay is longer.
    pub max: Duration,
    /// What each further failure multiplies the delay with.
    pub multiplier: f64,
    /// 0.5 draws from 50 % below to 50 % above; 0 is exact.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            initial: Duration::from_secs(1),
            max: Duration::from_secs(600),
            multiplier: 2.0,
            jitter: 0.5,
        }
    }
}

impl RetryPolicy {
    /// What is wrong with the policy, in words that name the key, or nothing.
    ///
    /// # Errors
    /// The sentence, when a value is out of its range.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(format!("`{key}` is {found}; expected {expected}"))
        };
        if self.max_attempts == 0 {
            return wrong(
                "max_attempts",
                "0".into(),
                "1 or more (1 means: never again)",
            );
        }
        if !(self.multiplier.is_finite() && (1.0..=100.0).contains(&self.multiplier)) {
            return wrong("multiplier", self.multiplier.to_string(), "1.0 to 100.0");
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return wrong("jitter", self.jitter.to_string(), "0.0 to 1.0");
        }
        if self.initial.is_zero() || self.initial > self.max {
            return wrong(
                "initial",
                humantime::format_duration(self.initial).to_string(),
                "more than 0 and no more than `max`",
            );
        }
        Ok(())
    }

    /// Draws the delay after the failure of `attempt` (1 for the first): exponential, jittered, never above `max`.
    pub fn delay(&self, attempt: u32) -> Duration {
        let reached = self.initial.as_secs_f64()
            * self
                .multiplier
                .powi(attempt.saturating_sub(1).min(1_000) as i32);
        let centre = Duration::try_from_secs_f64(reached)
            .unwrap_or(self.max)
            .min(self.max);
        // The crate counts attempts in memory and ours are in the ledger: a policy that begins where this attempt
        // stands, asked once, draws the same. Its jitter comes after its cap, hence ours at the end.
        let mut backoff: ExponentialBackoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(centre)
            .with_max_interval(self.max)
            .with_multiplier(self.multiplier)
            .with_randomization_factor(self.jitter)
            .with_max_elapsed_time(None)
            .build();
        backoff.next_backoff().unwrap_or(self.max).min(self.max)
    }

    /// Pauses between attempts to reach a service again: 0.1 s, then doubling to `longest`, jittered, without end.
    pub(crate) fn reconnecting(longest: Duration) -> Self {
        Self {
            max_attempts: u32::MAX,
            initial: Duration::from_millis(100).min(longest),
            max: longest,
            multiplier: 2.0,
            jitter: 0.3,
        }
    }
}

/// One delay queue's delay. It is in the queue's name, so a changed ladder makes new queues and never a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rung(Duration);

impl Rung {
    /// How long a message stays.
    pub fn delay(self) -> Duration {
        self.0
    }

    /// The delay as queue names carry it, which sorts and reads as a delay: `00005s`, `00000s200ms`, `00600s`.
    pub fn label(self) -> String {
        match (self.0.as_secs(), self.0.subsec_millis()) {
            (seconds, 0) => format!("{seconds:05}s"),
            (seconds, millis) => format!("{seconds:05}s{millis:03}ms"),
        }
    }
}

/// All delay queues of a work queue, shortest first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Ladder(Vec<Rung>);

/// The rungs of the default ladder, in milliseconds: 0.2 s to 10 min, neighbours at most 1.6 apart.
const DEFAULT_RUNGS_MS: [u64; 21] = [
    200, 320, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_500, 7_000, 10_000, 15_000, 22_000, 33_000,
    50_000, 75_000, 110_000, 165_000, 250_000, 400_000, 600_000,
];

impl Default for Ladder {
    fn default() -> Self {
        Self(
            DEFAULT_RUNGS_MS
                .iter()
                .map(|&ms| Rung(Duration::from_millis(ms)))
                .collect(),
        )
    }
}

impl TryFrom<Vec<String>> for Ladder {
    type Error = String;
    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let delays = texts.iter().map(|text| {
            humantime::parse_duration(text).map_err(|error| {
                format!("`ladder`: {text:?} is not a delay such as \"200ms\" or \"5s\": {error}")
            })
        });
        Self::new(delays.collect::<Result<Vec<_>, _>>()?)
    }
}

impl Ladder {
    /// A ladder of these delays, in any order.
    ///
    /// # Errors
    /// A sentence, when there is no delay, more than 64, or one outside 10 ms … 24 h or finer than a millisecond.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Result<Self, String> {
        let mut rungs: Vec<_> = delays.into_iter().map(Rung).collect();
        rungs.sort();
        rungs.dedup();
        if rungs.is_empty() || rungs.len() > 64 {
            return Err(format!(
                "`ladder` has {} delays; expected 1 to 64",
                rungs.len()
            ));
        }
        let allowed = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
        if let Some(Rung(bad)) = rungs.iter().find(|rung| {
            !allowed.contains(&rung.0) || !rung.0.subsec_nanos().is_multiple_of(1_000_000)
        }) {
            return Err(format!(
                "`ladder`: {} is not a delay for a queue; expected whole milliseconds from 10ms to 24h",
                humantime::format_duration(*bad)
            ));
        }
        Ok(Self(rungs))
    }

    /// Shortest first; never empty.
    pub fn rungs(&self) -> &[Rung] {
        &self.0
    }

    /// The rung nearest to a drawn delay; the longest one for whatever is longer.
    pub fn snap(&self, delay: Duration) -> Rung {
        let nearest = self.0.iter().min_by_key(|rung| rung.0.abs_diff(delay));
        nearest.copied().unwrap_or(Rung(delay))
    }

    /// The rung for a copy that found its job busy: the shortest at first, longer at each hop, at most about 30 s.
    pub fn hop(&self, hops: u32) -> Rung {
        let short = self
            .0
            .iter()
            .take_while(|rung| rung.0 <= Duration::from_secs(33))
            .count();
        self.0[(hops as usize).min(short.max(1) - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_within_the_jitter_and_below_the_cap() {
        let policy = RetryPolicy::default();
        for (attempt, centre) in [
            (1, 1.0),
            (2, 2.0),
            (5, 16.0),
            (10, 512.0),
            (11, 600.0),
            (400, 600.0),
        ] {
            for _ in 0..200 {
                let drawn = policy.delay(attempt).as_secs_f64();
                assert!(drawn >= centre * 0.5 - 1e-6, "attempt {attempt}: {drawn}");
                assert!(
                    drawn <= (centre * 1.5f64).min(600.0) + 1e-6,
                    "attempt {attempt}: {drawn}"
                );
            }
        }
    }

    #[test]
    fn without_jitter_a_delay_is_exact() {
        let policy = RetryPolicy {
            jitter: 0.0,
            ..RetryPolicy::default()
        };
        assert_eq!(policy.delay(3), Duration::from_secs(4));
    }

    #[test]
    fn failures_that_happen_together_spread_over_rungs() {
        let (policy, ladder) = (RetryPolicy::default(), Ladder::default());
        let rungs: std::collections::BTreeSet<_> =
            (0..500).map(|_| ladder.snap(policy.delay(4))).collect();
        assert!(rungs.len() >= 3, "{rungs:?}");
    }

    #[test]
    fn neighbouring_rungs_of_the_default_ladder_are_at_most_1_6_apart() {
        let ladder = Ladder::default();
        for pair in ladder.rungs().windows(2) {
            assert!(
                pair[1].0.as_secs_f64() / pair[0].0.as_secs_f64() <= 1.6001,
                "{pair:?}"
            );
        }
    }

    #[test]
    fn labels_sort_as_delays_do() {
        let labels: Vec<_> = Ladder::default()
            .rungs()
            .iter()
            .map(|rung| rung.label())
            .collect();
        assert!(labels.is_sorted(), "{labels:?}");
        assert_eq!(labels[0], "00000s200ms");
        assert_eq!(labels[20], "00600s");
    }

    #[test]
    fn a_ladder_is_read_sorted_and_checked() {
        let read = |texts: &[&str]| {
            Ladder::try_from(
                texts
                    .iter()
                    .map(|text| text.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        let ladder = read(&["5s", "200ms", "5s"]).unwrap();
        assert_eq!(ladder.rungs().len(), 2);
        assert_eq!(
            ladder.snap(Duration::from_secs(60)).delay(),
            Duration::from_secs(5)
        );
        assert!(read(&[]).unwrap_err().contains("0 delays"));
        assert!(
            read(&["soon"])
                .unwrap_err()
                .contains("\"soon\" is not a delay")
        );
        assert!(read(&["1us"]).unwrap_err().contains("whole milliseconds"));
    }

    #[test]
    fn a_busy_copy_waits_longer_at_each_hop_but_never_for_minutes() {
        let ladder = Ladder::default();
        assert_eq!(ladder.hop(0).delay(), Duration::from_millis(200));
        assert!(ladder.hop(3) > ladder.hop(2));
        assert_eq!(ladder.hop(9_999).delay(), Duration::from_secs(33));
        let long = Ladder::new([Duration::from_secs(60)]).unwrap();
        assert_eq!(long.hop(7).delay(), Duration::from_secs(60));
    }

    #[test]
    fn a_policy_out_of_range_is_refused_with_its_key() {
        let wrong = RetryPolicy {
            jitter: 1.5,
            ..RetryPolicy::default()
        };
        assert!(wrong.check().unwrap_err().starts_with("`jitter` is 1.5"));
        assert!(RetryPolicy::default().check().is_ok());
    }
}
