//! One message to be sent: fresh, or the copy of a delivery.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{Delivery, connect::cut};
use crate::job::Generation;

/// Our own headers, the only ones whose meaning we know.
pub(super) mod header {
    /// Integer: [`Generation`](crate::job::Generation).
    pub const GENERATION: &str = "cliquet-generation";
    /// Integer: how often a copy found its job busy.
    pub const HOPS: &str = "cliquet-hops";
    /// Boolean: whether the original of a busy copy was redelivered.
    pub const REDELIVERED: &str = "cliquet-redelivered";
    /// Text: why a message is parked, as a code.
    pub const REASON: &str = "cliquet-reason";
    /// Text: why a message is parked, as a sentence.
    pub const ERROR: &str = "cliquet-error";
    /// Text: the task at which the job was given up.
    pub const TASK: &str = "cliquet-task";
    /// Integer: the attempts that this task had.
    pub const ATTEMPTS: &str = "cliquet-attempts";
    /// Text: when a message was parked, by the clock of who did it; for people.
    pub const PARKED_AT: &str = "cliquet-parked-at";
    /// Text: the AMQP property user_id of the message that a copy was made of.
    pub const USER_ID: &str = "cliquet-user-id";

    /// Text: the place in a trace, as W3C writes it. Not ours, and of everybody.
    pub const TRACEPARENT: &str = "traceparent";
    /// Text: what those who trace add to it.
    pub const TRACESTATE: &str = "tracestate";

    /// What tells copies apart; a copy without them would be another message.
    pub const VITAL: [&str; 3] = [GENERATION, HOPS, REDELIVERED];
    /// What a former parking said.
    pub const PARKED: [&str; 5] = [REASON, ERROR, TASK, ATTEMPTS, PARKED_AT];
}

/// The longest `cliquet-error`, in bytes. All headers of a message share one frame with little more than 128 KiB.
const LONGEST_ERROR: usize = 4096;
/// The longest other text of ours in a header, in bytes.
const LONGEST_TEXT: usize = 1024;
/// The longest text property, in bytes: AMQP counts its length in one byte.
const LONGEST_PROPERTY: usize = 255;
/// What the frame that carries the properties needs beside them, in bytes.
const FRAME_OVERHEAD: usize = 64;

/// One message to be sent. Cheap to clone: the body is shared.
#[derive(Clone, Debug)]
pub struct Letter {
    body: Arc<Vec<u8>>,
    /// Everything but the headers.
    properties: BasicProperties,
    headers: BTreeMap<ShortString, AMQPValue>,
}

impl Letter {
    /// A fresh message with a JSON body. `message_id` is the job's id and `message_type` its kind; what does not fit a
    /// property (255 bytes) is left out or cut, since the body has both.
    pub fn new(body: impl Into<Vec<u8>>, message_id: &str, message_type: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_timestamp(now)
            .with_app_id("cliquet".into());
        // Half an id would be another id.
        if let Ok(id) = ShortString::try_new(message_id) {
            properties = properties.with_message_id(id);
        }
        if let Ok(kind) = ShortString::try_new(cut(message_type, LONGEST_PROPERTY)) {
            properties = properties.with_type(kind);
        }
        Self {
            body: Arc::new(body.into()),
            properties,
            headers: BTreeMap::new(),
        }
    }

    /// The copy of a delivery: the same body, properties and headers, `traceparent` and every other foreign one
    /// included. Left out is what the broker wrote about the original and what would act on the copy:
    ///
    /// - `x-death` and its relatives, delivery and acquired counts: some versions take a copied one for a cycle;
    /// - `CC` and `BCC`, by which the broker would send the copy to further queues;
    /// - `expiration`, which would end a copy before its rung does;
    /// - `user_id`, which the broker compares with our user; it is kept in the header `cliquet-user-id`;
    /// - what a former parking said.
    pub fn copy_of(delivery: &Delivery) -> Self {
        Self::copied(delivery, travels)
    }

    /// The copy of a parked message that is to stay parked: with what its parking says.
    pub(super) fn parked_again(delivery: &Delivery) -> Self {
        let kept = |name: &str| travels(name) || header::PARKED.contains(&name);
        Self::copied(delivery, kept)
    }

