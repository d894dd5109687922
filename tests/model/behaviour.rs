//! Rules that are there for how a worker behaves and not for safety: without them every promise still holds.

use crate::{checks::holds, protocol::Protocol, rules::Rules, table::Rows};

fn without(rules: Rules) {
    holds(&Protocol::new(2, 2, rules));
}

fn without_row(rows: Rows) {
    without(Rules { rows, ..Rules::ALL });
}

/// It is there so that a stale copy does not run a job early, and use up its attempts. One thing more rests on it, which the
/// reconciler mends: `without_the_generation_check_only_the_reconciler_finds_a_parked_job_that_an_old_claim_woke`.
#[test]
fn the_generation_check_is_for_behaviour() {
    holds(&without_generations(1));
}

/// Two million states: `cargo test --release --test model generation -- --ignored --nocapture`.
#[test]
#[ignore = "takes a minute"]
fn the_generation_check_is_for_behaviour_whatever_two_faults_happen() {
    holds(&without_generations(2));
}

fn without_generations(faults: u8) -> Protocol {
    let rows = Rows {
        generations: false,
        ..Rows::ALL
    };
    Protocol::new(2, faults, Rules { rows, ..Rules::ALL }).with_the_reconcilers_help()
}

/// The lock is there so that a killed worker's job goes on at once, and not after its patience.
#[test]
fn the_second_witness_is_for_behaviour() {
    without_row(Rows {
        two_witnesses: false,
        ..Rows::ALL
    });
}

/// It is there so that a killed worker's job goes on at once although its message found it busy at first.
#[test]
fn the_mark_of_a_busy_copy_is_for_behaviour() {
    without(Rules {
        marks_redelivered: false,
        ..Rules::ALL
    });
}

/// It is there so that a copy is not sent twice.
#[test]
fn that_a_copy_is_known_to_be_sent_is_for_behaviour() {
    without_row(Rows {
        sent: false,
        ..Rows::ALL
    });
}

/// It is there so that jobs that a dying process had merely received are not parked.
#[test]
fn that_suspects_run_alone_is_for_behaviour() {
    without_row(Rows {
        suspects: false,
        ..Rows::ALL
    });
}
