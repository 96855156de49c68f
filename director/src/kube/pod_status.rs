//! What the cluster says of a pod, read.

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStateWaiting, Pod, PodCondition, PodStatus as KubePodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use time::OffsetDateTime;

use crate::backend::{DELETED, Exit, How};

/// How a pod does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodStatus {
    /// No machine has it. What the scheduler says of that, if it has found none.
    Waiting(Option<String>),
    /// A machine has it, by this name.
    Bound(String),
    /// It is over, or will never run.
    Over(Exit),
}

/// What a kubelet says of a container that it cannot start, and our word for it. `ErrImagePull` is none of them: the
/// first failure may be of the moment, and after it comes the back-off.
const STUCK: [(&str, &str); 7] = [
    ("ImagePullBackOff", "image-not-pulled"),
    ("InvalidImageName", "image-not-pulled"),
    ("ErrImageNeverPull", "image-not-pulled"),
    ("CreateContainerConfigError", "not-started"),
    ("CreateContainerError", "not-started"),
    ("RunContainerError", "not-started"),
    ("CrashLoopBackOff", "not-started"),
];

/// Reasons of a pod's status, or of its disruption, and our words for them.
const ENDED: [(&str, &str); 9] = [
    ("Evicted", "evicted"),
    ("EvictionByEvictionAPI", "evicted"),
    ("Preempting", "preempted"),
    ("PreemptionByScheduler", "preempted"),
    ("DeletionByTaintManager", "node-lost"),
    ("DeletionByPodGC", "node-lost"),
    ("NodeLost", "node-lost"),
    ("NodeShutdown", "node-lost"),
    ("DeadlineExceeded", "deadline-exceeded"),
];

