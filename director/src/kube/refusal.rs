//! Requests to the API server, and what its refusals mean.

use std::{fmt, future::Future};

use anyhow::anyhow;
use garage_events::failure::{NO_CAPACITY, line};
use kube::core::Status;
use tokio::time::timeout;

use super::TIMEOUT;
use crate::backend::{CreateError, Unavailable};

/// The reason that the client library sets if the answer is not from an API server, but for example from a proxy.
const FOREIGN: &str = "Failed to parse error data";

/// Sends a request to the API server, with a time-out.
pub(super) async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Refusal::Status(status)),
        Ok(Err(error)) => Err(Refusal::Unreachable(error.into())),
        Err(_) => Err(Refusal::Unreachable(anyhow!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// Treats "not found" and "conflict" as a successful deletion: the object is gone, or a new one has its name.
pub(super) fn ignore_missing<T>(result: Result<T, Refusal>, what: &str) -> Result<(), Unavailable> {
    match result {
        Err(refusal) if !refusal.is("NotFound") && !refusal.is("Conflict") => Err(refusal.unavailable(what)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Why a request to the API server failed.
pub(super) enum Refusal {
    /// The server answered with an error.
    Status(Box<Status>),
    /// The server did not answer.
    Unreachable(anyhow::Error),
}

/// What a refused create request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A quota of the namespace is used up.
    Quota,
    /// The object is not valid.
    Invalid,
    /// The object is valid, but a rule of the cluster or the namespace does not admit it: Pod Security, a LimitRange, a
    /// webhook and so on.
    Admission,
    /// The client does not have the right to create such objects.
    Rights,
    /// The namespace does not exist.
    Namespace,
    /// The refusal says nothing about the object. A retry may succeed.
    Temporary,
}

impl Refusal {
    pub(super) fn is(&self, reason: &str) -> bool {
        matches!(self, Self::Status(status) if status.reason == reason)
    }

    /// What a refused create request means. Kubernetes answers refusals of very different kinds with status 403, and
    /// only the text tells them apart.
    pub(super) fn cause(&self) -> Cause {
        let Self::Status(status) = self else { return Cause::Temporary };
        let text = status.message.as_str();
        match status.code {
            _ if status.reason == FOREIGN => Cause::Temporary,
            _ if text.starts_with("admission webhook ") && text.contains(" denied the request") => Cause::Admission,
            // A webhook with side effects takes no part in a dry run.
            400 if text.contains("does not support dry run") => Cause::Temporary,
            400 | 413 | 422 => Cause::Invalid,
            403 if text.contains("exceeded quota") => Cause::Quota,
            403 if text.contains(" is forbidden: User ") => Cause::Rights,
            // A controller creates the account shortly after the namespace.
            403 if text.contains("error looking up service account") => Cause::Temporary,
            403 => Cause::Admission,
            404 if text.starts_with("namespaces ") => Cause::Namespace,
            _ => Cause::Temporary,
        }
    }

    pub(super) fn unavailable(self, what: &str) -> Unavailable {
        let rights = self.cause() == Cause::Rights;
        let error = match self {
            Self::Status(status) => anyhow!("{} ({})", line(&status.message), status.code),
            Self::Unreachable(error) => error,
        };
        let cure = if rights { "; bind a role with the rights of a director to this user" } else { "" };
        Unavailable(anyhow!("cannot {what}: {error:#}{cure}"))
    }

    /// Classifies a failed create request: refused if no retry can succeed, unavailable if the cause may go away. A
    /// missing right is not the match's fault.
    pub(super) fn on_create(self, what: &str) -> CreateError {
        let reason = match self.cause() {
            Cause::Quota => NO_CAPACITY,
            Cause::Invalid => "pod-invalid",
            Cause::Admission => "pod-refused",
            Cause::Rights | Cause::Namespace | Cause::Temporary => return self.unavailable(what).into(),
        };
        CreateError::Refused { reason, message: self.to_string() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => f.write_str(&line(&status.message)),
            Self::Unreachable(error) => write!(f, "{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, message: &str) -> Refusal {
        Refusal::Status(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn the_cause_of_a_refusal_is_found_in_its_code_and_its_words() {
        for (code, message, cause) in [
            (403, "pods \"g\" is forbidden: violates PodSecurity \"baseline:latest\": x", Cause::Admission),
            (403, "pods \"g\" is forbidden: maximum cpu usage per Container is 1, but limit is 2", Cause::Admission),
            (403, "pods \"g\" is forbidden: no PriorityClass with name garage-game was found", Cause::Admission),
            (403, "admission webhook \"w\" denied the request: no", Cause::Admission),
            (400, "admission webhook \"w\" denied the request without explanation", Cause::Admission),
            (400, "admission webhook \"w\" does not support dry run", Cause::Temporary),
            (500, "Internal error occurred: failed calling webhook \"w\": no route to host", Cause::Temporary),
            (403, "pods \"g\" is forbidden: exceeded quota: q, requested: pods=1", Cause::Quota),
            (403, "pods is forbidden: User \"d\" cannot create resource \"pods\" in API group \"\"", Cause::Rights),
            (403, "nodes \"n\" is forbidden: User \"d\" cannot get resource \"nodes\"", Cause::Rights),
            (
                403,
                "pods \"g\" is forbidden: error looking up service account n/default: serviceaccount \"default\" not found",
                Cause::Temporary,
            ),
            (422, "Pod \"g\" is invalid: spec.restartPolicy: Unsupported value", Cause::Invalid),
            (400, "Pod in version \"v1\" cannot be handled as a Pod: quantities must match", Cause::Invalid),
            (404, "namespaces \"n\" not found", Cause::Namespace),
            (409, "Operation cannot be fulfilled on resourcequotas \"q\"", Cause::Temporary),
            (401, "Unauthorized", Cause::Temporary),
            (429, "too many requests", Cause::Temporary),
        ] {
            assert_eq!(refusal(code, message).cause(), cause, "{code} {message}");
        }
        let proxy = Status::failure("<html>403 Forbidden</html>", FOREIGN).with_code(403);
        assert_eq!(Refusal::Status(Box::new(proxy)).cause(), Cause::Temporary);
        assert_eq!(Refusal::Unreachable(anyhow!("connection refused")).cause(), Cause::Temporary);
    }

    #[test]
    fn a_missing_right_is_named_with_its_cure() {
        let error =
            refusal(403, "pods is forbidden: User \"d\" cannot create resource \"pods\"").on_create("create it");
        assert!(matches!(error, CreateError::Unavailable(_)));
        let expected = "cannot create it: pods is forbidden: User \"d\" cannot create resource \"pods\" (403); bind a role \
                        with the rights of a director to this user";
        assert_eq!(error.to_string(), expected);
    }
}
