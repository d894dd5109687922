//! Postgres: is it there, is it fit to be the ledger, and does it let this role do its work?

use std::time::{Duration, Instant};

use super::Finding;
use crate::{
    config::Config,
    ledger::{
        Backlog, Duty, Health, LedgerAddress, LedgerError, ParkedGroup, Plan, Server, Suspect,
        Table, WorkerFacts, check,
    },
    ops::words::Span,
};

pub(super) const CONNECTION: &str = "postgres.connection";
pub(super) const VERSION: &str = "postgres.version";
pub(super) const WRITABLE: &str = "postgres.writable";
pub(super) const MIGRATIONS: &str = "postgres.migrations";
pub(super) const PRIVILEGES: &str = "postgres.privileges";
pub(super) const PLANS: &str = "postgres.plans";
pub(super) const DURABILITY: &str = "postgres.durability";
pub(super) const AUTOVACUUM: &str = "postgres.autovacuum";
pub(super) const CONNECTIONS: &str = "postgres.connections";
pub(super) const TRANSACTIONS: &str = "postgres.transactions";

/// The oldest Postgres that has all that the migrations use.
const OLDEST: i32 = 130_000;
/// A transaction that is open for longer keeps vacuum from its work.
const LONG: Duration = Duration::from_secs(3600);
/// Dead rows that are nothing yet.
const FEW_DEAD: i64 = 100_000;
/// Sessions of a worker beside its lanes and its handlers' transactions: the heartbeat's and the desk's.
const OWN_SESSIONS: i64 = 4;

/// What the checks of workers and jobs rest on; each part, or why it could not be had.
pub(super) struct Facts {
    pub(super) workers: Result<Vec<WorkerFacts>, LedgerError>,
    pub(super) held_by_nobody: Result<i64, LedgerError>,
    pub(super) parked: Result<Vec<ParkedGroup>, LedgerError>,
    pub(super) backlog: Result<Vec<Backlog>, LedgerError>,
    pub(super) suspects: Result<Vec<Suspect>, LedgerError>,
}

/// Asks Postgres everything, and judges the server. What could not be asked is left out.
pub(super) async fn examine(
    address: &LedgerAddress,
    duty: Duty,
    config: &Config,
) -> (Vec<Finding>, Option<Facts>) {
    let mut findings = Vec::new();
    let begun = Instant::now();
    let mut health = match Health::open(address).await {
        Ok(health) => health,
        Err(error) => {
            findings.push(Finding::problem(
                CONNECTION,
                error.to_string(),
                "start Postgres, mend DATABASE_URL, or open the way to it; workers keep their deliveries until it is back",
            ));
            return (findings, None);
        }
    };
    let took = begun.elapsed();
    findings.push(Finding::well(
        CONNECTION,
        format!("{address} let us in within {}", Span(took)),
    ));
    let role = match health.server().await {
        Ok(server) => {
            findings.extend(judge_server(&server, config));
            server.role
        }
        Err(error) => {
            findings.push(Finding::unchecked(VERSION, error.to_string()));
            return (findings, None);
        }
    };
    if matches!(health.hides_migrations().await, Ok(true)) {
        findings.push(Finding::unchecked(
            MIGRATIONS,
            format!("the role {role} may not read the list of migrations"),
        ));
    } else {
        let (migrated, newer) = (check(address).await, health.newer_migrations().await);
        findings.push(judge_migrations(&migrated, &newer));
        if migrated.is_err() {
            return (findings, None);
        }
    }
    findings.push(match health.lacking(duty, &role).await {
        Ok(lacking) => judge_privileges(&role, duty, &lacking),
        Err(error) => Finding::unchecked(PRIVILEGES, error.to_string()),
    });
    if duty == Duty::Worker {
        findings.push(match health.plans().await {
            Ok(plans) => judge_plans(&plans),
            Err(error) => Finding::unchecked(PLANS, error.to_string()),
        });
    } else {
        findings.push(Finding::unchecked(
            PLANS,
            "only a worker's role may ask for the plans of its statements",
        ));
    }
    match health.tables().await {
        Ok(tables) => findings.extend(judge_tables(&tables)),
        Err(error) => findings.push(Finding::unchecked(AUTOVACUUM, error.to_string())),
    }
    let facts = Facts {
        workers: health.workers().await,
        held_by_nobody: health.held_by_nobody().await,
        parked: health.parked().await,
        backlog: health.backlog().await,
        suspects: health.suspects().await,
    };
    (findings, Some(facts))
}

