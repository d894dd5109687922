//! The list of jobs: filters in the address, newest first, older ones behind a link.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    filter,
    parts::{chip, icon, job_path, short, time},
};
use crate::{
    job::JobStatus,
    ledger::{Find, Found, JobSummary},
};

pub(super) fn list(find: &Find, found: &Found, now: DateTime<Utc>) -> Markup {
    html! {
        h1 { "Jobs" }
        (form(find))
        @if found.jobs.is_empty() {
            div.card { p.empty { (none(find, found)) } }
        } @else {
            (table(&found.jobs, now))
        }
        (pages(find, found))
    }
}

fn form(find: &Find) -> Markup {
    html! {
        form.card.filters method="get" action="/jobs" role="search" aria-label="Filter jobs" {
            fieldset.statuses {
                legend { "Status" }
                @for status in JobStatus::ALL {
                    label.check { input type="checkbox" name="status" value=(status.as_str()) checked[find.status.contains(status)]; (chip(*status)) }
                }
            }
            div.fields {
                (field("Kind", "kind", find.kind.as_deref()))
                (field("Stands at handler", "handler", find.handler.as_deref()))
                (field("Error contains", "error", find.error.as_deref()))
                (field("Queue", "queue", find.queue.as_deref()))
                label { "Created from (UTC)" input type="datetime-local" name="since" value=(filter::field(find.since)); }
                label { "until (UTC)" input type="datetime-local" name="until" value=(filter::field(find.until)); }
            }
            @if let Some(likeness) = &find.likeness {
                input type="hidden" name="likeness" value=(likeness);
                p { "Only jobs of one group of like failures. " a href=(filter::path(&Find { likeness: None, ..find.clone() }, None)) { "Look at all" } }
            }
            div.row {
                button type="submit" { "Filter" }
                @if filter::is_narrow(find) { a href="/jobs" { "Clear" } }
            }
        }
    }
}

fn field(name: &str, key: &str, value: Option<&str>) -> Markup {
    html! { label { (name) input type="text" name=(key) value=[value] maxlength="200" autocomplete="off"; } }
}

fn none(find: &Find, found: &Found) -> &'static str {
    match (found.partial, filter::is_narrow(find), &find.after) {
        (true, ..) => "Nothing among the jobs that were looked at so far.",
        (_, _, Some(_)) => "There are no older jobs.",
        (_, true, _) => "No job fits these filters.",
        _ => "There is no job yet. A job is known from when a worker first takes its message.",
    }
}

fn table(jobs: &[JobSummary], now: DateTime<Utc>) -> Markup {
    html! {
        div.card.flush {
            // On a phone its rows are blocks, which browsers take for no table: the roles say that it is one.
            table.jobs role="table" {
                caption.off { "Jobs, newest first" }
                thead role="rowgroup" { tr role="row" { @for head in ["Status", "Job", "Progress", "Created"] { th scope="col" role="columnheader" { (head) } } } }
                tbody role="rowgroup" { @for job in jobs { (row(job, now)) } }
            }
        }
    }
}

fn row(job: &JobSummary, now: DateTime<Utc>) -> Markup {
    html! {
        tr role="row" {
            td role="cell" { (chip(job.status)) }
            th scope="row" role="rowheader" {
                a href=(job_path(job.id)) { (short(&job.kind, 60)) }
                code.id { (job.id) }
            }
            td role="cell" {
                span.progress { (progress(job)) }
                @if let Some(error) = &job.error { span.why { (short(error, 160)) } }
            }
            td.when role="cell" {
                (time(job.created_at, now))
                @if let (JobStatus::Retrying, Some(due)) = (job.status, job.next_attempt_at) { span.muted { "tried again " (time(due, now)) } }
            }
        }
    }
}

/// `2/7 Upload image 2/5 …`
fn progress(job: &JobSummary) -> Markup {
    html! {
        strong { (job.done) "/" (job.total) }
        @if let Some(label) = &job.label {
            " " (short(label, 60))
            @if job.status == JobStatus::Processing { " …" }
        }
    }
}

fn pages(find: &Find, found: &Found) -> Markup {
    let next = found.next.as_ref().map(ToString::to_string);
    html! {
        @if find.after.is_some() || next.is_some() {
            nav.pages aria-label="Pages" {
                @if find.after.is_some() { a href=(filter::path(find, None)) { (icon("PENDING")) "Newest" } }
                @if let Some(next) = &next {
                    a rel="next" href=(filter::path(find, Some(next))) {
                        @if found.partial { "Look further among older jobs" } @else { "Older" }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, summary};

    fn found(jobs: Vec<JobSummary>) -> Found {
        Found {
            jobs,
            next: None,
            partial: false,
        }
    }

    #[test]
    fn a_job_says_where_it_is() {
        let mut job = summary("PROCESSING", 2, 7);
        job.label = Some("Upload image <2/5>".to_owned());
        let shown = row(&job, at(0)).into_string();
        assert!(
            shown.contains("<strong>2/7</strong> Upload image &lt;2/5&gt; …"),
            "{shown}"
        );
        job.error = Some("<img src=x>".to_owned());
        let shown = row(&job, at(0)).into_string();
        assert!(
            shown.contains("&lt;img src=x&gt;") && !shown.contains("<img"),
            "{shown}"
        );
    }

    #[test]
    fn filters_stay_in_the_form_and_in_the_links() {
        let find = Find {
            status: vec![JobStatus::Failed],
            error: Some("\"503\"".to_owned()),
            likeness: Some("ab".to_owned()),
            ..Find::default()
        };
        let shown = list(&find, &found(vec![summary("FAILED", 0, 1)]), at(0)).into_string();
        assert!(shown.contains("value=\"FAILED\" checked"), "{shown}");
        assert!(
            shown.contains("name=\"error\" value=\"&quot;503&quot;\""),
            "{shown}"
        );
        assert!(shown.contains("name=\"likeness\" value=\"ab\""), "{shown}");
        assert_eq!(shown.matches(" checked").count(), 1);
    }

    #[test]
    fn an_empty_list_says_why() {
        let whole = Find::default();
        let narrow = Find {
            kind: Some("x".to_owned()),
            ..Find::default()
        };
        assert!(
            list(&whole, &found(Vec::new()), at(0))
                .into_string()
                .contains("There is no job yet.")
        );
        assert!(
            list(&narrow, &found(Vec::new()), at(0))
                .into_string()
                .contains("No job fits these filters.")
        );
        let partial = Found {
            partial: true,
            ..found(Vec::new())
        };
        assert!(
            list(&narrow, &partial, at(0))
                .into_string()
                .contains("looked at so far")
        );
    }
}
