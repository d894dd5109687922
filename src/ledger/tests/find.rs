//! Lists by any filter, groups of like failures, the overview and what workers do.

use super::*;
use crate::job::JobStatus::{self, Cancelled, Failed, Pending, Processing, Retrying, Success};

fn reads(database: &Database) -> Reads {
    Reads::new(database.address.reader_pool("reader", 2))
}

async fn ids(database: &Database, find: &Find) -> Vec<JobId> {
    let found = reads(database).find(find).await.unwrap();
    assert_eq!((found.next, found.partial), (None, false));
    found.jobs.iter().map(|job| job.id).collect()
}

/// One job in each status, oldest first, in the order of [`JobStatus::ALL`], each of a kind of its own.
async fn one_of_each(database: &Database, ada: &Worker) -> Vec<JobId> {
    let mut made = Vec::new();
    for status in JobStatus::ALL {
        let message = job(json!({"kind": status.as_str(), "tasks": ["first", "second"]}));
        let first = stand(&message, &ada.claimed(&message).await);
        match status {
            Pending => drop(ada.ledger.release(message.id, first.epoch).await),
            Processing => {}
            Retrying => drop(ada.fail(first).await),
            Success => {
                ada.done(first, json!(1)).await;
                ada.advance(after(first), json!(2), Next::Finish).await;
            }
            Failed => {
                ada.done(first, json!(1)).await;
                ada.give_up(after(first)).await;
            }
            Cancelled => cancel(database, message.id).await,
        }
        made.push(message.id);
    }
    made
}

#[tokio::test]
async fn every_filter_finds_what_it_says_and_nothing_else() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let made = one_of_each(&database, &ada).await;
    let [pending, processing, retrying, success, failed, cancelled] = made[..] else {
        panic!("{made:?}")
    };
    let some = |text: &str| Some(text.to_owned());
    let whole = Find::default();
    let status = |status: &[JobStatus]| Find {
        status: status.to_vec(),
        ..Find::default()
    };
    for (find, expected) in [
        (
            whole.clone(),
            vec![cancelled, failed, success, retrying, processing, pending],
        ),
        (status(&[Pending]), vec![pending]),
        (status(&[Processing]), vec![processing]),
        (status(&[Retrying]), vec![retrying]),
        (status(&[Success]), vec![success]),
        (status(&[Failed]), vec![failed]),
        (status(&[Cancelled]), vec![cancelled]),
        (status(&[Retrying, Failed]), vec![failed, retrying]),
        (
            status(&[Pending, Processing, Failed]),
            vec![failed, processing, pending],
        ),
        (
            Find {
                kind: some("FAILED"),
                ..whole.clone()
            },
            vec![failed],
        ),
        (
            Find {
                kind: some("FAILED"),
                ..status(&[Retrying])
            },
            vec![],
        ),
        (
            Find {
                queue: some("jobs"),
                ..status(&[Failed])
            },
            vec![failed],
        ),
        (
            Find {
                queue: some("others"),
                ..whole.clone()
            },
            vec![],
        ),
        (
            Find {
                handler: some("first"),
                ..whole.clone()
            },
            vec![cancelled, retrying, processing, pending],
        ),
        (
            Find {
                handler: some("second"),
                ..whole.clone()
            },
            vec![failed],
        ),
        (
            Find {
                handler: some("second"),
                ..status(&[Success])
            },
            vec![],
        ),
        (
            Find {
                error: some("NO lUCK"),
                ..whole.clone()
            },
            vec![failed, retrying],
        ),
        (
            Find {
                error: some("not wanted"),
                ..whole.clone()
            },
            vec![cancelled],
        ),
        (
            Find {
                error: some("%"),
                ..whole.clone()
            },
            vec![],
        ),
        (
            Find {
                error: some("a\0b"),
                ..whole.clone()
            },
            vec![],
        ),
        (
            Find {
                error: some("luck"),
                ..status(&[Success, Pending])
            },
            vec![],
        ),
        (
            Find {
                likeness: some("000000000000"),
                ..whole.clone()
            },
            vec![],
        ),
    ] {
        assert_eq!(ids(&database, &find).await, expected, "{find:?}");
    }
}

