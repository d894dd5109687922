//! How connections to Postgres are made, and what each failure of one asks for.

use std::{str::FromStr, time::Duration};

use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use url::Url;

use crate::tls;

/// Where the ledger is: a checked `DATABASE_URL`. It prints without its password.
#[derive(Clone)]
pub struct LedgerAddress {
    options: PgConnectOptions,
    shown: String,
}

impl std::fmt::Display for LedgerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Debug for LedgerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl LedgerAddress {
    /// Reads a URL such as `postgres://user:password@host:5432/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it; it never holds the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected postgres://USER:PASSWORD@HOST:PORT/DATABASE (percent-encode what is special in the password)";
        let url = Url::parse(text)
            .map_err(|error| format!("DATABASE_URL is no URL: {error}; {expected}"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(format!(
                "DATABASE_URL begins with {:?}; {expected}",
                url.scheme()
            ));
        }
        // What follows would be taken for another host, and shown as the name of a database.
        let after_host = [
            url.path(),
            url.query().unwrap_or(""),
            url.fragment().unwrap_or(""),
        ];
        if after_host.iter().any(|part| part.contains('@')) {
            return Err(format!(
                "DATABASE_URL has an `@` after its host, so its password is probably cut in two by a `/`, `?` or `#`; {expected}"
            ));
        }
        let options = PgConnectOptions::from_str(text)
            // sqlx's words show the value that is wrong, which may be a password under another key.
            .map_err(|_| {
                format!(
                    "DATABASE_URL cannot be read: a value in it is none that its key may have (`sslmode` is disable, prefer, require, verify-ca or verify-full); {expected}"
                )
            })?
            .disable_statement_logging();
        // sqlx reads it at each connection, and does not say which file it was that could not be read.
        for (key, file) in url.query_pairs() {
            // It may be the certificate itself.
            if matches!(&*key, "sslrootcert" | "ssl-root-cert" | "ssl-ca")
                && !file.trim_start().starts_with("-----BEGIN")
                && let Err(error) = std::fs::read(&*file)
            {
                return Err(format!(
                    "the file `{file}` that DATABASE_URL names as `{key}` cannot be read: {error}"
                ));
            }
        }
        let shown = format!(
            "{}@{}:{}/{}",
            options.get_username(),
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or(options.get_username()),
        );
        Ok(Self { options, shown })
    }

    /// Who we are there.
    pub(crate) fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Options for a connection of the given purpose, which `pg_stat_activity` shows.
    ///
    /// Postgres notices within half a minute that the other end has vanished without a word. By default it takes two hours,
    /// and for so long the session would keep its locks: a worker's own lock among them.
    pub(crate) fn options(&self, purpose: &str) -> PgConnectOptions {
        self.options
            .clone()
            .application_name(&format!("cliquet {purpose}"))
            .options([
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
            ])
    }

    /// Options for a connection that only writes the ledger's own statements.
    ///
    /// Their plans are pinned: fresh tables have no statistics, and the planner then reads whole tables. Waits are bounded
    /// here, by Postgres, and never by dropping a call that owns a transaction.
    pub(crate) fn writer_options(&self, purpose: &str) -> PgConnectOptions {
        self.options(purpose).options([
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
            ("statement_timeout", "15s"),
            ("lock_timeout", "3s"),
        ])
    }

    /// The desk's: some of its questions read a whole table.
    pub(crate) fn desk_pool(&self, purpose: &str, most: u32) -> PgPool {
        let bounded = [("statement_timeout", "2min"), ("lock_timeout", "10s")];
        Self::pool_of(self.options(purpose).options(bounded), most, false)
    }

    /// A pool for the rare verbs of a command that ends soon.
    pub(crate) fn pool(&self, purpose: &str, most: u32) -> PgPool {
        Self::pool_of(self.options(purpose), most, false)
    }

    /// A pool for the rare verbs of a process that stays: a restart of Postgres between two of them goes unnoticed.
    pub(crate) fn lasting_pool(&self, purpose: &str, most: u32) -> PgPool {
        Self::pool_of(self.options(purpose), most, true)
    }

    /// A pool for people's questions, which are never to hurt workers: its sessions change nothing, none of them takes longer than
    /// five seconds or a second processor, and no plan reads a table whole that statistics have not caught up with. A connection
    /// that has rested is tried before it is used: Postgres may have been restarted meanwhile.
    pub fn reader_pool(&self, purpose: &str, most: u32) -> PgPool {
        let bounded = [
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "5s"),
            ("lock_timeout", "2s"),
            ("plan_cache_mode", "force_custom_plan"),
            ("max_parallel_workers_per_gather", "0"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ];
        Self::pool_of(self.options(purpose).options(bounded), most, true)
    }

