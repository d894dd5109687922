//! Which deliveries of a channel are settled, so that acknowledgements that are ready together share a frame.
//!
//! A frame costs the broker an entry in the queue's replicated log, whether it acknowledges one delivery or fifty. One frame
//! may acknowledge everything up to a delivery, and may do so only when everything up to it is settled or to be
//! acknowledged: of that this table keeps count. A delivery that takes long, and everything behind it, is acknowledged by
//! itself.
//!
//! One caller at a time writes, for all: the broker takes a second acknowledgement of one delivery for a fault of the
//! channel, so no frame may overtake another.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::future::join_all;
use lapin::{Acker, options::BasicAckOptions, types::DeliveryTag};
use tokio::task::yield_now;

use super::connect::{Trouble, answer};
use crate::fail_point::cut;

/// The deliveries of one channel, from the first that is not settled.
#[derive(Debug, Default)]
pub(super) struct Settling(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// The tag of the first entry of `states`.
    first: DeliveryTag,
    states: VecDeque<State>,
    /// Those that are to be acknowledged.
    ready: Vec<(DeliveryTag, Acker)>,
    /// Whether somebody writes acknowledgements now.
    writing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the worker; or its own frame is on its way.
    Open,
    /// To be acknowledged.
    Ready,
    /// The broker was told.
    Settled,
}

/// What one round of writing tells the broker.
#[derive(Debug, Default)]
struct Round {
    /// Everything up to this delivery.
    up_to: Option<Acker>,
    /// These alone: something before them is open.
    alone: Vec<(DeliveryTag, Acker)>,
}

impl Settling {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delivery has arrived. Tags of a channel count up from 1.
    pub(super) fn arrived(&self, tag: DeliveryTag) {
        let mut table = self.table();
        if table.states.is_empty() {
            table.first = tag;
        }
        table.states.push_back(State::Open);
    }

    /// The broker was told about this one by other means.
    pub(super) fn settled(&self, tag: DeliveryTag) {
        self.table().set(tag, State::Settled);
    }

    /// Acknowledges a delivery. Whoever is first writes for those that are ready at the same moment; the others need not
    /// wait for it.
    ///
    /// # Errors
    /// What is wrong with the connection, to whoever writes; all of these deliveries come again. `Ok(false)` when the
    /// channel is gone.
    pub(super) async fn acknowledge(
        &self,
        tag: DeliveryTag,
        acker: &Acker,
    ) -> Result<bool, Trouble> {
        if !acker.usable() {
            return Ok(false);
        }
        if !self.table().is_first_ready(tag, acker) {
            return Ok(true);
        }
        // However this ends, the next one must be able to write.
        let writing = Writing(self);
        let mut told = Ok(true);
        loop {
            // Whoever is ready to run now may have something to acknowledge.
            yield_now().await;
            let Some(round) = self.table().round() else {
                std::mem::forget(writing);
                return told;
            };
            // What fails does not keep the rest from being told: nobody else would tell it.
            for outcome in self.write(round).await {
                told = match (told, outcome) {
                    (Ok(before), Ok(now)) => Ok(before && now),
                    (Err(trouble), _) | (_, Err(trouble)) => Err(trouble),
                };
            }
        }
    }

    async fn write(&self, round: Round) -> Vec<Result<bool, Trouble>> {
        cut!(BeforeAcknowledge);
        let mut outcomes = Vec::new();
        if let Some(acker) = round.up_to {
            outcomes.push(answer(acker.ack(BasicAckOptions { multiple: true })).await);
        }
        let alone = round.alone.iter().map(async |(tag, acker)| {
            let outcome = answer(acker.ack(BasicAckOptions { multiple: false })).await;
            if outcome.is_ok() {
                self.settled(*tag);
            }
            outcome
        });
        outcomes.extend(join_all(alone).await);
        cut!(AfterAcknowledge);
        outcomes
    }
}

struct Writing<'a>(&'a Settling);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.table().writing = false;
    }
}

impl Table {
    fn set(&mut self, tag: DeliveryTag, state: State) {
        let index = tag.checked_sub(self.first).map(|index| index as usize);
        if let Some(entry) = index.and_then(|index| self.states.get_mut(index)) {
            *entry = state;
        }
        // What is settled at the front is forgotten.
        while self.states.front() == Some(&State::Settled) {
            self.states.pop_front();
            self.first += 1;
        }
    }

