//! The connection to Redis.

use std::{sync::Arc, time::Duration};

use garage_events::crash::{self, Point};
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::{Health, Shutdown, config};

/// How long Redis has for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// How often /readyz looks.
const LOOK: Duration = Duration::from_secs(1);

/// A connection that is opened when it is first needed, and anew after any error: a cut that nobody announced looks
/// like an answer that does not come, and a refused password may have been changed. Clones share it.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    config: config::Redis,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Redis {
    /// What commands go over. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or the password's file is wrong.
    pub fn new(config: &config::Redis) -> anyhow::Result<Self> {
        config.client()?;
        Ok(Self(Arc::new(Inner { config: config.clone(), connection: Mutex::default() })))
    }

    /// The connection, for one command, whose result goes through [`checked`](Self::checked).
    ///
    /// # Errors
    /// When Redis is not there, or refuses us.
    pub async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        // Others wait here for the one who connects.
        let mut connection = self.0.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        // The password's file is read again: it may have been changed.
        let client: Client = self.0.config.client().map_err(|error| {
            RedisError::from((redis::ErrorKind::InvalidClientConfig, "configuration", format!("{error:#}")))
        })?;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(ANSWER)).set_response_timeout(Some(ANSWER));
        let made = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Takes a command's result, and sees to it that after an error the next command has a connection of its own.
    ///
    /// # Errors
    /// That of the command.
    pub async fn checked<T>(&self, result: RedisResult<T>) -> RedisResult<T> {
        if result.is_err() {
            self.0.connection.lock().await.take();
        }
        result
    }

    /// Changes what Redis holds, by one command or one transaction.
    ///
    /// # Errors
    /// That of the command, or when Redis is not there, or refuses us.
    pub async fn change<T>(
        &self,
        point: Point,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let mut connection = self.connection().await?;
        self.checked(crash::effect(point, command(&mut connection)).await).await
    }

    /// Reports in /readyz whether Redis is there, until `shutdown`. To be spawned as a long task.
    ///
    /// # Errors
    /// None.
    pub async fn watch(self, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
        health.down("redis", "not asked yet");
        loop {
            match self.ping().await {
                Ok(()) => health.up("redis"),
                Err(error) => health.down("redis", error.to_string()),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn ping(&self) -> RedisResult<()> {
        let mut connection = self.connection().await?;
        self.checked(redis::cmd("PING").exec_async(&mut connection).await).await
    }
}