fn judge_server(server: &Server, config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        judge_version(server),
        judge_writable(server),
        judge_durability(server),
        judge_connections(server, config),
    ];
    if !server.autovacuum {
        findings.push(Finding::problem(
            AUTOVACUUM,
            "autovacuum is switched off: the tables grow with every task, and lists become slow",
            "ALTER SYSTEM SET autovacuum = on, and track_counts = on; then reload Postgres",
        ));
    }
    let oldest = Duration::try_from_secs_f64(server.oldest_transaction).unwrap_or_default();
    findings.push(if oldest > LONG {
        Finding::warning(
            TRANSACTIONS,
            format!(
                "a transaction in this database has been open for {}: nothing that ended since can be vacuumed",
                Span(oldest)
            ),
            "find it by xact_start in pg_stat_activity, and end it with pg_terminate_backend(pid)",
        )
    } else {
        Finding::well(
            TRANSACTIONS,
            format!("the oldest that this role sees is open for {}", Span(oldest)),
        )
    });
    findings
}

fn judge_version(server: &Server) -> Finding {
    if server.version_number < OLDEST {
        return Finding::problem(
            VERSION,
            format!(
                "Postgres {} is older than cliquet's migrations need",
                server.version
            ),
            format!("upgrade to Postgres {} or later", OLDEST / 10_000),
        );
    }
    Finding::well(VERSION, format!("Postgres {}", server.version))
}

fn judge_writable(server: &Server) -> Finding {
    if server.standby {
        return Finding::problem(
            WRITABLE,
            "this server is a standby: it takes no writes, and workers wait",
            "point DATABASE_URL at the primary, or promote this one: pg_ctl promote",
        );
    }
    if server.read_only {
        return Finding::problem(
            WRITABLE,
            "transactions are read-only here: workers wait",
            format!(
                "ALTER ROLE \"{}\" SET default_transaction_read_only = off (or ALTER DATABASE, or ALTER SYSTEM, where it was set)",
                server.role
            ),
        );
    }
    Finding::well(WRITABLE, "it is a primary and takes writes")
}

fn judge_durability(server: &Server) -> Finding {
    let off: Vec<_> = [
        ("fsync", server.fsync),
        ("full_page_writes", server.full_page_writes),
        ("synchronous_commit", server.synchronous_commit != "off"),
    ]
    .into_iter()
    .filter(|(_, on)| !on)
    .map(|(name, _)| name)
    .collect();
    if off.is_empty() {
        return Finding::well(
            DURABILITY,
            format!(
                "fsync and full_page_writes are on, synchronous_commit is {}",
                server.synchronous_commit
            ),
        );
    }
    Finding::problem(
        DURABILITY,
        format!(
            "{} off: a crash of the server takes back commits, and with them tasks whose messages are acknowledged already",
            match off.as_slice() {
                [one] => format!("{one} is"),
                several => format!("{} are", several.join(" and ")),
            }
        ),
        format!(
            "ALTER SYSTEM SET {} = on, and reload Postgres; or, where only a role or this database has it, ALTER ROLE \"{}\" or ALTER DATABASE … RESET it",
            off.join(" = on, SET "),
            server.role
        ),
    )
}

fn judge_connections(server: &Server, config: &Config) -> Finding {
    let free = server.sessions_allowed - server.sessions;
    let needs = OWN_SESSIONS + config.lanes as i64 + i64::from(config.handler_connections);
    let found = format!(
        "{} of {} sessions are in use; a worker with these settings may need {needs}",
        server.sessions, server.sessions_allowed
    );
    if free < needs {
        return Finding::warning(
            CONNECTIONS,
            found,
            "lower `handler_connections` in cliquet.toml, raise max_connections in Postgres, or put PgBouncer before other programs (session mode: a worker keeps an advisory lock)",
        );
    }
    Finding::well(CONNECTIONS, found)
}

fn judge_privileges(role: &str, duty: Duty, lacking: &[crate::ledger::Lacking]) -> Finding {
    let word = match duty {
        Duty::Worker => "worker",
        Duty::Publisher => "publisher",
        Duty::Reader => "reader",
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
            "make it a member of cliquet_{word} (deploy/postgres-roles.sql), or: {}",
            grants.join("; ")
        ),
    )
}

