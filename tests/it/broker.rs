//! The broker's side, against a real RabbitMQ.

use std::{future::Future, task::Poll, time::Duration};

use cliquet::{
    broker::{
        Address, BrokerError, Consumer, Delivery, Letter, Place, Publisher, QueueState, SendError,
        Settled,
    },
    job::Generation,
};
use futures::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Queues, detour::Detour, eventually, rabbitmqctl};

async fn consumer(queues: &Queues, prefetch: u16) -> Consumer {
    let started = Consumer::start(
        queues.address.clone(),
        queues.topology.clone(),
        queues.identity.clone(),
        prefetch,
        true,
    );
    started.await.unwrap()
}

async fn publisher(queues: &Queues, channels: usize, declare: bool) -> Publisher {
    let publisher = Publisher::start(
        queues.address.clone(),
        queues.topology.clone(),
        queues.identity.clone(),
        channels,
        declare,
    );
    publisher.ready().await;
    publisher
}

async fn next(consumer: &Consumer) -> Delivery {
    soon(consumer.next())
        .await
        .expect("the consumer ended unasked")
}

/// What takes longer than this hangs, and a test that hangs says nothing.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future)
        .await
        .expect("not within a minute")
}

fn letter(body: &str) -> Letter {
    Letter::new(body, "the-id", "the-kind")
}

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default().with_headers(table)
}

