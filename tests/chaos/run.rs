//! One run: as told by `deploy/dev chaos`, or a minute of it among the tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    audit::{audit, quiet},
    crew::Crew,
    faults::{Done, Faults},
    ground::{EXCHANGE, Ground, QUEUE},
    load::{LEAST_RATE, Published, Upstream},
    rabbit::{Rabbit, within},
    report::Report,
    schedule, times,
    worker::{Settings, executions},
};

fn told(name: &str) -> Option<String> {
    std::env::var(format!("CLIQUET_CHAOS_{name}"))
        .ok()
        .filter(|value| !value.is_empty())
}

fn number(name: &str, otherwise: u64) -> u64 {
    told(name).map_or(otherwise, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("CLIQUET_CHAOS_{name} is {value:?}; expected a number"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_loses_nothing_and_does_nothing_twice() {
    let (seed, seconds) = (number("SEED", 1), number("SECONDS", 60));
    let workers = number("WORKERS", 3) as usize;
    let again = format!("deploy/dev chaos --seconds {seconds} --seed {seed} --workers {workers}");
    // However it ends.
    let _tell = Tell(&again);

    let mut report = Report::default();
    if seconds > 0 {
        chaos(seed, seconds, workers, &mut report).await;
    }
    let events = number("TIMES", 0) as usize;
    if events > 0 {
        times::measure(events, &mut report).await;
    }
    match (told("REPORT"), told("JSON")) {
        (Some(path), Some(_)) => {
            std::fs::write(path, format!("{:#}\n", report.json(seed, seconds))).unwrap();
        }
        (Some(path), None) => std::fs::write(path, report.table()).unwrap(),
        (None, _) => eprintln!("\n{}", report.table()),
    }
    assert!(
        report.faults().is_empty(),
        "{} faults; the same again: {again}",
        report.faults().len()
    );
}

/// Says at the end how to repeat the run.
struct Tell<'a>(&'a str);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        eprintln!("chaos: the same again: {}", self.0);
    }
}

async fn chaos(seed: u64, seconds: u64, workers: usize, report: &mut Report) {
    let ground = Ground::make().await;
    eprintln!(
        "chaos: seed {seed}, {seconds} s, {workers} workers; journals and logs: {}",
        ground.folder.display()
    );
    let settings = Settings {
        concurrency: 24,
        quick: true,
    };
    let crew = Crew::start(&ground, workers, settings).await;
    let mut rabbit = Rabbit::new(&ground.amqp_url);
    within(
        Duration::from_secs(60),
        "every worker consumes",
        async || {
            let queue = rabbit.queue(QUEUE).await;
            (queue.is_some_and(|(_, consumers)| consumers as usize == workers)
                && rabbit.bind(EXCHANGE, QUEUE).await)
                .then_some(())
        },
    )
    .await;

    let faults = Faults::new(&ground, &crew);
    let stop = Arc::new(AtomicBool::new(false));
    let upstream = Upstream::new(seed, &ground, &faults);
    let upstream = tokio::spawn(upstream.publish(stop.clone()));
    let lanes: Vec<_> = schedule::draw(seed, seconds, workers)
        .into_iter()
        .map(|lane| tokio::spawn(faults.clone().follow(lane)))
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    for lane in lanes {
        lane.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut upstream = upstream.await.unwrap();
    eprintln!("chaos: the schedule is over; everything is healthy from here on");

    upstream.publish_lost_again().await;
    quiet(&ground, &crew, &faults, report).await;
    let left = crew.dismiss().await;
    let mut published = upstream.published;
    published.deletions = faults.deletions();

    happened(&faults, report);
    ends(&ground, &crew, report);
    report.count(
        "milliseconds until the last workers had left",
        left.as_millis() as i64,
    );
    load(seconds, &published, report);
    audit(&ground, &crew, &faults, &published, report).await;
    if report.faults().is_empty() {
        ground.tidy();
    }
}

/// What was done. A kind that was drawn and never happened was not looked at.
fn happened(faults: &Faults, report: &mut Report) {
    for (kind, Done { tried, happened }) in faults.done() {
        report.count(kind, i64::from(happened));
        if happened < tried {
            report.count(
                &format!("{kind}: tried in vain"),
                i64::from(tried - happened),
            );
        }
        if happened == 0 {
            report.fault(format!(
                "{kind}: drawn {tried} times, and it never happened"
            ));
        }
    }
    let lost: usize = faults
        .deletions()
        .iter()
        .map(|deletion| deletion.jobs.len())
        .sum();
    report.count(
        "jobs that no worker had seen, gone with their deleted queue",
        lost as i64,
    );
}

/// How the worker processes ended, and whether all that is explained.
fn ends(ground: &Ground, crew: &Crew, report: &mut Report) {
    for (end, count) in crew.counts() {
        report.count(&format!("worker processes {end}"), count);
    }
    let mut poison = BTreeMap::new();
    for execution in executions(&ground.folder) {
        if execution.poison {
            *poison.entry(execution.worker).or_default() += 1;
        }
    }
    report.count(
        "executions of tasks that kill their process",
        poison.values().copied().map(i64::from).sum(),
    );
    for sentence in crew.unexplained(&poison) {
        report.fault(sentence);
    }
}

/// What was published. Where that is too little, or a kind of it is missing, the rest means nothing.
fn load(seconds: u64, published: &Published, report: &mut Report) {
    let accepted = published.accepted.len() as u64;
    let least = seconds * LEAST_RATE;
    if accepted < least {
        report.fault(format!(
            "only {accepted} jobs were accepted in {seconds} s; fewer than {least} prove nothing"
        ));
    }
    for (what, count) in [
        ("jobs published to the queue", published.by_queue),
        ("jobs published through an exchange", published.by_exchange),
        ("jobs enqueued in SQL", published.by_sql),
        ("duplicates published", published.duplicates),
        (
            "copies published with a made-up generation",
            published.forged,
        ),
        (
            "messages that are no jobs, published",
            published.garbage.len() as u64,
        ),
    ] {
        report.count(what, count as i64);
        if count == 0 {
            report.fault(format!("{what}: none"));
        }
    }
    report.count(
        "jobs published again, since they were gone with their queue",
        published.again as i64,
    );
    report.count(
        "publishes that were not confirmed and repeated",
        published.refused as i64,
    );
}
