//! The rules of the protocol that can be taken away, one at a time, to see what they are there for.

use crate::table::Rows;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The claim's table.
    pub rows: Rows,
    /// A write names epoch and attempt, and changes nothing when they are not the task's.
    pub fence: bool,
    /// What a handler writes through its transaction shares the commit of its SUCCESS.
    pub one_commit: bool,
    /// A write that is sent again recognises what it wrote only while nobody else has claimed the job.
    pub repeats_ask_the_epoch: bool,
    /// A run whose write changed nothing ends.
    pub fenced_runs_end: bool,
    /// A message that was superseded sends its successor again, before it is acknowledged.
    pub superseded_sends: bool,
    /// An older message of a job that was given up parks it again.
    pub parks_again: bool,
    /// A message whose job is busy is replaced by a copy.
    pub busy_waits: bool,
    /// A copy is confirmed before what it replaces is acknowledged.
    pub confirms_first: bool,
    /// A process registers a job before it claims it, and a second delivery waits for the first one's answer.
    pub registers_first: bool,
    /// A heartbeat releases what broke off.
    pub releases_orphans: bool,
    /// A process that knows that its lock is lost starts no task.
    pub starts_present: bool,
    /// A claim that is answered in a later session of the lock than it was asked in is handed back.
    pub claims_know_their_session: bool,
    /// A heartbeat stops runs that are no longer the process's.
    pub beats_cancel: bool,
    /// A promise's part and no rule: who was paused or cut off, and was told nothing since, may begin a task once more.
    pub paused_are_excused: bool,
    /// A copy carries the broker's flag on.
    pub marks_redelivered: bool,
    /// The reconciler looks for the mark.
    pub looks_for_the_mark: bool,
    /// What was given up before the broker lost its disk is parked again under a new generation.
    pub parks_anew: bool,
    /// The mark is left on the connection on which it was missed.
    pub marks_where_it_asked: bool,
}

impl Rules {
    /// As it is.
    pub const ALL: Rules = Rules {
        rows: Rows::ALL,
        fence: true,
        one_commit: true,
        repeats_ask_the_epoch: true,
        fenced_runs_end: true,
        superseded_sends: true,
        parks_again: true,
        busy_waits: true,
        confirms_first: true,
        registers_first: true,
        releases_orphans: true,
        starts_present: true,
        claims_know_their_session: true,
        beats_cancel: true,
        paused_are_excused: true,
        marks_redelivered: true,
        looks_for_the_mark: true,
        parks_anew: true,
        marks_where_it_asked: true,
    };
}
