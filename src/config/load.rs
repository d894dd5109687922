//! Reads the settings: the file first, then the environment, which wins. All complaints are collected, so that a person
//! mends a file once and not once for each mistake.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, HandlerConfig,
    given::{Given, kind},
    settings::{HANDLER, Key, RETRY, WORKER},
};
use crate::retry::RetryPolicy;

/// The file that is read when none is named and it is there.
const USUAL_FILE: &str = "cliquet.toml";
const PREFIX: &str = "CLIQUET_";

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// This process's environment, as far as it concerns the settings.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| {
            name.starts_with(PREFIX) || matches!(name.as_str(), "AMQP_URL" | "DATABASE_URL")
        })
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect()
}

/// What is wrong with the settings: one sentence a line, each with its file and line or its variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file at `path` (`./cliquet.toml` when none is named and it is there), then the environment, which wins.
    ///
    /// A handler's `dir` counts from the file's folder. Addresses are not looked at here: whoever connects reads
    /// them.
    ///
    /// # Errors
    /// A [`ConfigError`] for a file that cannot be read or is no TOML, unknown keys (with the nearest known one), values of
    /// another type and values out of their range.
    pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let file = read(path).map_err(|sentence| ConfigError(vec![sentence]))?;
        let (path, text) = file
            .as_ref()
            .map_or((Path::new(""), ""), |(path, text)| (path.as_path(), text));
        let document = DeTable::parse(text).map_err(|error| {
            // Not the error's own text: it shows the line, and the line may hold a password.
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            ConfigError(vec![format!(
                "{}:{line}: {}",
                path.display(),
                error.message()
            )])
        })?;

        let mut loading = Loading {
            path,
            text,
            environment,
            places: BTreeMap::new(),
            complaints: Vec::new(),
        };
        let config = loading.read(document.get_ref());
        for problem in config.out_of_range() {
            let place = loading.place_of(&problem.key);
            loading
                .complaints
                .push(format!("{place}{}", problem.sentence));
        }
        if !loading.complaints.is_empty() {
            return Err(ConfigError(loading.complaints));
        }
        warn(&config, environment);
        Ok(config)
    }
}

fn read(path: Option<&Path>) -> Result<Option<(PathBuf, String)>, String> {
    let found = path.unwrap_or(Path::new(USUAL_FILE));
    match fs::read_to_string(found) {
        Ok(text) => Ok(Some((found.to_owned(), text))),
        Err(error) if path.is_none() && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!(
            "the configuration file {} cannot be read: {error}",
            found.display()
        )),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

struct Loading<'a> {
    path: &'a Path,
    text: &'a str,
    environment: &'a Environment,
    /// Where each key was given, for complaints about its range.
    places: BTreeMap<String, String>,
    complaints: Vec<String>,
}

type Entry<'i> = (
    &'i Spanned<std::borrow::Cow<'i, str>>,
    &'i Spanned<DeValue<'i>>,
);

