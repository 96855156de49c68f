//! A game's RSA key. Making one takes hundreds of milliseconds of a core, so that some are made ahead.

use std::{future::Future, sync::Arc};

use anyhow::Context;
use garage_events::game::{self, Secret};
use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
};
use tokio::sync::{Mutex, mpsc};

/// Bits of a game's key.
const BITS: usize = 2_048;

/// A game's key.
#[derive(Debug, Clone)]
pub struct GameKey {
    /// SubjectPublicKeyInfo PEM.
    pub public_key: String,
    /// Of the public half; see [`game::fingerprint`].
    pub fingerprint: String,
    /// The private half, PKCS #8 PEM.
    pub private_key: Secret,
}

impl GameKey {
    /// Makes one. Takes a core for hundreds of milliseconds.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn generate() -> anyhow::Result<Self> {
        let private = RsaPrivateKey::new(&mut rand::rng(), BITS).context("cannot make an RSA key")?;
        let public = private.to_public_key();
        let fingerprint = game::fingerprint(public.to_public_key_der()?.as_bytes());
        let pem = private.to_pkcs8_pem(LineEnding::LF)?;
        let private_key = Secret::new(pem.as_str());
        Ok(Self { public_key: public.to_public_key_pem(LineEnding::LF)?, fingerprint, private_key })
    }
}

/// Keys made ahead.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Mutex<mpsc::Receiver<GameKey>>>);

impl Pool {
    /// Starts to fill a pool of `size` keys on a thread of its own. The future ends when there is nobody left to take
    /// from the pool, and fails when no more keys will come.
    pub fn start(size: u16) -> (Self, impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let (fill, keys) = mpsc::channel(usize::from(size.max(1)));
        let filling = tokio::task::spawn_blocking(move || {
            loop {
                let key = GameKey::generate().context("no game can have a key")?;
                // Blocks while the pool is full; fails once nobody can take from it any more.
                if fill.blocking_send(key).is_err() {
                    return Ok(());
                }
            }
        });
        (Self(Arc::new(Mutex::new(keys))), async move { filling.await.context("the maker of keys panicked")? })
    }

    /// Takes a key; waits for it when games come faster than keys.
    ///
    /// # Errors
    /// When no more will come.
    pub async fn take(&self) -> anyhow::Result<GameKey> {
        self.0.lock().await.recv().await.context("keys are no longer made")
    }
}
