//! Opening a connection, what an answer of the broker means, and the words that are logged while it is away.
//!
//! The client's own recovery stays off: it hides an outage from whoever should report it, and gives up after a while.
//! Who needs a connection builds it again, with [`Outage`] for the pauses and the words.

use std::{future::Future, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, runtime::default_runtime,
    tcp::OwnedTLSConfig,
};
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::{Address, BrokerError};
use crate::{retry::RetryPolicy, tls};

/// How long the broker may take for one answer. It is far longer than any healthy broker needs: giving up on an answer
/// costs a duplicate.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// An attempt to connect that takes longer is not given up, but another is made beside it: the client never notices that
/// the broker has gone away in the midst of its greeting.
const ANOTHER_AFTER: Duration = Duration::from_secs(1);
/// How long a closing connection may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts to reach the broker. With longer ones a worker would sleep on while the broker
/// is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lasts for so long begins its next outage with the shortest pause.
const STEADY: Duration = Duration::from_secs(5);
/// How often the same failure is logged again while it lasts.
const REMINDER: Duration = Duration::from_secs(30);
/// The longest name of a worker that is shown to the broker, in bytes: a consumer tag has 255 in all.
const LONGEST_NAME: usize = 200;

/// Who connects, as the broker's tools show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The worker's name.
    pub name: String,
}

impl Identity {
    /// The connection's name in the broker's lists: `cliquet worker NAME@host pid 123 (consume)`.
    fn connection_name(&self, purpose: &str) -> String {
        let host = rustix::system::uname();
        format!(
            "cliquet worker {}@{} pid {} ({purpose})",
            self.shown(),
            host.nodename().to_string_lossy(),
            std::process::id()
        )
    }

    /// The consumer's tag in the broker's lists: `cliquet-NAME-123`.
    pub(super) fn consumer_tag(&self) -> String {
        format!("cliquet-{}-{}", self.shown(), std::process::id())
    }

    fn shown(&self) -> String {
        let clean: String = self
            .name
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        cut(&clean, LONGEST_NAME).to_owned()
    }
}

/// The longest beginning of `text` that has no more than `bytes` and does not cut a character in two.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Why the broker did not do what it was asked.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// AMQP's number for it, when it is the broker who said so: 404, 406 …
    pub code: Option<u16>,
    /// What happened, in the broker's words where it has any.
    pub sentence: String,
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        let (code, sentence) = match error.kind() {
            ErrorKind::ProtocolError(error) => {
                (Some(error.get_id()), error.get_message().to_string())
            }
            ErrorKind::IOError(error) => (None, error.to_string()),
            // A property that is not UTF-8 is the known cause. The message goes back to the queue and comes again.
            ErrorKind::ParsingError(error) => (
                None,
                format!(
                    "the AMQP client cannot read what the broker sent ({error}); is a message at the head of the queue whose property or header name is not UTF-8? `rabbitmqadmin get queue=NAME ackmode=reject_requeue_false` moves the first one to the dead queue"
                ),
            ),
            _ => (None, error.to_string()),
        };
        // The sentence is put into one of ours.
        let sentence = sentence.trim_end_matches('.').to_owned();
        Self { code, sentence }
    }
}

/// Waits for an answer of the broker, but not for ever.
pub(super) async fn answer<T>(asked: impl Future<Output = lapin::Result<T>>) -> Result<T, Trouble> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answered) => answered.map_err(Trouble::from),
        Err(_) => Err(Trouble {
            code: None,
            sentence: format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs()),
        }),
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Link {
    pub connection: Connection,
    pub since: Instant,
    address: String,
    vhost: String,
}

