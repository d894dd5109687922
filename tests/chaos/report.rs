//! What a run found: counts, times and faults. A table for people, JSON for programs.

use std::{fmt, time::Duration};

use serde_json::{Map, Value, json};

#[derive(Default)]
pub struct Report {
    counts: Vec<(String, i64)>,
    times: Vec<Times>,
    faults: Vec<String>,
}

/// The times of events of one kind, and what is aimed at.
#[derive(Clone)]
pub struct Times {
    pub what: String,
    pub aim: Aim,
    pub took: Vec<Duration>,
}

/// What the median and the longest of some times should not exceed.
#[derive(Clone, Copy)]
pub struct Aim {
    pub median: Option<Duration>,
    pub most: Duration,
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(median) = self.median {
            write!(f, "median {} ms, ", median.as_millis())?;
        }
        write!(f, "maximum {} ms", self.most.as_millis())
    }
}

impl Times {
    pub fn median(&self) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    pub fn most(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }
}

impl Report {
    pub fn count(&mut self, what: &str, count: i64) {
        self.counts.push((what.to_owned(), count));
    }

    /// An aim that is missed is a fault.
    pub fn time(&mut self, times: Times) {
        let (median, most) = (times.median(), times.most());
        if times.aim.median.is_some_and(|aim| median > aim) || most > times.aim.most {
            self.fault(format!(
                "{}: median {} ms, maximum {} ms; the aim: {}",
                times.what,
                median.as_millis(),
                most.as_millis(),
                times.aim
            ));
        }
        self.times.push(times);
    }

    pub fn fault(&mut self, sentence: String) {
        self.faults.push(sentence);
    }

    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        for (what, count) in &self.counts {
            text.push_str(&format!("{count:>12}  {what}\n"));
        }
        if !self.times.is_empty() {
            text.push_str("\n  events   median  maximum\n");
        }
        for times in &self.times {
            text.push_str(&format!(
                "{:>8} {:>6} ms {:>5} ms  {} (aim: {})\n",
                times.took.len(),
                times.median().as_millis(),
                times.most().as_millis(),
                times.what,
                times.aim
            ));
        }
        for fault in &self.faults {
            text.push_str(&format!("FAULT: {fault}\n"));
        }
        text
    }

    pub fn json(&self, seed: u64, seconds: u64) -> Value {
        let counts: Map<String, Value> = self
            .counts
            .iter()
            .map(|(what, count)| (what.clone(), json!(count)))
            .collect();
        let times: Vec<_> = self
            .times
            .iter()
            .map(|times| {
                let took: Vec<_> = times.took.iter().map(|took| took.as_secs_f64()).collect();
                json!({"what": times.what, "aim": times.aim.to_string(), "median_seconds": times.median().as_secs_f64(),
                       "maximum_seconds": times.most().as_secs_f64(), "seconds": took})
            })
            .collect();
        json!({"seed": seed, "seconds": seconds, "counts": counts, "times": times, "faults": self.faults})
    }
}
