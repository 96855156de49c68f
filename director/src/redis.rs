//! Redis: the games' sealed keys, which session parks there.

use std::{path::Path, time::Duration};

use anyhow::Context;
use garage_events::projection::parked_key;
use garage_worker::{Health, Shutdown, config::secret};
use redis::{
    AsyncCommands, Client, IntoConnectionInfo, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

/// How long a command may take.
const ANSWER: Duration = Duration::from_secs(3);

/// How often /readyz looks.
const LOOK: Duration = Duration::from_secs(1);

/// A connection that finds its way back by itself. Clones share it.
#[derive(Clone)]
pub struct Redis(ConnectionManager);

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Redis {
    /// Makes a connection that is opened when it is first used: without Redis a director can start nothing, but it can
    /// still remove what is over.
    ///
    /// # Errors
    /// When the URL or the password's file is wrong.
    pub fn open(url: &str, password_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut info = url.into_connection_info().with_context(|| format!("{url} is no Redis URL"))?;
        if let Some(file) = password_file {
            let settings = info.redis_settings().clone().set_password(secret(file)?.expose());
            info = info.set_redis_settings(settings);
        }
        let config =
            ConnectionManagerConfig::new().set_connection_timeout(Some(ANSWER)).set_response_timeout(Some(ANSWER));
        Ok(Self(ConnectionManager::new_lazy_with_config(Client::open(info)?, config)?))
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
