//! A real Prometheus for one test, with the configuration, the rules and the dashboard of `deploy/`; and what a worker in
//! this process serves to it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use cliquet::telemetry::metrics::Exposition;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use url::Url;
use uuid::Uuid;

use super::{eventually, free_port};

/// Where Prometheus's files are in the repository.
pub fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

/// Answers every request with the metrics of this process.
pub async fn serve(exposition: Exposition, port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    while let Ok((mut asking, _)) = listener.accept().await {
        let mut request = [0; 4096];
        let _ = asking.read(&mut request).await;
        let text = exposition.render();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            Exposition::CONTENT_TYPE,
            text.len()
        );
        let _ = asking.write_all(answer.as_bytes()).await;
    }
}

/// What a URL answers; nothing when nobody does.
pub async fn get(url: &Url) -> Option<String> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let mut stream = TcpStream::connect((host, port)).await.ok()?;
    let path = &url[url::Position::BeforePath..];
    // 1.0, so that it is not sent in chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.to_owned())
}

/// What a worker says of itself on this port: `name{label="value",…}` without `queue`, and the number.
pub async fn told(port: u16) -> BTreeMap<String, f64> {
    let url = Url::parse(&format!("http://127.0.0.1:{port}/metrics")).unwrap();
    let text = eventually("the worker tells its metrics", async || get(&url).await).await;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, number)| {
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split(',');
            let mut labels: Vec<_> = labels
                .filter(|label| !label.is_empty() && !label.starts_with("queue="))
                .collect();
            labels.sort_unstable();
            let series = match labels.is_empty() {
                true => name.to_owned(),
                false => format!("{name}{{{}}}", labels.join(",")),
            };
            (series, number.parse().unwrap())
        })
        .collect()
}

/// Runs `promtool` on the files of `deploy/prometheus`.
#[track_caller]
pub fn promtool(arguments: &[&str]) {
    let ran = Command::new("promtool")
        .args(arguments)
        .current_dir(deployed())
        .output()
        .unwrap_or_else(|error| {
            panic!("promtool cannot be run ({error}): `deploy/dev test` installs it, and so does apt-get install prometheus")
        });
    assert!(
        ran.status.success(),
        "promtool {arguments:?}:\n{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// A Prometheus with the repository's configuration; gone at the end.
pub struct Prometheus {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Prometheus {
    /// With these workers in place of the example's, and RabbitMQ's metrics on this port. It asks twice a second.
    pub fn start(workers: &[u16], rabbitmq: u16) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(Uuid::new_v4().to_string());
        fs::create_dir_all(&folder).unwrap();
        let workers: Vec<_> = workers
            .iter()
            .map(|port| format!("\"127.0.0.1:{port}\""))
            .collect();
        let example = fs::read_to_string(deployed().join("prometheus.yaml")).unwrap();
        let mut configuration = example.clone();
        for (there, here) in [
            ("_interval: 15s", "_interval: 500ms".to_owned()),
            ("\"127.0.0.1:9464\"", workers.join(", ")),
            ("127.0.0.1:15692", format!("127.0.0.1:{rabbitmq}")),
        ] {
            assert!(example.contains(there), "the example has no {there}");
            configuration = configuration.replace(there, &here);
        }
        fs::write(folder.join("prometheus.yaml"), configuration).unwrap();
        fs::copy(deployed().join("alerts.yaml"), folder.join("alerts.yaml")).unwrap();
        let port = free_port();
        let process = Command::new("prometheus")
            .arg("--config.file=prometheus.yaml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            process,
            folder,
            port,
        }
    }

    /// What its API answers to a question, once it does.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let url = Url::parse_with_params(&url, parameters).unwrap();
        let answer: Value = eventually("Prometheus answers", async || {
            serde_json::from_str(&get(&url).await?).ok()
        })
        .await;
        assert_eq!(
            answer["status"], "success",
            "{path} {parameters:?}: {answer}"
        );
        answer["data"].clone()
    }

    /// The series that an expression gives now.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.ask("query", &[("query", expression)]).await;
        let series = answer["result"].as_array();
        series
            .unwrap_or_else(|| panic!("{expression}: {answer}"))
            .clone()
    }

    /// Waits until an expression gives something.
    pub async fn comes(&self, expression: &str) {
        eventually(&format!("Prometheus has {expression}"), async || {
            (!self.query(expression).await.is_empty()).then_some(())
        })
        .await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A label, the operator and the value.
pub type Matcher = (String, String, String);

/// What an expression names.
#[derive(Debug, Default)]
pub struct Named {
    /// Each metric, with the matchers that stand behind it.
    pub metrics: Vec<(String, Vec<Matcher>)>,
    /// The labels that are grouped or joined by.
    pub groups: Vec<String>,
}

/// Reads the names out of an expression in PromQL.
pub fn names(expression: &str) -> Named {
    let mut named = Named::default();
    let mut rest = expression;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = &rest[quoted(rest).len() + 2..];
            continue;
        }
        let word = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            rest = &rest[first.len_utf8()..];
            continue;
        }
        rest = &rest[word.len()..];
        if matches!(word, "by" | "on" | "without" | "ignoring") {
            let list = rest.trim_start().strip_prefix('(').unwrap();
            let (list, _) = list.split_once(')').unwrap();
            named
                .groups
                .extend(list.split(',').map(|label| label.trim().to_owned()));
            rest = &rest[rest.find(')').unwrap()..];
        } else if word == "up" || word.starts_with("cliquet_") || word.starts_with("rabbitmq_") {
            let mut matchers = Vec::new();
            if let Some(mut inside) = rest.strip_prefix('{') {
                while !inside.starts_with('}') {
                    let label = &inside[..inside.find(|c| !is_name(c)).unwrap()];
                    inside = &inside[label.len()..];
                    let operator = &inside[..inside.find('"').unwrap()];
                    inside = &inside[operator.len()..];
                    let value = quoted(inside);
                    inside = inside[value.len() + 2..].trim_start_matches([',', ' ']);
                    matchers.push((label.to_owned(), operator.to_owned(), value.to_owned()));
                }
                rest = &inside[1..];
            }
            named.metrics.push((word.to_owned(), matchers));
        }
    }
    named
}

/// What stands in the quotes at the beginning.
fn quoted(text: &str) -> &str {
    text[1..].split('"').next().unwrap()
}

#[test]
fn the_names_in_an_expression_are_found() {
    let named = names(
        r#"sum by (queue, le) (rate(cliquet_a_total{queue="x.y", reason!="b"}[5m])) / on (z) up > label_replace(rabbitmq_c, "cliquet_no", "$1")"#,
    );
    let metrics: Vec<_> = named
        .metrics
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(metrics, ["cliquet_a_total", "up", "rabbitmq_c"]);
    let second = &named.metrics[0].1[1];
    assert_eq!(
        (second.0.as_str(), second.1.as_str(), second.2.as_str()),
        ("reason", "!=", "b")
    );
    assert_eq!(named.groups, ["queue", "le", "z"]);
}
