//! Who looks and acts: with the token, without one, and after a session's end.

use super::{FLASH, Site};
use crate::support::{browser::Browser, stage::Stage};

const TOKEN: &str = "a-token-of-these-tests-0123456789";

/// Fills in the login and sends it.
async fn log_in(browser: &Browser, token: &str) {
    browser.write("input[name=token]", token).await;
    browser.write("input[name=operator]", "ada").await;
    browser.click("main button").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_asked_for_and_acts_bear_the_name_that_was_given() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:needs:store").await;
    stage.reaches(job, "FAILED").await;
    let site = Site::with(&stage, &[("CLIQUET_HTTP_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    assert_eq!(browser.path().await, "/login");
    assert!(!browser.client.source().await.unwrap().contains("Step a"));
    log_in(&browser, "another").await;
    browser.says("[role=alert]", "token").await;
    log_in(&browser, TOKEN).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_is_told_and_no_act_is_lost_without_a_word() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:gate:one b:gate:two c:ok").await;
    stage.script.reached("one", 1).await;
    let site = Site::with(&stage, &[("CLIQUET_HTTP_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    log_in(&browser, TOKEN).await;
    browser.says("#pulse", "live").await;
    browser
        .run("return fetch('/logout', {method: 'POST'}).then(answer => answer.status)")
        .await;
    stage.script.open("one").await;
    browser.says("#pulse", "your session has ended").await;
    browser.says("#age", "s ago").await;
    browser.is_titled("0/3").await;

    browser.click("#cancel summary").await;
    browser.click("#cancel button").await;
    browser
        .says("[role=alert]", "Your session had ended: nothing was done.")
        .await;
    assert_eq!(stage.status(job).await.as_deref(), Some("PROCESSING"));
    log_in(&browser, TOKEN).await;
    browser.is_titled("1/3 Step b …").await;
    assert_eq!(browser.path().await, format!("/jobs/{job}"));
    assert_eq!(site.interventions(job).await, [""; 0]);
    browser.close().await;

    // A proxy's own login is no token of this server; a wrong token is for no form.
    let person = site.web.stranger().with("Accept", "text/html");
    let led = person
        .with("Authorization", "Basic eDp5")
        .get("/workers")
        .await;
    assert_eq!(led.header("location"), Some("/login?next=%2Fworkers"));
    let told = person.showing("another").get("/workers").await;
    assert!(told.with(401).contains("href=\"/login\""), "{told:?}");
    stage.script.open("two").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_people_may_say_who_they_are() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:needs:store").await;
    stage.reaches(job, "FAILED").await;
    let site = Site::on(&stage).await;
    let browser = Browser::start().await;
    browser.goto(&site.job(job)).await;
    browser.says(".who", "acting as http").await;
    browser.click(".who a").await;
    browser.says("h1", "Say who you are").await;
    assert_eq!(browser.violations().await, [""; 0]);
    browser.write("input[name=operator]", "ada").await;
    browser.click("main button").await;
    browser.says(".who", "ada").await;
    assert_eq!(browser.path().await, format!("/jobs/{job}"));
    stage.script.open("store").await;
    browser
        .write("#retry input[name=reason]", "the store is back")
        .await;
    browser.click("#retry button").await;
    browser
        .says(FLASH, "The job was sent to the workers.")
        .await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        site.interventions(job).await,
        ["retry ada: the store is back"]
    );
    browser.close().await;
    worker.stop().await;
}
