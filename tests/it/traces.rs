//! Traces: a real worker, a real broker, and a collector that takes what OTLP sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cliquet::{
    TaskContext, TaskError, Worker,
    broker::{Letter, Place, Publisher},
    telemetry::traces,
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tracing::Instrument;
use tracing_subscriber::{Layer, filter::filter_fn, layer::SubscriberExt};
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    collector::{Collector, Span},
    eventually, free_port,
    stage::{Stage, WorkerProcess, body},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PUBLISHER: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Fails at its first attempt, and notes its place in the trace at each.
const FLAKY: &str = r#"
[handlers.a]
exec = ["sh", "-c", 'echo "at $TRACEPARENT $TRACESTATE" >>places; echo "no answer" >&2; test "$CLIQUET_TASK_ATTEMPT" != 1']
"#;
const GIVES_UP: &str = r#"
[handlers.a]
exec = ["sh", "-c", 'test -e mended || { echo "broken, as told" >&2; exit 65; }']
"#;
const WELL: &str = "[handlers.a]\nexec = [\"true\"]";

fn traced(binary: &mut Binary, endpoint: &str) {
    binary.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    binary.set("OTEL_BSP_SCHEDULE_DELAY", "50");
}

fn headers(headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default().with_headers(table)
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

async fn ends(mut worker: WorkerProcess) -> Duration {
    worker.signal("TERM");
    let asked = Instant::now();
    assert_eq!(worker.ended().await, Some(0));
    asked.elapsed()
}

/// The one span of this name below a parent.
#[track_caller]
fn below<'a>(spans: &'a [Span], parent: &str, name: &str) -> &'a Span {
    let found: Vec<_> = spans
        .iter()
        .filter(|span| span.parent == parent && span.name == name)
        .collect();
    match found[..] {
        [span] => span,
        _ => panic!(
            "{} spans {name:?} below {parent:?}: {spans:#?}",
            found.len()
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_and_is_tried_again_stays_in_its_publishers_trace() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    let mut binary = Binary::on(&stage, FLAKY);
    traced(&mut binary, &collector.address());
    binary.set("RUST_LOG", "cliquet=warn");
    binary.set(
        "OTEL_RESOURCE_ATTRIBUTES",
        "deployment.environment.name=test",
    );
    let worker = binary.work();
    let job = Uuid::now_v7();
    let message = json!({
        "id": job, "kind": "k", "payload": {"card": "Pl4nted"},
        "tasks": [{"handler": "a", "label": "Upload image 1/5", "input": "Pl4nted"}],
    });
    let published = headers(&[
        ("traceparent", long(TRACEPARENT)),
        ("tracestate", long("shop=1")),
    ])
    .with_message_id(job.to_string().into());
    stage
        .queues
        .publish(message.to_string().as_bytes(), published)
        .await;
    stage.reaches(job, "SUCCESS").await;
    ends(worker).await;

    // All of it arrived before the worker was gone, and nothing else.
    let spans = collector.spans();
    assert_eq!(spans.len(), 5, "{spans:#?}");
    let (work, rung) = (
        stage.queues.name(Place::Work),
        stage.queues.name(stage.queues.rung(0)),
    );
    let (process, publish) = (format!("process {work}"), format!("publish {rung}"));
    let first = below(&spans, PUBLISHER, &process);
    let failed = below(&spans, &first.id, "task a");
    let copy = below(&spans, &first.id, &publish);
    let second = below(&spans, &copy.id, &process);
    let done = below(&spans, &second.id, "task a");
    for span in &spans {
        assert_eq!(
            (span.trace.as_str(), span.state.as_str()),
            (TRACE, "shop=1")
        );
        assert_eq!(span.resource["service.name"], "cliquet");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }

    let id = job.to_string();
    let told = |span: &Span, expected: &[(&str, &str)]| {
        for (name, value) in expected {
            assert_eq!(span.attribute(name), *value, "{name} of {span:?}");
        }
    };
    for (span, outcome) in [(first, "retrying"), (second, "done")] {
        told(
            span,
            &[
                ("messaging.system", "rabbitmq"),
                ("messaging.operation.type", "process"),
                ("messaging.operation.name", "process"),
                ("messaging.destination.name", &work),
                ("messaging.message.id", &id),
                ("cliquet.job.id", &id),
                ("cliquet.outcome", outcome),
            ],
        );
        assert_eq!((span.kind, &span.failed), (5, &None));
    }
    for (span, attempt, outcome) in [(failed, "1", "retried"), (done, "2", "success")] {
        told(
            span,
            &[
                ("cliquet.job.id", &id),
                ("cliquet.task.position", "1"),
                ("cliquet.task.handler", "a"),
                ("cliquet.task.label", "Upload image 1/5"),
                ("cliquet.task.attempt", attempt),
                ("cliquet.outcome", outcome),
            ],
        );
        assert_eq!(span.kind, 1);
    }
    assert_eq!(failed.attribute("error.type"), "retry");
    assert_eq!(failed.failed.as_deref(), Some("no answer"));
    assert_eq!(done.failed, None);
    told(
        copy,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", &rung),
            ("messaging.rabbitmq.destination.routing_key", &rung),
            ("messaging.message.id", &id),
        ],
    );
    assert_eq!((copy.kind, &copy.failed), (4, &None));

    // The program goes on from its own attempt's span.
    let places = binary.written("places").await;
    let expected = [failed, done].map(|span| format!("at {} shop=1", span.place()));
    assert_eq!(places.lines().collect::<Vec<_>>(), expected);
    let sent = collector.text();
    assert!(sent.contains("Upload image") && !sent.contains("Pl4nted"));
    // No log line was wanted, and none is there.
    assert_eq!(binary.log(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_keeps_its_trace_and_goes_on_in_it_when_it_is_sent_again() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    let mut binary = Binary::on(&stage, GIVES_UP);
    traced(&mut binary, &collector.address());
    let worker = binary.work();
    let id = Uuid::now_v7();
    stage
        .queues
        .publish(
            &body(id, "a"),
            headers(&[("traceparent", long(TRACEPARENT))]),
        )
        .await;
    stage.reaches(id, "FAILED").await;
    eventually("the copy is parked", async || {
        (stage.queues.depth(Place::Dead).await == 1).then_some(())
    })
    .await;
    binary.file("mended", "");
    let again = binary.run(&["dead", "retry", &id.to_string()]).await;
    again.done();
    stage.reaches(id, "SUCCESS").await;
    ends(worker).await;

    let spans = collector.spans();
    let work = stage.queues.name(Place::Work);
    let (process, again) = (format!("process {work}"), format!("publish {work}"));
    let park = format!("publish {}", stage.queues.name(Place::Dead));
    let first = below(&spans, PUBLISHER, &process);
    assert_eq!(first.attribute("error.type"), "permanent");
    assert_eq!(first.failed.as_deref(), Some("broken, as told"));
    let given_up = below(&spans, &first.id, "task a");
    assert_eq!(given_up.attribute("cliquet.outcome"), "given_up");
    let parked = below(&spans, &first.id, &park);
    let sent = below(&spans, &parked.id, &again);
    let second = below(&spans, &sent.id, &process);
    below(&spans, &second.id, "task a");
    assert_eq!(spans.len(), 6, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace == TRACE));
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_begins_a_trace_or_goes_on_from_the_environments() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    let message = r#"{"kind": "k", "tasks": ["a"]}"#;
    let publish = async |binary: &Binary| {
        binary.publish(message).await;
        header(&stage.queues.take(Place::Work).await.1, "traceparent")
    };
    let mut binary = Binary::on(&stage, "");
    assert_eq!(publish(&binary).await, None, "nobody traces anything");
    binary.set("TRACEPARENT", TRACEPARENT);
    assert_eq!(publish(&binary).await.as_deref(), Some(TRACEPARENT));
    binary.set(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        &format!("{}/take", collector.address()),
    );
    let second = publish(&binary).await.unwrap();
    binary.set("TRACEPARENT", "nonsense");
    binary.set("OTEL_SERVICE_NAME", "shop");
    let third = publish(&binary).await.unwrap();

    // The command has ended, so all of it is here.
    let spans = collector.spans();
    let name = format!("publish {}", stage.queues.name(Place::Work));
    let (second, third) = match &spans[..] {
        [one, other] => {
            assert_eq!((one.place(), other.place()), (second, third));
            (one, other)
        }
        _ => panic!("{spans:#?}"),
    };
    assert_eq!(
        (second.trace.as_str(), second.parent.as_str()),
        (TRACE, PUBLISHER)
    );
    assert_eq!((second.name.as_str(), second.kind), (name.as_str(), 4));
    assert_eq!(third.parent, "");
    assert_ne!(third.trace, TRACE);
    assert_eq!(third.resource["service.name"], "shop");
    assert!(collector.heads().starts_with("POST /take HTTP/1.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_places_are_passed_over() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    let mut binary = Binary::on(&stage, FLAKY);
    traced(&mut binary, &collector.address());
    let worker = binary.work();
    let many = "0".repeat(50_000);
    let malformed = [
        vec![("traceparent", long(""))],
        vec![("traceparent", long("nonsense"))],
        vec![("traceparent", long(&many))],
        vec![("traceparent", long("00-1-2-01"))],
        vec![("traceparent", AMQPValue::LongLongInt(7))],
        vec![("traceparent", AMQPValue::Void)],
        vec![("traceparent", AMQPValue::LongString(vec![0xff; 55].into()))],
        vec![("tracestate", long("shop=1"))],
    ];
    let count = malformed.len();
    for place in malformed {
        let id = Uuid::now_v7();
        stage.queues.publish(&body(id, "a"), headers(&place)).await;
        stage.reaches(id, "SUCCESS").await;
    }
    // A state that no program could be given is left out of a place that is right.
    let id = Uuid::now_v7();
    let place = [
        ("traceparent", long(TRACEPARENT)),
        ("tracestate", long("shop=1\0")),
    ];
    stage.queues.publish(&body(id, "a"), headers(&place)).await;
    stage.reaches(id, "SUCCESS").await;
    ends(worker).await;

    let spans = collector.spans();
    assert_eq!(spans.len(), 5 * (count + 1), "{spans:#?}");
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace).collect();
    assert_eq!(traces.len(), count + 1);
    let roots = spans.iter().filter(|span| span.parent.is_empty());
    assert_eq!(roots.count(), count);
    assert!(spans.iter().all(|span| span.state.is_empty()));
    assert_eq!(stage.queues.depth(Place::Dead).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_job_and_is_told_once() {
    let stage = Stage::new().await;
    // One refuses, the other takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let refusing_port = free_port();
    for port in [refusing_port, silent_port] {
        let mut binary = Binary::on(&stage, WELL);
        traced(&mut binary, &format!("http://127.0.0.1:{port}"));
        // Longer than anybody waits for the last spans.
        binary.set("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
        let worker = binary.work();
        for _ in 0..3 {
            let job = stage.publish("a").await;
            stage.reaches(job, "SUCCESS").await;
        }
        if port == refusing_port {
            eventually("the refusal is told", async || {
                binary.log().contains("does not take traces").then_some(())
            })
            .await;
            // The batches that follow are refused, too, and not told.
            let job = stage.publish("a").await;
            stage.reaches(job, "SUCCESS").await;
        }
        let took = ends(worker).await;
        assert!(took < Duration::from_secs(15), "{took:?}");
        let log = binary.log();
        let told = log.matches("does not take traces").count();
        assert_eq!(told, usize::from(port == refusing_port), "{log}");
        if port == refusing_port {
            assert!(log.contains("refused"), "{log}");
        } else {
            assert!(
                log.contains("the last spans are not taken in time"),
                "{log}"
            );
        }
        // A command waits no longer.
        let began = Instant::now();
        binary.publish(r#"{"kind": "k", "tasks": ["a"]}"#).await;
        assert!(began.elapsed() < Duration::from_secs(15));
        stage.queues.purge(Place::Work).await;
    }
    drop(silent);
}

/// The names of a process's threads.
fn threads(worker: &WorkerProcess) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_endpoint_is_named_nothing_is_traced() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    let endpoint = collector.address();
    let here = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str());
    for (variables, on) in [
        (&[("OTEL_SERVICE_NAME", "shop")][..], false),
        (&[here, ("OTEL_SDK_DISABLED", "true")][..], false),
        (&[here, ("OTEL_TRACES_EXPORTER", "none")][..], false),
        (&[here][..], true),
    ] {
        let mut binary = Binary::on(&stage, FLAKY);
        for (name, value) in variables {
            binary.set(name, value);
        }
        let worker = binary.work();
        let id = Uuid::now_v7();
        let place = headers(&[("traceparent", long(TRACEPARENT))]);
        stage.queues.publish(&body(id, "a"), place).await;
        stage.reaches(id, "SUCCESS").await;
        assert_eq!(
            threads(&worker).contains("OpenTelemetry"),
            on,
            "{variables:?}"
        );
        ends(worker).await;
        assert_eq!(collector.connections() > 0, on, "{variables:?}");
        let places = binary.written("places").await;
        assert_eq!(places.contains("00-"), on, "{places}");
    }
    // Sampling is the publisher's to decide, and its decision goes on.
    let mut binary = Binary::on(&stage, FLAKY);
    traced(&mut binary, &endpoint);
    let (worker, id) = (binary.work(), Uuid::now_v7());
    let before = collector.spans().len();
    let unsampled = TRACEPARENT.replace("-01", "-00");
    let place = headers(&[("traceparent", long(&unsampled))]);
    stage.queues.publish(&body(id, "a"), place).await;
    stage.reaches(id, "SUCCESS").await;
    ends(worker).await;
    assert_eq!(collector.spans().len(), before);
    let places = binary.written("places").await;
    for place in places.lines() {
        let place = place.trim();
        assert!(place.contains(TRACE) && place.ends_with("-00"), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_tells_what_the_collectors_headers_hold() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    for (endpoint, format) in [
        (collector.address(), "text"),
        (collector.address(), "json"),
        ("http://127.0.0.1:1/Pl4nted?key=Pl4nted".to_owned(), "text"),
    ] {
        let mut binary = Binary::on(&stage, WELL);
        traced(&mut binary, &endpoint);
        binary.set(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20Pl4nted,x-key=Pl4nted",
        );
        binary.set("RUST_LOG", "trace");
        binary.set("CLIQUET_LOG_FORMAT", format);
        let worker = binary.work();
        let job = stage.publish("a").await;
        stage.reaches(job, "SUCCESS").await;
        ends(worker).await;
        let log = binary.log();
        assert!(log.contains("DEBUG"), "{log}");
        if let Some(at) = log.find("Pl4nted") {
            let from = log.floor_char_boundary(at.saturating_sub(300));
            panic!("…{}", &log[from..at + 7]);
        }
    }
    assert!(collector.heads().contains("authorization: Bearer Pl4nted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_variable_of_opentelemetrys_ends_a_command_at_once() {
    let mut binary = Binary::bare();
    binary.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    binary.set("OTEL_TRACES_SAMPLER", "sometimes");
    for command in [&["work"][..], &["publish", "-"]] {
        let told = binary.run(command).await.failed(2);
        assert!(
            told.contains("OTEL_TRACES_SAMPLER") && told.contains("always_on"),
            "{told}"
        );
    }
    // Who sends nothing traces nothing.
    binary.run(&["completions", "bash"]).await.done();
    let told = binary.run(&["jobs"]).await.failed(2);
    assert!(told.contains("DATABASE_URL"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_are_json_where_they_are_asked_for_and_name_their_trace() {
    let (stage, collector) = (Stage::new().await, Collector::start());
    for (options, variable, on) in [
        (&["--log-format", "json"][..], "", false),
        (&[][..], "json", true),
        (&["--json"][..], "", true),
    ] {
        let mut binary = Binary::on(&stage, GIVES_UP);
        if on {
            traced(&mut binary, &collector.address());
        }
        if !variable.is_empty() {
            binary.set("CLIQUET_LOG_FORMAT", variable);
        }
        let (worker, id) = (binary.work_with(options), Uuid::now_v7());
        let place = headers(&[("traceparent", long(TRACEPARENT))]);
        stage.queues.publish(&body(id, "a"), place).await;
        stage.reaches(id, "FAILED").await;
        ends(worker).await;
        let log = binary.log();
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect();
        let line = |message: &str| {
            let mut found = lines.iter().filter(|line| line["message"] == message);
            found.next().unwrap_or_else(|| panic!("{log}"))
        };
        assert_eq!(line("working").get("trace_id"), None);
        let given_up = line("the job is given up and parked");
        assert_eq!(given_up["job.id"], json!(id));
        match on {
            true => {
                assert_eq!(given_up["trace_id"], TRACE);
                let span = given_up["span_id"].as_str().unwrap();
                let spans = collector.spans();
                let span = spans.iter().find(|known| known.id == span).unwrap();
                assert!(span.name.starts_with("process "), "{span:?}");
            }
            false => assert_eq!(given_up.get("trace_id"), None),
        }
    }
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_LOG_FORMAT", "yaml");
    let told = binary.run(&["work"]).await.failed(2);
    assert!(told.contains("yaml") && told.contains("json"), "{told}");
    binary.set("CLIQUET_LOG_FORMAT", "json");
    let told = binary
        .run(&["work", "--log-format", "text", "--json"])
        .await
        .failed(2);
    assert!(told.starts_with("error: there are no handlers"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_reached_over_tls_when_its_authority_is_trusted() {
    let stage = Stage::new().await;
    let key = KeyPair::generate().unwrap();
    let about = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = about.self_signed(&key).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let collector = Collector::over_tls(config);
    let mut binary = Binary::on(&stage, "");
    binary.set(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        &format!("https://localhost:{}", collector.port()),
    );
    let message = r#"{"kind": "k", "tasks": ["a"]}"#;
    let untrusted = binary.feed(&["publish", "-"], message.as_bytes()).await;
    assert_eq!(untrusted.code, Some(0));
    assert!(
        untrusted.err.contains("not trusted here")
            && untrusted.err.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"),
        "{untrusted:?}"
    );
    assert_eq!(collector.spans().len(), 0);
    let trusted = binary.file("ca.pem", &certificate.pem());
    binary.set("OTEL_EXPORTER_OTLP_CERTIFICATE", trusted.to_str().unwrap());
    let told = binary.feed(&["publish", "-"], message.as_bytes()).await;
    assert_eq!((told.code, told.err.as_str()), (Some(0), ""));
    assert_eq!(collector.spans().len(), 1);
}

/// Spans that a layer of the program's own collects.
#[derive(Clone, Debug, Default)]
struct Own(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Own {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

async fn tells_its_place(_: TaskContext) -> Result<Option<String>, TaskError> {
    let _within = tracing::info_span!("within").entered();
    // Of the span that is entered, below the task's.
    Ok(traces::Place::here().map(|place| place.traceparent))
}

/// On one thread, which is the only one that has the subscriber.
#[tokio::test]
async fn a_program_with_a_layer_of_its_own_has_its_handlers_spans_in_the_trace() {
    let own = Own::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(own.clone())
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("own"));
    let some = filter_fn(|about| [traces::TARGET, module_path!()].contains(&about.target()));
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(some));
    let _own = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let (publisher, work) = (
        Publisher::start(
            stage.queues.address.clone(),
            stage.queues.topology.clone(),
            stage.queues.identity.clone(),
            1,
            false,
        ),
        stage.queues.name(Place::Work),
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(
        Worker::builder()
            .config(stage.config())
            .handler("a", tells_its_place)
            .run_until(async move { drop(stopped.await) }),
    );
    let id = Uuid::now_v7();
    async {
        let letter = Letter::new(body(id, "a"), &id.to_string(), "test");
        let (span, letter) = traces::producer(&work, letter);
        let sent = publisher.send(&Place::Work, &letter).instrument(span).await;
        sent.unwrap();
    }
    .instrument(tracing::info_span!("order"))
    .await;
    stage.reaches(id, "SUCCESS").await;
    drop(stop);
    running.await.unwrap().unwrap();
    publisher.close().await;

    let spans = own.0.lock().unwrap().clone();
    let ids: BTreeMap<_, _> = spans
        .iter()
        .map(|span| (span.name.to_string(), span.span_context.span_id()))
        .collect();
    let chain = [
        "order",
        &format!("publish {work}"),
        &format!("process {work}"),
        "task a",
        "within",
    ];
    for pair in chain.windows(2) {
        let span = spans.iter().find(|span| span.name == pair[1]);
        let span = span.unwrap_or_else(|| panic!("{} of {ids:?}", pair[1]));
        assert_eq!(span.parent_span_id, ids[pair[0]], "{pair:?} of {ids:?}");
    }
    let shown = sqlx::query_scalar::<_, String>(
        "SELECT result #>> '{}' FROM cliquet.tasks WHERE job_id = $1",
    );
    let shown = shown.bind(id).fetch_one(&stage.pool).await.unwrap();
    assert!(shown.contains(&ids["within"].to_string()), "{shown}");
}
