//! People who look while the worker is busy: each asks as a browser does that has the page open, one question after the other.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::report::{milliseconds, percentile};
use crate::{
    job::JobStatus,
    ledger::{Find, LedgerError, Reads},
    ops::failure::Failure,
};

/// Readers that ask until they are told to stop.
pub(super) struct Readers {
    asking: JoinSet<Result<Vec<(Question, Duration)>, LedgerError>>,
    stop: DropGuard,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    List,
    Job,
    Groups,
    Overview,
    Workers,
}

/// How long the answers took, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Answers {
    list: Took,
    job: Took,
    groups: Took,
    overview: Took,
    workers: Took,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Took {
    p50: f64,
    p95: f64,
    max: f64,
    answers: usize,
}

impl Readers {
    /// So many readers over these reads, each with a pause after each answer.
    pub(super) fn start(reads: &Reads, readers: u32, pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let mut asking = JoinSet::new();
        for number in 0..readers {
            let (reads, stop) = (reads.clone(), stop.clone());
            asking.spawn(async move { ask(&reads, number as usize, pause, &stop).await });
        }
        Self {
            asking,
            stop: stop.drop_guard(),
        }
    }

    /// Ends them, and tells how long their answers took.
    pub(super) async fn answers(self) -> Result<Answers, Failure> {
        let Self { mut asking, stop } = self;
        drop(stop);
        let mut all = Vec::new();
        while let Some(asked) = asking.join_next().await {
            let asked = asked.map_err(|_| Failure::failed("a reader broke off"))?;
            all.extend(asked?);
        }
        let took = |question| {
            let mut took: Vec<_> = all
                .iter()
                .filter(|(asked, _)| *asked == question)
                .map(|(_, took)| *took)
                .collect();
            took.sort_unstable();
            Took {
                p50: milliseconds(percentile(&took, 0.50)),
                p95: milliseconds(percentile(&took, 0.95)),
                max: milliseconds(percentile(&took, 1.0)),
                answers: took.len(),
            }
        };
        Ok(Answers {
            list: took(Question::List),
            job: took(Question::Job),
            groups: took(Question::Groups),
            overview: took(Question::Overview),
            workers: took(Question::Workers),
        })
    }
}

impl Answers {
    pub(super) fn lines(&self) -> Vec<String> {
        [
            ("list", &self.list),
            ("job", &self.job),
            ("groups", &self.groups),
            ("overview", &self.overview),
            ("workers", &self.workers),
        ]
        .map(|(what, took)| {
            format!(
                "{what:<11} p50 {:.1} ms, p95 {:.1} ms, at most {:.1} ms, of {} answers to readers",
                took.p50, took.p95, took.max, took.answers
            )
        })
        .to_vec()
    }
}

/// The lists that people look at.
fn lists(likeness: Option<&String>) -> Vec<Find> {
    let text = |text: &str| Some(text.to_owned());
    let whole = Find::default();
    let status = |status: &[JobStatus]| Find {
        status: status.to_vec(),
        ..Find::default()
    };
    vec![
        whole.clone(),
        status(&[JobStatus::Failed]),
        status(&[JobStatus::Failed, JobStatus::Retrying]),
        status(&[JobStatus::Processing]),
        Find {
            kind: text("cliquet.bench.history.3"),
            ..whole.clone()
        },
        Find {
            queue: text("nobody's"),
            ..whole.clone()
        },
        Find {
            handler: text("nobody's"),
            ..whole.clone()
        },
        Find {
            error: text("the image 77"),
            ..whole.clone()
        },
        Find {
            likeness: likeness.cloned(),
            ..status(&[JobStatus::Failed])
        },
    ]
}

async fn ask(
    reads: &Reads,
    number: usize,
    pause: Duration,
    stop: &CancellationToken,
) -> Result<Vec<(Question, Duration)>, LedgerError> {
    let mut asked = Vec::new();
    let mut likeness = None;
    for round in number.. {
        let began = Instant::now();
        let groups = reads.groups(None, 50).await?;
        asked.push((Question::Groups, began.elapsed()));
        likeness = groups
            .groups
            .first()
            .map(|group| group.id.clone())
            .or(likeness);
        let lists = lists(likeness.as_ref());
        for step in 0..lists.len() {
            let find = &lists[(round + step) % lists.len()];
            let mut find = find.clone();
            // And its second page.
            for _ in 0..2 {
                let began = Instant::now();
                let page = reads.find(&find).await?;
                asked.push((Question::List, began.elapsed()));
                let job = page.jobs.get(step).map(|job| job.id);
                if let Some(job) = job {
                    let began = Instant::now();
                    reads.job(job).await?;
                    asked.push((Question::Job, began.elapsed()));
                }
                find.after = page.next;
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return Ok(asked);
                }
                if find.after.is_none() {
                    break;
                }
            }
            let began = Instant::now();
            reads.overview(None).await?;
            asked.push((Question::Overview, began.elapsed()));
        }
        let began = Instant::now();
        reads.workers(None).await?;
        asked.push((Question::Workers, began.elapsed()));
    }
    Ok(asked)
}
