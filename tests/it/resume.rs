//! The promise: a failed job waits in the delay queue and resumes at the first task that is not SUCCESS.

use cliquet::broker::Place;

use crate::support::{eventually, stage::Stage};

/// The seed's scenario, seen by another connection at each moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_skips_what_succeeded_and_resumes_at_the_failed_task() {
    let stage = Stage::with_ladder(&["8s"]).await;
    let worker = stage.worker();
    let job = stage
        .publish("a:ok b:gate:two c:fail,gate:three d:ok e:ok")
        .await;

    stage.script.reached("two", 1).await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:PROCESSING 3:PENDING 4:PENDING 5:PENDING"
    );
    assert_eq!(stage.status(job).await.as_deref(), Some("PROCESSING"));
    stage.script.open("two").await;

    stage.reaches(job, "RETRYING").await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:SUCCESS 3:FAILED 4:PENDING 5:PENDING"
    );

    stage.script.reached("three", 1).await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:SUCCESS 3:PROCESSING 4:PENDING 5:PENDING"
    );
    stage.script.open("three").await;

    stage.reaches(job, "SUCCESS").await;
    assert_eq!(
        stage.tasks(job).await,
        "1:SUCCESS 2:SUCCESS 3:SUCCESS 4:SUCCESS 5:SUCCESS"
    );
    assert_eq!(stage.script.positions(job).await, [1, 2, 3, 3, 4, 5]);
    let failures = stage
        .number(
            "SELECT count(*) FROM cliquet.failures WHERE job_id = $1",
            job,
        )
        .await;
    assert_eq!(failures, 1);
    stage.queues_are_empty().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_waits_in_the_delay_queue() {
    let stage = Stage::with_ladder(&["8s"]).await;
    let worker = stage.worker();
    let job = stage.publish("a:fail,ok").await;
    stage.reaches(job, "RETRYING").await;
    let rung = stage.queues.rung(0);
    eventually("the copy is on its rung", || async {
        (stage.queues.depth(rung).await == 1).then_some(())
    })
    .await;
    stage.reaches(job, "SUCCESS").await;
    worker.stop().await;
    assert_eq!(stage.queues.depth(Place::Dead).await, 0);
}
