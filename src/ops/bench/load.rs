//! The benchmark's publisher: a backlog as fast as it goes, or jobs at a steady rate, each watched until a reader sees its
//! SUCCESS.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;
use tokio::{sync::oneshot, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Does, STALLED, expect_go_on};
use crate::{
    broker::{Letter, Publisher},
    job::{JobId, JobMessage, TaskSpec},
    ledger::Watcher,
    ops::{failure::Failure, output::note, send::confirmed},
};

/// Messages on their way at the same time.
pub(super) const IN_FLIGHT: usize = 64;
/// The pause between two looks at the jobs that are under way. A latency is too long by at most this and the time of a look.
const WATCHED_EVERY: Duration = Duration::from_micros(150);

/// Makes the jobs of a benchmark, all alike but for their ids.
#[derive(Clone)]
pub(super) struct Jobs(JobMessage);

impl Jobs {
    pub(super) fn new(tasks: u32, payload_bytes: u32, does: Does) -> Result<Self, Failure> {
        let tasks = (1..=tasks).map(|position| TaskSpec {
            handler: does.name().into(),
            label: format!("Task {position}/{tasks}"),
            input: RawValue::NULL.to_owned(),
            max_attempts: None,
            timeout: None,
        });
        let payload = "x".repeat(payload_bytes as usize);
        JobMessage::new(JobId::new(), "cliquet.bench", &payload, tasks.collect())
            .map(Self)
            .map_err(|bad| Failure::usage(format!("{bad}; fewer --tasks or --payload-bytes fit")))
    }

    /// One more job; its id is greater than those before.
    fn next(&self) -> (JobId, Letter) {
        let mut job = self.0.clone();
        job.id = JobId::new();
        (
            job.id,
            Letter::new(job.encode(), &job.id.to_string(), &job.kind),
        )
    }
}

/// A bar for people at a terminal.
pub(super) fn bar(total: u64, what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{{bar:30}} {{human_pos}}/{{human_len}} {what}, {{per_sec}}");
    let style = ProgressStyle::with_template(&template);
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Publishes so many jobs, each confirmed.
pub(super) async fn backlog(
    publisher: &Publisher,
    jobs: &Jobs,
    count: u32,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (bar, began) = (bar(u64::from(count), "jobs published"), Instant::now());
    stream::iter(0..count)
        .map(|_| async {
            expect_go_on(stop)?;
            confirmed(publisher, &jobs.next().1).await?;
            bar.inc(1);
            Ok::<_, Failure>(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    bar.finish_and_clear();
    if count > 0 {
        let seconds = began.elapsed().as_secs_f64();
        note(format_args!("{count} jobs published in {seconds:.1} s"));
    }
    Ok(())
}

/// The jobs that are under way, with the moment at which each was handed to the broker.
type UnderWay = Arc<Mutex<HashMap<JobId, Instant>>>;

fn locked(under_way: &UnderWay) -> std::sync::MutexGuard<'_, HashMap<JobId, Instant>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Publishes at a steady rate, however long each job takes, and answers with the time from handing each job to the broker
/// until a reader of the ledger saw its SUCCESS.
pub(super) async fn paced(
    publisher: &Publisher,
    jobs: &Jobs,
    rate: u32,
    seconds: u32,
    watcher: Watcher,
    stop: &CancellationToken,
) -> Result<Vec<Duration>, Failure> {
    let total = u64::from(rate) * u64::from(seconds);
    let under_way = UnderWay::default();
    let published = Arc::new(AtomicBool::new(false));
    let seen = watch(watcher, under_way.clone(), published.clone())?;

    let bar = bar(total, "jobs at a steady rate");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sends = JoinSet::new();
    let mut sent = Ok(());
    for _ in 0..total {
        ticks.tick().await;
        sent = expect_go_on(stop);
        // Nobody watches any more: it failed, and says why below.
        if sent.is_err() || seen.is_closed_early() {
            break;
        }
        let (id, letter) = jobs.next();
        let (publisher, under_way) = (publisher.clone(), under_way.clone());
        sends.spawn(async move {
            locked(&under_way).insert(id, Instant::now());
            confirmed(&publisher, &letter).await
        });
        bar.inc(1);
        while let Some(ended) = sends.try_join_next() {
            if let Ok(Err(error)) = ended {
                sent = Err(error.into());
            }
        }
        if sent.is_err() {
            break;
        }
    }
    while let Some(ended) = sends.join_next().await {
        if let Ok(Err(error)) = ended {
            sent = Err(error.into());
        }
    }
    published.store(true, Ordering::Release);
    bar.finish_and_clear();
    sent?;
    seen.latencies().await
}

/// What the watching thread will have seen.
struct Seen(oneshot::Receiver<Result<Vec<Duration>, Failure>>);

impl Seen {
    fn is_closed_early(&self) -> bool {
        !self.0.is_empty()
    }

    async fn latencies(self) -> Result<Vec<Duration>, Failure> {
        self.0
            .await
            .unwrap_or_else(|_| Err(Failure::failed("the watching thread broke off")))
    }
}

/// A thread of its own: the runtime's clock is too coarse for the pauses.
fn watch(
    mut watcher: Watcher,
    under_way: UnderWay,
    published: Arc<AtomicBool>,
) -> Result<Seen, Failure> {
    let handle = tokio::runtime::Handle::current();
    let (sender, receiver) = oneshot::channel();
    let mut watching = move || {
        let (mut latencies, mut moved) = (Vec::new(), Instant::now());
        loop {
            let last = published.load(Ordering::Acquire);
            let waiting: Vec<_> = locked(&under_way).keys().copied().collect();
            if waiting.is_empty() {
                if last {
                    return Ok(latencies);
                }
                moved = Instant::now();
            } else {
                let finished = handle.block_on(watcher.finished(&waiting))?;
                let now = Instant::now();
                let mut under_way = locked(&under_way);
                for job in finished {
                    if let Some(since) = under_way.remove(&job) {
                        latencies.push(now - since);
                        moved = now;
                    }
                }
                if moved.elapsed() > STALLED {
                    return Err(Failure::failed(format!(
                        "no job became SUCCESS for {} s, and {} are under way. The worker's log is above; are both services well?",
                        STALLED.as_secs(),
                        under_way.len()
                    )));
                }
            }
            thread::sleep(WATCHED_EVERY);
        }
    };
    thread::Builder::new()
        .name("watcher".into())
        .spawn(move || {
            let _ = sender.send(watching());
        })
        .map_err(|error| Failure::failed(format!("a thread cannot be started: {error}")))?;
    Ok(Seen(receiver))
}
