//! Interprets the status of a pod.

use garage_events::failure::NO_CAPACITY;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStateWaiting, Pod, PodCondition, PodStatus as KubePodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use time::OffsetDateTime;

use crate::backend::{DELETED, Exit, ExitKind};

/// What a pod is doing, as far as the director needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodStatus {
    /// No node is assigned yet. Holds the scheduler's message if no node fits.
    Waiting(Option<String>),
    /// The pod is assigned to the node of this name.
    Bound(String),
    /// The pod has ended, or will never run.
    Over(Exit),
}

/// The kubelet's reasons for a container that it cannot start, and Garage's word for each. `ErrImagePull` is not among
/// them: the first failure may be temporary, and `ImagePullBackOff` follows if it is not.
const STUCK: [(&str, &str); 7] = [
    ("ImagePullBackOff", "image-not-pulled"),
    ("InvalidImageName", "image-not-pulled"),
    ("ErrImageNeverPull", "image-not-pulled"),
    ("CreateContainerConfigError", "not-started"),
    ("CreateContainerError", "not-started"),
    ("RunContainerError", "not-started"),
    ("CrashLoopBackOff", "not-started"),
];

/// The reasons in a pod's status or in its `DisruptionTarget` condition, and Garage's word for each.
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

/// Garage's word for a reason that Kubernetes gives.
fn word_for(table: &[(&str, &'static str)], reason: Option<&str>) -> Option<&'static str> {
    table.iter().find(|(theirs, _)| Some(*theirs) == reason).map(|(_, ours)| *ours)
}

/// Interprets the pod's status.
pub(super) fn of(pod: &Pod) -> PodStatus {
    let none = KubePodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    if pod.metadata.deletion_timestamp.is_some() {
        return PodStatus::Over(removed(status));
    }
    // Wait for the pod's phase, not for the container's state: the container terminates some seconds earlier, and only
    // the final status says why, for example that the pod was evicted.
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return PodStatus::Over(ended(status));
    }
    if let Some(ContainerStateWaiting { reason, message }) = state(status).and_then(|state| state.waiting.as_ref())
        && let Some(word) = word_for(&STUCK, reason.as_deref())
    {
        return PodStatus::Over(Exit {
            kind: ExitKind::Failed(word),
            message: message.clone().or_else(|| reason.clone()),
        });
    }
    match pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
        Some(node) => PodStatus::Bound(node),
        None => {
            let unscheduled = condition(status, "PodScheduled").filter(|condition| condition.status == "False");
            let unschedulable = unscheduled.filter(|condition| condition.reason.as_deref() == Some("Unschedulable"));
            PodStatus::Waiting(unschedulable.map(|condition| condition.message.clone().unwrap_or_default()))
        }
    }
}

/// How a pod ended that was deleted, or is being deleted.
pub(super) fn removed(status: &KubePodStatus) -> Exit {
    disrupted(status).unwrap_or_else(|| Exit {
        kind: ExitKind::Failed(DELETED),
        message: Some("the pod was deleted, but not by Garage".into()),
    })
}

fn ended(status: &KubePodStatus) -> Exit {
    let by_reason = word_for(&ENDED, status.reason.as_deref()).map(|word| Exit {
        kind: ExitKind::Failed(word),
        message: status.message.clone().or_else(|| status.reason.clone()),
    });
    if let Some(exit) = by_reason.or_else(|| disrupted(status)) {
        return exit;
    }
    match state(status).and_then(|state| state.terminated.as_ref()) {
        Some(ContainerStateTerminated { reason, exit_code, .. }) => match reason.as_deref() {
            Some("OOMKilled") => {
                let message = format!("exit code {exit_code}: out of memory (OOMKilled)");
                Exit { kind: ExitKind::Failed("out-of-memory"), message: Some(message) }
            }
            Some("ContainerStatusUnknown") => Exit { kind: ExitKind::Unknown, message: None },
            // The container runtime could not start the program. No message is copied from a container: it may be
            // output of the program, and nothing has checked that for secrets.
            Some("ContainerCannotRun" | "StartError") => {
                Exit { kind: ExitKind::Failed("not-started"), message: Some(format!("exit code {exit_code}")) }
            }
            _ => Exit { kind: ExitKind::Code(*exit_code), message: None },
        },
        // A kubelet that does not admit a pod reports this in the pod's own status; there is no container.
        None if status.phase.as_deref() == Some("Failed") => {
            let parts = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten();
            let message = parts.collect::<Vec<_>>().join(": ");
            // `OutOfcpu`, `OutOfmemory`, `OutOfpods`: another pod took the node's room first.
            let no_room = status.reason.as_deref().is_some_and(|reason| reason.starts_with("OutOf"));
            let word = if no_room { NO_CAPACITY } else { "not-started" };
            Exit { kind: ExitKind::Failed(word), message: (!message.is_empty()).then_some(message) }
        }
        None => Exit { kind: ExitKind::Unknown, message: None },
    }
}

/// How the cluster itself ended the pod, according to the `DisruptionTarget` condition.
fn disrupted(status: &KubePodStatus) -> Option<Exit> {
    let condition = condition(status, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let word = word_for(&ENDED, condition.reason.as_deref()).unwrap_or("evicted");
    Some(Exit { kind: ExitKind::Failed(word), message: condition.message.clone().or_else(|| condition.reason.clone()) })
}

fn condition<'a>(status: &'a KubePodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// The state of the game server's container, which is the pod's first container.
fn state(status: &KubePodStatus) -> Option<&ContainerState> {
    let mut containers = status.container_statuses.iter().flatten();
    containers.next().and_then(|container| container.state.as_ref())
}

/// Converts a Kubernetes time. A missing time becomes the Unix epoch.
pub(super) fn time(time: Option<&Time>) -> OffsetDateTime {
    let seconds = time.map_or(0, |time| time.0.as_second());
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// Pods as a real kubelet and a real scheduler wrote them.
    fn recorded() -> BTreeMap<String, Pod> {
        serde_json::from_str(include_str!("../../tests/recorded/pod_statuses.json")).unwrap()
    }

    fn over(kind: ExitKind, message: Option<&str>) -> PodStatus {
        PodStatus::Over(Exit { kind, message: message.map(Into::into) })
    }

    #[test]
    fn the_recorded_pods_of_a_real_cluster_are_interpreted() {
        let pods = recorded();
        let deleted = over(ExitKind::Failed("deleted"), Some("the pod was deleted, but not by Garage"));
        let oom = over(ExitKind::Failed("out-of-memory"), Some("exit code 137: out of memory (OOMKilled)"));
        let bound = PodStatus::Bound("node-real".into());
        for (pod, pod_status) in [
            ("waits-for-a-machine", PodStatus::Waiting(None)),
            ("creating", bound.clone()),
            ("running", bound.clone()),
            ("first-pull-failed", bound.clone()),
            ("container-over-pod-not", bound),
            ("out-of-memory", oom),
            ("crashed", over(ExitKind::Code(3), None)),
            ("finished", over(ExitKind::Code(0), None)),
            ("asked-to-stop", deleted.clone()),
            ("gone", deleted),
            ("evicted", over(ExitKind::Failed("evicted"), Some("The node was low on resource: memory."))),
        ] {
            assert_eq!(of(&pods[pod]), pod_status, "{pod}");
        }
        let PodStatus::Waiting(Some(message)) = of(&pods["unschedulable"]) else { panic!("not unschedulable") };
        assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
        let PodStatus::Over(exit) = of(&pods["image-pull-back-off"]) else { panic!("not over") };
        assert_eq!(exit.reason(), "image-not-pulled");
        assert!(exit.to_string().starts_with("Back-off pulling image"), "{exit}");
    }

    #[test]
    fn the_disruption_condition_says_who_ended_a_pod() {
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
            assert_eq!(of(&target(reason)), over(ExitKind::Failed(word), Some("why")), "{reason}");
        }
    }

    #[test]
    fn a_pod_that_the_kubelet_does_not_admit_for_lack_of_room_counts_as_shortage() {
        let status = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource"});
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
        let message = "OutOfcpu: Node didn't have enough resource";
        assert_eq!(of(&pod), over(ExitKind::Failed(NO_CAPACITY), Some(message)));
    }
}
