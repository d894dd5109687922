//! A broker that takes no messages, since its memory or its disk is used up. It blocks a connection when it next publishes.

use std::time::{Duration, Instant};

use cliquet::{broker::Place, config::Config};

use crate::support::{eventually, services::Services, stage::Stage};

async fn set_memory(services: &Services, limit: &str) {
    let set = [
        "rabbitmqctl",
        "set_vm_memory_high_watermark",
        "absolute",
        limit,
    ];
    tokio::task::block_in_place(|| services.run(&set));
}

/// Waits until the broker has blocked one of the connections.
async fn is_blocked(services: &Services) {
    eventually("a connection is blocked", async || {
        let list = ["rabbitmqctl", "-q", "list_connections", "state"];
        let states = tokio::task::block_in_place(|| services.run(&list));
        states.lines().any(|state| state == "blocked").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_pauses_copies_and_consuming_but_not_acknowledgements() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let worker = stage.worker_with(Config {
        concurrency: 3,
        ..stage.config()
    });
    let failing = stage.publish("a:ok b:gate-fail:fail,write c:ok").await;
    let ending = stage.publish("a:gate:end").await;
    let running = stage.publish("a:gate:go b:write c:ok").await;
    for gate in ["fail", "end", "go"] {
        stage.script.reached(gate, 1).await;
    }
    let mut later = Vec::new();
    for _ in 0..5 {
        later.push(stage.publish("a:ok b:write").await);
    }
    let ready = async |count| {
        eventually(&format!("{count} messages are ready"), async || {
            (stage.queues.depth(Place::Work).await == count).then_some(())
        })
        .await;
    };
    ready(5).await;

    set_memory(&services, "1MB").await;
    stage.script.open("fail").await;
    stage.reaches(failing, "RETRYING").await;
    is_blocked(&services).await;

    // Acknowledgements flow: for each job that ends, the broker hands out the next message.
    stage.script.open("end").await;
    stage.reaches(ending, "SUCCESS").await;
    ready(4).await;
    // A running job goes on from task to task.
    stage.script.open("go").await;
    stage.reaches(running, "SUCCESS").await;
    ready(3).await;
    // Consuming pauses: what is handed out is not begun.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for job in &later {
        assert_eq!(stage.status(*job).await, None, "a job was begun");
    }
    ready(3).await;
    assert_eq!(stage.queues.depth(stage.queues.rung(0)).await, 0);
    assert_eq!(stage.status(failing).await.as_deref(), Some("RETRYING"));

    set_memory(&services, "2GB").await;
    for job in later.iter().chain([&failing]) {
        stage.reaches(*job, "SUCCESS").await;
    }
    assert_eq!(stage.script.positions(failing).await, [1, 2, 2, 3]);
    for job in later {
        assert_eq!(stage.script.positions(job).await, [1, 2]);
    }
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_does_not_wait_for_a_blocked_broker() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let drain_timeout = Duration::from_secs(6);
    let worker = stage.worker_with(Config {
        drain_timeout,
        ..stage.config()
    });
    let failing = stage.publish("a:gate-fail:fail,ok b:write").await;
    let long = stage.publish("a:ok b:gate:long c:write").await;
    let late = stage.publish("a:gate-fail:late,ok b:write").await;
    for gate in ["fail", "long", "late"] {
        stage.script.reached(gate, 1).await;
    }
    set_memory(&services, "1MB").await;
    stage.script.open("fail").await;
    stage.reaches(failing, "RETRYING").await;
    is_blocked(&services).await;

    let asked = Instant::now();
    let stopping = tokio::spawn(worker.stop());
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.script.open("late").await; // fails while the worker is leaving
    stage.reaches(late, "RETRYING").await;
    stopping.await.unwrap();
    let took = asked.elapsed();
    eprintln!("left {took:.1?} after it was asked to; its drain timeout is {drain_timeout:?}");
    // It once took eight seconds more.
    assert!(
        took < drain_timeout + Duration::from_secs(7),
        "it has waited for the broker: {took:?}"
    );
    assert_eq!(
        stage.status(long).await.as_deref(),
        Some("PENDING"),
        "it is handed back"
    );
    // All three are back in the queue, and none of their copies was sent.
    eventually("the messages are back", async || {
        (stage.queues.depth(Place::Work).await == 3).then_some(())
    })
    .await;

    set_memory(&services, "2GB").await;
    stage.script.open("long").await;
    let next = stage.worker();
    for (job, calls) in [(failing, &[1, 1, 2]), (late, &[1, 1, 2])] {
        stage.reaches(job, "SUCCESS").await;
        assert_eq!(stage.script.positions(job).await, calls);
    }
    stage.reaches(long, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(long).await,
        [1, 2, 2, 3],
        "the attempt that was cut short, and the one that counts"
    );
    stage.queues_are_empty().await;
    next.stop().await;
}
