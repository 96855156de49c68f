//! The configuration of the queues. The gateway and the matchmaker read the same file, so that the matchmaker can match
//! every ticket that the gateway accepts.
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
//!
//! [regions.eu]
//! measure_url = "https://eu.example.com/ping"
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use time::Duration;

use crate::id::{QueueName, Region};

/// The minimum number of players in a match.
pub const MIN_PLAYERS: usize = 1;
/// The maximum number of players in a match, and also in one request for loadouts.
pub const MAX_PLAYERS: usize = 200;
/// The maximum time-out of a ticket, in seconds. It is far below the 12 h for which the log keeps events, so that the
/// log never drops the ticket of a waiting player.
const MAX_TIMEOUT_S: u64 = 3_600;

/// The maximum number of regions of a queue, and also in one ticket request.
pub const MAX_REGIONS: usize = 32;
/// The maximum length of a URL in the file, in bytes.
const MAX_URL: usize = 2_048;

/// All queues of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queues {
    /// At least one.
    pub queues: BTreeMap<QueueName, Queue>,
    /// Where clients measure the latency of a region. A region without an entry is measured against the gateway.
    #[serde(rename = "regions", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured_at: BTreeMap<Region, MeasuredAt>,
}

/// Where clients measure the latency of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredAt {
    /// An HTTPS URL in that region. It must answer a `GET` fast and without authentication.
    pub measure_url: String,
}

/// A queue, and the rules for its matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// The number of players in a match, 1 to 200. Each player is a team, named `1`, `2` and so on.
    pub players: usize,
    /// The width of the rank bands. Only players in the same band are matched.
    pub rank_band: u32,
    /// When a ticket times out, in seconds; 1 to 3,600.
    pub timeout_s: u64,
    /// Whether a client may send the player's rank. If so, players can choose their opponents by sending another rank.
    /// Matches still change their ratings.
    #[serde(default)]
    pub client_rank: bool,
    /// Whether players wait again, with the same ticket, if their match fails before they receive a game server's
    /// address. On by default.
    #[serde(default = "on")]
    pub requeue: bool,
    /// The regions for matches of this queue, 1 to 32. A region is used for a player if the player's round-trip time to
    /// it, in milliseconds, is at most this value.
    pub regions: BTreeMap<Region, u32>,
}

fn on() -> bool {
    true
}

/// Why the queues file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("cannot read the queues in {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the queues in {} are malformed", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    /// A value in the file is out of range, or there is no queue or region.
    #[error("the queues in {}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

impl Queues {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`QueueError`]
    pub fn load(path: &Path) -> Result<Self, QueueError> {
        let text = fs::read_to_string(path).map_err(|source| QueueError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Parses and checks the text of the file at `path`.
    ///
    /// # Errors
    /// [`QueueError::Parse`], [`QueueError::Unusable`]
    pub fn parse(text: &str, path: &Path) -> Result<Self, QueueError> {
        let queues: Self =
            toml::from_str(text).map_err(|source| QueueError::Parse { path: path.into(), source: Box::new(source) })?;
        queues.check().map_err(|reason| QueueError::Unusable { path: path.into(), reason })?;
        Ok(queues)
    }

    /// The names of all queues.
    pub fn names(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.keys()
    }

    /// A queue by name.
    pub fn get(&self, name: &QueueName) -> Option<&Queue> {
        self.queues.get(name)
    }

    /// The regions of all queues.
    pub fn regions(&self) -> BTreeSet<&Region> {
        self.queues.values().flat_map(|queue| queue.regions.keys()).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.queues.is_empty() {
            return Err("there is no queue; configure at least one".into());
        }
        self.queues
            .iter()
            .try_for_each(|(name, queue)| queue.check().map_err(|reason| format!("queue {name}: {reason}")))?;
        let regions = self.regions();
        for (region, MeasuredAt { measure_url }) in &self.measured_at {
            if !regions.contains(region) {
                return Err(format!("regions.{region}: no queue has this region"));
            }
            let host = measure_url.strip_prefix("https://").unwrap_or_default();
            let has_host = host.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
            // A URL has no other characters (RFC 3986).
            if !has_host || measure_url.len() > MAX_URL || !measure_url.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "regions.{region}: measure_url = {measure_url:?}; it must be a URL that begins with https://"
                ));
            }
        }
        Ok(())
    }

    /// The latency that a client sends for a region if it cannot measure: the lowest limit of the queues that have the
    /// region, in milliseconds. So each of them can match the ticket.
    pub fn default_latency(&self, region: &Region) -> Option<u32> {
        self.queues.values().filter_map(|queue| queue.regions.get(region)).min().copied()
    }
}

