//! The queues: a file that the gateway and the matchmaker share, so that what is admitted to a queue can be matched
//! there.
//!
//! ```toml
//! [queues.ranked]
//! players = 2
//! rank_band = 200
//! timeout_s = 120
//! client_rank = false
//! [queues.ranked.regions]
//! eu = 120
//! us = 120
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use time::Duration;

use crate::id::{QueueName, Region};

/// The fewest players of a match.
pub const MIN_PLAYERS: usize = 2;
/// The most players of a match; also what inventory takes in one request for loadouts.
pub const MAX_PLAYERS: usize = 64;
/// The longest that a ticket may wait, in seconds. Longer than this the log could forget a player who waits (it keeps
/// 12 h).
const MAX_TIMEOUT_S: u64 = 3_600;

/// Every queue of this Garage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queues {
    /// By name; at least one.
    pub queues: BTreeMap<QueueName, Queue>,
}

/// One queue, and what makes a match in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Players of a match, 2 to 64. Each is a team of his own, named `1`, `2` and so on.
    pub players: usize,
    /// Width of the band of ranks that a match is made within.
    pub rank_band: u32,
    /// How long a ticket waits before it times out, in seconds.
    pub timeout_s: u64,
    /// Whether a player's client may say his rank. Who does chooses whom he meets; his rating moves all the same.
    #[serde(default)]
    pub client_rank: bool,
    /// Where its matches may be played: the round-trip time, in milliseconds, up to which a region serves a player.
    pub regions: BTreeMap<Region, u32>,
}

/// Why the queues cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The file cannot be read.
    #[error("cannot read the queues in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML of the wanted form.
    #[error("the queues in {} are malformed: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It says something that cannot be.
    #[error("the queues in {}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What.
        reason: String,
    },
}

impl Queues {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`QueueError`], which names the file.
    pub fn load(path: &Path) -> Result<Self, QueueError> {
        let text = fs::read_to_string(path).map_err(|source| QueueError::Read { path: path.into(), source })?;
        let queues: Self = toml::from_str(&text)
            .map_err(|source| QueueError::Parse { path: path.into(), source: Box::new(source) })?;
        queues.check().map_err(|reason| QueueError::Unusable { path: path.into(), reason })?;
        Ok(queues)
    }

    /// What they are called.
    pub fn names(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.keys()
    }

    /// A queue by name.
    pub fn get(&self, name: &QueueName) -> Option<&Queue> {
        self.queues.get(name)
    }

    /// Every region of every queue.
    pub fn regions(&self) -> BTreeSet<&Region> {
        self.queues.values().flat_map(|queue| queue.regions.keys()).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.queues.is_empty() {
            return Err("no queue; at least one is needed".into());
        }
        self.queues
            .iter()
            .try_for_each(|(name, queue)| queue.check().map_err(|reason| format!("queue {name}: {reason}")))
    }
}

impl Queue {
    /// How long a ticket waits before it times out.
    pub fn timeout(&self) -> Duration {
        // The check bounds it far below what fits.
        Duration::seconds(i64::try_from(self.timeout_s).unwrap_or(i64::MAX))
    }

    fn check(&self) -> Result<(), String> {
        if !(MIN_PLAYERS..=MAX_PLAYERS).contains(&self.players) {
            return Err(format!("players = {}; {MIN_PLAYERS} to {MAX_PLAYERS} make a match", self.players));
        }
        if self.rank_band == 0 {
            return Err("rank_band = 0 would match equal ranks only by chance; at least 1".into());
        }
        if !(1..=MAX_TIMEOUT_S).contains(&self.timeout_s) {
            return Err(format!("timeout_s = {}; 1 to {MAX_TIMEOUT_S}", self.timeout_s));
        }
        if self.regions.is_empty() {
            return Err("no region; at least one is needed".into());
        }
        match self.regions.iter().find(|(_, ceiling)| **ceiling == 0) {
            Some((region, _)) => Err(format!("region {region} = 0 ms serves nobody")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str =
        "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\n[queues.ranked.regions]\neu = 120";

    fn load(text: &str) -> Result<Queues, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queues.toml");
        fs::write(&path, text).unwrap();
        Queues::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_read() {
        let queues = load(GOOD).unwrap();
        let queue = queues.get(&"ranked".parse().unwrap()).unwrap();
        assert_eq!((queue.players, queue.rank_band, queue.timeout()), (2, 200, Duration::minutes(2)));
        assert!(!queue.client_rank, "a client is believed where the file says so, and nowhere else");
        assert_eq!(queues.regions(), BTreeSet::from([&"eu".parse().unwrap()]));
    }

    #[test]
    fn a_bad_file_is_refused_by_name() {
        for (bad, why) in [
            ("[queues]", "no queue"),
            ("", "missing field `queues`"),
            (&GOOD.replace("eu = 120", ""), "no region"),
            (&GOOD.replace("eu = 120", "eu = 0"), "eu = 0 ms"),
            (&GOOD.replace("players = 2", "players = 1"), "players = 1"),
            (&GOOD.replace("players = 2", "players = 65"), "players = 65"),
            (&GOOD.replace("rank_band = 200", "rank_band = 0"), "rank_band = 0"),
            (&GOOD.replace("timeout_s = 120", "timeout_s = 0"), "timeout_s = 0"),
            (&GOOD.replace("timeout_s = 120", "timeout_s = 99999"), "timeout_s = 99999"),
            (&GOOD.replace("eu =", "EU ="), "region \"EU\" is not valid"),
            (&GOOD.replace("players", "player"), "unknown field"),
            (&format!("x = 1\n{GOOD}"), "unknown field `x`"),
        ] {
            let error = load(bad).unwrap_err();
            assert!(error.contains(why) && error.contains("queues.toml"), "{bad}: {error}");
        }
        assert!(Queues::load(Path::new("/nowhere/queues.toml")).unwrap_err().to_string().contains("/nowhere"));
    }

    #[test]
    fn the_local_file_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/queues.toml");
        let queues = Queues::load(&path).unwrap();
        for (name, client_rank) in [("ranked", false), ("casual", true)] {
            assert_eq!(queues.get(&name.parse().unwrap()).unwrap().client_rank, client_rank, "{name}");
        }
    }

    fn any_name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
        "[a-z][a-z0-9-]{0,31}".prop_map(|name| name.parse().unwrap())
    }

    prop_compose! {
        fn any_queue()(
            players in MIN_PLAYERS..=MAX_PLAYERS,
            rank_band in 1..=u32::MAX,
            timeout_s in 1..=MAX_TIMEOUT_S,
            client_rank in any::<bool>(),
            regions in prop::collection::btree_map(any_name::<Region>().boxed(), 1..=u32::MAX, 1..4),
        ) -> Queue {
            Queue { players, rank_band, timeout_s, client_rank, regions }
        }
    }

    proptest! {
        #[test]
        fn any_good_queues_are_read_as_they_were_written(
            queues in prop::collection::btree_map(any_name::<QueueName>().boxed(), any_queue(), 1..4),
        ) {
            let queues = Queues { queues };
            prop_assert_eq!(load(&toml::to_string(&queues).unwrap()), Ok(queues));
        }
    }
}
