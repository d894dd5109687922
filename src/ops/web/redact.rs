//! Hides parts of a job that not everybody who looks shall see: `redact = ["payload.card.number", "result.token"]`.
//!
//! The text is gone through as it was written, and nothing else of it is changed: numbers keep every digit and keys their order,
//! and a key that stands there twice is hidden twice. A point in a path leads to a key within a key, or belongs to the key
//! itself: `card.number` hides both `{"card": {"number": …}}` and `{"card.number": …}`.
//!
//! Errors stay as they are: people come here to read them.

use serde_json::value::RawValue;

use crate::ledger::JobDetail;

/// What stands in place of what is hidden, as JSON.
const HIDDEN: &str = r#""(hidden)""#;
/// Deeper than this nobody looks for what is to be hidden: the whole is.
const DEEPEST: usize = 100;

/// Hides in a job what these paths name. On the way to a key, lists are passed through, each entry alike.
pub(super) fn redact(detail: &mut JobDetail, hidden: &[String]) {
    let (payload, input) = (of("payload", hidden), of("input", hidden));
    let mut result = of("result", hidden);
    result.extend(of("results", hidden));
    hide(&mut detail.payload, &payload);
    for task in &mut detail.tasks {
        if let Some(given) = &mut task.input {
            hide(given, &input);
        }
        if let Some(answer) = &mut task.result {
            hide(answer, &result);
        }
    }
}

/// The paths within one part of a job; an empty one is the whole part.
fn of<'a>(part: &str, hidden: &'a [String]) -> Vec<&'a str> {
    let paths = hidden.iter().filter_map(|path| {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        (first == part).then_some(rest)
    });
    paths.collect()
}

/// What is hidden as a whole stays null where it is null: that nothing was there is no secret.
fn hide(json: &mut Box<RawValue>, paths: &[&str]) {
    if paths.is_empty() || json.get() == "null" {
        return;
    }
    // What cannot be gone through is hidden: nobody could say what would be shown.
    let shown = match paths.contains(&"") {
        true => None,
        false => Walk::over(json.get(), paths),
    };
    let shown = shown.unwrap_or_else(|| HIDDEN.to_owned());
    if shown != json.get()
        && let Ok(raw) = RawValue::from_string(shown)
    {
        *json = raw;
    }
}

/// A way through a document, and what of it is shown.
struct Walk<'j> {
    json: &'j str,
    /// What comes next.
    at: usize,
    /// Up to here the document is in `shown`.
    told: usize,
    shown: String,
}

impl<'j> Walk<'j> {
    fn over(json: &'j str, paths: &[&str]) -> Option<String> {
        let mut walk = Self {
            json,
            at: 0,
            told: 0,
            shown: String::new(),
        };
        walk.value(paths, 0)?;
        walk.shown.push_str(json.get(walk.told..)?);
        Some(walk.shown)
    }

    /// Goes over the value that comes next, and hides in it what the paths name.
    fn value(&mut self, paths: &[&str], depth: usize) -> Option<()> {
        let begins = self.next()?;
        if paths.is_empty() || !matches!(begins, b'{' | b'[') {
            return self.pass();
        }
        if depth == DEEPEST {
            return None;
        }
        self.at += 1;
        loop {
            match self.next()? {
                b'}' | b']' => {
                    self.at += 1;
                    return Some(());
                }
                b',' => self.at += 1,
                _ if begins == b'[' => self.value(paths, depth + 1)?,
                _ => self.field(paths, depth)?,
            }
        }
    }

    /// Goes over a key and its value.
    fn field(&mut self, paths: &[&str], depth: usize) -> Option<()> {
        let from = self.at;
        self.pass()?;
        let key: String = serde_json::from_str(self.json.get(from..self.at)?).ok()?;
        if self.next()? != b':' {
            return None;
        }
        self.at += 1;
        if paths.contains(&key.as_str()) {
            self.next()?;
            self.shown.push_str(self.json.get(self.told..self.at)?);
            self.shown.push_str(HIDDEN);
            self.pass()?;
            self.told = self.at;
            return Some(());
        }
        let rests: Vec<_> = paths
            .iter()
            .filter_map(|path| path.strip_prefix(key.as_str())?.strip_prefix('.'))
            .collect();
        self.value(&rests, depth + 1)
    }

    /// Passes over white space; what comes then.
    fn next(&mut self) -> Option<u8> {
        let rest = self.json.as_bytes().get(self.at..)?;
        self.at += rest
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        self.json.as_bytes().get(self.at).copied()
    }