    fn copied(delivery: &Delivery, kept: impl Fn(&str) -> bool) -> Self {
        let original = delivery.properties();
        let mut properties = BasicProperties::default();
        macro_rules! keep {
            ($($get:ident => $with:ident),+ $(,)?) => {
                $(if let Some(value) = original.$get().clone() { properties = properties.$with(value); })+
            };
        }
        keep!(
            content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
            correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id,
            timestamp => with_timestamp, kind => with_type, app_id => with_app_id, cluster_id => with_cluster_id,
        );
        let mut headers: BTreeMap<_, _> = original
            .headers()
            .iter()
            .flat_map(FieldTable::inner)
            .filter(|(name, _)| kept(name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if let Some(user) = original.user_id() {
            headers.insert(
                header::USER_ID.into(),
                text(user.as_str(), LONGEST_PROPERTY),
            );
        }
        Self {
            body: delivery.shared_body(),
            properties,
            headers,
        }
    }

    /// Sets the generation.
    #[must_use]
    pub fn generation(self, generation: Generation) -> Self {
        self.with(header::GENERATION, AMQPValue::LongLongInt(generation.0))
    }

    /// Sets how often the job was found busy.
    #[must_use]
    pub fn hops(self, hops: u32) -> Self {
        self.with(header::HOPS, AMQPValue::LongLongInt(hops.into()))
    }

    /// Sets the mark that the original was redelivered.
    #[must_use]
    pub fn redelivered(self, redelivered: bool) -> Self {
        self.with(header::REDELIVERED, AMQPValue::Boolean(redelivered))
    }

    /// Sets the place in a trace from which whoever receives the message goes on, as W3C writes it: the headers `traceparent` and
    /// `tracestate`, in place of those it has.
    #[must_use]
    pub fn traced(mut self, traceparent: &str, tracestate: Option<&str>) -> Self {
        self.headers.remove(header::TRACESTATE);
        if let Some(state) = tracestate {
            self = self.with(header::TRACESTATE, text(state, LONGEST_TEXT));
        }
        self.with(header::TRACEPARENT, text(traceparent, LONGEST_TEXT))
    }

    /// Says why the message is parked, and that it is now: a stable code, a sentence (cut to 4 KiB), and where there is one the
    /// task and the attempts it had.
    #[must_use]
    pub fn parked(
        self,
        reason: &str,
        error: &str,
        task: Option<&str>,
        attempts: Option<u32>,
    ) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut letter = self
            .with(header::REASON, text(reason, LONGEST_TEXT))
            .with(header::ERROR, text(error, LONGEST_ERROR))
            .with(header::PARKED_AT, text(&now, LONGEST_TEXT));
        if let Some(task) = task {
            letter = letter.with(header::TASK, text(task, LONGEST_TEXT));
        }
        if let Some(attempts) = attempts {
            letter = letter.with(header::ATTEMPTS, AMQPValue::LongLongInt(attempts.into()));
        }
        letter
    }

    /// The size of the body, in bytes.
    pub fn size(&self) -> usize {
        self.body.len()
    }

    /// The AMQP property `message_id`.
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(|id| id.as_str())
    }

