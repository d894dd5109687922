//! The page in a real browser: what is seen, what is pressed, and who may.

use std::process::Stdio;

use fantoccini::key::Key;
use serde_json::Value;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    browser::Browser,
    eventually,
    prometheus::free_port,
    stage::{Stage, WorkerProcess},
};

/// `cliquet web` on a stage; ended at the end.
struct Site {
    binary: Binary,
    address: String,
    _server: WorkerProcess,
}

impl Site {
    async fn on(stage: &Stage) -> Self {
        Self::with(stage, &[]).await
    }

    async fn with(stage: &Stage, environment: &[(&str, &str)]) -> Self {
        let mut binary = Binary::on(stage, "");
        for (name, value) in environment {
            binary.set(name, value);
        }
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let mut command = binary.command(&["web", "--http", &address]);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let site = Self {
            binary,
            address,
            _server: WorkerProcess::of(child),
        };
        eventually("cliquet web listens", async || {
            TcpStream::connect(&site.address).await.ok()
        })
        .await;
        site
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn job(&self, id: Uuid) -> String {
        self.url(&format!("/jobs/{id}"))
    }

    /// What the ledger keeps of what people did to a job: `act operator: reason`.
    async fn interventions(&self, job: Uuid) -> Vec<String> {
        let shown = self.binary.show(job).await;
        let done = shown["interventions"]
            .as_array()
            .unwrap_or_else(|| panic!("{shown}"));
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        done.iter()
            .map(|one| {
                format!(
                    "{} {}: {}",
                    text(&one["act"]),
                    text(&one["operator"]),
                    text(&one["reason"])
                )
            })
            .collect()
    }
}

const FLASH: &str = "#flash";
const STATUS: &str = "#status";

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_progress_is_seen_live_and_nothing_that_is_half_written_is_lost() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:one b:gate:two c:gate:three").await;
    stage.script.reached("one", 1).await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.run("window.unloaded = 'never'").await;
    browser.is_titled("0/3 Step a …").await;
    browser.says("footer", "live").await;

    stage.script.open("one").await;
    browser.is_titled("1/3 Step b …").await;
    browser
        .says(STATUS, "1 of 3 tasks done. Now: Step b …")
        .await;
    browser.says("#task-1", "SUCCESS").await;

    // Somebody is about to cancel, and hesitates.
    browser.click("#cancel summary").await;
    browser
        .find("#cancel input[name=reason]")
        .await
        .send_keys("wrong pri")
        .await
        .unwrap();
    stage.script.open("two").await;
    browser.is_titled("2/3 Step c …").await;
    browser.says("#task-2", "SUCCESS").await;
    let kept = browser
        .run("const field = document.querySelector('#cancel input[name=reason]');
              return [field.value, document.activeElement === field, field.closest('details').open]")
        .await;
    assert_eq!(kept, serde_json::json!(["wrong pri", true, true]));

    stage.script.open("three").await;
    browser.is_titled("3/3 SUCCESS").await;
    browser.says(STATUS, "All 3 tasks are done.").await;
    assert_eq!(
        browser.run("return window.unloaded").await,
        "never",
        "the page was loaded again"
    );
    assert_eq!(browser.complaints().await, [""; 0]);
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_button_is_reached_and_pressed_by_keyboard_alone() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:needs:store c:ok").await;
    stage.reaches(job, "FAILED").await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser
        .says(STATUS, "1 of 3 tasks done. Given up at: Step b")
        .await;
    browser.says("#task-2", "store is away").await;

    // The first Tab leads past the head.
    browser.press(&[Key::Tab]).await;
    assert_eq!(
        browser.run("return document.activeElement.innerText").await,
        "Skip to content"
    );
    browser.press(&[Key::Enter]).await;
    stage.script.open("store").await;
    browser.tab_to("#retry button").await;
    let outline = browser
        .run("return getComputedStyle(document.activeElement).outlineStyle")
        .await;
    assert_eq!(outline, "solid", "the focus is not seen");
    browser.press(&[Key::Enter]).await;
    browser
        .says(FLASH, "The job was sent to the workers.")
        .await;
    browser.says(STATUS, "All 3 tasks are done.").await;
    browser.says("#people", "retried it").await;
    assert_eq!(
        stage
            .script
            .positions(job)
            .await
            .iter()
            .filter(|position| **position == 1)
            .count(),
        1
    );

    // It is told once.
    browser.client.refresh().await.unwrap();
    browser.says(STATUS, "All 3 tasks are done.").await;
    assert_eq!(
        browser
            .run("return document.querySelector('#flash').innerText")
            .await,
        ""
    );
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_skipped_with_a_reason_that_stays() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent c:ok").await;
    stage.reaches(job, "FAILED").await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.click("#skip summary").await;
    // The browser itself asks for the reason.
    browser.click("#skip button").await;
    assert_eq!(
        browser
            .run("return document.querySelector('#skip input[name=reason]').matches(':invalid')")
            .await,
        true
    );
    assert_eq!(stage.status(job).await.as_deref(), Some("FAILED"));

    browser
        .find("#skip input[name=reason]")
        .await
        .send_keys("<b>the store has it</b>")
        .await
        .unwrap();
    browser.click("#skip button").await;
    browser.says(FLASH, "Task 2 was skipped.").await;
    browser.says(STATUS, "All 3 tasks are done.").await;
    browser.says("#task-2", "skipped by an operator").await;
    browser.says("#people", "<b>the store has it</b>").await;
    assert_eq!(
        site.interventions(job).await,
        ["skip http: <b>the store has it</b>"]
    );
    assert_eq!(stage.script.positions(job).await, [1, 2, 3]);
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_like_failures_is_retried_at_one_press() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(stage.publish("a:ok b:needs:store").await);
    }
    let other = stage.publish("c:permanent").await;
    for job in jobs.iter().chain([&other]) {
        stage.reaches(*job, "FAILED").await;
    }
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.url("/")).await;
    browser.says("#failing", "3 jobs: b: store is away").await;
    browser.click("#failing .group").await;
    browser.says("table.jobs", "1/2 Step b").await;
    let rows = browser
        .run("return document.querySelectorAll('table.jobs tbody tr').length")
        .await;
    assert_eq!(rows, 3);

    browser.goto(&site.url("/groups")).await;
    browser.says("main", "3 jobs: b").await;
    stage.script.open("store").await;
    browser.click("details[id^=retry-] summary").await;
    browser
        .find("details[id^=retry-] input[name=reason]")
        .await
        .send_keys("the store is back")
        .await
        .unwrap();
    browser.click("details[id^=retry-] button").await;
    browser
        .says(FLASH, "3 jobs were sent to the workers.")
        .await;
    assert_eq!(browser.path().await, "/groups");
    for job in &jobs {
        stage.reaches(*job, "SUCCESS").await;
        assert_eq!(
            site.interventions(*job).await,
            ["retry http: the store is back"]
        );
    }
    assert_eq!(stage.status(other).await.as_deref(), Some("FAILED"));
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_asked_for_and_acts_bear_the_name_that_was_given() {
    let token = "a-token-of-these-tests-0123456789";
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:needs:store").await;
    stage.reaches(job, "FAILED").await;
    let site = Site::with(&stage, &[("CLIQUET_HTTP_TOKEN", token)]).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    assert_eq!(browser.path().await, "/login");
    assert!(!browser.client.source().await.unwrap().contains("Step a"));
    let log_in = async |token: &str| {
        browser
            .find("input[name=token]")
            .await
            .send_keys(token)
            .await
            .unwrap();
        browser
            .find("input[name=operator]")
            .await
            .send_keys("ada")
            .await
            .unwrap();
        browser.click("main button").await;
    };
    log_in("another").await;
    browser.says("[role=alert]", "token").await;
    log_in(token).await;
    browser.says("h1", "test").await;
    assert_eq!(browser.path().await, format!("/jobs/{job}"));
    stage.script.open("store").await;
    browser.click("#retry button").await;
    browser.says("#people", "ada retried it").await;
    assert_eq!(site.interventions(job).await, ["retry ada: -"]);
    // The session's cookie is out of the reach of scripts.
    assert!(
        !browser
            .run("return document.cookie")
            .await
            .to_string()
            .contains("cliquet")
    );

    browser.click(".who button").await;
    browser.find("input[name=token]").await;
    browser.goto(&site.url("/workers")).await;
    assert_eq!(browser.path().await, "/login");
    browser.close().await;
    worker.stop().await;
}