// ── topology ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn declaring_makes_every_queue_and_may_be_repeated() {
    let queues = Queues::new().await;
    queues.declare().await;
    queues.declare().await;
    let found = queues
        .topology
        .inspect(&queues.address, &queues.identity)
        .await
        .unwrap();
    assert_eq!(found.len(), 4);
    for (queue, state) in found {
        assert_eq!(
            state,
            QueueState::Right {
                ready: 0,
                consumers: 0
            },
            "{}",
            queue.name
        );
    }
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_refused_in_the_words_of_the_broker() {
    let queues = Queues::new().await;
    queues
        .declare_otherwise(queues.rung(0), &[("x-message-ttl", AMQPValue::LongInt(7))])
        .await;
    let refused = Consumer::start(
        queues.address.clone(),
        queues.topology.clone(),
        queues.identity.clone(),
        10,
        true,
    );
    let error = refused
        .await
        .expect_err("a rung with another delay was accepted");
    let BrokerError::Mismatch {
        queue,
        sentence,
        remedy,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(*queue, queues.name(queues.rung(0)));
    assert!(sentence.contains("inequivalent arg"), "{sentence}");
    assert!(remedy.contains("rabbitmqctl delete_queue"), "{remedy}");
    assert!(!error.waiting_helps());
}

#[tokio::test]
async fn inspecting_names_what_is_missing_and_what_differs_and_makes_nothing() {
    let queues = Queues::new().await;
    queues.declare_otherwise(queues.rung(1), &[]).await;
    for _ in 0..2 {
        let found = queues
            .topology
            .inspect(&queues.address, &queues.identity)
            .await
            .unwrap();
        let state = |place| {
            &found
                .iter()
                .find(|(queue, _)| queue.place == place)
                .unwrap()
                .1
        };
        let QueueState::Wrong(BrokerError::Missing { queue }) = state(Place::Work) else {
            panic!("{found:?}")
        };
        assert_eq!(*queue, queues.name(Place::Work));
        assert!(
            matches!(
                state(queues.rung(1)),
                QueueState::Wrong(BrokerError::Mismatch { .. })
            ),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn without_declaring_a_missing_queue_is_named() {
    let queues = Queues::new().await;
    let started = Consumer::start(
        queues.address.clone(),
        queues.topology.clone(),
        queues.identity.clone(),
        10,
        false,
    );
    let error = started
        .await
        .expect_err("a queue that is not there was consumed from");
    assert_eq!(
        error,
        BrokerError::Missing {
            queue: queues.name(Place::Work)
        }
    );
}

/// A relay to the broker that deletes a queue when a client asks for its limit of deliveries, which comes after declaring
/// and before consuming. The first time only. Answers with its port.
async fn relay_that_deletes_once(queue: String, channel: lapin::Channel, broker: u16) -> u16 {
    // Basic.Qos, without the frame's head of seven bytes.
    const QOS: [u8; 4] = [0, 60, 0, 10];
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut deleted = false;
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let broker = TcpStream::connect(("127.0.0.1", broker)).await.unwrap();
            let (mut from_broker, mut to_broker) = broker.into_split();
            let (mut from_client, mut to_client) = client.into_split();
            tokio::spawn(async move { copy(&mut from_broker, &mut to_client).await });
            let mut piece = vec![0; 4096];
            while let Ok(size @ 1..) = from_client.read(&mut piece).await {
                if !deleted && size > 11 && piece[7..11] == QOS {
                    let options = QueueDeleteOptions::default();
                    channel
                        .queue_delete(queue.as_str().into(), options)
                        .await
                        .unwrap();
                    deleted = true;
                }
                if to_broker.write_all(&piece[..size]).await.is_err() {
                    break;
                }
            }
        }
    });
    port
}

#[tokio::test]
async fn a_queue_that_is_deleted_while_a_worker_begins_is_made_again() {
    for declare in [true, false] {
        let queues = Queues::new().await;
        queues.declare().await;
        let (name, channel) = (queues.name(Place::Work), queues.channel().await);
        let relay = relay_that_deletes_once(name.clone(), channel, queues.address.port()).await;
        let mut url = url::Url::parse(&queues.amqp_url).unwrap();
        url.set_port(Some(relay)).unwrap();
        let started = soon(Consumer::start(
            Address::parse(url.as_str()).unwrap(),
            queues.topology.clone(),
            queues.identity.clone(),
            1,
            declare,
        ))
        .await;
        if !declare {
            // Nobody would make it.
            assert_eq!(started.unwrap_err(), BrokerError::Missing { queue: name });
            continue;
        }
        let consumer = started.unwrap();
        queues.publish(b"again", BasicProperties::default()).await;
        assert_eq!(next(&consumer).await.body(), b"again");
    }
}

#[tokio::test]
async fn imported_definitions_are_what_declaring_makes() {
    let queues = Queues::new().await;
    let file = std::env::temp_dir().join(format!("{}.json", queues.name(Place::Work)));
    std::fs::write(
        &file,
        queues
            .topology
            .definitions(queues.address.vhost())
            .to_string(),
    )
    .unwrap();
    rabbitmqctl(&["import_definitions", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let found = queues
        .topology
        .inspect(&queues.address, &queues.identity)
        .await
        .unwrap();
    for (queue, state) in found {
        assert_eq!(
            state,
            QueueState::Right {
                ready: 0,
                consumers: 0
            },
            "{}",
            queue.name
        );
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once_and_not_shown() {
    let queues = Queues::new().await;
    let (host, port) = (queues.address.host(), queues.address.port());
    let wrong = Address::parse(&format!("amqp://guest:opensesame@{host}:{port}")).unwrap();
    let started = Consumer::start(
        wrong.clone(),
        queues.topology.clone(),
        queues.identity.clone(),
        1,
        true,
    );
    let error = soon(started)
        .await
        .expect_err("a wrong password was accepted");
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    let publisher = Publisher::start(
        wrong,
        queues.topology.clone(),
        queues.identity.clone(),
        1,
        true,
    );
    let sent = timeout(
        Duration::from_secs(5),
        publisher.send(&Place::Work, &letter("{}")),
    )
    .await;
    let refused = sent
        .expect("a refusal took longer than 5 s to be told")
        .unwrap_err();
    for shown in [
        error.to_string(),
        refused.to_string(),
        format!("{error:?} {publisher:?}"),
    ] {
        assert!(!shown.contains("opensesame"), "{shown}");
    }
    assert!(refused.to_string().contains("ACCESS_REFUSED"), "{refused}");
    let vhost = Address::parse(&format!("amqp://{host}:{port}/nowhere")).unwrap();
    let error = queues
        .topology
        .declare(&vhost, &queues.identity)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BrokerError::Refused { sentence, .. } if sentence.contains("nowhere")),
        "{error:?}"
    );
}

// ── publishing ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// So many letters are on their way at once, over eight channels.
const AT_ONCE: usize = 400;

/// Of many letters at once a third goes to a queue that takes them, a third to one that refuses and a third to none. A
/// channel shared by two of them would sooner or later give each the other's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_letter_is_given_its_own_answer() {
    const EACH: usize = 2_000;
    let queues = Queues::new().await;
    let (full, gone) = (queues.rung(0), queues.rung(1));
    queues.declare_otherwise(Place::Work, &[]).await;
    let refuses = AMQPValue::LongString("reject-publish".into());
    queues
        .declare_otherwise(
            full,
            &[
                ("x-max-length", AMQPValue::LongInt(0)),
                ("x-overflow", refuses),
            ],
        )
        .await;
    let publisher = publisher(&queues, 8, false).await;

    let sends = (0..3 * EACH).map(|number| {
        let (publisher, place) = (publisher.clone(), [Place::Work, full, gone][number % 3]);
        tokio::spawn(async move { (number % 3, publisher.send(&place, &letter("{}")).await) })
    });
    // Never all at once: a send's time runs while it waits for a channel.
    let mut sends = futures::stream::iter(sends).buffer_unordered(AT_ONCE);
    while let Some(send) = sends.next().await {
        match send.unwrap() {
            (0, Ok(()))
            | (1, Err(SendError::Refused { .. }))
            | (2, Err(SendError::Unroutable { .. })) => {}
            (kind, answer) => panic!("{} got {answer:?}", ["taken", "refused", "returned"][kind]),
        }
    }
    assert_eq!(queues.depth(Place::Work).await as usize, EACH);
    assert_eq!(queues.depth(full).await, 0);
}

/// Half of many letters at once are given up, at each of their steps, among them the one where the letter is written and
/// its confirm, which takes a quorum queue a moment, is still to come. In a channel that was lent out again before, that
/// confirm would take the return of the next letter for its own, and that letter would pass for sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_send_that_is_given_up_leaves_no_answer_behind_for_the_next() {
    let queues = Queues::new().await;
    let (quorum, nowhere) = (AMQPValue::LongString("quorum".into()), queues.rung(0));
    queues
        .declare_otherwise(Place::Work, &[("x-queue-type", quorum)])
        .await;
    let publisher = publisher(&queues, 8, false).await;
    let sends = (0..3_000).map(|number| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            polled(number % 10, publisher.send(&Place::Work, &letter("{}"))).await;
            publisher.send(&nowhere, &letter("{}")).await
        })
    });
    let mut sends = futures::stream::iter(sends).buffer_unordered(AT_ONCE);
    while let Some(send) = sends.next().await {
        let answer = send.unwrap();
        assert!(
            matches!(answer, Err(SendError::Unroutable { .. })),
            "{answer:?}"
        );
    }
}