    /// A header that is UTF-8 text, such as `traceparent`; nothing for one of another type.
    pub fn header(&self, name: &str) -> Option<&str> {
        as_text(self.headers.get(name)?)
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The properties, persistent and with the headers, and the names of headers that had to be left out: what does not
    /// fit one frame of the connection (`frame_max` bytes) would make the broker close it, again at each attempt.
    pub(super) fn properties(&self, frame_max: u32) -> (BasicProperties, Vec<String>) {
        let mut headers = self.headers.clone();
        let mut shed = Vec::new();
        let room =
            (frame_max as usize).saturating_sub(FRAME_OVERHEAD + properties_size(&self.properties));
        let mut size: usize = headers.iter().map(entry_size).sum();
        while size > room {
            // The largest that is not ours goes first: what a message says of itself matters more than its baggage.
            let largest = headers
                .iter()
                .filter(|(name, _)| !header::VITAL.contains(&name.as_str()))
                .max_by_key(|entry| {
                    (
                        !header::PARKED.contains(&entry.0.as_str()),
                        entry_size(*entry),
                    )
                })
                .map(|(name, _)| name.clone());
            let Some(name) = largest else { break };
            if let Some(entry) = headers.remove_entry(&name) {
                size -= entry_size((&entry.0, &entry.1));
                shed.push(name.to_string());
            }
        }
        let properties = self
            .properties
            .clone()
            .with_delivery_mode(2)
            .with_headers(FieldTable::from(headers));
        (properties, shed)
    }

    fn with(mut self, name: &str, value: AMQPValue) -> Self {
        self.headers.insert(name.into(), value);
        self
    }
}

/// What a header holds, when that is UTF-8 text.
pub(super) fn as_text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// Whether a header of a delivery is copied; see [`Letter::copy_of`].
fn travels(name: &str) -> bool {
    const BROKERS: [&str; 5] = [
        "x-death",
        "x-delivery-count",
        "x-acquired-count",
        "CC",
        "BCC",
    ];
    const BROKERS_PREFIXES: [&str; 3] = ["x-first-death-", "x-last-death-", "x-opt-"];
    !BROKERS.contains(&name)
        && !BROKERS_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
        && !header::PARKED.contains(&name)
}

/// A text for people, cut to `bytes`. A NUL is replaced: AMQP carries it, and many a tool that shows headers does not.
fn text(text: &str, bytes: usize) -> AMQPValue {
    AMQPValue::LongString(cut(&text.replace('\0', "\u{fffd}"), bytes).into())
}

/// Bytes of a header on the wire: name and value with their lengths and the value's type.
fn entry_size((name, value): (&ShortString, &AMQPValue)) -> usize {
    1 + name.as_str().len() + 1 + value_size(value)
}

fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => {
            4 + values
                .as_slice()
                .iter()
                .map(|value| 1 + value_size(value))
                .sum::<usize>()
        }
        AMQPValue::FieldTable(table) => 4 + table.inner().iter().map(entry_size).sum::<usize>(),
        // The largest of the rest.
        _ => 8,
    }
}

