//! What the dead queue holds, for people: looked at message by message, given back as it was, or taken away one by one.
//!
//! To look is to take without acknowledging (`basic.get`). Whatever was taken and not taken away goes back to its place with
//! [`DeadQueue::close`], in the order in which it came. When this process dies first, the broker puts it back by itself.
//! Meanwhile nobody else sees these messages, so people's reading is no time to hold them: look, close, then tell.
//!
//! **Nothing is counted to death.** A quorum queue counts how often each message came back, and takes it away at its limit;
//! RabbitMQ 4 has a limit of 20 where a queue names none, and no dead letter exchange follows the dead queue. Ours has a limit
//! that nobody reaches by looking (`topology`). Where the queue is another's, or this user may not compare its arguments, a
//! message that came back [`WORN`] times is replaced by a copy whose count begins anew: confirmed first, then the worn one is
//! acknowledged. It then stands last in the queue.
//!
//! | a crash | means |
//! |---|---|
//! | while messages are held | the broker puts them back, possibly in another order |
//! | between a confirm and its acknowledgement | the message is there twice |

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    Channel,
    options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::{AMQPValue, DeliveryTag, FieldTable, ShortString},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{
    Address, BrokerError, Delivery, Identity, Letter, Place, Publisher, QueueState, Topology,
    connect::{Link, Trouble, answer},
    delivery::integer,
    letter::header,
};
use crate::job::JobId;

/// How often a message may have come back before it is replaced, where the queue's own limit is not known to be ours. Half of
/// the broker's default.
const WORN: i64 = 10;
/// How many messages are given back together. A broker with more of them on their way to the queue's log (32) sends the rest on
/// in any order.
const TOGETHER: usize = 16;
/// How many more messages are taken so that the order stays.
const MOST_BESIDE: u32 = 10_000;
/// How long the broker has for each such group.
const PUT_BACK: Duration = Duration::from_secs(2);
/// The pause between two looks whether it is done.
const LOOK: Duration = Duration::from_millis(2);
/// How long is waited where this user may not look.
const BLIND: Duration = Duration::from_millis(20);
/// The digits of a message's hash that people see: enough to tell any two messages of a queue apart.
const HASH_DIGITS: usize = 12;

/// The dead queue of one work queue, as one pass from its oldest message on.
pub struct DeadQueue {
    link: Link,
    channel: Channel,
    topology: Topology,
    address: Address,
    identity: Identity,
    /// The queue is as we make it, with a limit that is no danger.
    lasting: bool,
    /// Makes copies of worn messages; connected when the first one is met.
    renewing: Option<Publisher>,
    taken: u32,
    /// The last one that was taken had come back before.
    among_returned: bool,
    /// Taken, and neither acknowledged nor given back.
    held: BTreeSet<DeliveryTag>,
    /// How many messages there were when the first was taken; what is parked meanwhile is not looked at.
    most: Option<u32>,
}

/// One message of the dead queue.
#[derive(Debug)]
pub struct Parked {
    delivery: Delivery,
    tag: DeliveryTag,
    hash: String,
}

impl DeadQueue {
    /// Connects, and looks whether the queue is there.
    ///
    /// # Errors
    /// `Missing` when there is no such queue, `Refused` or `Unreachable` when there is no connection.
    pub async fn open(
        address: &Address,
        topology: &Topology,
        identity: &Identity,
    ) -> Result<Self, BrokerError> {
        let link = Link::open(address, identity, "dead queue").await?;
        let lasting = match topology.find_on(&link, Place::Dead).await? {
            QueueState::Right { .. } => true,
            QueueState::Wrong(missing @ BrokerError::Missing { .. }) => return Err(missing),
            // From RabbitMQ 4.3 on, who may not make a queue may not look for it either, but may take from it.
            QueueState::Unproven { .. } | QueueState::Wrong(_) => false,
        };
        Ok(Self {
            channel: link.channel().await?,
            link,
            topology: topology.clone(),
            address: address.clone(),
            identity: identity.clone(),
            lasting,
            renewing: None,
            taken: 0,
            among_returned: false,
            held: BTreeSet::new(),
            most: None,
        })
    }

    /// The queue's name.
    pub fn name(&self) -> String {
        self.topology.name(Place::Dead)
    }

