//! The contract between Garage and a game server: the server reads one configuration file and sends two reports.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::{
    id::{CarId, ItemId, PlayerId, SessionId, Slot},
    queue::MAX_PLAYERS,
};

/// The car that a player drives in a match, with the mounted items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loadout {
    pub player: PlayerId,
    /// The player's active car.
    pub car: Car,
    /// The items that are mounted on the car.
    pub items: BTreeMap<Slot, Item>,
}

/// A car, with the data that a game needs to show and simulate it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Car {
    pub id: CarId,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// Includes the effects of the mounted items.
    pub stats: Stats,
}

/// An item, with the data that a game needs to show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub id: ItemId,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
}

/// The driving characteristics of a car.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Engine power, in kilowatts.
    pub power_kw: f64,
    /// Mass with the driver, in kilograms.
    pub mass_kg: f64,
    /// Friction of the tyres: the largest force between tyres and road, as a multiple of the car's weight.
    pub grip: f64,
    /// Air drag, as drag coefficient times frontal area, in square metres.
    pub drag_m2: f64,
}

/// The configuration of one game server, which serves one attempt at one session. It is a JSON file that only the game
/// server may read, passed with `--config FILE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub session: SessionId,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The players to admit, with their cars.
    pub players: Vec<Loadout>,
    /// The teams of the match. Each player is in one of them. Empty if an older director wrote the file.
    #[serde(default)]
    pub teams: Vec<Team>,
    /// The server's RSA key, as PKCS #8 PEM. The server's TLS certificate uses it.
    pub private_key: Secret,
    /// An Ed25519 public key to verify connection tokens, as SubjectPublicKeyInfo PEM. It is one of `token_keys`, for
    /// servers that do not read that field yet.
    pub token_key: String,
    /// All public keys to verify connection tokens, as PEM, by key id. The key id is the key's [`fingerprint`]; a token
    /// names it in `kid`. During a key rotation there are two keys. Empty if an older director wrote the file.
    #[serde(default)]
    pub token_keys: BTreeMap<String, String>,
    /// The NATS server and user for publishing the reports.
    pub nats: Nats,
    /// The subject for the report [`Ready`].
    pub ready: String,
    /// The subject for the report [`Finished`].
    pub finished: String,
    /// The hard end of the session. The server must have exited by then.
    #[serde(with = "time::serde::rfc3339")]
    pub ends_at: OffsetDateTime,
}

/// A team of the match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Unique within the match.
    pub name: String,
    pub players: Vec<PlayerId>,
}

/// How a game server connects to NATS. Each game server has its own user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nats {
    /// One or more URLs, separated by commas.
    pub url: String,
    /// The text of a credentials file: the user's JWT and its seed.
    pub credentials: Secret,
    /// The inbox prefix that the client must use. The user may subscribe to nothing else.
    pub inbox: String,
}

/// The secrets of one game server. The session worker stores them in Redis, encrypted, for the director.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// See [`Config::private_key`].
    pub private_key: Secret,
    /// See [`Nats::credentials`].
    pub credentials: Secret,
}

/// The ports on which a game server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The port for WebSockets over TLS.
    pub tcp_port: u16,
    /// The port for datagrams.
    pub udp_port: u16,
}

/// The maximum size of a report, in bytes.
///
/// The largest report that is allowed lists [`MAX_PLAYERS`] players. With the longest player ids and the largest numbers,
/// indented by four spaces, the result of one player takes about 250 bytes. The rest leaves room for new fields.
pub const MAX_REPORT: usize = MAX_PLAYERS * 300;

/// The first report: the server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    #[serde(flatten)]
    pub ports: Ports,
}

/// The second report: the game is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Each player of the session exactly once, see [`crate::session::results::check`].
    pub results: Vec<Placing>,
    /// Each team of the session exactly once. If they are left out, each player counts alone; this is possible if each
    /// player is a team, or if there is one team.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teams: Vec<TeamPlacing>,
}

/// The result of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamPlacing {
    /// The name of the team.
    pub team: String,
    /// 1 for the winner. Teams with equal places are tied, and the next place is skipped: 1, 2, 2, 4.
    pub place: u32,
    /// The players of the team. Garage adds them to the report of a game server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub players: Vec<PlayerId>,
}

/// The result of one player.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    pub player: PlayerId,
    /// 1 for the winner. Players with equal places are tied, and the next place is skipped: 1, 2, 2, 4. In a match of
    /// teams, it may be the place of the player's team instead.
    pub place: u32,
    /// Time from start to finish line, in milliseconds; absent if the player did not finish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// False if the player never connected to the game server. A server that does not report this counts all players
    /// as joined.
    #[serde(default = "joined", skip_serializing_if = "is_true")]
    pub joined: bool,
}

const fn joined() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_true(joined: &bool) -> bool {
    *joined
}

/// The claims of a connection token: an EdDSA JWT that admits one player to one session's game server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectClaims {
    /// The player to admit, by the id that they have in the game server's configuration.
    pub sub: PlayerId,
    /// The `sub` of the player's own token, from the studio's identity provider. `None` if the session worker does not
    /// know it: the id is a hash, and a gateway of an older version asked for the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_sub: Option<String>,
    pub session: SessionId,
    /// Always [`CONNECT_AUDIENCE`].
    pub aud: String,
    /// When the token expires, in seconds since 1970.
    pub exp: u64,
}

/// The audience of connection tokens. It distinguishes them from all other tokens.
pub const CONNECT_AUDIENCE: &str = "garage-game";

/// The exit code of a game server that finds no free port. Garage then tries again later, and does not count the attempt.
pub const EXIT_NO_PORT: u8 = 75;

/// The fingerprint of a public key: SHA-256 of its DER SubjectPublicKeyInfo, in lower-case hex. Game clients pin the
/// fingerprint of the game server's RSA key, which is the key of its TLS certificate. Connection tokens name their
/// signing key by its fingerprint.
pub fn fingerprint(spki_der: &[u8]) -> String {
    hex(&Sha256::digest(spki_der))
}

/// An id for a secret key that does not reveal the key: the first 8 bytes of SHA-256 over `garage <kind> key:` and the
/// key.
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

/// Encodes bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A secret text. Its `Debug` output does not show the text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret text. Never print or log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Serializer, ser::PrettyFormatter};

    use super::*;

    #[test]
    fn the_largest_report_leaves_a_tenth_of_the_limit_free() {
        let player = |number| format!("{number:x<128}").parse().unwrap();
        let result =
            |number| Placing { player: player(number), place: u32::MAX, time_ms: Some(u64::MAX), joined: true };
        let report = Finished { results: (10..10 + MAX_PLAYERS).map(result).collect(), teams: Vec::new() };
        let mut text = Vec::new();
        let indented = PrettyFormatter::with_indent(b"    ");
        report.serialize(&mut Serializer::with_formatter(&mut text, indented)).unwrap();
        assert!(text.len() * 10 < MAX_REPORT * 9, "{} bytes", text.len());
    }
}