impl Loading<'_> {
    fn read(&mut self, document: &DeTable<'_>) -> Config {
        let mut config = Config::default();
        let mut retry_table = None;
        let mut handler_tables = None;
        for entry @ (key, value) in document {
            match key.get_ref().as_ref() {
                "retry" => retry_table = self.table("retry", entry),
                "handlers" => handler_tables = self.table("handlers", entry),
                name => {
                    let stray = RETRY.iter().find(|key| key.name == name);
                    if stray.is_some() && !WORKER.iter().any(|key| key.name == name) {
                        let place = self.at(key.span().start);
                        self.complaints.push(format!(
                            "{place}there is no key `{name}` here; it belongs under [retry] or [handlers.NAME]"
                        ));
                    } else {
                        self.apply("", WORKER, &mut config, key, value);
                    }
                }
            }
        }
        let usual = |name: &str| self.environment.get(name).filter(|url| !url.is_empty());
        if let Some(url) = usual("AMQP_URL") {
            config.amqp_url = url.clone();
        }
        if let Some(url) = usual("DATABASE_URL") {
            config.database_url = url.clone();
        }
        self.variables("", WORKER, &mut config);

        let mut retry = RetryPolicy::default();
        for (key, value) in retry_table.into_iter().flatten() {
            self.apply("retry.", RETRY, &mut retry, key, value);
        }
        self.variables("retry.", RETRY, &mut retry);
        config.retry = retry;

        for entry @ (name, _) in handler_tables.into_iter().flatten() {
            if let Some(table) = self.table(&format!("handlers.{}", name.get_ref()), entry) {
                let handler = self.handler(name.get_ref(), name.span().start, table, retry);
                config
                    .handlers
                    .insert(name.get_ref().clone().into_owned(), handler);
            }
        }
        self.ambiguous_variables(&config);
        config
    }

    fn handler(
        &mut self,
        name: &str,
        offset: usize,
        table: &DeTable<'_>,
        retry: RetryPolicy,
    ) -> HandlerConfig {
        let section = format!("handlers.{name}.");
        let retry_section = format!("{section}retry.");
        self.places
            .insert(format!("handlers.{name}"), self.at(offset));
        let mut handler = HandlerConfig::default();
        let mut own = retry;
        let before = self.places.len();
        for entry @ (key, value) in table {
            match key.get_ref().as_ref() {
                "max_attempts" => self.apply(&retry_section, &RETRY[..1], &mut own, key, value),
                "retry" => {
                    for (key, value) in self
                        .table(&format!("{section}retry"), entry)
                        .into_iter()
                        .flatten()
                    {
                        self.apply(&retry_section, RETRY, &mut own, key, value);
                    }
                }
                _ => {}
            }
        }
        self.variable(
            &format!("{retry_section}max_attempts"),
            &variable_name(&format!("{section}max_attempts")),
            &RETRY[0],
            &mut own,
        );
        self.variables(&retry_section, RETRY, &mut own);
        if self.places.len() > before {
            handler.options.retry = Some(own);
        }
        for (key, value) in table {
            if !matches!(key.get_ref().as_ref(), "retry" | "max_attempts") {
                self.apply(&section, HANDLER, &mut handler, key, value);
            }
        }
        self.variables(&section, HANDLER, &mut handler);
        let folder = self.path.parent().unwrap_or(Path::new(""));
        handler.dir = handler.dir.map(|dir| folder.join(dir));
        handler
    }

    /// Sets one key of the file.
    fn apply<T>(
        &mut self,
        section: &str,
        keys: &[Key<T>],
        target: &mut T,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let name = key.get_ref().as_ref();
        let place = self.at(key.span().start);
        let Some(known) = keys.iter().find(|known| known.name == name) else {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            let section = match section.trim_end_matches('.') {
                "" => String::new(),
                section => format!(" in [{section}]"),
            };
            self.complaints.push(format!(
                "{place}there is no key `{name}`{section}; {}",
                advice(name, &names)
            ));
            return;
        };
        let full = format!("{section}{name}");
        if let Some(earlier) = self.places.insert(full.clone(), place.clone()) {
            self.complaints.push(format!(
                "{place}`{full}` is given twice; it is also at {}",
                earlier.trim_end_matches(": ")
            ));
        }
        let given = Given::in_file(format!("{place}`{full}`"), value.get_ref());
        if let Err(complaint) = (known.set)(target, &given) {
            self.complaints.push(complaint);
        }
    }

    /// Sets every key of a section that the environment gives.
    fn variables<T>(&mut self, section: &str, keys: &[Key<T>], target: &mut T) {
        for key in keys {
            let full = format!("{section}{}", key.name);
            self.variable(&full, &variable_name(&full), key, target);
        }
    }

    fn variable<T>(&mut self, full: &str, variable: &str, key: &Key<T>, target: &mut T) {
        let environment = self.environment;
        if let Some(value) = environment.get(variable).filter(|value| !value.is_empty()) {
            self.places.insert(full.to_owned(), format!("{variable}: "));
            if let Err(complaint) = (key.set)(target, &Given::in_environment(variable, value)) {
                self.complaints.push(complaint);
            }
        }
    }

    /// Handlers whose names differ in a dot or a dash only, or in a `_RETRY` at the end, share variables.
    fn ambiguous_variables(&mut self, config: &Config) {
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for name in config.handlers.keys() {
            for variable in handler_variables(name) {
                if !self.environment.contains_key(&variable) {
                    continue;
                }
                if let Some(other) = owners.insert(variable.clone(), name) {
                    self.complaints.push(format!(
                        "{variable} could mean the handler {other:?} or {name:?}; say it in the file"
                    ));
                }
            }
        }
    }

    fn table<'i>(&mut self, name: &str, (key, value): Entry<'i>) -> Option<&'i DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let place = self.at(key.span().start);
            self.complaints.push(format!(
                "{place}`{name}` is {}; expected a section: [{name}]",
                kind(value.get_ref())
            ));
        }
        table
    }

    fn at(&self, offset: usize) -> String {
        format!("{}:{}: ", self.path.display(), line_of(self.text, offset))
    }

    /// Where a key was given, or else its section.
    fn place_of(&self, key: &str) -> String {
        let mut part = key;
        loop {
            if let Some(place) = self.places.get(part) {
                return place.clone();
            }
            match part.rsplit_once('.') {
                Some((section, _)) => part = section,
                None => return String::new(),
            }
        }
    }
}

