//! What is watched live. However many browsers watch a job, it is read once each quarter of a second, and only while somebody
//! watches; each subject has one poller, which ends with its last watcher.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{http::StatusCode, response::sse::Event};
use futures::{Stream, stream};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::ToSchema;

use super::failure::Problem;
use crate::{
    job::{JobId, TaskStatus},
    ledger::{JobProgress, LedgerError, Reads},
    pace::Pace,
};

/// The most streams at a time.
const MOST_STREAMS: usize = 200;
/// The least pause between two looks at a job.
const A_JOB: Duration = Duration::from_millis(250);
/// The least pause between two looks at the whole.
const THE_WHOLE: Duration = Duration::from_secs(1);
/// Where looking takes long, it may take about one part in so many of the time.
const SELDOM: u32 = 10;
/// The least pause after a look that failed.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);
/// How long the first look may take before whoever asks is told.
const FIRST: Duration = Duration::from_secs(8);
/// A stream ends after this; a browser asks again by itself, and shows once more that it may.
const LONGEST: Duration = Duration::from_secs(3600);
/// The statuses of the tasks of a job with more are left out.
const MOST_TASKS: usize = 1_000;

/// What can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Job(JobId),
    Whole,
}

/// What a look has found.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Nothing,
    /// Data for an event, and whether nothing more will come by itself.
    Data(Arc<str>, bool),
    /// The ledger does not know it.
    Unknown,
    Trouble(Arc<str>),
}

/// A job on its way, as `event: progress` tells it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Progress {
    /// The job, and the task that it stands at.
    #[serde(flatten)]
    job: JobProgress,
    /// The status of each task in their order; null for a job with more than 1,000.
    tasks: Option<Vec<TaskStatus>>,
}

impl Progress {
    /// A task begins only when those before it are done, so the one that the job stands at tells of all.
    fn of(job: JobProgress) -> Self {
        let total = usize::try_from(job.job.total).unwrap_or_default();
        let tasks = (total <= MOST_TASKS).then(|| {
            let mut tasks = vec![TaskStatus::Success; total];
            if let Some(at) = &job.task {
                let begun = usize::try_from(at.position).unwrap_or_default();
                for (place, task) in tasks.iter_mut().enumerate() {
                    match place + 1 {
                        place if place == begun => *task = at.status,
                        place if place > begun => *task = TaskStatus::Pending,
                        _ => {}
                    }
                }
            }
            tasks
        });
        Self { job, tasks }
    }
}

/// Everything that is watched now.
#[derive(Clone)]
pub(super) struct Live(Arc<Inner>);

struct Inner {
    reads: Reads,
    /// Shared with all other questions to the ledger.
    readers: Arc<Semaphore>,
    places: Arc<Semaphore>,
    watched: Mutex<HashMap<Subject, Arc<watch::Sender<Found>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Live {
    pub(super) fn new(
        reads: Reads,
        readers: Arc<Semaphore>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            reads,
            readers,
            places: Arc::new(Semaphore::new(MOST_STREAMS)),
            watched: Mutex::default(),
            tasks,
            stop,
        }))
    }

    /// Events of one job: one now, one at each change, and the last when it is over.
    pub(super) async fn job(
        &self,
        id: JobId,
    ) -> Result<impl Stream<Item = Result<Event, Infallible>> + use<>, Problem> {
        self.watch(Subject::Job(id)).await
    }

    /// Events of the whole: one a second.
    pub(super) async fn whole(
        &self,
    ) -> Result<impl Stream<Item = Result<Event, Infallible>> + use<>, Problem> {
        self.watch(Subject::Whole).await
    }

    async fn watch(
        &self,
        subject: Subject,
    ) -> Result<impl Stream<Item = Result<Event, Infallible>> + use<>, Problem> {
        let Ok(place) = self.0.places.clone().try_acquire_owned() else {
            return Err(Problem::away(format!(
                "{MOST_STREAMS} streams of events are open already; close some, or ask again later"
            )));
        };
        let mut found = self.0.subscribe(subject);
        let first = timeout(FIRST, found.wait_for(|found| *found != Found::Nothing));
        match first.await.map(|first| first.map(|found| found.clone())) {
            Ok(Ok(Found::Unknown)) => {
                return Err(Problem::unknown(
                    "the ledger knows no such job; a job is known from when a worker first takes its message",
                ));
            }
            Ok(Ok(Found::Trouble(sentence))) => return Err(Problem::away(&*sentence)),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => return Err(Problem::away("Postgres does not answer")),
        }
        // What it found first is told, too.
        found.mark_changed();
        let watcher = Watcher {
            subject,
            found,
            ends: Instant::now() + LONGEST,
            stop: self.0.stop.clone(),
            _place: place,
        };
        Ok(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let (event, more) = watcher.next().await?;
            Some((Ok(event), more.then_some(watcher)))
        }))
    }
}