/// An upper bound of the bytes of the properties without headers.
fn properties_size(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.message_id(),
        properties.kind(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    texts
        .into_iter()
        .flatten()
        .map(|text| 1 + text.as_str().len())
        .sum::<usize>()
        + 16
}

#[cfg(test)]
mod tests {
    use lapin::{message, types::LongString};

    use super::*;

    fn delivery(properties: BasicProperties) -> Delivery {
        let mut mock = message::Delivery::mock(1, "".into(), "jobs".into(), false, b"{}".to_vec());
        mock.properties = properties;
        Delivery::from(mock)
    }

    fn table(headers: &[(&str, AMQPValue)]) -> FieldTable {
        let headers: BTreeMap<ShortString, _> = headers
            .iter()
            .map(|(name, value)| ((*name).into(), value.clone()))
            .collect();
        headers.into()
    }

    fn sent(letter: &Letter) -> (BasicProperties, BTreeMap<ShortString, AMQPValue>) {
        let (properties, shed) = letter.properties(131_072);
        assert_eq!(shed, Vec::<String>::new());
        let headers = properties.headers().clone().unwrap().inner().clone();
        (properties, headers)
    }

    #[test]
    fn a_fresh_letter_is_persistent_json_with_its_id_and_kind() {
        let (properties, _) = sent(&Letter::new("{}", "the-id", "shop.publish"));
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.content_type(), &Some("application/json".into()));
        assert_eq!(properties.message_id(), &Some("the-id".into()));
        assert_eq!(properties.kind(), &Some("shop.publish".into()));
        assert!(properties.timestamp().is_some());
    }

    #[test]
    fn what_does_not_fit_a_property_never_panics() {
        let (properties, _) = sent(&Letter::new("{}", &"i".repeat(256), &"é".repeat(200)));
        assert_eq!(properties.message_id(), &None);
        assert_eq!(
            properties.kind().as_ref().unwrap().as_str(),
            "é".repeat(127)
        );
    }

    #[test]
    fn a_copy_keeps_what_is_foreign_and_drops_what_would_act_on_it() {
        let long = |text: &str| AMQPValue::LongString(LongString::from(text));
        let original = BasicProperties::default()
            .with_expiration("5".into())
            .with_user_id("shop".into())
            .with_reply_to("answers".into())
            .with_delivery_mode(1)
            .with_headers(table(&[
                ("traceparent", long("00-1-2-01")),
                ("x-tenant", long("7")),
                ("x-death", AMQPValue::FieldArray(vec![].into())),
                ("x-first-death-queue", long("a")),
                ("x-last-death-reason", long("a")),
                ("x-delivery-count", AMQPValue::LongLongInt(3)),
                ("x-acquired-count", AMQPValue::LongLongInt(3)),
                ("x-opt-delivery-time", AMQPValue::LongLongInt(3)),
                ("CC", AMQPValue::FieldArray(vec![long("elsewhere")].into())),
                ("cliquet-generation", AMQPValue::LongLongInt(4)),
                ("cliquet-error", long("old")),
                ("cliquet-attempts", AMQPValue::LongLongInt(9)),
            ]));
        let (properties, headers) = sent(&Letter::copy_of(&delivery(original)));
        let names: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(
            names,
            [
                "cliquet-generation",
                "cliquet-user-id",
                "traceparent",
                "x-tenant"
            ]
        );
        assert_eq!(properties.reply_to(), &Some("answers".into()));
        assert_eq!(
            (properties.expiration(), properties.user_id()),
            (&None, &None)
        );
        assert_eq!(properties.delivery_mode(), &Some(2));
    }

    #[test]
    fn a_place_in_a_trace_takes_the_place_of_another() {
        let letter = Letter::new("{}", "i", "k").traced("00-1-2-01", Some("shop=1"));
        assert_eq!(letter.header("tracestate"), Some("shop=1"));
        let (_, headers) = sent(&letter.traced("00-1-3-01", None));
        let names: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(names, ["traceparent"]);
        let long = AMQPValue::LongString(LongString::from("00-1-3-01"));
        assert_eq!(headers["traceparent"], long);
    }

    #[test]
    fn marks_that_are_set_are_read_back() {
        let letter = Letter::new("{}", "i", "k")
            .generation(Generation(7))
            .hops(3)
            .redelivered(true);
        let (properties, _) = sent(&letter);
        let marks = delivery(properties).marks().unwrap();
        assert_eq!(
            (marks.generation, marks.hops, marks.redelivered),
            (Generation(7), 3, true)
        );
    }

    #[test]
    fn an_error_is_cut_between_characters_and_without_a_nul() {
        let error = format!("x\0{}", "é".repeat(4000));
        let (_, headers) = sent(&Letter::new("{}", "i", "k").parked(
            "exhausted",
            &error,
            Some("up\0load"),
            Some(5),
        ));
        let text = |name: &str| match &headers[name] {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            text("cliquet-error"),
            format!("x\u{fffd}{}", "é".repeat(2046))
        );
        assert_eq!(
            (
                text("cliquet-task").as_str(),
                text("cliquet-reason").as_str()
            ),
            ("up\u{fffd}load", "exhausted")
        );
        assert_eq!(headers["cliquet-attempts"], AMQPValue::LongLongInt(5));
    }

    #[test]
    fn headers_that_do_not_fit_a_frame_are_left_out_foreign_ones_first() {
        let big = |bytes| AMQPValue::LongString("b".repeat(bytes).into());
        let original = BasicProperties::default()
            .with_headers(table(&[("huge", big(6_000)), ("small", big(1_000))]));
        let letter = Letter::copy_of(&delivery(original))
            .generation(Generation(1))
            .parked("r", &"e".repeat(4_000), None, None);
        let (properties, shed) = letter.properties(8_192);
        assert_eq!(shed, ["huge"]);
        let headers = properties.headers().clone().unwrap();
        assert!(headers.contains_key("small") && headers.contains_key("cliquet-error"));
        let (_, shed) = letter.properties(1_000);
        assert_eq!(shed, ["huge", "small", "cliquet-error"]);
    }
}