    /// Notes that it is to be acknowledged; whether the caller has to write.
    fn is_first_ready(&mut self, tag: DeliveryTag, acker: &Acker) -> bool {
        self.set(tag, State::Ready);
        self.ready.push((tag, acker.clone()));
        !std::mem::replace(&mut self.writing, true)
    }

    /// What is to be written now; nothing, and nobody writes any more, when there is nothing.
    fn round(&mut self) -> Option<Round> {
        if self.ready.is_empty() {
            self.writing = false;
            return None;
        }
        while matches!(self.states.front(), Some(State::Ready | State::Settled)) {
            self.states.pop_front();
            self.first += 1;
        }
        let mut round = Round::default();
        let mut last = 0;
        for (tag, acker) in std::mem::take(&mut self.ready) {
            if tag >= self.first {
                // Open again until its own frame is written, so that no later one covers it.
                self.set(tag, State::Open);
                round.alone.push((tag, acker));
            } else if tag >= last {
                last = tag;
                round.up_to = Some(acker);
            }
        }
        Some(round)
    }
}

#[cfg(test)]
mod tests {
    use lapin::message;

    use super::*;

    fn acker(tag: DeliveryTag) -> Acker {
        message::Delivery::mock(tag, "".into(), "jobs".into(), false, Vec::new()).acker
    }

    fn with(tags: std::ops::RangeInclusive<DeliveryTag>) -> Table {
        let settling = Settling::default();
        tags.for_each(|tag| settling.arrived(tag));
        settling.0.into_inner().unwrap()
    }

    /// The tags of a round: up to which, and which alone.
    fn told(table: &mut Table) -> Option<(Option<DeliveryTag>, Vec<DeliveryTag>)> {
        let round = table.round()?;
        let up_to = round
            .up_to
            .map(|acker| (1..100).find(|&tag| acker == self::acker(tag)).unwrap());
        Some((up_to, round.alone.into_iter().map(|(tag, _)| tag).collect()))
    }

    #[test]
    fn what_is_ready_from_the_front_on_shares_a_frame_and_the_rest_goes_alone() {
        let mut table = with(1..=6);
        assert!(table.is_first_ready(2, &acker(2)), "the first one writes");
        for tag in [1, 3, 5] {
            assert!(!table.is_first_ready(tag, &acker(tag)));
        }
        assert_eq!(told(&mut table), Some((Some(3), vec![5])));
        // While 5 is being told alone it must not be covered by a frame up to 6.
        table.is_first_ready(4, &acker(4));
        table.is_first_ready(6, &acker(6));
        assert_eq!(told(&mut table), Some((Some(4), vec![6])));
        table.set(5, State::Settled);
        table.set(6, State::Settled);
        assert!(table.states.is_empty() && table.first == 7);
        assert_eq!(told(&mut table), None);
        assert!(!table.writing);
    }

    #[test]
    fn what_was_put_back_is_passed_over() {
        let mut table = with(1..=3);
        table.set(2, State::Settled);
        table.is_first_ready(3, &acker(3));
        assert_eq!(told(&mut table), Some((None, vec![3])), "1 is open");
        table.set(3, State::Settled);
        table.is_first_ready(1, &acker(1));
        assert_eq!(told(&mut table), Some((Some(1), vec![])));
        assert!(table.states.is_empty(), "{table:?}");
    }

    #[tokio::test]
    async fn those_that_are_ready_together_are_written_by_one() {
        let settling = Settling::default();
        (1..=3).for_each(|tag| settling.arrived(tag));
        let (one, two, three) = (acker(1), acker(2), acker(3));
        let all = tokio::join!(
            settling.acknowledge(2, &two),
            settling.acknowledge(1, &one),
            settling.acknowledge(3, &three),
        );
        for told in [all.0, all.1, all.2] {
            assert!(told.unwrap_or(false));
        }
        assert!(!three.usable() && one.usable(), "one frame up to the last");
        let table = settling.table();
        assert!(table.states.is_empty() && !table.writing);
    }
}