/// Everything that a page may hold is on the stage: jobs in each status, long words, markup, many digits.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_accessible_fits_a_phone_and_is_quiet_in_dark_and_light() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let done = stage.publish("a:ok b:write c:ok").await;
    let failed = stage.publish("a:ok b:permanent c:ok").await;
    let waits = stage.publish("a:ok b:after:600000 c:ok").await;
    let runs = stage.publish("a:ok b:gate:never c:ok").await;
    stage.reaches(done, "SUCCESS").await;
    stage.reaches(failed, "FAILED").await;
    stage.reaches(waits, "RETRYING").await;
    stage.script.reached("never", 1).await;
    let long = format!("{}<img src=x onerror=alert(1)>", "unbroken".repeat(20));
    sqlx::query("UPDATE cliquet.jobs SET error = $2, payload = $3::json WHERE id = $1")
        .bind(failed)
        .bind(&long)
        .bind(format!(
            "{{\"price\": 12345678901234567890.10, \"text\": {}}}",
            serde_json::json!(long)
        ))
        .execute(&stage.pool)
        .await
        .unwrap();
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    let mut pages: Vec<_> = [
        "/",
        "/jobs",
        "/jobs?status=FAILED,RETRYING&kind=nothing",
        "/groups",
        "/workers",
        "/login",
    ]
    .map(str::to_owned)
    .into();
    pages.extend([done, failed, waits, runs].map(|job| format!("/jobs/{job}")));
    let mut wrong = Vec::new();
    for path in &pages {
        browser.goto(&site.url(path)).await;
        browser.find("main h1").await;
        for scheme in ["light", "dark"] {
            browser.prefer(scheme).await;
            for width in [1280, 360] {
                browser.screen(width, 800).await;
                // Everything that may be opened is.
                browser
                    .run("document.querySelectorAll('details').forEach(one => one.open = true)")
                    .await;
                let complaints = browser.complaints().await;
                let found = [
                    complaints,
                    browser.too_wide().await,
                    browser.violations().await,
                ]
                .concat();
                wrong.extend(
                    found
                        .into_iter()
                        .map(|what| format!("{path}, {scheme}, {width}: {what}")),
                );
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    browser.goto(&site.job(failed)).await;
    browser.says("#payload", "12345678901234567890.10").await;

    // What is not there is told so, and a page of its own.
    browser.goto(&site.job(Uuid::nil())).await;
    browser.says("h1", "Not found").await;
    browser.close().await;
    stage.script.open("never").await;
    worker.stop().await;
}
