//! The standard variables of OpenTelemetry, checked once: the SDK reads most of them itself, and passes over what it does not
//! understand without a word.

use std::{ffi::OsString, fs, time::Duration};

use reqwest::{
    Certificate, Identity,
    header::{HeaderName, HeaderValue},
};
use url::Url;

/// How long the collector has to take a batch, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Below the address that `OTEL_EXPORTER_OTLP_ENDPOINT` names.
const PATH: &str = "v1/traces";
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];
/// Numbers that the SDK reads itself, and the least that each may be.
const NUMBERS: [(&str, u64); 8] = [
    ("OTEL_BSP_SCHEDULE_DELAY", 1),
    ("OTEL_BSP_MAX_QUEUE_SIZE", 1),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1),
    ("OTEL_BSP_EXPORT_TIMEOUT", 1),
    ("OTEL_BSP_MAX_CONCURRENT_EXPORTS", 1),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", 0),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", 0),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", 0),
];

/// What is needed here of the variables; headers, compression, sampler and batches are the SDK's to read.
pub(super) struct Settings {
    /// Where spans are sent, path included.
    pub(super) endpoint: Url,
    pub(super) timeout: Duration,
    /// Who is trusted in place of the platform's authorities.
    pub(super) authorities: Option<Vec<Certificate>>,
    /// Who this is to a collector that asks for a certificate.
    pub(super) identity: Option<Identity>,
    /// The keys that `OTEL_RESOURCE_ATTRIBUTES` gives, and `service.name` if `OTEL_SERVICE_NAME` does.
    pub(super) resource: Vec<String>,
    /// So many spans may wait for their batch.
    pub(super) queue: usize,
}

