//! Answers that many people look at: each is read once for all of them.
//!
//! Groups of like failures take longest of all, and every browser that shows the overview asks for them again and again. So an
//! answer stands for a second, or for longer where reading it takes long: then all looks together have one part in [`SELDOM`]
//! of the time. What anybody does here ends that, since people look for what came of it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::failure::Problem;

/// Of the time, reading may take one part in so many.
const SELDOM: u32 = 30;
/// For so long an answer stands at least.
const LEAST: Duration = Duration::from_secs(1);

/// The last answer to one question.
pub(super) struct Kept<T>(Mutex<Option<Last<T>>>);

struct Last<T> {
    answer: Arc<T>,
    until: Instant,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// The last answer while it stands; otherwise `read` is awaited, and whoever asks meanwhile waits for the same.
    pub(super) async fn or_read(
        &self,
        read: impl Future<Output = Result<T, Problem>>,
    ) -> Result<Arc<T>, Problem> {
        let mut last = self.0.lock().await;
        let began = Instant::now();
        if let Some(last) = last.as_ref().filter(|last| last.until > began) {
            return Ok(last.answer.clone());
        }
        let answer = Arc::new(read.await?);
        let pause = LEAST.max(began.elapsed() * SELDOM);
        *last = Some(Last {
            answer: answer.clone(),
            until: Instant::now() + pause,
        });
        Ok(answer)
    }

    /// The next to ask is given a new answer.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_ask_are_given_what_was_read_once_until_somebody_acts() {
        let kept = Kept::<u32>::default();
        let answer = |answer| async move { Ok::<u32, Problem>(answer) };
        assert_eq!(*kept.or_read(answer(1)).await.unwrap(), 1);
        assert_eq!(*kept.or_read(answer(2)).await.unwrap(), 1);
        kept.forget().await;
        assert_eq!(*kept.or_read(answer(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn an_answer_that_failed_does_not_stand() {
        let kept = Kept::<u32>::default();
        let away = async { Err(Problem::away("Postgres is away")) };
        assert!(kept.or_read(away).await.is_err());
        assert_eq!(*kept.or_read(async { Ok(1) }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn those_who_ask_together_wait_for_one_reading() {
        let kept = Kept::<u32>::default();
        let read = |answer| async move {
            tokio::task::yield_now().await;
            Ok::<u32, Problem>(answer)
        };
        let (first, second) = tokio::join!(kept.or_read(read(1)), kept.or_read(read(2)));
        assert_eq!((*first.unwrap(), *second.unwrap()), (1, 1));
    }
}
