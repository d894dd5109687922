//! How the pages look: to everybody, on any screen.

use uuid::Uuid;

use super::Site;
use crate::support::{browser::Browser, stage::Stage};

/// Everything that a page may hold is on the stage: jobs in each status, long words, markup, many digits.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_accessible_fits_a_phone_and_is_quiet_in_dark_and_light() {
    let stage = Stage::with_ladder(&["200ms", "600s"]).await;
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