/// Drives a future for so many steps, and drops it where it then stands.
async fn polled<T>(mut steps: u32, future: impl Future<Output = T>) {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match steps {
        0 => Poll::Ready(()),
        _ => {
            steps -= 1;
            future.as_mut().poll(context).map(drop)
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_parked_or_delayed_may_be_looked_at_as_often_as_people_like() {
    let queues = Queues::with_ladder(&["1h"]).await;
    let publisher = publisher(&queues, 1, true).await;
    let channel = queues.channel().await;
    for place in [Place::Dead, queues.rung(0)] {
        publisher.send(&place, &letter("{}")).await.unwrap();
        // As the dashboard does it. Of itself, RabbitMQ 4.0 takes a message away at its 21st return, and 3.10 never.
        for look in 1..=30 {
            eventually(
                &format!("the message in {place:?} at look {look}"),
                async || {
                    let name = queues.name(place).into();
                    let got = channel.basic_get(name, BasicGetOptions::default()).await;
                    let nack = BasicNackOptions {
                        requeue: true,
                        ..Default::default()
                    };
                    Some(got.unwrap()?.delivery.acker.nack(nack).await.unwrap())
                },
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_letter_to_a_deleted_queue_has_it_declared_again_and_arrives() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 4, true).await;
    queues.delete(queues.rung(1)).await;
    queues.delete(Place::Dead).await;
    let both = [queues.rung(1), Place::Dead].map(|place| {
        let publisher = publisher.clone();
        async move { publisher.send(&place, &letter("{}")).await }
    });
    for sent in futures::future::join_all(both).await {
        sent.unwrap();
    }
    assert_eq!(publisher.depth(&Place::Dead).await.unwrap(), 1);
    queues.take(Place::Work).await;
}

#[tokio::test]
async fn a_letter_to_a_missing_queue_is_unroutable_when_declaring_is_off() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 1, false).await;
    let error = publisher
        .send(&Place::Dead, &letter("{}"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SendError::Unroutable { queue, .. } if *queue == queues.name(Place::Dead)),
        "{error:?}"
    );
    let depth = publisher.depth(&Place::Dead).await;
    assert_eq!(
        depth,
        Err(BrokerError::Missing {
            queue: queues.name(Place::Dead)
        })
    );
}

#[tokio::test]
async fn a_letter_to_a_full_queue_is_delivered_once_there_is_room() {
    let queues = Queues::new().await;
    let refuses = AMQPValue::LongString("reject-publish".into());
    queues
        .declare_otherwise(
            Place::Work,
            &[
                ("x-max-length", AMQPValue::LongInt(1)),
                ("x-overflow", refuses),
            ],
        )
        .await;
    let publisher = publisher(&queues, 1, false).await;
    publisher
        .send(&Place::Work, &letter("first"))
        .await
        .unwrap();
    assert!(matches!(
        publisher.send(&Place::Work, &letter("x")).await,
        Err(SendError::Refused { .. })
    ));

    let (second, forever) = (letter("second"), CancellationToken::new());
    let delivering = publisher.deliver(&Place::Work, &second, &forever);
    let taking = async {
        sleep(Duration::from_millis(300)).await;
        queues.take(Place::Work).await
    };
    let (delivered, (first, _)) = tokio::join!(delivering, taking);
    delivered.unwrap();
    assert_eq!(
        (first, queues.take(Place::Work).await.0),
        (b"first".to_vec(), b"second".to_vec())
    );
}

#[tokio::test]
async fn delivering_ends_when_it_is_told_to() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 1, false).await;
    let stop = CancellationToken::new();
    let after = Duration::from_millis(300);
    let stopping = async {
        sleep(after).await;
        stop.cancel();
    };
    let unroutable = letter("{}");
    let (delivered, ()) = tokio::join!(
        publisher.deliver(&Place::Work, &unroutable, &stop),
        stopping
    );
    let error = delivered.unwrap_err();
    assert!(
        matches!(&error, SendError::Cancelled { reason, .. } if reason.contains("does not exist")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_publisher_whose_connection_is_closed_connects_again() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 2, true).await;
    publisher
        .send(&Place::Work, &letter("before"))
        .await
        .unwrap();
    eventually("its connection in the broker's list", || async {
        (queues.close_connections("publish").await > 0).then_some(())
    })
    .await;
    eventually("the loss to be noticed", || async {
        (!publisher.is_connected()).then_some(())
    })
    .await;
    let (after, forever) = (letter("after"), CancellationToken::new());
    soon(publisher.deliver(&Place::Work, &after, &forever))
        .await
        .unwrap();
    assert!(publisher.is_connected());
    assert_eq!(publisher.depth(&Place::Work).await.unwrap(), 2);
}

#[tokio::test]
async fn a_message_on_a_rung_returns_to_work_after_its_delay() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 1, true).await;
    let began = Instant::now();
    publisher
        .send(&queues.rung(1), &letter("later").generation(Generation(3)))
        .await
        .unwrap();
    let consumer = consumer(&queues, 10).await;
    let delivery = next(&consumer).await;
    let took = began.elapsed();
    assert!(took.as_secs_f64() >= 1.0, "{took:?}");
    assert_eq!(
        (delivery.body(), delivery.marks().unwrap().generation),
        (&b"later"[..], Generation(3))
    );
    assert_eq!(delivery.acknowledge().await, Settled::Done);
}