fn stopping() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this server is stopping")
}

/// One stream.
struct Watcher {
    subject: Subject,
    found: watch::Receiver<Found>,
    ends: Instant,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next event, and whether more may come; nothing when the stream is over.
    async fn next(&mut self) -> Option<(Event, bool)> {
        loop {
            tokio::select! {
                changed = self.found.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.ends) => return None,
            }
            let found = self.found.borrow_and_update().clone();
            return match found {
                Found::Nothing => continue,
                Found::Unknown => None,
                Found::Data(data, last) => {
                    let name = match self.subject {
                        Subject::Job(_) => "progress",
                        Subject::Whole => "overview",
                    };
                    Some((Event::default().event(name).data(&*data), !last))
                }
                Found::Trouble(sentence) => {
                    let data = json!({ "error": &*sentence }).to_string();
                    Some((Event::default().event("unavailable").data(data), true))
                }
            };
        }
    }
}

impl Inner {
    fn watched(&self) -> MutexGuard<'_, HashMap<Subject, Arc<watch::Sender<Found>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(self: &Arc<Self>, subject: Subject) -> watch::Receiver<Found> {
        let mut watched = self.watched();
        if let Some(told) = watched.get(&subject) {
            return told.subscribe();
        }
        let (told, found) = watch::channel(Found::Nothing);
        let told = Arc::new(told);
        watched.insert(subject, told.clone());
        self.tasks.spawn(self.clone().poll(subject, told));
        found
    }

    /// Looks at the subject for as long as somebody watches. Nothing cuts a look short.
    async fn poll(self: Arc<Self>, subject: Subject, told: Arc<watch::Sender<Found>>) {
        let mut pace = Pace::new(
            SELDOM,
            match subject {
                Subject::Job(_) => A_JOB,
                Subject::Whole => THE_WHOLE,
            },
        );
        loop {
            let (found, took) = self.look(subject).await;
            let pause = match &found {
                // It may only have waited, or have been too much for Postgres, which then has as much rest.
                Found::Trouble(_) => AFTER_TROUBLE.max(took),
                _ => pace.after(took),
            };
            let over = matches!(found, Found::Unknown | Found::Data(_, true));
            told.send_if_modified(|last| {
                let changed = *last != found;
                *last = found;
                changed
            });
            {
                let mut watched = self.watched();
                // Under the lock: whoever subscribes finds this poller, or makes another.
                if over || self.stop.is_cancelled() || told.receiver_count() == 0 {
                    watched.remove(&subject);
                    return;
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = told.closed() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// What is found, and how long that took. With the wait for its turn: where many are watched, each is looked at more
    /// seldom, and others have their turn.
    async fn look(&self, subject: Subject) -> (Found, Duration) {
        let asked = Instant::now();
        let Ok(_turn) = self.readers.acquire().await else {
            return (Found::Nothing, Duration::ZERO);
        };
        let found = self.ask(subject).await;
        let found = found.unwrap_or_else(|error| Found::Trouble(error.to_string().into()));
        (found, asked.elapsed())
    }

    async fn ask(&self, subject: Subject) -> Result<Found, LedgerError> {
        match subject {
            Subject::Job(id) => Ok(match self.reads.progress(id).await? {
                None => Found::Unknown,
                Some(job) => {
                    let over = job.job.is_over();
                    written(&Progress::of(job), over)
                }
            }),
            Subject::Whole => Ok(written(&self.reads.overview(None).await?, false)),
        }
    }
}

fn written(value: &impl Serialize, over: bool) -> Found {
    match serde_json::to_string(value) {
        Ok(text) => Found::Data(text.into(), over),
        Err(error) => Found::Trouble(error.to_string().into()),
    }
}