fn word(table: &[(&str, &'static str)], reason: Option<&str>) -> Option<&'static str> {
    table.iter().find(|(theirs, _)| Some(*theirs) == reason).map(|(_, ours)| *ours)
}

/// Reads a pod.
pub(super) fn of(pod: &Pod) -> PodStatus {
    let none = KubePodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    if pod.metadata.deletion_timestamp.is_some() {
        return PodStatus::Over(removed(status));
    }
    // A container that is over comes some seconds before its pod is, and only then is it said why.
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return PodStatus::Over(ended(status));
    }
    if let Some(ContainerStateWaiting { reason, message }) = state(status).and_then(|state| state.waiting.as_ref())
        && let Some(word) = word(&STUCK, reason.as_deref())
    {
        return PodStatus::Over(Exit { how: How::Failed(word), message: message.clone().or_else(|| reason.clone()) });
    }
    match pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
        Some(node) => PodStatus::Bound(node),
        None => {
            let refused = condition(status, "PodScheduled").filter(|condition| condition.status == "False");
            let refused = refused.filter(|condition| condition.reason.as_deref() == Some("Unschedulable"));
            PodStatus::Waiting(refused.map(|condition| condition.message.clone().unwrap_or_default()))
        }
    }
}

/// How a pod ended that is there no more, or about to be.
pub(super) fn removed(status: &KubePodStatus) -> Exit {
    disrupted(status).unwrap_or_else(|| Exit {
        how: How::Failed(DELETED),
        message: Some("the pod was deleted, and not by Garage".into()),
    })
}

fn ended(status: &KubePodStatus) -> Exit {
    let by_reason = word(&ENDED, status.reason.as_deref())
        .map(|word| Exit { how: How::Failed(word), message: status.message.clone().or_else(|| status.reason.clone()) });
    if let Some(exit) = by_reason.or_else(|| disrupted(status)) {
        return exit;
    }
    match state(status).and_then(|state| state.terminated.as_ref()) {
        Some(ContainerStateTerminated { reason, exit_code, .. }) => match reason.as_deref() {
            Some("OOMKilled") => {
                let message = format!("exit code {exit_code}: killed for its memory (OOMKilled)");
                Exit { how: How::Failed("out-of-memory"), message: Some(message) }
            }
            Some("ContainerStatusUnknown") => Exit { how: How::Unknown, message: None },
            // What their kubelet could not even start has a message of the runtime; a program's own words are not
            // taken, as nobody has looked them through for secrets.
            Some("ContainerCannotRun" | "StartError") => {
                Exit { how: How::Failed("not-started"), message: Some(format!("exit code {exit_code}")) }
            }
            _ => Exit { how: How::Code(*exit_code), message: None },
        },
        // A kubelet that takes no pod of the kind says so in the pod alone.
        None if status.phase.as_deref() == Some("Failed") => {
            let said = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten();
            let said = said.collect::<Vec<_>>().join(": ");
            Exit { how: How::Failed("not-started"), message: (!said.is_empty()).then_some(said) }
        }
        None => Exit { how: How::Unknown, message: None },
    }
}

/// The end that somebody of the cluster made of it, as it says there itself.
fn disrupted(status: &KubePodStatus) -> Option<Exit> {
    let condition = condition(status, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let word = word(&ENDED, condition.reason.as_deref()).unwrap_or("evicted");
    Some(Exit { how: How::Failed(word), message: condition.message.clone().or_else(|| condition.reason.clone()) })
}

fn condition<'a>(status: &'a KubePodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// The state of the game server's container, which is the first one.
fn state(status: &KubePodStatus) -> Option<&ContainerState> {
    let mut containers = status.container_statuses.iter().flatten();
    containers.next().and_then(|container| container.state.as_ref())
}

/// A time of the cluster's.
pub(super) fn time(time: Option<&Time>) -> OffsetDateTime {
    let seconds = time.map_or(0, |time| time.0.as_second());
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// What a real kubelet and a real scheduler wrote.
    fn recorded() -> BTreeMap<String, Pod> {
        serde_json::from_str(include_str!("../../tests/recorded/pod_statuses.json")).unwrap()
    }

    fn over(how: How, message: Option<&str>) -> PodStatus {
        PodStatus::Over(Exit { how, message: message.map(Into::into) })
    }

    #[test]
    fn what_a_real_cluster_says_of_a_pod_is_understood() {
        let pods = recorded();
        let deleted = over(How::Failed("deleted"), Some("the pod was deleted, and not by Garage"));
        let oom = over(How::Failed("out-of-memory"), Some("exit code 137: killed for its memory (OOMKilled)"));
        let bound = PodStatus::Bound("node-real".into());
        for (pod, pod_status) in [
            ("waits-for-a-machine", PodStatus::Waiting(None)),
            ("creating", bound.clone()),
            ("running", bound.clone()),
            ("first-pull-failed", bound.clone()),
            ("container-over-pod-not", bound),
            ("out-of-memory", oom),
            ("crashed", over(How::Code(3), None)),
            ("finished", over(How::Code(0), None)),
            ("told-to-go", deleted.clone()),
            ("gone", deleted),
            ("evicted", over(How::Failed("evicted"), Some("The node was low on resource: memory."))),
        ] {
            assert_eq!(of(&pods[pod]), pod_status, "{pod}");
        }
        let PodStatus::Waiting(Some(said)) = of(&pods["unschedulable"]) else { panic!("it fits no machine") };
        assert!(said.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{said}");
        let PodStatus::Over(exit) = of(&pods["image-pull-back-off"]) else { panic!("it has no image") };
        assert_eq!(exit.reason(), "image-not-pulled");
        assert!(exit.to_string().starts_with("Back-off pulling image"), "{exit}");
    }

    #[test]
    fn who_ended_a_pod_is_told_by_its_disruption() {
        let target = |reason: &str| {
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"});
            let metadata = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
            serde_json::from_value(json!({"metadata": metadata, "status": {"conditions": [condition]}})).unwrap()
        };
        for (reason, word) in [
            ("DeletionByTaintManager", "node-lost"),
            ("DeletionByPodGC", "node-lost"),
            ("EvictionByEvictionAPI", "evicted"),
            ("PreemptionByScheduler", "preempted"),
        ] {
            assert_eq!(of(&target(reason)), over(How::Failed(word), Some("why")), "{reason}");
        }
    }

    #[test]
    fn what_a_machine_will_not_take_was_not_started() {
        let status = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource"});
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
        let message = "OutOfcpu: Node didn't have enough resource";
        assert_eq!(of(&pod), over(How::Failed("not-started"), Some(message)));
    }
}
