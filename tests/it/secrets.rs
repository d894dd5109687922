//! Passwords stay where they were put: no log at any level, no error, no list of processes and no program of a handler has one.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cliquet::broker::Place;
use sqlx::AssertSqlSafe;
use url::Url;
use uuid::Uuid;

use crate::support::{
    binary::Binary,
    eventually,
    http::served_by_worker,
    rabbitmqctl,
    stage::{Stage, WorkerProcess},
};

/// The planted password begins so, whatever becomes of its last characters, which an address has to encode.
const PLANTED: &str = "Pl4ntedW0rd";
const PASSWORD: &str = "Pl4ntedW0rd/@:%9";
const ENCODED: &str = "Pl4ntedW0rd%2F%40%3A%259";

/// Fails where the password is, as text or as a list of its bytes, the way a debug format or BASE64 shows it.
#[track_caller]
fn clean(place: &str, text: &str) {
    let bytes = PLANTED.bytes().map(|byte| byte.to_string());
    let listed = bytes.collect::<Vec<_>>().join(", ");
    // "\0NAME\0PASSWORD" in BASE64, wherever the password begins.
    let encoded = ["UGw0bnRlZFcwc", "BsNG50ZWRXMHJ", "QbDRudGVkVzBy"];
    for form in [PLANTED, &listed].into_iter().chain(encoded) {
        if let Some(at) = text.find(form) {
            let from = text.floor_char_boundary(at.saturating_sub(300));
            let to = text.floor_char_boundary((at + 100).min(text.len()));
            panic!("{place} has the password: …{}…", &text[from..to]);
        }
    }
}

/// A user of both services with the planted password; gone at the end.
struct Planted {
    name: String,
    amqp_url: String,
    database_url: String,
}

impl Planted {
    async fn new(stage: &Stage) -> Self {
        let name = format!("planted_{}", Uuid::new_v4().simple());
        let role = format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE cliquet_worker, cliquet_reader"
        );
        sqlx::raw_sql(AssertSqlSafe(role))
            .execute(&stage.pool)
            .await
            .unwrap();
        rabbitmqctl(&["add_user", &name, PASSWORD]);
        rabbitmqctl(&["set_permissions", &name, ".*", ".*", ".*"]);
        let as_planted = |url: &str| {
            let mut url = Url::parse(url).unwrap();
            url.set_username(&name).unwrap();
            url.set_password(None).unwrap();
            url.to_string()
                .replace(&format!("{name}@"), &format!("{name}:{ENCODED}@"))
        };
        Self {
            amqp_url: as_planted(&stage.queues.amqp_url),
            database_url: as_planted(&stage.database),
            name,
        }
    }

    async fn remove(self, stage: &Stage) {
        rabbitmqctl(&["delete_user", &self.name]);
        let drop = format!("DROP ROLE {}", self.name);
        let _ = sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&stage.pool)
            .await;
    }
}

/// What `ps` sees of every process: its arguments.
fn all_arguments() -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    arguments
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ") + "\n")
        .collect()
}

const LOOK: &str = r#"
[handlers.look]
exec = ["sh", "-c", 'cat /proc/self/environ /proc/[0-9]*/cmdline >seen 2>/dev/null; cat seen >&2; test "$CLIQUET_TASK_ATTEMPT" = 2']
"#;

