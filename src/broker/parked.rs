//! One message of the dead queue, as people read it: whose it is, why it is parked, and what is in it.

use std::time::Duration;

use lapin::types::{AMQPValue, DeliveryTag, FieldTable};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Delivery, delivery::integer, letter::header};
use crate::job::JobId;

/// The digits of a message's hash that people see: enough to tell any two messages of a queue apart.
const HASH_DIGITS: usize = 12;

/// One message of the dead queue.
#[derive(Debug)]
pub struct Parked {
    pub(super) delivery: Delivery,
    pub(super) tag: DeliveryTag,
    hash: String,
}

impl Parked {
    pub(super) fn of(delivery: lapin::message::Delivery) -> Self {
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
    pub(super) fn returned(&self) -> i64 {
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
