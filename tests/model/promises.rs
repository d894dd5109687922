//! What must always hold: the first six promises of the crate documentation, as the checker sees them.

use stateright::Property;

use crate::{
    protocol::Protocol,
    table::{Doing, Job, Status},
    words::{Stage, Why, World},
};

// Bits of `World::broken`: what is seen at a step and not in a state.
pub const ACKNOWLEDGED: u8 = 1;
pub const SUCCESS_ONCE: u8 = 1 << 1;
pub const IN_ORDER: u8 = 1 << 2;
pub const FENCED_OUT: u8 = 1 << 3;

pub const ONE: &str = "1: an acknowledgement has a reason that stands";
pub const TWO: &str =
    "2: SUCCESS is never undone or written again, and nobody begins such a task who could know it";
pub const THREE: &str = "3: a task starts only when every task before it is SUCCESS";
pub const FOUR: &str = "4: what a handler writes is there exactly when its task is SUCCESS, once";
pub const FIVE: &str = "5: a fenced worker changes nothing, and no epoch has two runs";
pub const SIX: &str =
    "6: the job can end, and everything come to rest where people see it, by normal steps alone";

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

/// At the moment of an acknowledgement, when the delivery is in nobody's hands any more.
pub fn has_reason(world: &World, why: Why, generation: u8) -> bool {
    let Some(job) = world.job else { return false };
    match why {
        Why::Over => is_done(&job),
        Why::Stale => generation < job.generation,
        Why::Replaced | Why::OneTooMany => is_done(&job) || goes_on(world, generation),
        Why::RuleTakenAway => false,
    }
}

fn is_done(job: &Job) -> bool {
    matches!(job.status, Status::Success | Status::Cancelled)
}

/// The copy that replaced the delivery, or the other delivery that the run has: it, or what came of it, is somewhere. That is
/// never of an older generation.
fn goes_on(world: &World, generation: u8) -> bool {
    let copies = |stage: &Stage| match stage {
        Stage::Publishing(copy) => copy.generation,
        _ => 0,
    };
    let mut messages = world.messages.iter().map(|message| message.generation);
    let alive = world.hands().filter(|hand| hand.alive);
    let mut deliveries = alive.map(|hand| hand.generation.max(copies(&hand.stage)));
    messages.any(|its| its >= generation) || deliveries.any(|its| its >= generation)
}

/// At every step: whether a task that was SUCCESS is not any more, or was written once more.
pub fn success_is_touched(before: &Option<Job>, after: &Option<Job>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return before.is_some();
    };
    let touched = |(before, after)| before != after;
    let done = before.tasks.iter().zip(&after.tasks);
    done.filter(|(before, _)| before.status == Doing::Success)
        .any(touched)
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
