//! What fails alike: "37 jobs: upload_image: HTTP 503", and what to do with all of them.

use chrono::{DateTime, Utc};
use maud::{Markup, html};
use url::form_urlencoded;

use super::{
    acts::MOST,
    overview::group_path,
    parts::{count, icon, job_link, number, query, short, time},
};
use crate::{
    ledger::{Cursor, Group, Groups},
    ops::words::one_line,
};

/// Where the last act on a group has left off, for the next press of its button.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Further {
    pub(super) group: String,
    /// `retry` or `cancel`.
    pub(super) act: String,
    pub(super) after: Cursor,
}

impl Further {
    /// What the address of the page says. Anything else is as if it said nothing.
    pub(super) fn read(text: Option<&str>) -> Option<Self> {
        let pairs: Vec<_> = form_urlencoded::parse(text?.as_bytes()).collect();
        let value = |wanted| pairs.iter().find(|(name, _)| name == wanted);
        Some(Self {
            group: value("group")?.1.to_string(),
            act: value("act")?.1.to_string(),
            after: value("after")?.1.parse().ok()?,
        })
    }

    /// The address of the page that goes on from here.
    pub(super) fn path(&self) -> String {
        let after = self.after.to_string();
        let said = [
            ("group", self.group.as_str()),
            ("act", self.act.as_str()),
            ("after", after.as_str()),
        ];
        format!("/groups{}", query(said))
    }

    fn of<'a>(further: Option<&'a Self>, group: &Group, act: &str) -> Option<&'a Self> {
        further.filter(|further| further.group == group.id && further.act == act)
    }
}

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
pub(super) fn groups(
    all: &Groups,
    most: u32,
    further: Option<&Further>,
    now: DateTime<Utc>,
) -> Markup {
    let groups = &all.groups[..all.groups.len().min(most as usize)];
    html! {
        h1 { "Failures" }
        p.lead { "Jobs that are parked or wait for another attempt, grouped by where they failed and with what words. Numbers, ids and quoted parts do not count." }
        @if groups.is_empty() {
            div.card { p.empty { (icon("SUCCESS")) "Nothing fails." } }
        }
        @for group in groups { (card(group, further, now)) }
        @if groups.len() >= most as usize {
            p.muted { "These are the " (most) " largest groups; there may be more." }
        }
        @if all.partial {
            p.muted { "There are more such jobs than are looked at: these numbers are of the newest." }
        }
    }
}

fn card(group: &Group, further: Option<&Further>, now: DateTime<Utc>) -> Markup {
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
                (act(group, "retry", further, &retried(group.jobs), "They are sent to the workers now, each at its first task that is not done. Attempts of parked jobs are counted anew.", false))
                @if group.retrying > 0 {
                    (act(group, "cancel", further, &cancelled(group.retrying), "They end for good: a cancelled job stays so. What is parked is over already, and stays as it is.", true))
                }
            }
        }
    }
}

/// What the button for all of them says: one press has a limit.
fn retried(jobs: i64) -> String {
    if jobs > MOST.into() {
        let (most, jobs) = (number(MOST.into()), count(jobs, "job"));
        format!("Retry the newest {most} of {jobs}")
    } else {
        format!("Retry all {}", count(jobs, "job"))
    }
}

fn cancelled(jobs: i64) -> String {
    let wait = if jobs == 1 { "waits" } else { "wait" };
    if jobs > MOST.into() {
        let (most, jobs) = (number(MOST.into()), number(jobs));
        format!("Cancel the newest {most} of {jobs} that still {wait}")
    } else {
        format!("Cancel the {} that still {wait}", count(jobs, "job"))
    }
}

/// An act on all of them asks once more, and why. Where the last press has left some, it goes on with those.
fn act(
    group: &Group,
    act: &str,
    further: Option<&Further>,
    name: &str,
    what: &str,
    grave: bool,
) -> Markup {
    let further = Further::of(further, group, act);
    let older = further.map(|_| {
        let (word, most) = (if grave { "Cancel" } else { "Retry" }, number(MOST.into()));
        format!("{word} up to {most} older ones")
    });
    let name = older.as_deref().unwrap_or(name);
    html! {
        details.act id={ (act) "-" (group.id) } open[further.is_some()] {
            summary .grave[grave] { (name) " …" }
            form.stack method="post" action={ "/groups/" (group.id) "/" (act) } {
                @if let Some(further) = further {
                    input type="hidden" name="after" value=(further.after);
                    p { "The newer ones have been acted on. " a href="/groups" { "Begin with the newest again" } }
                }
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
        let parked = card(&group(30, 0), None, at(0)).into_string();
        assert!(
            parked.contains("Retry all 30 jobs") && !parked.contains("Cancel"),
            "{parked}"
        );
        let waiting = card(&group(30, 1), None, at(0)).into_string();
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
                None,
                at(0)
            )
            .into_string()
            .contains("Nothing fails.")
        );
    }

    #[test]
    fn a_button_names_its_limit_and_goes_on_where_the_last_press_left_off() {
        let many = card(&group(5_000, 2_000), None, at(0)).into_string();
        for words in [
            "Retry the newest 1,000 of 7,000 jobs",
            "Cancel the newest 1,000 of 2,000 that still wait",
        ] {
            assert!(many.contains(words), "{words}: {many}");
        }
        assert!(!many.contains("name=\"after\""), "{many}");
        let place = "000644a3eab0c0000190b5c27e1f7c3a9d550d9c1f0a7b11";
        let further = Further::read(Some(&format!("group=ab12&act=retry&after={place}")));
        let older = card(&group(5_000, 2_000), further.as_ref(), at(0)).into_string();
        assert!(
            older.contains("Retry up to 1,000 older ones")
                && older.contains("Cancel the newest 1,000 of 2,000"),
            "{older}"
        );
        assert_eq!(older.matches("name=\"after\"").count(), 1);
        assert!(older.contains(&format!("value=\"{place}\"")), "{older}");
        for odd in [None, Some(""), Some("group=ab12&act=retry&after=x")] {
            assert_eq!(Further::read(odd), None, "{odd:?}");
        }
    }
}
