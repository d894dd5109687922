//! The workers and their supervisor, which starts another whenever one has ended, as systemd does.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::{
    ground::{Ground, behind, now_us, port},
    proxy::Proxy,
    rabbit::within,
    schedule::{PATIENCE, Service},
    worker::{Settings, Told, VARIABLE},
};

pub struct Crew {
    ground: Arc<Ground>,
    settings: Settings,
    slots: Vec<Slot>,
    ends: Mutex<Vec<End>>,
    /// Which process was sent what.
    sent: Mutex<Vec<(String, Signal)>>,
    pauses: Mutex<Vec<Pause>>,
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct End {
    pub worker: String,
    pub how: How,
    /// When it was last known to be alive, in microseconds since 1970.
    pub alive: i64,
    /// When its end was noticed.
    pub at: i64,
    /// Another was started in its place.
    pub replaced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Killed,
    /// It was asked to, and drained.
    Stopped,
    /// It was asked a second time, and did not wait for its tasks.
    StoppedAtOnce,
    /// It was asked before it listened for that.
    StoppedWhileStarting,
    Aborted,
    /// As nothing in a run ends a process.
    Otherwise(ExitStatus),
}

impl From<ExitStatus> for How {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => How::Stopped,
            (Some(143), _) => How::StoppedAtOnce,
            (_, Some(15)) => How::StoppedWhileStarting,
            (_, Some(9)) => How::Killed,
            (_, Some(6)) => How::Aborted,
            _ => How::Otherwise(status),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Killed => f.write_str("killed"),
            How::Stopped => f.write_str("stopped"),
            How::StoppedAtOnce => f.write_str("stopped at once, being asked twice"),
            How::StoppedWhileStarting => f.write_str("stopped while starting"),
            How::Aborted => f.write_str("aborted"),
            How::Otherwise(status) => write!(f, "ended otherwise ({status})"),
        }
    }
}

/// A worker that was stopped in its tracks, from when to when; in microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Pause {
    pub worker: String,
    pub from: i64,
    pub to: i64,
    /// It was told to go on. Otherwise it was killed meanwhile.
    pub went_on: bool,
}

struct Slot {
    amqp: Proxy,
    postgres: Proxy,
    state: Mutex<State>,
}

struct State {
    child: Option<Child>,
    name: String,
    incarnation: u32,
    /// When the child was last known to be alive.
    alive: i64,
    /// Nobody starts it again.
    leaving: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Starts so many workers, each with a network of its own, and looks after them.
    pub async fn start(ground: &Arc<Ground>, workers: usize, settings: Settings) -> Arc<Self> {
        let mut slots = Vec::new();
        for _ in 0..workers {
            slots.push(Slot {
                amqp: Proxy::start(port(&ground.amqp_url)).await,
                postgres: Proxy::start(port(&ground.database_url)).await,
                state: Mutex::new(State {
                    child: None,
                    name: String::new(),
                    incarnation: 0,
                    alive: 0,
                    leaving: false,
                }),
            });
        }
        let crew = Arc::new(Self {
            ground: ground.clone(),
            settings,
            slots,
            ends: Mutex::default(),
            sent: Mutex::default(),
            pauses: Mutex::default(),
        });
        for slot in &crew.slots {
            crew.launch(slot, &mut lock(&slot.state));
        }
        let supervised = Arc::downgrade(&crew);
        tokio::spawn(async move {
            while let Some(crew) = supervised.upgrade() {
                crew.supervise();
                drop(crew);
                sleep(Duration::from_millis(5)).await;
            }
        });
        crew
    }

    pub fn workers(&self) -> usize {
        self.slots.len()
    }

    pub fn proxy(&self, slot: usize, service: Service) -> &Proxy {
        match service {
            Service::Rabbitmq => &self.slots[slot].amqp,
            Service::Postgres => &self.slots[slot].postgres,
        }
    }

    /// The name of the process that is in a slot now; each process has its own.
    pub fn name(&self, slot: usize) -> String {
        lock(&self.slots[slot].state).name.clone()
    }

