//! The connection to Redis.

use std::{io, sync::Arc, time::Duration};

use garage_events::crash::{self, Point};
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use crate::{Health, Shutdown, config};

/// Time-out for connecting and for each answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Interval between the pings for /readyz.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that opens on first use and reopens after any error. A silently dropped connection is only visible as a
/// time-out, and after a rejected password the file may hold a new one. Clones share the connection.
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
    /// Checks the configuration. It does not connect yet.
    ///
    /// # Errors
    /// When the URL is invalid, or the password file cannot be read.
    pub fn new(config: &config::Redis) -> anyhow::Result<Self> {
        config.client()?;
        Ok(Self(Arc::new(Inner { config: config.clone(), connection: Mutex::default() })))
    }

    /// The connection for one command. Pass the result of the command to [`checked`](Self::checked).
    ///
    /// # Errors
    /// When Redis is unreachable or rejects the password.
    pub async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        // Without this limit, callers would wait one after the other while Redis does not answer.
        let timed_out = || RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "Redis does not answer"));
        timeout(2 * TIMEOUT, self.shared()).await.unwrap_or_else(|_| Err(timed_out()))
    }

    async fn shared(&self) -> RedisResult<MultiplexedConnection> {
        // While one caller connects, all others wait for this lock.
        let mut connection = self.0.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        // This reads the password file again, as the password may have changed.
        let client: Client = self.0.config.client().map_err(|error| {
            RedisError::from((redis::ErrorKind::InvalidClientConfig, "configuration", format!("{error:#}")))
        })?;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
        let made = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Returns the result of a command unchanged. After an error, the next command opens a new connection.
    ///
    /// # Errors
    /// The error of the command.
    pub async fn checked<T>(&self, result: RedisResult<T>) -> RedisResult<T> {
        if result.is_err() {
            self.0.connection.lock().await.take();
        }
        result
    }

    /// Runs one command or transaction that changes data, with a crash point for tests.
    ///
    /// # Errors
    /// The error of the command, or when Redis is unreachable or rejects the password.
    pub async fn change<T>(
        &self,
        point: Point,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let mut connection = self.connection().await?;
        self.checked(crash::effect(point, command(&mut connection)).await).await
    }

    /// Reports in /readyz whether Redis is available, until `shutdown`. Spawn it as a long-running task.
    ///
    /// # Errors
    /// Never.
    pub async fn watch(self, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
        health.down("redis", "not checked yet");
        loop {
            match self.ping().await {
                Ok(()) => health.up("redis"),
                Err(error) => health.down("redis", error.to_string()),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(PING_INTERVAL) => {}
            }
        }
    }

    async fn ping(&self) -> RedisResult<()> {
        let mut connection = self.connection().await?;
        self.checked(redis::cmd("PING").exec_async(&mut connection).await).await
    }
}
