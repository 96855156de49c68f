//! Connection tokens, which allow a player to join a session's game server.

use anyhow::Context;
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey, EncodePublicKey},
};
use garage_events::{
    game::{CONNECT_AUDIENCE, ConnectClaims, Secret, fingerprint},
    id::{PlayerId, SessionId},
    svc::SignedToken,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use time::{Duration, OffsetDateTime};

/// How long a token is valid: long enough to reconnect during a match, and short enough to be useless later.
const VALID: Duration = Duration::minutes(5);

/// Signs connection tokens.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    header: Header,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(…)")
    }
}

impl Signer {
    /// Parses an Ed25519 private key in PKCS #8 PEM.
    ///
    /// # Errors
    /// If `pem` is not such a key.
    pub fn from_pem(pem: &Secret) -> anyhow::Result<Self> {
        const WRONG: &str = "the key for connection tokens is not an Ed25519 private key in PKCS #8 PEM";
        let public = SigningKey::from_pkcs8_pem(pem.expose()).context(WRONG)?.verifying_key().to_public_key_der()?;
        let key = EncodingKey::from_ed_pem(pem.expose().as_bytes()).context(WRONG)?;
        // The director computes the same id. During a rotation, game servers have two public keys, and the id
        // selects one.
        let kid = Some(fingerprint(public.as_bytes()));
        Ok(Self { key, header: Header { kid, ..Header::new(Algorithm::EdDSA) } })
    }

    /// Signs a token for a player of a session. The identity provider names this player `provider_sub`. The token
    /// expires at `ends_at`, the end of the session, or before.
    ///
    /// # Errors
    /// If signing fails.
    pub fn sign(
        &self,
        player: &PlayerId,
        provider_sub: Option<String>,
        session: SessionId,
        now: OffsetDateTime,
        ends_at: OffsetDateTime,
    ) -> anyhow::Result<SignedToken> {
        let expires_at = ends_at.min(now + VALID);
        let claims = ConnectClaims {
            sub: player.clone(),
            provider_sub,
            session,
            aud: CONNECT_AUDIENCE.into(),
            exp: u64::try_from(expires_at.unix_timestamp()).unwrap_or(0),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key)?;
        Ok(SignedToken { token: Secret::new(token), expires_at })
    }
}
