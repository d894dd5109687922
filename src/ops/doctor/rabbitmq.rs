//! RabbitMQ: is it there, does it take messages, are the queues as they must be, and is anything about to stop it?

use std::time::Duration;

use humantime::format_duration;
use serde_json::Value;

use super::Finding;
use crate::{
    broker::{
        Address, BrokerError, BrokerHealth, Identity, ManagedQueue, Management, Node, Permission,
        Place, Publishing, QueueSpec, QueueState, Topology, look, version,
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
pub(super) const CONSUMER_TIMEOUT: &str = "rabbitmq.consumer_timeout";
pub(super) const ALARMS: &str = "rabbitmq.alarms";
pub(super) const NODES: &str = "rabbitmq.nodes";
pub(super) const POLICIES: &str = "rabbitmq.policies";

/// The oldest version that has quorum queues with at-least-once dead-lettering.
const OLDEST: (u32, u32) = (3, 10);
/// What RabbitMQ does unless it is told otherwise.
const USUAL_CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Policies that lose, shorten or hold up what is in a queue of ours.
const HARMFUL: [&str; 4] = ["message-ttl", "expires", "max-length", "max-length-bytes"];
/// So much free disk is worth a word whatever the limit is.
const LITTLE_DISK: u64 = 1 << 30;

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
            Err(error) => findings.push(judge_connection(&error)),
            Ok(health) => {
                findings.push(Finding::well(
                    CONNECTION,
                    format!("{} let us in", self.address),
                ));
                ready = ready_in(&health.queues, Place::Work);
                findings.push(judge_publishing(&health.publishing, self.duty));
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
        findings.extend(self.examine_management().await);
        (findings, ready)
    }

    async fn examine_management(&self) -> Vec<Finding> {
        let Some(management) = &self.management else {
            let why = "RABBITMQ_MANAGEMENT_URL is not set, and RabbitMQ tells this nowhere else";
            return vec![
                self.judge_consumer_timeout(None),
                Finding::unchecked(NODES, why),
                Finding::unchecked(POLICIES, why),
            ];
        };
        let mut findings = match management.nodes().await {
            Ok(nodes) => judge_nodes(&nodes),
            Err(sentence) => vec![
                Finding::unchecked(ALARMS, sentence.clone()),
                Finding::unchecked(NODES, sentence),
            ],
        };
        let (mut queues, mut refusal) = (Vec::new(), None);
        for QueueSpec { place, name, .. } in self.topology.queues() {
            match management.queue(self.address.vhost(), &name).await {
                Ok(queue) => queues.push((place, name, queue)),
                // One that is missing is told already; what is refused is refused for all of them.
                Err(sentence) => {
                    refusal = Some(sentence);
                    if queues.is_empty() {
                        break;
                    }
                }
            }
        }
        let work = queues.iter().find(|(place, ..)| *place == Place::Work);
        findings.push(self.judge_consumer_timeout(work.map(|(_, _, queue)| queue)));
        findings.push(match refusal {
            Some(sentence) if queues.is_empty() => Finding::unchecked(POLICIES, sentence),
            _ => judge_policies(&queues),
        });
        findings
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
                "cliquet topology verify tells all of them, each with what to do",
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
                "cliquet topology declare makes them",
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
        if self.duty != Duty::Reader && matches!(health.publishing, Publishing::Denied(_)) {
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
                    "deploy/rabbitmq-permissions.sh prints the `rabbitmqctl set_permissions` for {user}; with queues that somebody else makes, set declare = false",
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
                    "{user} may publish{}; whether it may read the work queue is told to administrators only: rabbitmqctl list_user_permissions {user}",
                    if may_not_declare { "" } else { " and declare" }
                ),
            ),
        }
    }

    fn judge_consumer_timeout(&self, work: Option<&ManagedQueue>) -> Finding {
        let told = work.and_then(consumer_timeout);
        let limit = told.unwrap_or(USUAL_CONSUMER_TIMEOUT);
        let (ours, limit_words) = (
            format_duration(self.hand_over_after),
            format_duration(limit),
        );
        let whose = match told {
            Some(_) => "of the work queue's policy",
            None => {
                "that RabbitMQ has unless it is configured otherwise (rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' tells)"
            }
        };
        if self.hand_over_after >= limit {
            return Finding::problem(
                CONSUMER_TIMEOUT,
                format!(
                    "jobs are handed over after {ours}, which is not below the consumer_timeout of {limit_words} {whose}: RabbitMQ takes their messages away first, and ends the channel with all others"
                ),
                format!(
                    "set `hand_over_after` in cliquet.toml well below {limit_words}, or raise the timeout"
                ),
            );
        }
        Finding::well(
            CONSUMER_TIMEOUT,
            format!(
                "jobs are handed over after {ours}, below the consumer_timeout of {limit_words} {whose}"
            ),
        )
    }
}