async fn ends(mut worker: WorkerProcess) {
    worker.signal("TERM");
    worker.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_tells_everything_tells_no_password() {
    let stage = Stage::new().await;
    let planted = Planted::new(&stage).await;
    for json in [false, true] {
        let mut binary = Binary::on(&stage, LOOK);
        binary.addresses(&planted.amqp_url, &planted.database_url);
        binary.set("RUST_LOG", "trace");
        let token = format!("{PLANTED}-of-http");
        binary.set("CLIQUET_HTTP_TOKEN", &token);
        let mut options = vec!["--http", "127.0.0.1:0"];
        options.extend(json.then_some("--json"));
        let worker = binary.work_with(&options);
        let client = served_by_worker(&binary).await;
        for path in ["/metrics", "/api/v1/jobs", "/api/v1/queues"] {
            let answer = client.showing(&token).get(path).await;
            assert_ne!(answer.status, 401, "{answer:?}");
            clean(path, &format!("{answer:?}"));
        }
        let entered = client.form("/login", &[("token", &token)]).await;
        clean("the login", &format!("{entered:?}"));
        client.form("/login", &[("token", PLANTED)]).await.with(401);
        let job = Uuid::now_v7();
        let message = format!(r#"{{"id": "{job}", "kind": "k", "tasks": ["look"]}}"#);
        stage
            .queues
            .publish(message.as_bytes(), Default::default())
            .await;
        stage.queues.publish(b"no job", Default::default()).await;
        stage.reaches(job, "SUCCESS").await;
        stage.queues.take(Place::Dead).await;
        clean("the list of processes", &all_arguments());
        ends(worker).await;

        let log = binary.written("log").await;
        // It did tell more than its story.
        assert!(log.contains("DEBUG") && log.contains("lapin"), "{log}");
        clean("the log", &log);
        clean("what a program sees", &binary.written("seen").await);
        let kept: String = sqlx::query_scalar(
            "SELECT (SELECT json_agg(f)::text FROM cliquet.failures f) || (SELECT json_agg(w)::text FROM cliquet.workers w)
                    || (SELECT json_agg(a.application_name)::text FROM pg_stat_activity a)",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        clean("the ledger", &kept);
    }
    planted.remove(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_failure_to_connect_tells_a_password() {
    let stage = Stage::new().await;
    let database = Url::parse(&stage.database).unwrap();
    let amqp = Url::parse(&stage.queues.amqp_url).unwrap();
    let at = |url: &Url| format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let (broker, server) = (at(&amqp), at(&database));
    let (good_amqp, good_database) = (amqp.to_string(), database.to_string());
    let planted = format!("ada:{ENCODED}");
    let mut cases = vec![
        // Wrong logins, nobody there, no TLS there, no such name.
        (format!("amqp://{planted}@{broker}"), good_database.clone()),
        (
            good_amqp.clone(),
            format!("postgres://{planted}@{server}/nowhere"),
        ),
        (
            format!("amqp://{planted}@127.0.0.1:1"),
            good_database.clone(),
        ),
        (
            good_amqp.clone(),
            format!("postgres://{planted}@127.0.0.1:1/shop"),
        ),
        (format!("amqps://{planted}@{broker}"), good_database.clone()),
        (
            good_amqp.clone(),
            format!("postgres://{planted}@{server}/shop?sslmode=verify-full"),
        ),
        (
            format!("amqp://{planted}@no-such-host.invalid"),
            good_database.clone(),
        ),
        (
            good_amqp.clone(),
            format!("postgres://{planted}@no-such-host.invalid/shop"),
        ),
    ];
    // Addresses that are wrong, most of them because the password was not encoded.
    for bad in [
        PASSWORD.to_owned(),
        format!("ada:{PASSWORD}@host"),
        format!("x://ada:{PASSWORD}@host:1/shop"),
        format!("amqp://ada:{PASSWORD}@host:5672"),
        format!("postgres://ada:{PASSWORD}@host:5432/shop"),
        format!("amqp://ada:{ENCODED}@host:5672/a/b"),
        format!("amqp://ada:{ENCODED}@host:77777"),
        format!("postgres://ada:{ENCODED}@host:77777/shop"),
        format!("postgres://ada:{ENCODED}@[::1/shop"),
        format!("postgres://ada@host/shop?pasword={ENCODED}"),
        format!("postgres://ada@host/shop?sslmode={ENCODED}"),
        format!("postgres://ada@host/shop?options={ENCODED}"),
        format!("amqp://ada@host?password={ENCODED}"),
        format!("amqp://ada@host?heartbeat={ENCODED}"),
        format!("amqps://ada:{ENCODED}@host?cacertfile=/nowhere"),
        format!("postgres://ada:{ENCODED}@host/shop?sslrootcert=/nowhere"),
    ] {
        cases.push((bad.clone(), good_database.clone()));
        cases.push((good_amqp.clone(), bad));
    }
    let stage = &stage;
    let told = cases.iter().map(|(amqp, database)| async move {
        let mut binary = Binary::on(stage, LOOK);
        let mut amqp = amqp.clone();
        if amqp.contains("@no-such-host") || amqp.contains("127.0.0.1:1") {
            amqp.push_str("?connection_timeout=500");
        }
        binary.addresses(&amqp, database);
        binary.set("RUST_LOG", "trace");
        let message = r#"{"kind": "k", "tasks": ["look"]}"#;
        for command in [&["doctor", "--json"][..], &["publish", "-"], &["jobs"]] {
            let ended = binary.feed(command, message.as_bytes()).await;
            clean(
                &format!("{command:?} with {amqp} {database}"),
                &(ended.out + &ended.err),
            );
        }
        let worker = binary.work();
        eventually("the worker says something", async || {
            let log = binary.written("log").await;
            (log.contains("ERROR") || log.contains("error") || log.contains("WARN")).then_some(())
        })
        .await;
        clean("the list of processes", &own_arguments(&worker));
        ends(worker).await;
        clean("the worker's log", &binary.written("log").await);
    });
    let mut told: Vec<_> = told.collect();
    while !told.is_empty() {
        let some = told.split_off(told.len().saturating_sub(4));
        futures::future::join_all(some).await;
    }
}

fn own_arguments(worker: &WorkerProcess) -> String {
    let arguments = Path::new("/proc")
        .join(worker.pid().to_string())
        .join("cmdline");
    String::from_utf8_lossy(&fs::read(arguments).unwrap_or_default()).into_owned()
}

/// The address of the management API has a password, too: a wrong one, one that does not answer, and one that cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn no_address_of_the_management_api_tells_its_password() {
    let stage = Stage::new().await;
    let real = Url::parse(&std::env::var("RABBITMQ_MANAGEMENT_URL").unwrap()).unwrap();
    let real = format!("{}:{}", real.host_str().unwrap(), real.port().unwrap());
    for (url, code) in [
        (format!("http://ada:{ENCODED}@{real}"), 1),
        (format!("http://ada:{ENCODED}@127.0.0.1:1"), 1),
        (format!("http://ada:{PASSWORD}@{real}"), 2),
        (format!("http://ada:12/{PLANTED}@{real}"), 2),
        (format!("http://ada:12?{PLANTED}@{real}"), 2),
        (format!("http://ada:12#{PLANTED}@{real}"), 2),
        (format!("http://ada:12?{PLANTED}"), 2),
        (format!("https://ada:{ENCODED}@{real}"), 2),
        (format!("ada:{ENCODED}@{real}"), 2),
        (PASSWORD.to_owned(), 2),
    ] {
        let mut binary = Binary::on(&stage, "");
        binary.set("RABBITMQ_MANAGEMENT_URL", &url);
        binary.set("RUST_LOG", "trace");
        let ended = binary.run(&["doctor", "--json"]).await;
        assert_eq!(ended.code, Some(code), "{url}: {ended:?}");
        let said = ended.out + &ended.err;
        assert!(
            code != 2 || said.contains("RABBITMQ_MANAGEMENT_URL: "),
            "{said}"
        );
        clean(&format!("doctor with {url}"), &said);
    }
}

/// A program that runs as the worker's user, without root's rights over other processes.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_cannot_read_the_environment_of_its_worker() {
    let spy = r#"
[handlers.spy]
exec = ["sh", "-c", "cat /proc/$PPID/comm >parent; cat /proc/$PPID/environ >environ 2>refused; true"]
"#;
    let stage = Stage::new().await;
    let binary = Binary::on(&stage, spy);
    let work = binary.command(&["work", "--config", "cliquet.toml"]);
    // Root may read everything, and so may its programs, unless it has no capabilities, as in a container that was given none.
    let mut command = match rustix::process::geteuid().is_root() {
        true => {
            let mut bare = Command::new("setpriv");
            bare.args(["--bounding-set=-all", "--inh-caps=-all"])
                .arg(work.get_program());
            bare
        }
        false => Command::new(work.get_program()),
    };
    let environment = work.get_envs();
    command
        .args(work.get_args())
        .current_dir(work.get_current_dir().unwrap())
        .env_clear()
        .envs(environment.filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut worker = WorkerProcess::of(command.spawn().unwrap());
    let job = binary.publish(r#"{"kind": "k", "tasks": ["spy"]}"#).await;
    stage.reaches(job, "SUCCESS").await;
    assert_eq!(binary.written("parent").await, "cliquet\n");
    let refused = binary.written("refused").await;
    assert!(refused.contains("Permission denied"), "{refused}");
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}

/// A mistake in the settings is shown, and the line that it is in may hold an address.
#[tokio::test]
async fn a_mistake_in_the_settings_tells_no_password() {
    let address = format!("amqp://ada:{ENCODED}@host");
    for settings in [
        format!("amqp_url = \"{address}\" queue = 1"),
        format!("amqp_url = \"{address}"),
        format!("amqp_url = {address}"),
        format!("amqp_url = [\"{address}\"]"),
        format!("amqp_url = \"{address}\"\namqp_url = \"{address}\""),
        format!("amqp_urll = \"{address}\""),
        format!("database_url = 'postgres://ada:{ENCODED}@host/shop' x"),
        format!("queue = \"{address}\"\nconcurrency = \"{address}\""),
    ] {
        let mut binary = Binary::bare();
        binary.set("RUST_LOG", "trace");
        binary.file("cliquet.toml", &format!("{settings}\n{LOOK}"));
        for command in [&["work", "--config", "cliquet.toml"][..], &["doctor"]] {
            let ended = binary.run(command).await;
            clean(
                &format!("{command:?} with {settings}"),
                &format!("{}{}", ended.out, ended.err),
            );
            // It is this mistake that is told, with its line.
            let said = ended.failed(2);
            assert!(said.contains("cliquet.toml:"), "{settings}: {said}");
        }
    }
}

#[test]
fn no_debug_format_shows_a_password() {
    let config = cliquet::config::Config {
        amqp_url: format!("amqp://ada:{ENCODED}@host"),
        database_url: format!("postgres://ada:{ENCODED}@host/shop"),
        ..Default::default()
    };
    clean("Config", &format!("{config:?} {config:#?}"));
    let address = cliquet::broker::Address::parse(&config.amqp_url).unwrap();
    clean("Address", &format!("{address:?} {address}"));
    let address = cliquet::ledger::LedgerAddress::parse(&config.database_url).unwrap();
    clean("LedgerAddress", &format!("{address:?} {address}"));
    let worker = cliquet::Worker::builder().config(config);
    let _ = worker;
}
