//! The dead queue as operators meet it: looked at, retried, dropped, and moved by RabbitMQ's own means.

use std::{process::Stdio, time::Duration};

use cliquet::broker::{DeadQueue, Place};
use lapin::{
    BasicProperties, Confirmation,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use crate::support::{
    Queues,
    binary::Binary,
    eventually,
    privileges::{broker_as, database_as, permissions},
    stage::{Stage, body},
};

/// Publishes into the dead queue, as if somebody had parked it.
async fn park(queues: &Queues, messages: impl IntoIterator<Item = (Vec<u8>, BasicProperties)>) {
    let channel = queues.channel().await;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    for (body, properties) in messages {
        let confirm = channel
            .basic_publish(
                "".into(),
                queues.name(Place::Dead).into(),
                BasicPublishOptions::default(),
                &body,
                properties.with_delivery_mode(2),
            )
            .await
            .unwrap()
            .await
            .unwrap();
        assert_eq!(confirm, Confirmation::Ack(None));
    }
}

/// `count` messages that are no jobs, each another.
async fn park_numbers(queues: &Queues, count: u32) -> Vec<String> {
    let bodies: Vec<_> = (0..count)
        .map(|number| format!("number {number}"))
        .collect();
    let messages = bodies.iter().map(|body| {
        let body = body.clone().into_bytes();
        (body, parked("not_json", "the body is not JSON"))
    });
    park(queues, messages).await;
    bodies
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default().with_headers(table)
}

fn parked(reason: &str, error: &str) -> BasicProperties {
    headers(&[
        ("cliquet-reason", text(reason)),
        ("cliquet-error", text(error)),
    ])
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// Everything that is in a queue, in its order; the queue is empty then.
async fn emptied(queues: &Queues, place: Place) -> Vec<String> {
    let (channel, mut found) = (queues.channel().await, Vec::new());
    loop {
        let name = queues.name(place).into();
        let got = channel.basic_get(name, BasicGetOptions { no_ack: true });
        match got.await.unwrap() {
            Some(message) => found.push(String::from_utf8(message.delivery.data.clone()).unwrap()),
            None => return found,
        }
    }
}

async fn holds(queues: &Queues, place: Place, count: u32) {
    eventually(
        &format!("{} holds {count}", queues.name(place)),
        async || (queues.depth(place).await == count).then_some(()),
    )
    .await;
}

fn objects(printed: &str) -> Vec<Value> {
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[track_caller]
fn says(told: &str, words: &[&str]) {
    for words in words {
        assert!(told.contains(words), "{told}\ndoes not say {words:?}");
    }
}

// looking

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_the_dead_queue_changes_nothing_and_keeps_its_order() {
    let queues = Queues::new().await;
    queues.declare().await;
    let bodies = park_numbers(&queues, 150).await;
    let binary = Binary::with(&queues, "");
    let listed = binary.run(&["dead", "list", "--json"]).await;
    says(
        &listed.err,
        &["the oldest 100 were looked at, 50 more lie behind"],
    );
    let listed = objects(&listed.done());
    assert_eq!(listed.len(), 100);
    let hash = listed[77]["hash"].as_str().unwrap();
    let raw = binary.run(&["dead", "show", hash, "--raw"]).await.done();
    assert_eq!(raw, bodies[77]);
    let all = binary
        .run(&["dead", "list", "--limit", "1000", "--json"])
        .await
        .done();
    assert_eq!(objects(&all).len(), 150);
    let hashes = |lines: &[Value]| {
        let hashes = lines.iter().map(|line| line["hash"].to_string());
        hashes.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(hashes(&objects(&all)[..100]), hashes(&listed));
    let told = binary
        .run(&["dead", "show", &Uuid::now_v7().to_string(), "--limit", "3"])
        .await
        .failed(1);
    says(
        &told,
        &["holds no message", "147 more lie behind", "--limit"],
    );
    holds(&queues, Place::Dead, 150).await;
    assert_eq!(emptied(&queues, Place::Dead).await, bodies);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_killed_while_it_looks_loses_nothing() {
    const MESSAGES: u32 = 2_000;
    let queues = Queues::new().await;
    queues.declare().await;
    let bodies = park_numbers(&queues, MESSAGES).await;
    let binary = Binary::with(&queues, "");
    let (mut killed, mut starts) = (0, 0);
    while killed < 3 {
        starts += 1;
        assert!(starts <= 20, "each time it was done before it was seen");
        let mut command = binary.command(&["dead", "list", "--json", "--limit", "100000"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let held = eventually("it holds messages, or is done", async || {
            let ready = queues.depth(Place::Dead).await;
            let done = child.try_wait().unwrap().is_some();
            (ready < MESSAGES || done).then_some(MESSAGES - ready)
        })
        .await;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.code().is_none() {
            killed += 1;
            println!("killed while it held {held} of {MESSAGES}");
        } else {
            assert!(status.success(), "{status}");
        }
        holds(&queues, Place::Dead, MESSAGES).await;
    }
    // Each is there once; their order is the broker's.
    let (mut found, mut expected) = (emptied(&queues, Place::Dead).await, bodies);
    found.sort();
    expected.sort();
    assert!(found == expected, "{} of {MESSAGES}", found.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_not_counted_to_death_by_looking() {
    // As RabbitMQ 4 has it where a queue names no limit: at its 21st return a message is taken away.
    let queues = Queues::new().await;
    let limit = [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongInt(20)),
    ];
    queues.declare_otherwise(Place::Dead, &limit).await;
    let properties = parked("permanent", "the price is wrong").with_message_id("order-17".into());
    let two = [b"one".to_vec(), b"two".to_vec()].map(|body| (body, properties.clone()));
    park(&queues, two).await;
    for look in 0..45 {
        let mut dead = DeadQueue::open(&queues.address, &queues.topology, &queues.identity)
            .await
            .unwrap();
        // At the first one alone: the other goes round beside it.
        let seen = dead.next().await.unwrap().expect("it is still there");
        drop(seen);
        // One look in five ends as a crash does.
        if look % 5 == 0 {
            drop(dead);
        } else {
            dead.close().await.unwrap();
        }
        holds(&queues, Place::Dead, 2).await;
    }
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let (body, properties) = queues.take(Place::Dead).await;
        bodies.push(String::from_utf8(body).unwrap());
        assert_eq!(properties.message_id(), &Some("order-17".into()));
        for (name, kept) in [
            ("cliquet-reason", "permanent"),
            ("cliquet-error", "the price is wrong"),
        ] {
            assert_eq!(header(&properties, name), Some(&text(kept)));
        }
    }
    bodies.sort();
    assert_eq!(bodies, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_listed_by_its_reason_and_shown_safely() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent").await;
    stage.reaches(job, "FAILED").await;
    let garbage = b"\xff\xfe\x1b[2J\x07 no job\nat all";
    stage
        .queues
        .publish(garbage, headers(&[("tenant", AMQPValue::LongInt(7))]))
        .await;
    let long = vec![b'{'; 100_000];
    stage
        .queues
        .publish(&long, BasicProperties::default())
        .await;
    holds(&stage.queues, Place::Dead, 3).await;
    worker.stop().await;

    let binary = Binary::on(&stage, "");
    let listed = async |options: &[&str]| {
        let arguments = [&["dead", "list", "--json"], options].concat();
        objects(&binary.run(&arguments).await.done())
    };
    let all = listed(&[]).await;
    assert_eq!(all.len(), 3);
    let of = |reason: &str| all.iter().find(|line| line["reason"] == reason).unwrap();
    let (given_up, undecodable) = (of("permanent"), of("not_utf8"));
    assert_eq!(given_up["id"], json!(job));
    assert_eq!(
        (&given_up["kind"], &given_up["error"], &given_up["task"]),
        (
            &json!("test"),
            &json!("never again, as told"),
            &json!("Step b (2/2)")
        )
    );
    assert_eq!(
        (&given_up["attempts"], &given_up["decodable"]),
        (&json!(1), &json!(true))
    );
    let time = given_up["parked_at"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert_eq!(
        (
            &undecodable["id"],
            &undecodable["decodable"],
            &undecodable["bytes"]
        ),
        (&Value::Null, &json!(false), &json!(garbage.len()))
    );
    assert_eq!(
        json!(listed(&["--reason", "permanent"]).await),
        json!([given_up])
    );
    assert_eq!(listed(&["--undecodable"]).await.len(), 2);
    assert_eq!(
        listed(&["--undecodable", "--reason", "permanent,conflict"]).await,
        [Value::Null; 0]
    );

    let hash = undecodable["hash"].as_str().unwrap();
    let table = binary.run(&["dead", "list"]).await.done();
    says(
        &table,
        &[
            "REASON",
            &job.to_string(),
            "never again, as told",
            hash,
            "not_utf8",
        ],
    );
    let shown = binary.run(&["dead", "show", hash]).await.done();
    says(
        &shown,
        &[
            "reason    not_utf8",
            "tenant: 7",
            "\\xff\\xfe\\x1b[2J\\x07 no job\nat all",
        ],
    );
    assert!(!shown.contains(['\x1b', '\x07']), "{shown:?}");
    let shown = binary.run(&["dead", "show", hash, "--json"]).await.done();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["headers"]["tenant"], 7);
    assert_eq!(shown["body_base64"], "//4bWzJKByBubyBqb2IKYXQgYWxs");
    let raw = binary
        .command(&["dead", "show", &format!("#{hash}"), "--raw"])
        .output()
        .unwrap();
    assert_eq!(raw.stdout, garbage);
    let long = of("not_json")["hash"].as_str().unwrap();
    let shown = binary.run(&["dead", "show", long]).await.done();
    says(&shown, &["cut here, after 4096 of 100000 bytes; --raw"]);
    assert!(shown.len() < 6_000);
    let shown = binary.run(&["dead", "show", &job.to_string()]).await.done();
    says(
        &shown,
        &[
            "task      Step b",
            "attempts  1",
            &format!("\"id\":\"{job}\""),
        ],
    );
    holds(&stage.queues, Place::Dead, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_queue_that_is_missing_or_forbidden_says_what_to_do() {
    let queues = Queues::new().await;
    let mut binary = Binary::with(&queues, "");
    let told = binary.run(&["dead", "list"]).await.failed(1);
    says(
        &told,
        &[
            &queues.name(Place::Dead),
            "does not exist",
            "topology declare",
        ],
    );
    queues.declare().await;
    park_numbers(&queues, 3).await;
    let nothing = permissions(&["--json", "reader", "eve"]);
    let reader = broker_as(&queues.amqp_url, "cliquet_test_reader", &nothing).await;
    let reader = reader.expect("this test needs the broker's management API");
    binary.set("AMQP_URL", &reader);
    let told = binary.run(&["dead", "list"]).await.failed(1);
    says(&told, &["does not permit it", "read", "set_permissions"]);
    // What the script gives an operator is enough, and makes no queue.
    let operator = permissions(&["--json", "--prefix", "t-", "operator", "bob"]);
    let operator = broker_as(&queues.amqp_url, "cliquet_test_operator", &operator).await;
    binary.set("AMQP_URL", &operator.unwrap());
    binary.set("CLIQUET_DECLARE", "false");
    let listed = binary.run(&["dead", "list", "--json"]).await.done();
    assert_eq!(objects(&listed).len(), 3);
    for wrong in [
        &["dead", "show"][..],
        &["dead", "show", "17"],
        &["dead", "retry"],
        &["dead", "drop", "--all", "3fa9c1d20e4b"],
        &["dead", "list", "--limit", "0"],
    ] {
        binary.run(wrong).await.failed(2);
    }
}

// retrying

#[tokio::test(flavor = "multi_thread")]
async fn retrying_a_parked_message_goes_on_where_its_job_stopped_and_takes_it_away() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:needs:mended c:ok").await;
    let other = stage.publish("a:permanent").await;
    stage.reaches(job, "FAILED").await;
    stage.reaches(other, "FAILED").await;
    holds(&stage.queues, Place::Dead, 2).await;
    stage.script.open("mended").await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_OPERATOR", "olga");
    let id = job.to_string();
    let printed = binary.run(&["dead", "retry", &id]).await.done();
    assert_eq!(printed, format!("{job}\n"));
    let shown = binary.show(job).await;
    let done = &shown["interventions"][0];
    assert_eq!(
        (&done["act"], &done["operator"]),
        (&json!("retry"), &json!("olga")),
        "{shown}"
    );
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        stage.script.positions(job).await,
        [1, 2, 2, 2, 2, 3],
        "task 1 is SUCCESS and never runs again"
    );
    holds(&stage.queues, Place::Dead, 1).await;
    let told = binary.run(&["dead", "retry", &id]).await.failed(1);
    says(&told, &["holds no message", &id, "`cliquet show"]);
    worker.stop().await;
}

/// Reading the ledger is enough to send what is parked; that nobody can write down who did it is said once.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_the_ledger_retries_parked_messages_with_a_warning() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let jobs = [
        stage.publish("a:needs:mended").await,
        stage.publish("a:needs:mended").await,
    ];
    for job in jobs {
        stage.reaches(job, "FAILED").await;
    }
    holds(&stage.queues, Place::Dead, 2).await;
    stage.script.open("mended").await;
    let mut binary = Binary::on(&stage, "");
    let reader = database_as(&stage.database, "cliquet_reader").await;
    binary.set("DATABASE_URL", &reader);
    let ended = binary.run(&["dead", "retry", "--all"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.err.matches("could not be written down").count(),
        1,
        "{}",
        ended.err
    );
    for job in jobs {
        stage.reaches(job, "SUCCESS").await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_message_is_its_publishers_with_the_ledgers_generation() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let (known, unknown) = (Uuid::now_v7(), Uuid::now_v7());
    let tenant = headers(&[("tenant", text("7"))]);
    stage
        .queues
        .publish(&body(known, "a:permanent"), tenant)
        .await;
    stage.reaches(known, "FAILED").await;
    holds(&stage.queues, Place::Dead, 1).await;
    worker.stop().await;
    let properties = headers(&[
        ("tenant", text("8")),
        ("cliquet-generation", AMQPValue::LongLongInt(3)),
        ("cliquet-reason", text("exhausted")),
        ("cliquet-parked-at", text("2026-01-01T00:00:00Z")),
    ]);
    park(&stage.queues, [(body(unknown, "a"), properties)]).await;
    // The same job is parked twice when it was retried from the ledger and failed again: one message is enough.
    sqlx::query("UPDATE cliquet.jobs SET generation = 5, sent = 5 WHERE id = $1")
        .bind(known)
        .execute(&stage.pool)
        .await
        .unwrap();
    let stale = headers(&[("cliquet-generation", AMQPValue::LongLongInt(1))]);
    park(&stage.queues, [(body(known, "a:permanent"), stale)]).await;

    let binary = Binary::on(&stage, "");
    let ended = binary.run(&["dead", "retry", "--all", "--json"]).await;
    says(&ended.err, &["2 jobs are sent again, 1 further copies"]);
    let told = objects(&ended.done());
    let outcomes: Vec<_> = told.iter().map(|line| line["outcome"].as_str()).collect();
    assert_eq!(
        outcomes,
        [Some("published"), Some("published"), Some("copy")]
    );
    assert_eq!(told[0]["generation"], 5);
    assert_eq!(
        (&told[1]["generation"], &told[1]["status"]),
        (&json!(3), &Value::Null)
    );
    holds(&stage.queues, Place::Dead, 0).await;
    for (job, tenant, generation) in [(known, "7", 5), (unknown, "8", 3)] {
        let (sent, properties) = stage.queues.take(Place::Work).await;
        let sent: Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(sent["id"], json!(job));
        assert_eq!(header(&properties, "tenant"), Some(&text(tenant)));
        let marked = AMQPValue::LongLongInt(generation);
        assert_eq!(header(&properties, "cliquet-generation"), Some(&marked));
        for gone in ["cliquet-reason", "cliquet-error", "cliquet-parked-at"] {
            assert_eq!(header(&properties, gone), None, "{gone}");
        }
    }
    assert_eq!(stage.queues.depth(Place::Work).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_parked_again_is_refused_and_stays() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let (done, failed) = (Uuid::now_v7(), Uuid::now_v7());
    stage.publish_as(done, "a").await;
    stage.publish_as(failed, "a:permanent").await;
    stage.reaches(done, "SUCCESS").await;
    stage.reaches(failed, "FAILED").await;
    stage
        .queues
        .publish(b"no job", BasicProperties::default())
        .await;
    stage.publish_as(failed, "b").await; // another content
    holds(&stage.queues, Place::Dead, 3).await;
    park(
        &stage.queues,
        [(body(done, "a"), BasicProperties::default())],
    )
    .await;
    worker.stop().await;

    let binary = Binary::on(&stage, "");
    let ended = binary
        .run(&[
            "dead",
            "retry",
            "--all",
            "--reason",
            "not_json,conflict",
            "--json",
        ])
        .await;
    let told = objects(&ended.out);
    assert_eq!(told.len(), 2);
    assert!(
        told.iter().all(|line| line["outcome"] == "refused"),
        "{told:?}"
    );
    says(
        &ended.failed(1),
        &[
            "parked again at once (not_json)",
            "parked again at once (conflict)",
            "Publish it under another id",
            "2 messages are refused and stay",
        ],
    );
    let told = binary
        .run(&["dead", "retry", &done.to_string()])
        .await
        .failed(1);
    says(&told, &["its job is SUCCESS", "cliquet dead drop"]);
    assert_eq!(stage.queues.depth(Place::Work).await, 0);
    holds(&stage.queues, Place::Dead, 4).await;
    // The job's own copy goes, and the one in conflict with it stays.
    let ended = binary.run(&["dead", "retry", &failed.to_string()]).await;
    assert_eq!(ended.out, format!("{failed}\n"));
    says(&ended.failed(1), &["(conflict)"]);
    holds(&stage.queues, Place::Dead, 3).await;
    holds(&stage.queues, Place::Work, 1).await;
}

// dropping

#[tokio::test(flavor = "multi_thread")]
async fn dropping_wants_a_yes_and_says_what_the_ledger_keeps() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let (failed, done) = (Uuid::now_v7(), Uuid::now_v7());
    stage.publish_as(failed, "a:permanent").await;
    stage.publish_as(done, "a").await;
    stage.reaches(failed, "FAILED").await;
    stage.reaches(done, "SUCCESS").await;
    stage
        .queues
        .publish(b"no job", BasicProperties::default())
        .await;
    holds(&stage.queues, Place::Dead, 2).await;
    stage.publish_as(failed, "b").await; // another content: a conflict
    holds(&stage.queues, Place::Dead, 3).await;
    park(
        &stage.queues,
        [(body(done, "a"), BasicProperties::default())],
    )
    .await;
    worker.stop().await;
    let binary = Binary::on(&stage, "");

    let told = binary.run(&["dead", "drop", "--all"]).await.failed(2);
    says(&told, &["for good", "--yes"]);
    holds(&stage.queues, Place::Dead, 4).await;

    // One id, two contents: neither is dropped by accident.
    let id = failed.to_string();
    let told = binary.run(&["dead", "drop", &id, "--yes"]).await.failed(1);
    says(
        &told,
        &["messages with different bodies, and none is dropped"],
    );
    let listed = objects(&binary.run(&["dead", "list", "--json"]).await.done());
    assert_eq!(listed.len(), 4);
    let conflict = listed
        .iter()
        .find(|line| line["reason"] == "conflict")
        .unwrap();
    let hash = conflict["hash"].as_str().unwrap();
    assert!(told.contains(hash), "{told}");
    binary.run(&["dead", "drop", hash, "--yes"]).await.done();

    let over = ["dead", "drop", "--all", "--over", "--yes", "--json"];
    let dropped = objects(&binary.run(&over).await.done());
    assert_eq!(dropped.len(), 1);
    assert_eq!(
        (
            &dropped[0]["id"],
            &dropped[0]["outcome"],
            &dropped[0]["status"]
        ),
        (&json!(done), &json!("dropped"), &json!("SUCCESS"))
    );
    let ended = binary.run(&["dead", "drop", "--all", "--yes"]).await;
    says(
        &ended.err,
        &[
            "2 dropped",
            "of 1 nothing is kept",
            "keeps the job as FAILED",
            "`cliquet retry ID`",
        ],
    );
    assert!(ended.out.contains(&id));
    ended.done();
    holds(&stage.queues, Place::Dead, 0).await;
    // And so it does.
    assert_eq!(binary.show(failed).await["status"], "FAILED");
    let printed = binary.run(&["retry", &id]).await.done();
    assert_eq!(printed, format!("{id}\n"));
    let told = binary.run(&["dead", "drop", hash, "--yes"]).await.failed(1);
    says(&told, &["holds no message"]);
}

// RabbitMQ's own means

/// RabbitMQ's management API, as far as its dashboard uses it for this.
struct Dashboard {
    place: (String, u16),
    authorization: String,
}

impl Dashboard {
    fn open() -> Self {
        let url = std::env::var("RABBITMQ_MANAGEMENT_URL")
            .expect("this test needs the broker's management API: set RABBITMQ_MANAGEMENT_URL");
        let url = url::Url::parse(&url).unwrap();
        let user = format!("{}:{}", url.username(), url.password().unwrap_or_default());
        let user = if user == ":" {
            "guest:guest".to_owned()
        } else {
            user
        };
        Self {
            place: (url.host_str().unwrap().to_owned(), url.port().unwrap()),
            authorization: base64(user.as_bytes()),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.place).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nAuthorization: Basic {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.authorization,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Takes one message, as *Get messages* with an acknowledgement does.
    async fn get(&self, queue: &str) -> Value {
        let wish = json!({"count": 1, "ackmode": "ack_requeue_false", "encoding": "base64"});
        let path = format!("/api/queues/%2F/{queue}/get");
        eventually("the API gives a message", async || {
            let (status, mut messages) = self.ask("POST", &path, &wish).await;
            assert_eq!(status, 200, "{messages}");
            messages.get_mut(0).map(Value::take)
        })
        .await
    }

    /// Publishes it again, as *Publish message* does.
    async fn publish(&self, queue: &str, message: &Value) {
        let message = json!({
            "properties": message["properties"], "routing_key": queue,
            "payload": message["payload"], "payload_encoding": message["payload_encoding"],
        });
        let path = "/api/exchanges/%2F/amq.default/publish";
        let (status, answer) = self.ask("POST", path, &message).await;
        assert_eq!((status, &answer["routed"]), (200, &json!(true)), "{answer}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0u32, |number, at| {
            number << 8 | u32::from(three.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= three.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_messages_in_rabbitmqs_dashboard_retries_their_jobs() {
    let stage = Stage::new().await;
    let (work, dead) = (
        stage.queues.name(Place::Work),
        stage.queues.name(Place::Dead),
    );
    let worker = stage.worker();
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let job = stage.publish("a:ok b:needs:mended c:ok").await;
        stage.reaches(job, "FAILED").await;
        jobs.push(job);
    }
    holds(&stage.queues, Place::Dead, 3).await;
    stage.script.open("mended").await;
    let dashboard = Dashboard::open();

    // One by hand: got, acknowledged, published again with its properties.
    let message = dashboard.get(&dead).await;
    assert_eq!(
        message["properties"]["headers"]["cliquet-reason"],
        "exhausted"
    );
    dashboard.publish(&work, &message).await;
    stage.reaches(jobs[0], "SUCCESS").await;

    // The rest by *Move messages*, which is a shovel that ends with the queue.
    let shovel = json!({"value": {
        "src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": dead, "src-delete-after": "queue-length",
        "dest-protocol": "amqp091", "dest-uri": "amqp://", "dest-queue": work, "dest-add-forward-headers": false,
        "ack-mode": "on-confirm",
    }});
    let path = format!("/api/parameters/shovel/%2F/move-{work}");
    let (status, answer) = dashboard.ask("PUT", &path, &shovel).await;
    if status == 201 {
        println!("moved by a dynamic shovel");
    } else {
        println!("there is no shovel here ({status}, {answer}): the rest is moved by hand as well");
        for _ in 0..2 {
            dashboard.publish(&work, &dashboard.get(&dead).await).await;
        }
    }
    for job in jobs {
        stage.reaches(job, "SUCCESS").await;
        assert_eq!(
            stage.script.positions(job).await,
            [1, 2, 2, 2, 2, 3],
            "it begins again at its first unfinished task"
        );
    }
    holds(&stage.queues, Place::Dead, 0).await;
    tokio::time::timeout(Duration::from_secs(60), worker.stop())
        .await
        .unwrap();
}
