//! What fails alike: "37 jobs: upload_image: HTTP 503", and what to do with all of them.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    overview::group_path,
    parts::{count, icon, job_link, number, short, time},
};
use crate::{
    ledger::{Group, Groups},
    ops::words::one_line,
};

/// One group on a line or two, as a link to its jobs.
pub(super) fn line(group: &Group, now: DateTime<Utc>) -> Markup {
    html! {
        a.group href=(group_path(group)) {
            strong { (count(group.jobs, "job")) ": " }
            @if let Some(handler) = &group.handler { code { (short(handler, 60)) } ": " }
            (short(&group.error, 120))
        }
        " " span.muted { "latest " (time(group.latest, now)) }
    }
}

/// Every group, the largest first, each with its acts.
pub(super) fn groups(all: &Groups, most: u32, now: DateTime<Utc>) -> Markup {
    let groups = &all.groups[..all.groups.len().min(most as usize)];
    html! {
        h1 { "Failures" }
        p.lead { "Jobs that are parked or wait for another attempt, grouped by where they failed and with what words. Numbers, ids and quoted parts do not count." }
        @if groups.is_empty() {
            div.card { p.empty { (icon("SUCCESS")) "Nothing fails." } }
        }
        @for group in groups { (card(group, now)) }
        @if groups.len() >= most as usize {
            p.muted { "These are the " (most) " largest groups; there may be more." }
        }
        @if all.partial {
            p.muted { "There are more such jobs than are looked at: these numbers are of the newest." }
        }
    }
}

fn card(group: &Group, now: DateTime<Utc>) -> Markup {
    let title = format!("group-{}", group.id);
    html! {
        article.card aria-labelledby=(title) {
            h2 id=(title) {
                (count(group.jobs, "job"))
                @if let Some(handler) = &group.handler { ": " code { (one_line(handler)) } }
            }
            (super::parts::error(&group.error))
            p.facts {
                @if group.failed > 0 { span { (number(group.failed)) " parked" } }
                @if group.retrying > 0 { span { (number(group.retrying)) (if group.retrying == 1 { " waits" } else { " wait" }) " for another attempt" } }
                span { "latest " (time(group.latest, now)) }
                span { "for example " (job_link(group.example)) }
                a href=(group_path(group)) { "List them" }
            }
            div.acts {
                (act(group, "retry", &format!("Retry all {}", count(group.jobs, "job")), "They are sent to the workers now, each at its first task that is not done. Attempts of parked jobs are counted anew.", false))
                @if group.retrying > 0 {
                    (act(group, "cancel", &format!("Cancel the {} that still {}", count(group.retrying, "job"), if group.retrying == 1 { "waits" } else { "wait" }), "They end for good: a cancelled job stays so. What is parked is over already, and stays as it is.", true))
                }
            }
        }
    }
}

/// An act on all of them asks once more, and why.
fn act(group: &Group, act: &str, name: &str, what: &str, grave: bool) -> Markup {
    html! {
        details.act id={ (act) "-" (group.id) } {
            summary .grave[grave] { (name) " …" }
            form.stack method="post" action={ "/groups/" (group.id) "/" (act) } {
                p { (what) }
                label { "Reason" @if !grave { span.muted { " (may be left out)" } }
                    input type="text" name="reason" maxlength="500" autocomplete="off" required[grave];
                }
                button type="submit" .grave[grave] { (name) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::{at, group};

    #[test]
    fn a_group_is_told_with_its_number_its_handler_and_its_words() {
        let shown = line(&group(30, 7), at(60)).into_string();
        let text = shown.replace("<code>", "").replace("</code>", "");
        assert!(
            text.contains("<strong>37 jobs: </strong>upload_image: HTTP 503 &lt;b&gt;"),
            "{text}"
        );
        assert!(shown.contains("href=\"/jobs?likeness=ab12\""), "{shown}");
    }

    #[test]
    fn only_what_can_be_done_is_offered() {
        let parked = card(&group(30, 0), at(0)).into_string();
        assert!(
            parked.contains("Retry all 30 jobs") && !parked.contains("Cancel"),
            "{parked}"
        );
        let waiting = card(&group(30, 1), at(0)).into_string();
        assert!(
            waiting.contains("Cancel the 1 job that still waits"),
            "{waiting}"
        );
        assert!(
            waiting.contains("action=\"/groups/ab12/cancel\""),
            "{waiting}"
        );
        assert!(
            groups(
                &Groups {
                    groups: Vec::new(),
                    partial: false
                },
                100,
                at(0)
            )
            .into_string()
            .contains("Nothing fails.")
        );
    }
}
