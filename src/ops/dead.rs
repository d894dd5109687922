//! `cliquet dead`: what the dead queue holds.
//!
//! Messages are named by their job's id, or by the first digits of their hash where they have none. They are held
//! back from nobody for longer than it takes to look: whatever is told for reading is told after they were given back.

mod drop;
mod list;
mod retry;
mod show;

use std::{fmt, process::ExitCode, str::FromStr};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Desk, failure::Failure, job_id};
use crate::{
    broker::{DeadQueue, Parked},
    job::{BadMessage, JobId, JobMessage},
};

pub(super) const HELP: &str = "\
A job that is given up, and whatever is no job, is parked in the dead queue
(`jobs.dead` for the work queue `jobs`), with the reason in its headers. To look
at it changes nothing: every message goes back to its place. While one person
looks, another sees fewer messages.

`cliquet retry` sends a job again from the ledger and leaves the parked copy,
which is stale then and harmless. `cliquet dead retry` sends the parked message
itself, with its publisher's headers, and takes it out of the dead queue.

Examples:
  cliquet dead list
  cliquet dead show 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet dead retry --all --reason exhausted
  cliquet dead drop 3fa9c1d20e4b";

/// The digits of a hash that name a message, at least.
const FEWEST_DIGITS: usize = 6;
/// The digits of a hash that are shown.
const DIGITS: usize = 12;

/// `cliquet dead`.
#[derive(Debug, Args)]
pub(super) struct Dead {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List what is parked, oldest first
    #[command(after_help = list::HELP)]
    List(list::List),
    /// Show one message: why it is parked, its headers, its body
    #[command(after_help = show::HELP)]
    Show(show::Show),
    /// Send parked messages to the workers again, and take them out of the dead queue
    #[command(after_help = retry::HELP)]
    Retry(retry::Retry),
    /// Take parked messages away for good
    #[command(after_help = drop::HELP)]
    Drop(drop::Drop),
}

impl Dead {
    pub(super) async fn run(self, desk: Desk) -> Result<ExitCode, Failure> {
        match self.what {
            What::List(command) => command.run(desk).await,
            What::Show(command) => command.run(desk).await,
            What::Retry(command) => command.run(desk).await,
            What::Drop(command) => command.run(desk).await,
        }
    }
}

/// Which dead queue, and how far into it.
#[derive(Debug, Args)]
struct Where {
    /// The work queue whose dead queue it is [default: that of the settings]
    #[arg(long)]
    queue: Option<String>,
}

impl Where {
    async fn open(&self, desk: &Desk) -> Result<DeadQueue, Failure> {
        let queue = self.queue.as_deref().unwrap_or(&desk.config.queue);
        let (address, topology) = (desk.broker()?, desk.topology(queue)?);
        Ok(DeadQueue::open(&address, &topology, &desk.identity()).await?)
    }
}

/// Which messages of the queue.
#[derive(Debug, Args)]
struct Filter {
    /// Only those that are parked for this reason: exhausted, permanent, crashed, conflict, not_json …
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    reason: Vec<String>,

    /// Only those that are no job
    #[arg(long)]
    undecodable: bool,
}

impl Filter {
    fn fits(&self, parked: &Parked) -> bool {
        let reason = || parked.reason().unwrap_or_default();
        (self.reason.is_empty() || self.reason.contains(&reason()))
            && (!self.undecodable || decoded(parked).is_err())
    }

    fn is_everything(&self) -> bool {
        self.reason.is_empty() && !self.undecodable
    }
}

/// The messages that a command is for.
#[derive(Debug, Args)]
struct Wanted {
    /// The jobs' ids, or digits of their hashes
    #[arg(
        value_name = "ID|HASH",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    names: Vec<Name>,

    /// Everything that fits
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    place: Where,

    /// Look at no more than so many messages, the oldest
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// How a person names a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Job(JobId),
    /// The first digits of its hash.
    Body(String),
}