impl Queue {
    /// How long a ticket waits before it times out.
    pub fn timeout(&self) -> Duration {
        // `check` limits the value, so the conversion always succeeds.
        Duration::seconds(i64::try_from(self.timeout_s).unwrap_or(i64::MAX))
    }

    /// The regions of this queue whose latency is within the queue's limit, each with that latency. The queue never
    /// matches a player who has none.
    pub fn usable<'a>(&'a self, latencies: &'a BTreeMap<Region, u32>) -> impl Iterator<Item = (&'a Region, u32)> {
        let latency = |(region, max): (&'a Region, &u32)| Some((region, *latencies.get(region)?, *max));
        let measured = self.regions.iter().filter_map(latency);
        measured.filter(|(_, latency, max)| latency <= max).map(|(region, latency, _)| (region, latency))
    }

    fn check(&self) -> Result<(), String> {
        if !(MIN_PLAYERS..=MAX_PLAYERS).contains(&self.players) {
            return Err(format!("players = {}; it must be {MIN_PLAYERS} to {MAX_PLAYERS}", self.players));
        }
        if self.rank_band == 0 {
            return Err("rank_band = 0; it must be at least 1".into());
        }
        if !(1..=MAX_TIMEOUT_S).contains(&self.timeout_s) {
            return Err(format!("timeout_s = {}; it must be 1 to {MAX_TIMEOUT_S}", self.timeout_s));
        }
        if self.regions.is_empty() {
            return Err("there is no region; configure at least one".into());
        }
        if self.regions.len() > MAX_REGIONS {
            return Err(format!("there are {} regions; at most {MAX_REGIONS} are allowed", self.regions.len()));
        }
        match self.regions.iter().find(|(_, ceiling)| **ceiling == 0) {
            Some((region, _)) => Err(format!("region {region} = 0 ms; it must be at least 1")),
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
        Queues::load(&path).map_err(|error| printed(&error))
    }

    /// An error as `anyhow` prints it with `{:#}`: with its sources.
    fn printed(error: &dyn std::error::Error) -> String {
        let source = error.source().map(|source| format!(": {}", printed(source)));
        format!("{error}{}", source.unwrap_or_default())
    }

    #[test]
    fn a_valid_file_is_read() {
        let queues = load(GOOD).unwrap();
        let queue = queues.get(&"ranked".parse().unwrap()).unwrap();
        assert_eq!((queue.players, queue.rank_band, queue.timeout()), (2, 200, Duration::minutes(2)));
        assert!(!queue.client_rank, "a client may only send a rank if the file allows it");
        assert!(queue.requeue, "players are requeued unless the file says otherwise");
        assert_eq!(queues.regions(), BTreeSet::from([&"eu".parse().unwrap()]));
    }

    #[test]
    fn an_invalid_file_is_refused_and_the_error_names_it() {
        for (bad, why) in [
            ("[queues]", "no queue"),
            ("", "missing field `queues`"),
            (&GOOD.replace("eu = 120", ""), "no region"),
            (&GOOD.replace("eu = 120", "eu = 0"), "eu = 0 ms"),
            (&GOOD.replace("players = 2", "players = 0"), "players = 0"),
            (&GOOD.replace("players = 2", "players = 201"), "players = 201"),
            (&GOOD.replace("rank_band = 200", "rank_band = 0"), "rank_band = 0"),
            (&GOOD.replace("timeout_s = 120", "timeout_s = 0"), "timeout_s = 0"),
            (&GOOD.replace("timeout_s = 120", "timeout_s = 99999"), "timeout_s = 99999"),
            (&GOOD.replace("eu =", "EU ="), "region \"EU\" is not valid"),
            (&GOOD.replace("players", "player"), "unknown field"),
            (&format!("x = 1\n{GOOD}"), "unknown field `x`"),
            (&format!("{GOOD}\n{}", (0..32).map(|n| format!("r{n} = 1\n")).collect::<String>()), "33 regions"),
            (&measured("us", "https://us.example.com"), "regions.us: no queue has this region"),
            (&measured("eu", "http://eu.example.com"), "begins with https://"),
            (&measured("eu", "https://"), "begins with https://"),
            (&measured("eu", "https:///ping"), "begins with https://"),
            (&measured("eu", "https://eu.example.com/a b"), "begins with https://"),
            (&measured("eu", &format!("https://{}", "x".repeat(MAX_URL))), "begins with https://"),
        ] {
            let error = load(bad).unwrap_err();
            assert!(error.contains(why) && error.contains("queues.toml"), "{bad}: {error}");
        }
    }

    fn measured(region: &str, url: &str) -> String {
        format!("{GOOD}\n[regions.{region}]\nmeasure_url = {url:?}")
    }

    #[test]
    fn a_region_can_have_a_url_to_measure_against() {
        for url in ["https://eu.example.com", "https://[2001:db8::7]:8443/ping?x=1"] {
            let queues = load(&measured("eu", url)).unwrap();
            assert_eq!(queues.measured_at[&"eu".parse().unwrap()].measure_url, url);
        }
        assert!(load(GOOD).unwrap().measured_at.is_empty());
    }

    #[test]
    fn the_default_latency_of_a_region_is_accepted_by_every_queue_that_has_it() {
        let more = "[queues.casual]\nplayers = 2\nrank_band = 1\ntimeout_s = 1\nregions.eu = 80\nregions.us = 90";
        let queues = load(&format!("{GOOD}\n{more}")).unwrap();
        let default = |region: &str| queues.default_latency(&region.parse().unwrap());
        assert_eq!([default("eu"), default("us"), default("mars")], [Some(80), Some(90), None]);
    }

    #[test]
    fn a_region_is_usable_up_to_the_queues_limit() {
        let queues = load(&format!("{GOOD}\nus = 90")).unwrap();
        let queue = queues.get(&"ranked".parse().unwrap()).unwrap();
        for (latencies, usable) in [
            (vec![("eu", 120), ("us", 90), ("mars", 1)], vec!["eu 120", "us 90"]),
            (vec![("eu", 121), ("us", 0)], vec!["us 0"]),
            (vec![("eu", 121)], vec![]),
            (vec![], vec![]),
        ] {
            let latencies = latencies.into_iter().map(|(region, latency)| (region.parse().unwrap(), latency)).collect();
            let found = queue.usable(&latencies).map(|(region, latency)| format!("{region} {latency}"));
            assert_eq!(found.collect::<Vec<_>>(), usable);
        }
    }

    #[test]
    fn an_error_says_its_cause_once() {
        let missing = Queues::load(Path::new("/nowhere/queues.toml")).unwrap_err();
        assert_eq!(
            printed(&missing),
            "cannot read the queues in /nowhere/queues.toml: No such file or directory (os error 2)"
        );
        let malformed = load("x = 1").unwrap_err();
        assert_eq!(malformed.matches("unknown field `x`").count(), 1, "{malformed}");
    }

    #[test]
    fn the_file_for_local_development_is_valid() {
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
            requeue in any::<bool>(),
            regions in prop::collection::btree_map(any_name::<Region>().boxed(), 1..=u32::MAX, 1..4),
        ) -> Queue {
            Queue { players, rank_band, timeout_s, client_rank, requeue, regions }
        }
    }

    proptest! {
        #[test]
        fn any_valid_queues_survive_a_round_trip_through_toml(
            queues in prop::collection::btree_map(any_name::<QueueName>().boxed(), any_queue(), 1..4),
        ) {
            let regions = queues.values().flat_map(|queue: &Queue| queue.regions.keys());
            let measured_at = regions.map(|region| {
                (region.clone(), MeasuredAt { measure_url: format!("https://{region}.example.com/ping") })
            });
            let measured_at = measured_at.collect();
            let queues = Queues { queues, measured_at };
            prop_assert_eq!(load(&toml::to_string(&queues).unwrap()), Ok(queues));
        }
    }
}