#[tokio::test]
async fn a_list_may_be_of_a_span_of_time() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let made = one_of_each(&database, &ada).await;
    let all = reads(&database).find(&Find::default()).await.unwrap().jobs;
    let (from, to) = (all[4].created_at, all[1].created_at);
    let span = Find {
        since: Some(from),
        until: Some(to),
        ..Find::default()
    };
    assert_eq!(ids(&database, &span).await, [made[3], made[2], made[1]]);
}

#[tokio::test]
async fn what_is_shown_of_a_job_is_what_it_is() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    one_of_each(&database, &ada).await;
    let reads = reads(&database);
    for job in reads.find(&Find::default()).await.unwrap().jobs {
        let one = reads.progress(job.id).await.unwrap().unwrap();
        assert_eq!(job.label, one.task.map(|task| task.label));
        let expected = JobSummary {
            label: job.label.clone(),
            ..one.job
        };
        assert_eq!(format!("{job:?}"), format!("{expected:?}"));
    }
}

/// So many rows as if they were jobs of a week, of which the oldest is the first.
async fn fill(database: &Database, jobs: u32, error: Option<&str>) {
    let (status, error) = match error {
        Some(error) => ("FAILED", format!("'{error} ' || n")),
        None => ("SUCCESS", "NULL".to_owned()),
    };
    database
        .run(&format!(
            "INSERT INTO cliquet.jobs (id, epoch, generation, sent, created_at, finished_at, total, status, queue, kind, payload, error)
             SELECT gen_random_uuid(), 1, 0, 0, now() - interval '7 days' + n * interval '1 second', now(), 1, '{status}', 'jobs', 'bulk', 'null', {error}
               FROM generate_series(1, {jobs}) n;
             INSERT INTO cliquet.tasks (job_id, position, status, epoch, attempt, started_at, finished_at, handler, label, error)
             SELECT id, 1, status::text::cliquet.task_status, 1, 1, created_at, finished_at, 'bulk', 'Bulk', error FROM cliquet.jobs
              WHERE kind = 'bulk' ON CONFLICT DO NOTHING"
        ))
        .await;
}

#[tokio::test]
async fn pages_are_cut_by_place_and_hold_every_job_once_while_others_arrive() {
    let database = Database::new().await;
    fill(&database, 90, None).await;
    fill(&database, 70, Some("no luck")).await;
    let ada = database.worker("ada").await;
    for status in [vec![], vec![Failed, Retrying, Processing]] {
        let (mut find, mut seen) = (
            Find {
                status: status.clone(),
                limit: 7,
                ..Find::default()
            },
            Vec::new(),
        );
        let there: Vec<uuid::Uuid> = {
            let condition = if status.is_empty() {
                "true"
            } else {
                "error IS NOT NULL"
            };
            let sql = format!(
                "SELECT array_agg(id ORDER BY created_at DESC, id DESC) FROM cliquet.jobs WHERE {condition}"
            );
            database.value(&sql).await
        };
        loop {
            let page = reads(&database).find(&find).await.unwrap();
            assert!(page.jobs.len() <= 7);
            seen.extend(page.jobs.iter().map(|job| job.id.0));
            find.after = page.next;
            if page.next.is_none() {
                break;
            }
            // Newer than every page.
            ada.claimed(&job_of(1)).await;
        }
        let seen: Vec<_> = seen.into_iter().filter(|id| there.contains(id)).collect();
        assert_eq!(seen, there, "{status:?}");
        database
            .run("DELETE FROM cliquet.jobs WHERE kind = 'test'")
            .await;
    }
}

