//! The RSA key of a game server.
//!
//! This is a separate crate because the key generation of the `rsa` crate is generic, so it is compiled here. Debug
//! builds optimise only this crate, with `profile.dev.package.garage-keys` in the root Cargo.toml, and not the whole
//! session worker.

use anyhow::Context;
use garage_events::game::{self, Secret};
use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
};

/// The size of a key, in bits.
const BITS: usize = 2_048;

/// The key of one game server.
#[derive(Debug, Clone)]
pub struct GameKey {
    /// The public half, as SubjectPublicKeyInfo in PEM.
    pub public_key: String,
    /// The fingerprint of the public half, see [`game::fingerprint`].
    pub fingerprint: String,
    /// The private half, as PKCS #8 in PEM.
    pub private_key: Secret,
}

impl GameKey {
    /// Generates a key. This takes 50 to 100 ms of CPU time.
    ///
    /// # Errors
    /// If the key cannot be generated or encoded.
    pub fn generate() -> anyhow::Result<Self> {
        let private = RsaPrivateKey::new(&mut rand::rng(), BITS).context("cannot generate an RSA key")?;
        let public = private.to_public_key();
        let fingerprint = game::fingerprint(public.to_public_key_der()?.as_bytes());
        let pem = private.to_pkcs8_pem(LineEnding::LF)?;
        let private_key = Secret::new(pem.as_str());
        Ok(Self { public_key: public.to_public_key_pem(LineEnding::LF)?, fingerprint, private_key })
    }
}
