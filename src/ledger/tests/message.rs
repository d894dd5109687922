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
