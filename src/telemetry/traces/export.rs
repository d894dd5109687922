//! From finished spans to the collector: by OTLP over HTTP, from a thread of its own, so that no job ever waits for it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, InstrumentationScope, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor},
};
use tracing::{Subscriber, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::{
    TARGET,
    client::{Client, Trouble},
    settings::{self, Settings},
};

/// How long the end of a command waits for the last spans to be taken.
const FLUSH: Duration = Duration::from_secs(2);

/// Spans of this process on their way to a collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

/// Where `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set: the way to that collector, as the other
/// standard variables (`OTEL_…`) want it. A collector that is away is no error.
///
/// To be called outside of any async runtime.
///
/// # Errors
/// A sentence that names the variable that is wrong.
pub fn from_environment() -> Result<Option<Traces>, String> {
    let settings = settings::read(|name| std::env::var_os(name))?;
    settings.map(Traces::to).transpose()
}

impl Traces {
    fn to(settings: Settings) -> Result<Self, String> {
        let shown = shown(&settings);
        let (resource, queue) = (resource(&settings), settings.queue);
        let endpoint = settings.endpoint.to_string();
        let timeout = settings.timeout;
        let trouble = Trouble::default();
        let client = Client::new(settings, trouble.clone())
            .map_err(|sentence| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {sentence}"))?;
        let inner = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(timeout)
            .build()
            // Its words may have the whole address in them.
            .map_err(|_| {
                format!("OTEL_EXPORTER_OTLP_ENDPOINT: nothing can be sent to {shown}; is the address right?")
            })?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = Exporter {
            inner,
            trouble,
            shown,
            away: AtomicBool::new(false),
            waiting: waiting.clone(),
        };
        let processor = Processor {
            inner: BatchSpanProcessor::builder(exporter).build(),
            waiting,
            queue,
            full: AtomicBool::new(false),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(processor)
            .build();
        Ok(Self { provider })
    }

    /// The layer that collects cliquet's own spans for traces, whatever `RUST_LOG` says, and nobody else's.
    pub(in crate::telemetry) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let scope = InstrumentationScope::builder("cliquet")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let ours = filter_fn(|about| about.is_span() && about.target() == TARGET)
            .with_max_level_hint(LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer_with_scope(scope))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }

    /// Sends what is left, for at most 2 s. To be called when all that makes spans has ended.
    pub fn end(self) {
        if self.provider.shutdown_with_timeout(FLUSH).is_err() {
            warn!(
                seconds = FLUSH.as_secs(),
                "the last spans are not taken in time and are lost"
            );
        }
    }
}

/// Without what the SDK holds: it would show the headers.
impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

/// Who makes these spans, where the variables do not say otherwise.
fn resource(settings: &Settings) -> Resource {
    let usual = [
        ("service.name", "cliquet"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let missing = usual
        .into_iter()
        .filter(|(key, _)| !settings.resource.iter().any(|given| given == key))
        .map(|(key, value)| KeyValue::new(key, value));
    Resource::builder().with_attributes(missing).build()
}

/// The collector's address without its path and what is behind, which may be a key.
fn shown(settings: &Settings) -> String {
    settings.endpoint.origin().ascii_serialization()
}

/// The SDK's exporter, and a word when the collector goes away or comes back: one for each outage, and not one for each batch.
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    /// Why the last request was not answered.
    trouble: Trouble,
    shown: String,
    away: AtomicBool,
    waiting: Arc<AtomicUsize>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let exported = self.inner.export(batch).await;
        match (
            &exported,
            self.away.swap(exported.is_err(), Ordering::Relaxed),
        ) {
            (Err(error), false) => warn!(
                collector = self.shown,
                spans,
                error = self.trouble.take().unwrap_or_else(|| error.to_string()),
                "the collector does not take traces; they are lost until it does, and jobs go on"
            ),
            (Ok(()), true) => info!(collector = self.shown, "the collector takes traces again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// The SDK's batches, and a word when more spans end than are taken: it would drop them in silence.
#[derive(Debug)]
struct Processor {
    inner: BatchSpanProcessor,
    /// Spans that wait for their batch.
    waiting: Arc<AtomicUsize>,
    /// The most that may.
    queue: usize,
    full: AtomicBool,
}

impl SpanProcessor for Processor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.queue {
            return self.inner.on_end(span);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if !self.full.swap(true, Ordering::Relaxed) {
            warn!(
                queue = self.queue,
                "more spans end than the collector takes; some are lost (this is told once). Sample (OTEL_TRACES_SAMPLER=parentbased_traceidratio), or let more wait (OTEL_BSP_MAX_QUEUE_SIZE)"
            );
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
