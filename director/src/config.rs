//! What the director is told.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use garage_events::game::Secret;
use garage_worker::config;

/// Director: owns game server instances; starts, finds again, and removes them.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-director", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// A file with the key that private keys are sealed with: 32 bytes in base64. Session has the same.
    #[arg(long, env = "GARAGE_SEAL_KEY_FILE")]
    pub seal_key_file: PathBuf,

    /// A file with another such key, accepted besides while keys are rotated: the next one, or the former one.
    #[arg(long, env = "GARAGE_SEAL_KEY_ALSO_FILE")]
    pub seal_key_also_file: Option<PathBuf>,

    /// A file with the Ed25519 public key that game servers verify connection tokens with, SubjectPublicKeyInfo PEM.
    // Not GARAGE_TOKEN_KEY_FILE, which is session's private half: one environment file may serve both.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_FILE")]
    pub token_key_file: PathBuf,

    /// A file with another such key, which game servers accept besides while keys are rotated.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE")]
    pub token_key_also_file: Option<PathBuf>,

    /// URLs of the NATS servers that game servers report to, separated by commas; by default those of the director.
    #[arg(long, env = "GARAGE_GAME_NATS_URL", value_parser = config::unchecked, hide_env_values = true)]
    pub game_nats_url: Option<Secret>,

    /// Seconds from the match to the session's hard end, which game servers are told. As session's.
    #[arg(long, env = "GARAGE_SESSION_S", default_value_t = 900, value_parser = clap::value_parser!(u32).range(10..=7200))]
    pub session_s: u32,

    /// Seconds until an instance that no open session asks for counts as an orphan and is removed.
    #[arg(long, env = "GARAGE_ORPHAN_GRACE_S", default_value_t = 60, value_name = "SECONDS")]
    pub orphan_grace: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub process: Process,
}

/// Game servers as processes of this machine.
#[derive(Debug, Clone, clap::Args)]
pub struct Process {
    /// The game server's program; by default `garage-gameserver` beside the director's own.
    #[arg(long, env = "GARAGE_GAMESERVER", value_name = "PATH")]
    pub gameserver: Option<PathBuf>,

    /// The folder that instances live in; made when it is not there. It belongs to the directors of one log.
    #[arg(long, env = "GARAGE_INSTANCES", value_name = "DIR")]
    pub instances: PathBuf,

    /// How clients reach this machine.
    #[arg(long, env = "GARAGE_PUBLIC_IP", default_value = "127.0.0.1", value_name = "IP")]
    pub public_ip: IpAddr,

    /// Ports that game servers listen on, both ends included; by default whichever are free.
    #[arg(long, env = "GARAGE_GAME_PORTS", value_name = "LO-HI")]
    pub game_ports: Option<Ports>,

    /// This machine's name in the log; by default its host name.
    #[arg(long, env = "GARAGE_NODE", value_name = "NAME")]
    pub node: Option<String>,

    /// A further argument for every game server; may be given several times, or hold several, separated by spaces.
    #[arg(long, env = "GARAGE_GAME_ARG", value_name = "ARG", value_delimiter = ' ', allow_hyphen_values = true)]
    pub game_arg: Vec<String>,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    low: u16,
    high: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.low, self.high)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match text.split_once('-').and_then(|(low, high)| Some((port(low)?, port(high)?))) {
            // Each game takes two.
            Some((low, high)) if low < high => Ok(Self { low, high }),
            _ => Err("wanted is LO-HI with 1 <= LO < HI <= 65535".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const NEEDED: [&str; 7] = ["garage-director", "--seal-key-file", "s", "--token-key-file", "t", "--instances", "i"];

    #[test]
    fn the_needed_flags_are_enough() {
        let config = Config::parse_from(NEEDED);
        assert_eq!(config.orphan_grace, 60);
        assert_eq!(config.process.public_ip.to_string(), "127.0.0.1");
        assert!(config.process.game_arg.is_empty());
    }

    #[test]
    fn further_arguments_may_look_like_flags() {
        let config =
            Config::parse_from(NEEDED.into_iter().chain(["--game-arg", "--distance-m 50", "--game-arg", "-v"]));
        assert_eq!(config.process.game_arg, ["--distance-m", "50", "-v"]);
    }

    #[test]
    fn ports_are_a_range() {
        assert_eq!("7000-7100".parse::<Ports>().unwrap().to_string(), "7000-7100");
        for bad in ["", "7000", "7100-7000", "0-5", "1-70000", "7000-7000"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?}");
        }
    }
}
