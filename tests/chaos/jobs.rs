//! What is asked for: jobs by number, the same for the same seed.

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::dice::Dice;

/// What a task's handler does; the task's input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Writes a row of so much into the effects through the task's transaction; may fail afterwards.
    Write { amount: i64, fails: f64 },
    /// Writes a row on a connection of its own, as a call of another service would be.
    Note,
    /// Fails, now and then.
    Flaky { fails: f64 },
    /// Takes its time, in milliseconds.
    Nap { ms: u64 },
    /// Fails for good.
    Permanent,
    /// Kills its process.
    Poison,
    /// Runs until the harness lets it go.
    Hold,
}

impl Act {
    /// The handler's name.
    pub fn handler(&self) -> &'static str {
        match self {
            Act::Nothing => "nothing",
            Act::Write { .. } => "write",
            Act::Note => "note",
            Act::Flaky { .. } => "flaky",
            Act::Nap { .. } => "nap",
            Act::Permanent => "permanent",
            Act::Poison => "poison",
            Act::Hold => "hold",
        }
    }
}

/// Every handler's name.
pub const HANDLERS: [&str; 8] = [
    "nothing",
    "write",
    "note",
    "flaky",
    "nap",
    "permanent",
    "poison",
    "hold",
];

/// How a job must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// SUCCESS; or parked, if workers happened to be killed in one of its tasks as often as the crash limit allows.
    Good,
    /// Parked: one of its tasks fails for good.
    Permanent,
    /// Parked: one of its tasks kills its process.
    Poison,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub id: Uuid,
    pub tasks: Vec<Act>,
}

/// What every job of a run carries; the handlers' dice need the seed.
#[derive(Serialize, Deserialize)]
pub struct Payload {
    pub seed: u64,
}

impl Job {
    /// The job with this number.
    pub fn drawn(seed: u64, number: u64) -> Self {
        let mut dice = Dice::of(&[seed, 2, number]);
        let id = dice.uuid();
        let mut tasks: Vec<_> = (0..dice.between(1, 6))
            .map(|_| match dice.below(100) {
                0..30 => Act::Nothing,
                30..60 => Act::Write {
                    amount: dice.between(1, 1_000) as i64,
                    fails: 0.08,
                },
                60..70 => Act::Note,
                70..80 => Act::Flaky { fails: 0.35 },
                _ => Act::Nap {
                    ms: dice.between(20, 800),
                },
            })
            .collect();
        let bad = dice.below(tasks.len() as u64) as usize;
        // Poison is rare: each costs three processes.
        if number % 400 == 60 {
            tasks[bad] = Act::Poison;
        } else if dice.chance(0.015) {
            tasks[bad] = Act::Permanent;
        }
        Self { id, tasks }
    }

    pub fn of(tasks: Vec<Act>) -> Self {
        Self {
            id: Uuid::now_v7(),
            tasks,
        }
    }

    pub fn fate(&self) -> Fate {
        let worst = |task: &&Act| matches!(task, Act::Permanent | Act::Poison);
        match self.tasks.iter().find(worst) {
            Some(Act::Poison) => Fate::Poison,
            Some(_) => Fate::Permanent,
            None => Fate::Good,
        }
    }

    /// Label and input of the task at an index, as the message has them.
    pub fn task(&self, index: usize) -> (String, String) {
        let label = format!("Step {} {}", index + 1, self.tasks[index].handler());
        let input = serde_json::to_value(&self.tasks[index]).unwrap();
        (label, input.to_string())
    }

    pub fn payload(seed: u64) -> String {
        json!(Payload { seed }).to_string()
    }

    /// The message.
    pub fn body(&self, seed: u64) -> Vec<u8> {
        let tasks: Vec<_> = self
            .tasks
            .iter()
            .enumerate()
            .map(|(index, act)| {
                json!({"handler": act.handler(), "label": self.task(index).0, "input": act})
            })
            .collect();
        json!({"id": self.id, "kind": "chaos", "payload": Payload { seed }, "tasks": tasks})
            .to_string()
            .into_bytes()
    }
}

/// The job that a message names.
pub fn id_in(body: &[u8]) -> Option<Uuid> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["id"].as_str()?.parse().ok()
}

/// Messages that are no jobs: each is to be parked with what is wrong with it.
pub fn garbage(dice: &mut Dice) -> (&'static str, Vec<u8>) {
    let id = dice.uuid();
    match dice.below(9) {
        0 => ("empty", Vec::new()),
        1 => ("not JSON", b"{\"id\": ".to_vec()),
        2 => ("not UTF-8", vec![0xff, 0xfe, 0x00, 0x80]),
        3 => ("not an object", b"[1, 2, 3]".to_vec()),
        4 => (
            "wrong types",
            json!({"id": id, "kind": 7, "tasks": "all of them"})
                .to_string()
                .into_bytes(),
        ),
        5 => (
            "no id",
            json!({"kind": "chaos", "tasks": ["nothing"]})
                .to_string()
                .into_bytes(),
        ),
        6 => (
            "no tasks",
            json!({"id": id, "kind": "chaos", "tasks": []})
                .to_string()
                .into_bytes(),
        ),
        7 => {
            let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
            (
                "nested",
                format!(
                    r#"{{"id": "{id}", "kind": "chaos", "payload": {deep}, "tasks": ["nothing"]}}"#
                )
                .into_bytes(),
            )
        }
        _ => (
            "a NUL",
            format!(
                r#"{{"id": "{id}", "kind": "chaos", "payload": "\u0000", "tasks": ["nothing"]}}"#
            )
            .into_bytes(),
        ),
    }
}
