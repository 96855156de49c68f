//! Configuration: flags and environment variables, which are the same for all games, and the configuration file of this
//! game.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use garage_events::{game::Config, id::PlayerId, queue::MAX_PLAYERS};

use crate::domain::race;

/// Maximum size of the configuration file, in bytes. The loadouts of 200 players take 830 KiB at most.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Serves one game: reads its configuration, reports ready, admits the players, runs the race, reports the results.
///
/// Exit codes: 0: the results are reported; 1: stopped by a signal, or the game could not start; 2: the configuration
/// is not valid; 3: the session's hard end came first.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-gameserver", version)]
pub struct Cli {
    /// The game's configuration: a JSON file that only its owner can read.
    #[arg(long, env = "GARAGE_GAMESERVER_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub options: Options,
}

/// Settings that are the same for all games on a node.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Range of ports to listen on, both ends included. The server takes a random TCP port and a random UDP port from
    /// it. With 0, the operating system chooses the ports.
    #[arg(long, env = "GARAGE_GAMESERVER_PORTS", default_value = "0", value_name = "LO-HI")]
    pub ports: Ports,
    /// The address to listen on.
    #[arg(long, env = "GARAGE_GAMESERVER_BIND", default_value = "0.0.0.0", value_name = "IP")]
    pub bind: IpAddr,
    /// How long the start waits for players, in milliseconds, from the acknowledgement of the ready report. Then the
    /// race starts without the missing players, who may still join.
    // Players learn the address about a second after the report. 20 s is enough for a client that starts slowly, and
    // the other players do not wait too long.
    #[arg(long = "join-timeout-ms", env = "GARAGE_GAMESERVER_JOIN_TIMEOUT_MS", default_value = "20000", value_name = "MS", value_parser = milliseconds)]
    pub join_timeout: Duration,
    /// Maximum duration of the race, in milliseconds. Players that have not crossed the line by then do not finish.
    #[arg(long = "race-timeout-ms", env = "GARAGE_GAMESERVER_RACE_TIMEOUT_MS", default_value = "60000", value_name = "MS", value_parser = milliseconds)]
    pub race_timeout: Duration,
    /// Length of the race, in metres. The default is a quarter mile.
    #[arg(long, env = "GARAGE_GAMESERVER_DISTANCE_M", default_value_t = race::QUARTER_MILE_M, value_name = "M", value_parser = metres)]
    pub distance_m: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ports: Ports::Any,
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            join_timeout: Duration::from_secs(20),
            race_timeout: Duration::from_secs(60),
            distance_m: race::QUARTER_MILE_M,
        }
    }
}

/// Which ports the server may listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The operating system chooses.
    Any,
    /// A random port from the first to the last, both included.
    Range(u16, u16),
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self::Any);
        }
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port > 0);
        let range = text.split_once('-').and_then(|(low, high)| Some((port(low)?, port(high)?)));
        match range {
            Some((low, high)) if low <= high => Ok(Self::Range(low, high)),
            _ => Err("expected LO-HI with 1 <= LO <= HI <= 65535, or 0 for any port".to_owned()),
        }
    }
}

fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_millis)
}

fn metres(text: &str) -> Result<f64, String> {
    let metres: f64 = text.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    if metres.is_finite() && metres > 0.0 { Ok(metres) } else { Err("expected a length above 0".to_owned()) }
}

/// Why the configuration file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Users other than its owner can read the file.
    #[error("{} has mode {mode:04o}; it contains a private key, so only its owner may read it (chmod 600)", path.display())]
    Permissions { path: PathBuf, mode: u32 },
    /// The file is larger than any valid configuration.
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// The file is not JSON, or lacks a field that the contract requires.
    #[error("{} is not a game configuration", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    /// The configuration can be parsed but breaks a rule.
    #[error("{} is not valid", path.display())]
    Check {
        path: PathBuf,
        #[source]
        cause: Invalid,
    },
}

