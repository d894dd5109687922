//! `cliquet work`: the ready-made worker, with the handlers of the settings.

use std::{net::SocketAddr, process::ExitCode};

use clap::Args;

use super::{Desk, failure::Failure, web::Beside};
use crate::{config::http_address, handlers::Exec, worker::Worker};

pub(super) const HELP: &str = r#"A handler is a program, named in cliquet.toml. It is given one JSON document on
standard input, and what it prints is the task's result:

  queue = "jobs"

  [handlers.upload_image]
  exec = ["python3", "upload.py"]
  timeout = "2m"
  max_attempts = 5

SIGTERM or SIGINT lets the running tasks end (at most drain_timeout) and hands
the rest of the jobs back; a second one leaves at once.

With --http it serves health checks, metrics, an API and a page beside the jobs:
`cliquet web --help` says more."#;

/// `cliquet work`.
#[derive(Debug, Args)]
pub(super) struct Work {
    /// Serve HTTP here, too: 127.0.0.1:9464; the port 0 is any free one [default: `http` in the settings, or not at all]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = http_address)]
    http: Option<SocketAddr>,
}

impl Work {
    pub(super) async fn run(self, desk: Desk) -> Result<ExitCode, Failure> {
        keep_to_ourselves();
        let worker = worker(&desk)?;
        let beside = match self.http.or(desk.config.http) {
            Some(address) => Some(Beside::for_worker(&desk, address, worker.status()).await?),
            None => None,
        };
        let ended = worker.run().await;
        // It goes on while the worker drains, and ends with it.
        if let Some(beside) = beside {
            beside.end().await;
        }
        ended?;
        Ok(ExitCode::SUCCESS)
    }
}

fn worker(desk: &Desk) -> Result<Worker, Failure> {
    let config = desk.config.clone();
    if config.handlers.is_empty() {
        return Err(Failure::usage(
            "there are no handlers, so every task would fail: name a program for each in cliquet.toml ([handlers.upload_image] and exec = [\"python3\", \"upload.py\"]), and give the file with --config",
        ));
    }
    let mut worker = Worker::builder().config(config.clone());
    for (name, handler) in config.handlers {
        let mut exec = Exec::new(handler.exec)
            .map_err(|sentence| Failure::usage(format!("[handlers.{name}] `exec`: {sentence}")))?
            .env(handler.env);
        if let Some(dir) = handler.dir {
            exec = exec.dir(dir);
        }
        if let Some(bytes) = handler.output_limit {
            exec = exec.output_limit(bytes);
        }
        worker = worker.handler_with(name, exec, handler.options);
    }
    Ok(worker.build()?)
}

/// Handlers' programs run as the same user, who could read this process's environment, with both addresses in it, in /proc. It
/// leaves no core dump either, for the same reason; whoever debugs it has to be root.
pub(super) fn keep_to_ourselves() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "programs of this user can read the environment of this process");
    }
}
