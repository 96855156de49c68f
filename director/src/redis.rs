//! Redis: the games' sealed keys, which session parks there.

use std::time::Duration;

use garage_events::projection::parked_key;
use garage_worker::{Health, Shutdown};
use redis::{AsyncCommands, RedisError, aio::ConnectionManager};

/// How often /readyz looks.
const LOOK: Duration = Duration::from_secs(1);

/// Redis, over a connection that clones share.
#[derive(Clone)]
pub struct Redis(ConnectionManager);

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Redis {
    /// What the director asks of Redis. Without it a director can start nothing, but it can still remove what is over.
    pub fn new(connection: ConnectionManager) -> Self {
        Self(connection)
    }

    /// The sealed key parked under a fingerprint, if it is there.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn parked(&self, fingerprint: &str) -> Result<Option<Vec<u8>>, RedisError> {
        self.0.clone().get(parked_key(fingerprint)).await
    }

    /// Reports in /readyz whether Redis is there, until `shutdown`.
    pub(crate) async fn watch(self, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
        loop {
            match redis::cmd("PING").query_async::<String>(&mut self.0.clone()).await {
                Ok(_) => health.up("redis"),
                Err(error) => health.down("redis", error.to_string()),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
