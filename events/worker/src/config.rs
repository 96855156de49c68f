//! What every worker is told.

use std::{convert::Infallible, fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use garage_events::game::Secret;
use redis::{Client, IntoConnectionInfo};

/// How often a connection to NATS is tried for its life; two answers that are missing, and another is made.
const PING: Duration = Duration::from_secs(3);

/// Where NATS is, and as whom to speak to it.
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

    /// A file with the credentials of a NATS user: its JWT and its seed.
    #[arg(long, env = "GARAGE_NATS_CREDENTIALS")]
    pub nats_credentials: Option<PathBuf>,
}

/// Where Redis is.
#[derive(Debug, Clone, Args)]
pub struct Redis {
    /// Redis, which holds the projections and the parked keys; redis:// or unix://, without a password.
    #[arg(
        long,
        env = "GARAGE_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        value_parser = unchecked,
        hide_env_values = true
    )]
    pub redis_url: Secret,

    /// A file with the Redis password.
    #[arg(long, env = "GARAGE_REDIS_PASSWORD_FILE")]
    pub redis_password_file: Option<PathBuf>,
}

/// What every worker is told.
#[derive(Debug, Clone, Args)]
pub struct Worker {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub nats: Nats,

    /// Where /livez, /readyz and /metrics are served; port 0 takes a free one and logs it.
    #[arg(long, env = "GARAGE_ADMIN", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
}

impl Worker {
    /// Checks what can be checked before anything connects.
    ///
    /// # Errors
    /// When a URL is wrong, or the credentials cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        self.nats.urls()?;
        self.nats.options("check").map(drop)
    }
}

/// Reads a secret from a file, without the line's end.
///
/// # Errors
/// When the file cannot be read or is empty; names it.
pub fn secret(path: &std::path::Path) -> anyhow::Result<Secret> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the secret in {}", path.display()))?;
    let text = text.trim_end_matches(['\n', '\r']);
    anyhow::ensure!(!text.is_empty(), "the secret in {} is empty", path.display());
    Ok(Secret::new(text))
}

/// Takes a URL as it is. Somebody may put a password in, and it must not come out again with the refusal: that is
/// [`url`]'s, and until then its Debug shows nothing, nor does the help its variable.
///
/// # Errors
/// None.
pub fn unchecked(url: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(url))
}

/// The text of a URL, which the flag `--<name>-url` holds.
///
/// # Errors
/// When it holds a password; the error does not repeat it.
pub fn url<'a>(url: &'a Secret, name: &str) -> anyhow::Result<&'a str> {
    let text = url.expose();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    // A password may contain anything, also what ends an authority.
    let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
    ensure!(
        !user.contains(':') && !rest.contains("pass="),
        "the URL of --{name}-url holds a password, which other processes may see; put it into a file and name that with \
         --{name}-password-file"
    );
    Ok(text)
}

/// The text of the URLs of NATS servers, separated by commas, which the flag `--<name>-url` holds.
///
/// # Errors
/// When one is none, or names a user or a token; the error does not repeat it.
pub fn nats_urls<'a>(urls: &'a Secret, name: &str) -> anyhow::Result<&'a str> {
    let text = urls.expose();
    ensure!(
        !text.contains('@'),
        "the URL of --{name}-url names a user or holds a secret, which other processes may see; name a \
         file with the user's credentials with --nats-credentials"
    );
    for url in text.split(',') {
        let unlike = || format!("{url:?} of --{name}-url is not like nats://HOST:PORT");
        ensure!(!url.is_empty(), unlike());
        url.parse::<async_nats::ServerAddr>().with_context(unlike)?;
    }
    Ok(text)
}

impl Redis {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let info = url(&self.redis_url, "redis")?.into_connection_info();
        let mut info = info.context("the URL of --redis-url cannot be read; it is like redis://HOST:PORT")?;
        if let Some(file) = &self.redis_password_file {
            let settings = info.redis_settings().clone().set_password(secret(file)?.expose());
            info = info.set_redis_settings(settings);
        }
        Ok(Client::open(info)?)
    }
}

impl Nats {
    /// The servers' URLs.
    ///
    /// # Errors
    /// See [`nats_urls`].
    pub fn urls(&self) -> anyhow::Result<&str> {
        nats_urls(&self.nats_url, "nats")
    }

    /// Connects, and connects again whenever the connection is lost.
    ///
    /// # Errors
    /// When no server is there yet, or refuses the user, or the configuration is wrong.
    pub async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        let urls = self.urls()?;
        let connected = self.options(name)?.connect(urls.split(',').collect::<Vec<_>>()).await;
        connected.with_context(|| format!("cannot connect to nats at {urls}"))
    }

    pub(crate) fn options(&self, name: &str) -> anyhow::Result<async_nats::ConnectOptions> {
        let mut options = async_nats::ConnectOptions::new().name(format!("garage-{name}")).ping_interval(PING);
        if let Some(file) = &self.nats_credentials {
            let unlike = || format!("{} (--nats-credentials) holds no credentials of a NATS user", file.display());
            // The last line counts only with its end.
            options = options.credentials(&format!("{}\n", secret(file)?.expose())).with_context(unlike)?;
        }
        Ok(options.event_callback(|event| async move {
            match event {
                async_nats::Event::Connected => tracing::info!("connected to nats"),
                async_nats::Event::Disconnected => tracing::warn!("connection to nats lost; reconnecting"),
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
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
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
    fn urls_without_a_secret_are_taken() {
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
