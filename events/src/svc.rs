//! Requests between workers, on the NATS service API: subjects, bodies, and the caller's side.
//!
//! A request and its reply are JSON. A refusal comes in the headers that the service API defines
//! (`Nats-Service-Error-Code`, `Nats-Service-Error`), with HTTP's meaning of the code.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{Client, RequestErrorKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    game::{Loadout, Stats},
    id::{CarId, ItemId, PlayerId, SessionId, Slot},
    subject,
};

/// How long a caller waits for a reply.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long an operator waits for a worker to handle a dead letter; it may wait for others in its turn.
pub const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// One kind of request.
pub trait Call: Serialize + DeserializeOwned + Send {
    /// Its subject, `svc.<service>.<endpoint>`.
    const SUBJECT: &'static str;
    /// What comes back.
    type Reply: Serialize + DeserializeOwned + Send;
}

macro_rules! call {
    ($call:ty => $reply:ty, $subject:literal) => {
        impl Call for $call {
            const SUBJECT: &'static str = $subject;
            type Reply = $reply;
        }
    };
}

/// Asks inventory what each player brings into a match. A player unknown so far gets his starter car first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loadouts {
    /// At most 64.
    pub players: Vec<PlayerId>,
}
call!(Loadouts => Vec<Loadout>, "svc.inventory.loadouts");

/// Asks inventory for the cars of the catalogue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreCars {}
call!(StoreCars => Vec<StoreCar>, "svc.inventory.cars");

/// A car as the store shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreCar {
    /// Its id.
    pub id: CarId,
    /// What the player reads.
    pub name: String,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// In coins.
    pub price: u64,
    /// How it drives, with nothing mounted.
    pub stats: Stats,
    /// The slots it has.
    pub slots: Vec<Slot>,
}

/// Asks inventory for what a player owns. A player unknown so far gets his starter car and coins first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetGarage {
    /// Whose.
    pub player: PlayerId,
}
call!(GetGarage => Garage, "svc.inventory.garage");

/// Makes a car the one its owner drives. Refused with 404 when the player does not own it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActivateCar {
    /// The owner.
    pub player: PlayerId,
    /// The car.
    pub car: CarId,
}
call!(ActivateCar => Garage, "svc.inventory.activate");

/// What a player owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Garage {
    /// Whose it is.
    pub player: PlayerId,
    /// Coins in the wallet.
    pub balance: u64,
    /// The car he drives.
    pub active_car: CarId,
    /// His cars, the oldest first.
    pub cars: Vec<OwnedCar>,
    /// His items, and how many of each.
    pub items: BTreeMap<ItemId, u32>,
}

/// A car of a player.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnedCar {
    /// Its id in the catalogue.
    pub id: CarId,
    /// What the player reads.
    pub name: String,
    /// The items mounted on it, by slot.
    pub items: BTreeMap<Slot, ItemId>,
}

/// Asks session for one session, as the log has it. Refused with 404 when there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetSession {
    /// Which.
    pub session: SessionId,
}
call!(GetSession => crate::session::View, "svc.session.get");

/// Asks session for the live sessions and the depth of the queues, as the projections have them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListSessions {}
call!(ListSessions => crate::projection::Live, "svc.session.list");

/// Asks session for a token that admits a player to his session's game server. Refused with 404 when the session is
/// not his, 409 when it is not open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectToken {
    /// Which session.
    pub session: SessionId,
    /// Who connects.
    pub player: PlayerId,
}
call!(ConnectToken => SignedToken, "svc.session.connect-token");

/// Asks a worker to handle one of its dead letters again, as it handles a delivery. Refused with 404 when it is none of
/// its own, 409 or 422 with the error when it cannot be handled now or at all, 503 when something it needs is down. Its
/// subject is [`subject::retry`] of the consumer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retry {
    /// Its sequence in the stream of dead letters.
    pub letter: u64,
}
call!(Retry => (), "retry");

/// A connection token.
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedToken {
    /// The JWT; its claims are [`crate::game::ConnectClaims`].
    pub token: crate::game::Secret,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: time::OffsetDateTime,
}

/// Why a request brought no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service answered that it won't: the code has HTTP's meaning.
    #[error("{subject} refused with {code}: {message}")]
    Refused {
        /// Which service.
        subject: &'static str,
        /// HTTP's status.
        code: u16,
        /// For the person who asked.
        message: String,
    },
    /// Nobody answers, or not in time; asking again later may help.
    #[error("{subject} does not answer: {reason}")]
    Unavailable {
        /// Which service.
        subject: &'static str,
        /// What the client saw.
        reason: String,
    },
    /// Something answered that is not the service's reply.
    #[error("the reply of {subject} is malformed")]
    Malformed {
        /// Which service.
        subject: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
}

/// Sends one request and waits for its reply, at most [`TIMEOUT`].
///
/// # Errors
/// See [`CallError`].
pub async fn call<C: Call>(client: &Client, call: &C) -> Result<C::Reply, CallError> {
    call_at(client, C::SUBJECT.into(), call, TIMEOUT).await
}

/// Has a consumer's worker handle one of its dead letters again; waits at most [`RETRY_TIMEOUT`].
///
/// # Errors
/// See [`CallError`].
pub async fn retry(client: &Client, consumer: &str, letter: u64) -> Result<(), CallError> {
    call_at(client, subject::retry(consumer), &Retry { letter }, RETRY_TIMEOUT).await
}

async fn call_at<C: Call>(client: &Client, at: String, call: &C, within: Duration) -> Result<C::Reply, CallError> {
    let subject = C::SUBJECT;
    let malformed = |source| CallError::Malformed { subject, source };
    let body = serde_json::to_vec(call).map_err(malformed)?;
    let request = async_nats::Request::new().payload(body.into()).timeout(Some(within));
    let reply = client.send_request(at, request).await.map_err(|error| CallError::Unavailable {
        subject,
        reason: match error.kind() {
            RequestErrorKind::NoResponders => "no instance of it is running".into(),
            RequestErrorKind::TimedOut => format!("no reply within {} s", within.as_secs()),
            _ => error.to_string(),
        },
    })?;
    let header = |name| reply.headers.as_ref().and_then(|headers| headers.get(name));
    if let Some(code) = header("Nats-Service-Error-Code") {
        return Err(CallError::Refused {
            subject,
            code: code.as_str().parse().unwrap_or(500),
            message: header("Nats-Service-Error").map(ToString::to_string).unwrap_or_default(),
        });
    }
    serde_json::from_slice(&reply.payload).map_err(malformed)
}
