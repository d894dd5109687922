//! Postgres: is it there, is it migrated, and does it let this role do its work? ([`server`] judges the server itself.)

use std::time::Instant;

use super::{Finding, State, server};
use crate::{
    config::Config,
    ledger::{
        Backlog, Duty, Health, LedgerAddress, LedgerError, ParkedGroup, Plan, Standing, Suspect,
        WHO_WAITS, WorkerFacts,
    },
    ops::words::Span,
};

pub(super) const CONNECTION: &str = "postgres.connection";
pub(super) const MIGRATIONS: &str = "postgres.migrations";
pub(super) const PRIVILEGES: &str = "postgres.privileges";
pub(super) const PLANS: &str = "postgres.plans";

/// What the checks of workers and jobs rest on; each part, or why it could not be had.
pub(super) struct Facts {
    pub(super) workers: Result<Vec<WorkerFacts>, LedgerError>,
    pub(super) held_by_nobody: Result<i64, LedgerError>,
    pub(super) parked: Result<Vec<ParkedGroup>, LedgerError>,
    pub(super) backlog: Result<Vec<Backlog>, LedgerError>,
    pub(super) suspects: Result<Vec<Suspect>, LedgerError>,
}

impl Facts {
    /// Why there are none, where Postgres stopped to answer.
    fn silence(&self) -> Option<String> {
        let errors = [
            self.workers.as_ref().err(),
            self.held_by_nobody.as_ref().err(),
            self.parked.as_ref().err(),
            self.backlog.as_ref().err(),
            self.suspects.as_ref().err(),
        ];
        let mut errors = errors.into_iter().flatten();
        errors
            .find(|error| matches!(error, LedgerError::Unavailable(_)))
            .map(ToString::to_string)
    }
}

