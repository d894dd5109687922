//! What operators see elsewhere: a real Prometheus asks real workers and a real RabbitMQ, with the configuration, the alerts
//! and the dashboard of `deploy/`.

use std::{collections::BTreeSet, fs, path::Path};

use cliquet::{job::JobId, ledger, metrics::ALL};
use lapin::BasicProperties;
use serde_json::Value;
use sqlx::Row;

use crate::{
    repair::enqueue,
    support::{
        binary::Binary,
        eventually, free_port,
        prometheus::{Prometheus, names, promtool, told},
        services::Services,
        stage::Stage,
    },
};

#[test]
fn the_alerts_and_the_example_are_what_prometheus_takes_and_every_alert_fires_when_it_should() {
    promtool(&["check", "config", "prometheus.yaml"]);
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts.test.yaml"]);
    // Each of them has a test.
    let read =
        |name| fs::read_to_string(crate::support::prometheus::deployed().join(name)).unwrap();
    let (rules, tests) = (read("alerts.yaml"), read("alerts.test.yaml"));
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    for alert in alerts {
        assert!(
            tests.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\""))
                || tests.contains(&format!("alertname: {alert}\n")),
            "{alert} has no test"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_alerts_and_dashboard_name_is_there_and_counts_exactly() {
    let services = Services::start();
    let rabbitmq = free_port();
    services.tell_rabbitmqs_metrics(rabbitmq);
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms", "1s"]).await;
    let (first, second) = (free_port(), free_port());
    let prometheus = Prometheus::start(&[first, second], rabbitmq);
    let worker = |name: &str, port: u16| {
        let port = port.to_string();
        let environment = [("STAGE_METRICS_PORT", &*port), ("STAGE_BRAKE_AFTER", "8")];
        stage.process_with(name, &environment)
    };

    // A worker dies in a task, and another takes its job over.
    let mut killed = worker("first", first);
    let held = stage.publish("a:ok b:gate:two c:ok").await;
    stage.script.reached("two", 1).await;
    let _second = worker("second", second);
    shows(
        second,
        r#"cliquet_connected{connection="rabbitmq_consume"}"#,
        1.0,
    )
    .await;
    shows(first, "cliquet_jobs_in_flight", 1.0).await;
    shows(
        first,
        r#"cliquet_tasks_total{handler="a",outcome="success"}"#,
        1.0,
    )
    .await;
    killed.kill();
    stage.script.reached("two", 2).await;
    shows(second, "cliquet_jobs_in_flight", 1.0).await;
    stage.script.open("two").await;
    stage.reaches(held, "SUCCESS").await;

    // What it has seen from the beginning it can see growing.
    let seen = format!("cliquet_parked_total{{instance=\"127.0.0.1:{second}\"}}");
    prometheus.comes(&seen).await;
    let late = run_known_jobs(&stage, second, &prometheus).await;
    let expected = known_counts(&stage, late).await;
    let counted = eventually("the worker's counts are those of its jobs", async || {
        let told = told(second).await;
        let differs = expected
            .iter()
            .any(|(series, count)| told.get(series) != Some(count));
        (!differs).then_some(told)
    });
    let counted = match tokio::time::timeout(std::time::Duration::from_secs(15), counted).await {
        Ok(counted) => counted,
        Err(_) => panic!("{:#?}", differences(&expected, second).await),
    };
    let of = |series: &str| counted[series];
    // Every copy that RabbitMQ has confirmed was asked for by a delivery, or by the reconciler.
    let deliveries = |outcome| {
        of(&format!(
            "cliquet_deliveries_total{{outcome=\"{outcome}\"}}"
        ))
    };
    let copies: f64 = [
        "retrying",
        "parked",
        "refused",
        "busy",
        "suspect",
        "superseded",
    ]
    .into_iter()
    .map(deliveries)
    .sum();
    assert_eq!(
        of(r#"cliquet_publishes_total{outcome="confirmed"}"#),
        copies + of(r#"cliquet_repairs_total{kind="enqueued"}"#)
    );
    assert!(of(r#"cliquet_fenced_writes_total{transition="step"}"#) >= 1.0);
    for label in counted.keys() {
        assert!(
            !label.contains("nobody") && !label.contains(&held.to_string()),
            "a label has a value from a message: {label}"
        );
    }

    services_break(&services, &stage, second, &prometheus).await;
    assert_eq!(
        differences(&expected_still(expected), second).await,
        [""; 0],
        "what was counted then is counted otherwise now"
    );

    everything_named_is_there(&stage, &prometheus).await;
}

/// Waits until a worker tells this number.
async fn shows(port: u16, series: &str, number: f64) {
    eventually(&format!("{series} is {number}"), async || {
        (told(port).await.get(series) == Some(&number)).then_some(())
    })
    .await;
}

type Counts = Vec<(String, f64)>;

/// Which of the series differ, and how.
async fn differences(expected: &Counts, port: u16) -> Vec<String> {
    let told = told(port).await;
    let differ = expected
        .iter()
        .filter(|(series, count)| told.get(series) != Some(count));
    differ
        .map(|(series, count)| format!("{series} is {:?} instead of {count}", told.get(series)))
        .collect()
}

/// Jobs that succeed, fail, are parked, braked, cancelled, sent twice and enqueued. Answers with how many were cancelled.
async fn run_known_jobs(stage: &Stage, port: u16, prometheus: &Prometheus) -> u32 {
    let plain = BasicProperties::default;
    let mut good = Vec::new();
    for _ in 0..20 {
        good.push(stage.publish("a:ok b:ok c:write").await);
    }
    let mut bad = vec![
        stage.publish("d:permanent").await,
        stage.publish("nobody:x").await,
    ];
    for _ in 0..2 {
        bad.push(stage.publish("d:fail").await);
    }
    stage.queues.publish(b"this is no job", plain()).await;
    good.push(enqueue(stage, "1", "a").await);
    for job in &good {
        stage.reaches(*job, "SUCCESS").await;
    }
    for job in &bad {
        stage.reaches(*job, "FAILED").await;
    }
    stage.publish_as(good[0], "a:ok b:ok c:write").await;

    // An outage elsewhere: the handler is braked until it is over.
    let mut patient = Vec::new();
    for _ in 0..10 {
        patient.push(stage.publish("e:needs:shop").await);
    }
    shows(port, r#"cliquet_handler_braked{handler="e"}"#, 1.0).await;
    shows(port, r#"cliquet_handler_braked{handler="d"}"#, 0.0).await;
    prometheus
        .comes(r#"ALERTS{alertname="CliquetHandlerIsBraked", handler="e"}"#)
        .await;
    prometheus
        .comes(r#"ALERTS{alertname="CliquetJobsParked", alertstate="firing", reason="exhausted"}"#)
        .await;
    stage.script.open("shop").await;
    for job in &patient {
        stage.reaches(*job, "SUCCESS").await;
    }
    shows(port, r#"cliquet_handler_braked{handler="e"}"#, 0.0).await;

    // A cancelled job is fenced off at its next write, unless the heartbeat is quicker than that.
    for number in 1.. {
        let gate = format!("late-{number}");
        let job = stage.publish(&format!("b:gate:{gate}")).await;
        stage.script.reached(&gate, 1).await;
        ledger::cancel(
            &stage.pool,
            &[JobId(job)],
            &ledger::By::new("ada", Some("by a test")),
        )
        .await
        .unwrap();
        stage.script.open(&gate).await;
        shows(port, "cliquet_jobs_in_flight", 0.0).await;
        let fenced = r#"cliquet_fenced_writes_total{transition="step"}"#;
        if told(port).await[fenced] > 0.0 {
            return number;
        }
        assert!(number < 20, "no write was fenced");
    }
    unreachable!()
}

/// What the second worker must have counted after these jobs: `late` of them were cancelled.
async fn known_counts(stage: &Stage, late: u32) -> Counts {
    let count = async |sql: &'static str| -> f64 {
        let row = sqlx::query(sql).fetch_one(&stage.pool).await.unwrap();
        row.get::<i64, _>(0) as f64
    };
    // How often the braked handler's tasks failed before it was braked, and how often they were put off, is a matter of
    // luck, but the ledger knows.
    let failed =
        count("SELECT sum(attempt - 1)::int8 FROM cliquet.tasks WHERE handler = 'e'").await;
    let copies = count("SELECT sum(generation)::int8 FROM cliquet.jobs JOIN cliquet.tasks ON job_id = id WHERE handler = 'e'").await;
    let ran = count("SELECT count(*) FROM cliquet.failures JOIN cliquet.tasks USING (job_id, position) WHERE handler = 'e'").await;
    assert!(
        failed >= 8.0 && copies > failed && ran >= failed,
        "{failed} {copies} {ran}"
    );
    let late = f64::from(late);

    let mut counts: Counts = Vec::new();
    let mut push = |series: String, count: f64| counts.push((series, count));
    for (handler, ends) in [
        ("a", [21.0, 0.0, 0.0, 0.0, 0.0]),
        ("b", [21.0, 0.0, 0.0, 0.0, late]),
        ("c", [21.0, 0.0, 0.0, 0.0, 0.0]),
        ("d", [0.0, 4.0, 3.0, 0.0, 0.0]),
        ("e", [10.0, failed, 0.0, copies - failed, 0.0]),
        ("(unknown)", [0.0, 2.0, 1.0, 0.0, 0.0]),
    ] {
        let words = ["success", "retried", "given_up", "deferred", "unfinished"];
        for (word, count) in words.into_iter().zip(ends) {
            push(
                format!("cliquet_tasks_total{{handler=\"{handler}\",outcome=\"{word}\"}}"),
                count,
            );
        }
        let attempts = match handler {
            "e" => 10.0 + ran,
            _ => ends.iter().sum(),
        };
        push(
            format!("cliquet_task_duration_seconds_count{{handler=\"{handler}\"}}"),
            attempts,
        );
        let died = f64::from(handler == "b");
        push(
            format!("cliquet_takeovers_total{{handler=\"{handler}\"}}"),
            died,
        );
        push(
            format!("cliquet_handler_braked{{handler=\"{handler}\"}}"),
            0.0,
        );
    }
    for (outcome, count) in [
        ("done", 32.0),
        ("retrying", 6.0 + copies),
        ("parked", 4.0),
        ("refused", 1.0),
        ("fenced", late),
        // The one that was sent twice, and the cancelled ones, which came back.
        ("duplicate", 1.0 + late),
        ("handed_back", 0.0),
        ("handed_over", 0.0),
        ("adopted", 0.0),
        ("superseded", 0.0),
        ("unclaimed", 0.0),
        ("lost", 0.0),
    ] {
        push(
            format!("cliquet_deliveries_total{{outcome=\"{outcome}\"}}"),
            count,
        );
    }
    for (reason, count) in [
        ("exhausted", 3.0),
        ("permanent", 1.0),
        ("not_json", 1.0),
        ("crashed", 0.0),
        ("conflict", 0.0),
        ("other", 0.0),
    ] {
        push(
            format!("cliquet_parked_total{{reason=\"{reason}\"}}"),
            count,
        );
    }
    for kind in ["overdue", "abandoned", "unparked", "condemned"] {
        push(format!("cliquet_repairs_total{{kind=\"{kind}\"}}"), 0.0);
    }
    push("cliquet_repairs_total{kind=\"enqueued\"}".into(), 1.0);
    push("cliquet_job_latency_seconds_count".into(), 32.0);
    push("cliquet_jobs_in_flight".into(), 0.0);
    push("cliquet_oldest_job_due_seconds".into(), 0.0);
    push("cliquet_prefetch".into(), 8.0);
    push("cliquet_publishers_blocked".into(), 0.0);
    push(
        "cliquet_commit_duration_seconds_count{transition=\"transaction\"}".into(),
        20.0,
    );
    for connection in ["rabbitmq_consume", "rabbitmq_publish", "postgres_heartbeat"] {
        push(
            format!("cliquet_connected{{connection=\"{connection}\"}}"),
            1.0,
        );
        push(
            format!("cliquet_reconnects_total{{connection=\"{connection}\"}}"),
            0.0,
        );
    }
    for outcome in ["returned", "refused", "too_large", "unanswered"] {
        push(
            format!("cliquet_publishes_total{{outcome=\"{outcome}\"}}"),
            0.0,
        );
    }
    counts
}

/// Of the counts, those that later faults have no part in.
fn expected_still(counts: Counts) -> Counts {
    let kept = [
        "handler=\"b\"",
        "handler=\"c\"",
        "handler=\"d\"",
        "handler=\"e\"",
        "parked",
        "refused",
    ];
    let still = counts.into_iter().filter(|(series, _)| {
        kept.iter().any(|word| series.contains(word)) && !series.contains("publishes")
    });
    still.collect()
}

/// Both services end the worker's connections, and RabbitMQ runs short of memory.
async fn services_break(services: &Services, stage: &Stage, port: u16, prometheus: &Prometheus) {
    let rabbitmqctl = |arguments: &[&str]| {
        let arguments = [&["rabbitmqctl"], arguments].concat();
        tokio::task::block_in_place(|| services.run(&arguments))
    };
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cliquet second lane%' OR application_name LIKE 'cliquet second heartbeat'")
        .execute(&stage.pool)
        .await
        .unwrap();
    shows(
        port,
        r#"cliquet_reconnects_total{connection="postgres_heartbeat"}"#,
        1.0,
    )
    .await;
    rabbitmqctl(&["close_all_connections", "closed by a test"]);
    for connection in ["rabbitmq_consume", "rabbitmq_publish"] {
        shows(
            port,
            &format!("cliquet_reconnects_total{{connection=\"{connection}\"}}"),
            1.0,
        )
        .await;
        shows(
            port,
            &format!("cliquet_connected{{connection=\"{connection}\"}}"),
            1.0,
        )
        .await;
    }
    let job = stage.publish("a:ok").await;
    stage.reaches(job, "SUCCESS").await;
    shows(
        port,
        r#"cliquet_reconnects_total{connection="postgres_lanes"}"#,
        1.0,
    )
    .await;

    // It blocks a connection when that next publishes: the worker's, with the copy of a job that was there before.
    let failing = stage.publish("a:gate-fail:fail,ok").await;
    stage.script.reached("fail", 1).await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]);
    prometheus
        .comes("rabbitmq_alarms_memory_used_watermark == 1")
        .await;
    stage.script.open("fail").await;
    shows(port, "cliquet_publishers_blocked", 1.0).await;
    prometheus
        .comes(r#"ALERTS{alertname="CliquetPublishersBlocked"}"#)
        .await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]);
    shows(port, "cliquet_publishers_blocked", 0.0).await;
    stage.reaches(failing, "SUCCESS").await;
}

/// Whatever the alerts and the dashboard name is in Prometheus, with the labels that they name; and every expression of the
/// dashboard gives something.
async fn everything_named_is_there(stage: &Stage, prometheus: &Prometheus) {
    let rules = prometheus.ask("rules", &[]).await;
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 15, "{}", rules.len());
    let mut expressions = Vec::new();
    for rule in &rules {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        let severity = rule["labels"]["severity"].as_str();
        assert!(
            matches!(severity, Some("page" | "ticket")),
            "{name}: {severity:?}"
        );
        for annotation in ["summary", "remedy"] {
            assert!(
                rule["annotations"][annotation].is_string(),
                "{name} has no {annotation}"
            );
        }
        commands_exist(name, rule["annotations"]["remedy"].as_str().unwrap()).await;
        expressions.push((name.to_owned(), rule["query"].as_str().unwrap().to_owned()));
    }

    let queue = stage.queues.name(cliquet::broker::Place::Work);
    for (title, expression) in panels() {
        let expression = expression
            .replace("${queue:regex}", &queue)
            .replace("$queue", &queue)
            .replace("$vhost", "/")
            .replace("$__rate_interval", "1m");
        let series = prometheus.query(&expression).await;
        assert!(
            !series.is_empty(),
            "{title}: nothing is there for {expression}"
        );
        expressions.push((title, expression));
    }

    let mut metrics = BTreeSet::new();
    for (place, expression) in &expressions {
        let named = names(expression);
        assert!(!named.metrics.is_empty(), "{place}: {expression}");
        for (metric, matchers) in &named.metrics {
            metrics.insert(metric.clone());
            prometheus.comes(metric).await;
            for (label, operator, value) in matchers {
                let words = value
                    .split('|')
                    .all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
                let wanted = match operator.as_str() {
                    "=~" if words => value
                        .split('|')
                        .map(|word| format!("=\"{word}\""))
                        .collect(),
                    "!=" => vec!["!=\"\"".to_owned(), format!("=\"{value}\"")],
                    operator => vec![format!("{operator}\"{value}\"")],
                };
                for wanted in wanted {
                    prometheus
                        .comes(&format!("{metric}{{{label}{wanted}}}"))
                        .await;
                }
            }
        }
        for label in &named.groups {
            let mut has_it = false;
            for (metric, _) in &named.metrics {
                let found = prometheus
                    .query(&format!("{metric}{{{label}!=\"\"}}"))
                    .await;
                has_it |= !found.is_empty();
            }
            assert!(
                has_it,
                "{place}: nothing in {expression} has the label {label}"
            );
        }
    }

    // And the other way round: whatever a worker tells is on the dashboard, described, and of its kind.
    let described = prometheus.ask("metadata", &[]).await;
    for metric in ALL {
        let name = metric.name;
        assert!(
            metrics.iter().any(|named| named.starts_with(name)),
            "{name} is nowhere on the dashboard"
        );
        assert_eq!(described[name][0]["help"], metric.help, "{name}");
        assert_eq!(described[name][0]["type"], metric.kind.as_str(), "{name}");
    }
}

/// The commands that a remedy names are the binary's, with these options.
async fn commands_exist(alert: &str, remedy: &str) {
    let commands: Vec<_> = remedy
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|words| words.strip_prefix("cliquet "))
        .collect();
    assert!(!commands.is_empty(), "{alert} names no command: {remedy}");
    let binary = Binary::bare();
    for command in commands {
        let words: Vec<_> = command.split(' ').collect();
        let (options, words): (Vec<&str>, Vec<&str>) =
            words.into_iter().partition(|word| word.starts_with("--"));
        let mut asked: Vec<_> = words
            .into_iter()
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            .collect();
        asked.push("--help");
        let help = binary.run(&asked).await.done();
        for option in options {
            assert!(
                help.contains(option),
                "{alert}: `cliquet {command}`, and there is no {option}"
            );
        }
    }
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/cliquet.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The title of each panel with each of its expressions.
fn panels() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let drawn = panels.iter().filter(|panel| panel["type"] != "row");
    drawn
        .flat_map(|panel| {
            let title = panel["title"].as_str().unwrap().to_owned();
            let targets = panel["targets"].as_array().unwrap().clone();
            targets
                .into_iter()
                .map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
        })
        .collect()
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is another's"
        );
        assert!(
            !title.contains('_') && !title.contains('$'),
            "{title}: in plain words"
        );
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is outside");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} covers another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|words| !words.is_empty()),
            "{title}"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title} has no unit"
        );
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(
                target["legendFormat"]
                    .as_str()
                    .is_some_and(|words| !words.is_empty()),
                "{title}"
            );
        }
    }
    let ladder = panels
        .iter()
        .find(|panel| panel["title"].as_str().unwrap().starts_with("The ladder"));
    let custom = &ladder.unwrap()["fieldConfig"]["defaults"]["custom"];
    assert_eq!(
        custom["stacking"]["mode"], "normal",
        "its rungs are stacked"
    );
}
