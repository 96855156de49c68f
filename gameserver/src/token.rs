//! Connection tokens: who may come in.

use std::collections::BTreeMap;

use garage_events::{
    game::{CONNECT_AUDIENCE, Config, ConnectClaims, Secret},
    id::{PlayerId, SessionId},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

/// How far the clocks of signer and game server may be apart, in seconds; nodes of a cluster run NTP.
const LEEWAY_S: u64 = 5;

/// The configured key is no Ed25519 SubjectPublicKeyInfo in PEM.
#[derive(Debug, thiserror::Error)]
#[error("reading the key that tokens are verified with")]
pub struct BadKey(#[source] jsonwebtoken::errors::Error);

/// Why a token does not admit. What it says is told to its bearer, so it says nothing of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid")]
    Invalid,
    #[error("the token is of another session")]
    Session,
    #[error("the token is of a player who is not in this session")]
    Player,
}

/// Decides on tokens of one session.
pub(crate) struct Verifier {
    /// By `kid`.
    keys: BTreeMap<String, DecodingKey>,
    /// For tokens that name none of these.
    key: DecodingKey,
    validation: Validation,
    session: SessionId,
    players: Vec<PlayerId>,
}

impl Verifier {
    /// A verifier for a game's session and players.
    pub(crate) fn new(config: &Config) -> Result<Self, BadKey> {
        let read = |pem: &String| DecodingKey::from_ed_pem(pem.as_bytes()).map_err(BadKey);
        let keys =
            config.token_keys.iter().map(|(kid, pem)| Ok((kid.clone(), read(pem)?))).collect::<Result<_, _>>()?;
        let key = read(&config.token_key)?;
        let players = config.players.iter().map(|loadout| loadout.player.clone()).collect();
        // The one algorithm: what the token's own header says is never trusted.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[CONNECT_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        Ok(Self { keys, key, validation, session: config.session, players })
    }

    /// The index of the player whom a token admits.
    pub(crate) fn admit(&self, token: &Secret) -> Result<usize, Refusal> {
        // What it says of its key only chooses among ours.
        let kid = jsonwebtoken::decode_header(token.expose()).ok().and_then(|header| header.kid);
        let key = kid.and_then(|kid| self.keys.get(&kid)).unwrap_or(&self.key);
        let claims = match jsonwebtoken::decode::<ConnectClaims>(token.expose(), key, &self.validation) {
            Ok(token) => token.claims,
            Err(error) if matches!(error.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature) => {
                return Err(Refusal::Expired);
            }
            Err(_) => return Err(Refusal::Invalid),
        };
        if claims.session != self.session {
            return Err(Refusal::Session);
        }
        self.players.iter().position(|player| *player == claims.sub).ok_or(Refusal::Player)
    }
}
