//! Work that takes longer than the broker waits for an acknowledgement (`consumer_timeout`, 30 minutes unless it is set).
//!
//! The broker closes the channel then, and delivers everything again that was under way on it.

use std::time::Duration;

use cliquet::config::Config;

use crate::support::{eventually, services::Services, stage::Stage};

/// How often the broker has closed a channel since a delivery on it took too long.
fn timeouts(services: &Services) -> usize {
    let log = services.brokers_log();
    log.matches("delivery acknowledgement on channel").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_takes_longer_than_the_brokers_patience_is_done_once_and_harms_no_neighbour() {
    let services = Services::start();
    // A channel takes both when it is opened. It looks at its deliveries every minute otherwise.
    let set = "application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 250).";
    tokio::task::block_in_place(|| services.run(&["rabbitmqctl", "eval", set]));
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let worker = || {
        stage.worker_with(Config {
            hand_over_after: Duration::from_millis(700),
            ..stage.config()
        })
    };
    let first = worker();

    // One task that is longer, and a job that is longer by its many tasks.
    let long = stage.publish("a:ok b:gate:long c:write d:ok").await;
    stage.script.reached("long", 1).await;
    let steps = "a:take:250 b:write c:take:250 d:take:250 e:take:250 ".repeat(5);
    let many = stage.publish(&steps).await;
    // Neighbours on its channel: some run all the time, some come and go, some fail and come again.
    let (mut beside, mut failing) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        beside.push(stage.publish("a:write b:gate:beside c:write").await);
    }
    stage.script.reached("beside", 3).await;
    let mut second = None;
    for round in 0.. {
        beside.push(stage.publish("a:ok b:take:150 c:write").await);
        failing.push(stage.publish("a:take:100 b:fail,write").await);
        tokio::time::sleep(Duration::from_millis(250)).await;
        let timeouts = timeouts(&services);
        if timeouts >= 1 && second.is_none() {
            // From now on what comes again may come to somebody else.
            second = Some(worker());
        }
        if timeouts >= 3 {
            eprintln!(
                "{timeouts} channels were closed; {} jobs beside them",
                2 * round
            );
            break;
        }
        assert!(round < 200, "the broker has closed {timeouts} channels");
    }
    assert_eq!(
        stage.tasks(long).await,
        "1:SUCCESS 2:PROCESSING 3:PENDING 4:PENDING"
    );
    stage.script.open("long").await;
    stage.script.open("beside").await;

    stage.reaches(long, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(long).await,
        [1, 2, 3, 4],
        "no task ran twice"
    );
    stage.reaches(many, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(many).await,
        (1..=25).collect::<Vec<_>>()
    );
    let hand_overs = stage
        .number("SELECT epoch FROM cliquet.jobs WHERE id = $1", many)
        .await
        - 1;
    assert!(
        hand_overs >= 1,
        "the long job kept its delivery all the time"
    );
    for job in &beside {
        stage.reaches(*job, "SUCCESS").await;
        assert_eq!(
            stage.script.positions(*job).await,
            [1, 2, 3],
            "a neighbour ran twice"
        );
    }
    for job in &failing {
        stage.reaches(*job, "SUCCESS").await;
        assert_eq!(stage.script.positions(*job).await, [1, 2, 2]);
    }
    let unasked: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM cliquet.failures WHERE error <> 'attempt 1 fails as told')
              + (SELECT count(*) FROM cliquet.tasks WHERE crashes > 0)",
    )
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    assert_eq!(
        unasked, 0,
        "nobody died, and nothing failed that was not told to"
    );
    stage.queues_are_empty().await;
    first.stop().await;
    second.unwrap().stop().await;
    eventually("nothing is left", async || {
        (stage.queues.depth(cliquet::broker::Place::Work).await == 0).then_some(())
    })
    .await;
}
