//! What a run stands on: services of its own, a database that remembers every transition, and a folder for what the
//! workers say and do.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cliquet::ledger::{self, LedgerAddress};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{rabbit::Management, services::Services};

pub const QUEUE: &str = "jobs";
/// Some publishers reach the queue through an exchange, so that there is a binding to delete.
pub const EXCHANGE: &str = "upstream";

pub struct Ground {
    services: Services,
    pub amqp_url: String,
    pub database_url: String,
    pub management: Management,
    /// Journals, logs and whatever the handlers look for.
    pub folder: PathBuf,
    pub pool: PgPool,
}

/// What handlers write, and what the audit reads: the history of every job and every task, written by triggers in the
/// transaction that makes it.
const TABLES: &str = r"
CREATE TABLE effects (job_id uuid NOT NULL, position int NOT NULL, amount bigint NOT NULL, worker text NOT NULL);
CREATE TABLE notes (job_id uuid NOT NULL, position int NOT NULL, attempt int NOT NULL, worker text NOT NULL);

CREATE TABLE job_history (number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id uuid NOT NULL, former text, status text NOT NULL, epoch bigint NOT NULL, generation bigint NOT NULL, holder bigint);
CREATE FUNCTION remember_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO job_history (job_id, former, status, epoch, generation, holder)
    VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status, NEW.epoch, NEW.generation, NEW.holder);
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE OF status, epoch, generation, holder ON cliquet.jobs
    FOR EACH ROW EXECUTE FUNCTION remember_job();

CREATE TABLE task_history (number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id uuid NOT NULL, position int NOT NULL, former text, status text NOT NULL, epoch bigint NOT NULL, attempt int NOT NULL);
CREATE FUNCTION remember_task() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO task_history (job_id, position, former, status, epoch, attempt)
    VALUES (NEW.job_id, NEW.position, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status, NEW.epoch, NEW.attempt);
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE ON cliquet.tasks
    FOR EACH ROW EXECUTE FUNCTION remember_task();
";

impl Ground {
    /// Starts services; takes some ten seconds.
    pub async fn make() -> Arc<Self> {
        let services = tokio::task::spawn_blocking(Services::start).await.unwrap();
        let told = services.run(&["env"]);
        let management = told
            .lines()
            .find_map(|line| {
                line.strip_prefix("export RABBITMQ_MANAGEMENT_URL=http://guest:guest@")
            })
            .expect("deploy/dev env does not tell where the management API is");
        let address = LedgerAddress::parse(&services.database_url).unwrap();
        ledger::migrate(&address).await.unwrap();
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(8)
            .connect(&services.database_url)
            .await
            .unwrap();
        sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("chaos-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        Arc::new(Self {
            amqp_url: services.amqp_url.clone(),
            database_url: services.database_url.clone(),
            management: Management(management.trim_matches('\'').to_owned()),
            services,
            folder,
            pool,
        })
    }

    /// `deploy/dev restart SERVICE` and the like, beside everything else.
    pub async fn service(self: &Arc<Self>, command: &'static str, service: &'static str) {
        let ground = self.clone();
        tokio::task::spawn_blocking(move || ground.services.run(&[command, service]))
            .await
            .unwrap();
    }

    /// Forgets what the workers said; called when all is well.
    pub fn tidy(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The port in an address of a service.
pub fn port(url: &str) -> u16 {
    url::Url::parse(url).unwrap().port().unwrap()
}

/// The same address behind another port.
pub fn behind(url: &str, port: u16) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_port(Some(port)).unwrap();
    url.to_string()
}

/// Microseconds since 1970: what Postgres's clock on this machine says, too.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_micros() as i64
}

/// From one such moment to another.
pub fn span(from_us: i64, to_us: i64) -> Duration {
    Duration::from_micros((to_us - from_us).max(0) as u64)
}
