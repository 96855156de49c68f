//! Redis: the games' sealed keys, which session parks there. Without it a director can start nothing, but it can still
//! remove what is over.

use garage_events::{game::Secret, projection::parked_key};
use garage_worker::{redis::Redis, seal::SealKeys};
use redis::{AsyncCommands, RedisError};

use crate::{
    backend::{CreateError, Unavailable},
    reaction::Keys,
};

/// The keys in Redis.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Where they are, sealed.
    pub redis: Redis,
    /// What they are opened with.
    pub seal: SealKeys,
}

impl Keys for Parked {
    async fn private_key(&self, fingerprint: &str) -> Result<Secret, CreateError> {
        let lost = |message: String| CreateError::Refused { reason: "key-lost", message };
        let parked = self.sealed(fingerprint).await;
        let sealed =
            parked.map_err(|error| Unavailable(anyhow::Error::new(error).context("cannot ask for the key")))?;
        let sealed = sealed.ok_or_else(|| lost("the game's key is not in Redis".into()))?;
        let key = self.seal.open(&sealed, fingerprint).map_err(|error| lost(error.to_string()))?;
        let key = String::from_utf8(key)
            .map_err(|error| lost(format!("the game's key is no text: {}", error.utf8_error())))?;
        Ok(Secret::new(key))
    }
}

impl Parked {
    /// The sealed key parked under a fingerprint, if it is there.
    async fn sealed(&self, fingerprint: &str) -> Result<Option<Vec<u8>>, RedisError> {
        let mut connection = self.redis.connection().await?;
        self.redis.checked(connection.get(parked_key(fingerprint)).await).await
    }
}
