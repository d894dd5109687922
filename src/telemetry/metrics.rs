//! Prometheus's text for the metrics of this process: for the binary, when it serves HTTP.
//!
//! A library's user who has a recorder of his own does not need this. Whoever serves the text calls
//! [`Exposition::upkeep`], too: what the histograms are given lies in a list until somebody sorts it into their buckets,
//! which only a render and the upkeep do.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::metrics::{ALL, Kind};

/// How often the lists are emptied. At 50,000 tasks a second a list grows by less than a megabyte meanwhile.
const UPKEEP: Duration = Duration::from_secs(1);

/// The metrics of this process, to be read as text.
#[derive(Clone, Debug)]
pub struct Exposition(PrometheusHandle);

/// Makes this process keep its metrics for Prometheus. To be called before [`Worker::run`](crate::Worker::run): a worker's
/// handles are those of the recorder that it finds when it begins.
///
/// # Errors
/// A sentence, when the process has a recorder already.
pub fn install() -> Result<Exposition, String> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .map_err(|error| format!("the buckets of {}: {error}", metric.name))?;
        }
    }
    let handle = builder
        .install_recorder()
        .map_err(|error| format!("metrics cannot be kept for Prometheus: {error}"))?;
    Ok(Exposition(handle))
}

impl Exposition {
    /// The type of the text, for the header `content-type`.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Every metric as it is now, in Prometheus's text format. Takes a few milliseconds of one thread.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Sorts what histograms were given, again and again until `stop`: spawn it once, beside the server.
    pub async fn upkeep(&self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(UPKEEP))
            .await
            .is_some()
        {
            self.0.run_upkeep();
        }
    }
}
