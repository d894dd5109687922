//! The claim's table, row by row, and its races.

use super::*;

#[tokio::test]
async fn an_unknown_job_is_created_with_its_first_task_processing() {
    let database = Database::new().await;
    let worker = database.worker("ada").await;
    let message = job_of(3);

    let claimed = worker.claimed(&message).await;

    assert_eq!(
        (
            claimed.epoch,
            claimed.position,
            claimed.attempt,
            claimed.way
        ),
        (Epoch(1), 1, 1, Way::New)
    );
    let job = database.job(message.id).await;
    assert_eq!(job.status, "PROCESSING");
}
