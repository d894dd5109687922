//! `cliquet dead show`: one parked message, shown safely.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Line, Name, Where, closed, not_found};
use crate::{
    broker::{DeadQueue, Parked, base64},
    ops::{
        Desk,
        failure::Failure,
        output::{Output, note},
        words::{at, escaped, lines, now, one_line},
    },
};

pub(super) const HELP: &str = "\
What would move the cursor or is no text is shown as \\x1b, \\xff and the like;
--raw writes the body as it is.

Examples:
  cliquet dead show 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet dead show 3fa9c1d20e4b --raw > body
  cliquet dead show 3fa9c1d20e4b --json | jq .headers";

/// The longest part of a body that is shown, in bytes.
const SHOWN: usize = 4096;

/// `cliquet dead show`.
#[derive(Debug, Args)]
pub(in crate::ops) struct Show {
    /// The job's id, or digits of its hash
    #[arg(value_name = "ID|HASH")]
    name: Name,

    /// Write the body's bytes to standard output, and nothing else
    #[arg(long)]
    raw: bool,

    #[command(flatten)]
    place: Where,

    /// Look at no more than so many messages, the oldest
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    line: Line,
    properties: Map<String, Value>,
    headers: Map<String, Value>,
    /// Of a body that is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// Of any other.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl Show {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let mut dead = self.place.open(&desk).await?;
        let found = self.look(&mut dead).await;
        let missing = not_found(&self.name, &dead);
        let found = closed(dead, found).await?;
        let Some(first) = found.first() else {
            return Err(Failure::failed(missing));
        };
        if self.raw {
            if let Some(other) = found.iter().find(|other| other.hash() != first.hash()) {
                return Err(Failure::failed(format!(
                    "there are {} messages of this name, with different bodies; name one by its hash: {}, {} …",
                    found.len(),
                    first.hash(),
                    other.hash()
                )));
            }
            desk.output.bytes(first.delivery().body())?;
            return Ok(ExitCode::SUCCESS);
        }
        for (number, parked) in found.iter().enumerate() {
            if desk.json {
                desk.output.json(&whole(parked))?;
                continue;
            }
            if number > 0 {
                desk.output.line("")?;
            }
            print(&mut desk.output, parked)?;
        }
        if found.len() > 1 && !desk.json {
            note(format_args!(
                "{} messages of this name are parked",
                found.len()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn look(&self, dead: &mut DeadQueue) -> Result<Vec<Parked>, Failure> {
        let mut found = Vec::new();
        for _ in 0..self.limit {
            let Some(parked) = dead.next().await? else {
                break;
            };
            if self.name.fits(&parked) {
                found.push(parked);
            }
        }
        Ok(found)
    }
}

fn whole(parked: &Parked) -> Whole<'_> {
    let body = parked.delivery().body();
    let text = std::str::from_utf8(body).ok();
    let properties = parked.properties().into_iter();
    Whole {
        line: Line::of(parked),
        properties: properties
            .map(|(name, value)| (name.to_owned(), Value::String(value)))
            .collect(),
        headers: parked.headers(),
        body: text,
        body_base64: text.is_none().then(|| base64(body)),
    }
}

fn print(output: &mut Output, parked: &Parked) -> Result<(), Failure> {
    let line = Line::of(parked);
    let (body, now) = (parked.delivery().body(), now());
    let time = |text: String| match text.parse::<DateTime<Utc>>() {
        Ok(time) => at(time, now),
        Err(_) => one_line(&text),
    };
    let id = line.id.map_or("-".to_owned(), |id| id.to_string());
    let mut fields = vec![("job", id), ("hash", line.hash)];
    let mut add = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    add("kind", line.kind.as_deref().map(one_line));
    add("reason", line.reason.as_deref().map(one_line));
    add("parked", line.parked_at.map(time));
    add("task", line.task.as_deref().map(one_line));
    add("attempts", line.attempts.map(|number| number.to_string()));
    for (name, value) in fields {
        output.line(format_args!("{name:<9} {value}"))?;
    }
    for (number, text) in lines(line.error.as_deref().unwrap_or_default())
        .iter()
        .enumerate()
    {
        let name = if number == 0 { "error" } else { "" };
        output.line(format_args!("{name:<9} {text}"))?;
    }

    output.line("\nproperties:")?;
    for (name, value) in parked.properties() {
        output.line(format_args!("  {name}: {}", one_line(&value)))?;
    }
    output.line("\nheaders:")?;
    for (name, value) in parked.headers() {
        let value = match value {
            Value::String(text) => one_line(&text),
            other => one_line(&other.to_string()),
        };
        output.line(format_args!("  {}: {value}", one_line(&name)))?;
    }

    output.line(format_args!("\nbody, {} bytes:", body.len()))?;
    let mut shown = escaped(&body[..body.len().min(SHOWN)]);
    if body.len() > SHOWN {
        shown.push_str(&format!(
            "\n… cut here, after {SHOWN} of {} bytes; --raw writes all of it",
            body.len()
        ));
    }
    output.line(shown.trim_end_matches('\n'))
}
