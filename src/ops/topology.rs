//! `cliquet topology`: the queues in RabbitMQ, made, looked at, or written down for whoever makes them.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Desk, failure::Failure, output::note, table::Table, words::one_line};
use crate::broker::{BrokerError, QueueSpec, QueueState};

pub(super) const HELP: &str = "\
Examples:
  cliquet topology declare                make the queues that are missing
  cliquet topology verify                 are they as they must be? (else status 1)
  cliquet topology definitions > q.json   then: rabbitmqctl import_definitions q.json";

/// `cliquet topology`.
#[derive(Debug, Args)]
pub(super) struct Topology {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make every queue that is not there yet
    Declare,
    /// Look at every queue and change none
    Verify,
    /// Print the queues as definitions JSON for `rabbitmqctl import_definitions`
    Definitions {
        /// The virtual host they are for [default: the one of AMQP_URL]
        #[arg(long)]
        vhost: Option<String>,
    },
}

#[derive(Serialize)]
struct QueueLine<'a> {
    queue: &'a str,
    role: &'a str,
    arguments: &'a Map<String, Value>,
    /// `declared`, `right`, `unproven` (there, and not to be compared by this user), `missing` or `wrong`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Topology {
    pub(super) async fn run(self, desk: Desk) -> Result<ExitCode, Failure> {
        match self.what {
            What::Declare => declare(desk).await,
            What::Verify => verify(desk).await,
            What::Definitions { vhost } => definitions(desk, vhost),
        }
    }
}

async fn declare(mut desk: Desk) -> Result<ExitCode, Failure> {
    let address = desk.broker()?;
    let topology = desk.topology(&desk.config.queue)?;
    topology.declare(&address, &desk.identity()).await?;
    let mut table = Table::new(&["QUEUE", "WHAT"]);
    for queue in topology.queues() {
        if desk.json {
            desk.output.json(&QueueLine {
                queue: &queue.name,
                role: &queue.role,
                arguments: &queue.arguments,
                state: "declared",
                ready: None,
                consumers: None,
                error: None,
            })?;
        }
        table.row([queue.name, queue.role]);
    }
    if !desk.json {
        table.print(&mut desk.output, "")?;
        note(format_args!("all of them are there, at {address}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(mut desk: Desk) -> Result<ExitCode, Failure> {
    let address = desk.broker()?;
    let topology = desk.topology(&desk.config.queue)?;
    let found = topology.inspect(&address, &desk.identity()).await?;
    let (mut missing, mut complaints) = (0, Vec::new());
    let mut table = Table::new(&["QUEUE", "STATE", "READY", "CONSUMERS"]);
    for (
        QueueSpec {
            name,
            role,
            arguments,
            ..
        },
        state,
    ) in &found
    {
        let (word, ready, consumers, error) = match state {
            QueueState::Right { ready, consumers } => {
                ("right", Some(*ready), Some(*consumers), None)
            }
            QueueState::Unproven { ready, consumers } => {
                ("unproven", Some(*ready), Some(*consumers), None)
            }
            QueueState::Wrong(BrokerError::Missing { .. }) => {
                missing += 1;
                ("missing", None, None, None)
            }
            QueueState::Wrong(error) => {
                let sentence = one_line(&error.to_string());
                complaints.push(sentence.clone());
                ("wrong", None, None, Some(sentence))
            }
        };
        if desk.json {
            desk.output.json(&QueueLine {
                queue: name,
                role,
                arguments,
                state: word,
                ready,
                consumers,
                error,
            })?;
        } else {
            let number = |number: Option<u32>| number.map_or("-".into(), |n| n.to_string());
            table.row([name.clone(), word.into(), number(ready), number(consumers)]);
        }
    }
    if !desk.json {
        table.print(&mut desk.output, "")?;
    }
    if missing > 0 {
        complaints.push(format!(
            "{missing} of {} queues are not there; `cliquet topology declare` makes them",
            found.len()
        ));
    }
    if complaints.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::failed(complaints.join("\n")))
    }
}

fn definitions(mut desk: Desk, vhost: Option<String>) -> Result<ExitCode, Failure> {
    let vhost = match vhost {
        Some(vhost) => vhost,
        None => desk.broker()?.vhost().to_owned(),
    };
    let definitions = desk.topology(&desk.config.queue)?.definitions(&vhost);
    if desk.json {
        desk.output.json(&definitions)?;
    } else {
        desk.output.line(format_args!("{definitions:#}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