    fn launch(&self, slot: &Slot, state: &mut State) {
        let number = self.slots.iter().position(|each| std::ptr::eq(each, slot));
        state.incarnation += 1;
        state.name = format!("w{}.{}", number.unwrap() + 1, state.incarnation);
        // A dead peer behind a network that says nothing is noticed after twice the heartbeat.
        let quick = if self.settings.quick {
            "?heartbeat=2&connection_timeout=2000"
        } else {
            ""
        };
        let told = Told {
            name: state.name.clone(),
            amqp_url: format!("{}{quick}", behind(&self.ground.amqp_url, slot.amqp.port)),
            database_url: behind(&self.ground.database_url, slot.postgres.port),
            folder: self.ground.folder.clone(),
            settings: self.settings.clone(),
        };
        let log = File::create(self.ground.folder.join(format!("{}.log", state.name))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "worker::a_worker_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(VARIABLE, serde_json::to_string(&told).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        state.child = Some(child);
        state.alive = now_us();
    }

    /// Looks at every process once; starts another where one has ended.
    fn supervise(&self) {
        for slot in &self.slots {
            let mut state = lock(&slot.state);
            let asked = now_us();
            let Some(status) = state
                .child
                .as_mut()
                .and_then(|child| child.try_wait().unwrap())
            else {
                state.alive = asked;
                continue;
            };
            state.child = None;
            let end = End {
                worker: state.name.clone(),
                how: status.into(),
                alive: state.alive,
                at: asked,
                replaced: !state.leaving,
            };
            if end.replaced {
                self.launch(slot, &mut state);
            }
            lock(&self.ends).push(end);
        }
    }

    /// Sends a signal to the process in a slot, if one is alive there (and, if a name is given, is that one); to whom.
    fn signal(&self, slot: usize, only: Option<&str>, signal: Signal) -> Option<String> {
        let mut state = lock(&self.slots[slot].state);
        let name = state.name.clone();
        if only.is_some_and(|only| only != name) {
            return None;
        }
        let child = state.child.as_mut()?;
        // Not waited for yet, so the number is still its own.
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        kill_process(Pid::from_child(child), signal).ok()?;
        lock(&self.sent).push((name.clone(), signal));
        Some(name)
    }

    /// Sends it to whoever is in the slot; where nobody is just now, to the next one.
    async fn signal_surely(&self, slot: usize, signal: Signal) -> String {
        let asked = Instant::now();
        loop {
            if let Some(name) = self.signal(slot, None, signal) {
                return name;
            }
            assert!(
                asked.elapsed() < Duration::from_secs(10),
                "there is no worker to send a signal to"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn kill(&self, slot: usize) {
        self.signal_surely(slot, Signal::KILL).await;
    }

    pub async fn stop(&self, slot: usize) {
        self.signal_surely(slot, Signal::TERM).await;
    }

    /// Whether the process was silent for longer than others have patience with it. (It may be killed before it goes on.)
    pub async fn pause(&self, slot: usize, lasts: Duration) -> bool {
        let from = now_us();
        let worker = self.signal_surely(slot, Signal::STOP).await;
        let paused = Instant::now();
        while paused.elapsed() < lasts && self.name(slot) == worker {
            sleep(Duration::from_millis(20)).await;
        }
        let (silent, to) = (paused.elapsed(), now_us());
        let went_on = self.signal(slot, Some(&worker), Signal::CONT).is_some();
        lock(&self.pauses).push(Pause {
            worker,
            from,
            to,
            went_on,
        });
        silent > PATIENCE
    }

    pub fn pauses(&self) -> Vec<Pause> {
        lock(&self.pauses).clone()
    }

    pub fn ends(&self) -> Vec<End> {
        lock(&self.ends).clone()
    }

    /// How many processes ended how.
    pub fn counts(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for end in self.ends() {
            *counts.entry(end.how.to_string()).or_default() += 1;
        }
        counts
    }

    /// How many processes ended like this and were replaced: those that leave when the run is over are not counted.
    pub fn replaced_after(&self, how: How) -> u32 {
        let ends = self.ends();
        let such = ends.iter().filter(|end| end.replaced && end.how == how);
        such.count() as u32
    }

    /// Every end that neither a signal of ours nor a task that kills its process explains, and every such task that killed
    /// none; as sentences with the worker's name, so that its log is found. `poison` has how often each worker has executed
    /// such a task.
    pub fn unexplained(&self, poison: &BTreeMap<String, u32>) -> Vec<String> {
        let sent = lock(&self.sent).clone();
        let received = |worker: &str, signal| {
            let such = sent
                .iter()
                .filter(|(to, sent)| to == worker && *sent == signal);
            such.count()
        };
        let (mut sentences, mut ended) = (Vec::new(), BTreeMap::new());
        for End { worker, how, .. } in self.ends() {
            let poison = poison.get(&worker).copied().unwrap_or_default();
            let explained = match how {
                How::Killed => received(&worker, Signal::KILL) > 0,
                How::Stopped | How::StoppedWhileStarting => received(&worker, Signal::TERM) > 0,
                How::StoppedAtOnce => received(&worker, Signal::TERM) > 1,
                How::Aborted => poison == 1,
                How::Otherwise(_) => false,
            };
            if !explained {
                sentences.push(format!(
                    "{worker} {how}, which nothing explains (it began {poison} tasks that kill their process); its last words: {}",
                    self.last_words(&worker)
                ));
            }
            ended.insert(worker, how);
        }
        for (worker, poison) in poison {
            // A kill may come between such a task's first line and its abort.
            if !matches!(ended.get(worker), Some(How::Aborted | How::Killed)) {
                sentences.push(format!(
                    "{worker} began {poison} tasks that kill their process, and lived"
                ));
            }
        }
        sentences
    }

    /// The end of a worker's log, for those who have only the report.
    fn last_words(&self, worker: &str) -> String {
        let log = std::fs::read(self.ground.folder.join(format!("{worker}.log")));
        let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Waits until no process of a former name is left in the slot.
    pub async fn replaced(&self, slot: usize, former: &str) {
        within(
            Duration::from_secs(60),
            "another worker is started",
            async || (self.name(slot) != former).then_some(()),
        )
        .await;
    }

    /// Asks all to stop and waits until they have; for how long it took.
    pub async fn dismiss(&self) -> Duration {
        for slot in &self.slots {
            lock(&slot.state).leaving = true;
        }
        let asked = Instant::now();
        for slot in 0..self.slots.len() {
            // One that has just ended is not replaced any more.
            self.signal(slot, None, Signal::TERM);
        }
        within(
            Duration::from_secs(60),
            "every worker has left",
            async || {
                self.slots
                    .iter()
                    .all(|slot| lock(&slot.state).child.is_none())
                    .then_some(())
            },
        )
        .await;
        asked.elapsed()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(mut child) = lock(&slot.state).child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
