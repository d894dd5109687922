//! `cliquet doctor`: what is wrong with the services, the workers and the jobs, and what to do about each finding.
//!
//! It changes nothing. Facts are gathered by `ledger` and `broker`; what they mean is decided here, in functions of facts alone.
//! Every check says something at every run, if only that it could not be made: a service that is away is a finding, and the
//! other checks go on.

mod jobs;
mod management;
mod postgres;
mod rabbitmq;
mod server;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::join;

use super::{
    Desk,
    failure::Failure,
    output::{Output, note},
    words::{has_colour, one_line, painted},
};
use crate::{broker::Management, ledger::Duty};

pub(super) const HELP: &str = "\
It looks with the settings and rights of a worker: run it where a worker runs,
with the worker's own cliquet.toml and addresses. It changes nothing.

RABBITMQ_MANAGEMENT_URL (http://USER:PASSWORD@HOST:15672) adds what RabbitMQ
tells only there: alarms, disk, policies and permissions. Without it these are
reported as unchecked.

Exit status: 0 no problem (there may be warnings), 1 problems (with --strict:
or warnings), 2 wrong use or setting. With --json: one object a line, with the
keys check, state (ok, warning, problem, unchecked), found and remedy.

Examples:
  cliquet doctor --config cliquet.toml
  cliquet doctor --json | jq 'select(.state == \"problem\")'";

/// `cliquet doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Whose rights are looked for: what the user of the addresses has to do
    #[arg(long = "for", value_name = "DUTY", default_value = "worker")]
    duty: DutyOption,

    /// Warnings count, too: status 1
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DutyOption {
    /// Runs jobs
    Worker,
    /// Enqueues jobs in SQL, or publishes their messages
    Publisher,
    /// Looks at jobs
    Reader,
    /// Looks at jobs, retries, cancels and skips
    Operator,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Problem,
    Unchecked,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    /// What to do, with the command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, state: State, found: impl Into<String>) -> Self {
        Self {
            check,
            state,
            found: found.into(),
            remedy: None,
        }
    }

    fn well(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found)
    }

    fn unchecked(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, State::Unchecked, why)
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, State::Warning, found).mended_by(remedy)
    }

    fn problem(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, State::Problem, found).mended_by(remedy)
    }

    fn mended_by(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Sends everything that was given up once more.
const RETRY_PARKED: &str =
    "`cliquet jobs --status FAILED --limit 100000 --json | jq -r .id | xargs cliquet retry`";

/// Everything that is checked, in the order in which it is told.
const CHECKS: [&str; 29] = [
    postgres::CONNECTION,
    server::VERSION,
    server::WRITABLE,
    postgres::MIGRATIONS,
    postgres::PRIVILEGES,
    postgres::PLANS,
    server::DURABILITY,
    server::AUTOVACUUM,
    server::CONNECTIONS,
    server::TRANSACTIONS,
    rabbitmq::CONNECTION,
    rabbitmq::VERSION,
    rabbitmq::PUBLISHING,
    rabbitmq::QUEUES,
    rabbitmq::CONSUMERS,
    rabbitmq::DEAD_QUEUE,
    rabbitmq::PERMISSIONS,
    management::CONSUMER_TIMEOUT,
    management::ALARMS,
    management::NODES,
    management::POLICIES,
    jobs::WORKERS,
    jobs::SILENT,
    jobs::VERSIONS,
    jobs::BRAKES,
    jobs::STUCK,
    jobs::WAITING,
    jobs::PARKED,
    jobs::SUSPECTS,
];

impl Doctor {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let (database, address) = (desk.database()?, desk.broker()?);
        let topology = desk.topology(&desk.config.queue)?;
        let management = management()?;
        let duty = match self.duty {
            DutyOption::Worker => Duty::Worker,
            DutyOption::Publisher => Duty::Publisher,
            DutyOption::Reader => Duty::Reader,
            DutyOption::Operator => Duty::Operator,
        };
        let broker = rabbitmq::Broker {
            address,
            topology,
            identity: desk.identity(),
            management,
            declares: desk.config.declare,
            hand_over_after: desk.config.hand_over_after,
            duty,
        };
        let ((mut findings, ledger), (others, ready)) = join!(
            postgres::examine(&database, duty, &desk.config),
            broker.examine()
        );
        findings.extend(others);
        if let Some(facts) = ledger {
            findings.extend(jobs::judge(&facts, &desk.config.queue, ready));
        }
        for check in CHECKS {
            if !findings.iter().any(|finding| finding.check == check) {
                let why = match check.starts_with("rabbitmq.") {
                    true => "RabbitMQ could not be asked",
                    false => "Postgres could not be asked, or is not migrated",
                };
                findings.push(Finding::unchecked(check, why));
            }
        }
        let place = |finding: &Finding| CHECKS.iter().position(|check| *check == finding.check);
        findings.sort_by_key(place);
        tell(&mut desk.output, desk.json, &findings)?;

        let count = |state| {
            let of_state = findings.iter().filter(|finding| finding.state == state);
            of_state.count()
        };
        let (problems, warnings) = (count(State::Problem), count(State::Warning));
        if !desk.json {
            note(format_args!(
                "{problems} problems, {warnings} warnings; {} checks are well, {} could not be made",
                count(State::Ok),
                count(State::Unchecked)
            ));
        }
        Ok(if problems > 0 || (self.strict && warnings > 0) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn management() -> Result<Option<Management>, Failure> {
    let url = std::env::var("RABBITMQ_MANAGEMENT_URL").unwrap_or_default();
    if url.is_empty() {
        return Ok(None);
    }
    Management::parse(&url)
        .map(Some)
        .map_err(|sentence| Failure::usage(format!("RABBITMQ_MANAGEMENT_URL: {sentence}")))
}

fn tell(output: &mut Output, json: bool, findings: &[Finding]) -> Result<(), Failure> {
    for finding in findings {
        if json {
            output.json(finding)?;
            continue;
        }
        let word = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "PROBLEM",
            State::Unchecked => "unchecked",
        };
        let found = one_line(&finding.found);
        let word = format!("{word:<10}");
        let word = painted(&word, has_colour());
        output.line(format_args!("{word} {:<26} {found}", finding.check))?;
        if let Some(remedy) = &finding.remedy {
            output.line(format_args!("{:>40} {}", "→", one_line(remedy)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = CHECKS.into_iter().collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