/// Asks Postgres everything, and judges the server. What could not be asked is left out.
pub(super) async fn examine(
    address: &LedgerAddress,
    duty: Duty,
    config: &Config,
) -> (Vec<Finding>, Option<Facts>) {
    let begun = Instant::now();
    let mut health = match Health::open(address).await {
        Ok(health) => health,
        Err(error) => {
            let finding = Finding::problem(
                CONNECTION,
                error.to_string(),
                "start Postgres, mend DATABASE_URL, or open the way to it; workers keep their deliveries until it is back",
            );
            return (vec![finding], None);
        }
    };
    let took = begun.elapsed();
    let mut findings = Vec::new();
    let (facts, silence) = match ask(&mut health, duty, config, &mut findings).await {
        Ok(facts) => {
            let silence = facts.as_ref().and_then(Facts::silence);
            (facts, silence)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    findings.push(match silence {
        None => Finding::well(
            CONNECTION,
            format!("{address} let us in within {}", Span(took)),
        ),
        Some(error) => Finding::problem(
            CONNECTION,
            format!("{address} let us in, and then: {error}"),
            format!(
                "look into Postgres's log; what waits for a lock, and who has it: `{WHO_WAITS}`"
            ),
        ),
    });
    (findings, facts)
}

/// Asks on an open connection. The facts are missing where the database is not migrated.
///
/// # Errors
/// What every other answer rests on was not told.
async fn ask(
    health: &mut Health,
    duty: Duty,
    config: &Config,
    findings: &mut Vec<Finding>,
) -> Result<Option<Facts>, LedgerError> {
    let server = health.server().await?;
    let role = &server.role;
    findings.extend(server::judge_server(&server, config));
    if health.hides_migrations().await? {
        findings.push(Finding::unchecked(
            MIGRATIONS,
            format!("the role {role} may not read the list of migrations"),
        ));
    } else {
        match health.standing().await {
            Ok(Standing::Fits) => {
                findings.push(judge_newer(&health.newer_migrations().await?));
            }
            Ok(amiss) => findings.push(judge_standing(&amiss)),
            Err(LedgerError::Schema(sentence)) => {
                findings.push(judge_standing(&Standing::Foreign(sentence)));
            }
            Err(error) => return Err(error),
        }
        let fits =
            |finding: &Finding| finding.check != MIGRATIONS || finding.state != State::Problem;
        if !findings.iter().all(fits) {
            return Ok(None);
        }
    }
    findings.push(told(
        PRIVILEGES,
        health.lacking(duty, role).await,
        |lacking| judge_privileges(role, duty, &lacking),
    )?);
    findings.push(match duty {
        Duty::Worker => told(PLANS, health.plans().await, |plans| judge_plans(&plans))?,
        _ => Finding::unchecked(
            PLANS,
            "only a worker's role may ask for the plans of its statements",
        ),
    });
    match health.tables().await {
        Ok(tables) => findings.extend(server::judge_vacuum(&server, &tables)),
        Err(error @ LedgerError::Unavailable(_)) => return Err(error),
        Err(error) => findings.push(Finding::unchecked(server::AUTOVACUUM, error.to_string())),
    }
    Ok(Some(Facts {
        workers: health.workers().await,
        held_by_nobody: health.held_by_nobody().await,
        parked: health.parked().await,
        backlog: health.backlog().await,
        suspects: health.suspects().await,
    }))
}

/// Judges an answer. What Postgres refuses to tell is unchecked; that it does not answer at all is an error.
fn told<T>(
    check: &'static str,
    answer: Result<T, LedgerError>,
    judge: impl FnOnce(T) -> Finding,
) -> Result<Finding, LedgerError> {
    match answer {
        Ok(facts) => Ok(judge(facts)),
        Err(error @ LedgerError::Unavailable(_)) => Err(error),
        Err(error) => Ok(Finding::unchecked(check, error.to_string())),
    }
}

fn judge_privileges(role: &str, duty: Duty, lacking: &[crate::ledger::Lacking]) -> Finding {
    let word = match duty {
        Duty::Worker => "worker",
        Duty::Publisher => "publisher",
        Duty::Reader => "reader",
        Duty::Operator => "operator",
    };
    if lacking.is_empty() {
        return Finding::well(
            PRIVILEGES,
            format!("the role {role} has what a {word} needs"),
        );
    }
    let rights: Vec<_> = lacking.iter().map(|lack| lack.right.as_str()).collect();
    let grants: Vec<_> = lacking.iter().map(|lack| lack.grant.as_str()).collect();
    Finding::problem(
        PRIVILEGES,
        format!(
            "the role {role} lacks what a {word} needs: {}",
            rights.join("; ")
        ),
        format!(
            "make it a member of cliquet_{word} (deploy/postgres-roles.sql), or: `{}`",
            grants.join("; ")
        ),
    )
}

fn judge_standing(standing: &Standing) -> Finding {
    match standing {
        Standing::Fits => judge_newer(&[]),
        Standing::Lacks(sentence) => Finding::problem(
            MIGRATIONS,
            sentence,
            "`cliquet migrate`, as the role that owns the tables",
        ),
        Standing::Foreign(sentence) => Finding::problem(
            MIGRATIONS,
            sentence,
            "run the cliquet that migrated it, or point DATABASE_URL at another database; `cliquet migrate` does not mend this",
        ),
    }
}

fn judge_newer(newer: &[String]) -> Finding {
    if newer.is_empty() {
        return Finding::well(MIGRATIONS, "all are applied, and none was changed");
    }
    Finding::warning(
        MIGRATIONS,
        format!(
            "the database was migrated by a newer cliquet: it has {}",
            newer.join(", ")
        ),
        "nothing is wrong while a deployment is under way; otherwise bring this binary up to date",
    )
}

fn judge_plans(plans: &[Plan]) -> Finding {
    let complaints: Vec<_> = plans
        .iter()
        .filter_map(|plan| Some(format!("{} has a {:?}", plan.name, plan.complaint()?)))
        .collect();
    if complaints.is_empty() {
        return Finding::well(
            PLANS,
            format!(
                "all {} statements of a task look up each row by its place",
                plans.len()
            ),
        );
    }
    Finding::problem(
        PLANS,
        format!(
            "statements that every task needs read more than their rows: {}. An index is missing, invalid, or in the way",
            complaints.join("; ")
        ),
        "one that is invalid: `REINDEX SCHEMA cliquet`; one that no migration made, or that a later one dropped (jobs_by_age, jobs_newest): drop it; a primary key that is missing: make it as migrations/0001_jobs_and_tasks.sql does",
    )
}
