//! The last hour as two small charts: what was done each minute, and what part of it failed.
//!
//! Each says itself in a sentence, and in a table for whoever does not see it.

use maud::{Markup, html};

use super::parts::{number, percent};
use crate::ledger::Minute;

/// So many minutes are one row of the table.
const ROW: usize = 5;

/// Both charts and their table.
pub(super) fn charts(minutes: &[Minute]) -> Markup {
    let sums = Sums::of(minutes);
    html! {
        div.charts {
            (chart(
                "Tasks done",
                &number(sums.succeeded),
                &format!("in the last hour, at most {} a minute", number(sums.most)),
                &sums.throughput(minutes),
            ))
            (chart(
                "Attempts failed",
                &rate(sums.failed, sums.succeeded + sums.failed),
                &format!("{} of {} in the last hour, at most {} in a minute", number(sums.failed), number(sums.succeeded + sums.failed), rate_of(sums.worst)),
                &sums.rates(minutes),
            ))
        }
        details.numbers {
            summary { "The last hour in numbers" }
            (table(minutes))
        }
    }
}

/// One bar: its height and, above that, the height of what failed; parts of the whole, from 0 to 1.
type Heights = (f64, f64);

struct Sums {
    succeeded: i64,
    failed: i64,
    /// The most that was done in a minute.
    most: i64,
    /// The highest part that failed in a minute, 0 to 1.
    worst: f64,
}

impl Sums {
    fn of(minutes: &[Minute]) -> Self {
        Self {
            succeeded: minutes.iter().map(|minute| minute.succeeded).sum(),
            failed: minutes.iter().map(|minute| minute.failed).sum(),
            most: minutes
                .iter()
                .map(|minute| minute.succeeded)
                .max()
                .unwrap_or(0),
            worst: minutes.iter().map(failed_part).fold(0.0, f64::max),
        }
    }

    fn throughput(&self, minutes: &[Minute]) -> Vec<Heights> {
        let most = self.most.max(1) as f64;
        minutes
            .iter()
            .map(|minute| (minute.succeeded as f64 / most, 0.0))
            .collect()
    }

    /// At least to a tenth, so that one failure among thousands does not look like an outage.
    fn rates(&self, minutes: &[Minute]) -> Vec<Heights> {
        let top = self.worst.max(0.1);
        minutes
            .iter()
            .map(|minute| (0.0, failed_part(minute) / top))
            .collect()
    }
}

fn failed_part(minute: &Minute) -> f64 {
    match minute.succeeded + minute.failed {
        ..1 => 0.0,
        all => minute.failed as f64 / all as f64,
    }
}

fn rate(failed: i64, all: i64) -> String {
    rate_of(if all > 0 {
        failed as f64 / all as f64
    } else {
        0.0
    })
}

/// `0 %`, `0.3 %`, `12 %`; what is not nothing is never told as nothing.
fn rate_of(part: f64) -> String {
    match part * 100.0 {
        percent if percent <= 0.0 => "0 %".to_owned(),
        percent if percent < 0.1 => "< 0.1 %".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

fn chart(name: &str, figure: &str, said: &str, bars: &[Heights]) -> Markup {
    let slot = 100.0 / bars.len().max(1) as f64;
    html! {
        section.card.chart {
            h2 { (name) }
            p.figure { strong { (figure) } " " span.muted { (said) } }
            svg.bars role="img" aria-label={ (name) ", minute by minute: " (figure) " " (said) } {
                line.grid x1="0" x2="100%" y1="50%" y2="50%" {}
                line.base x1="0" x2="100%" y1="100%" y2="100%" {}
                @for (index, (done, failed)) in bars.iter().enumerate() {
                    @let x = percent(index as f64 * slot + slot * 0.1);
                    @if *done > 0.0 { (bar("f-SUCCESS", &x, slot, *done)) }
                    @if *failed > 0.0 { (bar("f-FAILED", &x, slot, *failed)) }
                }
            }
            div.axis aria-hidden="true" { span { "1 h ago" } span { "30 min" } span { "now" } }
        }
    }
}

/// At least so high that it is seen.
fn bar(class: &str, x: &str, slot: f64, part: f64) -> Markup {
    let height = (part * 100.0).clamp(2.0, 100.0);
    html! { rect class=(class) x=(x) y=(percent(100.0 - height)) width=(percent(slot * 0.8)) height=(percent(height)) rx="1" {} }
}

fn table(minutes: &[Minute]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="The last hour in numbers" {
            table {
                thead { tr { th scope="col" { "From (UTC)" } th.number scope="col" { "Tasks done" } th.number scope="col" { "Attempts failed" } th.number scope="col" { "Part that failed" } } }
                tbody {
                    @for rows in minutes.chunks(ROW) {
                        @let sums = Sums::of(rows);
                        tr {
                            th scope="row" { @if let Some(first) = rows.first() { (first.at.format("%H:%M")) } }
                            td.number { (number(sums.succeeded)) }
                            td.number { (number(sums.failed)) }
                            td.number { (rate(sums.failed, sums.succeeded + sums.failed)) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::samples::at;

    fn minutes(numbers: &[(i64, i64)]) -> Vec<Minute> {
        let minute = |(index, (succeeded, failed)): (usize, &(i64, i64))| Minute {
            at: at(60 * index as i64),
            succeeded: *succeeded,
            failed: *failed,
        };
        numbers.iter().enumerate().map(minute).collect()
    }

    #[test]
    fn heights_are_parts_of_the_highest() {
        let hour = minutes(&[(0, 0), (50, 0), (100, 100), (0, 3)]);
        let sums = Sums::of(&hour);
        assert_eq!(
            sums.throughput(&hour),
            [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.0)]
        );
        assert_eq!(
            sums.rates(&hour),
            [(0.0, 0.0), (0.0, 0.0), (0.0, 0.5), (0.0, 1.0)]
        );
        let calm = minutes(&[(999, 1)]);
        assert_eq!(Sums::of(&calm).rates(&calm), [(0.0, 0.01)]);
    }

    #[test]
    fn an_hour_without_a_task_is_told_as_such() {
        for empty in [minutes(&[]), minutes(&[(0, 0); 60])] {
            let shown = charts(&empty).into_string();
            assert!(
                !shown.contains("NaN") && !shown.contains("<rect"),
                "{shown}"
            );
            assert!(
                shown.contains("Attempts failed, minute by minute: 0 %"),
                "{shown}"
            );
        }
    }

    #[test]
    fn what_is_not_nothing_is_not_told_as_nothing() {
        let told: Vec<_> = [0.0, 0.0001, 0.004, 0.05, 0.374, 1.0]
            .into_iter()
            .map(rate_of)
            .collect();
        assert_eq!(told, ["0 %", "< 0.1 %", "0.4 %", "5.0 %", "37 %", "100 %"]);
    }

    #[test]
    fn the_table_has_five_minutes_a_row() {
        let shown = table(&minutes(&[(1, 1); 60])).into_string();
        assert_eq!(shown.matches("<tr>").count(), 13);
        assert!(shown.contains("<td class=\"number\">5</td><td class=\"number\">5</td><td class=\"number\">50 %</td>"), "{shown}");
    }
}