/// Here a search looks at a hundred rows at the most, or at ten with their tasks.
#[tokio::test]
async fn a_search_for_something_rare_stops_early_says_so_and_goes_on_from_there() {
    let database = Database::new().await;
    fill(&database, 1, Some("rare")).await;
    database
        .run("UPDATE cliquet.jobs SET kind = 'rare'; UPDATE cliquet.tasks SET handler = 'rare'")
        .await;
    let rare: uuid::Uuid = database.value("SELECT id FROM cliquet.jobs").await;
    fill(&database, 450, Some("usual")).await;
    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '30 days' WHERE kind = 'rare'")
        .await;
    let id = likeness::group_id(Some("rare"), &likeness::likeness("rare 1"));
    for (find, looks) in [
        (
            Find {
                kind: Some("rare".into()),
                ..Find::default()
            },
            5,
        ),
        (
            Find {
                error: Some("rare".into()),
                ..Find::default()
            },
            10,
        ),
        (
            Find {
                handler: Some("rare".into()),
                ..Find::default()
            },
            46,
        ),
        (
            Find {
                likeness: Some(id),
                ..Find::default()
            },
            46,
        ),
    ] {
        let (mut find, mut asked, mut found) = (find, 0, Vec::new());
        loop {
            let page = reads(&database).find(&find).await.unwrap();
            assert_eq!(page.partial, page.next.is_some());
            found.extend(page.jobs.iter().map(|job| job.id.0));
            asked += 1;
            find.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!((found, asked), (vec![rare], looks), "{find:?}");
    }
}

/// With no time at all a page is one stride along each way, and the pages together are the list.
#[tokio::test]
async fn a_search_that_runs_out_of_time_goes_on_where_it_stopped() {
    let database = Database::new().await;
    fill(&database, 40, Some("one")).await;
    database
        .run("UPDATE cliquet.jobs SET status = 'RETRYING', next_attempt_at = now(), finished_at = NULL WHERE right(id::text, 1) < '8'")
        .await;
    let mut find = Find {
        error: Some("one".into()),
        ..Find::default()
    };
    let whole = ids(&database, &find).await;
    assert_eq!(whole.len(), 40);
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = reads(&database)
            .find_within(&find, Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(page.partial, page.next.is_some());
        found.extend(page.jobs.iter().map(|job| job.id));
        pages += 1;
        find.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(found, whole);
    assert!(pages > 1, "{pages}");
}

/// It came as no message, and says 0 tasks.
#[tokio::test]
async fn a_job_of_no_tasks_is_in_every_list_and_is_deleted_when_it_is_old() {
    let database = Database::new().await;
    fill(&database, 1, Some("no task")).await;
    database
        .run("DELETE FROM cliquet.tasks; UPDATE cliquet.jobs SET total = 0, finished_at = now() - interval '2 days'")
        .await;
    let failed = Find {
        status: vec![Failed],
        ..Find::default()
    };
    for find in [Find::default(), failed] {
        assert_eq!(ids(&database, &find).await.len(), 1, "{find:?}");
    }
    let mut pruner = Pruner::open(&database.address, LEAST_AGE, &[Failed], None)
        .await
        .unwrap();
    while !pruner.pruning.is_over() {
        pruner.step(false).await.unwrap();
    }
    pruner.close().await;
    assert!(ids(&database, &Find::default()).await.is_empty());
}

/// What a search reads does not depend on what the planner believes of the tables.
#[tokio::test]
async fn few_that_failed_are_found_among_many_without_reading_the_others() {
    let database = Database::new().await;
    // As they were when they were empty.
    database.run("VACUUM ANALYZE cliquet.jobs").await;
    fill(&database, 3, Some("no luck")).await;
    fill(&database, 20_000, None).await;
    for statistics in ["of an empty table", "of a full one"] {
        for status in [Failed, Retrying, Pending] {
            let find = Find {
                status: vec![status],
                ..Find::default()
            };
            let pool = database.address.reader_pool("reader", 1);
            let mut connection = pool.acquire().await.unwrap();
            let before = read_by(&mut connection).await;
            drop(connection);
            let found = Reads::new(pool.clone()).find(&find).await.unwrap();
            assert_eq!(found.jobs.len(), if status == Failed { 3 } else { 0 });
            let mut connection = pool.acquire().await.unwrap();
            let read = read_by(&mut connection).await - before;
            assert!(
                read < 100,
                "{status}, with statistics {statistics}: {read} rows"
            );
        }
        database.run("VACUUM ANALYZE cliquet.jobs").await;
    }
}

/// How many rows of `jobs` have been read so far, this session's included.
async fn read_by(connection: &mut PgConnection) -> i64 {
    for before in ["pg_stat_force_next_flush", "pg_stat_clear_snapshot"] {
        on(connection, &format!("SELECT {before}()")).await;
    }
    let read = "SELECT (seq_tup_read + idx_tup_fetch)::int8 FROM pg_stat_user_tables WHERE relname = 'jobs'";
    let row = sqlx::query(read).fetch_one(connection).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn jobs_that_never_fail_are_not_in_the_index_of_those_that_do() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    for _ in 0..50 {
        ada.finish(&job_of(3)).await;
    }
    let size = "SELECT pg_relation_size('cliquet.jobs_looked_for')";
    assert_eq!(database.value::<i64>(size).await, 8192);
    let mut own = database.connect().await;
    on(&mut own, "SELECT pg_stat_clear_snapshot()").await;
    let updates =
        "SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'";
    assert_eq!(
        database.value::<i64>(updates).await,
        0,
        "all were heap-only"
    );
}

#[tokio::test]
async fn like_failures_are_one_group_and_the_group_is_found() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    let mut like = Vec::new();
    for (handler, error, gives_up) in [
        ("upload", "HTTP 503: image 17 of 'a.jpg'", true),
        ("upload", "HTTP 503:  image 4 of 'b c.jpg'", false),
        ("upload", "HTTP 404: image 4 of 'b c.jpg'", false),
        ("list", "HTTP 503: image 17 of 'a.jpg'", false),
        ("upload", "HTTP 503: image 5 of 'd'", true),
    ] {
        let message = job(json!({"tasks": ["ready", handler]}));
        let first = stand(&message, &ada.claimed(&message).await);
        ada.done(first, json!(1)).await;
        let failed = Fail {
            stand: after(first),
            error: error.into(),
            retry_in: (!gives_up).then_some(Duration::from_secs(60)),
        };
        ada.ledger.fail(failed).await.unwrap();
        like.push(message.id);
    }
    // Neither of these has failed.
    ada.finish(&job_of(1)).await;
    let message = job_of(1);
    ada.claimed(&message).await;
    cancel(&database, message.id).await;

    let groups = reads(&database).groups(None, 10).await.unwrap().groups;
    let told: Vec<_> = groups
        .iter()
        .map(|group| {
            (
                group.handler.as_deref(),
                group.error.as_str(),
                group.jobs,
                group.failed,
                group.retrying,
            )
        })
        .collect();
    assert_eq!(told[0], (Some("upload"), "HTTP 503: image … of …", 3, 2, 1));
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(groups[0].example, like[4]);
    let find = Find {
        likeness: Some(groups[0].id.clone()),
        ..Find::default()
    };
    assert_eq!(ids(&database, &find).await, [like[4], like[1], like[0]]);
    let failed = Find {
        status: vec![Failed],
        ..find
    };
    assert_eq!(ids(&database, &failed).await, [like[4], like[0]]);
    assert_eq!(
        reads(&database)
            .groups(Some("jobs"), 1)
            .await
            .unwrap()
            .groups
            .len(),
        1
    );
    assert!(
        reads(&database)
            .groups(Some("others"), 9)
            .await
            .unwrap()
            .groups
            .is_empty()
    );
}

/// Here groups are of fifty jobs of each sort, found among two hundred.
#[tokio::test]
async fn groups_are_found_behind_what_is_cancelled_or_another_queues_and_say_when_there_is_more() {
    let database = Database::new().await;
    fill(&database, 3, Some("no luck")).await;
    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '30 days'")
        .await;
    fill(&database, 60, Some("wanted no more")).await;
    database
        .run("UPDATE cliquet.jobs SET status = 'CANCELLED', kind = 'cancelled' WHERE error LIKE 'wanted%'")
        .await;
    fill(&database, 70, Some("of others")).await;
    database
        .run("UPDATE cliquet.jobs SET queue = 'others' WHERE error LIKE 'of others%'")
        .await;
    let groups = async |queue| {
        let found = reads(&database).groups(queue, 9).await.unwrap();
        let told = |group: &Group| (group.error.clone(), group.jobs);
        let told: Vec<_> = found.groups.iter().map(told).collect();
        (told, found.partial)
    };
    let lucky = ("no luck …".to_owned(), 3);
    assert_eq!(groups(Some("jobs")).await, (vec![lucky.clone()], false));
    // Fifty of the newest, and it says so.
    let others = ("of others …".to_owned(), 50);
    assert_eq!(groups(Some("others")).await, (vec![others.clone()], true));
    assert_eq!(groups(None).await, (vec![others], true));
    // Behind more than are looked at.
    fill(&database, 70, Some("more of others")).await;
    database
        .run("UPDATE cliquet.jobs SET queue = 'others' WHERE error LIKE 'more%'")
        .await;
    assert_eq!(groups(Some("jobs")).await, (vec![], true));
}

#[tokio::test]
async fn jobs_without_tasks_are_a_group_that_is_found() {
    let database = Database::new().await;
    fill(&database, 2, Some("no task")).await;
    database.run("DELETE FROM cliquet.tasks").await;
    let groups = reads(&database).groups(None, 9).await.unwrap().groups;
    assert_eq!((groups.len(), groups[0].handler.as_deref()), (1, None));
    let find = Find {
        likeness: Some(groups[0].id.clone()),
        ..Find::default()
    };
    assert_eq!(ids(&database, &find).await.len(), 2);
}

/// Jobs of many tasks are not walked along from the first: each of these would be 2,000 rows.
#[tokio::test]
async fn what_failed_near_the_end_of_many_tasks_is_found_without_reading_them() {
    let database = Database::new().await;
    fill(&database, 5, Some("no luck")).await;
    database
        .run(
            "UPDATE cliquet.jobs SET total = 2000;
             UPDATE cliquet.tasks SET position = 1999;
             INSERT INTO cliquet.tasks (job_id, position, status, epoch, attempt, started_at, finished_at, handler, label)
             SELECT id, n, 'SUCCESS', 1, 1, now(), now(), 'early', 'Early' FROM cliquet.jobs, generate_series(1, 1998) n;
             INSERT INTO cliquet.failures (job_id, epoch, position, attempt, worker, error)
             SELECT id, n, n * 999, 1, 'ada', 'no luck' FROM cliquet.jobs, generate_series(1, 2) n",
        )
        .await;
    let pool = database.address.reader_pool("reader", 1);
    let read = async || {
        let mut connection = pool.acquire().await.unwrap();
        for before in ["pg_stat_force_next_flush", "pg_stat_clear_snapshot"] {
            on(&mut connection, &format!("SELECT {before}()")).await;
        }
        let read = "SELECT (seq_tup_read + idx_tup_fetch)::int8 FROM pg_stat_user_tables WHERE relname = 'tasks'";
        let row = sqlx::query(read).fetch_one(&mut *connection).await.unwrap();
        row.get::<i64, _>(0)
    };
    let before = read().await;
    let groups = Reads::new(pool.clone())
        .groups(None, 9)
        .await
        .unwrap()
        .groups;
    assert_eq!(
        (groups[0].handler.as_deref(), groups[0].jobs),
        (Some("bulk"), 5)
    );
    let find = Find {
        handler: Some("bulk".into()),
        ..Find::default()
    };
    assert_eq!(ids(&database, &find).await.len(), 5);
    let read = read().await - before;
    assert!(read < 500, "{read} rows");
}

#[tokio::test]
async fn whoever_asks_while_another_counts_is_given_the_last_count_of_any_queue() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    ada.finish(&job_of(1)).await;
    let reads = reads(&database);
    let success = async |queue| {
        let overview = reads.overview(queue).await.unwrap();
        let success = overview.jobs.iter().find(|count| count.status == Success);
        success.map(|count| (count.jobs, count.estimated))
    };
    assert_eq!(success(None).await, Some((1, false)));
    ada.finish(&job_of(1)).await;
    // It is time for another count, and somebody makes it.
    let counting = reads.counts.counting_now().await;
    let given = async {
        for _ in 0..3 {
            assert_eq!(success(None).await, Some((1, false)));
        }
    };
    tokio::time::timeout(DEADLINE, given)
        .await
        .expect("it waits");
    drop(counting);
    assert_eq!(success(None).await, Some((2, false)));
    // One count is of every queue.
    let counting = reads.counts.counting_success_now().await;
    let given = async {
        assert_eq!(success(Some("jobs")).await, Some((2, false)));
        assert_eq!(success(Some("others")).await, Some((0, false)));
    };
    tokio::time::timeout(DEADLINE, given)
        .await
        .expect("it waits");
    drop(counting);
}

