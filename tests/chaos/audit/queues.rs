//! Every message that is left, and what the ledger says of it.

use std::collections::HashMap;

use cliquet::broker::Place;
use lapin::BasicProperties;
use uuid::Uuid;

use super::topology;
use crate::{
    faults::Deletion,
    ground::Ground,
    jobs::id_in,
    load::{FORGED, GARBAGE, Published},
    rabbit::{Rabbit, says, whole},
    report::Report,
};

/// How long a worker may have a message that is no job before it is parked, in microseconds: longer than the network is
/// ever held.
const AT_A_WORKER: i64 = 10_000_000;

pub async fn queues(ground: &Ground, published: &Published, report: &mut Report) {
    let (mut rabbit, topology) = (Rabbit::new(&ground.amqp_url), topology());
    for place in topology.places() {
        let name = topology.name(place);
        if place == Place::Dead {
            let dead = rabbit.drain(&name).await;
            parked(ground, published, &dead, report).await;
            continue;
        }
        let left = rabbit.drain(&name).await;
        for (body, properties) in &left {
            report.fault(format!(
                "{name} has a message left: {:?} {:?}",
                String::from_utf8_lossy(&body[..body.len().min(80)]),
                properties.headers()
            ));
        }
        report.count(&format!("messages left in {name}"), left.len() as i64);
    }
}

async fn parked(
    ground: &Ground,
    published: &Published,
    dead: &[(Vec<u8>, BasicProperties)],
    report: &mut Report,
) {
    // At which generations each job was ever given up: a copy of an earlier one was superseded by an operator's retry.
    let given_up: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT DISTINCT job_id, generation FROM job_history WHERE status = 'FAILED'",
    )
    .fetch_all(&ground.pool)
    .await
    .unwrap();
    // At which generation each job became known.
    let began: HashMap<Uuid, i64> =
        sqlx::query_as("SELECT job_id, min(generation) FROM job_history GROUP BY job_id")
            .fetch_all(&ground.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let mut owed: HashMap<Uuid, i64> =
        sqlx::query_as("SELECT id, generation FROM cliquet.jobs WHERE status = 'FAILED'")
            .fetch_all(&ground.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let failed = owed.clone();
    let mut litter = vec![0u32; published.garbage.len()];
    let (mut copies, mut again, mut superseded, mut foreign) = (0, 0, 0, 0);
    for (body, properties) in dead {
        let (reason, error) = (
            says(properties, "cliquet-reason"),
            says(properties, "cliquet-error"),
        );
        let unexplained = || {
            format!(
                "the dead queue has a message that nothing explains: {:?} {:?}",
                String::from_utf8_lossy(&body[..body.len().min(80)]),
                properties.headers()
            )
        };
        if let Some(number) = whole(properties, GARBAGE) {
            if reason.is_empty() || error.is_empty() {
                report.fault(unexplained());
            }
            litter[number as usize] += 1;
            continue;
        }
        let generation = whole(properties, "cliquet-generation");
        let (Some(job), Some(generation)) = (id_in(body), generation) else {
            report.fault(unexplained());
            continue;
        };
        if reason == "foreign_generation" {
            // The very one that the publisher made up, and the ledger had once not come so far.
            let is_ahead = began.get(&job).is_some_and(|began| generation > *began);
            if whole(properties, FORGED) != Some(generation) || error.is_empty() || !is_ahead {
                report.fault(unexplained());
            }
            foreign += 1;
        } else if reason.is_empty() || error.is_empty() || !given_up.contains(&(job, generation)) {
            report.fault(unexplained());
        } else if failed.get(&job) != Some(&generation) {
            superseded += 1;
        } else if owed.remove(&job).is_some() {
            copies += 1;
        } else {
            again += 1;
        }
    }
    report.count("parked jobs with their copy in the dead queue", copies);
    report.count(
        "parked copies sent twice (always towards a duplicate)",
        again,
    );
    report.count("parked copies superseded by a retry", superseded);
    report.count(
        "forged copies that were ahead of the ledger, parked",
        foreign,
    );
    for (job, generation) in &owed {
        report.fault(format!(
            "{job} is FAILED at generation {generation} and has no copy in the dead queue"
        ));
    }
    report.count("messages that are no jobs, accepted", litter.len() as i64);
    report.count(
        "messages that are no jobs, parked with what is wrong",
        litter.iter().filter(|count| **count > 0).count() as i64,
    );
    let (mut lost, mut slipped) = (0, 0);
    for (number, count) in litter.iter().enumerate() {
        let (what, at) = published.garbage[number];
        if *count > 0 {
            continue;
        }
        // Nobody sends it again, and the ledger never knew it.
        let waited = |deletion: &&Deletion| deletion.litter.contains(&(number as i64));
        let was_at_a_worker = |deletion: &&Deletion| (at..at + AT_A_WORKER).contains(&deletion.at);
        if published.deletions.iter().any(|one| waited(&one)) {
            lost += 1;
        } else if published.deletions.iter().any(|one| was_at_a_worker(&one)) {
            slipped += 1;
        } else {
            report.fault(format!(
                "a message that is no job ({what}, accepted at {at}) is nowhere"
            ));
        }
    }
    report.count(
        "messages that are no jobs, gone with their deleted queue",
        lost,
    );
    report.count(
        "messages that are no jobs, gone from a worker when the queue was deleted",
        slipped,
    );
}
