//! The configuration of the queues. The gateway, the matchmaker and, on Kubernetes, the director read the same file, so
//! that the matchmaker can match every ticket that the gateway accepts.
//!
//! ```toml
//! [queues.ranked]
//! players = 2
//! rank_band = 200
//! timeout_s = 120
//! client_rank = false
//! ticket_limit = "10/0.2"
//! acceptance_s = 20
//! [queues.ranked.regions]
//! eu = 120
//! us = 120
//!
//! [queues.teams]
//! rule_set = "teams.json"
//! attributes = { skill = "rating", mode = "client" }
//! timeout_s = 120
//! regions = { eu = 120 }
//!
//! [regions.eu]
//! measure_url = "https://eu.example.com/ping"
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use garage_rules::rule_set::AttributeType;
use serde::{Deserialize, Serialize};
use time::Duration;

use crate::{
    id::{QueueName, Region},
    rate::RateLimit,
    rules::{self, Configured, Rules},
};

/// The minimum number of players in a match.
pub const MIN_PLAYERS: usize = 1;
/// The maximum number of players in a match, and also in one request for loadouts.
pub const MAX_PLAYERS: usize = 200;
/// The maximum time-out of a ticket, in seconds. It is far below the 12 h for which the log keeps events, so that the
/// log never drops the ticket of a waiting player.
const MAX_TIMEOUT_S: u64 = 3_600;

/// The maximum number of regions of a queue, and also in one ticket request.
pub const MAX_REGIONS: usize = 32;

/// The default of [`Queue::search_steps`].
pub const SEARCH_STEPS: u32 = 2_000;

/// The least and the most of [`Queue::search_steps`]. The most takes seconds for one ticket.
const MIN_STEPS: u32 = 100;
const MAX_STEPS: u32 = 1_000_000;
/// The least of [`Queue::acceptance_s`]: enough for a player to notice the match and to press a button.
const MIN_ACCEPTANCE_S: u64 = 5;
/// The most of [`Queue::acceptance_s`]: the others wait for the last answer.
pub const MAX_ACCEPTANCE_S: u64 = 120;
/// The maximum length of a URL in the file, in bytes.
const MAX_URL: usize = 2_048;

/// All queues of a deployment.
#[derive(Debug, Clone)]
pub struct Queues {
    /// At least one.
    pub queues: BTreeMap<QueueName, Queue>,
    /// Where clients measure the latency of a region. A region without an entry is measured against the gateway.
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
#[derive(Debug, Clone)]
pub struct Queue {
    /// The rule set in the file.
    pub configured: Arc<Rules>,
    /// The rule set in use. Clones of the queue share it.
    current: Arc<Mutex<Arc<Rules>>>,
    /// Where the value of each attribute of the rule set comes from. An attribute without an entry has its default value,
    /// and [`rules::RANK`] is the player's rank.
    pub attributes: BTreeMap<String, Source>,
    /// When a ticket times out, in seconds; 1 to 3,600.
    pub timeout_s: u64,
    /// Whether a client may send the player's rank. If so, players can choose their opponents by sending another rank.
    /// Matches still change their ratings.
    pub client_rank: bool,
    /// Whether players wait again, with the same ticket, if their match fails before they receive a game server's
    /// address.
    pub requeue: bool,
    /// How long the players of a match have to accept it, in seconds, 5 to 120; 0 if they need not accept.
    pub acceptance_s: u64,
    /// Whether the players of a ticket learn which of them did not accept a match.
    pub acceptance_names_decliner: bool,
    /// The maximum number of steps of one search, 100 to 1,000,000. In each step, it puts one ticket into one team.
    pub search_steps: u32,
    /// How often a player may request a ticket of this queue, in addition to the gateway's limit for all queues. Each
    /// gateway process counts for itself.
    pub ticket_limit: RateLimit,
    /// The regions for matches of this queue, 1 to 32. A region is used for a player if the player's round-trip time to
    /// it, in milliseconds, is at most this value.
    pub regions: BTreeMap<Region, u32>,
}

/// Where the value of an attribute comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// The player's rank: the `rank` of the request if the queue allows it, or else of the token, or else the rating.
    Rating,
    /// This claim of the player's token.
    Claim(String),
    /// The client's request. Players can send what they like.
    Client,
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.strip_prefix("claim:")) {
            ("rating", _) => Ok(Self::Rating),
            ("client", _) => Ok(Self::Client),
            (_, Some("rank" | "sub")) => Err(format!("{text:?} is not a source; for the rank, use \"rating\"")),
            (_, Some(claim)) if !claim.is_empty() => Ok(Self::Claim(claim.into())),
            _ => Err(format!("{text:?} is not a source; use \"rating\", \"claim:<name>\" or \"client\"")),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        match source {
            Source::Rating => "rating".into(),
            Source::Claim(name) => format!("claim:{name}"),
            Source::Client => "client".into(),
        }
    }
}

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    queues: BTreeMap<QueueName, Entry>,
    #[serde(rename = "regions", default)]
    measured_at: BTreeMap<Region, MeasuredAt>,
}

