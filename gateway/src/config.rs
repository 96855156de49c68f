//! The gateway's configuration.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser};
use garage_events::queue::Queues;
use garage_worker::{
    config::{self, Worker},
    redis::Redis,
};
use tokio_rustls::TlsAcceptor;

use crate::token::Keys;

/// Serves game clients: REST and WebSocket.
#[derive(Debug, Clone, Parser)]
#[command(name = "garage-gateway", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: Worker,

    // Only /ops reads Redis. Players are served without it.
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// Address for game clients. Port 0 selects a free port and logs it.
    #[arg(long, env = "GARAGE_GATEWAY_LISTEN", default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    pub listen: SocketAddr,

    /// File that describes the queues. The matchmaker reads the same file.
    #[arg(long, env = "GARAGE_QUEUES", value_name = "FILE")]
    pub queues: PathBuf,

    /// File with the key that signs players' tokens (JWT, HS256): a text of at least 32 bytes.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_FILE", value_name = "FILE")]
    pub jwt_key_file: PathBuf,

    /// File with a second such key, which is accepted too during a key rotation: the next key, or the previous one.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", value_name = "FILE")]
    pub jwt_key_also_file: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub tls: Tls,

    /// Seconds that a queued player has to reconnect after their socket drops. Then their ticket is cancelled.
    #[arg(long, env = "GARAGE_GATEWAY_GRACE_S", default_value_t = 15, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=600))]
    pub grace: u32,

    /// Seconds before a player can queue again who did not join their last two matches, although each had results. The
    /// time doubles with each further match that they do not join. 0 turns it off.
    #[arg(long, env = "GARAGE_ABSENCE_WAIT_S", default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub absence_wait: u32,

    /// The longest such time, in seconds.
    #[arg(long, env = "GARAGE_ABSENCE_WAIT_MAX_S", default_value_t = 3_600, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub absence_wait_max: u32,

    /// Maximum number of open connections, including sockets. Further connections wait to be accepted.
    // A socket without TLS takes 8 KiB of memory (measured with 4,000 sockets). 20,000 sockets take 160 MiB, and 20,000
    // file descriptors.
    #[arg(long, env = "GARAGE_GATEWAY_MAX_CONNECTIONS", default_value_t = 20_000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
}

impl Config {
    /// Checks the settings and reads the files, without connecting to anything.
    ///
    /// # Errors
    /// Any error in the configuration that would stop the worker at its start.
    pub fn check(&self) -> anyhow::Result<()> {
        self.read()?;
        self.worker.check()
    }

    /// Reads the files that the settings name, and makes the Redis client without connecting it.
    pub(crate) fn read(&self) -> anyhow::Result<(Keys, Queues, Option<TlsAcceptor>, Redis)> {
        let keys = Keys::load(&self.jwt_key_file, self.jwt_key_also_file.as_deref())?;
        Ok((keys, Queues::load(&self.queues)?, self.tls.acceptor()?, Redis::new(&self.redis)?))
    }
}

/// The certificate for game clients. Without one, the gateway serves plain HTTP, for local use or behind a proxy that
/// terminates TLS.
#[derive(Debug, Clone, Default, Args)]
pub struct Tls {
    /// File with the certificate for game clients and its chain, in PEM. Without one, the gateway serves plain HTTP.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// File with the certificate's private key, in PEM.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_a_key_its_certificate() {
        let args = ["garage-gateway", "--queues", "q", "--jwt-key-file", "k"];
        let parse = |more: &[&str]| Config::try_parse_from(args.iter().chain(more));
        assert!(parse(&[]).unwrap().tls.tls_cert.is_none());
        assert!(parse(&["--tls-cert", "c"]).is_err());
        assert!(parse(&["--tls-key", "k"]).is_err());
        assert!(parse(&["--tls-key", "k", "--tls-cert", "c"]).is_ok());
        assert!(parse(&["--max-connections", "0"]).is_err());
    }
}
