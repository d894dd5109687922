//! The protocol as it is: everything that can happen is tried, and every promise holds.

use crate::{checks::holds, protocol::Protocol, rules::Rules, steps::Step};

/// All answers but Conflict and Foreign: there is one content in the model, and nobody forges a generation.
const ANSWERS: u32 = 12;

#[test]
fn two_tasks_and_any_two_faults_break_no_promise() {
    let protocol = Protocol::new(2, 2, Rules::ALL);
    holds(&protocol);
    // What never happens in it holds for nothing.
    assert_eq!(protocol.answers(), ANSWERS);
    assert_eq!(protocol.never_taken(), [0; 0]);
}

#[test]
fn three_tasks_and_any_two_faults_break_no_promise() {
    holds(&Protocol::new(3, 2, Rules::ALL));
}

#[test]
fn three_lost_answers_or_crashes_break_no_promise() {
    let kinds = |step: Step| {
        matches!(
            step,
            Step::Claim { .. } | Step::Write { .. } | Step::Publish { .. } | Step::Crash { .. }
        )
    };
    holds(&Protocol::new(2, 3, Rules::ALL).of_kinds(kinds));
}

#[test]
fn three_acts_of_operators_or_crashes_break_no_promise() {
    let kinds = |step: Step| {
        matches!(
            step,
            Step::Retry
                | Step::Move { .. }
                | Step::Cancel
                | Step::Skip { .. }
                | Step::AskToStop { .. }
                | Step::Crash { .. }
        )
    };
    holds(&Protocol::new(2, 3, Rules::ALL).of_kinds(kinds));
}

/// Takes minutes and gigabytes: `cargo test --release --test model any_three -- --ignored --nocapture`.
#[test]
#[ignore = "tens of millions of states"]
fn any_three_faults_break_no_promise() {
    holds(&Protocol::new(2, 3, Rules::ALL));
}

/// That a process takes some steps at once is a claim about the model, not about the protocol: here it does not.
#[test]
fn one_fault_between_any_two_steps_breaks_no_promise() {
    let protocol = Protocol::new(2, 1, Rules::ALL).step_by_step();
    holds(&protocol);
    assert_eq!(protocol.answers(), ANSWERS);
}

/// Promise 2 rests on what a process knows of its lock when a task begins: here each step that leads there may take its time.
#[test]
fn two_faults_before_a_task_begins_break_no_promise() {
    holds(&Protocol::new(2, 2, Rules::ALL).hesitating());
}