fn variable_name(key: &str) -> String {
    let name = key.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() => c.to_ascii_uppercase(),
        _ => '_',
    });
    PREFIX.chars().chain(name).collect()
}

fn handler_variables(name: &str) -> impl Iterator<Item = String> {
    let own = HANDLER.iter().map(|key| key.name.to_owned());
    let retry = RETRY.iter().map(|key| format!("retry.{}", key.name));
    own.chain(["max_attempts".to_owned()])
        .chain(retry)
        .map(move |key| variable_name(&format!("handlers.{name}.{key}")))
}

fn advice(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the keys there are {}", known.join(", ")),
    }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min()
        .map(|(_, known)| known)
}

/// Says what is probably a mistake but need not be one. Unknown variables are none in general: Kubernetes sets
/// `CLIQUET_PORT` and more in every container beside a service called `cliquet`.
fn warn(config: &Config, environment: &Environment) {
    let mut known: Vec<String> = WORKER.iter().map(|key| variable_name(key.name)).collect();
    known.extend(
        RETRY
            .iter()
            .map(|key| variable_name(&format!("retry.{}", key.name))),
    );
    known.extend(
        config
            .handlers
            .keys()
            .flat_map(|name| handler_variables(name)),
    );
    let names: Vec<_> = known.iter().map(String::as_str).collect();
    for variable in environment.keys().filter(|name| name.starts_with(PREFIX)) {
        if names.contains(&variable.as_str()) {
            continue;
        }
        if let Some(near) = nearest(&variable[PREFIX.len()..], &strip(&names)) {
            tracing::warn!(
                "{variable} in the environment is no setting of cliquet and changes nothing; did you mean {PREFIX}{near}?"
            );
        } else if variable.starts_with("CLIQUET_HANDLERS_") {
            tracing::warn!(
                "{variable} in the environment changes nothing: no handler of the file has such a setting"
            );
        }
    }
    let longest = config
        .ladder
        .rungs()
        .last()
        .map(|rung| rung.delay())
        .unwrap_or_default();
    let own = config
        .handlers
        .values()
        .filter_map(|handler| handler.options.retry);
    if let Some(max) = own
        .chain([config.retry])
        .map(|retry| retry.max)
        .max()
        .filter(|max| *max > longest)
    {
        tracing::warn!(
            "`max` of a retry policy is {}, but the longest delay of the ladder is {}: no delay is longer than that. Lengthen `ladder`, or lower `max`",
            humantime::format_duration(max),
            humantime::format_duration(longest)
        );
    }
}