/// Killed, silent, or gone with a goodbye: until somebody has taken its jobs over, they are held.
#[tokio::test]
async fn what_a_dead_worker_has_left_behind_is_counted_and_found() {
    let database = Database::new().await;
    let (mut ada, mut bob) = (database.worker("ada").await, database.worker("bob").await);
    let left = [job_of(2), job_of(2), job_of(2)];
    for (worker, message) in [(&ada, &left[0]), (&bob, &left[1]), (&bob, &left[2])] {
        worker.claimed(message).await;
    }
    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '30 days'")
        .await;
    ada.presence.beat(|| vec![(left[0].id, Epoch(1))]).await;
    let both = [(left[1].id, Epoch(1)), (left[2].id, Epoch(1))];
    bob.presence.beat(|| both.to_vec()).await;
    // Many jobs since: only the heartbeats have told. And one of bob's has ended since the last.
    fill(&database, 150, None).await;
    cancel(&database, left[2].id).await;
    bob.leave(&database).await;
    let id = ada.id();
    stale(&database, &ada).await;
    ada.die(&database).await;

    let held = Find {
        status: vec![Processing],
        ..Find::default()
    };
    let mut found = ids(&database, &held).await;
    found.sort();
    let mut expected = vec![left[0].id, left[1].id];
    expected.sort();
    assert_eq!(found, expected);
    let processing = async || {
        let overview = reads(&database).overview(None).await.unwrap();
        overview.jobs[1].jobs
    };
    assert_eq!(processing().await, 2);
    database
        .run(&format!(
            "UPDATE cliquet.workers SET cleared_at = clock_timestamp() WHERE id = {id}"
        ))
        .await;
    assert_eq!(processing().await, 1);
}

