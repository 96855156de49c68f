//! Verifies connection tokens.

use std::collections::BTreeMap;

use garage_events::{
    game::{CONNECT_AUDIENCE, Config, ConnectClaims, Secret},
    id::{PlayerId, SessionId},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

/// Allowed difference between the clocks of signer and game server, in seconds. Nodes of a cluster run NTP.
const LEEWAY_S: u64 = 5;

/// A configured key is not an Ed25519 SubjectPublicKeyInfo in PEM.
#[derive(Debug, thiserror::Error)]
#[error("parsing a key that verifies connection tokens")]
pub struct BadKey(#[source] jsonwebtoken::errors::Error);

/// Why a token is refused. The client receives the message, so it must not reveal anything about other players.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid")]
    Invalid,
    #[error("the token is for another session")]
    WrongSession,
    #[error("the token is for a player who is not in this session")]
    UnknownPlayer,
}

/// Verifies the tokens for one session.
pub(crate) struct Verifier {
    /// Keys by `kid`.
    keys: BTreeMap<String, DecodingKey>,
    /// Key for tokens without a `kid`, or with one that is not in `keys`.
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
        // The only accepted algorithm, whatever the token's header says.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[CONNECT_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        Ok(Self { keys, key, validation, session: config.session, players })
    }

    /// Verifies a token. Returns the index of its player.
    pub(crate) fn admit(&self, token: &Secret) -> Result<usize, Refusal> {
        // The header is not verified yet. Its `kid` only selects one of the configured keys.
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
            return Err(Refusal::WrongSession);
        }
        self.players.iter().position(|player| *player == claims.sub).ok_or(Refusal::UnknownPlayer)
    }
}