fn judge_connection(error: &BrokerError) -> Finding {
    let remedy = match error {
        BrokerError::Unreachable { .. } => {
            "start RabbitMQ, mend AMQP_URL, or open the way to it; running jobs go on, and nothing is lost meanwhile"
        }
        _ => {
            "rabbitmqctl authenticate_user USER PASSWORD, and rabbitmqctl list_user_permissions USER, tell which part is wrong"
        }
    };
    Finding::problem(CONNECTION, error.to_string(), remedy)
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

fn judge_publishing(publishing: &Publishing, duty: Duty) -> Finding {
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
            "free memory or disk on its node; rabbitmq-diagnostics alarms tells which",
        ),
        Publishing::Denied(sentence) if duty == Duty::Reader => Finding::well(
            PUBLISHING,
            format!("this user may not publish, as a reader need not: {sentence}"),
        ),
        Publishing::Denied(sentence) => Finding::problem(
            PUBLISHING,
            format!("this user may not publish: {sentence}"),
            "grant it write on amq.default: deploy/rabbitmq-permissions.sh prints the command",
        ),
        Publishing::Silent(sentence) => Finding::problem(
            PUBLISHING,
            format!("a message is not confirmed: {sentence}"),
            "look into RabbitMQ's log, and at rabbitmq-diagnostics check_running and alarms",
        ),
    }
}

fn judge_alarms_by_publishing(publishing: &Publishing) -> Finding {
    match publishing {
        Publishing::Works => Finding::well(ALARMS, "none that blocks publishers"),
        Publishing::Blocked(reason) => Finding::problem(
            ALARMS,
            format!("publishers are blocked: {reason}"),
            "free memory or disk on RabbitMQ's node; rabbitmq-diagnostics alarms tells which",
        ),
        _ => Finding::unchecked(ALARMS, "only a user that may publish is told of alarms"),
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
                "start a worker: cliquet work --config cliquet.toml",
            ),
            (_, 0) => Finding::problem(
                CONSUMERS,
                format!("{ready} messages wait in the work queue and nobody consumes it"),
                "start a worker: cliquet work --config cliquet.toml",
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
                "cliquet dead list tells what they are; once the cause is mended: cliquet dead retry ID, or --all (or move them back to the work queue in RabbitMQ's dashboard)",
            )
        });
    } else {
        findings.push(Finding::unchecked(DEAD_QUEUE, gone));
    }
    findings
}

