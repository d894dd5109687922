//! RabbitMQ over AMQP: is it there, does it take messages, are the queues as they must be, and may this user do its work?

use std::time::Duration;

use super::{Finding, management};
use crate::{
    broker::{
        Address, BrokerError, BrokerHealth, Identity, Management, Permission, Place, Publishing,
        QueueSpec, QueueState, Topology, look, shell_word, version,
    },
    ledger::Duty,
};

pub(super) const CONNECTION: &str = "rabbitmq.connection";
pub(super) const VERSION: &str = "rabbitmq.version";
pub(super) const PUBLISHING: &str = "rabbitmq.publishing";
pub(super) const QUEUES: &str = "rabbitmq.queues";
pub(super) const CONSUMERS: &str = "rabbitmq.consumers";
pub(super) const DEAD_QUEUE: &str = "rabbitmq.dead_queue";
pub(super) const PERMISSIONS: &str = "rabbitmq.permissions";

/// The oldest version that has quorum queues with at-least-once dead-lettering.
const OLDEST: (u32, u32) = (3, 10);

/// What to do about an alarm.
const FREE: &str =
    "free memory or disk on RabbitMQ's node; `rabbitmq-diagnostics alarms` tells which";

/// Whom to ask, and what for.
pub(super) struct Broker {
    pub(super) address: Address,
    pub(super) topology: Topology,
    pub(super) identity: Identity,
    pub(super) management: Option<Management>,
    /// Whether a worker with these settings makes its queues.
    pub(super) declares: bool,
    pub(super) hand_over_after: Duration,
    pub(super) duty: Duty,
}

impl Broker {
    /// Asks RabbitMQ everything. What could not be asked is left out. Answers, too, with how many messages wait in the work
    /// queue.
    pub(super) async fn examine(self) -> (Vec<Finding>, Option<u32>) {
        let mut findings = Vec::new();
        let told = version(&self.address).await;
        let looked = look(&self.address, &self.topology, &self.identity).await;
        let told = match (&told, &self.management) {
            (None, Some(management)) => management.version().await.ok(),
            _ => told,
        };
        findings.extend(told.map(|version| judge_version(&version)));
        let mut ready = None;
        match looked {
            Err(error) => findings.push(self.judge_connection(&error)),
            Ok(health) => {
                findings.push(Finding::well(
                    CONNECTION,
                    format!("{} let us in", self.address),
                ));
                ready = ready_in(&health.queues, Place::Work);
                findings.push(self.judge_publishing(&health.publishing));
                findings.push(self.judge_queues(&health.queues));
                findings.extend(judge_traffic(&health.queues));
                if self.management.is_none() {
                    findings.push(judge_alarms_by_publishing(&health.publishing));
                }
                let permissions = match &self.management {
                    Some(management) => Some(management.permissions(self.address.user()).await),
                    None => None,
                };
                findings.push(self.judge_permissions(&health, permissions));
            }
        }
        findings.extend(management::examine(&self).await);
        (findings, ready)
    }

    fn judge_queues(&self, queues: &[(QueueSpec, QueueState)]) -> Finding {
        let (mut missing, mut wrong, mut unproven) = (Vec::new(), Vec::new(), 0);
        for (spec, state) in queues {
            match state {
                QueueState::Right { .. } => {}
                QueueState::Unproven { .. } => unproven += 1,
                QueueState::Wrong(BrokerError::Missing { .. }) => missing.push(spec.name.as_str()),
                QueueState::Wrong(error) => wrong.push(error.to_string()),
            }
        }
        if let Some(first) = wrong.first() {
            return Finding::problem(
                QUEUES,
                match wrong.len() {
                    1 => first.clone(),
                    count => format!("{count} queues are wrong, the first: {first}"),
                },
                "`cliquet topology verify` tells all of them, each with what to do",
            );
        }
        if !missing.is_empty() {
            return Finding::problem(
                QUEUES,
                format!(
                    "{} of {} queues are missing: {}",
                    missing.len(),
                    queues.len(),
                    match missing.len() {
                        ..6 => missing.join(", "),
                        _ => format!("{} …", missing[..5].join(", ")),
                    }
                ),
                "`cliquet topology declare` makes them",
            );
        }
        Finding::well(
            QUEUES,
            match unproven {
                0 => format!(
                    "all {} are there, with the arguments they must have",
                    queues.len()
                ),
                _ => format!(
                    "all {} are there; this user may not compare the arguments of {unproven}: `cliquet topology verify` as one who may configure them does",
                    queues.len()
                ),
            },
        )
    }