    fn pool_of(options: PgConnectOptions, most: u32, tried: bool) -> PgPool {
        PgPoolOptions::new()
            .max_connections(most)
            .min_connections(0)
            .test_before_acquire(tried)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options)
    }
}

/// What an error of Postgres asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// The connection is gone or unusable: open another and write again.
    Reconnect,
    /// A deadlock or a serialisation failure: write the same again.
    Repeat,
    /// Somebody else keeps a row locked: write the same again, and hold up nobody meanwhile.
    Locked,
    /// Postgres refuses this very row and would always.
    Refused,
}

impl Recovery {
    /// Only what Postgres says of the *data* is a refusal. Everything else (a full disk, a read-only standby, a missing
    /// right) is a state of the server, and passes or is mended while the write waits.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let code = match error {
            sqlx::Error::Database(error) => error.code().unwrap_or_default().into_owned(),
            // What sqlx cannot even send would never be accepted: a value it fails to encode, or a message too long.
            // Neither would an answer that cannot be read be read the next time.
            sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                return Self::Refused;
            }
            _ => return Self::Reconnect,
        };
        match code.as_str() {
            "40P01" | "40001" => Self::Repeat,
            "55P03" => Self::Locked,
            // 22 data exception, 23 integrity constraint, 54 a program limit such as the size of a row.
            code if code.starts_with("22") || code.starts_with("23") || code.starts_with("54") => {
                Self::Refused
            }
            _ => Self::Reconnect,
        }
    }
}

/// Whether the connection is of no more use, or the server takes none: what Postgres says of one statement is neither.
pub(crate) fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            // 08 the connection, 53 no room for it, 57P the server shuts down or starts, or somebody ended the session.
            ["08", "53", "57P"]
                .iter()
                .any(|class| code.starts_with(class))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// The error as people read it, without the noise of the layers between.
pub(crate) fn sentence(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => match database.code() {
            Some(code) if code == "42501" => format!(
                "{} (SQLSTATE {code}); `cliquet doctor` names what is to be granted",
                database.message()
            ),
            Some(code) => format!("{} (SQLSTATE {code})", database.message()),
            None => database.message().to_owned(),
        },
        sqlx::Error::PoolTimedOut => {
            "no connection to Postgres could be had within 10 s".to_owned()
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
            distrust(error).unwrap_or_else(|| error.to_string())
        }
        other => other.to_string(),
    }
}

/// Why a connection failed, when that was in the TLS handshake.
pub(crate) fn distrust(error: &sqlx::Error) -> Option<String> {
    let cause: &(dyn std::error::Error + 'static) = match error {
        sqlx::Error::Io(error) => error,
        sqlx::Error::Tls(error) if error.to_string().contains("does not support TLS") => {
            return Some(
                "it does not speak TLS, and `sslmode` in DATABASE_URL asks for it; set ssl = on there"
                    .to_owned(),
            );
        }
        sqlx::Error::Tls(error) => &**error,
        _ => return None,
    };
    tls::refusal(
        cause,
        "name the certificate of that authority in DATABASE_URL (`sslrootcert=/path/to/ca.pem`), or in SSL_CERT_FILE",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_checked_and_hides_its_password() {
        let address = LedgerAddress::parse("postgres://ada:s3cret@db.example:5433/shop").unwrap();
        assert_eq!(address.to_string(), "ada@db.example:5433/shop");
        let wrong = LedgerAddress::parse("mysql://ada:s3cret@db.example/shop").unwrap_err();
        assert!(
            wrong.contains("\"mysql\"") && !wrong.contains("s3cret"),
            "{wrong}"
        );
        let wrong = LedgerAddress::parse("ada:s3cret").unwrap_err();
        assert!(!wrong.contains("s3cret"), "{wrong}");
    }

    #[test]
    fn a_password_that_is_cut_in_two_is_refused_and_not_taken_for_a_database() {
        for cut in ["/", "?", "#"] {
            let text = format!("postgres://ada:5432{cut}s3cret@db.example/shop");
            let wrong = LedgerAddress::parse(&text).unwrap_err();
            assert!(
                wrong.contains("percent-encode") && !wrong.contains("s3cret"),
                "{wrong}"
            );
        }
    }
}
