//! JSON as people read it: indented, and to the letter otherwise. Numbers keep every digit, since nothing is parsed.

use maud::{Markup, html};

/// So deep lines are indented; what lies deeper stays at this place.
const DEEPEST: usize = 40;
/// Above so many bytes even the whole is shown as it was written: indenting could make it a hundred times longer.
const INDENTED: usize = 256 * 1024;

/// A document that is shown up to `most` characters; `None` for all of it. Whoever sees a part is given the link.
pub(super) fn shown(json: &str, most: Option<usize>, whole: &str) -> Markup {
    let (text, cut) = match most {
        None if json.len() > INDENTED => {
            (json.chars().map(Shown).map(String::from).collect(), false)
        }
        most => pretty(json, most.unwrap_or(usize::MAX)),
    };
    html! {
        // Whoever uses the keyboard scrolls a box only when it can have the focus.
        pre.json tabindex="0" role="group" aria-label="JSON" { code { (text) @if cut { "\n…" } } }
        @if cut { p.more { a href=(whole) { "See the whole" } } }
    }
}

/// The document, indented; and whether it was cut.
pub(super) fn pretty(json: &str, most: usize) -> (String, bool) {
    let mut out = String::with_capacity(json.len().min(most).saturating_mul(2).min(INDENTED));
    let (mut depth, mut told) = (0usize, 0usize);
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if told >= most {
            return (out, true);
        }
        told += 1;
        match c {
            '"' => {
                out.push('"');
                while let Some(c) = chars.next() {
                    told += 1;
                    out.push_str(&String::from(Shown(c)));
                    match c {
                        '"' => break,
                        '\\' => out.extend(chars.next()),
                        _ if told >= most => return (out, true),
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => told -= 1,
            c => out.push_str(&String::from(Shown(c))),
        }
    }
    (out, false)
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth.min(DEEPEST) {
        out.push_str("  ");
    }
}

/// A character that cannot be seen, or that turns the direction of what follows, is written as JSON escapes it.
struct Shown(char);

impl From<Shown> for String {
    fn from(Shown(c): Shown) -> String {
        match c {
            '\n' | '\t' => c.to_string(),
            c if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                format!("\\u{:04x}", u32::from(c))
            }
            c => c.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(json: &str) -> String {
        let (text, cut) = pretty(json, usize::MAX);
        assert!(!cut);
        text
    }

    #[test]
    fn numbers_of_many_digits_stay_to_the_letter() {
        let json = r#"{"price": 12345678901234567890.123456789012345678901, "tiny": 1E-400, "n": [ 1.0 , -0 ]}"#;
        assert_eq!(
            all(json),
            "{\n  \"price\": 12345678901234567890.123456789012345678901,\n  \"tiny\": 1E-400,\n  \"n\": [\n    1.0,\n    -0\n  ]\n}"
        );
    }

    #[test]
    fn strings_stay_as_they_were_written() {
        assert_eq!(all(r#""a, \"b\": [c] \\""#), r#""a, \"b\": [c] \\""#);
        assert_eq!(
            all(r#"{"a":{},"b":[ ],"c":""}"#),
            "{\n  \"a\": {},\n  \"b\": [],\n  \"c\": \"\"\n}"
        );
        assert_eq!(all("null"), "null");
        assert_eq!(all("\"a\u{202e}b\""), "\"a\\u202eb\"");
    }

    #[test]
    fn a_long_document_is_cut_and_says_so() {
        let long = format!("[{}1]", "1,".repeat(10_000));
        let (text, cut) = pretty(&long, 100);
        assert!(cut && text.len() < 400, "{}", text.len());
        let string = format!("\"{}\"", "é".repeat(10_000));
        let (text, cut) = pretty(&string, 100);
        assert!(cut && text.chars().count() <= 102, "{}", text.len());
        let markup = shown(&long, Some(100), "/jobs/1?whole=1").into_string();
        assert!(markup.contains("href=\"/jobs/1?whole=1\""), "{markup}");
        let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
        assert!(all(&deep).lines().all(|line| line.len() <= 2 * DEEPEST + 2));
    }

    proptest! {
        #[test]
        fn indenting_changes_no_value(text in "[^\u{0}-\u{1f}\u{7f}-\u{9f}\u{202a}-\u{202e}\u{2066}-\u{2069}]{0,20}", n in any::<i64>()) {
            let value = serde_json::json!({ "text": text, (text.clone()): [n, [], {}, null, true, {"a": text}] });
            let again: serde_json::Value = serde_json::from_str(&all(&value.to_string())).unwrap();
            prop_assert_eq!(again, value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}", most in 0usize..40) {
            let _ = pretty(&text, most);
        }
    }
}
