//! Runs a program for a task: any language, no library, no shell.
//!
//! # What the program is given
//!
//! One JSON document on standard input, then its end:
//!
//! ```json
//! { "job":     {"id": "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11", "kind": "shop.publish", "payload": {"product_id": 42}},
//!   "task":    {"position": 2, "handler": "upload_image", "label": "Upload image 1/5", "input": {"index": 1},
//!               "attempt": 1, "idempotency_key": "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11:2"},
//!   "results": [{"position": 1, "handler": "validate_product", "result": null}] }
//! ```
//!
//! Nothing obliges it to read that. For programs that read no JSON the environment holds `CLIQUET_JOB_ID`,
//! `CLIQUET_JOB_KIND`, `CLIQUET_TASK_POSITION`, `CLIQUET_TASK_ATTEMPT` and `CLIQUET_IDEMPOTENCY_KEY`; where [traces] are collected,
//! also `TRACEPARENT` and, if there is one, `TRACESTATE`, to go on from the task's span. Beside these it holds the
//! variables of [`PASSED_ENVIRONMENT`] and those named by [`Exec::env`], and nothing else: none of the worker's secrets. A program
//! runs as the worker's user, though, and may read what this user may: `cliquet work` keeps its own environment unreadable for
//! it, where the program has none of root's capabilities; a process that uses this library, and a file such as cliquet.toml,
//! are for you to protect.
//!
//! # What the program answers
//!
//! | it | means |
//! |---|---|
//! | exits with 0 | success; what it printed on standard output is the result, as JSON; nothing printed is `null` |
//! | exits with 0, printed something else | failure, tried again |
//! | exits with 65 (`EX_DATAERR`) | failure, not tried again: the job is parked |
//! | exits with 75 (`EX_TEMPFAIL`) or any other code | failure, tried again |
//! | is killed by a signal | failure, tried again |
//! | prints more than [`Exec::output_limit`] | it is killed; failure, not tried again, as it would print as much again |
//! | cannot be started | failure, tried again: a rolling deployment may be about to bring the program |
//!
//! The error of a failed attempt is the end of what it wrote to standard error, at most [`ERROR_BYTES`].
//!
//! ```python
//! import json, sys
//!
//! task = json.load(sys.stdin)
//! print("uploading", task["task"]["label"], file=sys.stderr)
//! json.dump({"url": "https://images.example/1"}, sys.stdout)
//! ```
//!
//! # How it ends
//!
//! The program leads a process group of its own. When the attempt exceeds its timeout or the job is cancelled, the group is
//! sent SIGTERM, and SIGKILL after [`GRACE`]. When the worker itself ends, SIGKILL follows at once. When the program ends by
//! itself, children that it left behind may still write for [`GRACE`] as long as they hold its output open; then they are
//! killed too. A child that left the group (`setsid`) is not killed, nor is anything when the worker was killed with SIGKILL:
//! that is for the service manager or the container to do.

mod group;

use std::{
    borrow::Cow,
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitStatus,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, Either, select, try_join3};
use rustix::process::Signal;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    process::Command,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug};

use self::group::{Group, Open, leader_ended};
use crate::{
    job::{JobId, Position, TaskResult, null},
    task::{Handler, TaskContext, TaskError, TaskOutcome},
    telemetry::traces,
};

/// The worker's environment variables that every program is given, where the worker has them.
///
/// Where to find programs and files, who runs them, the language, the time zone, and which certificates to trust: none of
/// them is secret. Proxies are missing on purpose, as their addresses may hold passwords; name them with [`Exec::env`].
pub const PASSED_ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// How much a program may print on standard output unless [`Exec::output_limit`] says otherwise, in bytes: 1 MiB.
pub const OUTPUT_LIMIT_BYTES: usize = 1024 * 1024;

/// How much of the end of standard error becomes the error of a failed attempt, in bytes.
pub const ERROR_BYTES: usize = 4 * 1024;

/// How long a program that is asked to end has until it is killed, and how long children that it left behind may still write.
pub const GRACE: Duration = Duration::from_millis(500);

/// `EX_DATAERR` of sysexits.h: the input is wrong, and will be.
const EXIT_PERMANENT: i32 = 65;
const READ_BYTES: usize = 8 * 1024;
/// How much of an output that is not JSON the error shows, in bytes.
const SHOWN_BYTES: usize = 200;

