//! Requests between workers, on the NATS service API: subjects, bodies, and the caller's side.
//!
//! A request and its reply are JSON. A refusal comes in the headers that the service API defines
//! (`Nats-Service-Error-Code`, `Nats-Service-Error`), with HTTP's meaning of the code.

use std::{collections::BTreeMap, pin::pin, str::FromStr, time::Duration};

use async_nats::{Client, RequestErrorKind};
use bytes::Bytes;
use futures::future::select;
use serde::{Deserialize, Deserializer, Serialize, de, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::{
    game::{Loadout, Stats},
    id::{CarId, ItemId, PlayerId, SessionId, Slot},
    subject,
};

/// The header of a refusal.
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// How long a caller waits for a reply, unless the request says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// One kind of request.
pub trait Call: Serialize + DeserializeOwned + Send {
    /// Its subject, `svc.<service>.<endpoint>`.
    const SUBJECT: &'static str;
    /// What comes back.
    type Reply: Serialize + DeserializeOwned + Send;
    /// How long a caller waits for it; whoever answers has half a second less.
    const TIMEOUT: Duration = TIMEOUT;

    /// Whether it may be carried out twice. Then it is sent again when no reply has come for two seconds: a request is
    /// lost with a worker that is killed, and may be with one that is told to stop while it is on its way there.
    fn may_repeat(&self) -> bool {
        true
    }
}

/// How long the first reply may take before a request is sent again. Longer than a busy worker takes: it is not to be
/// asked everything twice.
const AGAIN: Duration = Duration::from_secs(2);

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

/// Asks inventory for the cars that are sold.
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
    /// Coins that its owner gets for it.
    pub resale: u64,
    /// How it drives, with nothing mounted.
    pub stats: Stats,
    /// The slots it has.
    pub slots: Vec<Slot>,
}

/// Asks inventory for the items that are sold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreItems {}
call!(StoreItems => Vec<StoreItem>, "svc.inventory.items");

/// An item as the store shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreItem {
    /// Its id.
    pub id: ItemId,
    /// What the player reads.
    pub name: String,
    /// The slot it fits.
    pub slot: Slot,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// In coins.
    pub price: u64,
    /// Coins that its owner gets for it.
    pub resale: u64,
    /// What it adds to the car.
    pub effect: Effect,
}

/// What an item adds to the stats of the car that it is mounted on; in the units of [`Stats`], possibly negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Kilowatts.
    pub power_kw: f64,
    /// Kilograms.
    pub mass_kg: f64,
    /// Multiples of the weight.
    pub grip: f64,
    /// Square metres.
    pub drag_m2: f64,
}

/// Asks inventory for what a player owns. A player unknown so far gets his starter car and coins first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetGarage {
    /// Whose.
    pub player: PlayerId,
}
call!(GetGarage => Garage, "svc.inventory.garage");

/// Has a player's command carried out, and tells what he owns then. Refused with 404 for what is not there or not his,
/// 409 for what cannot be done as things are, 422 for a key that another command was sent with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Execute {
    /// Whose command it is.
    pub player: PlayerId,
    /// With a key a command is carried out once: sent again, it brings the same answer for at least 24 h.
    pub key: Option<IdempotencyKey>,
    /// What he wants.
    pub command: Command,
}
impl Call for Execute {
    const SUBJECT: &'static str = "svc.inventory.execute";
    type Reply = Garage;

    fn may_repeat(&self) -> bool {
        self.key.is_some()
    }
}

/// What a player may do with his belongings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Command {
    /// Buy a car that he does not have.
    BuyCar {
        /// Which.
        car: CarId,
    },
    /// Sell a car that is not the active one. What is mounted on it he keeps.
    SellCar {
        /// Which.
        car: CarId,
    },
    /// Buy one more of an item.
    BuyItem {
        /// Which.
        item: ItemId,
    },
    /// Sell one of an item that is not mounted.
    SellItem {
        /// Which.
        item: ItemId,
    },
    /// Mount an item, in the place of what is there.
    Mount {
        /// On which car.
        car: CarId,
        /// Where on it.
        slot: Slot,
        /// What.
        item: ItemId,
    },
    /// Take off what is mounted.
    Unmount {
        /// From which car.
        car: CarId,
        /// Where on it.
        slot: Slot,
    },
    /// Make a car the one he drives.
    Activate {
        /// Which.
        car: CarId,
    },
}

