//! RabbitMQ once more: what it tells only over its management API. Are its nodes well, do policies spoil the queues, and is a
//! worker's hand-over early enough?

use std::time::Duration;

use humantime::format_duration;
use serde_json::{Map, Value};

use super::{Finding, rabbitmq::Broker};
use crate::broker::{ManagedQueue, Management, Node, Place, QueueSpec, shell_word};

pub(super) const CONSUMER_TIMEOUT: &str = "rabbitmq.consumer_timeout";
pub(super) const ALARMS: &str = "rabbitmq.alarms";
pub(super) const NODES: &str = "rabbitmq.nodes";
pub(super) const POLICIES: &str = "rabbitmq.policies";

/// What RabbitMQ does unless it is told otherwise.
const USUAL_CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Policies that lose, shorten or hold up what is in a queue of ours.
const HARMFUL: [&str; 4] = ["message-ttl", "expires", "max-length", "max-length-bytes"];
/// So much free disk is worth a word whatever the limit is.
const LITTLE_DISK: u64 = 1 << 30;

/// Asks the management API, where there is one.
pub(super) async fn examine(broker: &Broker) -> Vec<Finding> {
    let Some(management) = &broker.management else {
        let why = "RABBITMQ_MANAGEMENT_URL is not set, and RabbitMQ tells this nowhere else";
        return vec![
            judge_consumer_timeout(broker.hand_over_after, None),
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
    let (queues, refusal) = queues(broker, management).await;
    let work = queues.iter().find(|(place, ..)| *place == Place::Work);
    findings.push(judge_consumer_timeout(
        broker.hand_over_after,
        work.and_then(|(_, _, queue)| consumer_timeout(queue)),
    ));
    findings.push(match refusal {
        Some(sentence) if queues.is_empty() => Finding::unchecked(POLICIES, sentence),
        _ => judge_policies(broker.address.vhost(), &queues),
    });
    findings
}

/// The queues that are told, and why another is not.
async fn queues(
    broker: &Broker,
    management: &Management,
) -> (Vec<(Place, String, ManagedQueue)>, Option<String>) {
    let (mut queues, mut refusal) = (Vec::new(), None);
    for QueueSpec { place, name, .. } in broker.topology.queues() {
        match management.queue(broker.address.vhost(), &name).await {
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
    (queues, refusal)
}

/// The limit that policies or arguments set for a queue.
fn consumer_timeout(queue: &ManagedQueue) -> Option<Duration> {
    let millis = |map: &Map<String, Value>, key| map.get(key).and_then(Value::as_u64);
    [
        millis(&queue.effective_policy_definition, "consumer-timeout"),
        millis(&queue.arguments, "x-consumer-timeout"),
    ]
    .into_iter()
    .flatten()
    .min()
    .map(Duration::from_millis)
}

fn judge_consumer_timeout(hand_over_after: Duration, told: Option<Duration>) -> Finding {
    let limit = told.unwrap_or(USUAL_CONSUMER_TIMEOUT);
    let late = hand_over_after >= limit;
    let (ours, limit) = (format_duration(hand_over_after), format_duration(limit));
    let remedy =
        format!("set `hand_over_after` in cliquet.toml well below {limit}, or raise the timeout");
    let too_late = "RabbitMQ takes their messages away first, and ends the channel with all others";
    match (told, late) {
        (Some(_), false) => Finding::well(
            CONSUMER_TIMEOUT,
            format!(
                "jobs are handed over after {ours}, below the work queue's consumer_timeout of {limit}"
            ),
        ),
        (Some(_), true) => Finding::problem(
            CONSUMER_TIMEOUT,
            format!(
                "jobs are handed over after {ours}, which is not below the work queue's consumer_timeout of {limit}: {too_late}"
            ),
            remedy,
        ),
        // What a node's own settings say is told nowhere.
        (None, false) => Finding::unchecked(
            CONSUMER_TIMEOUT,
            format!(
                "jobs are handed over after {ours}; that is below {limit}, the consumer_timeout of a RabbitMQ that is not configured otherwise (`rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'` tells this one's)"
            ),
        ),
        (None, true) => Finding::warning(
            CONSUMER_TIMEOUT,
            format!(
                "jobs are handed over after {ours}, which is not below {limit}, the consumer_timeout of a RabbitMQ that is not configured otherwise: {too_late}"
            ),
            remedy,
        ),
    }
}

fn judge_nodes(nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in nodes {
        let bytes = |number: Option<u64>| number.unwrap_or(0);
        let alarms = [
            (
                node.mem_alarm,
                format!(
                    "memory alarm ({} of {} bytes)",
                    bytes(node.mem_used),
                    bytes(node.mem_limit)
                ),
                "free memory (`rabbitmq-diagnostics memory_breakdown`), or raise vm_memory_high_watermark",
            ),
            (
                node.disk_free_alarm,
                format!(
                    "disk alarm ({} bytes are free, the limit is {})",
                    bytes(node.disk_free),
                    bytes(node.disk_free_limit)
                ),
                "free disk on that node, or lower disk_free_limit",
            ),
        ];
        for (_, what, remedy) in alarms.into_iter().filter(|(rings, ..)| *rings) {
            let found = format!(
                "{} has a {what}: everybody who publishes is blocked",
                node.name
            );
            findings.push(Finding::problem(ALARMS, found, remedy));
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
                "`rabbitmq-diagnostics cluster_status`; start it again, or restart the smaller side of the partition",
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

fn judge_policies(vhost: &str, queues: &[(Place, String, ManagedQueue)]) -> Finding {
    let vhost = shell_word(vhost);
    for (_, name, queue) in queues {
        let policy = &queue.effective_policy_definition;
        if let Some(key) = HARMFUL.into_iter().find(|key| policy.contains_key(*key)) {
            return Finding::problem(
                POLICIES,
                format!(
                    "a policy sets {key} = {} for the queue {name}, which loses, shortens or holds up what is in it",
                    policy.get(key).unwrap_or(&Value::Null)
                ),
                format!(
                    "`rabbitmqctl list_policies -p {vhost}` and `rabbitmqctl list_operator_policies -p {vhost}` tell which it is; narrow its pattern so that it leaves cliquet's queues out"
                ),
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
                "start the nodes that are down: `rabbitmq-diagnostics cluster_status` tells which",
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

    fn managed(policy: Value) -> ManagedQueue {
        serde_json::from_value(serde_json::json!({
            "effective_policy_definition": policy, "members": ["a"], "online": ["a"]
        }))
        .unwrap()
    }

    #[test]
    fn a_hand_over_that_comes_after_the_brokers_own_limit_is_found() {
        let judge = |minutes: u64, policy| {
            let told = consumer_timeout(&managed(policy));
            judge_consumer_timeout(Duration::from_secs(minutes * 60), told).state
        };
        let none = || serde_json::json!({});
        let five_minutes = || serde_json::json!({"consumer-timeout": 300_000});
        assert_eq!(judge(20, none()), State::Unchecked, "it is not told");
        assert_eq!(judge(30, none()), State::Warning);
        assert_eq!(judge(4, five_minutes()), State::Ok);
        assert_eq!(judge(5, five_minutes()), State::Problem);
    }

    #[test]
    fn a_policy_that_loses_messages_and_a_queue_without_quorum_are_found() {
        let judge = |queue| judge_policies("/", &[(Place::Work, "jobs".into(), queue)]).state;
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
