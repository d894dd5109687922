//! Everything that can happen, and which of it is normal.

use crate::words::{World, Write};

/// What happens between two states: one step, so many more that its process takes at once, and a fault that hits it then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Act {
    pub step: Step,
    pub further: u8,
    pub fault: Option<Step>,
}

impl Act {
    /// Undisturbed.
    pub fn of(step: Step) -> Self {
        Self {
            step,
            further: u8::MAX,
            fault: None,
        }
    }
}

/// One thing that happens. Messages and hands are named by their place in the state's lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    // The broker.
    Deliver {
        message: usize,
        to: usize,
    },
    RungOver {
        message: usize,
    },
    // A worker, with one delivery.
    TakeTurn {
        worker: usize,
        hand: usize,
    },
    Claim {
        worker: usize,
        hand: usize,
        answer_lost: bool,
    },
    Register {
        worker: usize,
        hand: usize,
    },
    Adopt {
        worker: usize,
        hand: usize,
    },
    Start {
        worker: usize,
        hand: usize,
    },
    Write {
        worker: usize,
        hand: usize,
        write: Write,
        answer_lost: bool,
    },
    /// A write whose answer was lost is sent again.
    Repeat {
        worker: usize,
        hand: usize,
    },
    Stop {
        worker: usize,
        hand: usize,
    },
    Publish {
        worker: usize,
        hand: usize,
        confirm_lost: bool,
    },
    GiveBack {
        worker: usize,
        hand: usize,
    },
    Acknowledge {
        worker: usize,
        hand: usize,
    },
    ReleaseOrphan {
        worker: usize,
        hand: usize,
    },
    // A worker as a whole.
    Beat {
        worker: usize,
    },
    Leave {
        worker: usize,
    },
    WriteSent,
    Reconcile,
    /// The mark is missing: what was given up before the broker lost its disk is owed again; `young`, what was since then, too.
    Forget {
        young: bool,
    },
    LeaveMark,
    // What is left of a crashed one.
    LockFalls,
    FallsSilent,
    // Faults.
    Crash {
        worker: usize,
    },
    Disconnect {
        worker: usize,
    },
    LoseLock {
        worker: usize,
    },
    MissBeats {
        worker: usize,
    },
    AskToStop {
        worker: usize,
    },
    BreakOff {
        worker: usize,
        hand: usize,
    },
    Duplicate {
        message: usize,
    },
    DeadLetter {
        message: usize,
    },
    Wipe,
    Retry,
    Move {
        message: usize,
    },
    Cancel,
    /// Its message follows, unless the operator's process ends between the two.
    Skip {
        sent: bool,
    },
}

/// How many kinds of steps there are.
pub const KINDS: u32 = 49;

impl Step {
    /// Steps of one kind have one number, below [`KINDS`].
    pub fn number(self) -> u32 {
        match self {
            Step::Deliver { .. } => 0,
            Step::RungOver { .. } => 1,
            Step::TakeTurn { .. } => 2,
            Step::Claim {
                answer_lost: false, ..
            } => 3,
            Step::Claim {
                answer_lost: true, ..
            } => 4,
            Step::Register { .. } => 5,
            Step::Adopt { .. } => 6,
            Step::Start { .. } => 7,
            Step::Write {
                write, answer_lost, ..
            } => {
                8 + 2 * match write {
                    Write::Advance => 0,
                    Write::HandBack { stops: true } => 1,
                    Write::HandBack { stops: false } => 2,
                    Write::Retry => 3,
                    Write::GiveUp => 4,
                    Write::Release => 5,
                    Write::Defer => 18,
                } + u32::from(answer_lost)
            }
            Step::Stop { .. } => 20,
            Step::Publish {
                confirm_lost: false,
                ..
            } => 21,
            Step::Publish {
                confirm_lost: true, ..
            } => 22,
            Step::GiveBack { .. } => 23,
            Step::Acknowledge { .. } => 24,
            Step::ReleaseOrphan { .. } => 25,
            Step::Beat { .. } => 26,
            Step::Leave { .. } => 27,
            Step::WriteSent => 28,
            Step::Reconcile => 29,
            Step::LockFalls => 30,
            Step::FallsSilent => 31,
            Step::Crash { .. } => 32,
            Step::Disconnect { .. } => 33,
            Step::LoseLock { .. } => 34,
            Step::MissBeats { .. } => 35,
            Step::AskToStop { .. } => 36,
            Step::BreakOff { .. } => 37,
            Step::Duplicate { .. } => 38,
            Step::DeadLetter { .. } => 39,
            Step::Wipe => 40,
            Step::Retry => 41,
            Step::Move { .. } => 42,
            Step::Cancel => 43,
            Step::Skip { sent } => 44 + u32::from(sent),
            Step::Repeat { .. } => 46,
            Step::Forget { .. } => 47,
            Step::LeaveMark => 48,
        }
    }

    /// Whose hand it was about, in the world after it.
    pub fn hand(self, after: &World) -> Option<(usize, usize)> {
        match self {
            // It is the last that came.
            Step::Deliver { to, .. } => Some((to, after.workers[to].hands.len().checked_sub(1)?)),
            Step::TakeTurn { worker, hand }
            | Step::Register { worker, hand }
            | Step::Repeat { worker, hand }
            | Step::Claim {
                worker,
                hand,
                answer_lost: false,
            }
            | Step::Write {
                worker,
                hand,
                answer_lost: false,
                ..
            }
            | Step::Publish {
                worker,
                hand,
                confirm_lost: false,
            } => Some((worker, hand)),
            _ => None,
        }
    }

    /// Whether it counts against the faults that may happen.
    pub fn is_fault(self) -> bool {
        match self {
            Step::Claim { answer_lost, .. } => answer_lost,
            // A job that is handed over to a new copy may be so at every task, and one that is put off may be so for ever.
            Step::Write {
                write, answer_lost, ..
            } => answer_lost || matches!(write, Write::HandBack { stops: false } | Write::Defer),
            Step::Publish { confirm_lost, .. } => confirm_lost,
            Step::Deliver { .. }
            | Step::RungOver { .. }
            | Step::TakeTurn { .. }
            | Step::Register { .. }
            | Step::Adopt { .. }
            | Step::Start { .. }
            | Step::Repeat { .. }
            | Step::Stop { .. }
            | Step::Acknowledge { .. }
            | Step::ReleaseOrphan { .. }
            | Step::Beat { .. }
            | Step::Leave { .. }
            | Step::WriteSent
            | Step::Reconcile
            | Step::Forget { .. }
            | Step::LeaveMark
            | Step::LockFalls
            | Step::FallsSilent => false,
            Step::GiveBack { .. }
            | Step::Crash { .. }
            | Step::Disconnect { .. }
            | Step::LoseLock { .. }
            | Step::MissBeats { .. }
            | Step::AskToStop { .. }
            | Step::BreakOff { .. }
            | Step::Duplicate { .. }
            | Step::DeadLetter { .. }
            | Step::Wipe
            | Step::Retry
            | Step::Move { .. }
            | Step::Cancel
            | Step::Skip { .. } => true,
        }
    }
}
