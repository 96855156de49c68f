//! What the worker is told.

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

    /// Requests of one kind answered at a time.
    #[arg(long, env = "GARAGE_INVENTORY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,

    /// Sessions paid at a time.
    #[arg(long, env = "GARAGE_INVENTORY_REWARDS_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub rewards_concurrency: u16,
}

impl Config {
    /// Checks what can be checked before anything connects.
    ///
    /// # Errors
    /// What the worker would refuse to start for.
    pub fn check(&self) -> anyhow::Result<()> {
        self.mysql.options()?;
        self.worker.check()
    }
}

/// Where the database is. `garage init` takes the same.
#[derive(Debug, Clone, Args)]
pub struct MySql {
    /// URL of the MySQL or MariaDB database, without a password: mysql://USER@HOST:PORT/DATABASE. `?ssl-mode=verify_ca`
    /// and `&ssl-ca=FILE` choose how its TLS is checked.
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

    /// Connections to the database, at most. Two are the outbox's; a request or reward holds one.
    #[arg(long, env = "GARAGE_MYSQL_POOL_SIZE", default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..))]
    pub mysql_pool_size: u32,

    /// How long a request waits for a connection to be free, in milliseconds.
    #[arg(long, env = "GARAGE_MYSQL_ACQUIRE_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub mysql_acquire_timeout_ms: u64,
}

impl MySql {
    /// Makes the pool. It connects when it is first used.
    ///
    /// # Errors
    /// When the URL is none or holds a password, or the password's file cannot be read.
    pub fn pool(&self) -> anyhow::Result<MySqlPool> {
        let options = self.options()?;
        tracing::info!(
            mysql.host = options.get_host(),
            mysql.port = options.get_port(),
            mysql.database = options.get_database(),
            "database chosen"
        );
        let timeout = Duration::from_millis(self.mysql_acquire_timeout_ms);
        Ok(mysql::pool(options, self.mysql_pool_size, timeout))
    }

    fn options(&self) -> anyhow::Result<MySqlConnectOptions> {
        let url = garage_worker::config::url(&self.mysql_url, "mysql")?;
        let authority = url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
        let authority = authority.context("the MySQL URL (--mysql-url) is not like mysql://USER@HOST:PORT/DATABASE")?;
        let user = authority.rsplit_once('@').map(|(user, _)| user).unwrap_or_default();
        ensure!(!user.is_empty(), "the MySQL URL (--mysql-url) names no user");
        let options: MySqlConnectOptions = url.parse().context("the MySQL URL (--mysql-url) cannot be read")?;
        ensure!(options.get_database().is_some(), "the MySQL URL (--mysql-url) names no database");
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
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in ["mysql://garage:hunter2@127.0.0.1/garage", "mysql://garage:hunter2@x@127.0.0.1/garage"] {
            let config = config(&["--mysql-url", url]);
            let error = config.mysql.options().unwrap_err();
            assert!(format!("{error:#}").contains("--mysql-password-file"), "{error:#}");
            assert!(!format!("{error:?} {config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_url_must_name_user_and_database() {
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
    fn a_pool_has_room_for_the_outbox_and_requests() {
        assert!(Config::try_parse_from(["garage-inventory", "--mysql-pool-size", "3"]).is_err());
    }
}
