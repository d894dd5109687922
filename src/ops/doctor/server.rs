//! The server that the ledger is in: its version, its settings, its sessions, and whether its tables are vacuumed.

use std::time::Duration;

use super::Finding;
use crate::{
    config::Config,
    ledger::{Limit, OPEN_TRANSACTIONS, RELOAD, Server, Setting, Table},
    ops::words::Span,
};

pub(super) const VERSION: &str = "postgres.version";
pub(super) const WRITABLE: &str = "postgres.writable";
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

pub(super) fn judge_server(server: &Server, config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        judge_version(server),
        judge_writable(server),
        judge_durability(server),
        judge_connections(server, config),
    ];
    let oldest = Duration::try_from_secs_f64(server.oldest_transaction).unwrap_or_default();
    findings.push(if oldest > LONG {
        Finding::warning(
            TRANSACTIONS,
            format!(
                "a transaction in this database has been open for {}: nothing that ended since can be vacuumed",
                Span(oldest)
            ),
            format!(
                "`{OPEN_TRANSACTIONS}` tells whose it is, pg_terminate_backend(pid) ends it"
            ),
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
            "point DATABASE_URL at the primary, or promote this one: `pg_ctl promote`",
        );
    }
    if server.read_only {
        let default = server.setting("default_transaction_read_only");
        return Finding::problem(
            WRITABLE,
            "transactions are read-only here: workers wait",
            match default {
                // This very session is read-only, too.
                Some(setting) => mend(server, setting, "off").replacen(
                    '`',
                    "`SET default_transaction_read_only = off; ",
                    1,
                ),
                None => "find out why in `SHOW transaction_read_only`".into(),
            },
        );
    }
    Finding::well(WRITABLE, "it is a primary and takes writes")
}

fn judge_durability(server: &Server) -> Finding {
    let off: Vec<_> = ["fsync", "full_page_writes", "synchronous_commit"]
        .into_iter()
        .filter_map(|name| server.setting(name))
        .filter(|setting| setting.value == "off")
        .collect();
    if off.is_empty() {
        let commit = server.setting("synchronous_commit");
        return Finding::well(
            DURABILITY,
            format!(
                "fsync and full_page_writes are on, synchronous_commit is {}",
                commit.map_or("on", |setting| &setting.value)
            ),
        );
    }
    Finding::problem(
        DURABILITY,
        format!(
            "{}: a crash of the server takes back commits, and with them tasks whose messages are acknowledged already",
            are_off(&off)
        ),
        mend_all(server, &off),
    )
}

/// `fsync is off`, `fsync and full_page_writes are off`.
fn are_off(off: &[&Setting]) -> String {
    let names: Vec<_> = off.iter().map(|setting| setting.name.as_str()).collect();
    let are = if off.len() == 1 { "is" } else { "are" };
    format!("{} {are} off", names.join(" and "))
}

fn mend_all(server: &Server, off: &[&Setting]) -> String {
    let mended: Vec<_> = off
        .iter()
        .map(|setting| mend(server, setting, "on"))
        .collect();
    mended.join("; and ")
}

/// What puts a setting right, there where it was set. It may be set in another place as well, which shows at the next look.
fn mend(server: &Server, setting: &Setting, value: &str) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let (name, login, database) = (
        &setting.name,
        quoted(&server.login),
        quoted(&server.database),
    );
    match setting.source.as_str() {
        "database" => format!("`ALTER DATABASE {database} RESET {name}`"),
        "user" => format!("`ALTER ROLE {login} RESET {name}`"),
        "database user" => format!("`ALTER ROLE {login} IN DATABASE {database} RESET {name}`"),
        "global" => format!("`ALTER ROLE ALL RESET {name}`"),
        "client" => format!("take {name} out of the options of DATABASE_URL, or out of PGOPTIONS"),
        "command line" => format!(
            "take {name} out of the options that Postgres is started with, and start it again"
        ),
        _ => format!("`ALTER SYSTEM SET {name} = {value}; {RELOAD}`"),
    }
}

fn judge_connections(server: &Server, config: &Config) -> Finding {
    let needs = OWN_SESSIONS + config.lanes as i64 + i64::from(config.handler_connections);
    let free = |limit: &&Limit| limit.allowed - limit.used;
    let Some(narrowest) = server.limits.iter().min_by_key(free) else {
        return Finding::unchecked(CONNECTIONS, "Postgres does not tell its limits");
    };
    let found = format!(
        "{} of {} sessions of {} are in use; a worker with these settings may need {needs}",
        narrowest.used, narrowest.allowed, narrowest.whose
    );
    if free(&narrowest) < needs {
        let raise = match narrowest.whose.as_str() {
            "the database" => "the database's CONNECTION LIMIT",
            "the role" => "the role's CONNECTION LIMIT",
            _ => "max_connections in Postgres",
        };
        return Finding::warning(
            CONNECTIONS,
            found,
            format!(
                "lower `handler_connections` in cliquet.toml, raise {raise}, or put PgBouncer before other programs (session mode: a worker keeps an advisory lock)"
            ),
        );
    }
    Finding::well(CONNECTIONS, found)
}

