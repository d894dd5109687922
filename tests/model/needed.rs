//! Each rule that is there for safety is needed: without it the checker finds a counter-example, and prints it (`--nocapture`).
//!
//! The writer of this model is the one that is built: it repeats a write until it knows what became of it. Row 8 is not there
//! for a weaker one: it is what the repeated claim meets.

use crate::{
    checks::breaks,
    promises::{FIVE, FOUR, ONE, SIX, THREE, TWO},
    protocol::Protocol,
    rules::Rules,
    steps::Step,
    table::Rows,
};

fn without(faults: u8, rules: Rules) -> Protocol {
    Protocol::new(2, faults, rules)
}

fn without_row(faults: u8, rows: Rows) -> Protocol {
    without(faults, Rules { rows, ..Rules::ALL })
}

#[test]
fn without_the_fence_a_worker_that_was_taken_for_dead_writes_all_the_same() {
    let rules = Rules {
        fence: false,
        ..Rules::ALL
    };
    let story = breaks(FIVE, without(1, rules));
    assert!(story.contains("held by worker B"), "{story}");
    let story = breaks(TWO, without(1, rules));
    assert!(story.contains("begins task 2"), "{story}");
}

#[test]
fn without_one_commit_for_both_a_handlers_writes_are_there_twice() {
    let rules = Rules {
        one_commit: false,
        ..Rules::ALL
    };
    let story = breaks(FOUR, without(1, rules));
    assert!(story.contains("sends that write again"), "{story}");
}

#[test]
fn without_an_end_of_fenced_runs_a_task_begins_before_the_one_before_it_is_success() {
    let rules = Rules {
        fenced_runs_end: false,
        ..Rules::ALL
    };
    let story = breaks(THREE, without(1, rules));
    assert!(story.contains("nothing is changed"), "{story}");
}

#[test]
fn without_row_8_a_claim_whose_answer_was_lost_strands_its_job() {
    let rows = Rows {
        regained: false,
        ..Rows::ALL
    };
    let story = breaks(SIX, without_row(1, rows));
    assert!(
        story.contains("the claim of worker A is committed, its answer is lost"),
        "{story}"
    );
}

#[test]
fn without_sending_the_successor_again_a_crash_between_commit_and_copy_loses_the_job() {
    let rules = Rules {
        superseded_sends: false,
        ..Rules::ALL
    };
    let no_skip = |step: Step| !matches!(step, Step::Skip { .. });
    let story = breaks(SIX, without(1, rules).of_kinds(no_skip));
    assert!(
        story.contains("failed, to be tried again, committed"),
        "{story}"
    );
    // A skip's own copy may get lost as a failure's may.
    let story = breaks(SIX, without(1, rules));
    assert!(
        story.contains("is gone before the job is sent on"),
        "{story}"
    );
    breaks(ONE, without(1, rules));
}

#[test]
fn without_parking_again_a_crash_between_commit_and_copy_hides_the_job_from_people() {
    let rules = Rules {
        parks_again: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(story.contains("failed for good, committed"), "{story}");
}

#[test]
fn without_the_copy_of_a_busy_message_a_killed_workers_job_is_lost() {
    let rules = Rules {
        busy_waits: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(story.contains("is killed"), "{story}");
    breaks(ONE, without(1, rules));
}

#[test]
fn without_the_confirm_before_the_acknowledgement_a_crash_loses_the_job() {
    let rules = Rules {
        confirms_first: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(story.contains("is killed"), "{story}");
    breaks(ONE, without(0, rules));
}

#[test]
fn without_registering_before_the_claim_one_process_does_a_task_again_that_is_success() {
    let rules = Rules {
        registers_first: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(1, rules));
    assert!(story.contains("Claimed once more"), "{story}");
}

#[test]
fn without_the_epoch_in_adoption_an_older_run_takes_the_delivery_that_the_job_needs() {
    let rows = Rows {
        epoch_in_mine: false,
        ..Rows::ALL
    };
    let story = breaks(SIX, without_row(2, rows));
    assert!(story.contains("this one is one too many"), "{story}");
}

#[test]
fn without_the_heartbeats_release_a_run_that_broke_off_strands_its_job() {
    let rules = Rules {
        releases_orphans: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(story.contains("breaks off"), "{story}");
}

/// An old claim was still under way when its delivery was lost; meanwhile the job was given up and parked. The claim begins it
/// anew, its worker dies, and only the dead queue has a message. The job's holder is silent, so the reconciler sends it again.
#[test]
fn without_the_generation_check_only_the_reconciler_finds_a_parked_job_that_an_old_claim_woke() {
    let rows = Rows {
        generations: false,
        ..Rows::ALL
    };
    let story = breaks(SIX, without_row(2, rows));
    assert!(story.contains("failed for good"), "{story}");
}

/// The excuse is needed, too: nobody can stop what a paused worker begins before it is told.
#[test]
fn without_its_excuse_promise_2_is_broken_by_a_worker_that_was_paused_beyond_its_heartbeat() {
    let rules = Rules {
        paused_are_excused: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(1, rules));
    assert!(
        story.contains("stale, while it goes on") && !story.contains("beats"),
        "{story}"
    );
}

#[test]
fn without_presence_a_worker_that_lost_its_lock_does_a_task_again_that_another_did_meanwhile() {
    let rules = Rules {
        starts_present: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(2, rules));
    assert!(story.contains("loses its lock's session"), "{story}");
}

#[test]
fn without_the_heartbeats_word_a_worker_that_has_its_lock_again_does_a_task_again() {
    let rules = Rules {
        beats_cancel: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(1, rules));
    assert!(story.contains("beats"), "{story}");
}

#[test]
fn without_its_session_a_claim_that_is_answered_late_does_a_task_again() {
    let rules = Rules {
        claims_know_their_session: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(2, rules));
    assert!(story.contains("loses its lock's session"), "{story}");
}

#[test]
fn without_the_epoch_in_a_repeated_write_a_worker_goes_on_with_a_job_that_is_anothers() {
    let rules = Rules {
        repeats_ask_the_epoch: false,
        ..Rules::ALL
    };
    let story = breaks(TWO, without(2, rules));
    assert!(story.contains("sends that write again"), "{story}");
}

#[test]
fn without_the_mark_a_broker_that_lost_its_disk_hides_what_was_given_up_from_people() {
    let rules = Rules {
        looks_for_the_mark: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(story.contains("the broker loses all its data"), "{story}");
}

#[test]
fn without_a_new_generation_a_note_that_comes_late_hides_what_was_given_up_from_people() {
    let rules = Rules {
        parks_anew: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(1, rules));
    assert!(
        story.contains("it is noted that the copy is confirmed"),
        "{story}"
    );
}

#[test]
fn without_marking_where_it_asked_a_second_loss_hides_what_was_given_up_from_people() {
    let rules = Rules {
        marks_where_it_asked: false,
        ..Rules::ALL
    };
    let story = breaks(SIX, without(2, rules));
    assert!(story.contains("leaves the mark"), "{story}");
}
