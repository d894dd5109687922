//! A task that kills its process, among a thousand good jobs and many in flight.

use std::{collections::BTreeMap, time::Duration};

use cliquet::broker::{Address, Identity};
use lapin::BasicProperties;

use crate::{
    audit::topology,
    crew::Crew,
    ground::{Ground, QUEUE},
    jobs::{Act, Job},
    rabbit::{Rabbit, says, within},
    worker::{Settings, executions},
};

const GOOD: usize = 1_000;

/// The most jobs that were PROCESSING at once until the poison began for the first time.
async fn in_flight_before_the_first_death(ground: &Ground) -> i64 {
    let first = executions(&ground.folder)
        .into_iter()
        .find(|execution| execution.poison)
        .expect("the poison was executed");
    sqlx::query_scalar(
        "SELECT max(held)::bigint FROM (
             SELECT sum((holder IS NOT NULL)::int - (was IS NOT NULL)::int) OVER (ORDER BY at, number) AS held
               FROM (SELECT at, number, holder, lag(holder) OVER (PARTITION BY job_id ORDER BY at, number) AS was FROM job_history) moved
              WHERE at <= timestamptz 'epoch' + $1 * interval '1 us') counted",
    )
    .bind(first.began)
    .fetch_one(&ground.pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_process_is_parked_alone_among_a_thousand_good_jobs() {
    let ground = Ground::make().await;
    let settings = Settings {
        concurrency: 128,
        quick: true,
    };
    // All of it waits before anybody takes any.
    let address = Address::parse(&ground.amqp_url).unwrap();
    let identity = Identity {
        name: "the publisher".into(),
    };
    topology().declare(&address, &identity).await.unwrap();
    let mut rabbit = Rabbit::new(&ground.amqp_url);
    let poison = Job::of(vec![Act::Nothing, Act::Poison, Act::Nothing]);
    for number in 0..=GOOD {
        let good = || Job::of(vec![Act::Nothing, Act::Nap { ms: 400 }, Act::Nothing]);
        // Late enough that both workers hold all they can, also where one began seconds after the other.
        let job = if number == 900 {
            poison.clone()
        } else {
            good()
        };
        let body = job.body(1);
        // One that is not confirmed in time is sent again, and twice is once.
        within(Duration::from_secs(60), "it is confirmed", async || {
            let sent = rabbit.publish_once("", QUEUE, &body, BasicProperties::default());
            sent.await.then_some(())
        })
        .await;
    }
    // Two workers with 128 jobs each: 256 in flight.
    let crew = Crew::start(&ground, 2, settings).await;

    within(Duration::from_secs(300), "every job is over", async || {
        let over: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM cliquet.jobs WHERE status IN ('SUCCESS', 'FAILED')",
        )
        .fetch_one(&ground.pool)
        .await
        .unwrap();
        (over == GOOD as i64 + 1).then_some(())
    })
    .await;
    let parked: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("SELECT id, error FROM cliquet.jobs WHERE status = 'FAILED'")
            .fetch_all(&ground.pool)
            .await
            .unwrap();
    let [(job, error)] = &parked[..] else {
        panic!("not exactly one job is parked: {parked:?}");
    };
    assert_eq!(*job, poison.id, "{error}");
    assert!(
        error.starts_with("the worker died 3 times while it ran this task"),
        "{error}"
    );
    let tasks: Vec<String> = sqlx::query_scalar(
        "SELECT status::text FROM cliquet.tasks WHERE job_id = $1 ORDER BY position",
    )
    .bind(poison.id)
    .fetch_all(&ground.pool)
    .await
    .unwrap();
    assert_eq!(tasks, ["SUCCESS", "FAILED", "PENDING"]);

    // One that was started after the last death and is asked to stop before it has begun ends otherwise.
    within(Duration::from_secs(60), "both consume", async || {
        let queue = rabbit.queue(QUEUE).await;
        queue
            .is_some_and(|(_, consumers)| consumers == 2)
            .then_some(())
    })
    .await;
    crew.dismiss().await;
    let ends = crew.counts();
    let three_deaths = [("aborted".to_owned(), 3), ("stopped".to_owned(), 2)];
    assert_eq!(ends, BTreeMap::from(three_deaths));
    // More than one worker holds, and no more than there is room for.
    let in_flight = in_flight_before_the_first_death(&ground).await;
    assert!((129..=256).contains(&in_flight), "{in_flight} in flight");
    // The copy that says so to whoever looks at the dead queue.
    let dead = rabbit.drain(&format!("{QUEUE}.dead")).await;
    assert_eq!(dead.len(), 1);
    let header = |name| says(&dead[0].1, name);
    assert_eq!(header("cliquet-reason"), "crashed");
    let sentence = header("cliquet-error");
    assert!(
        sentence.starts_with("the worker died 3 times"),
        "{sentence}"
    );
    ground.tidy();
}
