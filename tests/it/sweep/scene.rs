//! What a worker goes through while it is killed, and what must be true of the job in the end.

use cliquet::fail_point::FailPoint::{self, *};

/// What a worker goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// A job with a transaction, a plain handler, a failure that is retried over a rung, and an end.
    Ordinary,
    /// A job that fails for good.
    GivenUp,
    /// A message that is no job.
    Bad,
    /// The worker is asked to stop, and its running task is cut short.
    CutShort,
    /// The worker is asked to stop, and its running task ends.
    Drained,
    /// Each task runs under a delivery of its own.
    HandedOver,
    /// Another worker runs the job.
    Busy,
    /// This worker runs the job under another delivery.
    OneTooMany,
    /// The job's delivery is lost and comes again.
    Adopted,
    /// The job was enqueued in SQL.
    Enqueued,
    /// A worker has died in the job already.
    Suspected,
    /// The job's second handler is braked, until its service is back.
    Braked,
    /// The broker does not remember what was parked.
    Forgotten,
}

/// What a delivery passes that is replaced by a copy.
const COPIED: [FailPoint; 7] = [
    BeforePublish,
    Published,
    Confirmed,
    BeforeSent,
    AfterSent,
    BeforeAcknowledge,
    AfterAcknowledge,
];

/// What must be true of the job in the end, whoever was killed, and whenever.
pub(super) struct Told {
    pub(super) scenario: &'static str,
    pub(super) status: &'static str,
    /// How often each task's handler is called if nobody is killed.
    pub(super) calls: &'static [usize],
    pub(super) attempts: &'static [i32],
    /// The positions that write in a transaction.
    pub(super) effects: &'static [i32],
    pub(super) crashes: i64,
    pub(super) failures: i64,
}

impl Scene {
    pub(super) const ALL: [Self; 13] = [
        Self::Ordinary,
        Self::GivenUp,
        Self::Bad,
        Self::CutShort,
        Self::Drained,
        Self::HandedOver,
        Self::Busy,
        Self::OneTooMany,
        Self::Adopted,
        Self::Enqueued,
        Self::Suspected,
        Self::Braked,
        Self::Forgotten,
    ];

    pub(super) fn told(self) -> Told {
        let gated = Told {
            scenario: "a:write b:gate:GATE c:write",
            status: "SUCCESS",
            calls: &[1, 1, 1],
            attempts: &[1, 1, 1],
            effects: &[1, 3],
            crashes: 0,
            failures: 0,
        };
        match self {
            Self::Ordinary => Told {
                scenario: "a:write b:ok c:write-fail,write d:ok",
                calls: &[1, 1, 2, 1],
                attempts: &[1, 1, 2, 1],
                failures: 1,
                ..gated
            },
            Self::GivenUp => Told {
                scenario: "a:write b:permanent c:ok",
                status: "FAILED",
                calls: &[1, 1, 0],
                attempts: &[1, 1, 0],
                effects: &[1],
                failures: 1,
                ..gated
            },
            Self::Bad => Told {
                scenario: "",
                calls: &[],
                attempts: &[],
                effects: &[],
                ..gated
            },
            // The attempt that was cut short, and the one that counts.
            Self::CutShort => Told {
                calls: &[1, 2, 1],
                ..gated
            },
            Self::HandedOver | Self::Enqueued => Told {
                scenario: "a:write b:ok c:write",
                ..gated
            },
            // The first worker dies after b's handler.
            Self::Suspected => Told {
                scenario: "a:ok b:write c:ok",
                calls: &[1, 2, 1],
                effects: &[2],
                crashes: 1,
                failures: 1,
                ..gated
            },
            // Probes come on top; each is in the history.
            Self::Braked => Told {
                scenario: "a:write b:needs:GATE c:write",
                ..gated
            },
            // The job was parked by another worker.
            Self::Forgotten => Told {
                scenario: "a:write b:permanent c:ok",
                status: "FAILED",
                calls: &[1, 1, 0],
                attempts: &[1, 1, 0],
                effects: &[1],
                failures: 1,
                ..gated
            },
            Self::Drained | Self::Busy | Self::OneTooMany | Self::Adopted => gated,
        }
    }

    /// The points that the scene is there for; the others are swept in others.
    pub(super) fn swept(self) -> Vec<FailPoint> {
        match self {
            Self::Ordinary => FailPoint::ALL.to_vec(),
            Self::GivenUp => [&[BeforeFail, AfterFail, RunEnded, Settling][..], &COPIED].concat(),
            Self::Bad => vec![
                Settling,
                BeforePublish,
                Published,
                Confirmed,
                BeforeAcknowledge,
                AfterAcknowledge,
            ],
            Self::CutShort => vec![
                AfterHandler,
                BeforeRelease,
                AfterRelease,
                RunEnded,
                Settling,
                BeforeRequeue,
                AfterRequeue,
                BeforeGoodbye,
                AfterGoodbye,
            ],
            Self::Drained => vec![
                Draining,
                AfterHandler,
                BeforeAdvance,
                AfterAdvance,
                RunEnded,
                Settling,
                BeforeRequeue,
                AfterRequeue,
                BeforeGoodbye,
            ],
            Self::HandedOver => [
                &[BeforeClaim, AfterClaim, AfterAdvance, AfterCommit][..],
                &COPIED,
            ]
            .concat(),
            Self::Busy => [
                &[Registered, BeforeClaim, AfterClaim, Settling][..],
                &COPIED,
            ]
            .concat(),
            Self::OneTooMany => vec![Settling, BeforeAcknowledge, AfterAcknowledge],
            Self::Adopted => vec![AfterClaim, Adopted, BeforeAcknowledge],
            Self::Enqueued => vec![
                Reconciling,
                BeforePublish,
                Published,
                Confirmed,
                ReconciledOne,
                BeforeSent,
                AfterSent,
                PutOff,
                BeforeClaim,
                AfterClaim,
            ],
            Self::Suspected => vec![
                BeforeClaim,
                AfterClaim,
                Begun,
                BeforeHandler,
                AfterHandler,
                AfterCommit,
            ],
            Self::Braked => [&[BeforeDefer, AfterDefer, RunEnded, Settling][..], &COPIED].concat(),
            Self::Forgotten => vec![
                FailPoint::Forgotten,
                Marked,
                Reconciling,
                BeforePublish,
                Published,
                Confirmed,
                ReconciledOne,
                BeforeSent,
                AfterSent,
            ],
        }
    }

    /// Whether the scene's worker passes a point as often as in the rehearsal.
    pub(super) fn is_exact(self) -> bool {
        // How often a copy finds its job busy, or braked, depends on the machine; one hand-over is as the other.
        !matches!(self, Self::Busy | Self::HandedOver | Self::Braked)
    }
}