fn judge_migrations(
    migrated: &Result<(), LedgerError>,
    newer: &Result<Vec<String>, LedgerError>,
) -> Finding {
    match (migrated, newer) {
        (Err(error @ LedgerError::Schema(_)), _) => Finding::problem(
            MIGRATIONS,
            error.to_string(),
            "cliquet migrate, as the role that owns the tables",
        ),
        (Err(error), _) => Finding::unchecked(MIGRATIONS, error.to_string()),
        (Ok(()), Ok(newer)) if !newer.is_empty() => Finding::warning(
            MIGRATIONS,
            format!(
                "the database was migrated by a newer cliquet: it has {}",
                newer.join(", ")
            ),
            "nothing is wrong while a deployment is under way; otherwise bring this binary up to date",
        ),
        (Ok(()), _) => Finding::well(MIGRATIONS, "all are applied, and none was changed"),
    }
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
            "statements that every task needs read whole tables: {}. An index is missing or invalid",
            complaints.join("; ")
        ),
        "compare the indexes with migrations/0001_jobs_and_tasks.sql and make what is missing; one that is invalid: REINDEX SCHEMA cliquet",
    )
}

fn judge_tables(tables: &[Table]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in tables {
        if table.vacuum_off {
            findings.push(Finding::problem(
                AUTOVACUUM,
                format!("autovacuum is switched off for the table {}", table.name),
                format!(
                    "ALTER TABLE cliquet.{} RESET (autovacuum_enabled)",
                    table.name
                ),
            ));
        }
        if table.dead > FEW_DEAD.max(table.live / 2) {
            findings.push(Finding::warning(
                AUTOVACUUM,
                format!(
                    "the table {} has {} dead rows beside {} live ones: autovacuum does not keep up",
                    table.name, table.dead, table.live
                ),
                format!(
                    "VACUUM cliquet.{}; if they stay, something keeps them: an old transaction, a prepared one or a replication slot",
                    table.name
                ),
            ));
        }
    }
    if findings.is_empty() {
        let dead: i64 = tables.iter().map(|table| table.dead).sum();
        findings.push(Finding::well(
            AUTOVACUUM,
            format!("it is on for every table; {dead} dead rows wait for it"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn server() -> Server {
        Server {
            version: "15.18".into(),
            version_number: 150_018,
            role: "ada".into(),
            standby: false,
            read_only: false,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".into(),
            autovacuum: true,
            sessions_allowed: 97,
            sessions: 10,
            oldest_transaction: 1.5,
        }
    }

    fn states(server: &Server) -> Vec<(&'static str, State)> {
        judge_server(server, &Config::default())
            .into_iter()
            .filter(|finding| finding.state != State::Ok)
            .map(|finding| {
                assert!(finding.remedy.is_some(), "{finding:?}");
                (finding.check, finding.state)
            })
            .collect()
    }

    #[test]
    fn each_setting_of_the_server_that_is_wrong_is_found_alone() {
        assert_eq!(states(&server()), []);
        type Spoil = fn(&mut Server);
        let spoiled: [(&str, State, Spoil); 9] = [
            (VERSION, State::Problem, |s| s.version_number = 120_000),
            (WRITABLE, State::Problem, |s| s.standby = true),
            (WRITABLE, State::Problem, |s| s.read_only = true),
            (DURABILITY, State::Problem, |s| s.fsync = false),
            (DURABILITY, State::Problem, |s| s.full_page_writes = false),
            (DURABILITY, State::Problem, |s| {
                s.synchronous_commit = "off".into();
            }),
            (AUTOVACUUM, State::Problem, |s| s.autovacuum = false),
            (CONNECTIONS, State::Warning, |s| s.sessions = 60),
            (TRANSACTIONS, State::Warning, |s| {
                s.oldest_transaction = 4_000.0;
            }),
        ];
        for (check, state, spoil) in spoiled {
            let mut server = server();
            spoil(&mut server);
            assert_eq!(states(&server), [(check, state)]);
        }
    }

    #[test]
    fn tables_that_are_not_vacuumed_are_found() {
        let table = |dead, live, vacuum_off| Table {
            name: "jobs".into(),
            live,
            dead,
            vacuum_off,
        };
        let state = |table| judge_tables(&[table])[0].state;
        assert_eq!(state(table(90_000, 10, false)), State::Ok);
        assert_eq!(state(table(400_000, 1_000_000, false)), State::Ok);
        assert_eq!(state(table(600_000, 1_000_000, false)), State::Warning);
        assert_eq!(state(table(0, 0, true)), State::Problem);
    }
}
