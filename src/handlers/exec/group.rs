//! A program with everything it starts: one process group, which never outlives the value that stands for it.

use std::{
    io,
    process::{ExitStatus, Stdio},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// A process group; its leader is the program that was started. Dropping it kills all of it.
///
/// The group's number is its leader's process id, which the kernel may give to a stranger once the leader has been waited
/// for. So the leader stays a zombie until the last signal to its group is sent: [`leader_ended`] looks without waiting for
/// it, [`Group::end`] kills first, and no signal is sent after that.
pub(super) struct Group {
    leader: Child,
}

/// The program's ends of the conversation, and the process id that names it.
pub(super) struct Open<'a> {
    pub(super) pid: Pid,
    /// Owned, for it to be closed when the program has been told everything.
    pub(super) stdin: tokio::process::ChildStdin,
    /// Lent: they stay open while the group is being ended, or else a last word of its clean-up would kill it (SIGPIPE).
    pub(super) stdout: &'a mut tokio::process::ChildStdout,
    pub(super) stderr: &'a mut tokio::process::ChildStderr,
}

impl Group {
    /// Starts a program as the leader of a new group, its three standard streams connected to pipes.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let leader = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { leader })
    }

    /// The leader's process id; none once it has been waited for.
    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.leader.id()?).ok()?)
    }

    /// The ends of the pipes; none when they were asked for before.
    pub(super) fn open(&mut self) -> Option<Open<'_>> {
        Some(Open {
            pid: self.pid()?,
            stdin: self.leader.stdin.take()?,
            stdout: self.leader.stdout.as_mut()?,
            stderr: self.leader.stderr.as_mut()?,
        })
    }

    /// Asks every process of the group to end (SIGTERM).
    pub(super) fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills what is left of the group and says how its leader ended.
    pub(super) async fn end(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.leader.wait().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It fails when nobody is left, or for a process that has become another user's: nothing can be done about either.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    /// The runtime waits for the leader afterwards, as it does for every child that is dropped, so that no zombie is left.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Resolves when the process has ended, and leaves it to be waited for.
pub(super) async fn leader_ended(pid: Pid) -> io::Result<()> {
    // Listening begins before the first look, so that an end in between is not missed.
    let mut some_child_ended = signal(SignalKind::child())?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), look) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {
                if some_child_ended.recv().await.is_none() {
                    return Err(io::Error::other("the runtime is shutting down"));
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