#[tokio::test]
async fn a_large_body_arrives_unchanged() {
    let queues = Queues::new().await;
    let publisher = publisher(&queues, 1, true).await;
    let body: Vec<u8> = (0..16 * 1024 * 1024u32).map(|byte| byte as u8).collect();
    publisher
        .send(&Place::Dead, &Letter::new(body.clone(), "i", "k"))
        .await
        .unwrap();
    assert!(queues.take(Place::Dead).await.0 == body);
}

#[tokio::test]
async fn a_copy_keeps_foreign_headers_and_goes_round_and_round() {
    let queues = Queues::new().await;
    let (publisher, consumer) = (
        publisher(&queues, 1, true).await,
        consumer(&queues, 10).await,
    );
    let strange = AMQPValue::LongString(vec![0, 255, b'x'].into());
    let copied_elsewhere =
        AMQPValue::FieldArray(vec![AMQPValue::LongString(queues.name(Place::Dead).into())].into());
    let original = headers(&[
        ("traceparent", AMQPValue::LongString("00-1-2-01".into())),
        ("bytes", strange.clone()),
        ("nothing", AMQPValue::Void),
    ])
    .with_correlation_id("c".into())
    .with_user_id("guest".into())
    .with_message_id("m".into());
    queues.publish(b"body", original).await;
    for hop in 1..=3 {
        let delivery = next(&consumer).await;
        let copy = Letter::copy_of(&delivery).hops(hop);
        publisher.send(&queues.rung(0), &copy).await.unwrap();
        assert_eq!(delivery.acknowledge().await, Settled::Done);
    }
    let delivery = next(&consumer).await;
    assert_eq!(delivery.marks().unwrap().hops, 3);
    assert_eq!(
        (delivery.header("traceparent"), delivery.message_id()),
        (Some("00-1-2-01"), Some("m"))
    );
    // What the broker wrote at the last hop is there, and only that: the copies before it carried none on.
    publisher
        .send(
            &Place::Dead,
            &Letter::copy_of(&delivery).parked("gave_up", "err\0or", Some("upload"), Some(4)),
        )
        .await
        .unwrap();
    assert_eq!(delivery.acknowledge().await, Settled::Done);
    let (body, parked) = queues.take(Place::Dead).await;
    let table = parked.headers().clone().unwrap();
    assert_eq!(body, b"body");
    assert!(!table.contains_key("x-death"), "{table:?}");
    assert_eq!(table.inner()["bytes"], strange);
    assert_eq!(
        table.inner()["cliquet-error"],
        AMQPValue::LongString("err\u{fffd}or".into())
    );
    assert_eq!(
        table.inner()["cliquet-user-id"],
        AMQPValue::LongString("guest".into())
    );
    assert_eq!(
        (parked.correlation_id(), parked.delivery_mode()),
        (&Some("c".into()), &Some(2))
    );

    // A header by which the broker sends copies to further queues acts once, for its publisher, and not on our copies.
    queues
        .publish(b"cc", headers(&[("CC", copied_elsewhere)]))
        .await;
    queues.take(Place::Dead).await;
    let delivery = next(&consumer).await;
    publisher
        .send(&queues.rung(0), &Letter::copy_of(&delivery))
        .await
        .unwrap();
    assert_eq!(delivery.acknowledge().await, Settled::Done);
    next(&consumer).await;
    assert_eq!(queues.depth(Place::Dead).await, 0);
}

