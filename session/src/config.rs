//! The configuration of the session worker.

use std::path::PathBuf;

use anyhow::Context;
use garage_events::session::Limits;
use garage_worker::{config, operator::Mint, redis::Redis, seal::SealKey};

use crate::token::Signer;

/// Session: carries out the steps of each session, from the match to its end.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-session", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// File with the key that seals private keys: 32 bytes in base64. The director uses the same key.
    #[arg(long, env = "GARAGE_SEAL_KEY_FILE")]
    pub seal_key_file: PathBuf,

    /// File with the Ed25519 private key that signs connection tokens, in PKCS #8 PEM.
    #[arg(long, env = "GARAGE_TOKEN_KEY_FILE")]
    pub token_key_file: PathBuf,

    /// File with the seed of the signing key for game servers' NATS users. The key must belong to the account of
    /// `--nats-credentials`.
    #[arg(long, env = "GARAGE_GAME_SIGNING_KEY", requires = "nats_credentials")]
    pub game_signing_key: PathBuf,

    /// Number of RSA keys that are generated in advance. Each match needs one. A core generates about 20 per second, at
    /// the lowest priority.
    #[arg(long, env = "GARAGE_KEY_POOL", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub key_pool: u16,

    /// Number of attempts to start a game server before a session fails. Attempts that find no room do not count.
    #[arg(long, env = "GARAGE_ATTEMPTS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub attempts: u32,

    /// Seconds that a game server has from its request to its ready report. Also how long a session waits for room.
    #[arg(long, env = "GARAGE_READY_S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub ready_s: u32,

    /// Seconds from the match to the session's hard end. The game server receives it with the request.
    #[arg(long, env = "GARAGE_SESSION_S", default_value_t = 900, value_parser = clap::value_parser!(u32).range(10..=7200))]
    pub session_s: u32,
}

/// The values read from files, and the Redis client.
pub(crate) struct Read {
    pub(crate) seal: SealKey,
    pub(crate) signer: Signer,
    pub(crate) mint: Mint,
    pub(crate) redis: Redis,
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
    pub(crate) fn read(&self) -> anyhow::Result<Read> {
        let own = self.worker.nats.nats_credentials.as_deref().context("--nats-credentials is missing")?;
        let cannot_sign = || {
            let (key, own) = (self.game_signing_key.display(), own.display());
            format!("{key} (--game-signing-key) cannot sign NATS users of the account of {own} (--nats-credentials)")
        };
        let mint =
            Mint::new(&config::secret(&self.game_signing_key)?, &config::secret(own)?).with_context(cannot_sign)?;
        Ok(Read {
            seal: SealKey::from_file(&self.seal_key_file)?,
            signer: Signer::from_pem(&config::secret(&self.token_key_file)?)?,
            mint,
            redis: Redis::new(&self.redis)?,
        })
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            attempts: self.attempts,
            ready: time::Duration::seconds(self.ready_s.into()),
            session: time::Duration::seconds(self.session_s.into()),
        }
    }
}
