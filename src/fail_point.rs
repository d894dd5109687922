//! Where a worker may die: every boundary between two things that it does, named, so that tests can kill it there.
//!
//! A process that is started with `CLIQUET_FAIL_POINT=after-fail` (or `after-fail:2`, at its second passage) ends itself with
//! SIGKILL at that very line: a real kill, without a race. With `CLIQUET_FAIL_POINT_TRACE=FILE` every passage is a line in
//! the file, so that a test knows which points a scenario passes, and how often.
//!
//! All of it, the names too, exists only where `debug_assertions` are on; in a release build `cut!` is nothing.

/// Dies here, if the process was told to; nothing at all in a release build.
macro_rules! cut {
    ($point:ident) => {
        #[cfg(debug_assertions)]
        $crate::fail_point::FailPoint::$point.pass();
    };
    ($point:ident if $condition:expr) => {
        #[cfg(debug_assertions)]
        if $condition {
            $crate::fail_point::FailPoint::$point.pass();
        }
    };
}
pub(crate) use cut;

#[cfg(debug_assertions)]
macro_rules! fail_points {
    ($($name:literal $point:ident $doc:literal)+) => {
        /// One boundary.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FailPoint {
            $(#[doc = $doc] $point,)+
        }

        impl FailPoint {
            /// All of them, in the order of a delivery's way.
            pub const ALL: &[FailPoint] = &[$(FailPoint::$point),+];

            /// As the environment names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(FailPoint::$point => $name,)+
                }
            }
        }
    };
}

#[cfg(debug_assertions)]
fail_points! {
    "decoded" Decoded "A delivery was read, and nobody was asked about it."
    "registered" Registered "Its job is registered in this process; the ledger was not asked."
    "before-admission" BeforeAdmission "A job that seems new is about to be written."
    "after-admission" AfterAdmission "It is committed; nobody knows of it here."
    "before-claim" BeforeClaim "The ledger is about to be asked whose the job is."
    "after-claim" AfterClaim "The answer is committed; nobody knows of it here."
    "begun" Begun "The run is registered."
    "adopted" Adopted "A run that had lost its delivery has another."
    "before-handler" BeforeHandler "The handler is about to be called."
    "after-handler" AfterHandler "It has ended, well or not; its outcome is known here alone."
    "before-advance" BeforeAdvance "A SUCCESS is about to be written, in a group."
    "after-advance" AfterAdvance "It is committed; nobody knows of it here."
    "before-commit" BeforeCommit "A SUCCESS is about to be committed with what the handler wrote."
    "after-commit" AfterCommit "Both are committed; nobody knows of it here."
    "before-fail" BeforeFail "A failure is about to be written."
    "after-fail" AfterFail "It is committed; nobody knows of it here."
    "before-defer" BeforeDefer "A task of a braked handler is about to be put off."
    "after-defer" AfterDefer "It is committed; nobody knows of it here."
    "before-release" BeforeRelease "A job is about to be handed back in the middle of an attempt."
    "after-release" AfterRelease "It is committed; nobody knows of it here."
    "run-ended" RunEnded "The run is registered no more; its delivery is not settled."
    "settling" Settling "What follows is decided, and nothing of it done."
    "before-publish" BeforePublish "A message is about to be handed to the connection."
    "published" Published "It was handed over; its confirm is not here."
    "confirmed" Confirmed "The broker has it; nothing was done about that."
    "before-sent" BeforeSent "The ledger is about to be told that a copy is confirmed."
    "after-sent" AfterSent "It was told."
    "before-acknowledge" BeforeAcknowledge "An acknowledgement is about to be written."
    "after-acknowledge" AfterAcknowledge "It is written to the connection."
    "before-requeue" BeforeRequeue "A delivery is about to be put back."
    "after-requeue" AfterRequeue "It is put back, as far as this side knows."
    "forgotten" Forgotten "The broker has lost its memory: what was parked is owed again, and the mark is not left."
    "marked" Marked "The mark is left; nothing of what is owed is sent."
    "reconciling" Reconciling "This process alone may reconcile, and what is owed is known."
    "reconciled-one" ReconciledOne "The message of a job that was owed one is confirmed."
    "put-off" PutOff "What was looked after is put off."
    "draining" Draining "The worker was asked to stop: no further task begins."
    "before-goodbye" BeforeGoodbye "The worker leaves, and is about to say so."
    "after-goodbye" AfterGoodbye "It has said so."
}

#[cfg(debug_assertions)]
impl FailPoint {
    /// One passage: writes it down where a test asked for that, and is the last of this process where one asked for that.
    pub(crate) fn pass(self) {
        use std::sync::{LazyLock, atomic::Ordering};

        static WISH: LazyLock<wish::Wish> = LazyLock::new(wish::Wish::of_the_environment);
        let Some(end) = WISH.passed(self) else { return };
        if end.fetch_sub(1, Ordering::Relaxed) == 1 {
            // The kernel ends the process before this call returns.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

#[cfg(debug_assertions)]
mod wish {
    use std::{
        fs::{File, OpenOptions},
        io::Write,
        sync::atomic::AtomicI64,
    };

    use super::FailPoint;

    /// What the environment asks for.
    pub(super) struct Wish {
        /// Where to die, and how many passages of it are left.
        end: Option<(FailPoint, AtomicI64)>,
        trace: Option<File>,
    }

    impl Wish {
        pub(super) fn of_the_environment() -> Self {
            let variable = |name| std::env::var(name).ok();
            Self {
                end: variable("CLIQUET_FAIL_POINT").map(|text| match parse(&text) {
                    Some((point, passage)) => (point, AtomicI64::new(passage)),
                    None => leave(&format!(
                        "CLIQUET_FAIL_POINT={text} names no fail point; expected NAME or NAME:PASSAGE, where NAME is one of {}",
                        FailPoint::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
                    )),
                }),
                trace: variable("CLIQUET_FAIL_POINT_TRACE").map(|path| {
                    let opened = OpenOptions::new().create(true).append(true).open(&path);
                    opened.unwrap_or_else(|error| leave(&format!("CLIQUET_FAIL_POINT_TRACE={path} cannot be written: {error}")))
                }),
            }
        }

        /// Notes a passage. Answers with how many are left, if this is where to die.
        pub(super) fn passed(&self, point: FailPoint) -> Option<&AtomicI64> {
            if let Some(mut trace) = self.trace.as_ref() {
                // In one write, so that lines of two threads do not mingle.
                let _ = trace.write_all(format!("{}\n", point.name()).as_bytes());
            }
            let (end, left) = self.end.as_ref()?;
            (*end == point).then_some(left)
        }
    }

    fn parse(text: &str) -> Option<(FailPoint, i64)> {
        let (name, passage) = text.split_once(':').unwrap_or((text, "1"));
        let point = FailPoint::ALL.iter().find(|point| point.name() == name)?;
        Some((*point, passage.parse().ok().filter(|&passage| passage > 0)?))
    }

    /// A test that is told wrongly must not go on as if nothing was asked.
    fn leave(sentence: &str) -> ! {
        eprintln!("{sentence}");
        std::process::exit(2)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_named_with_its_passage_or_without() {
            assert_eq!(parse("after-fail"), Some((FailPoint::AfterFail, 1)));
            assert_eq!(parse("after-fail:3"), Some((FailPoint::AfterFail, 3)));
            for wrong in ["", "after", "after-fail:", "after-fail:0", "after-fail:x"] {
                assert_eq!(parse(wrong), None, "{wrong:?}");
            }
        }
    }
}
