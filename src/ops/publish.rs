//! `cliquet publish`: gives jobs to the workers.

use std::{
    collections::HashMap,
    fs,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Desk,
    failure::Failure,
    output::note,
    send::{confirmed, publisher},
    words::one_line,
};
use crate::{
    broker::{Letter, SendError},
    job::{BadMessage, Fingerprint, JobId, JobMessage},
    telemetry::traces,
};

pub(super) const HELP: &str = r#"A message is one line of JSON (a file that is one message may have many lines):

  {"kind": "shop.publish", "payload": {"product_id": 42},
   "tasks": ["validate", {"handler": "upload_image", "input": {"index": 1},
                          "label": "Upload image 1/5"}]}

All messages are checked before any is sent. Printed are the ids of those that
RabbitMQ has confirmed, in their order. A message without an `id` (a UUID) gets
one; publishing the same id twice is one job.

Examples:
  cliquet publish jobs.jsonl
  echo '{"kind": "hello", "tasks": ["greet"]}' | cliquet publish -
  cliquet show --watch $(cliquet publish job.json)"#;

/// Messages on their way at the same time.
const IN_FLIGHT: usize = 64;
/// Complaints that are told one by one.
const TOLD: usize = 20;
/// From so many messages on, a person wants to see how far it is.
const LONG: usize = 200;

/// `cliquet publish`.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The messages; - reads standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

/// One message that may be sent.
#[derive(Debug)]
struct Checked {
    /// Where it is in the file, from 1.
    line: usize,
    id: JobId,
    kind: String,
    tasks: usize,
    /// As it was written.
    body: Vec<u8>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: JobId,
    line: usize,
    kind: &'a str,
    tasks: usize,
}

impl Publish {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let messages = check(&read(&self.file)?).map_err(Failure::failed)?;
        if messages.is_empty() {
            note("there are no messages; nothing is published");
            return Ok(ExitCode::SUCCESS);
        }
        let queue = desk.config.queue.clone();
        let publisher = publisher(&desk.config, &queue, IN_FLIGHT.min(messages.len())).await?;
        let total = messages.len();
        let bar = progress(total);
        // Whatever keeps one message from its queue keeps the next as well, unless it is the message's own size.
        let in_the_way = AtomicBool::new(false);
        let mut sent = stream::iter(messages)
            .map(|message| async {
                if in_the_way.load(Ordering::Relaxed) {
                    return (message, None);
                }
                let letter =
                    Letter::new(message.body.clone(), &message.id.to_string(), &message.kind);
                let letter = traces::continued(letter);
                let sent = confirmed(&publisher, &letter).await;
                if !matches!(sent, Ok(()) | Err(SendError::TooLarge { .. })) {
                    in_the_way.store(true, Ordering::Relaxed);
                }
                (message, Some(sent))
            })
            .buffered(IN_FLIGHT);

        let (mut done, mut told, mut obstacle_told, mut first) = (0, 0, false, None);
        while let Some((message, sent)) = sent.next().await {
            bar.inc(1);
            match sent {
                Some(Ok(())) => {
                    done += 1;
                    if desk.json {
                        desk.output.json(&Line {
                            id: message.id,
                            line: message.line,
                            kind: &message.kind,
                            tasks: message.tasks,
                        })?;
                    } else {
                        desk.output.line(message.id)?;
                    }
                }
                Some(Err(error)) => {
                    first.get_or_insert(message.line);
                    // What is in the way of one is in the way of all, and told once.
                    let own = matches!(error, SendError::TooLarge { .. });
                    if told < TOLD && (own || !obstacle_told) {
                        told += 1;
                        obstacle_told |= !own;
                        let (line, id) = (message.line, message.id);
                        note(format_args!("error: line {line}, job {id}: {error}"));
                    }
                }
                None => {
                    first.get_or_insert(message.line);
                }
            }
        }
        bar.finish_and_clear();
        publisher.close().await;
        let Some(first) = first else {
            return Ok(ExitCode::SUCCESS);
        };
        Err(Failure::failed(format!(
            "{done} of {total} messages are confirmed in `{queue}`; the first that is not is on line {first}. Publish again from there (an `id` in each message makes repeats harmless)"
        )))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let read = if file == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(file)
    };
    let name = if file == Path::new("-") {
        "standard input".into()
    } else {
        file.display().to_string()
    };
    read.map_err(|error| Failure::failed(format!("{name} cannot be read: {error}")))
}

