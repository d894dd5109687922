//! Every queue, its role and its arguments: what the broker must look like, told in one place.
//!
//! | queue | role | arguments beside `x-queue-type=quorum` and an `x-delivery-limit` |
//! |---|---|---|
//! | `jobs` | work: publishers send here, workers take from here | dead-letters to `jobs.dead`, at-least-once, reject-publish |
//! | `jobs.delay.00005s` … | one rung of the ladder: a message waits for that long and returns to `jobs` | `x-message-ttl`, dead-letters to `jobs`, at-least-once, reject-publish |
//! | `jobs.dead` | parked: given up or unreadable; read by people | none |
//!
//! All are durable and bound to the default exchange alone, so a queue's name is its address.
//!
//! **Why a queue for each delay** and not an expiry for each message: only the head of a queue expires, so a long delay
//! would hold up every shorter one behind it. **Why the delay is in the name**: arguments of a queue cannot be changed,
//! and another name never conflicts; the former rung drains by itself. **Why one hop**: a message that is dead-lettered
//! around a cycle of two is dropped by some versions of the broker. **Why at-least-once**: the default removes a message
//! from its queue before the next has taken it. At-least-once needs `x-overflow=reject-publish`; without it the broker
//! falls back to the default silently.
//!
//! Beside the queues there is one exchange, of the dead queue's name, which nobody publishes to: the *mark*. A broker that
//! does not know it has lost its memory, and the parked copies with it.

use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    ExchangeKind,
    options::{
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Map, Value, json};

use super::{
    Address, BrokerError, Identity,
    connect::{Link, Trouble, answer},
    words::shell_word,
};
use crate::retry::{Ladder, Rung};

/// How often the broker may deliver one message before it moves it to the dead queue.
///
/// Explicit, since the default differs (3.x: never; 4.0 and later: 20), and large, since most returns say nothing
/// about the message: up to 4.2 every hand-over of a worker that is stopped counts. A message that kills its worker is
/// found sooner by the ledger, which counts crashes by task. Not larger, since a message that the client cannot read
/// (a property that is not UTF-8) ends the connection at each delivery, and only this limit takes it away. Never -1 for "without limit": RabbitMQ 3.10 takes it and
/// drops the message at its first return.
const DELIVERY_LIMIT: u32 = 1_000;
/// How often people may look at one message in a delay queue or the dead queue.
///
/// In the dashboard, to look is to take a message and to return it, and up to 4.2 every return counts. With the default
/// of 4.0 and later, a parked message was dropped at the 21st, and a delayed one came back too early.
const LOOKS: u32 = 1_000_000;
/// The longest name of a queue in bytes: AMQP counts its length in one byte.
const LONGEST_NAME: usize = 255;
/// How many queues are declared at the same time. Each is a Raft group that the broker has to start.
const DECLARED_AT_ONCE: usize = 8;

/// Where a letter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The work queue.
    Work,
    /// A delay queue: back in the work queue after the rung's delay.
    Rung(Rung),
    /// The dead queue, which people read.
    Dead,
}

/// One queue as it must be. It is durable; everything else is here.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSpec {
    /// What it is to us.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence for people.
    pub role: String,
    /// Its arguments: texts and whole numbers.
    pub arguments: Map<String, Value>,
}

/// How a queue was found; see [`Topology::inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// As it must be.
    Right {
        /// Messages that wait in it; those at a worker are not counted.
        ready: u32,
        /// Consumers of it.
        consumers: u32,
    },
    /// There; its arguments cannot be compared, since this user may not declare queues.
    Unproven {
        /// Messages that wait in it; those at a worker are not counted.
        ready: u32,
        /// Consumers of it.
        consumers: u32,
    },
    /// Not there, or not as it must be; the error says what to do.
    Wrong(BrokerError),
}

/// All queues that belong to one work queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    queue: String,
    ladder: Ladder,
}

