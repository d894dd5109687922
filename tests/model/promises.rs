//! What must always hold: the first six promises of the crate documentation, as the checker sees them.

use stateright::Property;

use crate::{
    protocol::Protocol,
    table::{Doing, Status},
    words::{Why, World},
};

// Bits of `World::broken`: what is seen at a step and not in a state.
pub const ACKNOWLEDGED: u8 = 1;
pub const SUCCESS_ONCE: u8 = 1 << 1;
pub const IN_ORDER: u8 = 1 << 2;
pub const FENCED_OUT: u8 = 1 << 3;

pub const ONE: &str = "1: an acknowledgement has a reason that stands";
pub const TWO: &str = "2: SUCCESS is never undone, never committed twice, and never done again by one from whom nobody took the job";
pub const THREE: &str = "3: a task starts only when every task before it is SUCCESS";
pub const FOUR: &str = "4: what a handler writes is there exactly when its task is SUCCESS, once";
pub const FIVE: &str = "5: a fenced worker changes nothing, and no epoch has two runs";
pub const SIX: &str = "6: the job can end, and everything come to rest, by normal steps alone";

pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONE, |_, world: &World| world.broken & ACKNOWLEDGED == 0),
        Property::always(TWO, |_, world: &World| world.broken & SUCCESS_ONCE == 0),
        Property::always(THREE, |_, world: &World| {
            world.broken & IN_ORDER == 0 && tasks_are_in_order(world)
        }),
        Property::always(FOUR, |_, world: &World| effects_are_those_of_success(world)),
        Property::always(FIVE, |_, world: &World| {
            world.broken & FENCED_OUT == 0 && epochs_have_one_run(world)
        }),
        Property::always(SIX, |protocol: &Protocol, world: &World| {
            protocol.can_end(world)
        }),
    ]
}

/// At the moment of an acknowledgement.
pub fn has_reason(world: &World, why: Why, generation: u8) -> bool {
    match (why, world.job) {
        (Why::Over, Some(job)) => matches!(job.status, Status::Success | Status::Cancelled),
        (Why::Stale, Some(job)) => generation < job.generation,
        // The copy is confirmed: there is no such stage before.
        (Why::Replaced, Some(_)) => true,
        // It was said at the claim, and this process ran the job then.
        (Why::OneTooMany, Some(_)) => true,
        (Why::RuleTakenAway, _) | (_, None) => false,
    }
}

fn tasks_are_in_order(world: &World) -> bool {
    let Some(job) = world.job else { return true };
    let behind = job
        .tasks
        .iter()
        .skip_while(|task| task.status == Doing::Success);
    behind.skip(1).all(|task| task.status == Doing::Pending)
}

fn effects_are_those_of_success(world: &World) -> bool {
    let Some(job) = world.job else { return true };
    let expected = job
        .tasks
        .map(|task| u8::from(task.status == Doing::Success));
    world.effects == expected
}

fn epochs_have_one_run(world: &World) -> bool {
    let mut seen = 0u64;
    world.hands().filter_map(|hand| hand.run()).all(|run| {
        let new = seen >> run.epoch & 1 == 0;
        seen |= 1 << run.epoch;
        new
    })
}
