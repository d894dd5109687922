//! Small parts that every page has: statuses, times, numbers, texts of others, addresses.

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use maud::{Markup, html};
use url::form_urlencoded;

use crate::{
    job::{JobId, JobStatus, TaskStatus},
    ops::words::{ago, cut, lines, one_line, until},
};

/// Longer errors are folded; the whole is one keypress away.
const LONG: usize = 240;

/// A job's status: a sign and the word, so that it is never told by colour alone.
pub(super) fn chip(status: JobStatus) -> Markup {
    chip_of(status.as_str())
}

/// A task's status.
pub(super) fn task_chip(status: TaskStatus) -> Markup {
    chip_of(status.as_str())
}

fn chip_of(word: &str) -> Markup {
    html! { span class={ "chip s-" (word) } { (icon(word)) (word) } }
}

/// The sign of a status.
pub(super) fn icon(word: &str) -> Markup {
    let path = match word {
        "SUCCESS" => "M3 8.5 6.5 12 13 4.5",
        "FAILED" => "M4 4l8 8M12 4l-8 8",
        "RETRYING" => "M13 8a5 5 0 1 1-1.6-3.7M13.2 1.8v3.4h-3.4",
        "PROCESSING" => "M5 3.5v9l7.5-4.5z",
        "CANCELLED" => "M4 12l8-8M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11z",
        _ => "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11zM8 5v3.2l2 1.3",
    };
    html! { svg.icon viewBox="0 0 16 16" aria-hidden="true" { path d=(path) {} } }
}

/// `3m ago` or `in 12s`, with the exact time for whoever asks.
pub(super) fn time(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let words = if at > now {
        until(at, now)
    } else {
        ago(at, now)
    };
    html! {
        time datetime=(at.to_rfc3339_opts(SecondsFormat::Millis, true)) title=(at.trunc_subsecs(0)) { (words) }
    }
}

/// The exact time, in words that are the same for everybody.
pub(super) fn exact(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    html! { (at.trunc_subsecs(0)) " (" (time(at, now)) ")" }
}

/// `1,234,567`.
pub(super) fn number(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::new();
    if value < 0 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 job`, `37 jobs`.
pub(super) fn count(value: i64, one: &str) -> String {
    format!(
        "{} {one}{}",
        number(value),
        if value == 1 { "" } else { "s" }
    )
}

/// Text of others on one line, cut to so many columns; its whole is in the title where it was cut.
pub(super) fn short(text: &str, most: usize) -> Markup {
    let line = one_line(text);
    let shown = cut(&line, most);
    html! {
        @if shown == line { (line) } @else { span title=(line) { (shown) } }
    }
}

/// An error as it was said. A long one is folded: the first words, and the whole when it is opened.
pub(super) fn error(text: &str) -> Markup {
    let said = lines(text).join("\n");
    let first = one_line(text);
    html! {
        @if said.chars().count() <= LONG && said.lines().count() <= 4 {
            pre.error { (said) }
        } @else {
            details.long {
                summary { span.error { (cut(&first, LONG)) } }
                pre.error { (said) }
            }
        }
    }
}

/// `?a=1&b=2`, or nothing; pairs without a value are left out.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut written = form_urlencoded::Serializer::for_suffix(String::from("?"), 1);
    for (name, value) in pairs {
        if !value.is_empty() {
            written.append_pair(name, value);
        }
    }
    let written = written.finish();
    if written == "?" {
        String::new()
    } else {
        written
    }
}

/// Where a job's page is.
pub(super) fn job_path(id: JobId) -> String {
    format!("/jobs/{id}")
}

/// The beginning of an id, as lists show it: enough to tell jobs apart, with the whole in the title.
pub(super) fn job_link(id: JobId) -> Markup {
    let text = id.to_string();
    let end = text.get(text.len().saturating_sub(12)..).unwrap_or(&text);
    html! { a.id href=(job_path(id)) title=(text) { "…" (end) } }
}

/// A number for an attribute of SVG: two decimals are finer than any screen.
pub(super) fn percent(value: f64) -> String {
    let value = if value.is_finite() {
        value.clamp(0.0, 100.0)
    } else {
        0.0
    };
    format!("{value:.2}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_counted_in_words() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(number(-1_000), "-1,000");
        assert_eq!(count(1, "job"), "1 job");
        assert_eq!(count(1_037, "job"), "1,037 jobs");
    }

    #[test]
    fn addresses_keep_what_they_are_given() {
        assert_eq!(query([("a", ""), ("b", "")]), "");
        assert_eq!(
            query([("error", "HTTP 503 & <b>"), ("kind", "")]),
            "?error=HTTP+503+%26+%3Cb%3E"
        );
    }

    #[test]
    fn what_others_wrote_is_escaped_and_long_errors_are_folded() {
        let shown = error("<script>alert(1)</script>\x1b[31m").into_string();
        assert_eq!(
            shown,
            "<pre class=\"error\">&lt;script&gt;alert(1)&lt;/script&gt;</pre>"
        );
        let long = format!("{}<b>end", "word ".repeat(100));
        let folded = error(&long).into_string();
        assert!(
            folded.starts_with("<details class=\"long\"><summary>"),
            "{folded}"
        );
        assert!(folded.contains("&lt;b&gt;end</pre>"), "{folded}");
        assert!(!folded.contains("<b>"), "{folded}");
        let cut = short("\"quoted\" words of some length", 12).into_string();
        assert_eq!(
            cut,
            "<span title=\"&quot;quoted&quot; words of some length\">&quot;quoted&quot; wo…</span>"
        );
    }
}