#[tokio::test]
async fn the_living_are_told_before_the_newest_of_the_dead() {
    let database = Database::new().await;
    let ada = database.worker("ada").await;
    database
        .run(
            "INSERT INTO cliquet.workers (name, host, pid, version, queue, patience, stopped_at)
             SELECT 'dead ' || n, 'here', n, '0', 'jobs', interval '1 minute', now() FROM generate_series(1, 60) n",
        )
        .await;
    let bob = database.worker("bob").await;
    let workers = reads(&database).workers(None).await.unwrap();
    let names: Vec<_> = workers.iter().map(|worker| worker.name.as_str()).collect();
    assert_eq!(names[..3], ["bob", "ada", "dead 60"]);
    assert_eq!((names.len(), names[51]), (52, "dead 11"));
    drop((ada, bob));
}

#[tokio::test]
async fn a_restart_of_postgres_between_two_questions_goes_unnoticed() {
    let database = Database::new().await;
    let (reader, acts) = (
        database.address.reader_pool("reader", 2),
        database.address.lasting_pool("acts", 2),
    );
    for pool in [reader, acts] {
        let ask = async || sqlx::query("SELECT 1").execute(&pool).await;
        ask().await.unwrap();
        until("its session is ended", async || {
            database.terminate("cliquet %").await > 0
        })
        .await;
        until("it is gone", async || {
            database.terminate("cliquet %").await == 0
        })
        .await;
        ask().await.unwrap();
    }
}