impl Link {
    /// Connects. `purpose` is what the connection is for, for people who look at the broker's list of connections.
    ///
    /// # Errors
    /// `Refused` when the broker answered and turned us away, else `Unreachable`.
    pub async fn open(
        address: &Address,
        identity: &Identity,
        purpose: &str,
    ) -> Result<Self, BrokerError> {
        // Product and version stand or fall together: the client overwrites both when one is missing.
        let properties = ConnectionProperties::default()
            .with_connection_name(identity.connection_name(purpose).into())
            .with_client_property("product".into(), "cliquet".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let unreachable = |reason| BrokerError::Unreachable {
            address: address.to_string(),
            reason,
        };
        let untrusted = |sentence| BrokerError::Untrusted {
            address: address.to_string(),
            sentence,
        };
        let tls = tls_of(address).await.map_err(untrusted)?;
        let connect = || async {
            Connection::connect_uri_with_config(
                address.uri(),
                properties.clone(),
                tls.clone(),
                default_runtime()?,
            )
            .await
        };
        match timeout(address.timeout(), first_to_answer(connect)).await {
            Ok(Ok(connection)) => Ok(Self {
                connection,
                since: Instant::now(),
                address: address.to_string(),
                vhost: address.vhost().to_owned(),
            }),
            Ok(Err(error)) if let Some(sentence) = distrust(&error) => Err(untrusted(sentence)),
            Ok(Err(error)) => Err(match Trouble::from(error) {
                // A limit on connections is turned away with the same code, and passes by itself.
                Trouble {
                    code: Some(403 | 530),
                    sentence,
                } if !sentence.contains("limit") => BrokerError::Refused {
                    address: address.to_string(),
                    sentence,
                },
                Trouble { sentence, .. } => unreachable(sentence),
            }),
            Err(_) => Err(unreachable(format!(
                "no connection within {}",
                humantime::format_duration(address.timeout())
            ))),
        }
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Opens a channel.
    pub async fn channel(&self) -> Result<Channel, BrokerError> {
        answer(self.connection.create_channel())
            .await
            .map_err(|trouble| self.lost(trouble))
    }

    /// The error for trouble that has nothing to do with one queue.
    pub fn lost(&self, trouble: Trouble) -> BrokerError {
        BrokerError::Unreachable {
            address: self.address.clone(),
            reason: trouble.sentence,
        }
    }

    /// The error for trouble with `queue`; `remedy` is what to do when it is not as it should be.
    pub fn queue_trouble(
        &self,
        queue: &str,
        remedy: impl FnOnce() -> String,
        trouble: Trouble,
    ) -> BrokerError {
        let queue = queue.to_owned();
        match trouble {
            Trouble {
                code: Some(403),
                sentence,
            } => BrokerError::Denied { queue, sentence },
            // The same code also says that the queue exists and its node is down.
            Trouble {
                code: Some(404),
                sentence,
            } if sentence.contains("no queue") => BrokerError::Missing { queue },
            Trouble {
                code: Some(405 | 406 | 540),
                sentence,
            } => BrokerError::Mismatch {
                queue,
                sentence,
                remedy: remedy(),
            },
            trouble => self.lost(trouble),
        }
    }

    /// Whether the connection stands, as far as this side knows.
    pub fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// Says goodbye, so that the broker does not log a client that vanished. What goes wrong is of no consequence.
    pub async fn close(&self) {
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "goodbye".into())).await;
    }
}

/// What is trusted beside the system's authorities.
async fn tls_of(address: &Address) -> Result<OwnedTLSConfig, String> {
    let mut tls = OwnedTLSConfig::default();
    if let Some(path) = address.authorities() {
        let file = path.display();
        let pem = tokio::fs::read_to_string(path).await.map_err(|error| {
            format!(
                "the file `{file}` that the address names as `cacertfile` cannot be read: {error}"
            )
        })?;
        // Without a certificate in it the file would go unnoticed, and the server's be called unknown.
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(format!(
                "the file `{file}` that the address names as `cacertfile` holds no certificate in PEM format (-----BEGIN CERTIFICATE-----)"
            ));
        }
        tls.cert_chain = Some(pem);
    }
    Ok(tls)
}

