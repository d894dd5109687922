//! A broker that dies in the midst of work and comes back without its data: every queue and every message is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cliquet::{broker::Place, config::Config};
use futures::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::support::{detour::Detour, eventually, services::Services, stage::Stage};

/// Copies of jobs by what they are: which job, which generation, and the queue that they were sent to.
type Sent = HashMap<(Uuid, i64, String), usize>;

/// Listens to what is published to the broker, by its own tracing, until it is asked for what it has heard.
async fn listen(
    services: &Services,
    stage: &Stage,
) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Sent>) {
    tokio::task::block_in_place(|| services.run(&["rabbitmqctl", "trace_on"]));
    let channel = stage.queues.channel().await;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let heard = channel.queue_declare("heard".into(), options, FieldTable::default());
    heard.await.unwrap();
    channel
        .queue_bind(
            "heard".into(),
            "amq.rabbitmq.trace".into(),
            "publish.#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let consume = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut messages = channel
        .basic_consume(
            "heard".into(),
            "listener".into(),
            consume,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let (stop, mut stopped) = oneshot::channel();
    let listening = tokio::spawn(async move {
        let _channel = channel;
        let mut sent = Sent::new();
        loop {
            let message = tokio::select! {
                message = messages.next() => message.unwrap().unwrap(),
                _ = &mut stopped => return sent,
            };
            if let Some(copy) = read(
                &message.data,
                message.properties.headers().as_ref().unwrap(),
            ) {
                *sent.entry(copy).or_default() += 1;
            }
        }
    });
    (stop, listening)
}

/// What a traced message was.
fn read(body: &[u8], headers: &FieldTable) -> Option<(Uuid, i64, String)> {
    let job: serde_json::Value = serde_json::from_slice(body).ok()?;
    let AMQPValue::FieldArray(queues) = headers.inner().get("routing_keys")? else {
        return None;
    };
    let Some(AMQPValue::LongString(queue)) = queues.as_slice().first() else {
        return None;
    };
    let AMQPValue::FieldTable(properties) = headers.inner().get("properties")? else {
        return None;
    };
    let generation = match properties.inner().get("headers") {
        Some(AMQPValue::FieldTable(own)) => match own.inner().get("cliquet-generation") {
            Some(AMQPValue::LongLongInt(generation)) => *generation,
            Some(AMQPValue::LongInt(generation)) => (*generation).into(),
            None => 0,
            Some(other) => panic!("a generation of another type: {other:?}"),
        },
        _ => 0,
    };
    Some((
        job["id"].as_str()?.parse().ok()?,
        generation,
        queue.to_string(),
    ))
}

/// How many messages of the work queue are ready, and how many are in a worker's hands; nothing while there is no queue.
fn unsettled(services: &Services, stage: &Stage) -> Option<(usize, usize)> {
    let list = [
        "rabbitmqctl",
        "-q",
        "list_queues",
        "name",
        "messages_ready",
        "messages_unacknowledged",
    ];
    let listed = tokio::task::block_in_place(|| services.run(&list));
    let work = stage.queues.name(Place::Work);
    let mut ours = listed
        .lines()
        .find_map(|line| line.strip_prefix(&work)?.strip_prefix('\t'))?
        .split('\t');
    Some((ours.next()?.parse().ok()?, ours.next()?.parse().ok()?))
}

async fn nothing_waits(stage: &Stage) {
    for place in stage.queues.topology.places() {
        let name = stage.queues.name(place);
        eventually(&format!("nothing waits in {name}"), async || {
            (place == Place::Dead || stage.queues.depth(place).await == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_disk_loses_no_job_and_no_retry_chain_forks() {
    let services = Services::start();
    let stage = Stage::on(
        &services.amqp_url,
        &services.database_url,
        &["200ms", "10s"],
    )
    .await;
    let detour = Detour::to(&services.amqp_url).await;

    // What every job is told to do, and how often each of its tasks is then called.
    let mut told: BTreeMap<Uuid, (String, Vec<i32>)> = BTreeMap::new();
    let mut publish = async |scenario: &str, calls: &[i32]| {
        let job = stage.publish(scenario).await;
        told.insert(job, (scenario.to_owned(), calls.to_vec()));
        job
    };
    // A worker of its own has a job in hand, and will die with the broker.
    let alone = [("STAGE_CONCURRENCY", "1"), ("STAGE_PATIENCE_MS", "3000")];
    let mut dying = stage.process_with("dying", &alone);
    let orphan = publish("a:ok b:write-gate:orphan c:ok", &[1, 2, 2, 3]).await;
    stage.script.reached("orphan", 1).await;
    let worker = stage.worker_with(Config {
        amqp_url: detour.amqp_url.clone(),
        concurrency: 32,
        ..stage.config()
    });
    let parked = [
        publish("a:ok b:permanent c:ok", &[1, 2]).await,
        publish("a:fail", &[1, 1, 1]).await,
    ];
    let over = publish("a:ok b:write", &[1, 2]).await;
    let (mut waiting, mut held, mut failing) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        held.push(publish("a:ok b:write-gate:held c:write", &[1, 2, 3]).await);
        failing.push(publish("a:gate-fail:fail,fail,write b:ok", &[1, 1, 1, 2]).await);
    }
    stage.script.reached("held", 3).await;
    stage.script.reached("fail", 3).await;
    for job in parked {
        stage.reaches(job, "FAILED").await;
    }
    stage.reaches(over, "SUCCESS").await;
    eventually("both copies are in the dead queue", async || {
        (stage.queues.depth(Place::Dead).await == 2).then_some(())
    })
    .await;
    for _ in 0..4 {
        waiting.push(publish("a:after:10000,fail,ok b:write", &[1, 1, 1, 2]).await);
    }
    for job in waiting.iter().chain(&parked) {
        eventually("its copy is confirmed, and the ledger knows", async || {
            let known = "SELECT count(*) FROM cliquet.jobs WHERE id = $1 AND generation >= 1 AND sent = generation";
            (stage.number(known, *job).await == 1).then_some(())
        })
        .await;
    }

    // First this: otherwise the broker, before it dies, hands the dead worker's job to the other, and what has been received
    // once is due again only in a minute.
    detour.close();
    dying.kill();
    tokio::task::block_in_place(|| {
        services.lose_the_brokers_disk();
        services.run(&["start", "rabbitmq"]);
    });
    let (stop, listening) = listen(&services, &stage).await;
    // A publisher that knows of the loss sends everything again, and in doubt twice; but for the dead worker's job, which the
    // reconciler alone brings back, and one that runs on without any message.
    stage.queues.declare().await;
    let unsent = [orphan, held[0]];
    for (job, (scenario, _)) in told.iter().chain(told.iter()) {
        if !unsent.contains(job) {
            stage.publish_as(*job, scenario).await;
        }
    }
    detour.open();
    stage.script.open("orphan").await;
    for job in waiting.iter().chain([&orphan]) {
        stage.reaches(*job, "SUCCESS").await;
    }
    // All that is left is one message for each job that runs, but for the one that was not sent again.
    let running = held.len() - 1 + failing.len();
    eventually("each run has one message", async || {
        (unsettled(&services, &stage)? == (0, running)).then_some(())
    })
    .await;
    stage.script.open("held").await;
    stage.script.open("fail").await;

    for (job, (_, calls)) in &told {
        let end = if parked.contains(job) {
            "FAILED"
        } else {
            "SUCCESS"
        };
        stage.reaches(*job, end).await;
        assert_eq!(
            stage.script.positions(*job).await,
            *calls,
            "{job}: {}",
            told[job].0
        );
    }
    for job in &held {
        assert_eq!(stage.effects(*job).await, [2, 3]);
        let epoch = stage
            .number("SELECT epoch FROM cliquet.jobs WHERE id = $1", *job)
            .await;
        assert_eq!(epoch, 1, "its run went on");
    }
    nothing_waits(&stage).await;
    let mut parked_again = BTreeSet::new();
    while parked_again.len() < parked.len() {
        let (copy, _) = stage.queues.take(Place::Dead).await;
        let copy: serde_json::Value = serde_json::from_slice(&copy).unwrap();
        parked_again.insert(copy["id"].as_str().unwrap().parse::<Uuid>().unwrap());
    }
    assert_eq!(parked_again, BTreeSet::from(parked));
    drop(stop);
    let sent = listening.await.unwrap();
    // Copies of generation 0 on a rung are the publisher's, which have found their jobs busy.
    let rungs: Vec<_> = sent
        .iter()
        .filter(|((_, generation, queue), _)| *generation > 0 && queue.contains(".delay."))
        .collect();
    eprintln!("{} copies on rungs", rungs.len());
    assert_eq!(rungs.len(), 2 * failing.len() + waiting.len(), "{rungs:?}");
    for ((job, generation, queue), times) in rungs {
        assert_eq!(
            *times, 1,
            "{job} at generation {generation} was sent to {queue} more than once"
        );
    }
    worker.stop().await;
}
