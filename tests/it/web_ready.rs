//! HTTP beside a worker: when it is ready, its metrics, and how both end.

use std::{fs, time::Duration};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    repair::enqueue,
    support::{
        binary::Binary,
        eventually,
        http::{Client, Web, served_by_worker},
        prometheus::deployed,
        services::Services,
        stage::Stage,
    },
};

/// Programs that end when the test lets them: `touch` a file in the binary's folder.
const GATED: &str = r#"
[handlers.gate]
exec = ["sh", "-c", "touch reached; until test -e open; do sleep 0.05; done"]
[handlers.a]
exec = ["true"]
"#;

/// Waits until the probe answers with this status and words.
async fn probe(client: &Client, status: u16, words: &str) {
    eventually(&format!("/readyz says {status} {words:?}"), async || {
        let answer = client.get("/readyz").await;
        (answer.status == status && answer.body.contains(words)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_from_its_first_consume_on_while_both_services_are_there() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let run = |arguments: &[&str]| tokio::task::block_in_place(|| services.run(arguments));
    run(&["kill", "rabbitmq"]);
    let binary = Binary::on(&stage, GATED);
    let mut worker = binary.work_with(&["--http", "127.0.0.1:0"]);
    let client = served_by_worker(&binary).await;
    probe(
        &client,
        503,
        "the worker waits for RabbitMQ before it begins",
    )
    .await;
    run(&["restart", "rabbitmq"]);
    probe(&client, 200, "ready").await;

    run(&["kill", "postgres"]);
    probe(&client, 503, "Postgres is away").await;
    client.get("/livez").await.with(200);
    // Long enough that every question that is asked now and then is asked in vain.
    sleep(Duration::from_secs(3)).await;
    run(&["restart", "postgres"]);
    probe(&client, 200, "ready").await;
    run(&["kill", "rabbitmq"]);
    probe(&client, 503, "the connection that consumes is away").await;
    // It cannot be sent, so it waits; and that is asked again and again, however long one answer took.
    enqueue(&stage, "1", "a").await;
    let mut told = 0.0;
    for _ in 0..3 {
        told = eventually("for how long the oldest job is due is told", async || {
            let metrics = client.get("/metrics").await.with(200).to_owned();
            let line = metrics
                .split("\ncliquet_oldest_job_due_seconds{")
                .nth(1)?
                .lines()
                .next()?;
            let seconds: f64 = line.rsplit(' ').next()?.parse().ok()?;
            (seconds > told).then_some(seconds)
        })
        .await;
    }
    run(&["restart", "rabbitmq"]);
    probe(&client, 200, "ready").await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));

    // And the server that is alone: while Postgres answers.
    let alone = Web::start(&binary).await;
    probe(&alone.client, 200, "ready").await;
    let mut whole = alone.client.events("/api/v1/events").await;
    assert_eq!(whole.next().await.unwrap().0, "overview");
    run(&["kill", "postgres"]);
    probe(&alone.client, 503, "Postgres").await;
    while whole.next().await.unwrap().0 != "unavailable" {}
    // Strangers are not told where it is, and as whom it is asked; the log is.
    let told = alone.stranger().get("/readyz").await;
    assert_eq!(told.with(503), "Postgres does not answer\n");
    let log = alone.process.said();
    assert!(
        log.contains("not ready") && log.contains("127.0.0.1:"),
        "{log}"
    );
    let told = alone.client.get("/api/v1/jobs").await.error(503);
    assert!(told.contains("Postgres"), "{told}");
    run(&["restart", "postgres"]);
    probe(&alone.client, 200, "ready").await;
    while whole.next().await.unwrap().0 != "overview" {}
    run(&["kill", "rabbitmq"]);
    let told = alone.client.get("/api/v1/queues").await.error(503);
    assert!(told.contains("RabbitMQ"), "{told}");
    alone.client.get("/readyz").await.with(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_drains_is_not_ready_and_serves_until_it_ends() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, GATED);
    binary.addresses(&stage.queues.amqp_url, &stage.database);
    binary.set("CLIQUET_DRAIN_TIMEOUT", "1m");
    let mut worker = binary.work_with(&["--http", "127.0.0.1:0"]);
    let client = served_by_worker(&binary).await;
    probe(&client, 200, "ready").await;
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["gate", "a"]}"#)
        .await;
    eventually("the task runs", async || {
        let task = &client.get(&format!("/api/v1/jobs/{job}")).await;
        let task: serde_json::Value = serde_json::from_str(&task.body).unwrap();
        (task["status"] == "PROCESSING").then_some(())
    })
    .await;
    let mut stream = client.events(&format!("/api/v1/jobs/{job}/events")).await;
    let (name, data) = stream.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &data["tasks"]),
        ("progress", &json!(["PROCESSING", "PENDING"]))
    );
    let mut whole = client.events("/api/v1/events").await;
    assert_eq!(whole.next().await.unwrap().0, "overview");

    worker.signal("TERM");
    probe(&client, 503, "the worker is stopping").await;
    client.get("/livez").await.with(200);
    // Nobody sends it any more, so it waits from now on.
    enqueue(&stage, "1", "a").await;
    while whole.next().await.unwrap().1["oldest_due_seconds"].is_null() {}
    binary.file("open", "");
    // The running task ends, the next one is handed back; then the server goes with its worker, and the streams with it.
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(stage.status(job).await.as_deref(), Some("PENDING"));
    // It ends with the server, whether or not it told of that.
    while stream.next().await.is_some() {}
    while whole.next().await.is_some() {}
    assert!(
        tokio::net::TcpStream::connect(client.address)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gives_prometheus_every_metric_that_the_alerts_name() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, GATED);
    let _worker = binary.work_with(&["--http", "127.0.0.1:0"]);
    let client = served_by_worker(&binary).await;
    let job = binary
        .publish(r#"{"kind": "k", "tasks": ["a", "a"]}"#)
        .await;
    stage.reaches(job, "SUCCESS").await;
    let done = r#"outcome="success"} 2"#;
    let text = eventually("both tasks are counted", async || {
        let answer = client.get("/metrics").await;
        let kind = answer.header("content-type").unwrap().to_owned();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        answer.with(200).contains(done).then_some(answer.body)
    })
    .await;
    let alerts = fs::read_to_string(deployed().join("alerts.yaml")).unwrap();
    let words = alerts.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
    let mut named = 0;
    for metric in words.filter(|word| word.starts_with("cliquet_")) {
        assert!(text.contains(&format!("\n{metric}{{")), "{metric}\n{text}");
        named += 1;
    }
    assert!(named >= 10, "{named}");
    // Where it is scraped as the example says.
    let example = fs::read_to_string(deployed().join("prometheus.yaml")).unwrap();
    assert!(example.contains("127.0.0.1:9464"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_on_many_jobs_ends_at_once_when_a_service_is_away_and_goes_on_when_it_is_back() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let run = |arguments: &[&str]| tokio::task::block_in_place(|| services.run(arguments));
    let worker = stage.worker();
    let mut jobs = Vec::new();
    for _ in 0..30 {
        jobs.push(stage.publish("a:permanent").await);
    }
    for job in &jobs {
        stage.reaches(*job, "FAILED").await;
    }
    worker.stop().await;
    let web = Web::of(Binary::on(&stage, "")).await;
    let retry = async |body: serde_json::Value| {
        let path = "/api/v1/jobs/retry";
        web.client.post(path, &body).await.json(200)
    };
    let filter = json!({"handler": "a"});
    let some = retry(json!({"filter": filter, "most": 10})).await;
    assert_eq!(some["done"], 10);

    // What is asked for the first time finds it away; what has a connection would wait for 30 seconds with each job.
    run(&["kill", "rabbitmq"]);
    let other = Web::of(Binary::on(&stage, "")).await;
    let body = json!({"filter": filter, "after": some["next"]});
    let away = other.client.post("/api/v1/jobs/retry", &body).await;
    let away = away.json(200);
    let failed = away["failed"].as_u64().unwrap();
    assert!((1..=8).contains(&failed), "{away}");
    assert_eq!(
        (&away["done"], &away["left"], &away["next"]),
        (&json!(0), &json!(true), &some["next"])
    );
    let error = away["errors"][0].as_str().unwrap();
    assert!(error.contains("RabbitMQ"), "{error}");

    run(&["restart", "rabbitmq"]);
    let rest = retry(json!({"filter": filter, "after": away["next"]})).await;
    assert_eq!(
        (&rest["done"], &rest["left"], &rest["next"]),
        (&json!(20), &json!(false), &json!(null))
    );
}
