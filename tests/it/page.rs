//! The page in a real browser: what is seen, what is pressed, and who may.

mod acts;
mod live;
mod looks;
mod who;

use serde_json::Value;
use uuid::Uuid;

use crate::support::{binary::Binary, http::Web, stage::Stage};

/// `cliquet web` on a stage; ended at the end.
struct Site {
    binary: Binary,
    web: Web,
}

impl Site {
    async fn on(stage: &Stage) -> Self {
        Self::with(stage, &[]).await
    }

    async fn with(stage: &Stage, environment: &[(&str, &str)]) -> Self {
        let mut binary = Binary::on(stage, "");
        for (name, value) in environment {
            binary.set(name, value);
        }
        let web = Web::start(&binary).await;
        Self { binary, web }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.web.client.address)
    }

    fn job(&self, id: Uuid) -> String {
        self.url(&format!("/jobs/{id}"))
    }

    /// What the ledger keeps of what people did to a job: `act operator: reason`.
    async fn interventions(&self, job: Uuid) -> Vec<String> {
        let shown = self.binary.show(job).await;
        let done = shown["interventions"]
            .as_array()
            .unwrap_or_else(|| panic!("{shown}"));
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        done.iter()
            .map(|one| {
                format!(
                    "{} {}: {}",
                    text(&one["act"]),
                    text(&one["operator"]),
                    text(&one["reason"])
                )
            })
            .collect()
    }
}

const FLASH: &str = "#flash";
const STATUS: &str = "#status";
