//! The journals beside the ledger: who executed what, and was it his?

use sqlx::PgPool;

use super::{none, number};
use crate::report::Report;

/// What the journals say of executions.
pub async fn runs(pool: &PgPool, report: &mut Report) {
    report.count(
        "executions",
        number(pool, "SELECT count(*) FROM judged").await,
    );
    none(
        pool,
        report,
        "tasks SUCCESS that nobody executed",
        "SELECT task.job_id || ' position ' || task.position FROM cliquet.tasks task
          WHERE task.status = 'SUCCESS' AND NOT EXISTS (SELECT FROM judged WHERE judged.job_id = task.job_id AND judged.position = task.position)",
    )
    .await;
    none(
        pool,
        report,
        "executions before the task before was SUCCESS",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', the one before: ' || coalesce(former_success::text, 'never')
           FROM judged WHERE position > 1 AND (former_success IS NULL OR former_success > began)",
    )
    .await;
    none(
        pool,
        report,
        "executions of a SUCCESS task by its job's holder",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', SUCCESS at ' || success
           FROM judged WHERE success < began AND holder = worker_id",
    )
    .await;
    none(
        pool,
        report,
        "executions of a SUCCESS task by a former holder that was not paused",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', SUCCESS at ' || success
           FROM judged WHERE success < began AND holder IS DISTINCT FROM worker_id AND NOT paused",
    )
    .await;
    none(
        pool,
        report,
        "executions of a task while the same process still executed it",
        "SELECT second.job_id || ' position ' || second.position || ' by ' || second.worker || ' at ' || second.began
                || ', and since ' || first.began || ' until ' || coalesce(first.ended::text, 'its death')
           FROM executions first JOIN executions second
                ON second.job_id = first.job_id AND second.position = first.position AND second.worker = first.worker
          WHERE second.number > first.number AND second.began < coalesce(first.ended, 'infinity')",
    )
    .await;
    report.count(
        "executions of a SUCCESS task by a worker that had been paused past its heartbeat",
        number(pool, "SELECT count(*) FROM judged WHERE success < began AND holder IS DISTINCT FROM worker_id AND paused").await,
    );
    report.count(
        "executions begun by a former holder that had been paused",
        number(
            pool,
            "SELECT count(*) FROM judged WHERE holder IS DISTINCT FROM worker_id AND paused",
        )
        .await,
    );
    report.count(
        "executions begun by a former holder that had not been paused",
        number(
            pool,
            "SELECT count(*) FROM judged WHERE holder IS DISTINCT FROM worker_id AND NOT paused",
        )
        .await,
    );
}
