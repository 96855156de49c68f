//! Reads the game servers' sealed (encrypted) secrets from Redis, where the session worker stores them for a short
//! time. Without Redis a director cannot start game servers, but it can still remove them.

use garage_events::{game::Secrets, projection::parked_key};
use garage_worker::{redis::Redis, seal::SealKeys};
use redis::{AsyncCommands, RedisError};

use crate::{
    backend::{CreateError, Unavailable},
    reaction::Keys,
};

/// The game servers' sealed secrets in Redis.
#[derive(Debug, Clone)]
pub struct ParkedKeys {
    /// The connection to Redis.
    pub redis: Redis,
    /// Opens the sealed secrets.
    pub seal: SealKeys,
}

impl Keys for ParkedKeys {
    async fn secrets(&self, fingerprint: &str) -> Result<Secrets, CreateError> {
        let lost = |message: String| CreateError::Refused { reason: "key-lost", message };
        let parked = self.sealed(fingerprint).await;
        let sealed =
            parked.map_err(|error| Unavailable(anyhow::Error::new(error).context("cannot read the game's key")))?;
        let sealed = sealed.ok_or_else(|| lost("the game's key is not in Redis".into()))?;
        let opened = self.seal.open(&sealed, fingerprint).map_err(|error| lost(error.to_string()))?;
        // The message names only the kind of error: serde's full text may quote the secret.
        let malformed =
            |error: serde_json::Error| lost(format!("cannot parse the game's stored secrets: {:?}", error.classify()));
        serde_json::from_slice(&opened).map_err(malformed)
    }
}

impl ParkedKeys {
    /// The sealed secrets that are stored under this fingerprint, if any.
    async fn sealed(&self, fingerprint: &str) -> Result<Option<Vec<u8>>, RedisError> {
        let mut connection = self.redis.connection().await?;
        self.redis.checked(connection.get(parked_key(fingerprint)).await).await
    }
}