    /// The next message; none after the last of those that were there at the first call.
    ///
    /// # Errors
    /// `Denied` when the user may not read the queue, `Unreachable` when the connection breaks. What was taken goes back.
    pub async fn next(&mut self) -> Result<Option<Parked>, BrokerError> {
        while let Some(parked) = self.take().await? {
            if self.lasting || parked.returned() < WORN {
                return Ok(Some(parked));
            }
            // Its copy stands behind the others, and is looked at in its turn.
            self.renew(&parked).await?;
            self.most = self.most.map(|most| most.saturating_add(1));
        }
        Ok(None)
    }

    /// Takes one message, of those that were there at the first look.
    async fn take(&mut self) -> Result<Option<Parked>, BrokerError> {
        if self.most.is_some_and(|most| self.taken >= most) {
            return Ok(None);
        }
        // A name that does not fit was refused when the topology was made.
        let name = ShortString::try_new(self.name()).unwrap_or_default();
        let got = answer(self.channel.basic_get(name, BasicGetOptions::default()));
        let Some(got) = got.await.map_err(|trouble| self.trouble(trouble))? else {
            return Ok(None);
        };
        self.most.get_or_insert(got.message_count.saturating_add(1));
        self.taken += 1;
        let parked = Parked::of(got.delivery);
        self.held.insert(parked.tag);
        self.among_returned = parked.delivery.redelivered();
        Ok(Some(parked))
    }

    /// How many messages lie behind those that were looked at, of those that were there at the first look. Ask before
    /// [`close`](Self::close).
    pub fn left(&self) -> u32 {
        self.most.unwrap_or_default().saturating_sub(self.taken)
    }

    /// Takes a message away for good.
    ///
    /// # Errors
    /// `Unreachable` when the connection is gone; the message is then still there.
    pub async fn take_away(&mut self, parked: Parked) -> Result<(), BrokerError> {
        self.acknowledge(parked.tag).await
    }

    /// Gives back everything that was not taken away, in the order in which it came, and says goodbye.
    ///
    /// # Errors
    /// `Unreachable` when the connection broke: everything is back, and what was taken away last may be, too.
    pub async fn close(mut self) -> Result<(), BrokerError> {
        let closed = self.put_back().await;
        if let Some(renewing) = &self.renewing {
            renewing.close().await;
        }
        let closed = match closed {
            // Its answer tells that everything before was read.
            Ok(()) => answer(self.channel.close(200, "goodbye".into()))
                .await
                .map_err(|trouble| self.trouble(trouble)),
            failed => failed,
        };
        self.link.close().await;
        closed
    }

