//! Asks the API server whether it would create a game server's pod, without creating it: if not, no match could start.

use anyhow::anyhow;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};

use super::refusal::{Cause, Refusal, request};
use crate::backend::Unavailable;

/// What the API server says about a pod.
pub(super) enum Verdict {
    /// It would create it, now or once the quota has room.
    Admitted,
    /// It would refuse every pod like this one. The error says why, and what to do.
    Refused(anyhow::Error),
    /// It has not answered, or its answer says nothing about the pod.
    Unknown(Unavailable),
}

/// Sends the pod as a dry run: every rule of the cluster is applied, but nothing is stored.
pub(super) async fn dry_run(pods: &Api<Pod>, namespace: &str, pod: &Pod) -> Verdict {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    match request(pods.create(&dry, pod)).await {
        Ok(_) => Verdict::Admitted,
        Err(refusal) => match refusal.cause() {
            Cause::Quota => Verdict::Admitted,
            Cause::Temporary => Verdict::Unknown(refusal.unavailable("check whether the cluster admits a pod")),
            cause @ (Cause::Invalid | Cause::Admission | Cause::Rights | Cause::Namespace) => {
                let cure = cure(cause, &refusal, namespace);
                let what = format!("the API server would refuse every game server in namespace {namespace}");
                Verdict::Refused(anyhow!("{what}: {refusal}; {cure}"))
            }
        },
    }
}

fn cure(cause: Cause, refusal: &Refusal, namespace: &str) -> String {
    let text = refusal.to_string();
    match cause {
        Cause::Rights => "bind a role with the rights of a director to this user".into(),
        Cause::Namespace => format!("run `kubectl create namespace {namespace}`"),
        Cause::Invalid => "correct the pod template (--pod-template) or the image (--image)".into(),
        Cause::Quota | Cause::Admission | Cause::Temporary if text.contains("violates PodSecurity") => format!(
            "game servers use the network of their node, so run `kubectl label --overwrite namespace {namespace} \
             pod-security.kubernetes.io/enforce=privileged`"
        ),
        Cause::Quota | Cause::Admission | Cause::Temporary if text.contains(" usage per ") => {
            "raise the LimitRange of the namespace, or change the resources in the pod template (--pod-template)".into()
        }
        Cause::Quota | Cause::Admission | Cause::Temporary => {
            "change this rule of the cluster, or the pod template (--pod-template)".into()
        }
    }
}
