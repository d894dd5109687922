//! What errors have in common: two that differ in ids, numbers, addresses and quoted words alone are one failure to whoever
//! has to mend it.

use sha2::{Digest, Sha256};

/// Stands for what does not count.
const ANY: char = '…';
/// How much of an error is looked at, in characters.
const LOOKED_AT: usize = 600;
/// The longest likeness, in characters.
const LONGEST: usize = 200;
/// A quoted part is no longer than this, in characters: what follows a lone quotation mark counts.
const LONGEST_QUOTE: usize = 200;
/// Words that give the number behind them a meaning: 503 and 404 are not alike.
const NAMES_A_CODE: [&str; 9] = [
    "http", "status", "code", "exit", "signal", "errno", "sqlstate", "error", "os",
];

/// The error as people read it, without what is another in each job: `HTTP 503: … says …`.
pub(super) fn likeness(error: &str) -> String {
    let text: Vec<char> = error.chars().take(LOOKED_AT).collect();
    let mut like = Like::default();
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        let rest = &text[at..];
        let taken = match c {
            '"' | '\'' | '`' => match closing(rest) {
                // An apostrophe within a word opens nothing.
                Some(end) if !like.in_word() => {
                    like.any();
                    end + 1
                }
                _ => like.literally(&rest[..1]),
            },
            c if c.is_whitespace() => {
                like.space();
                1
            }
            c if is_word(c) => {
                let length = rest.iter().take_while(|c| is_word(**c)).count();
                like.word(&rest[..length]);
                length
            }
            _ => like.literally(&rest[..1]),
        };
        at += taken;
    }
    like.ended()
}

/// The short name of a group of like errors at one handler.
pub(super) fn group_id(handler: Option<&str>, likeness: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(handler.unwrap_or_default());
    hash.update([0]);
    hash.update(likeness);
    hash.finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Where a quotation ends that begins here.
fn closing(text: &[char]) -> Option<usize> {
    let (quote, rest) = text.split_first()?;
    let end = rest
        .iter()
        .take(LONGEST_QUOTE)
        .position(|c| c == quote || *c == '\n')?;
    (rest[end] == *quote).then_some(end + 1)
}

#[derive(Default)]
struct Like {
    text: String,
    /// The last word, in lower case.
    last_word: String,
}

impl Like {
    fn in_word(&self) -> bool {
        self.text.chars().next_back().is_some_and(is_word)
    }

    fn literally(&mut self, text: &[char]) -> usize {
        self.text.extend(text);
        text.len()
    }

    fn space(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with(' ') {
            self.text.push(' ');
        }
    }

    /// Several in a row are one: a time, an address or a list is as long as it likes.
    fn any(&mut self) {
        let between = |c: char| matches!(c, ' ' | '.' | ':' | ',' | '/' | '-' | '+' | '@');
        let before = self.text.trim_end_matches(between);
        if before.ends_with(ANY) {
            self.text.truncate(before.len());
        } else {
            self.text.push(ANY);
        }
        self.last_word.clear();
    }

    fn word(&mut self, word: &[char]) {
        let digits = word.iter().filter(|c| c.is_ascii_digit()).count();
        let is_code =
            digits == word.len() && digits <= 5 && NAMES_A_CODE.contains(&self.last_word.as_str());
        let is_hex = word.len() >= 8 && word.iter().all(char::is_ascii_hexdigit);
        if (digits > 0 && !is_code) || is_hex {
            self.any();
        } else {
            self.literally(word);
            self.last_word = word.iter().collect::<String>().to_lowercase();
        }
    }

    fn ended(self) -> String {
        self.text.trim_end().chars().take(LONGEST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_another_in_each_job_does_not_count() {
        for (error, like) in [
            (
                "HTTP 503: the image store is away",
                "HTTP 503: the image store is away",
            ),
            (
                "HTTP 503 for https://images.example/4711/a-17.jpg",
                "HTTP 503 for https://images.example/….jpg",
            ),
            (
                "no row for 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11",
                "no row for …",
            ),
            (
                "the key \"order 7\" and the key 'b' aren't there",
                "the key … and the key … aren't there",
            ),
            (
                "exit code 65:\n  line 12\n\tof x.py",
                "exit code 65: line … of x.py",
            ),
            (
                "at 2026-11-28T22:34:01.123Z 10.0.0.1:5432 refused",
                "at … refused",
            ),
            ("commit deadbeefcafe is bad", "commit … is bad"),
            (
                "duplicate key (SQLSTATE 23505)",
                "duplicate key (SQLSTATE 23505)",
            ),
            ("os error 111", "os error 111"),
            ("took 1500 ms", "took … ms"),
            ("the 'value' is wrong", "the … is wrong"),
            ("", ""),
        ] {
            assert_eq!(likeness(error), like, "{error}");
        }
    }

    #[test]
    fn errors_of_any_length_are_bounded_and_text_of_any_script_is_whole() {
        assert_eq!(likeness(&"é ".repeat(5_000)).chars().count(), LONGEST);
        assert_eq!(likeness("商品 12 がない"), "商品 … がない");
    }

    #[test]
    fn a_group_is_of_one_handler_and_one_likeness() {
        let id = group_id(Some("upload"), "HTTP 503");
        assert_eq!(id.len(), 12);
        assert_eq!(id, group_id(Some("upload"), "HTTP 503"));
        assert_ne!(id, group_id(Some("upload"), "HTTP 404"));
        assert_ne!(id, group_id(Some("other"), "HTTP 503"));
        assert_ne!(id, group_id(None, "HTTP 503"));
    }
}
