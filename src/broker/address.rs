//! Where the broker is: a checked AMQP URL that never shows its password.
//!
//! The URL is taken apart here and handed to the client in parts. The client's own reading is lenient where it hurts:
//! an IPv6 host becomes `localhost`, a trailing slash an empty virtual host, and a timeout is read and not kept.

use std::{
    fmt,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use url::{Host, Url};

use super::words::encode;

/// Seconds between heartbeats unless the address says otherwise: a dead peer is noticed after twice as long.
const HEARTBEAT_SECONDS: u16 = 15;
/// How long connecting may take unless the address says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// RabbitMQ 4.1 and later refuse smaller frames.
const SMALLEST_FRAME_MAX: u32 = 8192;
/// The longest virtual host in bytes: AMQP counts its length in one byte.
const LONGEST_VHOST: usize = 255;

/// Where the broker is, and as whom to connect: `amqp://USER:PASSWORD@HOST:PORT/VHOST?heartbeat=SECONDS`.
///
/// Port, user, password and virtual host may be left out (5672, or 5671 with `amqps`; `guest`; `guest`; `/`). The query
/// knows `heartbeat` (seconds, 15), `connection_timeout` (milliseconds, 10000), `frame_max` (bytes), `channel_max`,
/// `auth_mechanism` and `cacertfile` (a file in PEM format). Showing or logging it shows everything but the password.
///
/// With `amqps` the broker's certificate must be valid, for this very host, and issued by an authority that the system
/// trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others) or that is in `cacertfile`. There is no way to switch that off.
///
/// ```
/// use cliquet::broker::Address;
///
/// let address = Address::parse("amqp://shop:s%40cret@rabbit.example/orders")?;
/// assert_eq!(address.to_string(), "amqp://shop@rabbit.example:5672/orders");
/// assert!(Address::parse("amqp://rabbit.example/").unwrap_err().contains("leave the slash out"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    uri: AMQPUri,
    timeout: Duration,
    authorities: Option<PathBuf>,
}

impl Address {
    /// Reads an AMQP URL.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write instead. It never shows the password, nor any part of the
    /// URL that may be a piece of one.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The URL reader drops tabs and line ends silently, which would change a password.
        if text.trim().chars().any(char::is_control) {
            return Err(
                "the AMQP address contains a control character, such as a line end; it is one line"
                    .into(),
            );
        }
        let url = Url::parse(text.trim()).map_err(|error| unreadable(text, &error))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            other => {
                return Err(format!(
                    "the AMQP address begins with `{other}://`; expected `amqp://`, or `amqps://` for TLS{}",
                    if other.starts_with("http") {
                        " (not the address of the management page)"
                    } else {
                        ""
                    }
                ));
            }
        };
        // A password with a bare `/`, `?` or `#` ends the host part early, and what is left of it is read as the host.
        let after_host = &url[url::Position::BeforePath..];
        if after_host.contains('@') || url.fragment().is_some() {
            return Err(format!("{UNENCODED} (in a virtual host, write @ as %40)"));
        }
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        if port == 0 {
            return Err(
                "the AMQP address has the port 0; leave it out, or write the broker's".into(),
            );
        }
        let host = host(&url)?;
        let (query, authorities) = query(&url)?;
        if authorities.is_some() && scheme == AMQPScheme::AMQP {
            return Err("the AMQP address names a `cacertfile` and begins with `amqp://`, which is not encrypted; write `amqps://`".into());
        }
        let timeout = query
            .connection_timeout
            .map_or(CONNECT_TIMEOUT, Duration::from_millis);
        let userinfo = userinfo(&url, query.auth_mechanism)?;
        let vhost = vhost(url.path())?;
        Ok(Self {
            uri: AMQPUri {
                scheme,
                authority: AMQPAuthority {
                    userinfo,
                    host,
                    port,
                },
                vhost,
                query,
            },
            timeout,
            authorities,
        })
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// The host's name or address; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.uri.authority.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.uri.authority.port
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// Whether it is TLS that is spoken there.
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// The file with the certificates of further authorities, which is read at each connection: it may be renewed.
    pub(super) fn authorities(&self) -> Option<&Path> {
        self.authorities.as_deref()
    }

    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl std::str::FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl fmt::Display for Address {
    /// Everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPAuthority {
            userinfo,
            host,
            port,
        } = &self.uri.authority;
        write!(f, "{}://{}@", self.uri.scheme, encode(&userinfo.username))?;
        match host.parse::<Ipv6Addr>() {
            Ok(host) => write!(f, "[{host}]:{port}")?,
            Err(_) => write!(f, "{host}:{port}")?,
        }
        match self.vhost() {
            "/" => Ok(()),
            vhost => write!(f, "/{}", encode(vhost)),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const UNENCODED: &str = "the AMQP address has a `/`, `?`, `#` or `@` where a user name or password may be cut in two: \
     write these characters percent-encoded there (/ %2F, ? %3F, # %23, @ %40, : %3A, % %25)";

fn unreadable(text: &str, error: &url::ParseError) -> String {
    let shape = "expected amqp://USER:PASSWORD@HOST:PORT/VHOST";
    if text.trim().is_empty() {
        return format!("the AMQP address is empty; {shape}");
    }
    match error {
        url::ParseError::RelativeUrlWithoutBase => {
            format!("the AMQP address does not begin with `amqp://` or `amqps://`; {shape}")
        }
        url::ParseError::EmptyHost => format!("the AMQP address names no host; {shape}"),
        url::ParseError::InvalidPort => {
            format!(
                "the AMQP address has no number from 1 to 65535 as its port; {shape}. If the password contains one of : / ? # @ %, write it percent-encoded (%3A %2F %3F %23 %40 %25)"
            )
        }
        error => format!("the AMQP address is not a URL ({error}); {shape}"),
    }
}

fn host(url: &Url) -> Result<String, String> {
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Domain(name)) => decode("host", name)?,
        None => String::new(),
    };
    if host.is_empty() {
        return Err(
            "the AMQP address names no host; expected amqp://USER:PASSWORD@HOST:PORT/VHOST".into(),
        );
    }
    if host.contains([',', ' ']) {
        return Err("the AMQP address names more than one host; give one: a name that resolves to all nodes, or a load balancer".into());
    }
    Ok(host)
}

