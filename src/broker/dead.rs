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
    types::{DeliveryTag, FieldTable, ShortString},
};
use tokio::time::{Instant, sleep};

use super::{
    Address, BrokerError, Identity, Letter, Parked, Place, Publisher, QueueState, Topology,
    connect::{Link, Trouble, answer},
    letter::header,
};

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