/// A queue, as it is written. It has either a rule set, or `players` and `rank_band`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The file of the rule set, relative to the folder of the queues file.
    rule_set: Option<PathBuf>,
    /// The number of players in a match. Each player is a team.
    players: Option<usize>,
    /// By how much the ranks of the players of a match may differ at first.
    rank_band: Option<u32>,
    #[serde(default)]
    attributes: BTreeMap<String, Source>,
    timeout_s: u64,
    #[serde(default)]
    client_rank: bool,
    #[serde(default = "on")]
    requeue: bool,
    #[serde(default)]
    acceptance_s: u64,
    #[serde(default)]
    acceptance_names_decliner: bool,
    #[serde(default = "search_steps")]
    search_steps: u32,
    #[serde(default)]
    ticket_limit: RateLimit,
    regions: BTreeMap<Region, u32>,
}

fn on() -> bool {
    true
}

const fn search_steps() -> u32 {
    SEARCH_STEPS
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
        let file: File = crate::toml_file::parse(text)
            .map_err(|source| QueueError::Parse { path: path.into(), source: Box::new(source) })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::of(file, folder).map_err(|reason| QueueError::Unusable { path: path.into(), reason })
    }

    fn of(File { queues, measured_at }: File, folder: &Path) -> Result<Self, String> {
        if queues.is_empty() {
            return Err("there is no queue; configure at least one".into());
        }
        let queues = queues.into_iter().map(|(name, entry)| {
            let queue = Queue::of(entry, folder).map_err(|reason| format!("queue {name}: {reason}"))?;
            Ok((name, queue))
        });
        let queues = Self { queues: queues.collect::<Result<_, String>>()?, measured_at };
        queues.check()?;
        Ok(queues)
    }

    /// The relative paths of the rule sets that the text of a queues file names. A text that cannot be parsed has none.
    pub fn rule_set_files(text: &str) -> Vec<PathBuf> {
        let file: Option<File> = crate::toml_file::parse(text).ok();
        let files = file.into_iter().flat_map(|file| file.queues.into_values()).filter_map(|entry| entry.rule_set);
        files.filter(|path| path.is_relative()).collect()
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

    /// How long the players of a match have to accept it; `None` if they need not accept.
    pub fn acceptance(&self) -> Option<Duration> {
        let seconds = i64::try_from(self.acceptance_s).ok().filter(|seconds| *seconds > 0)?;
        Some(Duration::seconds(seconds))
    }

    /// The regions of this queue whose latency is within the queue's limit, each with that latency. The queue never
    /// matches a player who has none.
    pub fn usable<'a>(&'a self, latencies: &'a BTreeMap<Region, u32>) -> impl Iterator<Item = (&'a Region, u32)> {
        let latency = |(region, max): (&'a Region, &u32)| Some((region, *latencies.get(region)?, *max));
        let measured = self.regions.iter().filter_map(latency);
        measured.filter(|(_, latency, max)| latency <= max).map(|(region, latency, _)| (region, latency))
    }

    /// The rule set in use: the one in the file, until an operator applies another one.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the rule set in use, for all clones of the queue.
    pub fn use_rules(&self, rules: Arc<Rules>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// What the file says about the queue.
    pub fn configuration(&self) -> Configured {
        Configured { rules: self.configured.id.clone(), attributes: self.attributes.clone(), timeout_s: self.timeout_s }
    }

    /// The maximum number of players in a match.
    pub fn players(&self) -> usize {
        usize::try_from(self.rules().rule_set.match_size()).unwrap_or(usize::MAX)
    }

    fn of(entry: Entry, folder: &Path) -> Result<Self, String> {
        let Entry {
            rule_set,
            players,
            rank_band,
            attributes,
            timeout_s,
            client_rank,
            requeue,
            acceptance_s,
            acceptance_names_decliner,
            search_steps,
            ticket_limit,
            regions,
        } = entry;
        if !(1..=MAX_TIMEOUT_S).contains(&timeout_s) {
            return Err(format!("timeout_s = {timeout_s}; it must be 1 to {MAX_TIMEOUT_S}"));
        }
        if acceptance_s != 0 && !(MIN_ACCEPTANCE_S..=MAX_ACCEPTANCE_S).contains(&acceptance_s) {
            return Err(format!(
                "acceptance_s = {acceptance_s}; it must be {MIN_ACCEPTANCE_S} to {MAX_ACCEPTANCE_S}, or 0 for none"
            ));
        }
        if acceptance_names_decliner && acceptance_s == 0 {
            return Err("acceptance_names_decliner has no effect without acceptance_s; set acceptance_s".into());
        }
        if !(MIN_STEPS..=MAX_STEPS).contains(&search_steps) {
            return Err(format!("search_steps = {search_steps}; it must be {MIN_STEPS} to {MAX_STEPS}"));
        }
        if regions.is_empty() {
            return Err("there is no region; configure at least one".into());
        }
        if regions.len() > MAX_REGIONS {
            return Err(format!("there are {} regions; at most {MAX_REGIONS} are allowed", regions.len()));
        }
        if let Some((region, _)) = regions.iter().find(|(_, max)| **max == 0) {
            return Err(format!("region {region} = 0 ms; it must be at least 1"));
        }
        let in_range = |players| {
            if (MIN_PLAYERS..=MAX_PLAYERS).contains(&players) {
                return Ok(players);
            }
            Err(format!("players = {players}; it must be {MIN_PLAYERS} to {MAX_PLAYERS}"))
        };
        let rules = match (rule_set, players, rank_band) {
            (Some(file), None, None) => {
                let path = folder.join(file);
                let text = fs::read_to_string(&path);
                let text = text.map_err(|error| format!("cannot read the rule set {}: {error}", path.display()))?;
                let named = |reason: String| format!("the rule set {}:{reason}", path.display());
                Rules::read(&text, timeout_s).map_err(named)?
            }
            (None, Some(_), Some(0)) => return Err("rank_band = 0; it must be at least 1".into()),
            (None, Some(players), Some(band)) => Rules::built_in(in_range(players)?, band, timeout_s)?,
            (None, _, _) => return Err("it needs a rule_set, or both players and rank_band".into()),
            (Some(_), _, _) => return Err("with a rule_set, it cannot have players or rank_band".into()),
        };
        check_sources(&attributes, &rules)?;
        let configured = Arc::new(rules);
        let current = Arc::new(Mutex::new(Arc::clone(&configured)));
        let queue = Self {
            configured,
            current,
            attributes,
            timeout_s,
            client_rank,
            requeue,
            acceptance_s,
            acceptance_names_decliner,
            search_steps,
            ticket_limit,
            regions,
        };
        in_range(queue.players())?;
        Ok(queue)
    }
}

/// Checks that each attribute of a rule set can have a value, and that `sources` names no others.
///
/// # Errors
/// What is wrong, and how to correct it.
pub fn check_sources(sources: &BTreeMap<String, Source>, rules: &Rules) -> Result<(), String> {
    let attributes = &rules.rule_set.attributes;
    if let Some(name) = sources.keys().find(|name| attributes.iter().all(|of| of.name != **name)) {
        return Err(format!("attributes.{name}: the rule set has no attribute {name}"));
    }
    for attribute in attributes {
        let name = &attribute.name;
        let is_number = attribute.kind == AttributeType::Number;
        match sources.get(name) {
            Some(Source::Rating) if !is_number => {
                return Err(format!("attributes.{name}: the rating is a number, but the rule set says otherwise"));
            }
            Some(_) => {}
            None if attribute.default.is_some() || (name == rules::RANK && is_number) => {}
            None => {
                return Err(format!(
                    "the attribute {name} of the rule set has no default; say where its value comes from: \
                         attributes.{name} = \"rating\", \"claim:<name>\" or \"client\""
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
