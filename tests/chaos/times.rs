//! How long a return takes: thirty events of each kind (unless told otherwise), with a worker's default settings.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::BasicProperties;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::unbounded_channel,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    crew::Crew,
    ground::{Ground, QUEUE, now_us, port, span},
    jobs::{Act, Job},
    rabbit::{Rabbit, within},
    report::{Aim, Report, Times},
    schedule::Service,
    worker::{Execution, Settings, executions},
};

const LONG: Duration = Duration::from_secs(60);

/// What is aimed at.
const GOES_ON: Aim = Aim {
    median: Some(Duration::from_millis(500)),
    most: Duration::from_secs(2),
};
const LEAVES: Aim = Aim {
    median: None,
    most: Duration::from_secs(1),
};
const CONSUMES: Aim = Aim {
    median: None,
    most: Duration::from_secs(2),
};

/// A service is asked anew so often whether it is back, whether or not the last question was answered.
const PROBES: Duration = Duration::from_millis(20);
/// So many jobs are at two workers when one of them is killed.
const CROWD: usize = 64;
/// Who publishes while a service is away, so that one attempt that hangs holds nobody up.
const PUBLISHERS: u64 = 4;

/// Everything that is aimed at, with so many events of each kind.
pub async fn measure(events: usize, report: &mut Report) {
    let ground = Ground::make().await;
    let settings = Settings {
        concurrency: 64,
        quick: false,
    };
    let crew = Crew::start(&ground, 2, settings).await;
    let mut scene = Scene {
        rabbit: Rabbit::new(&ground.amqp_url),
        ground: ground.clone(),
        crew: crew.clone(),
        events,
    };
    scene.both_consume().await;
    for times in [
        scene.kills().await,
        scene.crowds().await,
        scene.stops().await,
        scene.returns(Service::Postgres).await,
        scene.returns(Service::Rabbitmq).await,
    ] {
        let (median, most) = (times.median(), times.most());
        eprintln!("times: {}: median {median:?}, maximum {most:?}", times.what);
        report.time(times);
    }
    crew.dismiss().await;
    ground.tidy();
}

struct Scene {
    ground: Arc<Ground>,
    crew: Arc<Crew>,
    rabbit: Rabbit,
    events: usize,
}

impl Scene {
    async fn both_consume(&mut self) {
        within(LONG, "both workers consume", async || {
            (self.rabbit.queue(QUEUE).await?.1 == 2).then_some(())
        })
        .await;
    }

    /// Publishes a job of one task that lasts until it is released, and waits until a worker has begun it.
    async fn hold(&mut self) -> (Uuid, Execution) {
        let job = Job::of(vec![Act::Hold, Act::Nothing]);
        let body = job.body(0);
        let sent = self
            .rabbit
            .publish_once("", QUEUE, &body, BasicProperties::default());
        assert!(sent.await, "a job is not confirmed");
        let begun = self.begun(job.id, 1).await;
        (job.id, begun)
    }

    /// The execution with this number of the job's first task.
    async fn begun(&self, job: Uuid, number: usize) -> Execution {
        within(LONG, "the task is begun", async || {
            executions(&self.ground.folder)
                .into_iter()
                .filter(|execution| execution.job == job && execution.position == 1)
                .nth(number - 1)
        })
        .await
    }

    fn release(&self, job: Uuid) {
        std::fs::write(self.ground.folder.join(format!("{job}.release")), "").unwrap();
    }

    async fn succeeds(&self, job: Uuid) {
        within(LONG, "the job is SUCCESS", async || {
            let status: String =
                sqlx::query_scalar("SELECT status::text FROM cliquet.jobs WHERE id = $1")
                    .bind(job)
                    .fetch_one(&self.ground.pool)
                    .await
                    .ok()?;
            (status == "SUCCESS").then_some(())
        })
        .await;
    }

    fn slot_of(&self, execution: &Execution) -> usize {
        let slots = 0..self.crew.workers();
        let mut mine = slots.filter(|slot| self.crew.name(*slot) == execution.worker);
        mine.next().expect("the worker is there")
    }

