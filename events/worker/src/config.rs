//! What every worker is told.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use garage_events::game::Secret;

/// Where NATS is, and as whom to speak to it.
#[derive(Debug, Clone, Args)]
pub struct Nats {
    /// URLs of the NATS servers, separated by commas.
    #[arg(long, env = "GARAGE_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,

    /// The NATS user.
    #[arg(long, env = "GARAGE_NATS_USER", requires = "nats_password_file")]
    pub nats_user: Option<String>,

    /// A file with the NATS user's password.
    #[arg(long, env = "GARAGE_NATS_PASSWORD_FILE")]
    pub nats_password_file: Option<PathBuf>,
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

impl Nats {
    /// Connects, and connects again whenever the connection is lost.
    ///
    /// # Errors
    /// When no server is there yet, or refuses the user, or the configuration is wrong.
    pub async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        let mut options = async_nats::ConnectOptions::new().name(format!("garage-{name}"));
        if let (Some(user), Some(file)) = (&self.nats_user, &self.nats_password_file) {
            options = options.user_and_password(user.clone(), secret(file)?.expose().to_owned());
        }
        options
            .event_callback(|event| async move {
                match event {
                    async_nats::Event::Connected => tracing::info!("connected to nats"),
                    async_nats::Event::Disconnected => tracing::warn!("connection to nats lost; reconnecting"),
                    event => tracing::debug!(%event, "nats"),
                }
            })
            .connect(self.nats_url.split(',').collect::<Vec<_>>())
            .await
            .with_context(|| format!("cannot connect to nats at {}", self.nats_url))
    }
}
