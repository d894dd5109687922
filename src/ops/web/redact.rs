//! Hides parts of a job that not everybody who looks shall see: `redact = ["payload.card.number", "result.token"]`.
//!
//! Errors stay as they are: people come here to read them.

use std::collections::BTreeSet;

use serde_json::{Value, value::RawValue};

use crate::ledger::JobDetail;

/// What stands in place of what is hidden.
const HIDDEN: &str = "(hidden)";

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
fn of<'a>(part: &str, hidden: &'a [String]) -> BTreeSet<&'a str> {
    let paths = hidden.iter().filter_map(|path| {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        (first == part).then_some(rest)
    });
    paths.collect()
}

/// JSON that nothing is hidden of stays to the letter. What is hidden as a whole stays null where it is null: that nothing
/// was there is no secret.
fn hide(json: &mut Box<RawValue>, paths: &BTreeSet<&str>) {
    if paths.is_empty() || json.get() == "null" {
        return;
    }
    let hidden = match serde_json::from_str::<Value>(json.get()) {
        Ok(mut value) => paths
            .iter()
            .map(|path| hide_at(&mut value, path))
            .fold(false, |any, hit| any | hit)
            .then_some(value),
        // Such as a number beyond what is understood here: then nobody can say what would be shown.
        Err(_) => Some(HIDDEN.into()),
    };
    if let Some(hidden) = hidden
        && let Ok(raw) = RawValue::from_string(hidden.to_string())
    {
        *json = raw;
    }
}

/// Hides what is at the path, and says whether anything was.
fn hide_at(value: &mut Value, path: &str) -> bool {
    if path.is_empty() {
        *value = HIDDEN.into();
        return true;
    }
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        Value::Array(entries) => entries
            .iter_mut()
            .map(|entry| hide_at(entry, path))
            .fold(false, |any, hit| any | hit),
        Value::Object(fields) => fields
            .get_mut(key)
            .is_some_and(|value| hide_at(value, rest)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(json: &str, paths: &[&str]) -> String {
        let mut json = RawValue::from_string(json.to_owned()).unwrap();
        hide(&mut json, &paths.iter().copied().collect());
        json.get().to_owned()
    }

    #[test]
    fn a_key_is_hidden_wherever_lists_lead_to_it_and_the_rest_stays() {
        assert_eq!(
            hidden(
                r#"{"card":{"number":"4111","name":"A"},"n":1}"#,
                &["card.number"]
            ),
            r#"{"card":{"name":"A","number":"(hidden)"},"n":1}"#
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
    }

    #[test]
    fn what_has_nothing_to_hide_stays_to_the_letter() {
        for json in [r#"{ "b" : 1.50,  "a": 1e3 }"#, "null", "7", r#""card""#] {
            assert_eq!(hidden(json, &["card", "card.number"]), json);
        }
        assert_eq!(hidden("null", &[""]), "null");
    }

    #[test]
    fn a_whole_is_hidden_and_so_is_what_cannot_be_understood() {
        assert_eq!(hidden(r#"{"a":1}"#, &["", "a"]), r#""(hidden)""#);
        assert_eq!(
            hidden(r#"{"card": 1, "n": 1e999}"#, &["card"]),
            r#""(hidden)""#
        );
    }
}
