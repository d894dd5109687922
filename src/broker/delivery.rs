//! One message at this worker: its body, its marks, and the two ways to settle it.

use std::sync::Arc;

use lapin::{
    Acker, BasicProperties, message,
    options::BasicNackOptions,
    types::{AMQPValue, DeliveryTag, FieldTable},
};
use tracing::debug;

use super::{
    connect::{Trouble, answer, cut},
    letter::{as_text, header},
    settling::Settling,
};
use crate::{
    fail_point::cut,
    job::{BadMessage, Generation},
};

/// One arrival of a message at this worker; settle it exactly once.
///
/// It is tied to the connection it came over: once that is gone the broker delivers the message again, and settling this
/// one answers [`Settled::Lost`]. Dropping it settles nothing.
#[derive(Debug)]
pub struct Delivery {
    body: Arc<Vec<u8>>,
    properties: BasicProperties,
    redelivered: bool,
    tag: DeliveryTag,
    acker: Acker,
    /// Shared with all deliveries of its channel.
    settling: Arc<Settling>,
}

/// What our own headers of a message say. A publisher's message has none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The generation of the copy (`cliquet-generation`).
    pub generation: Generation,
    /// How often this copy found its job busy (`cliquet-hops`).
    pub hops: u32,
    /// Whether the original of a busy copy was redelivered (`cliquet-redelivered`). The broker's own flag is
    /// [`Delivery::redelivered`].
    pub redelivered: bool,
}

/// How settling ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a delivery that could not be settled comes again"]
pub enum Settled {
    /// The broker was told. It may still lose the news with the connection, and deliver again.
    Done,
    /// The broker could not be told, or this delivery was settled before: it will deliver the message again.
    Lost,
}

impl Delivery {
    /// The message's body, as it came.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The AMQP property `message_id`.
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(|id| id.as_str())
    }

    /// The AMQP property `type`.
    pub fn message_type(&self) -> Option<&str> {
        self.properties.kind().as_ref().map(|kind| kind.as_str())
    }

    /// A header that is UTF-8 text, such as `traceparent`; nothing for one of another type.
    pub fn header(&self, name: &str) -> Option<&str> {
        as_text(self.headers()?.inner().get(name)?)
    }

    /// The broker's flag: this message was delivered before, to anybody. It says nothing about whether it was read.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// What our own headers say; a missing one counts as 0 or false.
    ///
    /// # Errors
    /// `bad_header` for a header of ours that is of another type or out of its range: it was written by hand, and a
    /// wrong generation would be taken for a stale copy.
    pub fn marks(&self) -> Result<Marks, BadMessage> {
        let Some(headers) = self.headers() else {
            return Ok(Marks::default());
        };
        let hops = integer(headers, header::HOPS, u32::MAX.into())?;
        Ok(Marks {
            generation: Generation(integer(headers, header::GENERATION, Generation::MAX.0)?),
            hops: u32::try_from(hops).unwrap_or(u32::MAX),
            redelivered: match headers.inner().get(header::REDELIVERED) {
                None => false,
                Some(AMQPValue::Boolean(flag)) => *flag,
                Some(other) => {
                    return Err(bad_header(
                        header::REDELIVERED,
                        other,
                        "true or false (an AMQP boolean)",
                    ));
                }
            },
        })
    }

    /// Whether the broker can still be told: the connection stands, as far as this side knows, and nothing was settled.
    pub fn is_alive(&self) -> bool {
        self.acker.usable()
    }

    /// Tells the broker that the message is done with. Of several that are ready at the same moment, one writes for all,
    /// and only that one waits until it is written to the connection.
    pub async fn acknowledge(&self) -> Settled {
        settled(
            "acknowledge",
            self.settling.acknowledge(self.tag, &self.acker).await,
        )
    }

    /// Gives the message back to its queue. It is delivered again soon, with the broker's redelivered flag.
    pub async fn requeue(&self) -> Settled {
        // A `nack` and not a `reject`: from RabbitMQ 4.3 on it does not count towards the delivery limit.
        let back = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        cut!(BeforeRequeue);
        let back = answer(self.acker.nack(back)).await;
        cut!(AfterRequeue);
        // Unless it is certain that the broker was told, no frame may cover it.
        if back.is_ok() {
            self.settling.settled(self.tag);
        }
        settled("requeue", back)
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    pub(super) fn shared_body(&self) -> Arc<Vec<u8>> {
        self.body.clone()
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }
}

impl Delivery {
    /// One that came over the channel whose deliveries `settling` counts.
    pub(super) fn of(delivery: message::Delivery, settling: &Arc<Settling>) -> Self {
        let message::Delivery {
            delivery_tag: tag,
            data,
            properties,
            redelivered,
            acker,
            ..
        } = delivery;
        settling.arrived(tag);
        Self {
            body: Arc::new(data),
            properties,
            redelivered,
            tag,
            acker,
            settling: settling.clone(),
        }
    }
}

#[cfg(test)]
impl From<message::Delivery> for Delivery {
    fn from(delivery: message::Delivery) -> Self {
        Self::of(delivery, &Arc::default())
    }
}

fn settled(verb: &'static str, answered: Result<bool, Trouble>) -> Settled {
    match answered {
        Ok(true) => Settled::Done,
        // The client answers so when the delivery's channel is gone; nothing was sent.
        Ok(false) => Settled::Lost,
        Err(trouble) => {
            debug!(
                broker.verb = verb,
                error = trouble.sentence,
                "a delivery could not be settled and will come again"
            );
            Settled::Lost
        }
    }
}