#[tokio::test]
async fn the_overview_counts_every_status_and_what_ended_in_each_minute() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let made = one_of_each(&database, &ada).await;
    ada.finish(&job_of(4)).await;
    let running = [(made[1], Epoch(1))];
    // The second time there is nothing new to tell.
    for _ in 0..2 {
        ada.presence.beat(|| running.to_vec()).await;
    }
    let overview = reads(&database).overview(None).await.unwrap();
    let counts: Vec<_> = overview
        .jobs
        .iter()
        .map(|count| (count.status, count.jobs))
        .collect();
    assert_eq!(
        counts,
        [
            (Pending, 1),
            (Processing, 1),
            (Retrying, 1),
            (Success, 2),
            (Failed, 1),
            (Cancelled, 1)
        ]
    );
    assert_eq!(overview.minutes.len(), 60);
    assert!(
        overview
            .minutes
            .windows(2)
            .all(|pair| (pair[1].at - pair[0].at).num_seconds() == 60)
    );
    let sums = overview
        .minutes
        .iter()
        .fold((0, 0), |(well, badly), minute| {
            (well + minute.succeeded, badly + minute.failed)
        });
    assert_eq!(sums, (7, 2));
    assert!(
        overview.oldest_due_seconds.unwrap() >= 0.0,
        "what was handed back is due"
    );

    let others = reads(&database).overview(Some("others")).await.unwrap();
    assert!(others.jobs.iter().all(|count| count.jobs == 0));
    assert_eq!(others.oldest_due_seconds, None);
    assert_eq!(others.minutes.len(), 60);
}

