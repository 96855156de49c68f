//! The contract between Garage and a game server: a configuration file in, two reports out. Nothing else.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::id::{CarId, ItemId, PlayerId, SessionId, Slot};

/// What a player brings into a match: his active car with the items mounted on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loadout {
    /// Whose it is.
    pub player: PlayerId,
    /// The car he drives.
    pub car: Car,
    /// The items mounted on it, by slot.
    pub items: BTreeMap<Slot, Item>,
}

/// A car as a game needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Car {
    /// Its id in the catalogue.
    pub id: CarId,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// How it drives, with the effects of the mounted items already added.
    pub stats: Stats,
}

/// An item as a game needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its id in the catalogue.
    pub id: ItemId,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
}

/// How a car drives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Engine power, in kilowatts.
    pub power_kw: f64,
    /// Mass with the driver, in kilograms.
    pub mass_kg: f64,
    /// Friction of the tyres, as a multiple of the car's weight that they can put on the road.
    pub grip: f64,
    /// Air drag, as drag coefficient times frontal area, in square metres.
    pub drag_m2: f64,
}

/// The configuration of one game server: one attempt at one session. It is written as JSON into a file that only the
/// game server may read, and passed by `--config FILE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The session served.
    pub session: SessionId,
    /// Which attempt at it this server is; 1 is the first.
    pub attempt: u32,
    /// Those admitted, and what they bring.
    pub players: Vec<Loadout>,
    /// The game's RSA key, PKCS #8 PEM; the server's certificate is made of it.
    pub private_key: Secret,
    /// The Ed25519 key that connection tokens are verified with, SubjectPublicKeyInfo PEM: one of `token_keys`, for
    /// servers that know no other.
    pub token_key: String,
    /// All keys that connection tokens are verified with, PEM, by the `kid` that a token names: the [`fingerprint`] of
    /// the key. There are two while they are rotated; none when the director does not know of this field yet.
    #[serde(default)]
    pub token_keys: BTreeMap<String, String>,
    /// Where and as whom reports are published.
    pub nats: Nats,
    /// The subject of the report [`Ready`].
    pub ready: String,
    /// The subject of the report [`Finished`].
    pub finished: String,
    /// When the session ends whatever happens; the server must have exited by then.
    #[serde(with = "time::serde::rfc3339")]
    pub ends_at: OffsetDateTime,
}

/// A NATS server and a user of it, which is this game server's alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nats {
    /// One or more URLs, separated by commas.
    pub url: String,
    /// The text of a credentials file: the user's JWT and its seed.
    pub credentials: Secret,
    /// The inbox prefix that the client must use: the user may subscribe to nothing else.
    pub inbox: String,
}

/// What one game server alone knows, as session parks it, sealed, for the director.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// The game's RSA key, PKCS #8 PEM.
    pub private_key: Secret,
    /// The text of the credentials file of its NATS user.
    pub credentials: Secret,
}

/// The first report: the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Port of the TLS WebSocket.
    pub tcp_port: u16,
    /// Port of the datagrams.
    pub udp_port: u16,
}

/// The second report: the game is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Every player of the session once, in order of place.
    pub results: Vec<Placing>,
}

/// How one player did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    /// Who.
    pub player: PlayerId,
    /// 1 for the winner.
    pub place: u32,
    /// Time from start to finish line, in milliseconds; absent for who did not finish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

/// The claims of a connection token: an EdDSA JWT that admits one player to one session's game server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectClaims {
    /// The player.
    pub sub: PlayerId,
    /// The session.
    pub session: SessionId,
    /// Always [`CONNECT_AUDIENCE`].
    pub aud: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
}

/// The audience of connection tokens, so that no other token passes for one.
pub const CONNECT_AUDIENCE: &str = "garage-game";

/// Lower-case hex SHA-256 of a public key's DER SubjectPublicKeyInfo. Game clients pin that of the game's RSA key, which
/// is also that of the server's certificate; connection tokens name the key they are signed with by it.
pub fn fingerprint(spki_der: &[u8]) -> String {
    hex(&Sha256::digest(spki_der))
}

/// What tells a secret key from another of its kind, and gives nothing of it away: the first 8 bytes of SHA-256 over
/// `garage <kind> key:` and the key.
pub fn key_id(kind: &str, key: &[u8]) -> [u8; 8] {
    let digest: [u8; 32] = Sha256::new()
        .chain_update("garage ")
        .chain_update(kind)
        .chain_update(" key:")
        .chain_update(key)
        .finalize()
        .into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    [a, b, c, d, e, f, g, h]
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; to be handed on, never printed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