    fn judge_permissions(
        &self,
        health: &BrokerHealth,
        told: Option<Result<Vec<Permission>, String>>,
    ) -> Finding {
        let user = self.address.user();
        let mut lacking = Vec::new();
        let may_not_declare = health.queues.iter().any(|(_, state)| {
            matches!(
                state,
                QueueState::Unproven { .. } | QueueState::Wrong(BrokerError::Denied { .. })
            )
        });
        if self.duty == Duty::Worker && self.declares && may_not_declare {
            lacking.push("configure, although `declare` is on");
        }
        if self.duty == Duty::Worker && matches!(health.publishing, Publishing::Denied(_)) {
            lacking.push("write on amq.default, where every message is published");
        }
        let told = told.map(|told| {
            told.map(|mut told| {
                told.retain(|permission| permission.vhost == self.address.vhost());
                told.pop()
            })
        });
        if self.duty == Duty::Worker
            && let Some(Ok(Some(permission))) = &told
            && matches!(permission.read.as_str(), "" | "^$")
        {
            lacking.push("read on the work queue");
        }
        if !lacking.is_empty() {
            return Finding::problem(
                PERMISSIONS,
                format!("the user {user} lacks {}", lacking.join("; and ")),
                format!(
                    "{}; with queues that somebody else makes, set declare = false",
                    self.grant()
                ),
            );
        }
        match told {
            Some(Ok(Some(permission))) => Finding::well(
                PERMISSIONS,
                format!(
                    "{user} has configure {:?}, write {:?}, read {:?}",
                    permission.configure, permission.write, permission.read
                ),
            ),
            _ if self.duty != Duty::Worker => {
                Finding::well(PERMISSIONS, format!("{user} may do what was tried"))
            }
            _ => Finding::unchecked(
                PERMISSIONS,
                format!(
                    "{}; whether {user} may read the work queue is told to administrators only: `rabbitmqctl list_user_permissions {}`",
                    shown(user, health),
                    shell_word(user)
                ),
            ),
        }
    }

    /// How this user is given what it needs.
    fn grant(&self) -> String {
        let role = match self.duty {
            Duty::Worker if self.declares => "worker",
            Duty::Worker => "--no-declare worker",
            Duty::Publisher => "publisher",
            Duty::Reader => "reader",
            Duty::Operator => "operator",
        };
        format!(
            "`deploy/rabbitmq-permissions.sh --vhost {} --queue {} {role} {}` prints the `rabbitmqctl set_permissions` that grants it",
            shell_word(self.address.vhost()),
            shell_word(&self.topology.name(Place::Work)),
            shell_word(self.address.user())
        )
    }

    fn judge_connection(&self, error: &BrokerError) -> Finding {
        let (host, port) = (self.address.host(), self.address.port());
        let user = shell_word(self.address.user());
        let remedy = match error {
            BrokerError::Unreachable { .. } => {
                "start RabbitMQ, mend AMQP_URL, or open the way to it; running jobs go on, and nothing is lost meanwhile".to_owned()
            }
            BrokerError::Untrusted { .. } => format!(
                "mend what it says; `openssl s_client -connect {} -servername {} </dev/null` shows what is offered there",
                shell_word(&format!("{host}:{port}")),
                shell_word(host)
            ),
            _ => format!(
                "`rabbitmqctl authenticate_user {user}` (it asks for the password) and `rabbitmqctl list_user_permissions {user}` tell which part is wrong"
            ),
        };
        Finding::problem(CONNECTION, error.to_string(), remedy)
    }

    fn judge_publishing(&self, publishing: &Publishing) -> Finding {
        match publishing {
            Publishing::Works => Finding::well(
                PUBLISHING,
                "a message to nowhere came back and was confirmed",
            ),
            Publishing::Blocked(reason) => Finding::problem(
                PUBLISHING,
                format!(
                    "RabbitMQ blocks everybody who publishes ({reason}): failures cannot be passed on, and workers take no new jobs"
                ),
                FREE,
            ),
            Publishing::Denied(sentence) => match self.duty {
                Duty::Reader => Finding::well(
                    PUBLISHING,
                    format!("this user may not publish, as a reader need not: {sentence}"),
                ),
                Duty::Publisher => Finding::warning(
                    PUBLISHING,
                    format!(
                        "this user may enqueue jobs in SQL alone, and publish no messages: {sentence}"
                    ),
                    format!("nothing, unless it has to: {}", self.grant()),
                ),
                Duty::Worker | Duty::Operator => Finding::problem(
                    PUBLISHING,
                    format!("this user may not publish: {sentence}"),
                    self.grant(),
                ),
            },
            Publishing::Silent(sentence) => Finding::problem(
                PUBLISHING,
                format!("a message is not confirmed: {sentence}"),
                "look into RabbitMQ's log, and at `rabbitmq-diagnostics check_running` and `rabbitmq-diagnostics alarms`",
            ),
        }
    }
}