pub(super) fn judge_vacuum(server: &Server, tables: &[Table]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let off: Vec<_> = ["autovacuum", "track_counts"]
        .into_iter()
        .filter_map(|name| server.setting(name))
        .filter(|setting| setting.value == "off")
        .collect();
    if !off.is_empty() {
        findings.push(Finding::problem(
            AUTOVACUUM,
            format!(
                "{}: no table is vacuumed by itself, they grow with every task, and lists become slow",
                are_off(&off)
            ),
            mend_all(server, &off),
        ));
    }
    for table in tables {
        if table.vacuum_off {
            findings.push(Finding::problem(
                AUTOVACUUM,
                format!("autovacuum is switched off for the table {}", table.name),
                format!(
                    "`ALTER TABLE cliquet.{} RESET (autovacuum_enabled)`",
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
                    "`VACUUM cliquet.{}`; if they stay, something keeps them: an old transaction, a prepared one or a replication slot",
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
        let setting = |(name, value): (&str, &str)| Setting {
            name: name.into(),
            value: value.into(),
            source: "configuration file".into(),
        };
        let settings = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "local"),
            ("autovacuum", "on"),
            ("track_counts", "on"),
            ("default_transaction_read_only", "on"),
        ];
        Server {
            version: "15.18".into(),
            version_number: 150_018,
            role: "ada".into(),
            login: "ada".into(),
            database: "shop".into(),
            standby: false,
            read_only: false,
            settings: settings.map(setting).to_vec().into(),
            limits: vec![limit("the server", 97, 10)].into(),
            oldest_transaction: 1.5,
        }
    }

    fn limit(whose: &str, allowed: i64, used: i64) -> Limit {
        Limit {
            whose: whose.into(),
            allowed,
            used,
        }
    }

    fn switch_off(server: &mut Server, name: &str) {
        for setting in server.settings.iter_mut() {
            if setting.name == name {
                setting.value = "off".into();
            }
        }
    }

    fn states(server: &Server) -> Vec<(&'static str, State)> {
        let mut findings = judge_server(server, &Config::default());
        findings.extend(judge_vacuum(server, &[]));
        findings
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
        let spoiled: [(&str, State, Spoil); 11] = [
            (VERSION, State::Problem, |s| s.version_number = 120_000),
            (WRITABLE, State::Problem, |s| s.standby = true),
            (WRITABLE, State::Problem, |s| s.read_only = true),
            (DURABILITY, State::Problem, |s| switch_off(s, "fsync")),
            (DURABILITY, State::Problem, |s| {
                switch_off(s, "full_page_writes")
            }),
            (DURABILITY, State::Problem, |s| {
                switch_off(s, "synchronous_commit")
            }),
            (AUTOVACUUM, State::Problem, |s| switch_off(s, "autovacuum")),
            (AUTOVACUUM, State::Problem, |s| {
                switch_off(s, "track_counts")
            }),
            (CONNECTIONS, State::Warning, |s| {
                s.limits.push(limit("the role", 40, 1));
            }),
            (CONNECTIONS, State::Warning, |s| s.limits[0].used = 60),
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
        let state = |table| judge_vacuum(&server(), &[table])[0].state;
        assert_eq!(state(table(90_000, 10, false)), State::Ok);
        assert_eq!(state(table(400_000, 1_000_000, false)), State::Ok);
        assert_eq!(state(table(600_000, 1_000_000, false)), State::Warning);
        assert_eq!(state(table(0, 0, true)), State::Problem);
    }

    #[test]
    fn a_setting_is_mended_there_where_it_was_set() {
        let mended = |source: &str| {
            let mut server = server();
            server.database = "my \"shop".into();
            switch_off(&mut server, "synchronous_commit");
            for setting in server.settings.iter_mut() {
                setting.source = source.into();
            }
            judge_durability(&server).remedy.unwrap()
        };
        assert_eq!(
            mended("database user"),
            "`ALTER ROLE \"ada\" IN DATABASE \"my \"\"shop\" RESET synchronous_commit`"
        );
        assert!(mended("client").contains("DATABASE_URL"));
        assert!(mended("command line").contains("started with"));
        assert_eq!(
            mended("configuration file"),
            "`ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf()`"
        );
    }
}
