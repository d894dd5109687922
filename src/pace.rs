//! How often something is looked at whose cost is known only by looking.

use std::time::Duration;

/// Pauses between looks, so that looks of like cost take one part in so many of the time.
///
/// A look that took long because the machine was busy just then says nothing about the next: the quicker one of the last two
/// tells what a look costs. The first has everything to fetch, and counts as a quarter.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    part: u32,
    least: Duration,
    last: Option<Duration>,
}

impl Pace {
    /// Looks that may take one part in `part` of the time, with pauses of at least `least`.
    pub(crate) fn new(part: u32, least: Duration) -> Self {
        Self {
            part,
            least,
            last: None,
        }
    }

    /// The pause after a look that took so long. Not for one that failed: it may only have waited.
    pub(crate) fn after(&mut self, took: Duration) -> Duration {
        let costs = self.last.map_or(took / 4, |last| took.min(last));
        self.last = Some(took);
        self.least.max(costs.saturating_mul(self.part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_looked_at_seldom_and_one_slow_look_among_quick_ones_changes_nothing() {
        let mut pace = Pace::new(100, Duration::from_millis(500));
        let pauses = [200, 20, 900, 700, 20, 1].map(|took| pace.after(Duration::from_millis(took)));
        assert_eq!(
            pauses.map(|pause| pause.as_millis()),
            [5_000, 2_000, 2_000, 70_000, 2_000, 500]
        );
    }
}
