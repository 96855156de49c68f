//! Connection tokens: a player's right to enter a session's game server.

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

/// How long a token admits: long enough to reconnect to a race, short enough to be of no use later.
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
    /// Reads an Ed25519 private key, PKCS #8 PEM.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_pem(pem: &Secret) -> anyhow::Result<Self> {
        const WRONG: &str = "the token key is no Ed25519 private key in PKCS #8 PEM";
        let public = SigningKey::from_pkcs8_pem(pem.expose()).context(WRONG)?.verifying_key().to_public_key_der()?;
        let key = EncodingKey::from_ed_pem(pem.expose().as_bytes()).context(WRONG)?;
        // As the director computes it: it says which of two public keys verifies this while keys are rotated.
        let kid = Some(fingerprint(public.as_bytes()));
        Ok(Self { key, header: Header { kid, ..Header::new(Algorithm::EdDSA) } })
    }

    /// A token for a player of a session that ends at `ends_at`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(
        &self,
        player: &PlayerId,
        session: SessionId,
        now: OffsetDateTime,
        ends_at: OffsetDateTime,
    ) -> anyhow::Result<SignedToken> {
        let expires_at = ends_at.min(now + VALID);
        let claims = ConnectClaims {
            sub: player.clone(),
            session,
            aud: CONNECT_AUDIENCE.into(),
            exp: u64::try_from(expires_at.unix_timestamp()).unwrap_or(0),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key)?;
        Ok(SignedToken { token: Secret::new(token), expires_at })
    }
}
