//! The configuration that all workers share.

use std::{convert::Infallible, fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use garage_events::game::Secret;
use redis::{Client, IntoConnectionInfo};

/// Interval between pings on the NATS connection. The client reconnects after two missing answers.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// The address of NATS and the credentials for it.
#[derive(Debug, Clone, Args)]
pub struct Nats {
    /// URLs of the NATS servers, separated by commas.
    #[arg(
        long,
        env = "GARAGE_NATS_URL",
        default_value = "nats://127.0.0.1:4222",
        value_parser = unchecked,
        hide_env_values = true
    )]
    pub nats_url: Secret,

    /// File with the credentials of a NATS user (JWT and seed).
    #[arg(long, env = "GARAGE_NATS_CREDENTIALS")]
    pub nats_credentials: Option<PathBuf>,
}

/// The address of Redis and the password for it.
#[derive(Debug, Clone, Args)]
pub struct Redis {
    /// URL of the Redis server that holds the projections and the game servers' encrypted secrets. redis:// or unix://,
    /// without a password.
    #[arg(
        long,
        env = "GARAGE_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        value_parser = unchecked,
        hide_env_values = true
    )]
    pub redis_url: Secret,

    /// File with the Redis password.
    #[arg(long, env = "GARAGE_REDIS_PASSWORD_FILE")]
    pub redis_password_file: Option<PathBuf>,
}

/// Settings that every worker has.
#[derive(Debug, Clone, Args)]
pub struct Worker {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub nats: Nats,

    /// Address that serves /livez, /readyz and /metrics. Port 0 selects a free port and logs it.
    #[arg(long, env = "GARAGE_ADMIN", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,

    /// Host names that requests to the admin port may use, separated by commas. Requests with another host name get
    /// 421. IP addresses and localhost are always allowed.
    #[arg(long, env = "GARAGE_ADMIN_HOSTS", value_name = "NAME", value_delimiter = ',', value_parser = host_name)]
    pub admin_hosts: Vec<String>,
}

/// Reads a host name without a port.
fn host_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name { Ok(text.to_owned()) } else { Err("use a host name without a port, such as gateway.example".into()) }
}

impl Worker {
    /// Validates the configuration without connecting to anything.
    ///
    /// # Errors
    /// When a URL is invalid, or the credentials cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        self.nats.urls()?;
        self.nats.options("check").map(drop)
    }
}

/// Reads a secret from a file, without trailing line breaks.
///
/// # Errors
/// When the file cannot be read or is empty. The error names the file.
pub fn secret(path: &std::path::Path) -> anyhow::Result<Secret> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the secret in {}", path.display()))?;
    let text = text.trim_end_matches(['\n', '\r']);
    anyhow::ensure!(!text.is_empty(), "the secret in {} is empty", path.display());
    Ok(Secret::new(text))
}

/// A clap value parser that accepts any text and never fails. clap repeats an invalid value in its error message, and a
/// wrong URL may contain a password. So [`url`] and [`nats_urls`] validate the URL later, and until then the `Secret`
/// hides it from debug output.
///
/// # Errors
/// Never.
pub fn unchecked(url: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(url))
}

/// The URL from the flag `--<name>-url`, checked for passwords.
///
/// # Errors
/// When the URL contains a password. The error does not repeat the URL.
pub fn url<'a>(url: &'a Secret, name: &str) -> anyhow::Result<&'a str> {
    let text = url.expose();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    // A password may contain any character, even `/`, which normally ends the authority part of a URL.
    let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
    ensure!(
        !user.contains(':') && !rest.contains("pass="),
        "the URL of --{name}-url contains a password, which other processes may see; write the password to a file and \
         pass the file with --{name}-password-file"
    );
    Ok(text)
}

