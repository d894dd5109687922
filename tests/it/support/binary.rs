//! The `cliquet` binary as people run it: in a folder of its own, with its settings and nothing of the tester's environment.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use cliquet::broker::Place;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};
use uuid::Uuid;

use super::{Queues, eventually, stage::Stage, stage::WorkerProcess};

/// A folder with a cliquet.toml, and the environment in which the binary runs there. Gone at the end.
pub struct Binary {
    folder: PathBuf,
    environment: Vec<(String, String)>,
    /// What is different for `cliquet work`: the addresses, with a worker's rights.
    worker: Vec<(&'static str, String)>,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Its standard output, after it did what it was asked.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Its standard error, after it ended with this exit status. It did not panic, whatever the status.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self.err
    }
}

impl Binary {
    /// With the stage's database and queues; `handlers` follows in the settings.
    pub fn on(stage: &Stage, handlers: &str) -> Self {
        let mut binary = Self::with(&stage.queues, handlers);
        binary.set("DATABASE_URL", &stage.database);
        binary.worker = vec![
            ("DATABASE_URL", stage.worker_database.clone()),
            ("AMQP_URL", stage.worker_amqp_url.clone()),
        ];
        binary
    }

    /// With these queues and no database.
    pub fn with(queues: &Queues, handlers: &str) -> Self {
        let mut binary = Self::bare();
        binary.set("AMQP_URL", &queues.amqp_url);
        let settings = format!(
            r#"
queue = "{}"
concurrency = 4
drain_timeout = "5s"
heartbeat = "300ms"
patience = "60s"
reconcile_every = "500ms"
ladder = ["200ms", "1s"]
[retry]
max_attempts = 3
initial = "200ms"
multiplier = 1
jitter = 0
max = "1s"
{handlers}
"#,
            queues.name(Place::Work)
        );
        binary.file("cliquet.toml", &settings);
        binary
    }

    /// An empty folder, and no settings at all.
    pub fn bare() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(Uuid::new_v4().to_string());
        fs::create_dir_all(&folder).unwrap();
        let kept = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
        let environment = ["PATH", "HOME", "LLVM_PROFILE_FILE"]
            .into_iter()
            .filter_map(kept)
            .collect();
        Self {
            folder,
            environment,
            worker: Vec::new(),
        }
    }

    /// Sets a variable of the binary's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Has every command use these addresses, the worker too.
    pub fn addresses(&mut self, amqp_url: &str, database_url: &str) {
        self.set("AMQP_URL", amqp_url);
        self.set("DATABASE_URL", database_url);
        self.worker.clear();
    }

    /// Writes a file into the folder, in which the binary runs. Answers with its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Waits for a file that somebody writes into the folder: its text, once that is not empty.
    pub async fn written(&self, name: &str) -> String {
        eventually(&format!("{name} is written"), async || {
            let text = fs::read_to_string(self.folder.join(name)).ok()?;
            (!text.trim().is_empty()).then_some(text)
        })
        .await
    }

    /// What its worker has logged until now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// The command, with nothing on standard input.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cliquet"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        self.feed(arguments, b"").await
    }

    /// Runs a command that has much to do to its end.
    pub async fn run_long(&self, arguments: &[&str]) -> Ended {
        self.ends_within(120, arguments, b"").await
    }

    /// Runs a command to its end, with these bytes on standard input.
    pub async fn feed(&self, arguments: &[&str], input: &[u8]) -> Ended {
        self.ends_within(60, arguments, input).await
    }

    async fn ends_within(&self, seconds: u64, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = tokio::process::Command::from(self.command(arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let fed = async move {
            // A command that does not read its input is free not to.
            let _ = stdin.write_all(input).await;
        };
        let ended = async { tokio::join!(child.wait_with_output(), fed).0.unwrap() };
        let ended = timeout(Duration::from_secs(seconds), ended)
            .await
            .unwrap_or_else(|_| panic!("cliquet {arguments:?} does not end within {seconds} s"));
        Ended {
            code: ended.status.code(),
            out: String::from_utf8(ended.stdout).unwrap(),
            err: String::from_utf8(ended.stderr).unwrap(),
        }
    }

    /// Starts a command whose lines are read while it runs; its standard error is read at the end.
    pub fn follow(&self, arguments: &[&str]) -> Followed {
        let log = format!("stderr-{}", Uuid::new_v4());
        let mut child = tokio::process::Command::from(self.command(arguments))
            .stdout(Stdio::piped())
            .stderr(File::create(self.folder.join(&log)).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Followed {
            child,
            lines,
            log: self.folder.join(log),
        }
    }

    /// Starts `cliquet work`. What it logs is in the file `log`.
    pub fn work(&self) -> WorkerProcess {
        self.work_with(&[])
    }

    /// Starts `cliquet work` with further options.
    pub fn work_with(&self, options: &[&str]) -> WorkerProcess {
        let mut command = self.command(&["work", "--config", "cliquet.toml"]);
        command
            .args(options)
            .envs(self.worker.iter().cloned())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join("log")).unwrap());
        WorkerProcess::of(command.spawn().unwrap())
    }

    /// Publishes one message with `cliquet publish`; answers with the id that it prints.
    pub async fn publish(&self, message: &str) -> Uuid {
        let printed = self
            .feed(&["publish", "-"], message.as_bytes())
            .await
            .done();
        printed.trim().parse().unwrap()
    }

    /// What `cliquet show --json` prints.
    pub async fn show(&self, job: Uuid) -> serde_json::Value {
        let shown = self.run(&["show", "--json", &job.to_string()]).await.done();
        serde_json::from_str(&shown).unwrap()
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A command that is read line by line; killed at the end if it still runs.
pub struct Followed {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Followed {
    /// The next line of its standard output; none once it has ended.
    pub async fn line(&mut self) -> Option<String> {
        let line = timeout(Duration::from_secs(60), self.lines.next_line()).await;
        line.expect("no line within a minute").unwrap()
    }

    /// Sends a signal by name: TERM, INT.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it has ended").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success(), "SIG{name} was not sent");
    }

    /// What it has said on standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has said something on standard error.
    pub async fn complains(&self) -> String {
        eventually("it says something on standard error", async || {
            let said = fs::read_to_string(&self.log).unwrap();
            said.ends_with('\n').then_some(said)
        })
        .await
    }

    /// All further lines, and how it ended.
    pub async fn ended(mut self) -> Ended {
        let mut out = String::new();
        while let Some(line) = self.line().await {
            out.push_str(&line);
            out.push('\n');
        }
        let code = self.child.wait().await.unwrap().code();
        let err = fs::read_to_string(&self.log).unwrap();
        Ended { code, out, err }
    }
}
