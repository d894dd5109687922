//! What a benchmark leaves behind.

use super::*;

#[tokio::test]
async fn what_a_killed_worker_still_writes_is_removed_with_the_rest() {
    const QUEUE: &str = "cliquet.bench.killed";
    let database = Database::new().await;
    let mut ground = Bench::begin(&database.address, QUEUE).await.unwrap();
    // Its process is gone, and Postgres has not done yet what it asked for last.
    let session = database.address.options(&format!("{QUEUE} lane 0"));
    let mut left = PgConnection::connect_with(&session).await.unwrap();
    // Another benchmark's is none of its business.
    let session = database.address.options(&format!("{QUEUE}.other lane 0"));
    let _other = PgConnection::connect_with(&session).await.unwrap();
    let late = format!(
        "SELECT pg_sleep(0.3);
         INSERT INTO cliquet.workers (name, host, pid, version, queue, patience) VALUES ('{QUEUE}', '', 1, '', '{QUEUE}', '1s')"
    );
    let writing = async {
        on(&mut left, &late).await;
        left.close().await.unwrap();
    };
    let began = Instant::now();
    let (removed, ()) = tokio::join!(ground.remove(None, |_| {}), writing);
    removed.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it waits for another's worker"
    );
    let rows: i64 = database.value("SELECT count(*) FROM cliquet.workers").await;
    assert_eq!(rows, 0);
    ground.close().await;
}
