//! One value as it was given, in the file or in the environment, and how it is read as what its key wants.

use std::time::Duration;

use toml::de::DeValue;

/// One value and the place where it was given, which every complaint begins with.
pub(super) struct Given<'a> {
    /// `cliquet.toml:7: ` and the key, or the variable's name.
    place: String,
    value: Value<'a>,
}

enum Value<'a> {
    Toml(&'a DeValue<'a>),
    Variable(&'a str),
}

impl<'a> Given<'a> {
    pub(super) fn in_file(place: String, value: &'a DeValue<'a>) -> Self {
        Self {
            place,
            value: Value::Toml(value),
        }
    }

    pub(super) fn in_environment(variable: &str, value: &'a str) -> Self {
        Self {
            place: variable.to_owned(),
            value: Value::Variable(value),
        }
    }

    /// Any string.
    pub(super) fn text(&self) -> Result<String, String> {
        match self.value {
            Value::Toml(DeValue::String(text)) => Ok(text.to_string()),
            Value::Toml(other) => Err(self.complain(kind(other), "a string")),
            Value::Variable(text) => Ok(text.to_owned()),
        }
    }

    /// A whole number that fits `T`; the range proper is [`Config::check`](super::Config::check)'s.
    pub(super) fn whole<T: TryFrom<u64>>(&self) -> Result<T, String> {
        let (number, shown) = match self.value {
            Value::Toml(DeValue::Integer(digits)) => (
                u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
                digits.to_string(),
            ),
            Value::Toml(other) => return Err(self.complain(kind(other), "a whole number")),
            Value::Variable(text) => (text.trim().parse().ok(), format!("{text:?}")),
        };
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.complain(&shown, "a whole number in its range"))
    }

    /// Any number.
    pub(super) fn number(&self) -> Result<f64, String> {
        let (number, shown) = match self.value {
            Value::Toml(DeValue::Float(digits)) => {
                (digits.as_str().parse().ok(), digits.to_string())
            }
            Value::Toml(DeValue::Integer(_)) => return self.whole::<u32>().map(f64::from),
            Value::Toml(other) => return Err(self.complain(kind(other), "a number")),
            Value::Variable(text) => (text.trim().parse().ok(), format!("{text:?}")),
        };
        number.ok_or_else(|| self.complain(&shown, "a number"))
    }

    /// A duration with its unit.
    pub(super) fn duration(&self) -> Result<Duration, String> {
        let expected = "a duration with its unit, such as \"30s\", \"200ms\" or \"2m 30s\"";
        let text = match self.value {
            Value::Toml(DeValue::Integer(digits)) => {
                return Err(self.complain(&digits.to_string(), expected));
            }
            Value::Toml(DeValue::String(text)) => text,
            Value::Toml(other) => return Err(self.complain(kind(other), expected)),
            Value::Variable(text) => text,
        };
        humantime::parse_duration(text.trim())
            .map_err(|_| self.complain(&format!("{text:?}"), expected))
    }

    /// Yes or no.
    pub(super) fn truth(&self) -> Result<bool, String> {
        match self.value {
            Value::Toml(DeValue::Boolean(truth)) => Ok(*truth),
            Value::Toml(other) => Err(self.complain(kind(other), "true or false")),
            Value::Variable(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(true),
                "false" | "no" | "off" | "0" => Ok(false),
                _ => Err(self.complain(&format!("{text:?}"), "true or false")),
            },
        }
    }

    /// A list of strings. In the environment: separated by commas, or written as in the file where an entry holds a comma.
    pub(super) fn texts(&self) -> Result<Vec<String>, String> {
        let expected = "a list of strings, such as [\"one\", \"two\"]";
        match self.value {
            Value::Toml(DeValue::Array(entries)) => entries
                .iter()
                .map(|entry| match entry.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    other => {
                        Err(self.complain(&format!("a list with {} in it", kind(other)), expected))
                    }
                })
                .collect(),
            Value::Toml(other) => Err(self.complain(kind(other), expected)),
            Value::Variable(text) if text.trim_start().starts_with('[') => {
                let entries = DeValue::parse(text).map_err(|error| {
                    self.complain(
                        &format!("a list that cannot be read ({})", error.message()),
                        expected,
                    )
                })?;
                Given::in_file(self.place.clone(), entries.get_ref()).texts()
            }
            Value::Variable(text) => Ok(text
                .split(',')
                .map(|entry| entry.trim().to_owned())
                .collect()),
        }
    }

    /// A complaint about a value that was read but does not do.
    pub(super) fn refuse(&self, sentence: &str) -> String {
        format!("{}: {sentence}", self.place)
    }

    fn complain(&self, found: &str, expected: &str) -> String {
        format!("{} is {found}; expected {expected}", self.place)
    }
}

/// The type of a value of the file, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
