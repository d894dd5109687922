//! How the schedule is carried out.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use crate::{
    crew::{Crew, How},
    ground::{EXCHANGE, Ground, QUEUE, now_us},
    jobs::id_in,
    load::{GARBAGE, Outbox},
    rabbit::{Rabbit, whole},
    schedule::{Event, Fault, Lane, Service, Trouble},
};

/// How long RabbitMQ is left alone after a start or with a new queue.
const SETTLES: Duration = Duration::from_secs(2);
/// How long something is tried that a service or a worker which is away prevents, as whoever does such a thing would.
const PERSISTS: Duration = Duration::from_secs(15);
/// How long a deletion waits until it is known what the queue holds. Longer than any network is held.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);

pub struct Faults {
    pub ground: Arc<Ground>,
    pub crew: Arc<Crew>,
    /// What the publisher had confirmed. It publishes nothing while somebody has this.
    pub outbox: Arc<AsyncMutex<Outbox>>,
    began: Instant,
    /// Who changes the broker as a whole. Two faults of RabbitMQ's own (3.10; nothing that a client does mends them) are kept
    /// apart by it: a queue that is younger than a second does not survive a kill, since RabbitMQ confirms a quorum queue and
    /// its messages half a second before it has written down that there is one; and a queue that is deleted just as it is
    /// elected at a start takes with it, until the next start, whatever dead-letters at-least-once.
    broker: AsyncMutex<()>,
    deletions: Mutex<Vec<Deletion>>,
    troubles: Mutex<Vec<Disturbed>>,
    done: Mutex<BTreeMap<&'static str, Done>>,
}

/// What was lost with the queue: nothing else may be missing afterwards.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// In microseconds since 1970.
    pub at: i64,
    /// The jobs whose messages waited in it.
    pub jobs: HashSet<Uuid>,
    /// The messages that are no jobs, by their numbers.
    pub litter: HashSet<i64>,
}

/// The network between a worker and Postgres was disturbed, from when to when; in microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Disturbed {
    pub slot: usize,
    pub from: i64,
    pub to: i64,
}

/// How often something was tried, and how often it happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub tried: u32,
    pub happened: u32,
}