fn userinfo(url: &Url, mechanism: Option<SASLMechanism>) -> Result<AMQPUserInfo, String> {
    let username = decode("user name", url.username())?;
    let password = url
        .password()
        .map(|password| decode("password", password))
        .transpose()?;
    match (username.as_str(), password) {
        ("", None) => Ok(AMQPUserInfo::default()),
        ("", Some(_)) => Err("the AMQP address has a password but no user name; write USER:PASSWORD@ before the host".into()),
        (_, Some(password)) => Ok(AMQPUserInfo { username, password }),
        // Such a mechanism takes no password: the certificate speaks for the user.
        (_, None) if matches!(mechanism, Some(SASLMechanism::External | SASLMechanism::Anonymous)) => {
            Ok(AMQPUserInfo { username, password: String::new() })
        }
        (_, None) => Err("the AMQP address has a user name but no password; write USER:PASSWORD@ before the host".into()),
    }
}

fn vhost(path: &str) -> Result<String, String> {
    let vhost = match path.strip_prefix('/') {
        None => return Ok("/".into()),
        Some("") => {
            return Err("the AMQP address ends in a slash, which names a virtual host without a name: leave the slash out, or write /%2f, for the virtual host /".into());
        }
        Some(raw) if raw.contains('/') => {
            return Err("the AMQP address has more than one slash after the host; a slash within the virtual host is written %2f".into());
        }
        Some(raw) => decode("virtual host", raw)?,
    };
    if vhost.len() > LONGEST_VHOST {
        return Err(format!(
            "the virtual host of the AMQP address has {} bytes; the limit is {LONGEST_VHOST}",
            vhost.len()
        ));
    }
    Ok(vhost)
}

fn query(url: &Url) -> Result<(AMQPQueryString, Option<PathBuf>), String> {
    let mut authorities = None;
    let mut query = AMQPQueryString {
        heartbeat: Some(HEARTBEAT_SECONDS),
        ..AMQPQueryString::default()
    };
    for (key, value) in url.query_pairs() {
        match &*key {
            "heartbeat" => query.heartbeat = Some(number(&key, &value, 1, 3600, "seconds")?),
            "connection_timeout" => {
                query.connection_timeout = Some(number(&key, &value, 1, 600_000, "milliseconds")?)
            }
            "frame_max" => {
                query.frame_max = Some(number(&key, &value, SMALLEST_FRAME_MAX, u32::MAX, "bytes")?)
            }
            "channel_max" => {
                query.channel_max = Some(number(&key, &value, 1, u16::MAX, "channels")?)
            }
            "auth_mechanism" => {
                query.auth_mechanism = Some(value.parse().map_err(|_| {
                    "`auth_mechanism` in the AMQP address is unknown; expected plain, amqplain, external or anonymous".to_owned()
                })?);
            }
            "cacertfile" if value.is_empty() => {
                return Err("`cacertfile` in the AMQP address is empty; expected the path of a file in PEM format".into());
            }
            "cacertfile" => authorities = Some(PathBuf::from(&*value)),
            // The value may be the rest of a password with a bare `?`, so neither is shown.
            _ => {
                return Err("the AMQP address has an unknown key after `?`; the keys are heartbeat, connection_timeout, frame_max, channel_max, auth_mechanism and cacertfile (a certificate is always verified)".into());
            }
        }
    }
    Ok((query, authorities))
}

fn number<T>(key: &str, value: &str, least: T, most: T, unit: &str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    match value.parse::<T>() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!(
            "`{key}` in the AMQP address is not a number from {least} to {most} ({unit})"
        )),
    }
}