    /// From `kill -9` to the handler running elsewhere.
    async fn kills(&mut self) -> Times {
        let mut took = Vec::new();
        for _ in 0..self.events {
            let (job, first) = self.hold().await;
            let slot = self.slot_of(&first);
            let killed = now_us();
            self.crew.kill(slot).await;
            let second = self.begun(job, 2).await;
            took.push(told("kill", span(killed, second.began)));
            self.release(job);
            self.succeeds(job).await;
            self.crew.replaced(slot, &first.worker).await;
            self.both_consume().await;
        }
        Times {
            what: "from the kill of a worker until its job goes on elsewhere".into(),
            aim: GOES_ON,
            took,
        }
    }

    /// From `kill -9` of a worker with many jobs to the handler of each running elsewhere. There they take no time: what is
    /// measured is the handing over alone, one by one as after any death.
    async fn crowds(&mut self) -> Times {
        let mut took = Vec::new();
        for _ in 0..self.events {
            let jobs: Vec<_> = (0..CROWD)
                .map(|_| Job::of(vec![Act::Hold, Act::Nothing]))
                .collect();
            for job in &jobs {
                let body = job.body(0);
                let sent = self
                    .rabbit
                    .publish_once("", QUEUE, &body, BasicProperties::default());
                assert!(sent.await, "a job is not confirmed");
            }
            let first = self.all_begun(&jobs, 1).await;
            let slot = self.slot_of(&first[0]);
            let name = self.crew.name(slot);
            let (its, others): (Vec<_>, Vec<_>) =
                first.iter().partition(|begun| begun.worker == name);
            let killed = now_us();
            self.crew.kill(slot).await;
            for begun in its.iter().chain(&others) {
                self.release(begun.job);
            }
            let its: Vec<_> = jobs
                .into_iter()
                .filter(|job| its.iter().any(|begun| begun.job == job.id))
                .collect();
            let second = self.all_begun(&its, 2).await;
            let spans = second.iter().map(|begun| span(killed, begun.began));
            took.extend(spans.clone());
            let last = spans.max().unwrap_or_default();
            told(
                &format!("kill with {} jobs, the last of them", its.len()),
                last,
            );
            for job in its {
                self.succeeds(job.id).await;
            }
            self.crew.replaced(slot, &name).await;
            self.both_consume().await;
        }
        Times {
            what: format!(
                "from the kill of a worker with about {} jobs until each of them goes on elsewhere",
                CROWD / 2
            ),
            aim: GOES_ON,
            took,
        }
    }

    /// The executions with this number of the jobs' first tasks.
    async fn all_begun(&self, jobs: &[Job], number: usize) -> Vec<Execution> {
        within(LONG * 30, "all jobs are begun", async || {
            let all = executions(&self.ground.folder);
            let begun = jobs.iter().map(|job| {
                let of_it = |one: &&Execution| one.job == job.id && one.position == 1;
                all.iter().filter(of_it).nth(number - 1).cloned()
            });
            begun.collect::<Option<Vec<_>>>()
        })
        .await
    }

    /// From the end of a stopped worker's last task to the end of its process.
    async fn stops(&mut self) -> Times {
        let mut took = Vec::new();
        for _ in 0..self.events {
            let (job, running) = self.hold().await;
            let slot = self.slot_of(&running);
            self.crew.stop(slot).await;
            sleep(Duration::from_millis(300)).await;
            self.release(job);
            self.crew.replaced(slot, &running.worker).await;
            let ends = self.crew.ends();
            let left = ends.iter().find(|end| end.worker == running.worker);
            let left = left.expect("the worker has left").at;
            let ended = self.begun(job, 1).await.ended.expect("the task has ended");
            took.push(told("stop", span(ended, left)));
            self.succeeds(job).await;
            self.both_consume().await;
        }
        Times {
            what: "from the end of a stopped worker's last task until its process has left".into(),
            aim: LEAVES,
            took,
        }
    }