#[tokio::test]
async fn a_copy_with_more_headers_than_a_frame_holds_goes_without_the_largest() {
    let queues = Queues::new().await;
    let (publisher, consumer) = (
        publisher(&queues, 1, true).await,
        consumer(&queues, 10).await,
    );
    let text = |bytes| AMQPValue::LongString("b".repeat(bytes).into());
    queues
        .publish(
            b"{}",
            headers(&[("large", text(130_000)), ("small", text(10))]),
        )
        .await;
    let delivery = next(&consumer).await;
    let copy = Letter::copy_of(&delivery).parked("gave_up", &"e".repeat(5_000), None, None);
    publisher.send(&Place::Dead, &copy).await.unwrap();
    let (_, parked) = queues.take(Place::Dead).await;
    let table = parked.headers().clone().unwrap();
    assert!(
        table.contains_key("small")
            && table.contains_key("cliquet-error")
            && !table.contains_key("large")
    );
}

// ── consuming ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_requeued_delivery_comes_again_and_says_so() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    queues.publish(b"again", BasicProperties::default()).await;
    let first = next(&consumer).await;
    assert!(!first.redelivered());
    assert_eq!(first.requeue().await, Settled::Done);
    let second = next(&consumer).await;
    assert!(second.redelivered());
    assert_eq!(second.acknowledge().await, Settled::Done);
}

