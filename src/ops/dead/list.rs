//! `cliquet dead list`: what is parked.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;

use super::{Filter, Line, Where, closed};
use crate::{
    broker::DeadQueue,
    ops::{
        Desk,
        failure::Failure,
        output::note,
        table::Table,
        words::{ago, now, one_line},
    },
};

pub(super) const HELP: &str = "\
ID is the job's id; for a message without one, digits of its hash, which
the other commands take as well.

Examples:
  cliquet dead list --reason exhausted,crashed
  cliquet dead list --undecodable
  cliquet dead list --limit 5000 --json | jq -r .reason | sort | uniq -c";

/// `cliquet dead list`.
#[derive(Debug, Args)]
pub(in crate::ops) struct List {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    filter: Filter,

    /// Look at no more than so many messages, the oldest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl List {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let mut dead = self.place.open(&desk).await?;
        let found = self.look(&mut dead).await;
        let left = dead.left();
        let found = closed(dead, found).await?;
        if desk.json {
            for line in &found {
                desk.output.json(line)?;
            }
        } else if found.is_empty() {
            note("nothing is parked that fits");
        } else {
            table(&found).print(&mut desk.output, "")?;
        }
        if left > 0 {
            note(format_args!(
                "the oldest {} were looked at, {left} more lie behind them; --limit looks further",
                self.limit
            ));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn look(&self, dead: &mut DeadQueue) -> Result<Vec<Line>, Failure> {
        let mut found = Vec::new();
        for _ in 0..self.limit {
            let Some(parked) = dead.next().await? else {
                break;
            };
            if self.filter.fits(&parked) {
                found.push(Line::of(&parked));
            }
        }
        Ok(found)
    }
}

fn table(found: &[Line]) -> Table {
    let now = now();
    let mut table = Table::new(&["ID", "KIND", "REASON", "PARKED", "ATTEMPTS", "ERROR"]);
    let text = |text: &Option<String>| text.as_deref().map_or("-".into(), one_line);
    for line in found {
        let parked_at = line.parked_at.as_deref();
        let time = parked_at.and_then(|time| time.parse::<DateTime<Utc>>().ok());
        let attempts = line.attempts.map(|attempts| attempts.to_string());
        table.row([
            line.name(),
            text(&line.kind),
            text(&line.reason),
            time.map_or("-".into(), |time| ago(time, now)),
            attempts.unwrap_or("-".into()),
            one_line(line.error.as_deref().unwrap_or_default()),
        ]);
    }
    table
}