/// Why a connection failed, when that was in the TLS handshake.
fn distrust(error: &lapin::Error) -> Option<String> {
    let ErrorKind::IOError(error) = error.kind() else {
        return None;
    };
    tls::refusal(
        &**error,
        "name the certificate of that authority in the address (`?cacertfile=/path/to/ca.pem`), or in SSL_CERT_FILE",
    )
}

/// The outcome of whichever attempt has one first. They are made with doubling pauses, so in ten seconds there are four.
async fn first_to_answer<A: Future>(attempt: impl Fn() -> A) -> A::Output {
    let (mut attempts, mut pause) = (FuturesUnordered::new(), ANOTHER_AFTER);
    loop {
        attempts.push(attempt());
        if let Ok(Some(answer)) = timeout(pause, attempts.next()).await {
            return answer;
        }
        pause *= 2;
    }
}

/// One outage in words: what is away, what is tried, and when it came back.
#[derive(Debug)]
pub(super) struct Outage {
    purpose: &'static str,
    policy: RetryPolicy,
    failures: u32,
    /// When it began, while it lasts.
    since: Option<Instant>,
    /// Whether what worked has broken since.
    broken: bool,
    restored: Option<Instant>,
    /// The failure that was logged last, and when.
    told: Option<(BrokerError, Instant)>,
}

impl Outage {
    /// No outage yet; `purpose` as in [`Link::open`].
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            policy: RetryPolicy::reconnecting(LONGEST_PAUSE),
            failures: 0,
            since: None,
            broken: false,
            restored: None,
            told: None,
        }
    }

    /// Gives the pause after an attempt that failed. Logs what is news: another reason, or that it still goes on.
    pub fn failed(&mut self, error: &BrokerError) -> Duration {
        let pause = self.pause();
        let (purpose, attempt, pause_ms) = (self.purpose, self.failures, pause.as_millis() as u64);
        if self
            .told
            .as_ref()
            .is_some_and(|(told, when)| told == error && when.elapsed() < REMINDER)
        {
            debug!(
                broker.purpose = purpose,
                attempt, pause_ms, "{error}; trying again"
            );
            return pause;
        }
        self.told = Some((error.clone(), Instant::now()));
        if error.waiting_helps() {
            warn!(
                broker.purpose = purpose,
                attempt, pause_ms, "{error}; trying again and again"
            );
        } else {
            error!(
                broker.purpose = purpose,
                attempt, pause_ms, "{error}. Trying again and again, in case somebody mends it"
            );
        }
        pause
    }

    /// Logs that what worked has broken, and gives the pause before it is built again.
    pub fn broke(&mut self, reason: &str) -> Duration {
        self.broken = true;
        let pause = self.pause();
        let pause_ms = pause.as_millis() as u64;
        warn!(
            broker.purpose = self.purpose,
            pause_ms, "the connection to RabbitMQ ended: {reason}; building it again"
        );
        pause
    }

    /// Logs that everything works again, when it did not. Answers whether it had worked before.
    pub fn restored(&mut self) -> bool {
        self.restored = Some(Instant::now());
        self.told = None;
        if let Some(since) = self.since.take() {
            let away_ms = since.elapsed().as_millis() as u64;
            info!(
                broker.purpose = self.purpose,
                attempts = self.failures,
                away_ms,
                "RabbitMQ is back"
            );
        }
        std::mem::take(&mut self.broken)
    }

    fn pause(&mut self) -> Duration {
        // What breaks as soon as it is built is not built again at once: the pauses go on growing.
        if self
            .restored
            .take()
            .is_some_and(|restored| restored.elapsed() > STEADY)
        {
            self.failures = 0;
        }
        self.since.get_or_insert_with(Instant::now);
        self.failures = self.failures.saturating_add(1);
        self.policy.delay(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_worker_is_called_its_tag_fits() {
        let tag = |name: &str| Identity { name: name.into() }.consumer_tag();
        assert_eq!(
            tag("orders"),
            format!("cliquet-orders-{}", std::process::id())
        );
        assert!(tag(&"é".repeat(400)).len() <= 255);
        assert!(!tag("a\nb\0").contains(char::is_control));
    }
}