/// Undoes percent-encoding, strictly: a stray `%` in a password is a mistake that would otherwise be tried and refused.
fn decode(part: &str, text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => {
                return Err(format!(
                    "the {part} in the AMQP address has a `%` without two hexadecimal digits after it; write % itself as %25"
                ));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| {
        format!("the {part} in the AMQP address is not UTF-8 once its %-codes are read")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let address = Address::parse("amqp://rabbit").unwrap();
        let AMQPUri {
            authority,
            vhost,
            query,
            ..
        } = address.uri();
        assert_eq!(
            (authority.host.as_str(), authority.port, vhost.as_str()),
            ("rabbit", 5672, "/")
        );
        assert_eq!(
            (
                authority.userinfo.username.as_str(),
                authority.userinfo.password.as_str()
            ),
            ("guest", "guest")
        );
        assert_eq!(query.heartbeat, Some(15));
        assert_eq!(address.timeout(), Duration::from_secs(10));
        assert_eq!(Address::parse("amqps://rabbit").unwrap().port(), 5671);
    }

    #[test]
    fn what_is_given_is_kept() {
        let address = Address::parse(
            " amqp://us%65r:p%40ss%2Fw%25rd@10.0.0.7:5673/my%2fhost?heartbeat=5&connection_timeout=1500&frame_max=8192 ",
        )
        .unwrap();
        let AMQPUri {
            authority,
            vhost,
            query,
            ..
        } = address.uri();
        assert_eq!(
            (authority.host.as_str(), authority.port, vhost.as_str()),
            ("10.0.0.7", 5673, "my/host")
        );
        assert_eq!(
            (
                authority.userinfo.username.as_str(),
                authority.userinfo.password.as_str()
            ),
            ("user", "p@ss/w%rd")
        );
        assert_eq!((query.heartbeat, query.frame_max), (Some(5), Some(8192)));
        assert_eq!(address.timeout(), Duration::from_millis(1500));
    }

    #[test]
    fn an_ipv6_host_stays_that_host() {
        let address = Address::parse("amqp://u:p@[2001:db8::1]:5673/x").unwrap();
        assert_eq!(address.host(), "2001:db8::1");
        assert_eq!(address.to_string(), "amqp://u@[2001:db8::1]:5673/x");
    }

    #[test]
    fn the_password_is_never_shown() {
        let address = Address::parse("amqp://user:s3cr%3Fet@host/v").unwrap();
        for shown in [
            address.to_string(),
            format!("{address:?}"),
            format!("{address:#?}"),
        ] {
            assert_eq!(shown, "amqp://user@host:5672/v");
        }
    }

    #[test]
    fn a_trap_is_answered_with_a_sentence_and_without_the_password() {
        for (text, words) in [
            ("", "is empty"),
            ("rabbit", "does not begin with `amqp://`"),
            ("rabbit:5672", "begins with `rabbit://`"),
            (
                "http://rabbit:15672",
                "not the address of the management page",
            ),
            ("amqp://", "names no host"),
            ("amqp:///vhost", "names no host"),
            ("amqp://u:s3cret@", "names no host"),
            ("amqp://rabbit:5672/", "leave the slash out, or write /%2f"),
            ("amqp://rabbit//", "more than one slash"),
            ("amqp://rabbit/a/b", "written %2f"),
            ("amqp://rabbit:0", "port 0"),
            ("amqp://rabbit:70000", "no number from 1 to 65535"),
            ("amqp://user:s3cret/x@rabbit", "percent-encoded"),
            ("amqp://user:12/s3cret@rabbit", "percent-encoded"),
            ("amqp://user:12#s3cret@rabbit", "percent-encoded"),
            ("amqp://user:12?s3cret@rabbit", "percent-encoded"),
            ("amqp://user:12?s3cret", "unknown key"),
            ("amqp://user:s3%cret@rabbit", "write % itself as %25"),
            ("amqp://user:s3%ffcret@rabbit", "not UTF-8"),
            ("amqp://user:s3\ncret@rabbit", "control character"),
            ("amqp://user@rabbit", "no password"),
            ("amqp://:s3cret@rabbit", "no user name"),
            ("amqp://a,b", "more than one host"),
            ("amqp://rabbit?heartbeat=never", "`heartbeat`"),
            ("amqp://rabbit?connection_timeout=0", "`connection_timeout`"),
            ("amqp://rabbit?frame_max=4096", "`frame_max`"),
            ("amqp://rabbit?auth_mechanism=magic", "`auth_mechanism`"),
            (
                "amqps://rabbit?verify=verify_none",
                "a certificate is always verified",
            ),
            ("amqp://rabbit?cacertfile=/ca.pem", "write `amqps://`"),
            ("amqps://rabbit?cacertfile=", "expected the path"),
        ] {
            let sentence = Address::parse(text).expect_err(text);
            assert!(
                sentence.contains(words),
                "{text:?}: {sentence:?} does not say {words:?}"
            );
            assert!(
                !sentence.contains("s3") && !sentence.contains("cret"),
                "{text:?}: {sentence:?} shows the password"
            );
        }
        let long = format!("amqp://rabbit/{}", "v".repeat(256));
        assert!(Address::parse(&long).unwrap_err().contains("256 bytes"));
    }
}
