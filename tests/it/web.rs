//! HTTP for operators: who is let in, from where, and what every answer carries.

use serde_json::json;
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    http::{TOKEN, Web, served_by_worker},
    stage::Stage,
};

const HANDLER: &str = "[handlers.a]\nexec = [\"true\"]\n";

fn with_token(stage: &Stage) -> Binary {
    let mut binary = Binary::on(stage, HANDLER);
    binary.set("CLIQUET_HTTP_TOKEN", TOKEN);
    binary
}

const GUARDED: [&str; 6] = [
    "/metrics",
    "/api/v1/openapi.json",
    "/api/v1/jobs",
    "/api/v1/overview",
    "/api/v1/events",
    "/nowhere",
];

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_and_everything_else_asks_for_the_token() {
    let stage = Stage::new().await;
    let web = Web::of(with_token(&stage)).await;
    let stranger = web.stranger();
    assert_eq!(stranger.get("/livez").await.with(200), "alive\n");
    assert_eq!(stranger.get("/readyz").await.with(200), "ready\n");
    let bad = [
        stranger.clone(),
        stranger.showing("a-token-of-the-tests-0123456788"),
        stranger.showing(&TOKEN[..TOKEN.len() - 1]),
        stranger.showing(&format!("{TOKEN}0")),
        stranger.showing(""),
        stranger.with("Authorization", &format!("Basic {TOKEN}")),
        stranger.with(
            "Cookie",
            &format!("cliquet-{}={TOKEN}", web.client.address.port()),
        ),
        stranger.with("Cookie", "cliquet-9464="),
    ];
    for path in GUARDED {
        for client in &bad {
            let answer = client.get(path).await;
            let told = answer.error(401);
            assert!(told.contains("token") && !told.contains(TOKEN), "{told}");
            assert!(
                answer
                    .header("www-authenticate")
                    .unwrap()
                    .starts_with("Bearer")
            );
        }
    }
    for client in &bad {
        let job = format!("/api/v1/jobs/{}/cancel", Uuid::now_v7());
        client.post(&job, &json!({})).await.error(401);
    }
    web.client.get("/api/v1/openapi.json").await.json(200);
    let lower = stranger.with("authorization", &format!("bearer {TOKEN}"));
    lower.get("/api/v1/jobs").await.json(200);
    let said = web.process.said();
    assert!(!said.contains(TOKEN), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_open_to_others_needs_a_token_that_cannot_be_guessed() {
    let stage = Stage::new().await;
    for (token, words) in [
        (None, "there is no token: set CLIQUET_HTTP_TOKEN"),
        (Some(""), "there is no token: set CLIQUET_HTTP_TOKEN"),
        (
            Some("fifteen-letters"),
            "CLIQUET_HTTP_TOKEN has 15 characters",
        ),
        (
            Some("with white space in it"),
            "CLIQUET_HTTP_TOKEN has white space",
        ),
    ] {
        let mut binary = Binary::on(&stage, HANDLER);
        if let Some(token) = token {
            binary.set("CLIQUET_HTTP_TOKEN", token);
        }
        for command in [&["web"][..], &["work", "--config", "cliquet.toml"]] {
            let told = binary
                .run(&[command, &["--http", "0.0.0.0:0"]].concat())
                .await;
            let told = told.failed(2);
            assert!(told.contains(words), "{told}");
            let secret = token.unwrap_or_default();
            assert!(secret.is_empty() || !told.contains(secret), "{told}");
        }
    }
    let told = with_token(&stage)
        .run(&["web", "--http", "shop.example:80"])
        .await;
    assert!(told.failed(2).contains("is no address to listen at"));
    // With one it does; and the settings choose the address as well.
    let mut binary = with_token(&stage);
    binary.set("CLIQUET_HTTP", "0.0.0.0:0");
    let mut web = binary.follow(&["web", "--json"]);
    let line = web.line().await.unwrap();
    assert!(line.contains("http://0.0.0.0:"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_told_at_once_and_no_worker_begins() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLER);
    let web = Web::start(&binary).await;
    let taken = web.client.address.to_string();
    for command in [&["web"][..], &["work", "--config", "cliquet.toml"]] {
        let told = binary.run(&[command, &["--http", &taken]].concat()).await;
        let told = told.failed(1);
        assert!(
            told.contains(&taken) && told.contains("another program listens there"),
            "{told}"
        );
    }
    let workers = stage.number(
        "SELECT count(*) FROM cliquet.workers WHERE $1::uuid IS NOT NULL",
        Uuid::nil(),
    );
    assert_eq!(workers.await, 0);
    web.client.get("/livez").await.with(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_http_only_when_it_is_asked_to() {
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, HANDLER);
    let quiet = binary.work();
    eventually("it works", async || {
        binary
            .written("log")
            .await
            .contains("working")
            .then_some(())
    })
    .await;
    assert!(!binary.written("log").await.contains("serving HTTP"));
    drop(quiet);
    let mut settings = Binary::on(&stage, HANDLER);
    settings.set("CLIQUET_HTTP", "127.0.0.1:0");
    let _worker = settings.work();
    served_by_worker(&settings)
        .await
        .get("/livez")
        .await
        .with(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_once_and_is_known_until_it_logs_out() {
    let stage = Stage::new().await;
    let web = Web::of(with_token(&stage)).await;
    let browser = web.stranger().with("Accept", "text/html,*/*;q=0.8");
    // Whoever wants a page is led to the login and back.
    let led = browser.get("/jobs?status=FAILED").await;
    led.with(303);
    let login = led.header("location").unwrap();
    assert_eq!(login, "/login?next=%2Fjobs%3Fstatus%3DFAILED");
    let form = browser.get(login).await;
    assert!(form.with(200).contains("/jobs?status=FAILED"), "{form:?}");
    let wrong = browser
        .form("/login", &[("token", "wrong"), ("next", "/jobs")])
        .await;
    assert!(wrong.with(401).contains("not the token"));
    assert_eq!(wrong.header("set-cookie"), None);

    let entered = [
        ("token", TOKEN),
        ("operator", "ada"),
        ("next", "/jobs?status=FAILED"),
    ];
    let entered = browser.form("/login", &entered).await;
    entered.with(303);
    assert_eq!(entered.header("location"), Some("/jobs?status=FAILED"));
    let cookie = entered.header("set-cookie").unwrap();
    for words in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(words), "{cookie}");
    }
    assert!(
        !cookie.contains("Secure") && !cookie.contains(TOKEN),
        "{cookie}"
    );
    let session = cookie.split(';').next().unwrap();
    let known = web.stranger().with("Cookie", &format!("a=b; {session}"));
    known.get("/api/v1/jobs").await.json(200);
    let left = known.form("/logout", &[]).await;
    left.with(303);
    assert!(left.header("set-cookie").unwrap().contains("Max-Age=0"));
    known.get("/api/v1/jobs").await.error(401);

    // A foreign page is not where a login leads.
    for next in ["//evil.example", "https://evil.example", "/\\evil.example"] {
        let entered = browser
            .form("/login", &[("token", TOKEN), ("next", next)])
            .await;
        assert_eq!(entered.header("location"), Some("/"), "{next}");
    }
    // Over https the cookie stays there; over a network without it, there is none.
    let entered = [("token", TOKEN)];
    let proxied = web.stranger().with("X-Forwarded-Proto", "https");
    let cookie = proxied.form("/login", &entered).await;
    assert!(cookie.header("set-cookie").unwrap().ends_with("; Secure"));
    let plain = web.stranger().with("Host", "shop.example:9464");
    let refused = plain.form("/login", &entered).await;
    assert!(refused.with(400).contains("not encrypted"));
    assert_eq!(refused.header("set-cookie"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_changes_nothing_and_reads_nothing() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, HANDLER)).await;
    let here = web.stranger();
    let job = format!("/api/v1/jobs/{}/cancel", Uuid::now_v7());
    here.post(&job, &json!({})).await.json(404);
    let own = format!("http://{}", here.address);
    for (name, value) in [("Sec-Fetch-Site", "same-origin"), ("Origin", &own)] {
        here.with(name, value)
            .post(&job, &json!({}))
            .await
            .json(404);
    }
    for (name, value) in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "https://evil.example"),
        ("Origin", "http://127.0.0.1:1"),
        ("Origin", "null"),
    ] {
        let foreign = here.with(name, value);
        for path in [
            &job,
            "/api/v1/jobs/cancel",
            "/api/v1/jobs/retry",
            "/login",
            "/logout",
        ] {
            let told = foreign.post(path, &json!({})).await.error(403);
            assert!(told.contains("another site"), "{told}");
        }
        if name == "Sec-Fetch-Site" {
            let told = foreign.get("/api/v1/jobs").await.error(403);
            assert!(told.contains("another site"), "{told}");
            foreign.get("/livez").await.with(200);
            // Somebody follows a link.
            let followed = foreign.with("Sec-Fetch-Mode", "navigate");
            followed.get("/api/v1/jobs").await.json(200);
        }
        // A form of a foreign page can send text that looks like JSON.
        let text = foreign.with("Content-Type", "text/plain");
        text.send("POST", &job, b"{}").await.error(403);
    }
    // A name of a foreign page's own that leads to this machine (DNS rebinding).
    for host in [
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "10.0.0.1",
    ] {
        let rebound = here.with("Host", host);
        let told = rebound.get("/api/v1/jobs").await.error(421);
        assert!(told.contains("is not called"), "{told}");
        rebound.post(&job, &json!({})).await.error(421);
        rebound.get("/livez").await.with(200);
    }
    let absolute = format!(
        "GET http://evil.example/api/v1/jobs HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        here.address
    );
    here.raw(absolute.as_bytes()).await.error(421);
    for host in ["localhost:1", "[::1]:9464", "127.0.0.2"] {
        here.with("Host", host).get("/api/v1/jobs").await.json(200);
    }
    // Who has the token may come by any name, such as that of a reverse proxy.
    let guarded = Web::of(with_token(&stage)).await;
    let named = guarded.client.with("Host", "jobs.example");
    named.get("/api/v1/jobs").await.json(200);
    let rebound = guarded.stranger().with("Host", "jobs.example");
    rebound.get("/api/v1/jobs").await.error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_browsers_to_load_nothing_foreign_and_keep_nothing() {
    let stage = Stage::new().await;
    let web = Web::of(with_token(&stage)).await;
    let stranger = web.stranger();
    for answer in [
        stranger.get("/livez").await,
        stranger.get("/login").await,
        stranger.get("/api/v1/jobs").await,
        stranger.with("Accept", "text/html").get("/").await,
        web.client.get("/api/v1/jobs").await,
        web.client.get("/nowhere").await,
        web.client.with("Accept", "text/html").get("/nowhere").await,
        web.client.send("DELETE", "/api/v1/jobs", b"").await,
    ] {
        let policy = answer.header("content-security-policy").unwrap();
        for words in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(words), "{policy}");
        }
        assert!(
            !policy.contains("unsafe") && !policy.contains("http"),
            "{policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_json_for_programs_and_a_page_for_people() {
    let stage = Stage::new().await;
    let web = Web::of(Binary::on(&stage, HANDLER)).await;
    let program = web.stranger();
    let told = program.get("/nowhere").await.error(404);
    assert!(told.contains("there is nothing at /nowhere"), "{told}");
    let person = program.with("Accept", "text/html,*/*");
    let page = person.get("/nowhere").await;
    assert!(page.with(404).contains("there is nothing at /nowhere"));
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    person.get("/api/v1/nowhere").await.error(404);
    for (method, path) in [
        ("DELETE", "/api/v1/jobs"),
        ("POST", "/api/v1/overview"),
        ("PUT", "/metrics"),
    ] {
        let answer = program.send(method, path, b"").await;
        assert!(answer.error(405).contains("does not take"), "{answer:?}");
        assert!(
            answer.header("allow").unwrap().contains("GET"),
            "{answer:?}"
        );
    }
    let answer = program.get("/api/v1/jobs/1/retry").await;
    answer.error(405);
    assert_eq!(answer.header("allow"), Some("POST"));
}
