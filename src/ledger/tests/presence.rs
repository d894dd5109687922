//! A worker's lock and heartbeat.

use super::*;

/// When a worker's lock was taken, and when it was last seen.
async fn times(database: &Database, worker: &Worker) -> (String, String) {
    let id = worker.id();
    let column = |name: &str| format!("SELECT {name}::text FROM cliquet.workers WHERE id = {id}");
    (
        database.value(&column("locked_at")).await,
        database.value(&column("seen_at")).await,
    )
}

#[tokio::test]
async fn a_worker_holds_its_lock_and_says_who_it_is() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    assert!(database.value::<bool>(&lock_of(ada.id())).await);
    assert_eq!(*ada.presence.watch().borrow(), Some(1));
    let row: String = database
        .value("SELECT concat_ws(' ', name, host, pid, version, queue, patience, stopped_at) FROM cliquet.workers")
        .await;
    let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION"));
    assert_eq!(row, format!("ada here {pid} {version} jobs 00:10:00"));
}

#[tokio::test]
async fn a_database_that_is_not_migrated_ends_the_wait() {
    let database = Database::empty().await;
    let about = About {
        name: "ada".into(),
        host: "here".into(),
        queue: "jobs".into(),
        patience: Duration::from_secs(15),
    };
    let begun = Presence::begin(&database.address, &about).await;
    assert!(matches!(begun, Err(LedgerError::Schema(_))));
}

#[tokio::test]
async fn each_beat_is_seen() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let (_, before) = times(&database, &ada).await;
    assert!(ada.presence.beat(Vec::new).await.is_empty());
    let (_, seen) = times(&database, &ada).await;
    assert!(seen > before, "{before} {seen}");
}

#[tokio::test]
async fn a_beat_tells_which_handlers_are_braked_and_one_that_has_stopped_brakes_none() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let on = brake();
    let told = "SELECT coalesce(brakes #>> '{0,handler}', 'none') FROM cliquet.workers";
    for (on, expected) in [
        (&[on.clone()][..], "upload"),
        (&[], "none"),
        (&[on], "upload"),
    ] {
        ada.presence.tell_brakes(on);
        ada.presence.beat(Vec::new).await;
        assert_eq!(database.value::<String>(told).await, expected);
    }
    ada.leave(&database).await;
    assert_eq!(database.value::<String>(told).await, "none");
}

#[tokio::test]
async fn a_beat_names_the_runs_that_are_no_longer_ours() {
    let database = Database::new().await;
    let (mut ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let jobs: Vec<_> = (0..4).map(|_| job_of(1)).collect();
    let mut running = Vec::new();
    for message in &jobs {
        running.push((message.id, ada.claimed(message).await.epoch));
    }
    assert!(ada.presence.beat(|| running.to_vec()).await.is_empty());
    cancel(&database, jobs[1].id).await;
    stale(&database, &ada).await;
    bob.claimed(&jobs[2]).await;

    let mut lost = ada.presence.beat(|| running.to_vec()).await;

    lost.sort();
    assert_eq!(lost, [running[1], running[2]]);
}

#[tokio::test]
async fn a_beat_names_a_run_whose_job_is_held_no_more() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let message = job_of(1);
    let epoch = ada.claimed(&message).await.epoch;
    ada.ledger.release(message.id, epoch).await.unwrap();
    let running = [(message.id, epoch)];
    assert_eq!(ada.presence.beat(|| running.to_vec()).await, running);
}

#[tokio::test]
async fn a_worker_that_lost_its_session_is_absent_until_it_has_its_lock_again() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let (id, present) = (ada.id(), ada.presence.watch());
    let (locked, _) = times(&database, &ada).await;
    database.terminate("cliquet ada heartbeat").await;
    // Somebody tries the lock for long, so that the worker has to wait for it.
    let mut claimer = database.connect().await;
    on(
        &mut claimer,
        &format!("SELECT pg_advisory_lock_shared(lock_key) FROM cliquet.workers WHERE id = {id}"),
    )
    .await;
    let beating = tokio::spawn(async move {
        ada.presence.beat(Vec::new).await;
        ada
    });
    until("the worker is absent", async || present.borrow().is_none()).await;
    database.blocked(1).await;
    assert_eq!(*present.borrow(), None);
    on(&mut claimer, "SELECT pg_advisory_unlock_all()").await;
    let ada = beating.await.unwrap();
    assert_eq!(
        *present.borrow(),
        None,
        "what the beat told to be lost is not stopped yet"
    );
    ada.presence.resume();
    assert_eq!(*present.borrow(), Some(2));
    assert!(database.value::<bool>(&lock_of(id)).await);
    let (again, _) = times(&database, &ada).await;
    assert!(again > locked, "{locked} {again}");
}

#[tokio::test]
async fn a_worker_that_ends_says_so_and_frees_its_lock() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let id = ada.id();
    ada.leave(&database).await;
    let stopped: bool = database
        .value("SELECT stopped_at IS NOT NULL FROM cliquet.workers")
        .await;
    assert!(stopped);
    until("the lock is free", async || {
        !database.value::<bool>(&lock_of(id)).await
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_held_nothing_a_week_ago_is_forgotten() {
    let database = Database::new().await;
    for name in ["forgotten", "not cleared", "came back"] {
        database.worker(name).await.die(&database).await;
    }
    database
        .run("UPDATE cliquet.workers SET seen_at = now() - interval '9 days';
              UPDATE cliquet.workers SET cleared_at = now() - interval '8 days' WHERE name <> 'not cleared';
              UPDATE cliquet.workers SET seen_at = now() WHERE name = 'came back'")
        .await;
    database.worker("ada").await;
    let names: String = database
        .value("SELECT string_agg(name, ', ' ORDER BY name) FROM cliquet.workers")
        .await;
    assert_eq!(names, "ada, came back, not cleared");
}
