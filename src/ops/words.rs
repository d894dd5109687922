//! Text for terminals: safe, cut to a width, and times as people say them.

use std::{borrow::Cow, fmt, io::IsTerminal, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text on one line: errors hold line ends and escape sequences, which must not reach the terminal as such.
pub(super) fn one_line(text: &str) -> String {
    let text = uncoloured(text);
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(shown));
    }
    line
}

/// The lines of a text, each safe for a terminal.
pub(super) fn lines(text: &str) -> Vec<String> {
    uncoloured(text)
        .lines()
        .map(|line| line.replace('\t', "    ").chars().map(shown).collect())
        .collect()
}

/// The text without the colours that programs write (`ESC [ … letter`), which are no part of what they say.
fn uncoloured(text: &str) -> Cow<'_, str> {
    if !text.contains("\x1b[") {
        return Cow::Borrowed(text);
    }
    let mut pieces = text.split("\x1b[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| ('\x20'..='\x3f').contains(&c));
        let mut rest = rest.chars();
        rest.next();
        plain.push_str(rest.as_str());
    }
    Cow::Owned(plain)
}

fn shown(c: char) -> char {
    if is_unsafe(c) { '\u{fffd}' } else { c }
}

/// Control characters move the cursor; the direction marks make text read otherwise than it is.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Any bytes, so that each can be told: line ends stay, and what is no text or unsafe is written as `\xff` or `\u{202e}`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Writing to a string does not fail.
            let _ = match c {
                '\n' => writeln!(text),
                c if c.is_ascii_control() => write!(text, "\\x{:02x}", u32::from(c)),
                c if is_unsafe(c) => write!(text, "{}", c.escape_unicode()),
                c => write!(text, "{c}"),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The text, cut with an ellipsis where it is wider than so many columns.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut taken = 0;
    for c in text.chars() {
        taken += c.width().unwrap_or(0);
        if taken + 1 > columns {
            break;
        }
        short.push(c);
    }
    if columns > 0 {
        short.push('…');
    }
    short
}

/// The columns of the terminal that standard output is; none when it is no terminal, where nothing is cut.
pub(super) fn columns() -> Option<usize> {
    let stdout = std::io::stdout();
    let asked = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    if !stdout.is_terminal() {
        return None;
    }
    asked
        .or_else(|| {
            rustix::termios::tcgetwinsize(stdout)
                .ok()
                .map(|size| size.ws_col.into())
        })
        .filter(|columns| *columns > 0)
        .or(Some(80))
}

/// Whether standard output is in colour: on a terminal that has any, unless NO_COLOR asks for none.
pub(super) fn has_colour() -> bool {
    let set = |name: &str| std::env::var_os(name).unwrap_or_default();
    std::io::stdout().is_terminal() && set("NO_COLOR").is_empty() && set("TERM") != "dumb"
}

/// A status in its colour: what is well is green, what waits yellow, what failed red. Other words stay as they are.
pub(super) fn painted(word: &str, colour: bool) -> Cow<'_, str> {
    let code = match word.trim_end() {
        "SUCCESS" | "ok" | "right" => 32,
        "RETRYING" | "warning" | "unproven" => 33,
        "FAILED" | "PROBLEM" | "wrong" | "missing" => 31,
        "PROCESSING" => 36,
        _ => return Cow::Borrowed(word),
    };
    match colour {
        true => Cow::Owned(format!("\x1b[{code}m{word}\x1b[0m")),
        false => Cow::Borrowed(word),
    }
}

/// Now, for ages. Only for show: nothing is decided by it.
pub(super) fn now() -> DateTime<Utc> {
    DateTime::from(std::time::SystemTime::now())
}

/// A span as people say it: `12s`, `3m`, `5h`, `2d`.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let text = match seconds {
            0 if self.0.is_zero() => "0s".to_owned(),
            0 => format!("{}ms", self.0.as_millis().max(1)),
            1..10 => format!("{:.1}s", self.0.as_secs_f64()),
            10..120 => format!("{seconds}s"),
            120..7_200 => format!("{}m", seconds / 60),
            7_200..172_800 => format!("{}h", seconds / 3_600),
            _ => format!("{}d", seconds / 86_400),
        };
        f.pad(&text)
    }
}

/// The span between two times; none when they are the wrong way round, as clocks of two machines may have it.
pub(super) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Span {
    Span((to - from).to_std().unwrap_or_default())
}

/// `3m ago`.
pub(super) fn ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (now - time).num_seconds() {
        ..1 => "now".to_owned(),
        1..10 => format!("{}s ago", (now - time).num_seconds()),
        _ => format!("{} ago", between(time, now)),
    }
}

/// `in 12s`, or `due` when its time has come.
pub(super) fn until(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    if time <= now {
        "due".to_owned()
    } else {
        format!("in {}", between(now, time))
    }
}

/// `2026-11-24 09:53:01 UTC (3m ago)`.
pub(super) fn at(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let relative = if time > now {
        until(time, now)
    } else {
        ago(time, now)
    };
    format!("{} ({relative})", time.trunc_subsecs(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_move_the_cursor() {
        assert_eq!(
            one_line("bad\r\n\x1b]0;title\x07\tthing  "),
            "bad \u{fffd}]0;title\u{fffd} thing"
        );
        assert_eq!(lines("a\tb\n\x07c"), ["a    b", "\u{fffd}c"]);
        assert_eq!(one_line("\x1b[1;31mred\x1b[0m, \x1b[2J\x1b["), "red,");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_and_not_sent_to_the_terminal() {
        assert_eq!(
            escaped(b"{\n\"a\": \"\xff\xfe\x1b[2J\t\xc3\xa9\xe2\x80\xae\"\r\n}"),
            "{\n\"a\": \"\\xff\\xfe\\x1b[2J\\x09é\\u{202e}\"\\x0d\n}"
        );
    }

    #[test]
    fn text_is_cut_by_columns_and_not_by_bytes() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("too long", 5), "too …");
        assert_eq!(cut("商品を公開", 5), "商品…");
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn times_read_as_people_say_them() {
        let now = now();
        let past = |seconds| now - chrono::TimeDelta::seconds(seconds);
        assert_eq!(ago(past(0), now), "now");
        assert_eq!(ago(past(-5), now), "now");
        assert_eq!(ago(past(3), now), "3s ago");
        assert_eq!(ago(past(95), now), "95s ago");
        assert_eq!(ago(past(185), now), "3m ago");
        assert_eq!(ago(past(3 * 86_400), now), "3d ago");
        assert_eq!(until(past(-12), now), "in 12s");
        assert_eq!(until(past(1), now), "due");
        assert_eq!(Span(Duration::from_millis(1_234)).to_string(), "1.2s");
        assert_eq!(Span(Duration::from_millis(12)).to_string(), "12ms");
    }
}