#[tokio::test]
async fn a_delivery_is_settled_once() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    queues.publish(b"once", BasicProperties::default()).await;
    let delivery = next(&consumer).await;
    assert!(delivery.is_alive());
    assert_eq!(delivery.acknowledge().await, Settled::Done);
    assert!(!delivery.is_alive());
    assert_eq!(
        (delivery.acknowledge().await, delivery.requeue().await),
        (Settled::Lost, Settled::Lost)
    );
    queues.publish(b"next", BasicProperties::default()).await;
    assert_eq!(next(&consumer).await.body(), b"next");
}

#[tokio::test]
async fn stopping_hands_back_what_was_not_taken_and_leaves_the_rest_to_be_settled() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    for number in 0..5 {
        queues
            .publish(format!("{number}").as_bytes(), BasicProperties::default())
            .await;
    }
    let taken = next(&consumer).await;
    eventually("all five at the consumer", || async {
        (queues.depth(Place::Work).await == 0).then_some(())
    })
    .await;
    consumer.stop().await;
    assert!(consumer.next().await.is_none());
    eventually("four handed back", || async {
        (queues.depth(Place::Work).await == 4).then_some(())
    })
    .await;
    assert_eq!(taken.acknowledge().await, Settled::Done);
    consumer.close().await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(
        queues.depth(Place::Work).await,
        4,
        "what was acknowledged came back"
    );
}

#[tokio::test]
async fn closing_gives_back_what_was_not_settled() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    queues.publish(b"held", BasicProperties::default()).await;
    let held = next(&consumer).await;
    consumer.close().await;
    eventually("the message back in its queue", || async {
        (queues.depth(Place::Work).await == 1).then_some(())
    })
    .await;
    assert!(!held.is_alive());
    assert_eq!(held.acknowledge().await, Settled::Lost);
}

#[tokio::test]
async fn waiting_for_a_delivery_may_be_interrupted_at_any_moment() {
    const MESSAGES: usize = 300;
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 50).await;
    let publishing = async {
        for number in 0..MESSAGES {
            queues
                .publish(format!("{number}").as_bytes(), BasicProperties::default())
                .await;
        }
    };
    let taking = async {
        let mut bodies = std::collections::BTreeSet::new();
        while bodies.len() < MESSAGES {
            let pause = Duration::from_micros(bodies.len() as u64 % 7 * 50);
            if let Ok(delivery) = timeout(pause, consumer.next()).await {
                let delivery = delivery.unwrap();
                assert!(bodies.insert(delivery.body().to_vec()), "delivered twice");
                assert_eq!(delivery.acknowledge().await, Settled::Done);
            }
        }
    };
    timeout(Duration::from_secs(60), async {
        tokio::join!(publishing, taking)
    })
    .await
    .expect("a delivery was lost");
}

#[tokio::test]
async fn a_deleted_queue_is_built_again_and_consuming_goes_on() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    queues.publish(b"before", BasicProperties::default()).await;
    let before = next(&consumer).await;
    assert_eq!(before.acknowledge().await, Settled::Done);
    let mut state = consumer.state();
    state.mark_unchanged();
    queues.delete(Place::Work).await;
    timeout(
        Duration::from_secs(60),
        state.wait_for(|connected| !connected),
    )
    .await
    .expect("not noticed")
    .unwrap();
    timeout(
        Duration::from_secs(60),
        state.wait_for(|connected| *connected),
    )
    .await
    .expect("not built")
    .unwrap();
    queues.publish(b"after", BasicProperties::default()).await;
    assert_eq!(next(&consumer).await.body(), b"after");
}