impl Topology {
    /// The topology around the work queue `queue`.
    ///
    /// # Errors
    /// A sentence, when the name is empty, has a control character or white space at an end, begins with `amq.` (which
    /// the broker reserves), or is so long that the name of a delay queue would not fit AMQP's 255 bytes.
    pub fn new(queue: &str, ladder: Ladder) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("the queue name {queue:?} {what}"));
        if queue.is_empty() {
            return wrong("is empty");
        }
        if queue.chars().any(char::is_control) || queue.trim() != queue {
            return wrong("has a control character, or white space at an end");
        }
        if queue.starts_with("amq.") {
            return wrong("begins with `amq.`, which RabbitMQ reserves for itself");
        }
        let topology = Self {
            queue: queue.to_owned(),
            ladder,
        };
        let longest = topology
            .places()
            .into_iter()
            .map(|place| topology.name(place).len())
            .max()
            .unwrap_or(0);
        if longest > LONGEST_NAME {
            return Err(format!(
                "the queue name has {} bytes and the name of a delay queue made from it {longest}; the limit is {LONGEST_NAME}, so shorten it by {}",
                queue.len(),
                longest - LONGEST_NAME
            ));
        }
        Ok(topology)
    }

    /// The delays.
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// The name of the queue at a place: `jobs`, `jobs.delay.00005s`, `jobs.dead`.
    pub fn name(&self, place: Place) -> String {
        match place {
            Place::Work => self.queue.clone(),
            Place::Rung(rung) => format!("{}.delay.{}", self.queue, rung.label()),
            Place::Dead => format!("{}.dead", self.queue),
        }
    }

    /// The work queue, the rungs from the shortest on, and the dead queue.
    pub fn places(&self) -> Vec<Place> {
        let rungs = self.ladder.rungs().iter().copied().map(Place::Rung);
        std::iter::once(Place::Work)
            .chain(rungs)
            .chain([Place::Dead])
            .collect()
    }

    /// Every queue, in the order of [`places`](Self::places).
    pub fn queues(&self) -> Vec<QueueSpec> {
        self.places()
            .into_iter()
            .map(|place| self.queue(place))
            .collect()
    }

    fn queue(&self, place: Place) -> QueueSpec {
        let work = self.name(Place::Work);
        let (role, arguments) = match place {
            Place::Work => (
                "Work: publishers send jobs here, and workers take them from here.".to_owned(),
                json!({
                    "x-queue-type": "quorum",
                    "x-delivery-limit": DELIVERY_LIMIT,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": self.name(Place::Dead),
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                }),
            ),
            Place::Rung(rung) => (
                format!(
                    "Delay: a message waits here for {} and returns to `{work}`.",
                    humantime::format_duration(rung.delay())
                ),
                json!({
                    "x-queue-type": "quorum",
                    "x-delivery-limit": LOOKS,
                    "x-message-ttl": rung.delay().as_millis() as u64,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": work,
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                }),
            ),
            Place::Dead => (
                format!(
                    "Parked: jobs of `{work}` that were given up or could not be read; for people."
                ),
                json!({ "x-queue-type": "quorum", "x-delivery-limit": LOOKS }),
            ),
        };
        let arguments = match arguments {
            Value::Object(arguments) => arguments,
            _ => Map::new(),
        };
        QueueSpec {
            place,
            name: self.name(place),
            role,
            arguments,
        }
    }

    /// What [`declare`](Self::declare) makes, as definitions for `rabbitmqctl import_definitions` or the broker's own
    /// `definitions.local.path`: the queues in the virtual host `vhost` and nothing else. The virtual host must exist.
    pub fn definitions(&self, vhost: &str) -> Value {
        let queues: Vec<_> = self
            .queues()
            .into_iter()
            .map(|QueueSpec { name, arguments, .. }| {
                json!({ "name": name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments })
            })
            .collect();
        json!({ "queues": queues })
    }

    /// Makes every queue that is not there yet. What is there stays, so it may be called at any time.
    ///
    /// # Errors
    /// `Mismatch` for a queue that exists with other arguments, `Denied` for one that the user may not declare,
    /// `Refused` or `Unreachable` when there is no connection.
    pub async fn declare(&self, address: &Address, identity: &Identity) -> Result<(), BrokerError> {
        let link = Link::open(address, identity, "declare").await?;
        let declared = self.declare_on(&link).await;
        link.close().await;
        declared
    }

    /// Deletes every queue, with whatever is in it, and the mark. One that is not there is no error.
    ///
    /// # Errors
    /// `Denied` for one that the user may not delete, `Refused` or `Unreachable` when there is no connection.
    pub async fn delete(&self, address: &Address, identity: &Identity) -> Result<(), BrokerError> {
        let link = Link::open(address, identity, "delete").await?;
        let deleted: Result<(), _> = stream::iter(self.queues())
            .map(|queue| delete_one(&link, queue))
            .buffered(DECLARED_AT_ONCE)
            .try_collect()
            .await;
        let unmarked = self.unmark_on(&link).await;
        link.close().await;
        deleted.and(unmarked)
    }

    /// Looks at every queue and changes none: is it there, is it as it must be, how many messages wait in it? In the
    /// order of [`places`](Self::places).
    ///
    /// # Errors
    /// `Refused` or `Unreachable` when there is no connection, or it breaks.
    pub async fn inspect(
        &self,
        address: &Address,
        identity: &Identity,
    ) -> Result<Vec<(QueueSpec, QueueState)>, BrokerError> {
        let link = Link::open(address, identity, "inspect").await?;
        let found = self.inspect_on(&link).await;
        link.close().await;
        found
    }

    /// As [`inspect`](Self::inspect), on an open connection.
    pub(super) async fn inspect_on(
        &self,
        link: &Link,
    ) -> Result<Vec<(QueueSpec, QueueState)>, BrokerError> {
        stream::iter(self.queues())
            .map(|queue| inspect_one(link, queue))
            .buffered(DECLARED_AT_ONCE)
            .try_collect()
            .await
    }

    /// How the queue at `place` is found, on an open connection.
    pub(super) async fn find_on(
        &self,
        link: &Link,
        place: Place,
    ) -> Result<QueueState, BrokerError> {
        let (_, state) = inspect_one(link, self.queue(place)).await?;
        Ok(state)
    }

    /// As [`declare`](Self::declare), on an open connection.
    pub(super) async fn declare_on(&self, link: &Link) -> Result<(), BrokerError> {
        stream::iter(self.queues())
            .map(|queue| async move { declare_one(link, &queue, Declare::Make).await.map(|_| ()) })
            .buffered(DECLARED_AT_ONCE)
            .try_collect()
            .await
    }

    /// Whether every queue is there, whatever its arguments, on an open connection: all that may be asked of a broker
    /// whose queues somebody else looks after.
    pub(super) async fn verify_on(&self, link: &Link) -> Result<(), BrokerError> {
        stream::iter(self.queues())
            .map(|queue| async move { declare_one(link, &queue, Declare::Find).await.map(|_| ()) })
            .buffered(DECLARED_AT_ONCE)
            .try_collect()
            .await
    }

    /// Place, name, messages that wait and consumers of each queue that is there, on an open connection.
    pub(super) async fn depths_on(
        &self,
        link: &Link,
    ) -> Result<Vec<(Place, String, u32, u32)>, BrokerError> {
        let found: Vec<_> = stream::iter(self.queues())
            .map(|queue| async move {
                match declare_one(link, &queue, Declare::Find).await {
                    Ok((ready, consumers)) => Ok(Some((queue.place, queue.name, ready, consumers))),
                    Err(BrokerError::Missing { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(DECLARED_AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Whether the mark is there.
    pub(super) async fn is_marked_on(&self, link: &Link) -> Result<bool, BrokerError> {
        match self.declare_mark(link, Declare::Find).await? {
            Ok(()) => Ok(true),
            Err(Trouble {
                code: Some(404), ..
            }) => Ok(false),
            Err(trouble) => Err(self.mark_trouble(link, trouble)),
        }
    }

    /// Leaves the mark.
    pub(super) async fn mark_on(&self, link: &Link) -> Result<(), BrokerError> {
        let made = self.declare_mark(link, Declare::Make).await?;
        made.map_err(|trouble| self.mark_trouble(link, trouble))
    }

    async fn unmark_on(&self, link: &Link) -> Result<(), BrokerError> {
        let channel = link.channel().await?;
        let deleted = channel.exchange_delete(self.mark(), ExchangeDeleteOptions::default());
        let deleted = answer(deleted).await;
        deleted.map_err(|trouble| self.mark_trouble(link, trouble))
    }

    async fn declare_mark(
        &self,
        link: &Link,
        how: Declare,
    ) -> Result<Result<(), Trouble>, BrokerError> {
        let options = ExchangeDeclareOptions {
            passive: how == Declare::Find,
            durable: true,
            internal: true,
            ..ExchangeDeclareOptions::default()
        };
        // On a channel of its own, as with queues.
        let channel = link.channel().await?;
        let (mark, nothing) = (self.mark(), FieldTable::default());
        let declared = channel.exchange_declare(mark, ExchangeKind::Fanout, options, nothing);
        Ok(answer(declared).await)
    }

    /// A name that the user may declare in any case.
    fn mark(&self) -> ShortString {
        // One that does not fit was refused when the topology was made.
        ShortString::try_new(self.name(Place::Dead)).unwrap_or_default()
    }

    fn mark_trouble(&self, link: &Link, trouble: Trouble) -> BrokerError {
        let name = self.name(Place::Dead);
        let remedy = || {
            format!(
                "It is the exchange of that name: delete it, if it is nobody's (`rabbitmqadmin --vhost={} delete exchange name={}`)",
                shell_word(link.vhost()),
                shell_word(&name)
            )
        };
        link.queue_trouble(&name, remedy, trouble)
    }

    /// Messages that wait in the queue at `place`, on an open connection.
    pub(super) async fn depth_on(&self, link: &Link, place: Place) -> Result<u32, BrokerError> {
        let (ready, _) = declare_one(link, &self.queue(place), Declare::Find).await?;
        Ok(ready)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Declare {
    /// Make it unless it is there; a refusal when it is there with other arguments.
    Make,
    /// Only find it ("passive"); its arguments are not compared.
    Find,
}

/// Declares one queue and answers with its ready messages and its consumers. On a channel of its own, since a refusal
/// closes the channel; it is closed when it goes out of scope.
async fn declare_one(
    link: &Link,
    queue: &QueueSpec,
    how: Declare,
) -> Result<(u32, u32), BrokerError> {
    let trouble =
        |trouble| link.queue_trouble(&queue.name, || remedy(queue, link.vhost()), trouble);
    let name =
        ShortString::try_new(queue.name.as_str()).map_err(|error| BrokerError::Mismatch {
            queue: queue.name.clone(),
            sentence: error.to_string(),
            remedy: "Give the work queue a shorter name".into(),
        })?;
    let channel = link.channel().await?;
    let options = QueueDeclareOptions {
        passive: how == Declare::Find,
        ..QueueDeclareOptions::durable()
    };
    let declared = answer(channel.queue_declare(name, options, field_table(&queue.arguments)))
        .await
        .map_err(trouble)?;
    Ok((declared.message_count(), declared.consumer_count()))
}

async fn delete_one(link: &Link, queue: QueueSpec) -> Result<(), BrokerError> {
    let trouble =
        |trouble| link.queue_trouble(&queue.name, || remedy(&queue, link.vhost()), trouble);
    let channel = link.channel().await?;
    // A name that does not fit was refused when the topology was made.
    let name = ShortString::try_new(queue.name.as_str()).unwrap_or_default();
    answer(channel.queue_delete(name, QueueDeleteOptions::default()))
        .await
        .map(|_| ())
        .map_err(trouble)
}

/// Finding does not compare arguments and declaring does, so a queue that was found is declared as it must be: the
/// broker then changes nothing and tells what differs.
async fn inspect_one(
    link: &Link,
    queue: QueueSpec,
) -> Result<(QueueSpec, QueueState), BrokerError> {
    let mut found = declare_one(link, &queue, Declare::Find).await;
    if let Ok((ready, consumers)) = found {
        found = declare_one(link, &queue, Declare::Make).await;
        if let Err(BrokerError::Denied { .. }) = found {
            return Ok((queue, QueueState::Unproven { ready, consumers }));
        }
    }
    match found {
        Ok((ready, consumers)) => Ok((queue, QueueState::Right { ready, consumers })),
        Err(error) if error.waiting_helps() => Err(error),
        Err(error) => Ok((queue, QueueState::Wrong(error))),
    }
}

fn remedy(queue: &QueueSpec, vhost: &str) -> String {
    // Not with --if-empty, which RabbitMQ does not know of quorum queues (and ends with the status 0 all the same).
    let (name, vhost) = (shell_word(&queue.name), shell_word(vhost));
    let delete = format!(
        "Once it is empty (`rabbitmqctl list_queues -p {vhost} name messages` tells), delete it (`rabbitmqctl delete_queue -p {vhost} {name}`) and start again, or give the work queue another name"
    );
    match queue.place {
        Place::Work | Place::Dead => {
            format!("{delete}; to use it as it is, switch declaring queues off")
        }
        // Its name says what it is; with another delay or another way back, messages would be late or lost.
        Place::Rung(_) => delete,
    }
}

fn field_table(arguments: &Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        let value = match value {
            Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            number => AMQPValue::LongLongInt(number.as_i64().unwrap_or_default()),
        };
        table.insert(key.as_str().into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn topology(queue: &str) -> Topology {
        Topology::new(queue, Ladder::default()).unwrap()
    }

    #[test]
    fn names_say_what_a_queue_is_and_sort_as_delays_do() {
        let names: Vec<_> = topology("jobs")
            .queues()
            .into_iter()
            .map(|queue| queue.name)
            .collect();
        assert_eq!(names[0], "jobs");
        assert_eq!(names[1], "jobs.delay.00000s200ms");
        assert_eq!(names[21], "jobs.delay.00600s");
        assert_eq!(names[22], "jobs.dead");
        assert!(names[1..22].is_sorted());
    }

    #[test]
    fn every_queue_that_dead_letters_does_so_at_least_once_and_one_hop_far() {
        for queue in topology("jobs").queues() {
            let argument = |key: &str| queue.arguments.get(key).cloned().unwrap_or_default();
            assert_eq!(argument("x-queue-type"), "quorum", "{}", queue.name);
            assert!(
                argument("x-delivery-limit")
                    .as_u64()
                    .is_some_and(|limit| limit >= 1_000),
                "{}",
                queue.name
            );
            let target = match queue.place {
                Place::Work => "jobs.dead",
                Place::Rung(rung) => {
                    assert_eq!(argument("x-message-ttl"), rung.delay().as_millis() as u64);
                    "jobs"
                }
                Place::Dead => {
                    assert_eq!(queue.arguments.len(), 2);
                    continue;
                }
            };
            assert_eq!(argument("x-dead-letter-exchange"), "");
            assert_eq!(argument("x-dead-letter-routing-key"), target);
            assert_eq!(argument("x-dead-letter-strategy"), "at-least-once");
            assert_eq!(argument("x-overflow"), "reject-publish");
        }
    }

    #[test]
    fn definitions_list_every_queue_in_its_virtual_host() {
        let definitions = topology("jobs").definitions("shop");
        let queues = definitions["queues"].as_array().unwrap();
        assert_eq!(queues.len(), 23);
        assert!(
            queues
                .iter()
                .all(|queue| queue["vhost"] == "shop" && queue["durable"] == true)
        );
        assert_eq!(queues[0]["arguments"]["x-delivery-limit"], 1_000);
        assert_eq!(
            definitions.as_object().unwrap().len(),
            1,
            "a virtual host's own settings are not ours to import"
        );
    }

    #[test]
    fn a_name_that_the_broker_would_refuse_is_refused_here() {
        for (name, words) in [
            ("", "is empty"),
            ("jobs\n", "control character"),
            (" jobs", "white space"),
            ("amq.jobs", "reserves"),
        ] {
            let sentence = Topology::new(name, Ladder::default()).unwrap_err();
            assert!(sentence.contains(words), "{name:?}: {sentence}");
        }
    }

    #[test]
    fn a_name_is_as_long_as_its_longest_delay_queue_allows() {
        let ladder = || Ladder::new([Duration::from_millis(1_200)]).unwrap();
        let suffix = ".delay.00001s200ms".len();
        assert!(Topology::new(&"q".repeat(255 - suffix), ladder()).is_ok());
        let sentence = Topology::new(&"q".repeat(256 - suffix), ladder()).unwrap_err();
        assert!(sentence.contains("shorten it by 1"), "{sentence}");
    }
}