/// Everything that is to be sent, or everything that is wrong with it.
fn check(bytes: &[u8]) -> Result<Vec<Checked>, String> {
    // Editors of some systems begin a file with a mark of its encoding.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let whole = bytes.trim_ascii();
    let lines: Vec<(usize, &[u8])> = match serde_json::from_slice::<&RawValue>(whole) {
        Ok(document) if document.get().starts_with('[') => {
            return Err(
                "this is one JSON list; expected one message a line: jq -c '.[]' FILE | cliquet publish -\nnothing is published"
                    .into(),
            );
        }
        Ok(_) => {
            let before = bytes.len() - bytes.trim_ascii_start().len();
            let line = bytes[..before]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count()
                + 1;
            vec![(line, whole)]
        }
        Err(_) => bytes
            .split(|&byte| byte == b'\n')
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim_ascii()))
            .filter(|(_, line)| !line.is_empty())
            .collect(),
    };

    let mut seen: HashMap<JobId, (usize, Fingerprint)> = HashMap::new();
    let mut messages = Vec::new();
    let mut complaints = Vec::new();
    let mut broken_lines = false;
    for (line, body) in lines {
        match check_one(line, body) {
            Ok((message, fingerprint)) => {
                match seen.insert(message.id, (line, fingerprint)) {
                    Some((other, former)) if former != fingerprint => complaints.push(format!(
                        "line {line}: the id {} stands on line {other} with another content; an id names one job",
                        message.id
                    )),
                    _ => messages.push(message),
                }
            }
            Err(bad) => {
                broken_lines |= bad.reason == "not_json";
                complaints.push(format!("line {line}: {}", one_line(&bad.sentence)));
            }
        }
    }
    if complaints.is_empty() {
        return Ok(messages);
    }
    let more = complaints.len().saturating_sub(TOLD);
    complaints.truncate(TOLD);
    if more > 0 {
        complaints.push(format!("and {more} more"));
    }
    if broken_lines {
        complaints
            .push("a message is one line: jq -c . FILE | cliquet publish - makes it so".to_owned());
    }
    complaints.push("nothing is published".to_owned());
    Err(complaints.join("\n"))
}

fn check_one(line: usize, body: &[u8]) -> Result<(Checked, Fingerprint), BadMessage> {
    // Stands in for an `id` that the body lacks, as the property message_id does on the way.
    let new = JobId::new().to_string();
    let message = JobMessage::decode(body, Some(&new), None)?;
    let checked = Checked {
        line,
        id: message.id,
        kind: message.kind,
        tasks: message.tasks.len(),
        body: body.to_vec(),
    };
    Ok((checked, message.fingerprint))
}

/// A bar on standard error, where a person sees it and the ids do not run through it.
fn progress(total: usize) -> ProgressBar {
    if total < LONG || !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} confirmed, {eta} left");
    ProgressBar::new(total as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11";

    #[test]
    fn one_message_a_line_blank_lines_aside() {
        let text = format!(
            "\u{feff}{{\"kind\":\"a\",\"tasks\":[\"t\"]}}\r\n\n{{\"id\":\"{ID}\",\"kind\":\"b\",\"tasks\":[\"t\",\"u\"]}}"
        );
        let messages = check(text.as_bytes()).unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].body, br#"{"kind":"a","tasks":["t"]}"#);
        assert_eq!(
            (messages[1].line, messages[1].id.to_string().as_str()),
            (3, ID)
        );
        assert_eq!((messages[1].kind.as_str(), messages[1].tasks), ("b", 2));
        assert!(check(b" \n\n").unwrap().is_empty());
    }

    #[test]
    fn one_message_may_have_many_lines() {
        let messages = check(b"\n{\n  \"kind\": \"a\",\n  \"tasks\": [\"t\"]\n}\n").unwrap();
        assert_eq!((messages.len(), messages[0].line), (1, 2));
    }

    #[test]
    fn every_bad_line_is_told_and_nothing_is_sent() {
        let text = format!(
            "{{\"kind\":\"a\",\"tasks\":[\"t\"]}}\n{{\"tasks\":[]}}\nnonsense\n{{\"id\":\"{ID}\",\"kind\":\"b\",\"tasks\":[\"t\"]}}\n{{\"id\":\"{ID}\",\"kind\":\"c\",\"tasks\":[\"t\"]}}\n"
        );
        let told = check(text.as_bytes()).unwrap_err();
        for words in [
            "line 2: the job has no kind",
            "line 3: the body is not JSON",
            "stands on line 4 with another content",
            "jq -c .",
            "nothing is published",
        ] {
            assert!(told.contains(words), "{told}\ndoes not say {words:?}");
        }
        assert!(!told.contains("line 1:"), "{told}");
    }

    #[test]
    fn a_list_is_refused_with_the_way_out() {
        assert!(
            check(br#"[{"kind":"a","tasks":["t"]}]"#)
                .unwrap_err()
                .contains("jq -c '.[]'")
        );
    }
}