    async fn put_back(&mut self) -> Result<(), BrokerError> {
        // What comes back goes behind all that came back before, and is delivered before everything else. So a part of
        // those would be put behind the others, unless all of them go round.
        for _ in 0..MOST_BESIDE {
            if !self.among_returned || self.next().await?.is_none() {
                break;
            }
        }
        let held: Vec<_> = std::mem::take(&mut self.held).into_iter().collect();
        if held.is_empty() {
            return Ok(());
        }
        let looking = self.link.channel().await?;
        let before = self.ready(&looking).await;
        let mut back = 0;
        for group in held.chunks(TOGETHER) {
            let Some(last) = group.last() else { continue };
            // A `nack` and not a `reject`: from RabbitMQ 4.3 on it does not count towards the delivery limit.
            let up_to = BasicNackOptions {
                requeue: true,
                multiple: true,
            };
            answer(self.channel.basic_nack(*last, up_to))
                .await
                .map_err(|trouble| self.trouble(trouble))?;
            back += group.len() as u32;
            let Some(before) = before else {
                sleep(BLIND).await;
                continue;
            };
            let deadline = Instant::now() + PUT_BACK;
            while let Some(ready) = self.ready(&looking).await
                && ready < before.saturating_add(back)
                && Instant::now() < deadline
            {
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// How many messages wait in the queue; nothing where this user may not ask.
    async fn ready(&self, channel: &Channel) -> Option<u32> {
        let name = ShortString::try_new(self.name()).unwrap_or_default();
        let passive = QueueDeclareOptions::durable().passive();
        let found = channel.queue_declare(name, passive, FieldTable::default());
        answer(found).await.ok().map(|queue| queue.message_count())
    }

    async fn acknowledge(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let gone = self.channel.basic_ack(tag, BasicAckOptions::default());
        answer(gone)
            .await
            .map_err(|trouble| self.trouble(trouble))?;
        self.held.remove(&tag);
        Ok(())
    }

    /// Replaces a message that came back so often that the queue might take it away.
    async fn renew(&mut self, parked: &Parked) -> Result<(), BrokerError> {
        let mut letter = Letter::parked_again(&parked.delivery);
        // The broker's own account does not travel with a copy.
        if parked.delivery.header(header::REASON).is_none()
            && let Some(reason) = parked.reason()
        {
            letter = letter.parked(&reason, "RabbitMQ moved the message here", None, None);
        }
        let publisher = self.renewing.get_or_insert_with(|| {
            let (address, topology) = (self.address.clone(), self.topology.clone());
            Publisher::start(address, topology, self.identity.clone(), 1, false)
        });
        publisher
            .send(&Place::Dead, &letter)
            .await
            .map_err(|error| BrokerError::Mismatch {
                queue: self.topology.name(Place::Dead),
                sentence: format!(
                    "a message in it came back {} times, and nobody knows whether the queue takes it away at the next: {error}",
                    parked.returned()
                ),
                remedy: "Look no further before the queue has an `x-delivery-limit` as `cliquet topology declare` makes it; move the messages on in RabbitMQ's dashboard".into(),
            })?;
        self.acknowledge(parked.tag).await
    }

    fn trouble(&self, trouble: Trouble) -> BrokerError {
        self.link.queue_trouble(
            &self.name(),
            || "See what it is in RabbitMQ's dashboard".into(),
            trouble,
        )
    }
}

impl Parked {
    fn of(delivery: lapin::message::Delivery) -> Self {
        let tag = delivery.delivery_tag;
        let delivery = Delivery::of(delivery, &Default::default());
        // Jobs whose id is a property may have the very same body.
        let named = delivery.message_id().unwrap_or_default();
        let hash = Sha256::new()
            .chain_update(delivery.body())
            .chain_update(named);
        let hash: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            hash: hash[..HASH_DIGITS].to_owned(),
            delivery,
            tag,
        }
    }

    /// The message itself.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The job it says it is of: the `id` of a body that is a job's, or else the property `message_id`, if it is an id.
    pub fn job(&self) -> Option<JobId> {
        #[derive(serde::Deserialize)]
        struct Named {
            id: JobId,
        }
        let named = serde_json::from_slice::<Named>(self.delivery.body()).ok();
        named
            .map(|named| named.id)
            .or_else(|| self.delivery.message_id()?.parse().ok())
    }

    /// The first digits of the SHA-256 of its body, and of the property `message_id` if it has one: names a message without an
    /// id, and tells messages of one id apart.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Why it is parked, as a code: ours, or the broker's when it was the broker that moved it here (`delivery_limit`).
    pub fn reason(&self) -> Option<String> {
        let ours = self.delivery.header(header::REASON).map(str::to_owned);
        ours.or_else(|| self.of_death("reason"))
    }

    /// Why it is parked, as a sentence.
    pub fn error(&self) -> Option<&str> {
        self.delivery.header(header::ERROR)
    }

    /// The task at which its job was given up.
    pub fn task(&self) -> Option<&str> {
        self.delivery.header(header::TASK)
    }

    /// The attempts that this task had.
    pub fn attempts(&self) -> Option<i64> {
        let headers = self.delivery.properties().headers().as_ref()?;
        headers.inner().get(header::ATTEMPTS)?;
        integer(headers, header::ATTEMPTS, i64::MAX).ok()
    }

    /// When it was parked (RFC 3339), by the clock of the worker or of the broker that did it.
    pub fn parked_at(&self) -> Option<String> {
        let ours = self.delivery.header(header::PARKED_AT).map(str::to_owned);
        ours.or_else(|| self.of_death("time"))
    }

    /// Its headers, as JSON has them.
    pub fn headers(&self) -> Map<String, Value> {
        let headers = self.delivery.properties().headers().as_ref();
        headers.map(object).unwrap_or_default()
    }

    /// Its other properties, by the names that AMQP has for them.
    pub fn properties(&self) -> Vec<(&'static str, String)> {
        let properties = self.delivery.properties();
        let mut found = Vec::new();
        macro_rules! add {
            ($($name:literal => $get:ident),+ $(,)?) => {
                $(if let Some(value) = properties.$get() { found.push(($name, value.to_string())); })+
            };
        }
        add!(
            "message_id" => message_id, "type" => kind, "content_type" => content_type,
            "content_encoding" => content_encoding, "timestamp" => timestamp, "app_id" => app_id,
            "correlation_id" => correlation_id, "reply_to" => reply_to, "user_id" => user_id,
            "priority" => priority, "expiration" => expiration, "delivery_mode" => delivery_mode,
        );
        found
    }

    /// How often it came back to its queue, as far as the broker tells.
    fn returned(&self) -> i64 {
        let headers = self.delivery.properties().headers().as_ref();
        let count = headers.map(|headers| integer(headers, "x-delivery-count", i64::MAX));
        count.and_then(Result::ok).unwrap_or_default()
    }

    /// A field of the broker's own account of how it moved the message.
    fn of_death(&self, field: &str) -> Option<String> {
        let headers = self.delivery.properties().headers().as_ref()?;
        let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else {
            return None;
        };
        let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else {
            return None;
        };
        match last.inner().get(field)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::Timestamp(seconds) => {
                let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))?;
                Some(humantime::format_rfc3339_seconds(time).to_string())
            }
            _ => None,
        }
    }
}