/// The handler that runs a program; see the [module](self) for what the program is given and what its answers mean.
///
/// ```
/// use cliquet::handlers::Exec;
///
/// let upload = Exec::new(vec!["python3".into(), "upload.py".into()])?
///     .dir("/srv/shop")
///     .env(vec!["SHOP_TOKEN".into()]);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct Exec {
    program: String,
    arguments: Vec<String>,
    dir: Option<PathBuf>,
    env: Vec<String>,
    output_limit: usize,
}

impl Exec {
    /// A program and its arguments, passed on to the letter: no shell reads them.
    ///
    /// A program without a `/` is looked for in the worker's `PATH` at each attempt; one with a `/` that is not absolute is
    /// found from [`dir`](Self::dir).
    ///
    /// # Errors
    /// A sentence, when there is no program or a part holds a NUL. Whether the program exists is not looked at: it may come.
    pub fn new(command: Vec<String>) -> Result<Self, String> {
        if let Some(part) = command.iter().find(|part| part.contains('\0')) {
            return Err(format!(
                "the command's part {part:?} holds a NUL, which no program can be given"
            ));
        }
        let mut parts = command.into_iter();
        let program = parts.next().filter(|program| !program.is_empty()).ok_or(
            "the command names no program; write it as a list, the program first: [\"python3\", \"upload.py\"]",
        )?;
        Ok(Self {
            program,
            arguments: parts.collect(),
            dir: None,
            env: Vec::new(),
            output_limit: OUTPUT_LIMIT_BYTES,
        })
    }

    /// The directory the program runs in; the worker's own by default.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Names of further variables of the worker's environment that the program is given, where the worker has them.
    pub fn env(mut self, names: Vec<String>) -> Self {
        self.env.extend(names);
        self
    }

    /// How much the program may print on standard output, in bytes: results are kept in Postgres and given to all later tasks.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }
}

impl Handler for Exec {
    fn run(&self, task: TaskContext) -> BoxFuture<'static, TaskOutcome> {
        let exec = self.clone();
        Box::pin(async move {
            // The program is tended by a task of its own, which lives on for the grace when the worker drops this future.
            let dropped = CancellationToken::new();
            let _at_drop = dropped.clone().drop_guard();
            let tended = async move { exec.attempt(&task, &dropped).await };
            match tokio::spawn(tended.in_current_span()).await {
                Ok(outcome) => outcome,
                Err(error) => Err(TaskError::retry(format!(
                    "the program was abandoned: {error}"
                ))),
            }
        })
    }
}

/// How a program ended and what it had said until then.
struct Ended {
    status: ExitStatus,
    printed: Vec<u8>,
    complaint: Tail,
}

impl Exec {
    async fn attempt(&self, task: &TaskContext, dropped: &CancellationToken) -> TaskOutcome {
        let document = document(task)?;
        if dropped.is_cancelled() {
            return Err(cut_short());
        }
        let began = Instant::now();
        let mut group = Group::start(self.command(task))
            .map_err(|error| TaskError::retry(self.why_not_started(&error)))?;
        let pid = group.pid().map(|pid| pid.as_raw_nonzero().get());
        debug!(
            task.handler = task.handler(),
            process.pid = pid,
            "program started"
        );

        let spoken = tokio::select! {
            spoken = self.converse(&mut group, &document) => spoken,
            () = dropped.cancelled() => {
                group.ask_to_end();
                sleep(GRACE).await;
                Err(cut_short())
            }
        };
        let outcome = match spoken {
            Ok((printed, complaint)) => Ok(Ended {
                status: group.end().await?,
                printed,
                complaint,
            }),
            Err(error) => {
                drop(group);
                Err(error)
            }
        };
        debug!(
            task.handler = task.handler(),
            process.pid = pid,
            process.exit_code = outcome.as_ref().ok().and_then(|ended| ended.status.code()),
            duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "program ended"
        );
        self.verdict(outcome?)
    }

