//! A collector of OpenTelemetry's traces: takes OTLP over HTTP, over TLS if it is given a certificate, and keeps the spans.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
};
use prost::Message;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for the first of a trace.
    pub parent: String,
    pub state: String,
    pub name: String,
    /// As the protocol numbers them: 1 internal, 4 producer, 5 consumer.
    pub kind: i32,
    pub attributes: BTreeMap<String, String>,
    /// The error's text, for a span that failed.
    pub failed: Option<String>,
    pub resource: BTreeMap<String, String>,
}

impl Span {
    #[track_caller]
    pub fn attribute(&self, name: &str) -> &str {
        match self.attributes.get(name) {
            Some(value) => value,
            None => panic!("no {name} in {self:?}"),
        }
    }

    /// Its place, as W3C writes it.
    pub fn place(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

#[derive(Debug, Default)]
struct Taken {
    spans: Vec<Span>,
    /// The first lines and headers of all requests.
    heads: String,
    /// All bodies, one after the other.
    bodies: Vec<u8>,
}

pub struct Collector {
    port: u16,
    taken: Arc<Mutex<Taken>>,
    connections: Arc<Mutex<usize>>,
    over: Arc<AtomicBool>,
}

impl Collector {
    pub fn start() -> Self {
        Self::with(None)
    }

    pub fn over_tls(config: ServerConfig) -> Self {
        Self::with(Some(Arc::new(config)))
    }

    fn with(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            port: listener.local_addr().unwrap().port(),
            taken: Arc::default(),
            connections: Arc::default(),
            over: Arc::default(),
        };
        let (taken, over) = (collector.taken.clone(), collector.over.clone());
        let connections = collector.connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                *connections.lock().unwrap() += 1;
                let (stream, taken, tls) = (stream.unwrap(), taken.clone(), tls.clone());
                // A client that goes away, or does not trust the certificate, ends its own thread alone.
                std::thread::spawn(move || match tls {
                    None => serve(stream, &taken),
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(connection, stream), &taken)
                    }
                });
            }
        });
        collector
    }

    /// The value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How often somebody has connected.
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// The first lines and headers of all requests.
    pub fn heads(&self) -> String {
        self.taken.lock().unwrap().heads.clone()
    }

    /// All that was ever sent, as far as it is text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.taken.lock().unwrap().bodies).into_owned()
    }

    pub fn spans(&self) -> Vec<Span> {
        self.taken.lock().unwrap().spans.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Answers requests until the client goes away.
fn serve(stream: impl Read + Write, taken: &Mutex<Taken>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let told = line.to_ascii_lowercase();
            if let Some(value) = told.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        // Before the answer: whoever has it knows that the spans are here.
        {
            let mut taken = taken.lock().unwrap();
            taken.spans.extend(spans(&body));
            taken.heads.push_str(&head);
            taken.bodies.extend(body);
        }
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
}

fn spans(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("no OTLP");
    let mut found = Vec::new();
    for of_one in request.resource_spans {
        let resource = table(of_one.resource.unwrap_or_default().attributes);
        for span in of_one.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let status = span.status.unwrap_or_default();
            found.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                state: span.trace_state,
                name: span.name,
                kind: span.kind,
                attributes: table(span.attributes),
                failed: (status.code == 2).then_some(status.message),
                resource: resource.clone(),
            });
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn table(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .into_iter()
        .map(|attribute| (attribute.key, text(attribute.value)))
        .collect()
}