pub(super) fn integer(headers: &FieldTable, name: &str, most: i64) -> Result<i64, BadMessage> {
    let Some(value) = headers.inner().get(name) else {
        return Ok(0);
    };
    // Every client library picks another width.
    let number = match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    };
    match number {
        Some(number) if (0..=most).contains(&number) => Ok(number),
        _ => Err(bad_header(
            name,
            value,
            &format!("an integer from 0 to {most}"),
        )),
    }
}

fn bad_header(name: &str, found: &AMQPValue, expected: &str) -> BadMessage {
    const SHOWN: usize = 80;
    let found = match found {
        AMQPValue::LongString(text) => format!("the text {:?}", cut(&text.to_string(), SHOWN)),
        AMQPValue::ShortString(text) => format!("the text {:?}", cut(text.as_str(), SHOWN)),
        AMQPValue::Boolean(flag) => flag.to_string(),
        AMQPValue::ShortShortInt(number) => number.to_string(),
        AMQPValue::ShortInt(number) => number.to_string(),
        AMQPValue::LongInt(number) => number.to_string(),
        AMQPValue::ShortShortUInt(number) => number.to_string(),
        AMQPValue::ShortUInt(number) => number.to_string(),
        AMQPValue::LongUInt(number) => number.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::Float(number) => number.to_string(),
        AMQPValue::Double(number) => number.to_string(),
        other => format!("of the AMQP type {:?}", other.get_type()),
    };
    BadMessage::new(
        "bad_header",
        format!(
            "the header `{name}` is {found}; expected {expected}. It is cliquet's own: publishers leave it out"
        ),
    )
}

#[cfg(test)]
impl Delivery {
    /// A delivery of no broker, to be told apart by its body: one whose channel lives.
    pub(crate) fn alive(body: &str) -> Self {
        message::Delivery::mock(1, "".into(), "jobs".into(), true, body.into()).into()
    }

    /// One that can no longer be settled.
    pub(crate) async fn lost(body: &str) -> Self {
        let delivery = Self::alive(body);
        let _ = delivery.acknowledge().await;
        assert!(!delivery.is_alive());
        delivery
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::ShortString;

    use super::*;

    fn with(name: &str, value: AMQPValue) -> Delivery {
        let mut headers = FieldTable::default();
        headers.insert(ShortString::from(name), value);
        let mut mock = message::Delivery::mock(1, "".into(), "jobs".into(), true, b"body".to_vec());
        mock.properties = BasicProperties::default().with_headers(headers);
        mock.into()
    }

    #[test]
    fn a_message_without_our_headers_is_generation_0() {
        let mock = message::Delivery::mock(1, "".into(), "jobs".into(), true, b"body".to_vec());
        let delivery = Delivery::from(mock);
        assert_eq!(delivery.marks(), Ok(Marks::default()));
        assert_eq!(delivery.body(), b"body");
        assert!(delivery.redelivered());
        assert_eq!(
            (
                delivery.message_id(),
                delivery.message_type(),
                delivery.header("x")
            ),
            (None, None, None)
        );
    }

    #[test]
    fn every_width_of_an_integer_is_read() {
        for value in [
            AMQPValue::ShortShortInt(7),
            AMQPValue::ShortShortUInt(7),
            AMQPValue::ShortInt(7),
            AMQPValue::ShortUInt(7),
            AMQPValue::LongInt(7),
            AMQPValue::LongUInt(7),
            AMQPValue::LongLongInt(7),
        ] {
            assert_eq!(
                with("cliquet-generation", value.clone())
                    .marks()
                    .unwrap()
                    .generation,
                Generation(7)
            );
            assert_eq!(with("cliquet-hops", value).marks().unwrap().hops, 7);
        }
        assert_eq!(
            with("cliquet-hops", AMQPValue::LongLongInt(u32::MAX.into()))
                .marks()
                .unwrap()
                .hops,
            u32::MAX
        );
        assert!(
            with("cliquet-redelivered", AMQPValue::Boolean(true))
                .marks()
                .unwrap()
                .redelivered
        );
    }

    #[test]
    fn a_header_of_ours_that_is_wrong_is_named_with_what_was_found() {
        for (name, value, words) in [
            (
                "cliquet-generation",
                AMQPValue::LongString("five".into()),
                "is the text \"five\"; expected an integer",
            ),
            (
                "cliquet-generation",
                AMQPValue::LongInt(-1),
                "is -1; expected an integer from 0 to 1000000000",
            ),
            (
                "cliquet-generation",
                AMQPValue::LongLongInt(1_000_000_001),
                "is 1000000001",
            ),
            ("cliquet-generation", AMQPValue::Double(1.5), "is 1.5"),
            (
                "cliquet-generation",
                AMQPValue::Timestamp(1),
                "AMQP type Timestamp",
            ),
            ("cliquet-generation", AMQPValue::Void, "AMQP type Void"),
            (
                "cliquet-hops",
                AMQPValue::LongLongInt(1 << 32),
                "is 4294967296",
            ),
            (
                "cliquet-hops",
                AMQPValue::FieldArray(vec![].into()),
                "AMQP type FieldArray",
            ),
            (
                "cliquet-redelivered",
                AMQPValue::LongInt(1),
                "is 1; expected true or false",
            ),
            (
                "cliquet-redelivered",
                AMQPValue::LongString(vec![0, 255].into()),
                "the text",
            ),
        ] {
            let bad = with(name, value).marks().unwrap_err();
            assert_eq!(bad.reason, "bad_header");
            assert!(
                bad.sentence.contains(name) && bad.sentence.contains(words),
                "{}",
                bad.sentence
            );
        }
        let long = with(
            "cliquet-hops",
            AMQPValue::LongString("é".repeat(10_000).into()),
        )
        .marks()
        .unwrap_err();
        assert!(long.sentence.len() < 300, "{}", long.sentence);
    }
}