    fn command(&self, task: &TaskContext) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear();
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let named = self.env.iter().map(String::as_str);
        for name in PASSED_ENVIRONMENT.iter().copied().chain(named) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("CLIQUET_JOB_ID", task.job_id().to_string())
            .env("CLIQUET_JOB_KIND", task.kind())
            .env("CLIQUET_TASK_POSITION", task.position().to_string())
            .env("CLIQUET_TASK_ATTEMPT", task.attempt().to_string())
            .env("CLIQUET_IDEMPOTENCY_KEY", task.idempotency_key());
        // After those that are named: a place of the worker's own is not the task's.
        if let Some(place) = traces::Place::here() {
            command.env("TRACEPARENT", place.traceparent);
            match place.tracestate {
                Some(state) => command.env("TRACESTATE", state),
                None => command.env_remove("TRACESTATE"),
            };
        }
        command
    }

    /// Tells the program its task and hears it out, all three pipes at the same time: whoever reads or writes them one after
    /// the other waits forever for a program that does it in another order.
    async fn converse(
        &self,
        group: &mut Group,
        document: &[u8],
    ) -> Result<(Vec<u8>, Tail), TaskError> {
        let Some(Open {
            pid,
            stdin,
            stdout,
            stderr,
        }) = group.open()
        else {
            return Err(TaskError::retry("the program's pipes are gone"));
        };
        let mut printed = Vec::new();
        let mut complaint = Tail::default();
        {
            let talk = pin!(try_join3(
                tell(stdin, document),
                self.hear(stdout, &mut printed),
                overhear(stderr, &mut complaint),
            ));
            match select(pin!(leader_ended(pid)), talk).await {
                // Its own words are in the pipes by now. Only children can hold them open, for as long as they like.
                Either::Left((ended, talk)) => {
                    ended?;
                    match timeout(GRACE, talk).await {
                        Ok(heard) => heard.map(drop)?,
                        Err(_) => debug!(
                            process.pid = pid.as_raw_nonzero().get(),
                            "program left children that hold its output open; they are killed"
                        ),
                    }
                }
                Either::Right((heard, ended)) => {
                    heard?;
                    ended.await?;
                }
            }
        }
        Ok((printed, complaint))
    }

    async fn hear(
        &self,
        pipe: &mut (impl AsyncRead + Unpin),
        printed: &mut Vec<u8>,
    ) -> Result<(), TaskError> {
        loop {
            printed.reserve(READ_BYTES);
            if pipe.read_buf(printed).await? == 0 {
                return Ok(());
            }
            if printed.len() > self.output_limit {
                return Err(TaskError::permanent(format!(
                    "{} printed more than its limit of {} bytes on standard output and was killed; let it print less \
                     (store large results elsewhere and print their address), or raise the limit",
                    self.name(),
                    self.output_limit
                )));
            }
        }
    }

    fn verdict(&self, ended: Ended) -> TaskOutcome {
        match ended.status.code() {
            Some(0) => self.result(&ended.printed),
            Some(code) => {
                let mut message = ended.complaint.text();
                if message.is_empty() {
                    message = format!(
                        "{} ended with exit code {code} and wrote nothing to standard error",
                        self.name()
                    );
                }
                Err(match code {
                    EXIT_PERMANENT => TaskError::permanent(message),
                    _ => TaskError::retry(message),
                })
            }
            None => {
                let mut message = format!("{} was killed by ", self.name());
                message.push_str(&match ended.status.signal() {
                    Some(signal) => signal_name(signal),
                    None => "an unknown signal".into(),
                });
                match ended.complaint.text() {
                    complaint if complaint.is_empty() => {
                        message.push_str(" and wrote nothing to standard error");
                    }
                    complaint => {
                        message.push_str("; its standard error ends: ");
                        message.push_str(&complaint);
                    }
                }
                Err(TaskError::retry(message))
            }
        }
    }

    fn result(&self, printed: &[u8]) -> TaskOutcome {
        let printed = printed.trim_ascii();
        if printed.is_empty() {
            return Ok(null());
        }
        serde_json::from_slice::<Box<RawValue>>(printed).map_err(|error| {
            let shown = &printed[..printed.len().min(SHOWN_BYTES)];
            TaskError::retry(format!(
                "{} ended well, but what it printed on standard output is not JSON ({error}); it begins {:?}. Print the \
                 result alone there, and everything else on standard error",
                self.name(),
                String::from_utf8_lossy(shown)
            ))
        })
    }

    /// The program as people know it: `python3 upload.py`. Other arguments may be long or not for everybody's eyes.
    fn name(&self) -> String {
        let file_name = |path: &str| {
            Path::new(path).file_name().map_or_else(
                || path.to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        let mut name = file_name(&self.program);
        if let Some(script) = self.arguments.first()
            && !script.starts_with('-')
            && Path::new(script).extension().is_some()
        {
            name.push(' ');
            name.push_str(&file_name(script));
        }
        name
    }

    fn why_not_started(&self, error: &std::io::Error) -> String {
        let program = &self.program;
        if let Some(dir) = &self.dir
            && !dir.is_dir()
        {
            let dir = dir.display();
            return format!(
                "cannot start `{program}`: its directory `{dir}` does not exist, or is none that this worker may look into"
            );
        }
        let from = match &self.dir {
            Some(dir) => format!("`{}`", dir.display()),
            None => "the worker's directory".to_owned(),
        };
        match error.kind() {
            ErrorKind::NotFound if !program.contains('/') => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path = path.to_string_lossy();
                format!(
                    "cannot start `{program}`: there is no such program in the worker's PATH ({path})"
                )
            }
            ErrorKind::NotFound => format!(
                "cannot start `{program}`, as seen from {from}: there is no such file, or the interpreter that its first \
                 line names is missing"
            ),
            ErrorKind::PermissionDenied => format!(
                "cannot start `{program}`, as seen from {from}: the worker may not execute it (is it marked executable, \
                 and every directory above it open to the worker's user?)"
            ),
            _ => format!("cannot start `{program}`, as seen from {from}: {error}"),
        }
    }
}

