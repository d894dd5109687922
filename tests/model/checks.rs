//! Running the checker, and telling what it found.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::{protocol::Protocol, tell::tell};

/// Looks at every state there is: each promise holds in each.
pub fn holds(protocol: &Protocol) {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let checker = protocol.clone().checker();
    let checker = checker
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(threads);
    let checker = checker.spawn_bfs().join();
    println!(
        "{} tasks, {} faults: {} states, {} acts, {:.1?}",
        protocol.tasks,
        protocol.faults,
        checker.unique_state_count(),
        checker.state_count(),
        began.elapsed()
    );
    if let Some((promise, path)) = checker.discoveries().into_iter().next() {
        panic!("broken: {promise}\n{}", tell(protocol, path));
    }
    assert!(checker.is_done(), "the checker did not look at everything");
}

/// Finds the nearest state in which this promise is broken, and tells how the world comes to it.
///
/// With fewer faults it holds: so many does it take.
pub fn breaks(promise: &'static str, protocol: Protocol) -> String {
    if let Some(fewer) = protocol.faults.checked_sub(1) {
        let found = find(&Protocol::new(protocol.tasks, fewer, protocol.rules).watching(promise));
        assert_eq!(found, None, "fewer faults are enough");
    }
    let protocol = protocol.watching(promise);
    let found = find(&protocol);
    let story = found.unwrap_or_else(|| {
        panic!("without this rule nothing was found that breaks \"{promise}\": it is not needed")
    });
    println!("broken: {promise}\n{story}");
    story
}

fn find(protocol: &Protocol) -> Option<String> {
    let began = Instant::now();
    // One thread, so that the path is a shortest one.
    let checker = protocol.clone().checker().finish_when(HasDiscoveries::Any);
    let checker = checker.spawn_bfs().join();
    println!(
        "{} tasks, {} faults: {} states, {:.1?}",
        protocol.tasks,
        protocol.faults,
        checker.unique_state_count(),
        began.elapsed()
    );
    let path = checker.discoveries().into_values().next()?;
    Some(tell(protocol, path))
}
