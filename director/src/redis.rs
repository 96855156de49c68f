//! Redis: the games' sealed secrets, which session parks there. Without it a director can start nothing, but it can still
//! remove what is over.

use garage_events::{game::Secrets, projection::parked_key};
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
    async fn secrets(&self, fingerprint: &str) -> Result<Secrets, CreateError> {
        let lost = |message: String| CreateError::Refused { reason: "key-lost", message };
        let parked = self.sealed(fingerprint).await;
        let sealed =
            parked.map_err(|error| Unavailable(anyhow::Error::new(error).context("cannot ask for the key")))?;
        let sealed = sealed.ok_or_else(|| lost("the game's key is not in Redis".into()))?;
        let opened = self.seal.open(&sealed, fingerprint).map_err(|error| lost(error.to_string()))?;
        // Where it cannot be read is told, and not what is there.
        let unread = |error: serde_json::Error| lost(format!("what was parked cannot be read: {:?}", error.classify()));
        serde_json::from_slice(&opened).map_err(unread)
    }
}

impl Parked {
    /// The sealed key parked under a fingerprint, if it is there.
    async fn sealed(&self, fingerprint: &str) -> Result<Option<Vec<u8>>, RedisError> {
        let mut connection = self.redis.connection().await?;
        self.redis.checked(connection.get(parked_key(fingerprint)).await).await
    }
}
