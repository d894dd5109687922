//! Buttons: what is pressed is done, once, and with its reason.

use fantoccini::key::Key;

use super::{FLASH, STATUS, Site};
use crate::support::{browser::Browser, stage::Stage};

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
        .write("#skip input[name=reason]", "<b>the store has it</b>")
        .await;
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
async fn a_job_is_cancelled_and_what_came_of_it_has_the_focus() {
    // What is to be tried again in ten minutes waits for that long.
    let stage = Stage::with_ladder(&["200ms", "600s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:ok b:after:600000 c:ok").await;
    stage.reaches(job, "RETRYING").await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.click("#cancel summary").await;
    browser
        .write("#cancel input[name=reason]", "wrong prices")
        .await;
    browser.click("#cancel button").await;
    browser.says(FLASH, "The job is cancelled.").await;
    browser.says(STATUS, "It was cancelled.").await;
    let focus = browser.run("return document.activeElement.innerText").await;
    assert_eq!(focus, "The job is cancelled.");
    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
    assert_eq!(site.interventions(job).await, ["cancel http: wrong prices"]);
    let left = browser
        .run("return document.querySelectorAll('#acts').length")
        .await;
    assert_eq!(left, 0, "a job that is over offers acts");
    browser.close().await;
    worker.stop().await;
}

/// The id of the first group on the page.
async fn the_group(site: &Site) -> String {
    let shown = site.web.client.get("/groups").await;
    let (_, rest) = shown.with(200).split_once("id=\"group-").unwrap();
    rest.split('"').next().unwrap().to_owned()
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
        .write(
            "details[id^=retry-] input[name=reason]",
            "the store is back",
        )
        .await;
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
async fn those_of_a_group_that_still_wait_are_cancelled_and_only_with_a_reason() {
    // What is to be tried again in ten minutes waits for that long.
    let stage = Stage::with_ladder(&["200ms", "600s"]).await;
    let worker = stage.worker();
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(stage.publish("a:ok b:after:600000").await);
    }
    for job in &jobs {
        stage.reaches(*job, "RETRYING").await;
    }
    let site = Site::on(&stage).await;
    let act = format!("/groups/{}/cancel", the_group(&site).await);
    // Whatever a browser does not ask for, the server does.
    let without = site.web.client.form(&act, &[("reason", " ")]).await;
    let flash = without.header("set-cookie").unwrap();
    assert!(flash.contains("bad=Nothing+was+cancelled"), "{flash}");
    assert_eq!(stage.status(jobs[0]).await.as_deref(), Some("RETRYING"));

    let browser = Browser::start().await;
    browser.goto(&site.url("/groups")).await;
    browser.click("details[id^=cancel-] summary").await;
    browser
        .write("details[id^=cancel-] input[name=reason]", "wrong shop")
        .await;
    browser.click("details[id^=cancel-] button").await;
    browser.says(FLASH, "3 jobs were cancelled.").await;
    browser.says("main", "Nothing fails.").await;
    for job in jobs {
        assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
        assert_eq!(site.interventions(job).await, ["cancel http: wrong shop"]);
    }
    browser.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_press_goes_on_behind_the_place_where_the_last_one_ended() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(stage.publish("a:permanent").await);
    }
    for job in &jobs {
        stage.reaches(*job, "FAILED").await;
    }
    // Nobody takes them: each stays FAILED after its retry.
    worker.stop().await;
    let site = Site::on(&stage).await;
    let client = &site.web.client;
    let first = client.get("/api/v1/jobs?limit=1").await.json(200);
    let newest = first["jobs"][0]["id"].as_str().unwrap();
    let id = the_group(&site).await;
    let after = first["next"].as_str().unwrap();
    let shown = client
        .get(&format!("/groups?group={id}&act=retry&after={after}"))
        .await;
    let field = format!("name=\"after\" value=\"{after}\"");
    assert!(shown.with(200).contains(&field), "{shown:?}");
    let act = format!("/groups/{id}/retry");
    let older = client.form(&act, &[("after", after)]).await;
    assert_eq!(older.header("location"), Some("/groups"));
    let flash = older.header("set-cookie").unwrap();
    assert!(flash.contains("good=2+jobs+were+sent"), "{flash}");
    for job in jobs {
        let retried = !site.interventions(job).await.is_empty();
        assert_eq!(retried, job.to_string() != newest);
    }

    // What cannot be read is told on a page, as everything else.
    let person = client.with("Accept", "text/html");
    let told = person.form(&act, &[("after", "there")]).await;
    assert!(
        told.with(400).contains("<h1>This request cannot be read"),
        "{told:?}"
    );
    client.form(&act, &[("after", "there")]).await.error(400);
}
