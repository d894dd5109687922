//! The API for operators: what it tells of jobs, what it does to them, and what it hides.

use cliquet::broker::Place;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    http::{Web, because},
    privileges::database_as,
    stage::Stage,
};

async fn web(stage: &Stage) -> Web {
    Web::of(Binary::on(stage, "")).await
}

fn ids(jobs: &Value) -> Vec<Uuid> {
    let jobs = jobs["jobs"].as_array().unwrap();
    let ids = jobs.iter().map(|job| job["id"].as_str().unwrap());
    ids.map(|id| id.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_by_filter_and_page_after_page() {
    let stage = Stage::new().await;
    let web = web(&stage).await;
    let _worker = stage.worker();
    let mut failed = Vec::new();
    for _ in 0..5 {
        failed.push(stage.publish("a:ok b:permanent").await);
    }
    let done = stage.publish("c:ok").await;
    stage.reaches(done, "SUCCESS").await;
    for job in &failed {
        stage.reaches(*job, "FAILED").await;
    }
    let list = async |query: &str| {
        web.client
            .get(&format!("/api/v1/jobs?{query}"))
            .await
            .json(200)
    };
    let mut all = ids(&list("").await);
    all.sort_unstable();
    let mut expected = [failed.clone(), vec![done]].concat();
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert_eq!(ids(&list("status=SUCCESS").await), [done]);
    assert_eq!(
        ids(&list("status=FAILED,RETRYING&handler=b&error=NEVER%20again&kind=test").await).len(),
        5
    );
    assert_eq!(ids(&list("handler=a").await).len(), 0);
    assert_eq!(ids(&list("until=2020-01-01T00:00:00Z").await).len(), 0);
    assert_eq!(
        ids(&list(&format!("queue={}", stage.queues.identity.name)).await).len(),
        6
    );

    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = list(&format!("status=FAILED&limit=2{after}")).await;
        seen.extend(ids(&page));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.sort_unstable();
    failed.sort_unstable();
    assert_eq!(seen, failed);

    let groups = web.client.get("/api/v1/groups").await.json(200);
    let groups = &groups["groups"];
    assert_eq!(
        (&groups[0]["handler"], &groups[0]["jobs"]),
        (&json!("b"), &json!(5))
    );
    let likeness = groups[0]["id"].as_str().unwrap();
    assert_eq!(ids(&list(&format!("likeness={likeness}")).await).len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_is_told_jobs_workers_and_queues() {
    let stage = Stage::new().await;
    let web = web(&stage).await;
    let _worker = stage.worker();
    let job = stage.publish("a:ok b:gate:here").await;
    stage.script.reached("here", 1).await;
    let held = json!({"status": "PROCESSING", "jobs": 1, "estimated": false});
    let overview = eventually("the worker tells how many jobs it holds", async || {
        let overview = web.client.get("/api/v1/overview").await.json(200);
        let jobs = overview["jobs"].as_array().unwrap();
        jobs.contains(&held).then_some(overview)
    })
    .await;
    assert_eq!(overview["minutes"].as_array().unwrap().len(), 60);
    let running = eventually("the worker tells what it runs", async || {
        let workers = web.client.get("/api/v1/workers").await.json(200);
        let running = workers[0]["running"][0].clone();
        (running["label"] == "Step b").then_some(running)
    })
    .await;
    assert_eq!(running["job"], job.to_string());
    let queues = web.client.get("/api/v1/queues").await.json(200);
    let told: Vec<_> = queues
        .as_array()
        .unwrap()
        .iter()
        .map(|queue| (&queue["role"], &queue["delay_seconds"], &queue["ready"]))
        .collect();
    assert_eq!(
        json!(told),
        json!([
            ["work", null, 0],
            ["delay", 0.2, 0],
            ["delay", 1.0, 0],
            ["dead", null, 0]
        ])
    );
    assert_eq!(queues[0]["consumers"], 1);
    let page = web.client.with("Accept", "text/html").get("/").await;
    assert!(page.with(200).contains("for 1 consumer<"), "{page:?}");
    stage.script.open("here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_show_a_jobs_progress_as_it_happens_and_end_with_it() {
    let stage = Stage::new().await;
    let web = web(&stage).await;
    let _worker = stage.worker();
    let told = web
        .client
        .get(&format!("/api/v1/jobs/{}/events", Uuid::now_v7()))
        .await;
    assert!(told.error(404).contains("knows no such job"));
    let job = stage.publish("a:gate:one b:gate:two c:ok").await;
    stage.script.reached("one", 1).await;
    let path = format!("/api/v1/jobs/{job}/events");
    let (mut first, mut second) = (
        web.client.events(&path).await,
        web.client.events(&path).await,
    );
    for stream in [&mut first, &mut second] {
        let (name, data) = stream.next().await.unwrap();
        assert_eq!(name, "progress");
        assert_eq!(
            (&data["status"], &data["done"]),
            (&json!("PROCESSING"), &json!(0))
        );
        assert_eq!(data["task"]["label"], "Step a");
        assert_eq!(data["tasks"], json!(["PROCESSING", "PENDING", "PENDING"]));
    }
    stage.script.open("one").await;
    stage.script.reached("two", 1).await;
    for stream in [&mut first, &mut second] {
        let (_, data) = stream.next().await.unwrap();
        assert_eq!(data["tasks"], json!(["SUCCESS", "PROCESSING", "PENDING"]));
    }
    stage.script.open("two").await;
    for stream in [&mut first, &mut second] {
        let mut last = Value::Null;
        while let Some((_, data)) = stream.next().await {
            last = data;
        }
        assert_eq!(
            (&last["status"], &last["task"]),
            (&json!("SUCCESS"), &Value::Null)
        );
        assert_eq!(last["tasks"], json!(["SUCCESS", "SUCCESS", "SUCCESS"]));
    }
    // One that is over has one event.
    let mut over = web.client.events(&path).await;
    assert_eq!(over.next().await.unwrap().1["status"], "SUCCESS");
    assert!(over.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_by_the_settings_is_nowhere_in_the_api() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, "");
    binary.set(
        "CLIQUET_REDACT",
        "payload.card.number, input.secret, result",
    );
    let web = Web::start(&binary).await;
    let worker = stage.worker();
    let id = Uuid::now_v7();
    let message = json!({
        "id": id, "kind": "k",
        "payload": 0,
        "tasks": [{"handler": "a", "input": {"secret": "hide-me-too", "index": 7}}, {"handler": "b", "input": "permanent"}],
    });
    // A key twice, of which most programs take the last.
    let payload = r#""payload":{"card":{"number":"4111-hide-me","number":"4222-hide-me","name":"shown","price":12345678901234567890.10}}"#;
    let message = message.to_string().replace(r#""payload":0"#, payload);
    stage
        .queues
        .publish(message.as_bytes(), Default::default())
        .await;
    stage.reaches(id, "FAILED").await;
    worker.stop().await;
    let answer = web.client.get(&format!("/api/v1/jobs/{id}")).await;
    let body = answer.with(200);
    assert!(!body.contains("hide-me"), "{body}");
    let job = answer.json(200);
    // The rest as it was written, with every digit.
    let rest = r#""name":"shown","price":12345678901234567890.10}}"#;
    let shown = format!(r#"{{"card":{{"number":"(hidden)","number":"(hidden)",{rest}"#);
    assert!(body.contains(&shown), "{body}");
    assert_eq!(
        job["tasks"][0]["input"],
        json!({"secret": "(hidden)", "index": 7})
    );
    assert_eq!(job["tasks"][0]["result"], "(hidden)");
    assert_eq!(job["tasks"][1]["error"], "never again, as told");
    // Nor on the page.
    let browser = web.client.with("Accept", "text/html");
    for whole in ["", "?whole=1"] {
        let page = browser.get(&format!("/jobs/{id}{whole}")).await;
        let page = page.with(200);
        assert!(!page.contains("hide-me"), "{page}");
        assert!(
            page.contains("(hidden)") && page.contains("12345678901234567890.10"),
            "{page}"
        );
        // All of it is looked at once.
        let again = page.contains("data-poll") || page.contains("data-events");
        assert_eq!(again, whole.is_empty(), "{page}");
    }
    let mut events = web
        .client
        .events(&format!("/api/v1/jobs/{id}/events"))
        .await;
    while let Some((_, data)) = events.next().await {
        assert!(!data.to_string().contains("hide-me"), "{data}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_is_done_and_kept_with_the_name_and_the_reason() {
    let stage = Stage::new().await;
    let web = web(&stage).await;
    let worker = stage.worker();
    let ada = web.client.with("Cliquet-Operator", "Ada");
    let act = async |job: Uuid, act: &str, body: &Value| {
        ada.post(&format!("/api/v1/jobs/{job}/{act}"), body).await
    };
    // Parked; passed over with a reason, it goes on behind.
    let job = stage.publish("a:ok b:permanent c:ok").await;
    stage.reaches(job, "FAILED").await;
    let other = act(job, "skip", &json!({"reason": "not needed", "position": 3})).await;
    assert_eq!(other.json(409)["outcome"], "refused");
    let skipped = act(job, "skip", &json!({"reason": "not needed", "position": 2}))
        .await
        .json(200);
    assert_eq!(
        (&skipped["outcome"], &skipped["error"]),
        (&json!("done"), &Value::Null)
    );
    stage.reaches(job, "SUCCESS").await;
    let log = web.process.said();
    for words in [&job.to_string(), "act=\"skip\"", "operator=\"Ada\""] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let detail = web
        .client
        .get(&format!("/api/v1/jobs/{job}"))
        .await
        .json(200);
    let kept = &detail["interventions"][0];
    assert_eq!(
        (
            &kept["act"],
            &kept["operator"],
            &kept["reason"],
            &kept["position"]
        ),
        (
            &json!("skip"),
            &json!("Ada"),
            &json!("not needed"),
            &json!(2)
        )
    );
    assert_eq!(
        act(job, "retry", &json!({})).await.json(409)["outcome"],
        "refused"
    );

    // Asked twice, one task is skipped, though the next waits for the same.
    let job = stage.publish("f:permanent g:permanent").await;
    stage.reaches(job, "FAILED").await;
    let told = act(job, "skip", &because("by hand")).await.error(400);
    assert!(told.contains("`position` is missing"), "{told}");
    let first = json!({"reason": "by hand", "position": 1});
    act(job, "skip", &first).await.json(200);
    stage.reaches(job, "FAILED").await;
    let again = act(job, "skip", &first).await.json(409);
    let told = again["error"].as_str().unwrap();
    assert!(told.contains("stands at task 2 now, not at 1"), "{told}");

    let job = stage.publish("d:permanent,ok").await;
    stage.reaches(job, "FAILED").await;
    // Without a body, too.
    let retried = web
        .client
        .send("POST", &format!("/api/v1/jobs/{job}/retry"), b"")
        .await;
    assert_eq!(retried.json(200)["outcome"], "done");
    eventually("the retry is kept", async || {
        let detail = web
            .client
            .get(&format!("/api/v1/jobs/{job}"))
            .await
            .json(200);
        let kept = &detail["interventions"][0];
        (kept["act"] == "retry" && kept["operator"] == "http").then_some(())
    })
    .await;

    let job = stage.publish("e:gate:never").await;
    stage.script.reached("never", 1).await;
    act(job, "cancel", &because("wrong price")).await.json(200);
    assert_eq!(stage.status(job).await.as_deref(), Some("CANCELLED"));
    let unknown = act(Uuid::now_v7(), "cancel", &json!({})).await;
    assert_eq!(unknown.json(404)["outcome"], "not_found");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_like_failures_is_retried_or_ended_at_once_and_no_more_than_that() {
    let stage = Stage::with_ladder(&["200ms", "1h"]).await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LADDER", "200ms, 1h");
    let web = Web::of(binary).await;
    let worker = stage.worker();
    let mut like = Vec::new();
    for _ in 0..5 {
        like.push(stage.publish("a:needs:shop").await);
    }
    let other = stage.publish("b:permanent").await;
    let done = stage.publish("c:ok").await;
    for job in &like {
        stage.reaches(*job, "FAILED").await;
    }
    stage.reaches(other, "FAILED").await;
    stage.reaches(done, "SUCCESS").await;
    worker.stop().await;
    let groups = web.client.get("/api/v1/groups").await.json(200);
    let mut groups = groups["groups"].as_array().unwrap().iter();
    let group = groups.find(|group| group["handler"] == "a").unwrap();
    assert_eq!(group["jobs"], 5);
    let filter = json!({"likeness": group["id"]});
    // No worker takes them, so they stay FAILED: what was done before is left behind all the same.
    let (mut after, mut came) = (None, Vec::new());
    loop {
        let mut body = json!({"filter": filter, "most": 2, "reason": "the shop is back"});
        if let Some(place) = &after {
            body["after"] = json!(place);
        }
        let some = web.client.post("/api/v1/jobs/retry", &body).await.json(200);
        came.push((some["done"].clone(), some["left"].clone()));
        assert_eq!(some["errors"], json!([]), "{some}");
        match some["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    let expected = [(2, true), (2, true), (1, false)];
    assert_eq!(json!(came), json!(expected));
    assert_eq!(stage.queues.depth(Place::Work).await, 5);
    for job in &like {
        let detail = web.client.get(&format!("/api/v1/jobs/{job}")).await;
        let kept = &detail.json(200)["interventions"];
        assert_eq!(kept.as_array().unwrap().len(), 1, "{kept}");
    }
    stage.script.open("shop").await;
    let worker = stage.worker();
    for job in &like {
        stage.reaches(*job, "SUCCESS").await;
    }
    assert_eq!(stage.status(other).await.as_deref(), Some("FAILED"));

    // Without a status, what can be ended is what is not over.
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(stage.publish("d:after:3600000").await);
    }
    for job in &waiting {
        stage.reaches(*job, "RETRYING").await;
    }
    worker.stop().await;
    let cancel = async |body: Value| web.client.post("/api/v1/jobs/cancel", &body).await;
    // What was lost on the way means nothing, and not everything.
    for (nothing, words) in [
        (json!({"filter": {}}), "`filter` has no condition"),
        (
            json!({"filter": {}, "all": false}),
            "`filter` has no condition",
        ),
        (
            json!({"filter": {"likeness": ""}}),
            "filter: likeness: it is empty",
        ),
        (
            json!({"filter": {"status": ["RETRYING"], "likeness": null}}),
            "filter: likeness: invalid type: null",
        ),
        (
            json!({"filter": {"status": []}}),
            "filter: status: it is empty",
        ),
    ] {
        let told = cancel(nothing).await.error(400);
        assert!(told.contains(words), "{told}");
    }
    for job in &waiting {
        assert_eq!(stage.status(*job).await.as_deref(), Some("RETRYING"));
    }
    let ended = cancel(json!({"filter": {}, "all": true})).await.json(200);
    let log = web.process.said();
    assert!(
        log.contains("act=\"cancel\"") && log.contains("done=3"),
        "{log}"
    );
    assert_eq!(
        (&ended["done"], &ended["refused"], &ended["left"]),
        (&json!(3), &json!(0), &json!(false))
    );
    assert_eq!(stage.status(done).await.as_deref(), Some("SUCCESS"));
    assert_eq!(stage.status(other).await.as_deref(), Some("FAILED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_is_told_which_right_is_missing() {
    let stage = Stage::new().await;
    let worker = stage.worker();
    let job = stage.publish("a:permanent").await;
    stage.reaches(job, "FAILED").await;
    let waiting = stage.publish("b:gate:here").await;
    stage.script.reached("here", 1).await;
    let reader = database_as(&stage.database, "cliquet_reader").await;
    let mut binary = Binary::on(&stage, "");
    binary.addresses(&stage.queues.amqp_url, &reader);
    let web = Web::start(&binary).await;
    web.client
        .get(&format!("/api/v1/jobs/{job}"))
        .await
        .json(200);
    let skip = json!({"reason": "try", "position": 1});
    for (job, act, body) in [(job, "skip", skip), (waiting, "cancel", because("try"))] {
        let told = web
            .client
            .post(&format!("/api/v1/jobs/{job}/{act}"), &body)
            .await;
        let told = told.error(403);
        assert!(told.contains("GRANT cliquet_operator"), "{told}");
    }
    assert_eq!(stage.status(waiting).await.as_deref(), Some("PROCESSING"));
    stage.script.open("here").await;
    worker.stop().await;
}