/// What of the user's rights has shown.
fn shown(user: &str, health: &BrokerHealth) -> String {
    let declared = |(_, state): &(_, QueueState)| matches!(state, QueueState::Right { .. });
    let may: Vec<_> = [
        ("publish", health.publishing == Publishing::Works),
        ("declare", health.queues.iter().any(declared)),
    ]
    .into_iter()
    .filter_map(|(what, shown)| shown.then_some(what))
    .collect();
    match may.is_empty() {
        true => format!("no right of {user} could be tried"),
        false => format!("{user} may {}", may.join(" and ")),
    }
}

fn judge_version(version: &str) -> Finding {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (major, minor, patch): (u32, u32, u32) = (next(), next(), next());
    let found = format!("RabbitMQ {version}");
    if (major, minor) < OLDEST {
        return Finding::problem(
            VERSION,
            format!("{found} has no at-least-once dead-lettering: delayed messages may be lost"),
            format!("upgrade to RabbitMQ {}.{} or later", OLDEST.0, OLDEST.1),
        );
    }
    match (major, minor, patch) {
        (4, 3, ..3) => Finding::warning(
            VERSION,
            format!(
                "{found} may leave a delay queue stuck after its nodes have changed (mended in 4.3.3)"
            ),
            "upgrade to RabbitMQ 4.3.3 or later",
        ),
        (3, 13, ..3) => Finding::warning(
            VERSION,
            format!("{found} drops some dead-lettered messages as cycles (mended in 3.13.3)"),
            "upgrade to RabbitMQ 3.13.3 or later",
        ),
        _ => Finding::well(VERSION, found),
    }
}

fn judge_alarms_by_publishing(publishing: &Publishing) -> Finding {
    match publishing {
        Publishing::Works => Finding::well(management::ALARMS, "none that blocks publishers"),
        Publishing::Blocked(reason) => Finding::problem(
            management::ALARMS,
            format!("publishers are blocked: {reason}"),
            FREE,
        ),
        _ => Finding::unchecked(
            management::ALARMS,
            "only a user that may publish is told of alarms",
        ),
    }
}

fn ready_in(queues: &[(QueueSpec, QueueState)], place: Place) -> Option<u32> {
    traffic(queues, place).map(|(ready, _)| ready)
}

/// The ready messages of a queue and its consumers.
fn traffic(queues: &[(QueueSpec, QueueState)], place: Place) -> Option<(u32, u32)> {
    let (_, state) = queues.iter().find(|(spec, _)| spec.place == place)?;
    match state {
        QueueState::Right { ready, consumers } | QueueState::Unproven { ready, consumers } => {
            Some((*ready, *consumers))
        }
        QueueState::Wrong(_) => None,
    }
}

fn judge_traffic(queues: &[(QueueSpec, QueueState)]) -> Vec<Finding> {
    let gone = "the queue is not there, or not as it must be";
    let mut findings = Vec::new();
    if let Some((ready, consumers)) = traffic(queues, Place::Work) {
        let found = format!("{consumers} consumers; {ready} messages wait");
        findings.push(match (ready, consumers) {
            (0, 0) => Finding::warning(
                CONSUMERS,
                "nobody consumes the work queue, and nothing waits in it",
                "start a worker: `cliquet work --config cliquet.toml`",
            ),
            (_, 0) => Finding::problem(
                CONSUMERS,
                format!("{ready} messages wait in the work queue and nobody consumes it"),
                "start a worker: `cliquet work --config cliquet.toml`",
            ),
            _ => Finding::well(CONSUMERS, found),
        });
    } else {
        findings.push(Finding::unchecked(CONSUMERS, gone));
    }
    if let Some((parked, _)) = traffic(queues, Place::Dead) {
        findings.push(if parked == 0 {
            Finding::well(DEAD_QUEUE, "nothing lies in the dead queue")
        } else {
            Finding::warning(
                DEAD_QUEUE,
                format!("{parked} messages lie in the dead queue; their headers cliquet-reason and cliquet-error say why"),
                "`cliquet dead list` tells what they are; once the cause is mended: `cliquet dead retry ID`, or --all (or move them back to the work queue in RabbitMQ's dashboard, Move messages)",
            )
        });
    } else {
        findings.push(Finding::unchecked(DEAD_QUEUE, gone));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn versions_with_known_faults_are_told() {
        for (version, state) in [
            ("3.9.29", State::Problem),
            ("3.10.8", State::Ok),
            ("3.13.2", State::Warning),
            ("3.13.7", State::Ok),
            ("4.1.0-rc.1", State::Ok),
            ("4.3.2", State::Warning),
            ("4.3.3", State::Ok),
        ] {
            assert_eq!(judge_version(version).state, state, "{version}");
        }
    }
}