/// The rule that a configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("there are no players")]
    NoPlayers,
    #[error("there are {0} players, the maximum is {MAX_PLAYERS}")]
    TooManyPlayers(usize),
    #[error("player {0} is listed twice")]
    DuplicatePlayer(PlayerId),
    /// See [`race::drivable`].
    #[error("the car of player {0} cannot be driven: a stat is not finite or out of range")]
    Undrivable(PlayerId),
}

/// The mode bits that the configuration file must not have. A secret that Kubernetes mounts belongs to root. A process
/// that is not root reads it through the pod's group, which no other process on the node has, so that mode allows
/// reading by the group.
const fn forbidden_bits(owner: u32, user: u32) -> u32 {
    if owner == 0 && user != 0 { 0o037 } else { 0o077 }
}

/// Reads and checks the configuration file.
///
/// # Errors
/// [`Error`], which names the file and the cause.
pub fn load(path: &Path) -> Result<Config, Error> {
    let path = || path.to_owned();
    let read = |cause| Error::Read { path: path(), cause };
    // Check the mode of the open file, not of the path: the path may point to another file a moment later.
    let file = File::open(path()).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let mode = metadata.permissions().mode() & 0o7777;
    let user = fs::metadata("/proc/self").map_err(read)?.uid();
    if mode & forbidden_bits(metadata.uid(), user) != 0 {
        return Err(Error::Permissions { path: path(), mode });
    }
    let mut text = Vec::new();
    let length = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(read)?;
    if length as u64 > MAX_FILE {
        return Err(Error::TooLarge { path: path() });
    }
    let config = serde_json::from_slice(&text).map_err(|cause| Error::Parse { path: path(), cause })?;
    check(&config).map_err(|cause| Error::Check { path: path(), cause })?;
    Ok(config)
}

/// Checks that a race can be run with this configuration.
///
/// # Errors
/// [`Invalid`]: the first rule that the configuration breaks.
pub fn check(config: &Config) -> Result<(), Invalid> {
    if config.players.is_empty() {
        return Err(Invalid::NoPlayers);
    }
    if config.players.len() > MAX_PLAYERS {
        return Err(Invalid::TooManyPlayers(config.players.len()));
    }
    let mut seen = BTreeSet::new();
    for loadout in &config.players {
        if !seen.insert(&loadout.player) {
            return Err(Invalid::DuplicatePlayer(loadout.player.clone()));
        }
        if !race::drivable(&loadout.car.stats) {
            return Err(Invalid::Undrivable(loadout.player.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn ports_are_a_range_or_any() {
        assert_eq!("0".parse(), Ok(Ports::Any));
        assert_eq!("7000-7100".parse(), Ok(Ports::Range(7000, 7100)));
        assert_eq!("7000-7000".parse(), Ok(Ports::Range(7000, 7000)));
        for bad in ["", "7000", "7100-7000", "0-5", "1-70000", "a-b"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_flags_default_to_the_documented_values() {
        let cli = Cli::parse_from(["garage-gameserver", "--config", "x"]);
        assert_eq!(format!("{:?}", cli.options), format!("{:?}", Options::default()));
    }

    #[test]
    fn a_file_that_other_users_can_read_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("game.json");
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path), Err(Error::Permissions { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load(&path), Err(Error::Parse { .. })));
        let missing = load(&folder.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }

    #[test]
    fn only_a_secret_mounted_by_root_may_be_readable_by_its_group() {
        let rejected = |mode: u32, owner, user| mode & forbidden_bits(owner, user) != 0;
        for (mode, owner, user, expected) in [
            (0o600, 65532, 65532, false),
            (0o640, 65532, 65532, true),
            (0o440, 0, 65532, false),
            (0o460, 0, 65532, true),
            (0o444, 0, 65532, true),
            (0o440, 0, 0, true),
            (0o400, 0, 0, false),
        ] {
            assert_eq!(rejected(mode, owner, user), expected, "{mode:o} of {owner}, read by {user}");
        }
    }
}
