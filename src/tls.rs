//! Why a TLS handshake was refused, in words that name the cause and what to do.

use std::{error::Error, io};

use chrono::DateTime;
use rustls::{CertificateError, pki_types::UnixTime};

/// The sentence for a refused handshake, wherever in an error's causes it stands; nothing when the error is of another kind.
/// `how_to_trust` tells how the service's address names the certificate of an authority.
pub(crate) fn refusal(error: &(dyn Error + 'static), how_to_trust: &str) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(sentence(error, how_to_trust));
        }
        // What an I/O error was made of is not its source, but stands before it.
        cause = match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

fn sentence(error: &rustls::Error, how_to_trust: &str) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => format!(
            "its certificate expired on {}; renew it there, or set this machine's clock",
            day(*not_after)
        ),
        Tls::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            format!(
                "its certificate is not valid before {}; set the clock of this machine, or of the one that issued it",
                day(*not_before)
            )
        }
        Tls::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) => format!(
            "its certificate is not for the host name {}, but for {}; use a name that the certificate has, or issue one for this name",
            expected.to_str(),
            match presented.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.join(", "),
            }
        ),
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => format!(
            "its certificate was issued by an authority that is not trusted here; {how_to_trust}"
        ),
        // One of the same name is trusted, and has another key.
        Tls::InvalidCertificate(CertificateError::BadSignature) => format!(
            "its certificate was signed with another key than that of the authority that is trusted here; {how_to_trust}"
        ),
        Tls::InvalidMessage(_) => {
            "what answers at this port does not speak TLS; is it the port without it?".to_owned()
        }
        Tls::AlertReceived(alert) => {
            format!("it ended the TLS handshake with the alert {alert:?}")
        }
        other => format!("the TLS handshake failed: {other}"),
    }
}

fn day(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
        .map_or_else(
            || "an unknown day".to_owned(),
            |time| time.format("%Y-%m-%d at %H:%M UTC").to_string(),
        )
}
