//! What is done to whom, when and for how long: drawn from the seed before anything begins.
//!
//! Each lane is a row of events that follow one another; the lanes run beside each other. A lane draws its events from a
//! deck that is shuffled anew when it is used up, so that every kind comes up, however short the run.

use std::{fmt, time::Duration};

use crate::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Rabbitmq,
    Postgres,
}

impl Service {
    pub fn name(self) -> &'static str {
        match self {
            Service::Rabbitmq => "rabbitmq",
            Service::Postgres => "postgres",
        }
    }
}

/// What becomes of the network between one worker and one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Every connection is reset, and new ones are refused for a while.
    Cut,
    /// Nothing passes in either direction; then everything that waited does.
    Held,
    /// Nothing passes in either direction; then every connection is reset.
    Swallowed,
    /// Every packet takes long, and few bytes pass.
    Slow,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a worker; its supervisor starts another.
    Kill { worker: usize },
    /// SIGTERM; its supervisor starts another when it has drained.
    Stop { worker: usize },
    /// SIGSTOP past the heartbeat's patience, then SIGCONT.
    Pause { worker: usize, lasts: Duration },
    /// A service is stopped in good order, or killed; and started again.
    Service { service: Service, killed: bool },
    /// The network between a worker and a service.
    Network {
        worker: usize,
        service: Service,
        trouble: Trouble,
        lasts: Duration,
    },
    /// A worker's connection is closed by an operator.
    CloseConnection {
        worker: usize,
        purpose: &'static str,
    },
    /// The binding by which publishers reach the queue is deleted; it is made again after a while.
    DeleteBinding { lasts: Duration },
    /// The work queue is deleted, with whatever is in it.
    DeleteQueue,
}

impl Fault {
    pub const KILLED: &str = "worker killed";
    pub const STOPPED: &str = "worker stopped and started";

    /// The word under which it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Kill { .. } => Self::KILLED,
            Fault::Stop { .. } => Self::STOPPED,
            Fault::Pause { .. } => "worker paused past its heartbeat",
            Fault::Service { service, killed } => match (service, killed) {
                (Service::Rabbitmq, false) => "RabbitMQ restarted",
                (Service::Rabbitmq, true) => "RabbitMQ killed",
                (Service::Postgres, false) => "Postgres restarted",
                (Service::Postgres, true) => "Postgres killed",
            },
            Fault::Network { trouble, .. } => match trouble {
                Trouble::Cut => "network cut",
                Trouble::Held => "network held",
                Trouble::Swallowed => "network held, then cut",
                Trouble::Slow => "network slow",
            },
            Fault::CloseConnection { .. } => "connection closed by an operator",
            Fault::DeleteBinding { .. } => "binding deleted",
            Fault::DeleteQueue => "queue deleted",
        }
    }

    /// How long it lasts, where that is drawn.
    fn lasts(&self) -> Duration {
        match self {
            Fault::Pause { lasts, .. }
            | Fault::Network { lasts, .. }
            | Fault::DeleteBinding { lasts } => *lasts,
            _ => Duration::ZERO,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Fault::Kill { worker } | Fault::Stop { worker } => write!(f, ": w{}", worker + 1),
            Fault::Pause { worker, lasts } => write!(f, ": w{} for {lasts:?}", worker + 1),
            Fault::Network {
                worker,
                service,
                lasts,
                ..
            } => write!(f, ": w{} and {} for {lasts:?}", worker + 1, service.name()),
            Fault::CloseConnection { worker, purpose } => {
                write!(f, ": w{} ({purpose})", worker + 1)
            }
            Fault::DeleteBinding { lasts } => write!(f, " for {lasts:?}"),
            Fault::Service { .. } | Fault::DeleteQueue => Ok(()),
        }
    }
}

/// Something that happens so long after the beginning, or when its lane's former event has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub fault: Fault,
}

pub type Lane = Vec<Event>;

/// How long a worker may be silent, in the settings of a chaos run; a pause is longer.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The schedule of a run.
pub fn draw(seed: u64, seconds: u64, workers: usize) -> Vec<Lane> {
    /// What a card of a lane's deck stands for, with so many workers.
    type Draw = fn(&mut Dice, usize, usize) -> Fault;
    // Each lane: the least and the longest pause between its events in milliseconds, the cards of its deck. What takes as
    // long as it takes (a service that starts) is given its time by the pause.
    let lanes: [(u64, u64, usize, Draw); 5] = [
        (1_500, 4_000, 3, |dice, card, workers| {
            let worker = dice.below(workers as u64) as usize;
            match card {
                0 | 1 => Fault::Kill { worker },
                _ => Fault::Stop { worker },
            }
        }),
        (1_000, 4_000, 1, |dice, _, workers| Fault::Pause {
            worker: dice.below(workers as u64) as usize,
            lasts: PATIENCE + dice.millis(300, 2_500),
        }),
        (9_000, 12_000, 4, |_, card, _| Fault::Service {
            service: [Service::Rabbitmq, Service::Postgres][card % 2],
            killed: card < 2,
        }),
        (300, 1_500, 8, |dice, card, workers| {
            let trouble = [
                Trouble::Cut,
                Trouble::Held,
                Trouble::Swallowed,
                Trouble::Slow,
            ][card / 2];
            Fault::Network {
                worker: dice.below(workers as u64) as usize,
                service: [Service::Rabbitmq, Service::Postgres][card % 2],
                trouble,
                lasts: match trouble {
                    Trouble::Cut => dice.millis(0, 1_500),
                    _ => dice.millis(300, 6_000),
                },
            }
        }),
        (3_000, 6_000, 5, |dice, card, workers| {
            let worker = dice.below(workers as u64) as usize;
            match card {
                0 | 1 => Fault::CloseConnection {
                    worker,
                    purpose: "consume",
                },
                2 => Fault::CloseConnection {
                    worker,
                    purpose: "publish",
                },
                3 => Fault::DeleteBinding {
                    lasts: dice.millis(300, 2_000),
                },
                _ => Fault::DeleteQueue,
            }
        }),
    ];
    let end = seconds.saturating_sub(4) * 1_000;
    lanes
        .iter()
        .enumerate()
        .map(|(number, (least, most, cards, fault))| {
            let mut dice = Dice::of(&[seed, 1, number as u64]);
            let (mut lane, mut deck) = (Lane::new(), Vec::new());
            let mut at = 1_500 + dice.below(least / 2);
            while at < end {
                if deck.is_empty() {
                    deck = (0..*cards).collect();
                    dice.shuffle(&mut deck);
                }
                let fault = fault(&mut dice, deck.pop().unwrap(), workers);
                let lasts = fault.lasts().as_millis() as u64;
                lane.push(Event {
                    at: Duration::from_millis(at),
                    fault,
                });
                at += lasts + dice.between(*least, *most);
            }
            lane
        })
        .collect()
}

#[test]
fn the_same_seed_is_the_same_schedule_and_a_minute_has_every_kind() {
    assert_eq!(draw(7, 60, 3), draw(7, 60, 3));
    assert_ne!(draw(7, 60, 3), draw(8, 60, 3));
    for seed in 0..50 {
        let mut kinds: Vec<_> = draw(seed, 60, 3)
            .concat()
            .iter()
            .map(|event| event.fault.kind())
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 14, "seed {seed} has only {kinds:?}");
    }
}