#[tokio::test]
async fn a_worker_tells_what_it_does_in_which_minute_once_and_forgets_after_two_hours() {
    let database = Database::new().await;
    let mut ada = database.worker("ada").await;
    let told = "SELECT coalesce(sum(succeeded), 0)::int8 FROM cliquet.activity";
    ada.finish(&job_of(2)).await;
    ada.presence.beat(Vec::new).await;
    assert_eq!(database.value::<i64>(told).await, 2);
    // A beat whose answer was lost is sent again.
    ada.presence.beat(Vec::new).await;
    assert_eq!(database.value::<i64>(told).await, 2);
    database
        .run("UPDATE cliquet.activity SET minute = minute - interval '3 hours'")
        .await;
    ada.finish(&job_of(3)).await;
    // With its goodbye, too.
    ada.leave(&database).await;
    let minutes = "SELECT coalesce(string_agg(succeeded::text, ' '), '') FROM cliquet.activity";
    assert_eq!(database.value::<String>(minutes).await, "3");
    // What a worker that is gone has left, the next one that begins forgets.
    database
        .run("UPDATE cliquet.activity SET minute = minute - interval '3 hours'")
        .await;
    database.worker("bob").await;
    assert_eq!(database.value::<String>(minutes).await, "");
}

#[tokio::test]
async fn workers_are_told_with_what_each_does_now() {
    let database = Database::new().await;
    let (mut ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let (old, young) = (job_of(2), job_of(1));
    let first = stand(&old, &ada.claimed(&old).await);
    ada.done(first, json!(1)).await;
    // Long ago, and many jobs since: only the heartbeat tells.
    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '30 days'; UPDATE cliquet.tasks SET started_at = now() - interval '1 day' WHERE position = 2")
        .await;
    fill(&database, 600, None).await;
    ada.claimed(&young).await;
    let running = [(old.id, Epoch(1)), (young.id, Epoch(1))];
    ada.presence.beat(|| running.to_vec()).await;
    let id = bob.id();
    bob.leave(&database).await;

    let workers = reads(&database).workers(None).await.unwrap();
    let names: Vec<_> = workers
        .iter()
        .map(|worker| (worker.name.as_str(), worker.alive, worker.jobs))
        .collect();
    assert_eq!(names, [("ada", true, 2), ("bob", false, 0)]);
    let does: Vec<_> = workers[0]
        .running
        .iter()
        .map(|run| (run.job, run.position, run.label.as_str()))
        .collect();
    assert_eq!(does, [(old.id, 2, "step_2"), (young.id, 1, "step_1")]);
    let find = Find {
        status: vec![Processing],
        ..Find::default()
    };
    let held = ids(&database, &find).await;
    assert_eq!(held, [young.id, old.id]);

    stale(&database, &ada).await;
    database
        .run(&format!(
            "UPDATE cliquet.workers SET stopped_at = now() - interval '2 hours' WHERE id = {id}"
        ))
        .await;
    let workers = reads(&database).workers(Some("jobs")).await.unwrap();
    assert!(
        workers.is_empty(),
        "one has been silent for a day, the other gone for hours: {workers:?}"
    );
    assert!(
        reads(&database)
            .workers(Some("others"))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_dead_worker_is_told_to_hold_what_nobody_has_taken_over_and_to_brake_nothing() {
    let database = Database::new().await;
    let (mut ada, bob) = (database.worker("ada").await, database.worker("bob").await);
    let left: Vec<_> = (0..4).map(|_| job_of(1)).collect();
    for message in &left {
        ada.claimed(message).await;
    }
    // Long ago, and many jobs since: only the heartbeats tell.
    database
        .run("UPDATE cliquet.jobs SET created_at = now() - interval '30 days'")
        .await;
    fill(&database, 600, None).await;
    let running: Vec<_> = left.iter().map(|message| (message.id, Epoch(1))).collect();
    ada.presence.tell_brakes(&[brake()]);
    ada.presence.beat(|| running.clone()).await;
    let told = async || {
        let workers = reads(&database).workers(None).await.unwrap();
        let ada = workers
            .into_iter()
            .find(|worker| worker.name == "ada")
            .unwrap();
        (ada.alive, ada.jobs, ada.running.len(), ada.brakes.is_null())
    };
    assert_eq!(told().await, (true, 4, 4, false));
    // One that it began after its last heartbeat, with many after it.
    let young = job_of(1);
    ada.claimed(&young).await;
    database
        .run("UPDATE cliquet.jobs SET created_at = clock_timestamp() WHERE kind = 'bulk'")
        .await;
    database
        .run("UPDATE cliquet.workers SET patience = '1ms', running = ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 100)) || running WHERE name = 'ada'")
        .await;
    ada.die(&database).await;
    assert_eq!(told().await, (false, 5, 5, true));
    for message in &left[..3] {
        bob.claimed_by(asks(message)).await;
    }
    assert_eq!(told().await, (false, 2, 2, true));
    database
        .run("UPDATE cliquet.workers SET cleared_at = clock_timestamp() WHERE name = 'ada'")
        .await;
    // Somebody has looked through all jobs, and it is believed.
    assert_eq!(told().await, (false, 0, 0, true));
}

#[tokio::test]
async fn a_readers_session_changes_nothing_and_takes_five_seconds_at_most() {
    let database = Database::new().await;
    let pool = database.address.reader_pool("reader", 1);
    for (sql, words) in [
        ("DELETE FROM cliquet.jobs", "read-only transaction"),
        ("SELECT pg_sleep(20)", "statement timeout"),
    ] {
        let refused = sqlx::query(sql).execute(&pool).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
    }
}