impl Name {
    fn fits(&self, parked: &Parked) -> bool {
        match self {
            Self::Job(id) => parked.job() == Some(*id),
            Self::Body(digits) => parked.hash().starts_with(digits),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => id.fmt(f),
            Self::Body(digits) => digits.fmt(f),
        }
    }
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_start_matches('#').to_ascii_lowercase();
        let hash = (FEWEST_DIGITS..=DIGITS).contains(&digits.len())
            && digits.chars().all(|digit| digit.is_ascii_hexdigit());
        if hash {
            return Ok(Self::Body(digits));
        }
        job_id(text).map(Self::Job).map_err(|_| {
            format!(
                "a parked message is named by its job's id, a UUID, or by {FEWEST_DIGITS} to {DIGITS} digits of its hash; `cliquet dead list` shows both"
            )
        })
    }
}

/// What people read of a message: what `list --json` prints.
#[derive(Clone, Debug, Serialize)]
struct Line {
    /// The job's; null for a message that names none.
    id: Option<JobId>,
    /// The first digits of its hash.
    hash: String,
    kind: Option<String>,
    reason: Option<String>,
    error: Option<String>,
    task: Option<String>,
    attempts: Option<i64>,
    parked_at: Option<String>,
    /// Whether a worker would take it for a job.
    decodable: bool,
    /// The body's size.
    bytes: usize,
}

impl Line {
    fn of(parked: &Parked) -> Self {
        let message = decoded(parked);
        let property = parked.delivery().message_type();
        Self {
            id: parked.job(),
            hash: parked.hash().to_owned(),
            kind: match &message {
                Ok(message) => Some(message.kind.clone()),
                Err(_) => property.map(str::to_owned),
            },
            reason: parked.reason(),
            error: parked.error().map(str::to_owned),
            task: parked.task().map(str::to_owned),
            attempts: parked.attempts(),
            parked_at: parked.parked_at(),
            decodable: message.is_ok(),
            bytes: parked.delivery().body().len(),
        }
    }

    /// What names it on the command line.
    fn name(&self) -> String {
        self.id
            .map_or_else(|| self.hash.clone(), |id| id.to_string())
    }
}

/// The message as a worker would read it.
fn decoded(parked: &Parked) -> Result<JobMessage, BadMessage> {
    let delivery = parked.delivery();
    JobMessage::decode(
        delivery.body(),
        delivery.message_id(),
        delivery.message_type(),
    )
}

/// Where a name was looked for in vain.
fn not_found(name: &Name, dead: &DeadQueue) -> String {
    let queue = dead.name();
    let left = match dead.left() {
        0 => String::new(),
        left => {
            format!("; {left} more lie behind those that were looked at, --limit N looks further")
        }
    };
    let ledger = match name {
        Name::Job(id) => format!(" (`cliquet show {id}` tells what the ledger knows of it)"),
        Name::Body(_) => String::new(),
    };
    format!("`{queue}` holds no message {name}{left}{ledger}")
}

/// Gives everything back, whatever came before; the first failure is the one to tell.
async fn closed<T>(dead: DeadQueue, done: Result<T, Failure>) -> Result<T, Failure> {
    let closed = dead.close().await;
    let done = done?;
    closed?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_by_an_id_or_by_digits_of_its_hash() {
        let name = |text: &str| text.parse::<Name>();
        const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";
        assert_eq!(name(ID), Ok(Name::Job(ID.parse().unwrap())));
        assert_eq!(name("#3FA9C1D20E4B"), Ok(Name::Body("3fa9c1d20e4b".into())));
        assert_eq!(name("3fa9c1"), Ok(Name::Body("3fa9c1".into())));
        for wrong in ["", "17", "3fa9c", "3fa9c1d20e4b7", "nonsense", "zzzzzz"] {
            assert!(
                name(wrong).unwrap_err().contains("cliquet dead list"),
                "{wrong}"
            );
        }
    }
}