/// What a client names a request by, so that a repeat of it is seen to be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The longest, in characters.
    pub const MAX: usize = 128;

    /// The key itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {} visible ASCII characters", IdempotencyKey::MAX)]
pub struct InvalidKey;

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let legal = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if legal { Ok(Self(text.into())) } else { Err(InvalidKey) }
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Asks inventory how good a player is. One unknown so far is as good as any who begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetProfile {
    /// Who.
    pub player: PlayerId,
}
call!(GetProfile => Profile, "svc.inventory.profile");

/// How good a player is, by the results of his matches (Glicko-2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Who.
    pub player: PlayerId,
    /// What he queues with: his rating as a whole number, one of [`crate::player::RANKS`].
    pub rank: i32,
    /// 1,500 to begin with.
    pub rating: f64,
    /// How uncertain the rating is: 19 in 20 of those rated so are within twice this of it.
    pub deviation: f64,
    /// Matches that moved it.
    pub matches: u32,
}

/// Asks inventory for entries of a player's ledger, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetLedger {
    /// Whose.
    pub player: PlayerId,
    /// Only entries older than this one.
    pub before: Option<u64>,
    /// How many at most; 1 to [`GetLedger::MOST`], else it is refused with 400.
    pub limit: u32,
}
call!(GetLedger => Vec<LedgerEntry>, "svc.inventory.ledger");

impl GetLedger {
    /// The most entries told at once.
    pub const MOST: u32 = 100;
}

/// A change of a wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Its number; a player's ascend.
    pub id: u64,
    /// `starter`, `reward`, `car-purchased`, `car-sold`, `item-purchased` or `item-sold`.
    pub reason: String,
    /// The car, item or session; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Coins, negative for those paid.
    pub amount: i64,
    /// Coins in the wallet after it.
    pub balance: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

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
    #[serde(rename = "letter")]
    pub number: u64,
}
impl Call for Retry {
    const SUBJECT: &'static str = "retry";
    type Reply = ();
    // It may wait for others in its turn.
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn may_repeat(&self) -> bool {
        false
    }
}

/// A connection token.
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedToken {
    /// The JWT; its claims are [`crate::game::ConnectClaims`].
    pub token: crate::game::Secret,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
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

/// Sends one request and waits for its reply, at most [`Call::TIMEOUT`].
///
/// # Errors
/// See [`CallError`].
pub async fn call<C: Call>(client: &Client, call: &C) -> Result<C::Reply, CallError> {
    call_at(client, C::SUBJECT.into(), call).await
}

/// Has a consumer's worker handle one of its dead letters again.
///
/// # Errors
/// See [`CallError`].
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
    let reply = match timeout(AGAIN, &mut first).await {
        Ok(reply) => reply,
        Err(_) if call.may_repeat() => {
            let second = pin!(send(within.saturating_sub(AGAIN)));
            // Whichever is quicker; but that one was turned away says nothing of what becomes of the other.
            let (reply, other) = select(first, second).await.factor_first();
            if answered(&reply) { reply } else { Some(other.await).filter(answered).unwrap_or(reply) }
        }
        Err(_) => first.await,
    };
    let reply = reply.map_err(|error| CallError::Unavailable {
        subject,
        reason: match error.kind() {
            RequestErrorKind::NoResponders => "no instance of it is running".into(),
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

/// Whether a service has done what it was asked for, or has said why not.
fn answered<E>(reply: &Result<async_nats::Message, E>) -> bool {
    let code = |reply: &async_nats::Message| Some(reply.headers.as_ref()?.get(ERROR_CODE)?.to_string());
    reply.as_ref().is_ok_and(|reply| code(reply).as_deref() != Some("503"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_visible_ascii_and_short() {
        for good in ["k", "0198c5a0-7b1e", "a/b+c=", &"k".repeat(128)] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "\u{e9}", "a\n", &"k".repeat(129)] {
            assert!(bad.parse::<IdempotencyKey>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<IdempotencyKey>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_reads_by_itself() {
        let command = Command::Unmount { car: "vixen".parse().unwrap(), slot: "turbo".parse().unwrap() };
        let text = r#"{"type":"unmount","car":"vixen","slot":"turbo"}"#;
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        assert_eq!(serde_json::from_str::<Command>(text).unwrap(), command);
    }
}
