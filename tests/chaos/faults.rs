//! How the schedule is carried out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    crew::Crew,
    ground::{EXCHANGE, Ground, QUEUE, now_us},
    rabbit::Rabbit,
    schedule::{Event, Fault, Lane, Service, Trouble},
};

/// How long RabbitMQ is left alone after a start or with a new queue.
const SETTLES: Duration = Duration::from_secs(2);

pub struct Faults {
    pub ground: Arc<Ground>,
    pub crew: Arc<Crew>,
    began: Instant,
    /// Who changes the broker as a whole. Two faults of RabbitMQ's own (3.10; nothing that a client does mends them) are kept
    /// apart by it: a queue that is younger than a second does not survive a kill, since RabbitMQ confirms a quorum queue and
    /// its messages half a second before it has written down that there is one; and a queue that is deleted just as it is
    /// elected at a start takes with it, until the next start, whatever dead-letters at-least-once.
    broker: AsyncMutex<()>,
    /// When the queue was gone, in microseconds since 1970: what was in it is lost.
    deletions: Mutex<Vec<i64>>,
    done: Mutex<BTreeMap<&'static str, u32>>,
}

impl Faults {
    pub fn new(ground: &Arc<Ground>, crew: &Arc<Crew>) -> Arc<Self> {
        Arc::new(Self {
            ground: ground.clone(),
            crew: crew.clone(),
            began: Instant::now(),
            broker: AsyncMutex::default(),
            deletions: Mutex::default(),
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
            self.carry_out(&fault).await;
            *self.done.lock().unwrap().entry(fault.kind()).or_default() += 1;
        }
    }

    async fn carry_out(&self, fault: &Fault) {
        match *fault {
            Fault::Kill { worker } => self.crew.kill(worker),
            Fault::Stop { worker } => self.crew.stop(worker),
            Fault::Pause { worker, lasts } => self.crew.pause(worker, lasts).await,
            Fault::Service { service, killed } => self.fell(service, killed).await,
            Fault::Network {
                worker,
                service,
                trouble,
                lasts,
            } => self.disturb(worker, service, trouble, lasts).await,
            Fault::CloseConnection { worker, purpose } => {
                let name = self.crew.name(worker);
                let management = &self.ground.management;
                management.close_connections(&name, purpose).await;
            }
            Fault::DeleteBinding { lasts } => {
                let management = &self.ground.management;
                management.delete_binding(EXCHANGE, QUEUE).await;
                sleep(lasts).await;
                self.bind().await;
            }
            Fault::DeleteQueue => self.delete_queue().await,
        }
    }

    async fn fell(&self, service: Service, killed: bool) {
        let _alone = match service {
            Service::Rabbitmq => Some(self.broker.lock().await),
            Service::Postgres => None,
        };
        let ground = &self.ground;
        if killed {
            ground.service("kill", service.name()).await;
            ground.service("start", service.name()).await;
        } else {
            ground.service("restart", service.name()).await;
        }
        if service == Service::Rabbitmq {
            sleep(SETTLES).await;
        }
    }

    async fn disturb(&self, worker: usize, service: Service, trouble: Trouble, lasts: Duration) {
        let proxy = self.crew.proxy(worker, service);
        match trouble {
            Trouble::Cut => proxy.cut(),
            Trouble::Held | Trouble::Swallowed => proxy.hold(),
            Trouble::Slow => proxy.slow(Duration::from_millis(60), 20),
        }
        sleep(lasts).await;
        if trouble == Trouble::Swallowed {
            proxy.cut();
        }
        proxy.fair();
    }

    async fn delete_queue(&self) {
        let _alone = self.broker.lock().await;
        let deleted = self.ground.management.delete_queue(QUEUE).await;
        // A confirm that was on its way may be read a little later than that. One job too many costs nothing but a lookup.
        self.deletions.lock().unwrap().push(now_us() + 500_000);
        if !deleted {
            eprintln!("chaos: the queue could not be deleted");
        }
        self.bind().await;
        sleep(SETTLES).await;
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

    /// When the queue was deleted.
    pub fn deletions(&self) -> Vec<i64> {
        self.deletions.lock().unwrap().clone()
    }

    /// How often what was done.
    pub fn done(&self) -> BTreeMap<&'static str, u32> {
        self.done.lock().unwrap().clone()
    }
}
