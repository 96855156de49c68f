//! What a game server is told: flags and variables by its image, and the configuration file of its game.

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

use garage_events::{game::Config, id::PlayerId};

use crate::domain::race;

/// The largest configuration read. A hundred loadouts with long asset paths are some 100 KiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The most players of one game: a snapshot of 100 cars is 921 bytes, one datagram on any path (1,200 bytes is what
/// QUIC, RFC 9000 section 14, takes for granted).
pub const MAX_PLAYERS: usize = 100;

/// Runs one game: reads its configuration, reports ready, admits the players, races, reports the results, exits.
///
/// Exit codes: 0 the results are reported; 1 stopped by a signal, or a port or key could not be had; 2 the
/// configuration is not valid; 3 the session's hard end came first.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-gameserver", version)]
pub struct Cli {
    /// The game's configuration, a JSON file that only its owner may read.
    #[arg(long, env = "GARAGE_GAMESERVER_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub options: Options,
}

/// What is the same for all games of a node.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Ports to listen on, LO-HI, both included; one of them is drawn for TCP and one for UDP. 0 lets the system choose.
    #[arg(long, env = "GARAGE_GAMESERVER_PORTS", default_value = "0", value_name = "LO-HI")]
    pub ports: Ports,
    /// The address to listen on.
    #[arg(long, env = "GARAGE_GAMESERVER_BIND", default_value = "0.0.0.0", value_name = "IP")]
    pub bind: IpAddr,
    /// How long after the report ready the race waits for players, in milliseconds. Those who are not there then are
    /// not waited for; they may still join.
    // Players learn the address within a second or so of the report; 20 s leave room for a slow start of a client,
    // and are short enough not to bore those who are there.
    #[arg(long = "join-timeout-ms", env = "GARAGE_GAMESERVER_JOIN_TIMEOUT_MS", default_value = "20000", value_name = "MS", value_parser = milliseconds)]
    pub join_timeout: Duration,
    /// How long after the start the race ends for those who have not finished, in milliseconds.
    #[arg(long = "race-timeout-ms", env = "GARAGE_GAMESERVER_RACE_TIMEOUT_MS", default_value = "60000", value_name = "MS", value_parser = milliseconds)]
    pub race_timeout: Duration,
    /// Length of the road, in metres. The default is a quarter mile.
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

/// Where ports are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Wherever the system likes.
    Any,
    /// At random from the first to the last of these.
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
            _ => Err("wanted is LO-HI with 1 <= LO <= HI <= 65535, or 0 for any".to_owned()),
        }
    }
}

fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_millis)
}

fn metres(text: &str) -> Result<f64, String> {
    let metres: f64 = text.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    if metres.is_finite() && metres > 0.0 { Ok(metres) } else { Err("wanted is a length above 0".to_owned()) }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("reading {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Others than its owner may read it, and it holds a private key.
    #[error("{} has mode {mode:04o}: it holds a private key, so only its owner may read it (chmod 600)", path.display())]
    Open { path: PathBuf, mode: u32 },
    /// It is longer than any configuration is.
    #[error("{} is longer than {MAX_FILE} bytes", path.display())]
    Long { path: PathBuf },
    /// It is not the JSON that the contract says.
    #[error("{} is no game configuration", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    /// It reads well and makes no sense.
    #[error("{} makes no sense", path.display())]
    Check {
        path: PathBuf,
        #[source]
        cause: Senseless,
    },
}

/// What is wrong with a configuration that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Senseless {
    /// Nobody could be admitted.
    #[error("there are no players")]
    NoPlayers,
    /// More than fit.
    #[error("there are {0} players, the most is {MAX_PLAYERS}")]
    TooManyPlayers(usize),
    /// Two places for one player.
    #[error("player {0} is there twice")]
    Twice(PlayerId),
    /// A car with a figure that is not finite, or not above zero.
    #[error("the car of player {0} cannot be driven: a figure is not finite or not above zero")]
    Undrivable(PlayerId),
}

/// The bits that a configuration's mode must not have. A secret that Kubernetes mounts belongs to root, and who is not
/// root reads it by the group of its pod, which nobody else on the machine is of.
const fn closed(owner: u32, user: u32) -> u32 {
    if owner == 0 && user != 0 { 0o037 } else { 0o077 }
}

/// Reads and checks the configuration of a game.
///
/// # Errors
/// [`Error`], which names the file and the cause.
pub fn load(path: &Path) -> Result<Config, Error> {
    let path = || path.to_owned();
    let read = |cause| Error::Read { path: path(), cause };
    // The mode is asked of the open file: a name could be pointed elsewhere in between.
    let file = File::open(path()).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let mode = metadata.permissions().mode() & 0o7777;
    let user = fs::metadata("/proc/self").map_err(read)?.uid();
    if mode & closed(metadata.uid(), user) != 0 {
        return Err(Error::Open { path: path(), mode });
    }
    let mut text = Vec::new();
    let length = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(read)?;
    if length as u64 > MAX_FILE {
        return Err(Error::Long { path: path() });
    }
    let config = serde_json::from_slice(&text).map_err(|cause| Error::Parse { path: path(), cause })?;
    check(&config).map_err(|cause| Error::Check { path: path(), cause })?;
    Ok(config)
}

/// Whether a race can be made of a configuration.
///
/// # Errors
/// [`Senseless`]: the first thing that is wrong.
pub fn check(config: &Config) -> Result<(), Senseless> {
    if config.players.is_empty() {
        return Err(Senseless::NoPlayers);
    }
    if config.players.len() > MAX_PLAYERS {
        return Err(Senseless::TooManyPlayers(config.players.len()));
    }
    let mut seen = BTreeSet::new();
    for loadout in &config.players {
        if !seen.insert(&loadout.player) {
            return Err(Senseless::Twice(loadout.player.clone()));
        }
        if !race::drivable(&loadout.car.stats) {
            return Err(Senseless::Undrivable(loadout.player.clone()));
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
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("game.json");
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path), Err(Error::Open { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load(&path), Err(Error::Parse { .. })));
        let missing = load(&folder.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }

    #[test]
    fn a_mounted_secret_is_read_by_its_group_and_any_other_file_by_its_owner() {
        let refused = |mode: u32, owner, user| mode & closed(owner, user) != 0;
        for (mode, owner, user, is_refused) in [
            (0o600, 65532, 65532, false),
            (0o640, 65532, 65532, true),
            (0o440, 0, 65532, false),
            (0o460, 0, 65532, true),
            (0o444, 0, 65532, true),
            (0o440, 0, 0, true),
            (0o400, 0, 0, false),
        ] {
            assert_eq!(refused(mode, owner, user), is_refused, "{mode:o} of {owner}, read by {user}");
        }
    }
}
