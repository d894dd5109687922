//! A job's message, rebuilt from the ledger.

use super::*;
use crate::job::JobStatus;

#[tokio::test]
async fn a_stored_message_is_the_publishers() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job(
        json!({"kind": "shop.publish", "payload": {"b": [1.50, null], "a": "é"}, "tasks": [
            "validate",
            {"handler": "upload", "label": "Upload image 1/5", "input": {"index": 1}, "max_attempts": 5, "timeout_seconds": 1.5},
        ]}),
    );
    let claimed = ada.claimed(&message).await;
    ada.fail(stand(&message, &claimed)).await;

    let stored = crate::ledger::message(ada.ledger.desk(), message.id)
        .await
        .unwrap()
        .unwrap();

    assert_eq!(stored.message.fingerprint, message.fingerprint);
    assert_eq!(stored.message.encode(), message.encode());
    assert_eq!(
        (stored.generation, stored.status, stored.queue.as_str()),
        (Generation(1), JobStatus::Retrying, "jobs")
    );
    assert_eq!(stored.error.as_deref(), Some("no luck"));
}

#[tokio::test]
async fn a_job_that_nobody_knows_has_no_message() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let nobody = crate::ledger::message(ada.ledger.desk(), JobId::new())
        .await
        .unwrap();
    assert!(nobody.is_none());
}

#[tokio::test]
async fn a_stored_job_that_cannot_be_read_says_why() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(1);
    ada.claimed(&message).await;
    database
        .run(r#"UPDATE cliquet.tasks SET input = '"\u0000"'"#)
        .await;
    match crate::ledger::message(ada.ledger.desk(), message.id).await {
        Err(LedgerError::Schema(sentence)) => {
            assert!(
                sentence.contains(&message.id.to_string()) && sentence.contains("NUL"),
                "{sentence}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn numbers_that_make_no_job_are_named() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let message = job_of(2);
    ada.claimed(&message).await;
    let id = message.id;
    for (change, back, words) in [
        (
            "tasks SET position = position - 1",
            "tasks SET position = position + 1",
            "a position 0",
        ),
        ("jobs SET total = 3", "jobs SET total = 2", "`total` is 3"),
        (
            "tasks SET max_attempts = 0",
            "tasks SET max_attempts = NULL",
            "`max_attempts`",
        ),
        (
            "tasks SET timeout_ms = -1",
            "tasks SET timeout_ms = NULL",
            "position 1",
        ),
    ] {
        let key = if change.starts_with("jobs") {
            "id"
        } else {
            "job_id"
        };
        // From the end on, so that no position is there twice.
        database
            .run(&format!("UPDATE cliquet.{change} WHERE {key} = '{id}'"))
            .await;
        let told = message_of(&database, id).await.unwrap_err().to_string();
        assert!(
            told.contains(words) && told.contains(&id.to_string()),
            "{told}"
        );
        for position in [2, 1, 0] {
            let only = if change.contains("position") {
                format!(" AND position = {position}")
            } else {
                String::new()
            };
            database
                .run(&format!("UPDATE cliquet.{back} WHERE {key} = '{id}'{only}"))
                .await;
        }
        assert!(message_of(&database, id).await.is_ok(), "{change}");
    }
}

async fn message_of(database: &Database, id: JobId) -> Result<Option<StoredMessage>, LedgerError> {
    crate::ledger::message(&database.address.pool("test", 1), id).await
}