#[tokio::test]
async fn a_consumer_whose_connection_is_closed_connects_again_and_is_given_everything_again() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 2).await;
    for body in ["0", "1", "2"] {
        queues
            .publish(body.as_bytes(), BasicProperties::default())
            .await;
    }
    let held = next(&consumer).await;
    eventually("its connection in the broker's list", || async {
        (queues.close_connections("consume").await > 0).then_some(())
    })
    .await;
    eventually("the loss to be noticed", || async {
        (!held.is_alive()).then_some(())
    })
    .await;
    assert_eq!(held.acknowledge().await, Settled::Lost);
    let mut bodies = Vec::new();
    while bodies.len() < 3 {
        let delivery = next(&consumer).await;
        bodies.push(String::from_utf8(delivery.body().to_vec()).unwrap());
        assert_eq!(delivery.acknowledge().await, Settled::Done);
    }
    bodies.sort();
    assert_eq!(bodies, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_header_of_ours_with_a_wrong_type_is_told_and_the_message_can_be_settled() {
    let queues = Queues::new().await;
    let consumer = consumer(&queues, 10).await;
    for wrong in [
        AMQPValue::LongString("five".into()),
        AMQPValue::LongInt(-1),
        AMQPValue::Double(1.0),
    ] {
        queues
            .publish(b"{}", headers(&[("cliquet-generation", wrong)]))
            .await;
        let delivery = next(&consumer).await;
        assert_eq!(delivery.marks().unwrap_err().reason, "bad_header");
        assert_eq!(delivery.acknowledge().await, Settled::Done);
    }
}

#[tokio::test]
async fn a_prefetch_beyond_the_limits_is_brought_within_them() {
    let queues = Queues::new().await;
    for (asked, given) in [(u16::MAX, "2000"), (0, "1"), (7, "7")] {
        let consumer = consumer(&queues, asked).await;
        let ours = eventually("it is listed", async || {
            // Of the whole server, where another test's queue may be going away just now.
            let listed = rabbitmqctl(&["-q", "list_consumers", "queue_name", "prefetch_count"]);
            let ours = |line: &&str| line.starts_with(&queues.name(Place::Work));
            listed.lines().find(ours).map(str::to_owned)
        })
        .await;
        assert_eq!(ours.split_whitespace().last(), Some(given), "{ours}");
        consumer.close().await;
    }
}

/// A relay to the broker whose first connection ends in the midst of the greeting: after the broker's second answer, before
/// its last. Answers with its port.
async fn relay_that_breaks_off_once(broker: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut broker = TcpStream::connect(("127.0.0.1", broker)).await.unwrap();
            tokio::spawn(async move {
                if number > 0 {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut broker).await;
                    return;
                }
                let mut piece = vec![0; 4096];
                for _ in 0..2 {
                    let size = client.read(&mut piece).await.unwrap();
                    broker.write_all(&piece[..size]).await.unwrap();
                    let size = broker.read(&mut piece).await.unwrap();
                    client.write_all(&piece[..size]).await.unwrap();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_broker_that_goes_away_in_its_greeting_holds_nobody_up() {
    let queues = Queues::new().await;
    let relay = relay_that_breaks_off_once(queues.address.port()).await;
    let mut url = url::Url::parse(&queues.amqp_url).unwrap();
    url.set_port(Some(relay)).unwrap();
    // The client itself would wait for this long.
    let address = Address::parse(&format!("{url}?connection_timeout=600000")).unwrap();
    soon(queues.topology.declare(&address, &queues.identity))
        .await
        .unwrap();
    assert_eq!(queues.depth(Place::Work).await, 0);
}

/// A broker may lose its disk while it is looked after: what was found out over one connection is no word about the next.
#[tokio::test]
async fn the_mark_is_left_over_the_connection_that_was_asked_and_over_no_other() {
    let queues = Queues::new().await;
    let detour = Detour::to(&queues.amqp_url).await;
    let publisher = Publisher::start(
        Address::parse(&detour.amqp_url).unwrap(),
        queues.topology.clone(),
        queues.identity.clone(),
        1,
        true,
    );
    publisher.ready().await;
    let (first, _) = publisher.connection().unwrap();
    assert!(!publisher.is_marked(first).await.unwrap());
    detour.cut();
    let second = eventually("another connection is made", async || {
        let (number, _) = publisher.connection()?;
        (number != first).then_some(number)
    })
    .await;
    for asked in [
        publisher.mark(first).await,
        publisher.is_marked(first).await.map(|_| ()),
    ] {
        assert!(
            matches!(asked, Err(BrokerError::Unreachable { .. })),
            "{asked:?}"
        );
    }
    assert!(!publisher.is_marked(second).await.unwrap());
    publisher.mark(second).await.unwrap();
    assert!(publisher.is_marked(second).await.unwrap());
}
