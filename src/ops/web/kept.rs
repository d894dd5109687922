//! Answers that many people look at: each is read once for all of them.
//!
//! Groups of like failures take longest of all, and every browser that shows the overview asks for them again and again. So an
//! answer stands for a second, or for longer where reading it takes long: then all looks together have one part in [`SELDOM`]
//! of the time, as far as people may be shown what is so old. What anybody does here ends that, since people look for what
//! came of it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::failure::Problem;

/// Of the time, reading may take one part in so many.
const SELDOM: u32 = 30;
/// For so long an answer stands at least.
const LEAST: Duration = Duration::from_secs(1);

/// The last answer to one question.
pub(super) struct Kept<T> {
    last: Mutex<Option<Last<T>>>,
    /// How often it was to be forgotten. Apart from the answer, so that whoever acts waits for no reading.
    forgotten: AtomicU64,
    longest: Duration,
}

struct Last<T> {
    answer: Arc<T>,
    until: Instant,
    /// How often answers had been forgotten when the reading began.
    forgotten: u64,
}

impl<T> Kept<T> {
    /// Each answer stands for so long at most.
    pub(super) fn for_at_most(longest: Duration) -> Self {
        Self {
            last: Mutex::new(None),
            forgotten: AtomicU64::new(0),
            longest: longest.max(LEAST),
        }
    }

    /// The last answer while it stands; otherwise `read` is awaited, and whoever asks meanwhile waits for the same.
    pub(super) async fn or_read(
        &self,
        read: impl Future<Output = Result<T, Problem>>,
    ) -> Result<Arc<T>, Problem> {
        let mut last = self.last.lock().await;
        let (began, forgotten) = (Instant::now(), self.forgotten.load(Ordering::Acquire));
        let stands = |last: &&Last<T>| last.until > began && last.forgotten == forgotten;
        if let Some(last) = last.as_ref().filter(stands) {
            return Ok(last.answer.clone());
        }
        let answer = Arc::new(read.await?);
        *last = Some(Last {
            answer: answer.clone(),
            until: Instant::now() + self.stands(began.elapsed()),
            forgotten,
        });
        Ok(answer)
    }

    /// For how long an answer stands that took so long to read.
    fn stands(&self, took: Duration) -> Duration {
        (took * SELDOM).clamp(LEAST, self.longest)
    }

    /// The next to ask is given an answer that is read from now on.
    pub(super) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_ask_are_given_what_was_read_once_until_somebody_acts() {
        let kept = Kept::<u32>::for_at_most(LEAST);
        let answer = |answer| async move { Ok::<u32, Problem>(answer) };
        assert_eq!(*kept.or_read(answer(1)).await.unwrap(), 1);
        assert_eq!(*kept.or_read(answer(2)).await.unwrap(), 1);
        kept.forget();
        assert_eq!(*kept.or_read(answer(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn an_answer_that_failed_does_not_stand() {
        let kept = Kept::<u32>::for_at_most(LEAST);
        let away = async { Err(Problem::away("Postgres is away")) };
        assert!(kept.or_read(away).await.is_err());
        assert_eq!(*kept.or_read(async { Ok(1) }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn those_who_ask_together_wait_for_one_reading() {
        let kept = Kept::<u32>::for_at_most(LEAST);
        let read = |answer| async move {
            tokio::task::yield_now().await;
            Ok::<u32, Problem>(answer)
        };
        let (first, second) = tokio::join!(kept.or_read(read(1)), kept.or_read(read(2)));
        assert_eq!((*first.unwrap(), *second.unwrap()), (1, 1));
    }

    #[tokio::test]
    async fn what_was_being_read_when_somebody_acted_does_not_stand() {
        let kept = Kept::<u32>::for_at_most(LEAST);
        let read = async {
            kept.forget();
            Ok::<u32, Problem>(1)
        };
        assert_eq!(*kept.or_read(read).await.unwrap(), 1);
        assert_eq!(*kept.or_read(async { Ok(2) }).await.unwrap(), 2);
    }

    #[test]
    fn what_took_long_stands_for_longer_but_not_for_ever() {
        let stands = |longest, took| {
            let kept = Kept::<u32>::for_at_most(Duration::from_secs(longest));
            kept.stands(Duration::from_millis(took)).as_secs_f64()
        };
        assert_eq!(stands(15, 10), 1.0);
        assert_eq!(stands(15, 200), 6.0);
        assert_eq!(stands(15, 5_000), 15.0);
        assert_eq!(stands(1, 5_000), 1.0);
    }
}
