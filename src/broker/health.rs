//! Facts about the broker for whoever checks it, over AMQP alone: its version, whether it takes messages, its queues.
//!
//! Nothing here judges or changes anything, and every question is bounded in time.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::{
    BasicProperties, Confirmation, Event,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Address, BrokerError, Identity, Place, QueueSpec, QueueState, Topology,
    connect::{Link, Trouble},
};

/// How long the broker has for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a broker that blocks publishers has to say so, after it has taken a message.
const SAYS_SO: Duration = Duration::from_millis(300);
/// No queue is called like this: what is sent there comes back.
const NOWHERE: &str = "cliquet.doctor.nowhere";

/// The broker as one user sees it.
#[derive(Debug)]
pub(crate) struct BrokerHealth {
    pub(crate) publishing: Publishing,
    pub(crate) queues: Vec<(QueueSpec, QueueState)>,
}

/// What came of a message to nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Publishing {
    /// It came back and was confirmed.
    Works,
    /// The broker blocks publishers, with its own reason.
    Blocked(String),
    /// The user may not publish.
    Denied(String),
    /// Neither, in time.
    Silent(String),
}

/// Looks at the broker.
///
/// # Errors
/// `Refused` or `Unreachable` when there is no connection, or it breaks.
pub(crate) async fn look(
    address: &Address,
    topology: &Topology,
    identity: &Identity,
) -> Result<BrokerHealth, BrokerError> {
    let link = Link::open(address, identity, "doctor").await?;
    let queues = topology.inspect_on(&link).await;
    link.close().await;
    // A blocked connection answers nothing any more: the message to nowhere has one of its own, and comes last.
    let link = Link::open(address, identity, "doctor").await?;
    let publishing = publish_nowhere(&link).await;
    link.close().await;
    Ok(BrokerHealth {
        publishing,
        queues: queues?,
    })
}

/// The depths of the queues, asked again and again over one connection that is kept.
#[derive(Debug)]
pub(crate) struct QueueDepths {
    address: Address,
    topology: Topology,
    identity: Identity,
    link: Option<Link>,
}

impl QueueDepths {
    /// Connects when it is first asked.
    pub(crate) fn new(address: Address, topology: Topology, identity: Identity) -> Self {
        Self {
            address,
            topology,
            identity,
            link: None,
        }
    }

    /// Place, name, messages that wait and consumers of each queue that is there.
    ///
    /// # Errors
    /// `Denied` when the user may not look, `Refused` or `Unreachable` when there is no connection, or it breaks.
    pub(crate) async fn look(&mut self) -> Result<Vec<(Place, String, u32, u32)>, BrokerError> {
        let link = match self.link.take().filter(Link::is_up) {
            Some(link) => link,
            None => Link::open(&self.address, &self.identity, "web").await?,
        };
        // A connection on which something went wrong, or whose asker went away, is not asked again.
        let found = self.topology.depths_on(&link).await?;
        self.link = Some(link);
        Ok(found)
    }

    /// Says goodbye.
    pub(crate) async fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }
}

/// A broker that runs out of memory or disk blocks a connection when it first publishes, and not before. So one message is
/// published, to a queue that does not exist.
async fn publish_nowhere(link: &Link) -> Publishing {
    let mut events = link.connection.events_listener();
    let confirmed = timeout(ANSWER, async {
        let channel = link.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let properties = BasicProperties::default();
        channel
            .basic_publish("".into(), NOWHERE.into(), mandatory, b"", properties)
            .await?
            .await
    })
    .await;
    sleep(SAYS_SO).await;
    while let Some(Some(event)) = events.next().now_or_never() {
        if let Event::ConnectionBlocked(reason) = event {
            return Publishing::Blocked(reason);
        }
    }
    match confirmed {
        Ok(Ok(Confirmation::Ack(Some(_)))) => Publishing::Works,
        Ok(Ok(other)) => Publishing::Silent(format!(
            "a message to a queue that does not exist was answered with {other:?}"
        )),
        Ok(Err(error)) => match Trouble::from(error) {
            Trouble {
                code: Some(403),
                sentence,
            } => Publishing::Denied(sentence),
            Trouble { sentence, .. } => Publishing::Silent(sentence),
        },
        Err(_) => Publishing::Silent(format!("no confirm within {} s", ANSWER.as_secs())),
    }
}

/// The broker's version, from its first frame; it is sent before anybody logs in. `None` when it cannot be had (TLS, or
/// something else listens there).
pub(crate) async fn version(address: &Address) -> Option<String> {
    if address.is_tls() {
        return None;
    }
    let asked = async {
        let mut stream = TcpStream::connect((address.host(), address.port()))
            .await
            .ok()?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if head[0] != 1 || size > 64 * 1024 {
            return None;
        }
        let mut frame = vec![0; size];
        stream.read_exact(&mut frame).await.ok()?;
        // Class and method (connection.start), two version octets; then the properties.
        let properties = frame.strip_prefix(&[0, 10, 0, 10])?.get(2..)?;
        text_in(table(properties)?, b"version")
    };
    timeout(ANSWER, asked).await.ok()?
}

/// The content of a table: its length in four bytes, then its fields.
fn table(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = bytes.split_first_chunk()?;
    rest.get(..u32::from_be_bytes(*size) as usize)
}

/// The field of this name, if it is a text. Only what RabbitMQ puts into its properties is understood: texts, tables, truths.
fn text_in(mut fields: &[u8], name: &[u8]) -> Option<String> {
    while let Some((length, rest)) = fields.split_first() {
        let (key, rest) = rest.split_at_checked(usize::from(*length))?;
        let (kind, rest) = rest.split_first()?;
        let size = match kind {
            b't' => 1,
            b'S' | b'F' => 4 + table(rest)?.len(),
            _ => return None,
        };
        if key == name && *kind == b'S' {
            return String::from_utf8(table(rest)?.to_vec()).ok();
        }
        fields = rest.get(size..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_behind_other_fields_and_nothing_is_read_beyond_the_end() {
        let mut fields = b"\x05truthst\x01".to_vec(); // a name of five, and a stray letter: not understood
        assert_eq!(text_in(&fields, b"version"), None);
        fields = b"\x04yesst\x01\x07versionS\x00\x00\x00\x063.10.8".to_vec();
        assert_eq!(text_in(&fields, b"version").as_deref(), Some("3.10.8"));
        for end in 0..fields.len() {
            assert_eq!(text_in(&fields[..end], b"version"), None, "{end}");
        }
    }
}