    /// From the first connection that a service takes to the first task of a job that each of the workers begins. Half of
    /// the returns follow a stop in good order, half a kill.
    async fn returns(&mut self, service: Service) -> Times {
        let mut took = Vec::new();
        for number in 0..self.events {
            let stream = Stream::start(&self.ground);
            let killed = number % 2 == 1;
            let ground = self.ground.clone();
            let away = if killed { "kill" } else { "stop" };
            ground.service(away, service.name()).await;
            // From short to long enough for the pauses between attempts to have grown.
            sleep(Duration::from_secs(number as u64 % 4)).await;
            let starting = tokio::spawn({
                let ground = ground.clone();
                async move { ground.service("start", service.name()).await }
            });
            let back = self.back(service).await;
            let names = [self.crew.name(0), self.crew.name(1)];
            let first = within(LONG, "both workers begin tasks again", async || {
                let mut first: HashMap<String, i64> = HashMap::new();
                for execution in executions(&ground.folder) {
                    if execution.began > back {
                        first.entry(execution.worker).or_insert(execution.began);
                    }
                }
                Some([*first.get(&names[0])?, *first.get(&names[1])?])
            })
            .await;
            let slower = span(back, first[0].max(first[1]));
            if slower > Duration::from_secs(2) {
                eprintln!("times: {names:?} began at {first:?}, the service was back at {back}");
            }
            took.push(told(&format!("{} after a {away}", service.name()), slower));
            starting.await.unwrap();
            stream.stop().await;
            self.both_consume().await;
        }
        Times {
            what: format!(
                "from the first connection that {} takes again until both workers have begun a task",
                service.name()
            ),
            aim: CONSUMES,
            took,
        }
    }

    /// Waits until the service takes a connection; since when it does.
    async fn back(&self, service: Service) -> i64 {
        let (port, greeting, welcome) = match service {
            Service::Rabbitmq => (port(&self.ground.amqp_url), AMQP.to_vec(), AMQP_METHOD),
            Service::Postgres => {
                let url = &self.ground.database_url;
                (port(url), startup(url), AUTHENTICATION)
            }
        };
        let (tell, mut told) = unbounded_channel();
        let (mut probes, mut again) = (JoinSet::new(), interval(PROBES));
        let first = async {
            loop {
                tokio::select! {
                    since = told.recv() => return since.expect("this side has not hung up"),
                    _ = again.tick() => {
                        let (tell, greeting) = (tell.clone(), greeting.clone());
                        probes.spawn(async move {
                            let answer = timeout(Duration::from_secs(1), answer(port, &greeting)).await;
                            if matches!(answer, Ok(Ok(first)) if first == welcome) {
                                let _ = tell.send(now_us());
                            }
                        });
                    }
                }
            }
        };
        timeout(LONG, first).await.expect("the service is back")
    }
}

/// An AMQP client's first words; a broker that takes connections answers with a method.
const AMQP: &[u8] = b"AMQP\0\0\x09\x01";
const AMQP_METHOD: u8 = 1;
/// Postgres answers with a question for the password, and with an error while it is starting.
const AUTHENTICATION: u8 = b'R';

/// A Postgres client's first words.
fn startup(url: &str) -> Vec<u8> {
    let url = url::Url::parse(url).unwrap();
    let (user, database) = (url.username(), url.path().trim_start_matches('/'));
    let parameters = format!("user\0{user}\0database\0{database}\0\0");
    let length = 8 + parameters.len() as u32;
    let version = 3u32 << 16;
    let words = [&length.to_be_bytes()[..], &version.to_be_bytes()];
    [words.concat(), parameters.into_bytes()].concat()
}

/// The first byte that a service answers to the first words of a client. So short that many at once cost nothing.
async fn answer(port: u16, greeting: &[u8]) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(greeting).await?;
    stream.read_u8().await
}

/// Progress.
fn told(what: &str, took: Duration) -> Duration {
    eprintln!("times: {what}: {} ms", took.as_millis());
    took
}

/// Jobs of one task that does nothing, all the time, so that a worker that consumes has something to begin.
struct Stream {
    stop: Arc<AtomicBool>,
    publishing: JoinSet<()>,
}

impl Stream {
    fn start(ground: &Arc<Ground>) -> Self {
        let (stop, mut publishing) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for number in 0..PUBLISHERS {
            let (stopped, url) = (stop.clone(), ground.amqp_url.clone());
            publishing.spawn(async move {
                sleep(Duration::from_millis(10 * number)).await;
                let mut rabbit = Rabbit::new(&url);
                while !stopped.load(Ordering::Relaxed) {
                    let body = Job::of(vec![Act::Nothing]).body(0);
                    let sent = rabbit.publish_once("", QUEUE, &body, BasicProperties::default());
                    // An attempt that the outage left hanging must not keep the harness away when the broker is back.
                    if timeout(Duration::from_millis(300), sent).await.is_err() {
                        rabbit = Rabbit::new(&url);
                    }
                    sleep(Duration::from_millis(40)).await;
                }
            });
        }
        Self { stop, publishing }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.publishing.join_all().await;
    }
}
