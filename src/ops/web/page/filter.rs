//! The list's filters as an address carries them: read, and written into the links that keep them.

use chrono::{DateTime, NaiveDateTime, Utc};
use url::form_urlencoded;

use super::parts::query;
use crate::{job::JobStatus, ledger::Find};

/// So many jobs stand on a page of the list.
pub(super) const PAGE: u32 = 50;

/// Reads the filters. Empty fields are none, since a form sends them all; unknown ones are for later versions.
pub(super) fn read(text: Option<&str>) -> Result<Find, String> {
    let mut find = Find {
        limit: PAGE,
        ..Find::default()
    };
    for (name, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
        let value = value.trim();
        if value.is_empty() {
            continue;
        }
        let some = || Some(value.to_owned());
        match name.as_ref() {
            "status" => {
                for word in value.split(',') {
                    let status: JobStatus = word.trim().parse()?;
                    if !find.status.contains(&status) {
                        find.status.push(status);
                    }
                }
            }
            "kind" => find.kind = some(),
            "queue" => find.queue = some(),
            "handler" => find.handler = some(),
            "error" => find.error = some(),
            "likeness" => find.likeness = some(),
            "since" => find.since = Some(time("since", value)?),
            "until" => find.until = Some(time("until", value)?),
            "after" => {
                let cursor = value.parse().map_err(|_| {
                    "`after` is no place in the list: it is taken from the link to older jobs"
                        .to_owned()
                })?;
                find.after = Some(cursor);
            }
            _ => {}
        }
    }
    Ok(find)
}

/// A time as browsers send it (`2026-11-28T22:30`, in UTC as all times here), or with its zone.
fn time(name: &str, value: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(value) {
        return Ok(time.to_utc());
    }
    let formats = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S%.f"];
    let read = formats
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(value, format).ok());
    read.map(|time| time.and_utc())
        .ok_or_else(|| format!("`{name}` is {value:?}; expected a time such as 2026-11-28T22:30"))
}

/// A time as a browser's field takes it.
pub(super) fn field(time: Option<DateTime<Utc>>) -> String {
    time.map(|time| time.format("%Y-%m-%dT%H:%M").to_string())
        .unwrap_or_default()
}

/// The address of the list with these filters; with `after`, of the page behind it.
pub(super) fn path(find: &Find, after: Option<&str>) -> String {
    let status: Vec<_> = find.status.iter().map(|status| status.as_str()).collect();
    let status = status.join(",");
    let (since, until) = (written(find.since), written(find.until));
    let text = |value: &'_ Option<String>| value.clone().unwrap_or_default();
    let (kind, queue, handler) = (text(&find.kind), text(&find.queue), text(&find.handler));
    let (error, likeness) = (text(&find.error), text(&find.likeness));
    let query = query([
        ("status", status.as_str()),
        ("kind", &kind),
        ("queue", &queue),
        ("handler", &handler),
        ("error", &error),
        ("likeness", &likeness),
        ("since", &since),
        ("until", &until),
        ("after", after.unwrap_or_default()),
    ]);
    format!("/jobs{query}")
}

fn written(time: Option<DateTime<Utc>>) -> String {
    time.map(|time| time.format("%Y-%m-%dT%H:%M:%S%.fZ").to_string())
        .unwrap_or_default()
}

/// Whether anything is asked for but the newest jobs.
pub(super) fn is_narrow(find: &Find) -> bool {
    let whole = Find {
        limit: find.limit,
        after: find.after,
        ..Find::default()
    };
    *find != whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_survive_the_address() {
        let asked = "status=FAILED&status=retrying%2CFAILED&kind=shop.publish&queue=&error=HTTP+503+%26&since=2026-11-28T22%3A30&until=2026-11-29T00:00:00%2B01:00&unknown=1";
        let find = read(Some(asked)).unwrap();
        assert_eq!(find.status, [JobStatus::Failed, JobStatus::Retrying]);
        assert_eq!(
            (
                find.kind.as_deref(),
                find.queue.as_deref(),
                find.error.as_deref()
            ),
            (Some("shop.publish"), None, Some("HTTP 503 &"))
        );
        assert_eq!(field(find.since), "2026-11-28T22:30");
        assert_eq!(field(find.until), "2026-11-28T23:00");
        let path = path(&find, None);
        let again = read(path.strip_prefix("/jobs?")).unwrap();
        assert_eq!(again, find);
        assert!(is_narrow(&find));
    }

    #[test]
    fn nothing_asked_is_every_job() {
        let find = read(None).unwrap();
        assert_eq!(
            find,
            Find {
                limit: PAGE,
                ..Find::default()
            }
        );
        assert_eq!(path(&find, None), "/jobs");
        assert!(!is_narrow(&find));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        assert!(read(Some("status=LOST")).unwrap_err().contains("LOST"));
        assert!(
            read(Some("since=yesterday"))
                .unwrap_err()
                .contains("`since`")
        );
    }
}
