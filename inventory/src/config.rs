//! The worker's configuration.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, Parser};
use garage_events::game::Secret;
use sqlx::{MySqlPool, mysql::MySqlConnectOptions};

use crate::mysql;

/// The configuration of garage-inventory.
#[derive(Debug, Clone, Parser)]
#[command(name = "garage-inventory", about, version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: garage_worker::config::Worker,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub mysql: MySql,

    /// Maximum number of additional database connections for what matches need: loadouts, rewards and the outbox.
    /// Players' requests cannot use them. The outbox uses two; each concurrent request for loadouts and each reward
    /// uses one.
    #[arg(long, env = "GARAGE_MYSQL_MATCH_POOL_SIZE", default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..))]
    pub mysql_match_pool_size: u32,

    /// Maximum number of concurrent requests per endpoint.
    #[arg(long, env = "GARAGE_INVENTORY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,

    /// Maximum number of closed sessions whose players are paid concurrently.
    #[arg(long, env = "GARAGE_INVENTORY_REWARDS_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub rewards_concurrency: u16,
}

impl Config {
    /// Checks the configuration without connecting to anything.
    ///
    /// # Errors
    /// When the worker would refuse to start with this configuration.
    pub fn check(&self) -> anyhow::Result<()> {
        self.mysql.options()?;
        self.worker.check()
    }
}

/// How to reach the database. `garage init` has the same settings.
#[derive(Debug, Clone, Args)]
pub struct MySql {
    /// URL of the MySQL or MariaDB database, without a password: mysql://USER@HOST:PORT/DATABASE. Append
    /// `?ssl-mode=verify_ca&ssl-ca=FILE` to verify the server's TLS certificate.
    #[arg(
        long,
        env = "GARAGE_MYSQL_URL",
        default_value = "mysql://garage@127.0.0.1:3306/garage",
        value_parser = garage_worker::config::unchecked,
        hide_env_values = true
    )]
    pub mysql_url: Secret,

    /// A file with the database user's password.
    #[arg(long, env = "GARAGE_MYSQL_PASSWORD_FILE")]
    pub mysql_password_file: Option<PathBuf>,

    /// Maximum number of database connections. In inventory, each concurrent request of a player uses one. Matches have
    /// additional connections (`--mysql-match-pool-size`).
    #[arg(long, env = "GARAGE_MYSQL_POOL_SIZE", default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..))]
    pub mysql_pool_size: u32,

    /// How long a request waits for a free database connection, in milliseconds.
    #[arg(long, env = "GARAGE_MYSQL_ACQUIRE_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub mysql_acquire_timeout_ms: u64,
}

impl MySql {
    /// Creates the connection pool. The pool opens its first connection on first use.
    ///
    /// # Errors
    /// When the URL is not valid or contains a password, or the password file cannot be read.
    pub fn pool(&self) -> anyhow::Result<MySqlPool> {
        self.pool_of(self.mysql_pool_size)
    }

    /// Like [`pool`](Self::pool), with at most `size` connections.
    ///
    /// # Errors
    /// The same.
    pub fn pool_of(&self, size: u32) -> anyhow::Result<MySqlPool> {
        let options = self.options()?;
        tracing::info!(
            mysql.host = options.get_host(),
            mysql.port = options.get_port(),
            mysql.database = options.get_database(),
            "using mysql database"
        );
        let timeout = Duration::from_millis(self.mysql_acquire_timeout_ms);
        Ok(mysql::pool(options, size, timeout))
    }

    fn options(&self) -> anyhow::Result<MySqlConnectOptions> {
        let url = garage_worker::config::url(&self.mysql_url, "mysql")?;
        let authority = url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
        let authority = authority.context("the MySQL URL (--mysql-url) must be mysql://USER@HOST:PORT/DATABASE")?;
        let user = authority.rsplit_once('@').map(|(user, _)| user).unwrap_or_default();
        ensure!(!user.is_empty(), "the MySQL URL (--mysql-url) has no user");
        let options: MySqlConnectOptions = url.parse().context("the MySQL URL (--mysql-url) is not valid")?;
        ensure!(options.get_database().is_some(), "the MySQL URL (--mysql-url) has no database name");
        Ok(match &self.mysql_password_file {
            Some(file) => options.password(garage_worker::config::secret(file)?.expose()),
            None => options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Config {
        Config::try_parse_from([&["garage-inventory"], args].concat()).unwrap()
    }

    #[test]
    fn a_url_with_a_password_is_rejected_without_printing_the_password() {
        for url in ["mysql://garage:hunter2@127.0.0.1/garage", "mysql://garage:hunter2@x@127.0.0.1/garage"] {
            let config = config(&["--mysql-url", url]);
            let error = config.mysql.options().unwrap_err();
            assert!(format!("{error:#}").contains("--mysql-password-file"), "{error:#}");
            assert!(!format!("{error:?} {config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_url_needs_a_user_and_a_database() {
        for url in ["", "garage", "mysql://127.0.0.1/garage", "mysql://garage@127.0.0.1", "mysql://garage@127.0.0.1/"] {
            assert!(config(&["--mysql-url", url]).mysql.options().is_err(), "{url:?}");
        }
        let options = config(&["--mysql-url", "mysql://garage@db.example:3307/cars?ssl-mode=required"]).mysql.options();
        let options = options.unwrap();
        assert_eq!(
            (options.get_host(), options.get_port(), options.get_database()),
            ("db.example", 3_307, Some("cars"))
        );
    }

    #[test]
    fn a_pool_has_at_least_four_connections() {
        for flag in ["--mysql-pool-size", "--mysql-match-pool-size"] {
            assert!(Config::try_parse_from(["garage-inventory", flag, "3"]).is_err(), "{flag}");
        }
    }
}