fn judge_nodes(nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut alarm = |node: &Node, what: &str, remedy: &str| {
        findings.push(Finding::problem(
            ALARMS,
            format!(
                "{} has a {what} alarm: everybody who publishes is blocked",
                node.name
            ),
            remedy,
        ));
    };
    for node in nodes {
        if node.mem_alarm {
            let words = format!(
                "memory ({} of {} bytes)",
                node.mem_used.unwrap_or(0),
                node.mem_limit.unwrap_or(0)
            );
            alarm(
                node,
                &words,
                "free memory (rabbitmq-diagnostics memory_breakdown), or raise vm_memory_high_watermark",
            );
        }
        if node.disk_free_alarm {
            let words = format!(
                "disk ({} bytes are free, the limit is {})",
                node.disk_free.unwrap_or(0),
                node.disk_free_limit.unwrap_or(0)
            );
            alarm(
                node,
                &words,
                "free disk on that node, or lower disk_free_limit",
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::well(
            ALARMS,
            format!("none on {} nodes", nodes.len()),
        ));
    }
    findings.push(judge_running(nodes));
    findings
}

fn judge_running(nodes: &[Node]) -> Finding {
    for node in nodes {
        if !node.running || !node.partitions.is_empty() {
            return Finding::problem(
                NODES,
                format!(
                    "the node {} {}",
                    node.name,
                    if node.running {
                        "is partitioned from others"
                    } else {
                        "does not run"
                    }
                ),
                "rabbitmq-diagnostics cluster_status; start it again, or restart the smaller side of the partition",
            );
        }
        if let (Some(free), Some(limit)) = (node.disk_free, node.disk_free_limit)
            && free < LITTLE_DISK.max(limit.saturating_mul(2))
        {
            return Finding::warning(
                NODES,
                format!(
                    "{} has {free} bytes of disk left; at {limit} it blocks publishers",
                    node.name
                ),
                "free disk on that node",
            );
        }
    }
    Finding::well(
        NODES,
        format!("all {} run, with disk to spare", nodes.len()),
    )
}

fn consumer_timeout(queue: &ManagedQueue) -> Option<Duration> {
    let millis = |map: &serde_json::Map<String, Value>, key| map.get(key).and_then(Value::as_u64);
    [
        millis(&queue.effective_policy_definition, "consumer-timeout"),
        millis(&queue.arguments, "x-consumer-timeout"),
    ]
    .into_iter()
    .flatten()
    .min()
    .map(Duration::from_millis)
}

fn judge_policies(queues: &[(Place, String, ManagedQueue)]) -> Finding {
    for (_, name, queue) in queues {
        let policy = &queue.effective_policy_definition;
        if let Some(key) = HARMFUL.into_iter().find(|key| policy.contains_key(*key)) {
            return Finding::problem(
                POLICIES,
                format!(
                    "a policy sets {key} = {} for the queue {name}, which loses, shortens or holds up what is in it",
                    policy.get(key).unwrap_or(&Value::Null)
                ),
                "rabbitmqctl list_policies, and narrow the pattern of that policy so that it leaves cliquet's queues out",
            );
        }
        if queue.online.len() * 2 <= queue.members.len() {
            return Finding::problem(
                POLICIES,
                format!(
                    "of the {} copies of the queue {name} only {} are up: it takes no messages",
                    queue.members.len(),
                    queue.online.len()
                ),
                "start the nodes that are down: rabbitmq-diagnostics cluster_status",
            );
        }
    }
    let unacked: u64 = queues
        .iter()
        .map(|(_, _, queue)| queue.messages_unacknowledged)
        .sum();
    Finding::well(
        POLICIES,
        format!("no policy changes what is in the queues; {unacked} messages are with workers"),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn broker(hand_over_after: Duration) -> Broker {
        Broker {
            address: Address::parse("amqp://ada:s3cret@rabbit").unwrap(),
            topology: Topology::new("jobs", crate::retry::Ladder::default()).unwrap(),
            identity: Identity { name: "ada".into() },
            management: None,
            declares: true,
            hand_over_after,
            duty: Duty::Worker,
        }
    }

    fn managed(policy: Value) -> ManagedQueue {
        serde_json::from_value(serde_json::json!({
            "effective_policy_definition": policy, "members": ["a"], "online": ["a"]
        }))
        .unwrap()
    }

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

    #[test]
    fn a_hand_over_that_comes_after_the_brokers_own_limit_is_found() {
        let judge = |minutes: u64, policy| {
            broker(Duration::from_secs(minutes * 60))
                .judge_consumer_timeout(Some(&managed(policy)))
                .state
        };
        let none = || serde_json::json!({});
        let five_minutes = || serde_json::json!({"consumer-timeout": 300_000});
        assert_eq!(judge(20, none()), State::Ok);
        assert_eq!(judge(30, none()), State::Problem);
        assert_eq!(judge(4, five_minutes()), State::Ok);
        assert_eq!(judge(5, five_minutes()), State::Problem);
    }

    #[test]
    fn a_policy_that_loses_messages_and_a_queue_without_quorum_are_found() {
        let judge = |queue| judge_policies(&[(Place::Work, "jobs".into(), queue)]).state;
        assert_eq!(judge(managed(serde_json::json!([]))), State::Ok);
        let tuning = serde_json::json!({"delivery-limit": 20});
        assert_eq!(judge(managed(tuning)), State::Ok);
        let shortened = serde_json::json!({"message-ttl": 1000});
        assert_eq!(judge(managed(shortened)), State::Problem);
        let mut halved = managed(serde_json::json!({}));
        halved.members = vec!["a".into(), "b".into()];
        assert_eq!(judge(halved), State::Problem);
    }

    #[test]
    fn alarms_nodes_and_disk_are_found_alone() {
        let node = |change: &str| -> Node {
            let mut node = serde_json::json!({
                "name": "rabbit@a", "running": true, "mem_alarm": false, "disk_free_alarm": false,
                "mem_used": 1, "mem_limit": 2, "disk_free": 50_000_000_000u64, "disk_free_limit": 50_000_000
            });
            match change {
                "" => {}
                "running" => node[change] = false.into(),
                "disk_free" => node[change] = 500_000_000.into(),
                alarm => node[alarm] = true.into(),
            }
            serde_json::from_value(node).unwrap()
        };
        let found = |change| -> Vec<_> {
            judge_nodes(&[node(change)])
                .into_iter()
                .filter(|finding| finding.state != State::Ok)
                .map(|finding| (finding.check, finding.state))
                .collect()
        };
        assert_eq!(found(""), []);
        assert_eq!(found("mem_alarm"), [(ALARMS, State::Problem)]);
        assert_eq!(found("disk_free_alarm"), [(ALARMS, State::Problem)]);
        assert_eq!(found("running"), [(NODES, State::Problem)]);
        assert_eq!(found("disk_free"), [(NODES, State::Warning)]);
    }
}