/// The comma-separated NATS URLs from the flag `--<name>-url`, validated.
///
/// # Errors
/// When a URL is invalid, or contains a user or a token. In the second case the error does not repeat the URL.
pub fn nats_urls<'a>(urls: &'a Secret, name: &str) -> anyhow::Result<&'a str> {
    let text = urls.expose();
    ensure!(
        !text.contains('@'),
        "the URL of --{name}-url contains a user or a secret, which other processes may see; pass a file with the \
         user's credentials with --nats-credentials"
    );
    for url in text.split(',') {
        let invalid = || format!("{url:?} in --{name}-url is not a URL like nats://HOST:PORT");
        ensure!(!url.is_empty(), invalid());
        url.parse::<async_nats::ServerAddr>().with_context(invalid)?;
    }
    Ok(text)
}

impl Redis {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let info = url(&self.redis_url, "redis")?.into_connection_info();
        let mut info = info.context("the URL of --redis-url is invalid; use a URL like redis://HOST:PORT")?;
        if let Some(file) = &self.redis_password_file {
            let settings = info.redis_settings().clone().set_password(secret(file)?.expose());
            info = info.set_redis_settings(settings);
        }
        Ok(Client::open(info)?)
    }
}

impl Nats {
    /// The servers' URLs, separated by commas.
    ///
    /// # Errors
    /// See [`nats_urls`].
    pub fn urls(&self) -> anyhow::Result<&str> {
        nats_urls(&self.nats_url, "nats")
    }

    /// Connects to NATS. Once connected, the client reconnects by itself whenever the connection is lost.
    ///
    /// # Errors
    /// When no server is reachable, the server rejects the user, or the configuration is invalid.
    pub async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        let urls = self.urls()?;
        let connected = self.options(name)?.connect(urls.split(',').collect::<Vec<_>>()).await;
        connected.with_context(|| format!("cannot connect to NATS at {urls}"))
    }

    pub(crate) fn options(&self, name: &str) -> anyhow::Result<async_nats::ConnectOptions> {
        let mut options = async_nats::ConnectOptions::new().name(format!("garage-{name}")).ping_interval(PING_INTERVAL);
        if let Some(file) = &self.nats_credentials {
            let invalid = || format!("{} (--nats-credentials) contains no credentials of a NATS user", file.display());
            // `secret` removes the last line break, but the credentials parser needs it.
            options = options.credentials(&format!("{}\n", secret(file)?.expose())).with_context(invalid)?;
        }
        Ok(options.event_callback(|event| async move {
            match event {
                async_nats::Event::Connected => tracing::info!("connected to NATS"),
                async_nats::Event::Disconnected => tracing::warn!("connection to NATS lost; reconnecting"),
                event => tracing::debug!(%event, "nats"),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nats(url: &str) -> Nats {
        Nats { nats_url: Secret::new(url), nats_credentials: None }
    }

    #[test]
    fn a_url_with_a_secret_is_rejected_and_the_error_does_not_repeat_it() {
        for text in [
            "redis://:hunter2@127.0.0.1:6379/0",
            "redis://ann:hunter2/@127.0.0.1",
            "redis://:hun,hunter2@127.0.0.1",
            "unix:///run/redis.sock?pass=hunter2",
            "ann:hunter2@127.0.0.1",
        ] {
            let secret = Secret::new(text);
            let error = format!("{:#} {secret:?}", url(&secret, "redis").unwrap_err());
            assert!(error.contains("--redis-password-file") && !error.contains("hunter2"), "{text}: {error}");
        }
        for text in ["nats://ann:hunter2@127.0.0.1", "nats://one,nats://ann:hunter2@two:4222", "nats://hunter2@one"] {
            let error = format!("{:#} {:?}", nats(text).urls().unwrap_err(), nats(text));
            assert!(error.contains("--nats-credentials") && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_url_without_a_secret_is_accepted_if_it_is_valid() {
        for text in ["nats://127.0.0.1:4222", "nats://a:1,tls://b:2", "127.0.0.1:4222"] {
            assert_eq!(nats(text).urls().unwrap(), text);
        }
        let redis = Secret::new("redis://ann@[::1]:6379/2");
        assert_eq!(url(&redis, "redis").unwrap(), redis.expose());
        for text in ["", "nats://one:notaport", "nats://one,,two"] {
            assert!(nats(text).urls().is_err(), "{text:?}");
        }
    }
}
