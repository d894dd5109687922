//! A crash sweep: a worker's process is killed at every boundary of its work in turn, and another goes on.
//!
//! Each scene is played once without a kill, to learn which fail points it passes and how often; then once for each of these
//! passages, with a process that dies there. What is counted afterwards is exact, position by position.

mod play;
mod scene;

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Mutex, time::Instant};

use cliquet::fail_point::FailPoint::{self, *};
use futures::{FutureExt, future::join_all};

use crate::support::stage::Stage;
use play::{Passage, Played, play};
use scene::Scene;

/// How many scenes are played at the same time, each on a stage of its own.
const STAGES: usize = 6;

/// Plays all of these on several stages, and answers with what became of each. A stage on which something went wrong is
/// not used again.
async fn play_all(
    plays: Vec<(Scene, Option<Passage>)>,
) -> Vec<(Scene, Option<Passage>, Result<Played, String>)> {
    let left = Mutex::new(plays.into_iter());
    let stages = (0..STAGES).map(async |_| {
        let (mut stage, mut played, mut used) = (None, Vec::new(), Vec::new());
        loop {
            let next = left.lock().unwrap().next();
            let Some((scene, end)) = next else {
                used.extend(stage);
                return (played, used);
            };
            let on = match stage.take() {
                Some(on) => on,
                None => Stage::new().await,
            };
            let outcome = AssertUnwindSafe(play(&on, scene, end)).catch_unwind();
            let outcome = match outcome.await {
                Ok(outcome) => {
                    stage = Some(on);
                    Ok(outcome)
                }
                Err(panic) => {
                    used.push(on);
                    let text = panic.downcast_ref::<String>().cloned();
                    let word = || panic.downcast_ref::<&str>().map(ToString::to_string);
                    Err(text.or_else(word).unwrap_or_default())
                }
            };
            played.push((scene, end, outcome));
        }
    });
    // A stage that goes away stops the thread, and with it the others' connections: all go at the end.
    let (played, _used): (Vec<_>, Vec<_>) = join_all(stages).await.into_iter().unzip();
    played.into_iter().flatten().collect()
}

/// The attempt that is under way at these points is made once more, and no other ever is.
const IN_FLIGHT: [FailPoint; 4] = [AfterHandler, BeforeAdvance, BeforeCommit, BeforeFail];

/// A run is over when these are passed. At the first passage the next one may be under way, if the copy was back from its rung
/// before.
const BESIDE_A_RUN: [FailPoint; 4] = [BeforeSent, AfterSent, BeforeAcknowledge, AfterAcknowledge];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_boundary_loses_nothing_and_does_nothing_twice() {
    let began = Instant::now();
    let rehearsals = play_all(Scene::ALL.map(|scene| (scene, None)).to_vec()).await;
    let mut plays = Vec::new();
    for (scene, _, rehearsal) in rehearsals {
        let trace = rehearsal
            .unwrap_or_else(|error| panic!("{scene:?}, with nobody killed: {error}"))
            .trace;
        let begins = match scene {
            Scene::CutShort | Scene::Drained => {
                trace.iter().position(|passed| *passed == Draining).unwrap()
            }
            _ => 0,
        };
        for (index, point) in trace.iter().enumerate().skip(begins) {
            let passage = trace[..=index]
                .iter()
                .filter(|passed| *passed == point)
                .count();
            if (passage == 1 || scene.is_exact()) && scene.swept().contains(point) {
                plays.push((scene, Some((*point, passage))));
            }
        }
        let mut unseen = scene.swept();
        unseen.retain(|point| !trace.contains(point));
        assert!(
            scene == Scene::Ordinary || unseen.is_empty(),
            "{scene:?} never passes {unseen:?}"
        );
    }
    let swept: BTreeSet<_> = plays
        .iter()
        .filter_map(|(_, end)| *end)
        .map(|(point, _)| point)
        .collect();
    let unseen: Vec<_> = FailPoint::ALL
        .iter()
        .filter(|point| !swept.contains(point))
        .collect();
    assert!(unseen.is_empty(), "no scene passes {unseen:?}");

    let (kills, mut again) = (plays.len(), 0);
    let mut wrong = Vec::new();
    for (scene, end, outcome) in play_all(plays).await {
        let (point, passage) = end.unwrap();
        let expected = scene == Scene::Ordinary && IN_FLIGHT.contains(&point);
        match outcome {
            Err(error) => wrong.push(format!("{scene:?}, {}:{passage}: {error}", point.name())),
            Ok(played)
                if scene == Scene::Ordinary
                    && !(BESIDE_A_RUN.contains(&point) && passage == 1)
                    && played.in_flight.is_some() != expected =>
            {
                wrong.push(format!(
                    "{scene:?}, {}:{passage}: in flight was {:?}",
                    point.name(),
                    played.in_flight
                ))
            }
            Ok(played) => again += usize::from(played.in_flight.is_some()),
        }
    }
    let took = began.elapsed();
    eprintln!(
        "{kills} kills at {} points; {again} attempts were made once more; {took:.1?}",
        FailPoint::ALL.len()
    );
    assert!(
        wrong.is_empty(),
        "{} of {kills} went wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