fn object(table: &FieldTable) -> Map<String, Value> {
    let entries = table.inner().iter();
    entries
        .map(|(name, value)| (name.to_string(), as_json(value)))
        .collect()
}

fn as_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Timestamp(number) => json!(number),
        AMQPValue::Float(number) => json!(number),
        AMQPValue::Double(number) => json!(number),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(as_json).collect(),
        AMQPValue::FieldTable(table) => Value::Object(object(table)),
        AMQPValue::DecimalValue(number) => json!(format!("{number:?}")),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use lapin::{BasicProperties, message};

    use super::*;

    fn parked(body: &[u8], properties: BasicProperties) -> Parked {
        let mut mock = message::Delivery::mock(1, "".into(), "jobs".into(), false, body.to_vec());
        mock.properties = properties;
        Parked::of(mock)
    }

    #[test]
    fn a_message_is_named_by_its_job_and_by_its_body() {
        const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";
        let none = BasicProperties::default();
        let property = none.clone().with_message_id(ID.into());
        let id = |body: &str, properties: &BasicProperties| {
            let job = parked(body.as_bytes(), properties.clone()).job();
            job.map(|job| job.to_string())
        };
        assert_eq!(id("nonsense", &none), None);
        assert_eq!(id("nonsense", &property).as_deref(), Some(ID));
        let other = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b12";
        let body = format!(r#"{{"id": "{other}"}}"#);
        assert_eq!(id(&body, &property).as_deref(), Some(other));
        assert_eq!(parked(b"", none.clone()).hash(), "e3b0c44298fc");
        let hash = |body: &[u8], properties: &BasicProperties| {
            parked(body, properties.clone()).hash().to_owned()
        };
        assert_eq!(hash(b"a", &none), hash(b"a", &none));
        assert_ne!(hash(b"a", &none), hash(b"b", &none));
        assert_ne!(hash(b"a", &none), hash(b"a", &property));
    }

    #[test]
    fn what_the_broker_moved_here_says_so_in_the_brokers_words() {
        let mut death = FieldTable::default();
        death.insert(
            "reason".into(),
            AMQPValue::LongString("delivery_limit".into()),
        );
        death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
        let mut headers = FieldTable::default();
        let deaths = vec![AMQPValue::FieldTable(death)];
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(12));
        let moved = parked(b"{}", BasicProperties::default().with_headers(headers));
        assert_eq!(moved.reason().as_deref(), Some("delivery_limit"));
        assert_eq!(moved.parked_at().as_deref(), Some("2023-11-14T22:13:20Z"));
        assert_eq!(moved.returned(), 12);
        assert_eq!(moved.headers()["x-death"][0]["reason"], "delivery_limit");
    }
}
