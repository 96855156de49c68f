//! Connection tokens: who may come in.

use garage_events::{
    game::{CONNECT_AUDIENCE, ConnectClaims, Secret},
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
    key: DecodingKey,
    validation: Validation,
    session: SessionId,
    players: Vec<PlayerId>,
}

impl Verifier {
    /// A verifier for a session and its players.
    pub(crate) fn new(token_key: &str, session: SessionId, players: Vec<PlayerId>) -> Result<Self, BadKey> {
        let key = DecodingKey::from_ed_pem(token_key.as_bytes()).map_err(BadKey)?;
        // The one algorithm: what the token's own header says is never trusted.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[CONNECT_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        Ok(Self { key, validation, session, players })
    }

    /// The index of the player whom a token admits.
    pub(crate) fn admit(&self, token: &Secret) -> Result<usize, Refusal> {
        let claims = match jsonwebtoken::decode::<ConnectClaims>(token.expose(), &self.key, &self.validation) {
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