/// What the program reads on standard input.
#[derive(Serialize)]
struct Document<'a> {
    job: Job<'a>,
    task: Task<'a>,
    results: Vec<TaskResult>,
}

#[derive(Serialize)]
struct Job<'a> {
    id: JobId,
    kind: &'a str,
    payload: &'a RawValue,
}

#[derive(Serialize)]
struct Task<'a> {
    position: Position,
    handler: &'a str,
    label: &'a str,
    input: &'a RawValue,
    attempt: u32,
    idempotency_key: String,
}

fn document(task: &TaskContext) -> Result<Vec<u8>, serde_json::Error> {
    let mut document = serde_json::to_vec(&Document {
        job: Job {
            id: task.job_id(),
            kind: task.kind(),
            payload: task.payload_json(),
        },
        task: Task {
            position: task.position(),
            handler: task.handler(),
            label: task.label(),
            input: task.input_json(),
            attempt: task.attempt(),
            idempotency_key: task.idempotency_key(),
        },
        results: task.results(),
    })?;
    document.push(b'\n'); // for programs that read a line, as a shell's `read` does
    Ok(document)
}

/// Tells the program its task and closes the pipe. A program that does not listen is free not to.
async fn tell(mut pipe: impl AsyncWrite + Unpin, document: &[u8]) -> Result<(), TaskError> {
    let _ = pipe.write_all(document).await;
    Ok(())
}

async fn overhear(pipe: &mut (impl AsyncRead + Unpin), tail: &mut Tail) -> Result<(), TaskError> {
    loop {
        tail.make_room();
        if pipe.read_buf(&mut tail.kept).await? == 0 {
            return Ok(());
        }
    }
}

/// The end of something long: at least the last [`ERROR_BYTES`], and never much more.
#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn make_room(&mut self) {
        // Twice as much is kept as is shown, so that white space at the end does not push out what is to be read.
        let spare = self.kept.len().saturating_sub(2 * ERROR_BYTES);
        if spare > 0 {
            self.kept.drain(..spare);
            self.cut = true;
        }
        self.kept.reserve(READ_BYTES);
    }

    /// The end as text that Postgres can store: cut between characters, without NUL, without white space at its end.
    fn text(&self) -> String {
        let kept = self.kept.trim_ascii_end();
        let spare = kept.len().saturating_sub(ERROR_BYTES);
        let cut = self.cut || spare > 0;
        let mut shown = &kept[spare..];
        if cut {
            // At most three bytes of a character that began before the cut.
            let torn = shown
                .iter()
                .take(3)
                .take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000);
            shown = &shown[torn.count()..];
        }
        let text: Cow<'_, str> = String::from_utf8_lossy(shown);
        let text = text.replace('\0', "\u{fffd}");
        if cut && !text.is_empty() {
            format!("…{text}")
        } else {
            text
        }
    }
}

/// What nobody reads: the worker has dropped the attempt by then.
fn cut_short() -> TaskError {
    TaskError::retry("the attempt was cut short")
}

fn signal_name(number: i32) -> String {
    const NAMES: &[(Signal, &str)] = &[
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (
            Signal::KILL,
            "SIGKILL (the kernel sends it when memory runs out)",
        ),
        (Signal::USR1, "SIGUSR1"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::SYS, "SIGSYS"),
    ];
    NAMES
        .iter()
        .find(|(signal, _)| signal.as_raw() == number)
        .map_or_else(
            || format!("signal {number}"),
            |(_, name)| (*name).to_owned(),
        )
}

#[cfg(test)]
mod tests;
