//! What changes is seen without a press; and what cannot be seen is not taken for what is.

use serde_json::json;

use super::{STATUS, Site};
use crate::support::{browser::Browser, detour::Detour, stage::Stage};

const PULSE: &str = "#pulse";

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
        .write("#cancel input[name=reason]", "wrong pri")
        .await;
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
async fn a_page_that_sees_nothing_says_so_and_since_when() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:one b:ok").await;
    stage.script.reached("one", 1).await;
    let way = Detour::to(&stage.database).await;
    let site = Site::with(&stage, &[("DATABASE_URL", &way.amqp_url)]).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.says(PULSE, "live").await;
    assert_eq!(browser.run("return age.innerText").await, "");

    way.close();
    browser.says(PULSE, "not up to date: ").await;
    browser.says("#age", "s ago").await;
    stage.script.open("one").await;
    stage.reaches(job, "SUCCESS").await;
    browser.says("#age", "2 s ago").await;
    browser.says(PULSE, "not up to date: ").await;
    way.open();
    browser.is_titled("2/2 SUCCESS").await;
    browser.says(PULSE, "over").await;
    let left = browser
        .run("return [age.hidden, document.querySelector('footer').className]")
        .await;
    assert_eq!(left, json!([true, ""]));

    browser.goto(&site.url("/")).await;
    browser.says(PULSE, "live").await;
    browser.says(STATUS, "As of ").await;
    way.close();
    browser.says(PULSE, "not up to date: Postgres").await;
    browser.says("#age", "s ago").await;
    way.open();
    browser.says(PULSE, "live").await;
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skip_says_and_what_it_sends_never_come_apart() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:permanent c:permanent d:ok").await;
    stage.reaches(job, "FAILED").await;
    worker.stop().await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.click("#skip summary").await;
    browser
        .write("#skip input[name=reason]", "the store has it")
        .await;
    // Meanwhile somebody else does the same.
    let skip = json!({"reason": "the store has it", "position": 2});
    let path = format!("/api/v1/jobs/{job}/skip");
    site.web.client.post(&path, &skip).await.json(200);
    browser.says("#skip button", "Skip task 3").await;
    let form = browser
        .run(
            "const field = (name) => document.querySelector(`#skip input[name=${name}]`).value;
              return [field('position'), field('reason'), document.querySelector('#skip').open]",
        )
        .await;
    assert_eq!(form, json!(["3", "", true]));
    browser.close().await;
}
