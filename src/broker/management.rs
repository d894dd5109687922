//! What RabbitMQ tells only over its management API: alarms, disk, policies, permissions.
//!
//! It is optional, and asked by nobody but people's checks. One GET at a time over plain HTTP/1.0, which keeps answers in one
//! piece: an HTTP client with its TLS would be the largest dependency of this crate, for a dozen questions. Where the API
//! is behind TLS, it is asked through a tunnel.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use url::Url;

use super::words::encode;

/// How long the API has for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Where the management API is. It prints without its password.
#[derive(Clone)]
pub(crate) struct Management {
    host: String,
    port: u16,
    path: String,
    authorization: String,
}

/// One node of the cluster.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) running: bool,
    #[serde(default)]
    pub(crate) mem_alarm: bool,
    #[serde(default)]
    pub(crate) disk_free_alarm: bool,
    pub(crate) mem_used: Option<u64>,
    pub(crate) mem_limit: Option<u64>,
    pub(crate) disk_free: Option<u64>,
    pub(crate) disk_free_limit: Option<u64>,
    #[serde(default)]
    pub(crate) partitions: Vec<Value>,
}

/// One queue, as far as AMQP does not tell it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct ManagedQueue {
    #[serde(default)]
    pub(crate) arguments: Map<String, Value>,
    /// What policies and operator policies come to.
    #[serde(default, deserialize_with = "map_or_nothing")]
    pub(crate) effective_policy_definition: Map<String, Value>,
    #[serde(default)]
    pub(crate) messages_unacknowledged: u64,
    /// The nodes that have a copy, and those of them that are up.
    #[serde(default)]
    pub(crate) members: Vec<String>,
    #[serde(default)]
    pub(crate) online: Vec<String>,
}

/// What a user may do in one virtual host.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Permission {
    pub(crate) vhost: String,
    pub(crate) configure: String,
    pub(crate) write: String,
    pub(crate) read: String,
}

impl std::fmt::Debug for Management {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Management {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// An empty definition is told as an empty list by some versions.
fn map_or_nothing<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Map<String, Value>, D::Error> {
    let value: Value = serde::Deserialize::deserialize(deserializer)?;
    Ok(match value {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

impl Management {
    /// Reads a URL such as `http://user:password@host:15672`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it; it never holds the password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected http://USER:PASSWORD@HOST:15672";
        let url =
            Url::parse(text).map_err(|error| format!("it is no URL ({error}); {expected}"))?;
        if url.scheme() != "http" {
            return Err(format!(
                "it begins with `{}://`; {expected}. An API behind TLS is reached through a tunnel (ssh -L 15672:localhost:15672 HOST)",
                url.scheme()
            ));
        }
        // A password with a bare `/`, `?` or `#` ends the host part early, and what is left of it is read as the host.
        let after_host = &url[url::Position::BeforePath..];
        if after_host.contains('@') || url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "it has a `/`, `?`, `#` or `@` where its password may be cut in two: write these characters percent-encoded there (/ %2F, ? %3F, # %23, @ %40, : %3A, % %25); {expected}"
            ));
        }
        let Some(host) = url.host_str() else {
            return Err(format!("it names no host; {expected}"));
        };
        let decoded = |text: &str| {
            let pairs = format!("x={}", text.replace('+', "%2B"));
            url::form_urlencoded::parse(pairs.as_bytes())
                .next()
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        let (user, password) = match url.username() {
            "" => ("guest".into(), "guest".into()),
            user => (decoded(user), decoded(url.password().unwrap_or_default())),
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(80),
            path: url.path().trim_end_matches('/').to_owned(),
            authorization: base64(format!("{user}:{password}").as_bytes()),
        })
    }

    pub(crate) async fn version(&self) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct Overview {
            rabbitmq_version: String,
        }
        let overview: Overview = self.get("/api/overview").await?;
        Ok(overview.rabbitmq_version)
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, String> {
        self.get("/api/nodes").await
    }

    pub(crate) async fn queue(&self, vhost: &str, queue: &str) -> Result<ManagedQueue, String> {
        let (vhost, queue) = (encode(vhost), encode(queue));
        self.get(&format!("/api/queues/{vhost}/{queue}")).await
    }

    /// What a user may do; only administrators are told.
    pub(crate) async fn permissions(&self, user: &str) -> Result<Vec<Permission>, String> {
        self.get(&format!("/api/users/{}/permissions", encode(user)))
            .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let asked = async {
            let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            let request = format!(
                "GET {}{path} HTTP/1.0\r\nHost: {}:{}\r\nAuthorization: Basic {}\r\nAccept: application/json\r\n\r\n",
                self.path, self.host, self.port, self.authorization
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(LONGEST).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(ANSWER, asked)
            .await
            .map_err(|_| format!("{self} does not answer within {} s", ANSWER.as_secs()))?
            .map_err(|error| format!("{self} cannot be asked: {error}"))?;
        let (status, body) = parts(&answer).ok_or_else(|| format!("{self} does not speak HTTP"))?;
        match status {
            200 => serde_json::from_slice(body)
                .map_err(|error| format!("{self}{path} is answered with something else: {error}")),
            401 => Err(format!(
                "{self} refuses {path}: the user or the password is wrong, or the user lacks a tag (monitoring; for permissions, administrator)"
            )),
            status => Err(format!("{self} answers {path} with the status {status}")),
        }
    }
}

/// The status and the body of an answer.
fn parts(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head
        .strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some((status, &answer[end + 4..]))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0u32, |number, at| {
            number << 8 | u32::from(three.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= three.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_checked_and_never_shows_its_password() {
        let address = Management::parse("http://ada:s3%2Fcret@rabbit:15672/").unwrap();
        assert_eq!(address.to_string(), "http://rabbit:15672");
        assert_eq!(address.authorization, base64(b"ada:s3/cret"));
        for (text, words) in [
            ("rabbit", "no URL"),
            ("https://ada:s3cret@rabbit", "tunnel"),
            ("amqp://ada:s3cret@rabbit", "`amqp://`"),
            ("http://ada:12/s3cret@rabbit", "percent-encoded"),
            ("http://ada:12?s3cret@rabbit", "percent-encoded"),
            ("http://ada:12#s3cret@rabbit", "percent-encoded"),
            ("http://ada:12?s3cret", "percent-encoded"),
            ("http://ada:s3cret@", "no URL"),
        ] {
            let sentence = Management::parse(text).unwrap_err();
            assert!(sentence.contains(words), "{sentence}");
            assert!(!sentence.contains("s3cret"), "{sentence}");
        }
    }

    #[test]
    fn base64_is_as_everybody_writes_it() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("guest:guest", "Z3Vlc3Q6Z3Vlc3Q="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn an_answer_is_parted() {
        let answer = b"HTTP/1.1 401 Unauthorized\r\na: b\r\n\r\n{}";
        assert_eq!(parts(answer), Some((401, &b"{}"[..])));
        assert_eq!(parts(b"SSH-2.0"), None);
    }
}