impl Faults {
    pub fn new(ground: &Arc<Ground>, crew: &Arc<Crew>) -> Arc<Self> {
        Arc::new(Self {
            ground: ground.clone(),
            crew: crew.clone(),
            outbox: Arc::default(),
            began: Instant::now(),
            broker: AsyncMutex::default(),
            deletions: Mutex::default(),
            troubles: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// Every event of one lane, one after the other.
    pub async fn follow(self: Arc<Self>, lane: Lane) {
        for Event { at, fault } in lane {
            sleep_until(self.began + at).await;
            eprintln!(
                "chaos: {:6.2} s (drawn for {:5.1} s)  {fault}",
                self.began.elapsed().as_secs_f64(),
                at.as_secs_f64()
            );
            let happened = self.carry_out(&fault).await;
            if !happened {
                eprintln!("chaos: in vain: {fault}");
            }
            let mut done = self.done.lock().unwrap();
            let done = done.entry(fault.kind()).or_default();
            done.tried += 1;
            done.happened += u32::from(happened);
        }
    }

    /// Whether it happened. What became of a worker that was sent a signal is seen later: [`done`](Self::done).
    async fn carry_out(&self, fault: &Fault) -> bool {
        match *fault {
            Fault::Kill { worker } => {
                self.crew.kill(worker).await;
                true
            }
            Fault::Stop { worker } => {
                self.crew.stop(worker).await;
                true
            }
            Fault::Pause { worker, lasts } => self.crew.pause(worker, lasts).await,
            Fault::Service { service, killed } => self.fell(service, killed).await,
            Fault::Network {
                worker,
                service,
                trouble,
                lasts,
            } => self.disturb(worker, service, trouble, lasts).await,
            Fault::CloseConnection { worker, purpose } => self.close(worker, purpose).await,
            Fault::DeleteBinding { lasts } => {
                let deleted = self.delete_binding().await;
                sleep(lasts).await;
                self.bind().await;
                deleted
            }
            Fault::DeleteQueue => self.delete_queue().await,
        }
    }

    /// Whether a connection that was there before is gone.
    async fn fell(&self, service: Service, killed: bool) -> bool {
        let _alone = match service {
            Service::Rabbitmq => Some(self.broker.lock().await),
            Service::Postgres => None,
        };
        let ground = &self.ground;
        let mut rabbit = Rabbit::new(&ground.amqp_url);
        let mut session = None;
        match service {
            Service::Rabbitmq => drop(rabbit.queue(QUEUE).await),
            Service::Postgres => session = ground.pool.acquire().await.ok(),
        }
        let was_connected = rabbit.is_connected() || session.is_some();
        if killed {
            ground.service("kill", service.name()).await;
            ground.service("start", service.name()).await;
        } else {
            ground.service("restart", service.name()).await;
        }
        if service == Service::Rabbitmq {
            sleep(SETTLES).await;
        }
        let is_connected = match &mut session {
            Some(session) => sqlx::query("SELECT 1")
                .execute(&mut **session)
                .await
                .is_ok(),
            None => rabbit.is_connected(),
        };
        was_connected && !is_connected
    }

    /// Whether any connection felt it.
    async fn disturb(
        &self,
        worker: usize,
        service: Service,
        trouble: Trouble,
        lasts: Duration,
    ) -> bool {
        let proxy = self.crew.proxy(worker, service);
        let (from, felt) = (now_us(), proxy.felt());
        match trouble {
            Trouble::Cut => proxy.cut(),
            Trouble::Held | Trouble::Swallowed => proxy.hold(),
            Trouble::Slow => proxy.slow(Duration::from_millis(60), 20),
        }
        sleep(lasts).await;
        let began = Instant::now();
        while proxy.felt() == felt && began.elapsed() < PERSISTS {
            sleep(Duration::from_millis(20)).await;
        }
        if trouble == Trouble::Swallowed {
            proxy.cut();
        }
        proxy.fair();
        if service == Service::Postgres {
            self.troubles.lock().unwrap().push(Disturbed {
                slot: worker,
                from,
                to: now_us(),
            });
        }
        proxy.felt() > felt
    }

    /// Closes a worker's connections, once it has any that RabbitMQ's list knows.
    async fn close(&self, worker: usize, purpose: &str) -> bool {
        let began = Instant::now();
        while began.elapsed() < PERSISTS / 3 {
            let name = self.crew.name(worker);
            let management = &self.ground.management;
            if management.close_connections(&name, purpose).await > 0 {
                return true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        false
    }

    async fn delete_binding(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < PERSISTS {
            let management = &self.ground.management;
            if management.delete_binding(EXCHANGE, QUEUE).await {
                return true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        false
    }

    /// Deletes the queue at a moment when it is known, message by message, what will be lost: the run takes what waits
    /// in it, as a consumer would, until whatever the ledger does not know is among that. What is at the workers is then
    /// of jobs that the ledger knows.
    async fn delete_queue(&self) -> bool {
        let _alone = self.broker.lock().await;
        let mut outbox = self.outbox.lock().await;
        let mut taken = Taken::of(&self.ground);
        let began = Instant::now();
        while !taken.has_all_but_what_is_known(&mut outbox).await {
            if began.elapsed() > KNOWN_WITHIN {
                eprintln!(
                    "chaos: the queue is not deleted: it does not become known what it holds"
                );
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        if !self.ground.management.delete_queue(QUEUE).await {
            return false;
        }
        let at = now_us();
        let Taken { jobs, litter, .. } = taken;
        let (waited, others) = (jobs.len(), litter.len());
        let deletion = Deletion {
            at,
            jobs: outbox.lose(&jobs),
            litter,
        };
        eprintln!(
            "chaos: the queue is deleted, after {} ms, and what waited in it: {waited} jobs, {} of them unknown to the ledger, and {others} messages that are no jobs",
            began.elapsed().as_millis(),
            deletion.jobs.len()
        );
        self.deletions.lock().unwrap().push(deletion);
        drop(outbox);
        self.bind().await;
        sleep(SETTLES).await;
        true
    }

    /// Binds the exchange of the publishers again, as soon as a worker has made the queue again.
    async fn bind(&self) {
        let (mut rabbit, began) = (Rabbit::new(&self.ground.amqp_url), Instant::now());
        while !rabbit.bind(EXCHANGE, QUEUE).await {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "the exchange of the publishers cannot be bound: no worker has made the queue again"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each deletion of the queue that succeeded.
    pub fn deletions(&self) -> Vec<Deletion> {
        self.deletions.lock().unwrap().clone()
    }

    /// When the network between workers and Postgres was disturbed.
    pub fn troubles(&self) -> Vec<Disturbed> {
        self.troubles.lock().unwrap().clone()
    }

    /// How often what was tried and happened. A worker was killed when its process has ended so, and not before.
    pub fn done(&self) -> BTreeMap<&'static str, Done> {
        let mut done = self.done.lock().unwrap().clone();
        for (kind, how) in [(Fault::KILLED, How::Killed), (Fault::STOPPED, How::Stopped)] {
            if let Some(done) = done.get_mut(kind) {
                done.happened = self.crew.replaced_after(how);
            }
        }
        done
    }
}

/// What the run has taken from the work queue and does not acknowledge: it is in the queue still, but at no worker.
struct Taken<'a> {
    ground: &'a Ground,
    rabbit: Rabbit,
    jobs: HashSet<Uuid>,
    litter: HashSet<i64>,
}

impl<'a> Taken<'a> {
    fn of(ground: &'a Ground) -> Self {
        Self {
            ground,
            rabbit: Rabbit::new(&ground.amqp_url),
            jobs: HashSet::new(),
            litter: HashSet::new(),
        }
    }

    /// Takes what waits; whether each confirmed job that is not in the ledger is among all that was taken.
    async fn has_all_but_what_is_known(&mut self, outbox: &mut Outbox) -> bool {
        let Some(taken) = self.rabbit.take(QUEUE).await else {
            // With the connection it went back into the queue.
            *self = Self::of(self.ground);
            return false;
        };
        for (body, properties) in taken {
            match whole(&properties, GARBAGE) {
                Some(number) => drop(self.litter.insert(number)),
                None => self.jobs.extend(id_in(&body)),
            }
        }
        outbox.knows_all_but(&self.jobs, &self.ground.pool).await
    }
}