/// Reads them; nothing when traces are off.
///
/// # Errors
/// A sentence that names the variable. What headers hold is in none.
pub(super) fn read(
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Settings>, String> {
    let variables = Variables(&environment);
    // A machine may say for all its programs how they trace; who names no collector is not asked.
    if variables.of_traces("ENDPOINT")?.is_none() || variables.disabled()? {
        return Ok(None);
    }
    let Some(endpoint) = variables.endpoint()? else {
        return Ok(None);
    };
    if let Some((name, protocol)) = variables.of_traces("PROTOCOL")?
        && !protocol.eq_ignore_ascii_case("http/protobuf")
    {
        return Err(format!(
            "{name} is {protocol:?}; cliquet speaks http/protobuf, which a collector takes beside gRPC, usually at port 4318"
        ));
    }
    if let Some((name, compression)) = variables.of_traces("COMPRESSION")?
        && !matches!(compression.to_ascii_lowercase().as_str(), "gzip" | "none")
    {
        return Err(format!(
            "{name} is {compression:?}; expected \"gzip\" or \"none\""
        ));
    }
    variables.headers()?;
    variables.sampler()?;
    if let Some(propagators) = variables.text("OTEL_PROPAGATORS")?
        && !propagators
            .split(',')
            .any(|name| name.trim() == "tracecontext")
    {
        return Err(format!(
            "OTEL_PROPAGATORS is {propagators:?}; cliquet continues traces by W3C's headers alone: expected a list that has \"tracecontext\""
        ));
    }
    for (name, least) in NUMBERS {
        variables.number(name, least)?;
    }
    let queue = variables.number("OTEL_BSP_MAX_QUEUE_SIZE", 1)?;
    let batch = variables.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1)?;
    let queue = queue.unwrap_or(2048);
    if let Some(batch) = batch
        && batch > queue
    {
        return Err(format!(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is {batch}, more than the queue holds (OTEL_BSP_MAX_QUEUE_SIZE, {queue})"
        ));
    }
    Ok(Some(Settings {
        timeout: variables.timeout()?,
        authorities: variables.authorities()?,
        identity: variables.identity()?,
        resource: variables.resource()?,
        queue: usize::try_from(queue).unwrap_or(usize::MAX),
        endpoint,
    }))
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Variables<'_> {
    /// An empty variable counts as one that is not set, as the specification has it.
    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = (self.0)(name) else {
            return Ok(None);
        };
        let text = value
            .into_string()
            .map_err(|_| format!("{name} is not text in UTF-8"))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The variable of traces, or else the one of all signals: its name and what it holds.
    fn of_traces(&self, rest: &str) -> Result<Option<(String, String)>, String> {
        for signal in ["TRACES_", ""] {
            let name = format!("OTEL_EXPORTER_OTLP_{signal}{rest}");
            if let Some(text) = self.text(&name)? {
                return Ok(Some((name, text)));
            }
        }
        Ok(None)
    }

    fn number(&self, name: &str, least: u64) -> Result<Option<u64>, String> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if (least..=u32::MAX.into()).contains(&number) => Ok(Some(number)),
            _ => Err(format!(
                "{name} is {text:?}; expected a whole number from {least} to {}",
                u32::MAX
            )),
        }
    }

    fn disabled(&self) -> Result<bool, String> {
        match self.text("OTEL_SDK_DISABLED")? {
            None => {}
            Some(text) if text.eq_ignore_ascii_case("false") || text == "0" => {}
            Some(text) if text.eq_ignore_ascii_case("true") || text == "1" => return Ok(true),
            Some(text) => {
                return Err(format!(
                    "OTEL_SDK_DISABLED is {text:?}; expected \"true\" or \"false\""
                ));
            }
        }
        match self.text("OTEL_TRACES_EXPORTER")?.as_deref() {
            None | Some("otlp") => Ok(false),
            Some("none") => Ok(true),
            Some(other) => Err(format!(
                "OTEL_TRACES_EXPORTER is {other:?}; expected \"otlp\" or \"none\""
            )),
        }
    }

    fn endpoint(&self) -> Result<Option<Url>, String> {
        let Some((name, text)) = self.of_traces("ENDPOINT")? else {
            return Ok(None);
        };
        // What it holds is not shown: some services put a key into it.
        let expected = "expected such as http://localhost:4318 or https://collector.example:4318";
        let mut url =
            Url::parse(text.trim()).map_err(|error| format!("{name}: {error}; {expected}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(format!(
                "{name} is no address of an HTTP server; {expected}"
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "{name} has a user or a password, which would not be sent; give the collector what it asks for by OTEL_EXPORTER_OTLP_HEADERS (authorization=Basic%20…)"
            ));
        }
        if !name.contains("TRACES") {
            let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        Ok(Some(url))
    }

    /// Only looked at: the SDK reads them, so that they are in no variable of ours.
    fn headers(&self) -> Result<(), String> {
        let Some((name, text)) = self.of_traces("HEADERS")? else {
            return Ok(());
        };
        for (index, entry) in entries(&text).enumerate() {
            let fits = entry.split_once('=').is_some_and(|(key, value)| {
                HeaderName::from_bytes(key.trim().as_bytes()).is_ok()
                    && !value.trim().is_empty()
                    && HeaderValue::from_str(value.trim()).is_ok()
            });
            if !fits {
                return Err(format!(
                    "{name}: what stands at place {} is no header; expected NAME=VALUE,NAME=VALUE, with commas in values as %2C (it is a secret and not shown)",
                    index + 1
                ));
            }
        }
        Ok(())
    }

    fn sampler(&self) -> Result<(), String> {
        let Some(sampler) = self.text("OTEL_TRACES_SAMPLER")? else {
            return Ok(());
        };
        if !SAMPLERS.contains(&sampler.as_str()) {
            return Err(format!(
                "OTEL_TRACES_SAMPLER is {sampler:?}; expected one of {}",
                SAMPLERS.join(", ")
            ));
        }
        if sampler.ends_with("ratio")
            && let Some(text) = self.text("OTEL_TRACES_SAMPLER_ARG")?
            && !text
                .parse()
                .is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio))
        {
            return Err(format!(
                "OTEL_TRACES_SAMPLER_ARG is {text:?}; expected a share from 0 to 1, such as 0.1"
            ));
        }
        Ok(())
    }

    fn timeout(&self) -> Result<Duration, String> {
        match self.of_traces("TIMEOUT")? {
            None => Ok(TIMEOUT),
            Some((name, _)) => Ok(self
                .number(&name, 1)?
                .map_or(TIMEOUT, Duration::from_millis)),
        }
    }

    /// What a file holds that a variable names.
    fn file(&self, rest: &str) -> Result<Option<(String, Vec<u8>)>, String> {
        let Some((name, path)) = self.of_traces(rest)? else {
            return Ok(None);
        };
        let bytes =
            fs::read(&path).map_err(|error| format!("{name}: {path} cannot be read: {error}"))?;
        Ok(Some((name, bytes)))
    }

    fn authorities(&self) -> Result<Option<Vec<Certificate>>, String> {
        let Some((name, bytes)) = self.file("CERTIFICATE")? else {
            return Ok(None);
        };
        match Certificate::from_pem_bundle(&bytes) {
            Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
            _ => Err(format!("{name} names a file without certificates in PEM")),
        }
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        let (certificate, key) = (self.file("CLIENT_CERTIFICATE")?, self.file("CLIENT_KEY")?);
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some((name, mut pem)), Some((_, key))) => {
                pem.push(b'\n');
                pem.extend(key);
                let identity = Identity::from_pem(&pem).map_err(|_| {
                    format!("{name} and its CLIENT_KEY are not a certificate and its key in PEM")
                })?;
                Ok(Some(identity))
            }
            (Some((name, _)), None) | (None, Some((name, _))) => Err(format!(
                "{name} is set alone; a certificate of this side needs both OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY"
            )),
        }
    }

    fn resource(&self) -> Result<Vec<String>, String> {
        const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let text = self.text(ATTRIBUTES)?.unwrap_or_default();
        let mut keys = Vec::new();
        for entry in entries(&text) {
            match entry.split_once('=') {
                Some((key, _)) if !key.trim().is_empty() => keys.push(key.trim().to_owned()),
                _ => {
                    return Err(format!(
                        "{ATTRIBUTES} has {entry:?}; expected KEY=VALUE,KEY=VALUE"
                    ));
                }
            }
        }
        if self.text("OTEL_SERVICE_NAME")?.is_some() {
            keys.push("service.name".to_owned());
        }
        Ok(keys)
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|one| !one.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        read(|name| {
            let found = variables.iter().rev().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    const ON: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");

    #[test]
    fn traces_are_on_exactly_where_an_endpoint_is_named_and_nothing_switches_them_off() {
        let on = |variables: &[(&str, &str)]| with(variables).unwrap().is_some();
        assert!(!on(&[]));
        assert!(!on(&[(ON.0, "")]));
        assert!(!on(&[("OTEL_SERVICE_NAME", "shop")]));
        assert!(on(&[ON]));
        assert!(on(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ON.1)]));
        assert!(on(&[ON, ("OTEL_SDK_DISABLED", "FALSE")]));
        assert!(!on(&[ON, ("OTEL_SDK_DISABLED", "true")]));
        assert!(!on(&[ON, ("OTEL_TRACES_EXPORTER", "none")]));
        // What is off is not looked at any further.
        assert!(!on(&[("OTEL_TRACES_SAMPLER", "nonsense")]));
        assert!(!on(&[("OTEL_TRACES_EXPORTER", "console")]));
        assert!(!on(&[("OTEL_SDK_DISABLED", "maybe")]));
    }

    #[test]
    fn the_path_belongs_to_the_endpoint_of_all_signals() {
        let at = |variables: &[(&str, &str)]| with(variables).unwrap().unwrap().endpoint;
        let general = |value| at(&[(ON.0, value)]).to_string();
        assert_eq!(general("http://h:4318"), "http://h:4318/v1/traces");
        assert_eq!(general("http://h/otlp/"), "http://h/otlp/v1/traces");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://h/take");
        assert_eq!(at(&[ON, own]).as_str(), "https://h/take");
    }

    #[test]
    fn a_wrong_value_is_told_with_its_variable() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://localhost"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "zone"),
        ] {
            let told = with(&[ON, (name, value)]).err().unwrap_or_default();
            assert!(told.starts_with(name), "{name}={value}: {told:?}");
        }
        let ratio = [
            ON,
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ];
        assert!(with(&ratio).err().unwrap().contains("_ARG is \"1.5\""));
    }

    #[test]
    fn no_complaint_tells_what_headers_or_addresses_hold() {
        let secret = "s3cret";
        let headers = format!("a=b,{secret}");
        let address = format!("http://ada:{secret}@h:4318");
        let wrong = format!("no address {secret}");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str()),
            (ON.0, &address),
            (ON.0, &wrong),
        ] {
            let told = with(&[ON, (name, value)]).err().unwrap();
            assert!(told.starts_with(name) && !told.contains(secret), "{told}");
        }
    }
}
