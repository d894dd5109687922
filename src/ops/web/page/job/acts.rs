//! What can be done with a job: the buttons, each where it makes sense.

use maud::{Markup, html};

use super::{
    super::parts::{job_path, short},
    frontier,
};
use crate::{job::JobStatus, ledger::JobDetail};

/// The buttons that make sense where the job is. What cannot be taken back asks once more.
pub(super) fn acts(detail: &JobDetail) -> Markup {
    let job = &detail.job;
    let path = |act: &str| format!("{}/{act}", job_path(job.id));
    let over = matches!(job.status, JobStatus::Success | JobStatus::Cancelled);
    let held = job.status == JobStatus::Processing;
    let skipped = frontier(detail).filter(|_| !held);
    html! {
        @if !over {
            section #acts .acts aria-label="What can be done" {
                @if held {
                    details.act #retry {
                        summary { "Send again …" }
                        form.stack method="post" action=(path("retry")) {
                            p { "A worker holds this job. If that worker is dead, the next one takes the job over; if it lives, nothing changes." }
                            (reason(false))
                            button type="submit" { "Send again" }
                        }
                    }
                } @else {
                    form #retry .said method="post" action=(path("retry")) {
                        @if job.status == JobStatus::Failed { (reason(false)) }
                        button type="submit" { (if job.status == JobStatus::Pending { "Send again" } else { "Retry now" }) }
                    }
                }
                @if let Some(task) = skipped {
                    details.act #skip {
                        summary { "Skip a task …" }
                        // Its words and what it sends belong together: where the job stands elsewhere, it is another form.
                        form.stack id={ "skip-" (task.position) } method="post" action=(path("skip")) {
                            input type="hidden" name="position" value=(task.position);
                            p { "Task " (task.position) ", " strong { (short(&task.label, 80)) } ", is written as SUCCESS with the result " code { "null" } " without being run, and the job goes on behind it. This cannot be taken back." }
                            (reason(true))
                            button.grave type="submit" { "Skip task " (task.position) }
                        }
                    }
                }
                @if !job.is_over() {
                    details.act #cancel {
                        summary.grave { "Cancel …" }
                        form.stack method="post" action=(path("cancel")) {
                            p { "The job ends for good: a task that runs is cut short and nothing of it is kept; what is done stays done. This cannot be taken back." }
                            (reason(false))
                            button.grave type="submit" { "Cancel this job" }
                        }
                    }
                }
            }
        }
    }
}

fn reason(required: bool) -> Markup {
    html! {
        label { "Reason" @if !required { span.muted { " (may be left out)" } }
            input type="text" name="reason" maxlength="500" autocomplete="off" required[required];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::TaskStatus,
        ops::web::page::samples::{detail, task},
    };

    fn halfway() -> JobDetail {
        detail(
            "RETRYING",
            vec![
                task(1, TaskStatus::Success, Some(0), Some(10)),
                task(2, TaskStatus::Failed, Some(20), Some(30)),
                task(3, TaskStatus::Pending, None, None),
            ],
        )
    }

    #[test]
    fn only_what_makes_sense_is_offered() {
        let offered = |status| {
            let mut job = halfway();
            job.job.status = status;
            let shown = acts(&job).into_string();
            ["retry\"", "skip\"", "cancel\""]
                .map(|act| shown.contains(&format!("action=\"/jobs/{}/{act}", job.job.id)))
        };
        assert_eq!(offered(JobStatus::Pending), [true, true, true]);
        assert_eq!(offered(JobStatus::Retrying), [true, true, true]);
        assert_eq!(offered(JobStatus::Failed), [true, true, false]);
        assert_eq!(offered(JobStatus::Processing), [true, false, true]);
        assert_eq!(offered(JobStatus::Success), [false, false, false]);
        assert_eq!(offered(JobStatus::Cancelled), [false, false, false]);
        let shown = acts(&halfway()).into_string();
        assert!(shown.contains("name=\"position\" value=\"2\""), "{shown}");
        assert!(shown.contains("id=\"skip-2\""), "{shown}");
        // What is parked may be retried with a reason; it is one press all the same.
        let retry = |status| {
            let mut job = halfway();
            job.job.status = status;
            let shown = acts(&job).into_string();
            let form = shown.split("id=\"retry\"").nth(1).unwrap();
            form.split("</form>").next().unwrap().to_owned()
        };
        assert!(retry(JobStatus::Failed).contains("name=\"reason\""));
        assert!(!retry(JobStatus::Failed).contains("<summary"));
        assert!(!retry(JobStatus::Retrying).contains("name=\"reason\""));
    }
}
