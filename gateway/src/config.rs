//! What the gateway is told.

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

    // Of Redis only /ops is made; players are served without it.
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// Where game clients are served; port 0 takes a free one and logs it.
    #[arg(long, env = "GARAGE_GATEWAY_LISTEN", default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    pub listen: SocketAddr,

    /// The queues, a TOML file that the matchmaker reads too.
    #[arg(long, env = "GARAGE_QUEUES", value_name = "FILE")]
    pub queues: PathBuf,

    /// A file with the key that players' tokens (JWT, HS256) are signed with: a text of at least 32 bytes.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_FILE", value_name = "FILE")]
    pub jwt_key_file: PathBuf,

    /// A file with another such key, accepted besides while keys are rotated: the next one, or the former one.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", value_name = "FILE")]
    pub jwt_key_also_file: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub tls: Tls,

    /// Seconds that a player has to open another socket, when his last one ended while he waited in a queue; then his
    /// ticket is cancelled.
    #[arg(long, env = "GARAGE_GATEWAY_GRACE_S", default_value_t = 15, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=600))]
    pub grace: u32,

    /// Connections at a time, sockets among them; a further one waits to be accepted.
    // A plain socket takes 8 KiB of the process (measured with 4,000): 20,000 are 160 MiB, and as many file
    // descriptors.
    #[arg(long, env = "GARAGE_GATEWAY_MAX_CONNECTIONS", default_value_t = 20_000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
}

impl Config {
    /// Checks what can be checked before anything connects.
    ///
    /// # Errors
    /// What the worker would refuse to start for.
    pub fn check(&self) -> anyhow::Result<()> {
        self.read()?;
        self.worker.check()
    }

    /// Reads the files, and says where Redis is.
    pub(crate) fn read(&self) -> anyhow::Result<(Keys, Queues, Option<TlsAcceptor>, Redis)> {
        let keys = Keys::load(&self.jwt_key_file, self.jwt_key_also_file.as_deref())?;
        Ok((keys, Queues::load(&self.queues)?, self.tls.acceptor()?, Redis::new(&self.redis)?))
    }
}

/// The certificate shown to game clients. Without one the gateway speaks plain HTTP, for local use or behind a proxy
/// that ends TLS.
#[derive(Debug, Clone, Default, Args)]
pub struct Tls {
    /// The certificate and its chain, PEM.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, PEM.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_comes_with_its_key() {
        let args = ["garage-gateway", "--queues", "q", "--jwt-key-file", "k"];
        let parse = |more: &[&str]| Config::try_parse_from(args.iter().chain(more));
        assert!(parse(&[]).unwrap().tls.tls_cert.is_none());
        assert!(parse(&["--tls-cert", "c"]).is_err());
        assert!(parse(&["--tls-key", "k"]).is_err());
        assert!(parse(&["--tls-key", "k", "--tls-cert", "c"]).is_ok());
        assert!(parse(&["--max-connections", "0"]).is_err());
    }
}