fn strip<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir().join(format!(
            "cliquet-config-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("cliquet.toml");
        fs::write(&path, text).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let loaded = Config::load(Some(&path), &environment);
        fs::remove_dir_all(&folder).unwrap();
        loaded
    }

    fn complaints(text: &str, environment: &[(&str, &str)]) -> String {
        load(text, environment)
            .expect_err("bad settings were accepted")
            .to_string()
    }

    const WHOLE: &str = r#"
        amqp_url = "amqp://file"
        database_url = "postgres://file/db"
        queue = "orders"
        name = "here"
        concurrency = 16
        drain_timeout = "45s"
        heartbeat = "1s"
        patience = "10s"
        crash_limit = 4
        brake_after = 50
        probe_every = "1m"
        hand_over_after = "10m"
        reconcile_every = "2s"
        lanes = 3
        publishers = 4
        handler_connections = 5
        http = "127.0.0.1:9464"
        redact = ["payload.card", "result"]
        declare = false
        ladder = ["5s", "200ms"]

        [retry]
        max_attempts = 7
        initial = "2s"
        max = "1m"
        multiplier = 3
        jitter = 0.25

        [handlers.upload_image]
        exec = ["python3", "upload.py"]
        dir = "scripts"
        env = ["TOKEN"]
        output_limit = 1000
        timeout = "2m"
        max_attempts = 5
        brake_after = 0

        [handlers.upload_image.retry]
        initial = "5s"

        [handlers."shop.validate"]
        exec = ["/bin/validate"]
    "#;

    #[test]
    fn every_key_of_the_file_is_read() {
        let config = load(WHOLE, &[]).unwrap();
        assert_eq!(
            (config.amqp_url.as_str(), config.database_url.as_str()),
            ("amqp://file", "postgres://file/db")
        );
        assert_eq!(
            (config.queue.as_str(), config.name.as_str()),
            ("orders", "here")
        );
        assert_eq!(
            (config.concurrency, config.crash_limit, config.declare),
            (16, 4, false)
        );
        assert_eq!(
            (config.lanes, config.publishers, config.handler_connections),
            (3, 4, 5)
        );
        assert_eq!(config.http, Some(([127, 0, 0, 1], 9464).into()));
        assert_eq!(config.redact, ["payload.card", "result"]);
        assert_eq!(config.drain_timeout, Duration::from_secs(45));
        assert_eq!(config.heartbeat, Duration::from_secs(1));
        assert_eq!(config.patience, Duration::from_secs(10));
        assert_eq!(config.hand_over_after, Duration::from_secs(600));
        assert_eq!(config.reconcile_every, Duration::from_secs(2));
        assert_eq!(
            (config.brake_after, config.probe_every),
            (50, Duration::from_secs(60))
        );
        assert_eq!(config.ladder.rungs().len(), 2);
        let expected = RetryPolicy {
            max_attempts: 7,
            initial: Duration::from_secs(2),
            max: Duration::from_secs(60),
            multiplier: 3.0,
            jitter: 0.25,
        };
        assert_eq!(config.retry, expected);

        let upload = &config.handlers["upload_image"];
        assert_eq!(upload.exec, ["python3", "upload.py"]);
        assert!(
            upload.dir.as_ref().unwrap().is_absolute()
                && upload.dir.as_ref().unwrap().ends_with("scripts")
        );
        assert_eq!(
            (upload.env.as_slice(), upload.output_limit),
            (["TOKEN".to_owned()].as_slice(), Some(1000))
        );
        assert_eq!(upload.options.timeout, Some(Duration::from_secs(120)));
        assert_eq!(upload.options.brake_after, Some(0));
        let own = RetryPolicy {
            max_attempts: 5,
            initial: Duration::from_secs(5),
            ..expected
        };
        assert_eq!(upload.options.retry, Some(own));
        assert_eq!(config.handlers["shop.validate"].options.retry, None);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = load(
            WHOLE,
            &[
                ("CLIQUET_QUEUE", "env"),
                ("CLIQUET_CONCURRENCY", "8"),
                ("CLIQUET_LADDER", "1s, 2s,3s"),
                ("CLIQUET_DECLARE", "true"),
                ("CLIQUET_HTTP", "[::1]:80"),
                ("CLIQUET_REDACT", "input.secret, payload"),
                ("CLIQUET_RETRY_MAX_ATTEMPTS", "9"),
                ("CLIQUET_RETRY_JITTER", "0"),
                ("CLIQUET_HANDLERS_UPLOAD_IMAGE_TIMEOUT", "3s"),
                ("CLIQUET_HANDLERS_UPLOAD_IMAGE_MAX_ATTEMPTS", "2"),
                ("CLIQUET_HANDLERS_SHOP_VALIDATE_EXEC", r#"["a,b", "c"]"#),
                ("CLIQUET_HANDLERS_SHOP_VALIDATE_RETRY_MAX", "90s"),
                ("CLIQUET_NAME", ""),
            ],
        )
        .unwrap();
        assert_eq!(
            (config.queue.as_str(), config.concurrency, config.declare),
            ("env", 8, true)
        );
        assert_eq!(config.ladder.rungs().len(), 3);
        assert_eq!(config.http, Some("[::1]:80".parse().unwrap()));
        assert_eq!(config.redact, ["input.secret", "payload"]);
        assert_eq!((config.retry.max_attempts, config.retry.jitter), (9, 0.0));
        let upload = &config.handlers["upload_image"].options;
        assert_eq!(upload.timeout, Some(Duration::from_secs(3)));
        assert_eq!(upload.retry.map(|retry| retry.max_attempts), Some(2));
        let validate = &config.handlers["shop.validate"];
        assert_eq!(validate.exec, ["a,b", "c"]);
        let own = RetryPolicy {
            max: Duration::from_secs(90),
            ..config.retry
        };
        assert_eq!(validate.options.retry, Some(own));
        assert_eq!(config.name, "here", "an empty variable counts as none");
    }

    #[test]
    fn addresses_are_read_as_everyone_expects() {
        let usual = [
            ("AMQP_URL", "amqp://usual"),
            ("DATABASE_URL", "postgres://usual/db"),
        ];
        let config = load(WHOLE, &usual).unwrap();
        assert_eq!(
            (config.amqp_url.as_str(), config.database_url.as_str()),
            ("amqp://usual", "postgres://usual/db")
        );
        let config = load(WHOLE, &[usual[0], ("CLIQUET_AMQP_URL", "amqp://own")]).unwrap();
        assert_eq!(config.amqp_url, "amqp://own");
    }

    #[test]
    fn without_a_file_the_defaults_and_the_hosts_name_stand() {
        let config = load("", &[]).unwrap();
        assert_eq!(
            (config.queue.as_str(), config.concurrency, config.declare),
            ("jobs", 64, true)
        );
        assert!(!config.name.is_empty());
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_all_at_once() {
        let told = complaints(
            "concurency = 3\nmax_attempts = 2\nlanes = 0\ndrain_timeout = 30\n[retry]\njitter = 7\ninitail = \"1s\"\n[handlers.a]\n",
            &[("CLIQUET_HEARTBEAT", "soon")],
        );
        for words in [
            "cliquet.toml:1: there is no key `concurency`; did you mean `concurrency`?",
            "cliquet.toml:2: there is no key `max_attempts` here; it belongs under [retry]",
            "cliquet.toml:3: `lanes` is 0; expected 1 to 64",
            "cliquet.toml:4: `drain_timeout` is 30; expected a duration with its unit",
            "cliquet.toml:6: [retry]: `jitter` is 7; expected 0.0 to 1.0",
            "cliquet.toml:7: there is no key `initail` in [retry]; did you mean `initial`?",
            "cliquet.toml:8: [handlers.a] says nothing to run; add `exec`",
            "CLIQUET_HEARTBEAT is \"soon\"; expected a duration",
        ] {
            assert!(told.contains(words), "{told}\n does not say\n{words}");
        }
    }

    #[test]
    fn values_of_another_type_are_told() {
        for (text, words) in [
            ("queue = 7", "`queue` is an integer; expected a string"),
            (
                "concurrency = \"8\"",
                "`concurrency` is a string; expected a whole number",
            ),
            ("concurrency = 70000", "`concurrency` is 70000; expected"),
            ("concurrency = -1", "`concurrency` is -1; expected"),
            (
                "http = \"shop.example:80\"",
                "\"shop.example:80\" is no address to listen at",
            ),
            (
                "redact = [\"card\"]",
                "`redact` names \"card\"; expected payload",
            ),
            (
                "declare = \"yes\"",
                "`declare` is a string; expected true or false",
            ),
            ("ladder = \"5s\"", "`ladder` is a string; expected a list"),
            (
                "ladder = [5]",
                "`ladder` is a list with an integer in it; expected",
            ),
            ("ladder = [\"soon\"]", "\"soon\" is not a delay"),
            ("retry = 3", "`retry` is an integer; expected a section"),
            ("handlers = []", "`handlers` is a list; expected a section"),
            (
                "[handlers.a]\nexec = \"run me\"",
                "`handlers.a.exec` is a string; expected a list",
            ),
            (
                "[handlers.a]\nexec = [\"a\"]\nenv = [\"A=1\"]",
                "\"A=1\" is not the name",
            ),
            (
                "[handlers.a]\nexec = [\"a\"]\nmax_attempts = 1\nretry.max_attempts = 2",
                "given twice",
            ),
            (
                "[handlers.a]\nexec = [\"a\"]\ntimeout = \"0s\"",
                "`timeout` is 0s; expected more than 0",
            ),
            (
                "[handlers.\"\"]\nexec = [\"a\"]",
                "the handler's name \"\" cannot be used",
            ),
        ] {
            let told = complaints(text, &[]);
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_without_its_text() {
        let told = complaints(
            "queue = \"a\"\namqp_url = \"amqp://ada:s3cret@broker\" oops\n",
            &[],
        );
        assert!(
            told.contains("cliquet.toml:2: ") && !told.contains("s3cret"),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let error = Config::load(
            Some(Path::new("/nowhere/cliquet.toml")),
            &Environment::new(),
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nowhere/cliquet.toml cannot be read"),
            "{error}"
        );
    }

    #[test]
    fn a_variable_that_two_handlers_share_is_refused() {
        let text = "[handlers.up-load]\nexec = [\"a\"]\n[handlers.up_load]\nexec = [\"b\"]\n";
        assert!(load(text, &[]).is_ok());
        let told = complaints(text, &[("CLIQUET_HANDLERS_UP_LOAD_TIMEOUT", "1s")]);
        assert!(told.contains("\"up-load\" or \"up_load\""), "{told}");
    }
}
