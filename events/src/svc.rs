//! Requests between workers over NATS: subjects, bodies, and the client. They use the NATS service API.
//!
//! Requests and replies are JSON. A refusal is a reply with the headers that the service API defines,
//! `Nats-Service-Error-Code` and `Nats-Service-Error`. The code is an HTTP status code.

use std::{pin::pin, time::Duration};

use async_nats::{Client, RequestErrorKind};
use bytes::Bytes;
use futures::future::select;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{id::PlayerId, subject};

pub use self::{
    inventory::{
        Command, Effect, Execute, Garage, GetGarage, GetLedger, GetProfile, IdempotencyKey, InvalidKey, LedgerEntry,
        Loadouts, OwnedCar, Profile, StoreCar, StoreCars, StoreItem, StoreItems,
    },
    matchmaker::CountCandidates,
    session::{Accept, ConnectToken, Decline, GetSession, SignedToken},
};

mod inventory;
mod matchmaker;
mod session;

/// The header of a refusal with its status code.
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// The default of [`Call::TIMEOUT`].
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// A type of request.
pub trait Call: Serialize + DeserializeOwned + Send {
    /// The subject, `svc.<service>.<endpoint>`.
    const SUBJECT: &'static str;
    type Reply: Serialize + DeserializeOwned + Send;
    /// How long a caller waits for the reply. The service has half a second less.
    const TIMEOUT: Duration = TIMEOUT;

    /// Whether the request may be executed twice. If so, the client sends it again when no reply has arrived for two
    /// seconds. A request is lost if the worker that received it is killed, and can be lost if the worker is stopping.
    fn may_repeat(&self) -> bool {
        true
    }

    /// The player, if an instance of the service handles only one request of this type at a time for each player.
    /// `None` if it can handle them at the same time.
    fn in_turn(&self) -> Option<&PlayerId> {
        None
    }
}

/// How long the client waits for a reply before it sends the request again. A busy worker replies within this time, so
/// that load does not double the number of requests.
const RESEND_AFTER: Duration = Duration::from_secs(2);

macro_rules! request {
    ($call:ty => $reply:ty, $subject:literal) => {
        impl Call for $call {
            const SUBJECT: &'static str = $subject;
            type Reply = $reply;
        }
    };
}
use request;

/// Requests that a worker handles one of its dead letters again, like a delivery. The subject is [`subject::retry`] of
/// the consumer.
///
/// The worker refuses with 404 if the consumer has no such dead letter, 409 if the message cannot be handled now, 422
/// if it can never be handled, and 503 if a dependency is down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retry {
    /// The dead letter's sequence in its stream.
    #[serde(rename = "letter")]
    pub number: u64,
}
impl Call for Retry {
    const SUBJECT: &'static str = "retry";
    type Reply = ();
    // Retries queue up: a request may have to wait for earlier ones.
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn may_repeat(&self) -> bool {
        false
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service refused the request.
    #[error("{subject} refused with {code}: {message}")]
    Refused {
        subject: &'static str,
        /// An HTTP status code.
        code: u16,
        /// The reason in words, for the user.
        message: String,
    },
    /// No instance of the service answered in time. A retry may succeed.
    #[error("{subject} does not answer: {reason}")]
    Unavailable { subject: &'static str, reason: String },
    /// The request or the reply is not valid JSON of the expected type.
    #[error("the reply of {subject} is malformed")]
    Malformed { subject: &'static str, source: serde_json::Error },
}

/// Sends a request and waits for its reply, for at most [`Call::TIMEOUT`].
///
/// # Errors
/// [`CallError`]
pub async fn call<C: Call>(client: &Client, call: &C) -> Result<C::Reply, CallError> {
    call_at(client, C::SUBJECT.into(), call).await
}

/// Asks a consumer's worker to handle a dead letter again. `number` is its sequence in the stream `DEAD`.
///
/// # Errors
/// [`CallError`]
pub async fn retry(client: &Client, consumer: &str, number: u64) -> Result<(), CallError> {
    call_at(client, subject::retry(consumer), &Retry { number }).await
}

async fn call_at<C: Call>(client: &Client, at: String, call: &C) -> Result<C::Reply, CallError> {
    let (subject, within) = (C::SUBJECT, C::TIMEOUT);
    let malformed = |source| CallError::Malformed { subject, source };
    let body = Bytes::from(serde_json::to_vec(call).map_err(malformed)?);
    let send = |within| {
        let request = async_nats::Request::new().payload(body.clone()).timeout(Some(within));
        client.send_request(at.clone(), request)
    };
    let mut first = pin!(send(within));
    let reply = match timeout(RESEND_AFTER, &mut first).await {
        Ok(reply) => reply,
        Err(_) if call.may_repeat() => {
            let second = pin!(send(within.saturating_sub(RESEND_AFTER)));
            // Take the first reply. If it says that the service is unavailable, the other request may still succeed.
            let (reply, other) = select(first, second).await.factor_first();
            if answered(&reply) { reply } else { Some(other.await).filter(answered).unwrap_or(reply) }
        }
        Err(_) => first.await,
    };
    let reply = reply.map_err(|error| CallError::Unavailable {
        subject,
        reason: match error.kind() {
            RequestErrorKind::NoResponders => "no instance of the service is running".into(),
            RequestErrorKind::TimedOut => format!("no reply within {} s", within.as_secs()),
            _ => error.to_string(),
        },
    })?;
    let header = |name| reply.headers.as_ref().and_then(|headers| headers.get(name));
    if let Some(code) = header(ERROR_CODE) {
        return Err(CallError::Refused {
            subject,
            code: code.as_str().parse().unwrap_or(500),
            message: header("Nats-Service-Error").map(ToString::to_string).unwrap_or_default(),
        });
    }
    serde_json::from_slice(&reply.payload).map_err(malformed)
}

/// Whether the service processed the request. It did not if there is no reply, or if the reply is 503.
fn answered<E>(reply: &Result<async_nats::Message, E>) -> bool {
    let code = |reply: &async_nats::Message| Some(reply.headers.as_ref()?.get(ERROR_CODE)?.to_string());
    reply.as_ref().is_ok_and(|reply| code(reply).as_deref() != Some("503"))
}
