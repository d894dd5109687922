//! How HTTP begins and ends: `cliquet web`, and `cliquet work --http`.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    super::{Desk, acts::Acts, failure::Failure, output::note, work::keep_to_ourselves},
    App, READERS, Shared,
    auth::{Refusals, Sessions, Token},
    depths::Depths,
    health::Readiness,
    kept::Kept,
    live::Live,
    routes, server,
};
use crate::{config::http_address, ledger::Reads, telemetry, worker::Status};

/// Where `cliquet web` listens, if nothing is said.
const USUAL: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);
/// Connections for what operators do.
const WRITERS: u32 = 2;
/// How long acts that are under way may take when the server ends.
const LAST_ACTS: Duration = Duration::from_secs(10);
/// How long each connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

pub(in crate::ops) const HELP: &str = "\
  /livez /readyz           for probes; open to everybody
  /metrics                 for Prometheus (of a worker: `cliquet work --http`)
  /api/v1/openapi.json     describes the API
  /                        for people

On any address but loopback it wants a token of at least 16 characters in the
environment, and then asks everybody for it:

  CLIQUET_HTTP_TOKEN=$(openssl rand -hex 32) cliquet web --http 0.0.0.0:9464
  curl -H \"Authorization: Bearer $CLIQUET_HTTP_TOKEN\" http://…:9464/api/v1/jobs

Browsers log in with it at /login, over https (a reverse proxy) or from this
machine (ssh -L 9464:127.0.0.1:9464).

SIGTERM or SIGINT ends it.";

/// `cliquet web`.
#[derive(Debug, Args)]
pub(in crate::ops) struct Web {
    /// Where to listen; the port 0 is any free one [default: `http` in the settings, or 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = http_address)]
    http: Option<SocketAddr>,
}

impl Web {
    pub(in crate::ops) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        keep_to_ourselves();
        let address = self.http.or(desk.config.http).unwrap_or(USUAL);
        let beside = Beside::begin(&desk, address, Readiness::Postgres(Default::default())).await?;
        if desk.json {
            desk.output.json(&json!({ "http": beside.url() }))?;
        } else {
            note(format_args!("listening on {}", beside.url()));
        }
        asked_to_stop().await;
        beside.end().await;
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits for SIGTERM or SIGINT; a second one leaves at once.
async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be received here; only SIGKILL will end this");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        let status = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        std::process::exit(status);
    });
}

/// A server that goes on beside whatever else this process does.
pub(in crate::ops) struct Beside {
    app: Shared,
    serving: JoinHandle<()>,
}

impl Beside {
    /// Listens, and makes this process keep metrics. To be called before a worker runs.
    ///
    /// # Errors
    /// When the address is open to others and there is no token, when it cannot be listened at, or when a setting is wrong.
    pub(in crate::ops) async fn for_worker(
        desk: &Desk,
        address: SocketAddr,
        status: Status,
    ) -> Result<Self, Failure> {
        let beside = Self::begin(desk, address, Readiness::Worker(status)).await?;
        info!(http.address = %beside.app.address, "serving HTTP");
        Ok(beside)
    }

    async fn begin(
        desk: &Desk,
        address: SocketAddr,
        readiness: Readiness,
    ) -> Result<Self, Failure> {
        let token = Token::of_environment().map_err(Failure::usage)?;
        if token.is_none() && !address.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "HTTP at {address} is open to other machines, and there is no token: set CLIQUET_HTTP_TOKEN to at least 16 characters (`openssl rand -hex 32` prints some), or listen at 127.0.0.1:{} (--http)",
                address.port()
            )));
        }
        let database = desk.database()?;
        let broker = desk.broker()?;
        let topology = desk.topology(&desk.config.queue)?;
        let listener = server::listen(address).await?;
        let address = listener.local_addr().unwrap_or(address);
        let metrics = telemetry::metrics::install().map_err(Failure::failed)?;

        let config = Arc::new(desk.config.clone());
        let reads = Reads::new(database.reader_pool("http", READERS as u32));
        let readers = Arc::new(Semaphore::new(READERS));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let app = Arc::new(App {
            acts: Acts::new(config.clone(), database.lasting_pool("http acts", WRITERS)),
            live: Live::new(reads.clone(), readers.clone(), tasks.clone(), stop.clone()),
            broker: Depths::new(broker, topology, desk.identity()),
            // The ledger itself counts seldom what takes long to count.
            overview: Kept::for_at_most(Duration::from_secs(1)),
            groups: Kept::for_at_most(Duration::from_secs(15)),
            workers: Kept::for_at_most(Duration::from_secs(3)),
            reads,
            config,
            token,
            sessions: Sessions::default(),
            refusals: Refusals::default(),
            readiness,
            metrics,
            address,
            database,
            readers,
            bulk: Arc::new(Semaphore::new(1)),
            tasks,
            stop,
        });
        let upkeep = app.clone();
        tokio::spawn(async move { upkeep.metrics.upkeep(upkeep.stop.clone()).await });
        let serving = tokio::spawn(serve(listener, app.clone()));
        Ok(Self { app, serving })
    }

    fn url(&self) -> String {
        format!("http://{}", self.app.address)
    }

    /// Ends the streams of events and lets go what is under way.
    pub(in crate::ops) async fn end(self) {
        self.app.stop.cancel();
        let _ = self.serving.await;
        self.app.tasks.close();
        if timeout(LAST_ACTS, self.app.tasks.wait()).await.is_err() {
            warn!("leaving though somebody's request is under way");
        }
        let closing = async { tokio::join!(self.app.acts.close(), self.app.broker.close()) };
        let _ = timeout(GOODBYE, closing).await;
    }
}

async fn serve(listener: TcpListener, app: Shared) {
    server::serve(listener, routes(&app), app.stop.clone()).await;
}