    /// Passes over a value as a whole, however deep it is.
    fn pass(&mut self) -> Option<()> {
        self.next()?;
        let mut depth = 0_usize;
        loop {
            match self.json.as_bytes().get(self.at) {
                Some(b'"') => self.text()?,
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(_) if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                // A number or a word, up to what ends it.
                Some(byte) if !matches!(byte, b',' | b':' | b'}' | b']') => {
                    let rest = self.json.as_bytes().get(self.at..)?.iter();
                    let length = rest
                        .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
                        .count();
                    if length == 0 {
                        return None;
                    }
                    self.at += length;
                }
                _ => return None,
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn text(&mut self) -> Option<()> {
        let mut rest = self.json.as_bytes().get(self.at + 1..)?.iter();
        let before = rest.len();
        while let Some(byte) = rest.next() {
            match byte {
                b'\\' => drop(rest.next()),
                b'"' => {
                    self.at += 1 + before - rest.len();
                    return Some(());
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn hidden(json: &str, paths: &[&str]) -> String {
        let mut json = RawValue::from_string(json.to_owned()).unwrap();
        hide(&mut json, paths);
        json.get().to_owned()
    }

    #[test]
    fn a_key_is_hidden_wherever_lists_lead_to_it_and_the_rest_stays() {
        assert_eq!(
            hidden(
                r#"{"card":{"number":"4111","name":"A"},"n":1}"#,
                &["card.number"]
            ),
            r#"{"card":{"number":"(hidden)","name":"A"},"n":1}"#
        );
        assert_eq!(
            hidden(
                r#"{"cards":[{"number":1},{"number":{"a":2}},3]}"#,
                &["cards.number"]
            ),
            r#"{"cards":[{"number":"(hidden)"},{"number":"(hidden)"},3]}"#
        );
        assert_eq!(
            hidden(r#"[{"token":1}]"#, &["token"]),
            r#"[{"token":"(hidden)"}]"#
        );
        assert_eq!(
            hidden(r#"{"a":1,"b":null,"c":{"d":[2]}}"#, &["a", "b", "c.d"]),
            r#"{"a":"(hidden)","b":"(hidden)","c":{"d":"(hidden)"}}"#
        );
    }

    #[test]
    fn a_key_that_stands_there_twice_is_hidden_twice_and_however_it_is_written() {
        assert_eq!(
            hidden(
                r#"{"card":"4111","card":{"number":"4222"},"c\u0061rd":"4333"}"#,
                &["card"]
            ),
            r#"{"card":"(hidden)","card":"(hidden)","c\u0061rd":"(hidden)"}"#
        );
        assert_eq!(
            hidden(
                r#"{"card":{"number":"4111"},"card":{"name":"A","number":"4222"}}"#,
                &["card.number"]
            ),
            r#"{"card":{"number":"(hidden)"},"card":{"name":"A","number":"(hidden)"}}"#
        );
    }

    #[test]
    fn a_point_may_belong_to_the_key() {
        assert_eq!(
            hidden(
                r#"{"card.number":"1","card":{"number":"2"},"card.numbers":"3","a":{"card.number":"4"}}"#,
                &["card.number", "a.card.number"]
            ),
            r#"{"card.number":"(hidden)","card":{"number":"(hidden)"},"card.numbers":"3","a":{"card.number":"(hidden)"}}"#
        );
    }

    #[test]
    fn the_rest_stays_to_the_letter_whether_something_is_hidden_or_not() {
        for json in [r#"{ "b" : 1.50,  "a": 1e3 }"#, "null", "7", r#""card""#] {
            assert_eq!(hidden(json, &["card", "card.number"]), json);
        }
        assert_eq!(hidden("null", &[""]), "null");
        let long = r#"{ "price": 12345678901234567890.10, "z": [1E999, "\"card\": \\"], "card" : [ {} ], "a": 1 }"#;
        assert_eq!(
            hidden(long, &["card", "z.card"]),
            long.replace("[ {} ]", HIDDEN)
        );
    }

    #[test]
    fn a_whole_is_hidden_and_so_is_what_cannot_be_gone_through() {
        assert_eq!(hidden(r#"{"a":1}"#, &["", "a"]), HIDDEN);
        let deep = format!("{}{{\"card\":1}}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(hidden(&deep, &["card"]), HIDDEN);
        let beside = format!(r#"{{"card":{deep},"deep":{deep}}}"#);
        let shown = hidden(&beside, &["card"]);
        assert_eq!(shown, format!(r#"{{"card":{HIDDEN},"deep":{deep}}}"#));
        // Half a letter, which is no text.
        assert_eq!(hidden(r#"{"\ud800":1}"#, &["card"]), HIDDEN);
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let fields = proptest::collection::vec(("[ab\"\\\\]{1}", inner.clone()), 0..4);
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                fields.prop_map(|fields| fields.into_iter().collect::<Value>()),
            ]
        })
    }

    /// Whether what the path names is hidden wherever lists lead to it.
    fn is_hidden(value: &Value, path: &[&str]) -> bool {
        match (value, path) {
            (value, []) => *value == "(hidden)",
            (Value::Array(entries), path) => entries.iter().all(|entry| is_hidden(entry, path)),
            (Value::Object(fields), [key, rest @ ..]) => {
                fields.get(*key).is_none_or(|value| is_hidden(value, rest))
            }
            _ => true,
        }
    }

    proptest! {
        #[test]
        fn whatever_the_document_the_path_leads_to_nothing_and_all_else_is_as_it_was(document in documents(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&document).unwrap(),
                false => document.to_string(),
            };
            let shown: Value = serde_json::from_str(&hidden(&text, &["a.b"])).unwrap();
            prop_assert!(is_hidden(&shown, &["a", "b"]), "{}", shown);
            prop_assert_eq!(hidden(&text, &["c", "a.c", "b.b.c"]), text);
        }
    }
}
