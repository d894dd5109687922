//! What the tests share: where the services are, and queues of one's own that are gone afterwards.

pub mod binary;
pub mod browser;
pub mod collector;
pub mod detour;
pub mod http;
pub mod privileges;
pub mod prometheus;
pub mod services;
pub mod stage;

use std::{path::PathBuf, process::Command, time::Duration};

use cliquet::{
    broker::{Address, Identity, Place, Topology},
    retry::Ladder,
};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::{Instant, sleep};

/// The broker of the tests.
pub fn amqp_url() -> String {
    variable("AMQP_URL")
}

/// The database of the tests.
pub fn database_url() -> String {
    variable("DATABASE_URL")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set, and this test needs the real service: run `deploy/dev test`, or `eval \"$(deploy/dev env)\"` first")
    })
}

/// Repeats a question until it is answered with something, and fails after a minute with the words of what was expected.
pub async fn eventually<T>(what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A port that nobody listens on now. Below those that the kernel gives to clients and those of `deploy/dev`, and at random,
/// so that hardly anybody else takes it before it is used.
pub fn free_port() -> u16 {
    loop {
        let port = 10_000 + (uuid::Uuid::new_v4().as_u128() % 10_000) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What `rabbitmqctl ARGS` prints about the tests' broker: by `deploy/dev rabbitmqctl`, or by the program that
/// `CLIQUET_RABBITMQCTL` names when the broker is not one of deploy/dev's.
pub fn rabbitmqctl(args: &[&str]) -> String {
    let dev = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/dev");
    let mut command = match std::env::var_os("CLIQUET_RABBITMQCTL") {
        Some(program) => Command::new(program),
        None => {
            let mut command = Command::new(dev);
            command.arg("rabbitmqctl");
            command
        }
    };
    let output = command
        .args(args)
        .output()
        .expect("deploy/dev cannot be run");
    assert!(
        output.status.success(),
        "rabbitmqctl {args:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("rabbitmqctl did not answer in UTF-8")
}

/// A topology under a name that no other test has, and a second client that looks at its queues from outside. All of
/// its queues are deleted in the end, also when the test fails.
pub struct Queues {
    pub address: Address,
    pub amqp_url: String,
    pub topology: Topology,
    pub identity: Identity,
    connection: tokio::sync::Mutex<Connection>,
}

impl Queues {
    /// Nothing is declared yet. The ladder is short, so that declaring it is quick: 200 ms and 1 s.
    pub async fn new() -> Self {
        Self::with_ladder(&["200ms", "1s"]).await
    }

    pub async fn with_ladder(delays: &[&str]) -> Self {
        Self::on(&amqp_url(), delays).await
    }

    /// On a broker of one's own.
    pub async fn on(amqp_url: &str, delays: &[&str]) -> Self {
        let ladder =
            Ladder::try_from(delays.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let topology = Topology::new(&format!("t-{}", uuid::Uuid::new_v4()), ladder).unwrap();
        let connection = Connection::connect(amqp_url, ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| {
                panic!("RabbitMQ at AMQP_URL does not answer ({error}): run `deploy/dev up`")
            });
        Self {
            address: Address::parse(amqp_url).unwrap(),
            amqp_url: amqp_url.to_owned(),
            identity: Identity {
                name: topology.name(Place::Work),
            },
            topology,
            connection: connection.into(),
        }
    }

    pub async fn declare(&self) {
        self.topology
            .declare(&self.address, &self.identity)
            .await
            .unwrap();
    }

    /// Leaves the mark that a worker leaves when it first reconciles.
    pub async fn mark(&self) {
        let options = ExchangeDeclareOptions {
            durable: true,
            internal: true,
            ..ExchangeDeclareOptions::default()
        };
        let (mark, nothing) = (self.name(Place::Dead), FieldTable::default());
        let channel = self.channel().await;
        let marked = channel.exchange_declare(mark.into(), ExchangeKind::Fanout, options, nothing);
        marked.await.unwrap();
    }

    /// Takes the mark away, as a broker's lost disk does.
    pub async fn unmark(&self) {
        let mark = self.name(Place::Dead);
        let channel = self.channel().await;
        let unmarked = channel.exchange_delete(mark.into(), ExchangeDeleteOptions::default());
        unmarked.await.unwrap();
    }

    pub fn name(&self, place: Place) -> String {
        self.topology.name(place)
    }

    /// The rung number `index`, from the shortest on.
    pub fn rung(&self, index: usize) -> Place {
        Place::Rung(self.topology.ladder().rungs()[index])
    }

    /// A channel of the test's own; the connection is opened again when the broker was restarted.
    pub async fn channel(&self) -> Channel {
        let mut connection = self.connection.lock().await;
        eventually("a channel to RabbitMQ", async || {
            if let Ok(channel) = connection.create_channel().await {
                return Some(channel);
            }
            *connection = Connection::connect(&self.amqp_url, ConnectionProperties::default())
                .await
                .ok()?;
            None
        })
        .await
    }

    /// Publishes to the work queue as a stranger would.
    pub async fn publish(&self, body: &[u8], properties: BasicProperties) {
        let channel = self.channel().await;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let confirm = channel
            .basic_publish(
                "".into(),
                self.name(Place::Work).into(),
                BasicPublishOptions {
                    mandatory: true,
                    ..Default::default()
                },
                body,
                properties,
            )
            .await
            .unwrap()
            .await
            .unwrap();
        assert_eq!(confirm, Confirmation::Ack(None));
    }

    /// Takes one message out of a queue, waiting for it.
    pub async fn take(&self, place: Place) -> (Vec<u8>, BasicProperties) {
        let (channel, name) = (self.channel().await, self.name(place));
        eventually(&format!("a message in {name}"), || async {
            let got = channel
                .basic_get(name.clone().into(), BasicGetOptions { no_ack: true })
                .await
                .unwrap();
            got.map(|message| (message.delivery.data, message.delivery.properties))
        })
        .await
    }

    /// How many messages wait in a queue.
    pub async fn depth(&self, place: Place) -> u32 {
        let passive = QueueDeclareOptions::durable().passive();
        let queue = self
            .channel()
            .await
            .queue_declare(self.name(place).into(), passive, FieldTable::default())
            .await;
        queue.unwrap().message_count()
    }

    /// Declares a queue under the name of a place, with arguments that are not ours.
    pub async fn declare_otherwise(&self, place: Place, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let declared = self
            .channel()
            .await
            .queue_declare(
                self.name(place).into(),
                QueueDeclareOptions::durable(),
                table,
            )
            .await;
        declared.unwrap();
    }

    pub async fn delete(&self, place: Place) {
        self.channel()
            .await
            .queue_delete(self.name(place).into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }

    pub async fn purge(&self, place: Place) {
        self.channel()
            .await
            .queue_purge(self.name(place).into(), QueuePurgeOptions::default())
            .await
            .unwrap();
    }

    /// Ends the connections whose name has this queue's name (a worker's name here) and `purpose`, as an operator would.
    /// Answers with how many there were.
    pub async fn close_connections(&self, purpose: &str) -> usize {
        let listed = rabbitmqctl(&["-q", "list_connections", "pid", "client_properties"]);
        let ours: Vec<_> = listed
            .lines()
            .filter(|line| {
                line.contains(&self.identity.name) && line.contains(&format!("({purpose})"))
            })
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        for pid in &ours {
            rabbitmqctl(&["close_connection", pid, "closed by a test"]);
        }
        ours.len()
    }
}

impl Drop for Queues {
    /// In a thread and runtime of its own: a test that fails unwinds within a runtime, where nothing can be waited for.
    fn drop(&mut self) {
        let names: Vec<_> = self
            .topology
            .queues()
            .into_iter()
            .map(|queue| queue.name)
            .collect();
        let (amqp_url, mark) = (self.amqp_url.clone(), self.name(Place::Dead));
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let Ok(connection) =
                    Connection::connect(&amqp_url, ConnectionProperties::default()).await
                else {
                    return;
                };
                for name in names {
                    if let Ok(channel) = connection.create_channel().await {
                        let _ = channel
                            .queue_delete(name.into(), QueueDeleteOptions::default())
                            .await;
                    }
                }
                if let Ok(channel) = connection.create_channel().await {
                    let options = ExchangeDeleteOptions::default();
                    let _ = channel.exchange_delete(mark.into(), options).await;
                }
                let _ = connection.close(200, "goodbye".into()).await;
            });
        });
        let _ = cleaning.join();
    }
}
