//! HTTP for operators: nobody who sends too much or too slowly, or who does not read, holds up the others.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    http::{Client, TOKEN, Web, because},
    stage::Stage,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_refused() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, "")).await;
    let client = web.stranger();
    let query =
        |length: usize| format!("/api/v1/jobs?error={}", "x".repeat(length - "error=".len()));
    client.get(&query(8 * 1024)).await.json(200);
    let told = client.get(&query(8 * 1024 + 1)).await.error(414);
    assert!(told.contains("8192 bytes"), "{told}");

    let job = format!("/api/v1/jobs/{}/cancel", Uuid::now_v7());
    let body = |length: usize| {
        let empty = because("").to_string().len();
        because(&" ".repeat(length - empty))
    };
    client.post(&job, &body(64 * 1024)).await.json(404);
    let told = client.post(&job, &body(64 * 1024 + 1)).await.error(413);
    assert!(told.contains("65536 bytes"), "{told}");
    // In chunks nobody says beforehand how long it will be.
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    let head = client
        .with("Content-Type", "application/json")
        .with("Transfer-Encoding", "chunked")
        .head("POST", &job);
    let chunked = format!("{head}\r\n{}1\r\n \r\n0\r\n\r\n", chunk.repeat(2));
    client.raw(chunked.as_bytes()).await.error(413);
    // What does not fit a head at all, HTTP itself refuses.
    let answer = client
        .with("X-Long", &"x".repeat(64 * 1024))
        .get("/livez")
        .await;
    assert!(matches!(answer.status, 400 | 431), "{answer:?}");
    client.get("/livez").await.with(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_what_was_agreed_is_told() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, "")).await;
    let client = web.stranger();
    let cancel = format!("/api/v1/jobs/{}/cancel", Uuid::now_v7());
    let told = client.send("POST", &cancel, b"{}").await.error(415);
    assert!(told.contains("application/json"), "{told}");
    for (body, words) in [
        ("{", "EOF"),
        ("[]", "the body: "),
        (r#"{"reason": 7}"#, "reason: invalid type"),
        (r#"{"reson": "x"}"#, "unknown field `reson`"),
        (r#"{"reason": "\u0000"}"#, "NUL"),
        ("{} {}", "trailing"),
    ] {
        let json = client.with("Content-Type", "application/json; charset=utf-8");
        let told = json.send("POST", &cancel, body.as_bytes()).await.error(400);
        assert!(told.contains(words), "{body}: {told}");
    }
    let many = json!({"filter": {"kind": "k"}, "most": 0});
    let told = client.post("/api/v1/jobs/cancel", &many).await.error(400);
    assert!(told.contains("`most` is 0; expected 1 to 10000"), "{told}");
    let told = client
        .post("/api/v1/jobs/cancel", &json!({}))
        .await
        .error(400);
    assert!(told.contains("missing field `filter`"), "{told}");
    let skip = format!("/api/v1/jobs/{}/skip", Uuid::now_v7());
    let told = client.post(&skip, &because("  ")).await.error(400);
    assert!(told.contains("say why"), "{told}");
    client.post(&skip, &json!({})).await.error(400);
    for path in ["/api/v1/jobs/7", "/api/v1/jobs/7/events"] {
        let told = client.get(path).await.error(400);
        assert!(told.contains("UUID"), "{told}");
    }
    for query in [
        "status=LOST",
        "limit=0",
        "limit=x",
        "since=now",
        "after=here",
        "colour=red",
    ] {
        client
            .get(&format!("/api/v1/jobs?{query}"))
            .await
            .error(400);
    }
    let named = client.with("Cliquet-Operator", &"x".repeat(101));
    named.get("/api/v1/jobs").await.error(400);
}

/// Sends the beginning of a request and waits until the server has had enough of it: what it says then, and after how long.
/// Some seconds are everybody's; how many more there are on a busy machine is not what is asked here.
async fn dawdle(client: &Client, beginning: &str) -> (String, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(client.address).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let mut said = String::new();
    let ended = timeout(Duration::from_secs(60), stream.read_to_string(&mut said));
    ended.await.expect("a slow client is waited for").unwrap();
    (said, began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_given_up_and_hold_up_nobody() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, "")).await;
    let client = web.stranger();
    let job = format!("/api/v1/jobs/{}/cancel", Uuid::now_v7());
    let body =
        client.head("POST", &job) + "Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{";
    let nothing = (0..100).map(|_| dawdle(&client, ""));
    let slow = async {
        tokio::join!(
            dawdle(&client, "GET /livez HT"),
            dawdle(&client, &body),
            futures::future::join_all(nothing),
        )
    };
    let others = async {
        for _ in 0..20 {
            let asked = timeout(Duration::from_secs(8), client.get("/api/v1/jobs"));
            asked
                .await
                .expect("slow clients hold up the others")
                .json(200);
        }
    };
    let ((head, body, nothing), ()) = tokio::join!(slow, others);
    assert!(
        head.0.is_empty() || head.0.starts_with("HTTP/1.1 408"),
        "{head:?}"
    );
    assert!(
        body.0.starts_with("HTTP/1.1 408") && body.0.contains("the body has not come"),
        "{body:?}"
    );
    for (_, after) in [head, body].into_iter().chain(nothing) {
        assert!(after > Duration::from_secs(5), "{after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_say_nothing_give_way_to_whoever_is_let_in() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_HTTP_TOKEN", TOKEN);
    let web = Web::of(binary).await;
    let (client, stranger) = (&web.client, web.stranger());
    let mut watched = client.events("/api/v1/events").await;
    let mut silent = Vec::new();
    for number in 0..400 {
        let mut stream = TcpStream::connect(client.address).await.unwrap();
        // Some of them have shown a wrong token, and keep their connection.
        let beginning = match number % 2 {
            0 => "GET /livez HT".to_owned(),
            _ => {
                stranger
                    .head("GET", "/metrics")
                    .replace("close", "keep-alive")
                    + "\r\n"
            }
        };
        stream.write_all(beginning.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    // Well before any of them has waited for too long.
    let soon = async {
        stranger.get("/livez").await.with(200);
        client.get("/api/v1/jobs").await.json(200);
    };
    timeout(Duration::from_secs(10), soon)
        .await
        .expect("strangers keep everybody out");
    assert_eq!(watched.next().await.unwrap().0, "overview");
    // The first to come was the first to go, and the last is still there.
    let (mut first, mut last) = (silent.remove(0), silent.pop().unwrap());
    let mut said = Vec::new();
    let ended = timeout(Duration::from_secs(5), first.read_to_end(&mut said));
    let _ = ended.await.expect("the first stranger keeps its place");
    last.write_all(b"\r\n").await.unwrap();
    assert!(last.read_u8().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_not_more_than_200_streams_and_each_gives_its_place_back() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, "")).await;
    let client = web.stranger();
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(client.events("/api/v1/events").await);
    }
    let told = client.get("/api/v1/events").await.error(503);
    assert!(told.contains("200 streams of events are open"), "{told}");
    client.get("/api/v1/jobs").await.json(200);
    // All of them are told by one poller.
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap().0, "overview");
    }
    streams.pop();
    let mut again = crate::support::eventually("a place is free", async || {
        let head = client.head("GET", "/api/v1/events") + "\r\n";
        let mut stream = TcpStream::connect(client.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        (&status == b"HTTP/1.1 200").then_some(stream)
    })
    .await;
    again.shutdown().await.unwrap();
    // The server ends at once, though they are open.
    let began = Instant::now();
    web.process.signal("TERM");
    web.process.ended().await.done();
    // Streams alone would last for an hour.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    for mut stream in streams {
        while stream.next().await.is_some() {}
    }
}
