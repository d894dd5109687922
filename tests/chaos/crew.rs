//! The workers and their supervisor, which starts another whenever one has ended, as systemd does.

use std::{
    collections::BTreeMap,
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
    schedule::Service,
    worker::{Settings, Told, VARIABLE},
};

pub struct Crew {
    ground: Arc<Ground>,
    settings: Settings,
    slots: Vec<Slot>,
    /// What became of all that have ended: killed, stopped, aborted; and what nobody asked for.
    ends: Mutex<BTreeMap<String, u32>>,
    pauses: Mutex<Vec<Pause>>,
}

/// A worker that was stopped in its tracks, from when to when; in microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Pause {
    pub worker: String,
    pub from: i64,
    pub to: i64,
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
                    leaving: false,
                }),
            });
        }
        let crew = Arc::new(Self {
            ground: ground.clone(),
            settings,
            slots,
            ends: Mutex::default(),
            pauses: Mutex::default(),
        });
        for slot in 0..workers {
            crew.launch(slot);
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

    fn launch(&self, slot: usize) {
        let Slot {
            amqp,
            postgres,
            state,
        } = &self.slots[slot];
        let mut state = lock(state);
        state.incarnation += 1;
        state.name = format!("w{}.{}", slot + 1, state.incarnation);
        // A dead peer behind a network that says nothing is noticed after twice the heartbeat.
        let quick = if self.settings.quick {
            "?heartbeat=2&connection_timeout=2000"
        } else {
            ""
        };
        let told = Told {
            name: state.name.clone(),
            amqp_url: format!("{}{quick}", behind(&self.ground.amqp_url, amqp.port)),
            database_url: behind(&self.ground.database_url, postgres.port),
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
    }

    /// Looks at every process once; starts another where one has ended.
    fn supervise(&self) {
        for slot in 0..self.slots.len() {
            let mut state = lock(&self.slots[slot].state);
            let Some(status) = state
                .child
                .as_mut()
                .and_then(|child| child.try_wait().unwrap())
            else {
                continue;
            };
            state.child = None;
            let (end, leaving) = (said(&state.name, status), state.leaving);
            drop(state);
            *lock(&self.ends).entry(end).or_default() += 1;
            if !leaving {
                self.launch(slot);
            }
        }
    }

    fn signal(&self, slot: usize, signal: Signal) {
        let state = lock(&self.slots[slot].state);
        if let Some(child) = &state.child {
            // Not waited for yet, so the number is still its own.
            let pid = Pid::from_child(child);
            let _ = kill_process(pid, signal);
        }
    }

    pub fn kill(&self, slot: usize) {
        self.signal(slot, Signal::KILL);
    }

    pub fn stop(&self, slot: usize) {
        self.signal(slot, Signal::TERM);
    }

    pub async fn pause(&self, slot: usize, lasts: Duration) {
        let (worker, from) = (self.name(slot), now_us());
        self.signal(slot, Signal::STOP);
        sleep(lasts).await;
        let to = now_us();
        lock(&self.pauses).push(Pause {
            worker: worker.clone(),
            from,
            to,
        });
        if self.name(slot) == worker {
            self.signal(slot, Signal::CONT);
        }
    }

    pub fn pauses(&self) -> Vec<Pause> {
        lock(&self.pauses).clone()
    }

    pub fn ends(&self) -> BTreeMap<String, u32> {
        lock(&self.ends).clone()
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
            self.stop(slot);
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

/// How a process ended. What nobody asked for is told with its name, so that its log is found.
fn said(name: &str, status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "stopped".into(),
        (Some(143), _) => "stopped, and asked a second time before that".into(),
        // Asked to stop while it was starting, before it listened for that.
        (_, Some(15)) => "stopped while starting".into(),
        (_, Some(9)) => "killed".into(),
        (_, Some(6)) => "aborted".into(),
        _ => format!("unasked: {name} ended with {status}"),
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
