//! Rule sets: who can be matched with whom. [`garage_rules`] reads and evaluates them. This module gives each rule set an
//! id, and makes its tickets from events.

use std::{collections::BTreeMap, fmt, str::FromStr};

use garage_rules::{
    Checked, Options, check,
    diagnostic::Severity,
    rule_set::{Attribute, AttributeType, RuleSet, Value},
    ticket::{Hopeless, PlayerRequest, Ticket},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::{
    game::hex,
    id::{PlayerId, QueueName, Region},
    player::Queued,
    queue::{Source, check_sources},
};

/// The name of the key-value bucket with the rule sets.
pub const BUCKET: &str = "RULES";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_RULES";
/// Selects every entry.
pub const ALL: &str = "$KV.RULES.>";
/// Selects what operators have applied to the queues.
pub const APPLIED: &str = "$KV.RULES.applied.*";
/// Selects what the queues are configured to.
pub const CONFIGURED: &str = "$KV.RULES.configured.*";

/// The maximum length of a rule set's text, in bytes. (GameLift API, `CreateMatchmakingRuleSet`.)
pub const MAX_TEXT: usize = 65_535;

/// The number attribute that is a player's rank, unless their ticket has another value for it.
pub const RANK: &str = "rank";

/// The id of a rule set: the SHA-256 of its text, in hex. A change of its text makes another rule set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleSetId(String);

/// The text is not the id of a rule set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a rule set: 64 hex digits")]
pub struct NotAnId;

impl RuleSetId {
    /// The id of the rule set with this text.
    pub fn of(text: &str) -> Self {
        Self(hex(&Sha256::digest(text)))
    }

    /// The subject of the entry with the text of the rule set.
    pub fn subject(&self) -> String {
        format!("$KV.RULES.text.{self}")
    }
}

impl fmt::Display for RuleSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RuleSetId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.len() == 64 && is_hex { Ok(Self(text.into())) } else { Err(NotAnId) }
    }
}

impl TryFrom<String> for RuleSetId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl From<RuleSetId> for String {
    fn from(id: RuleSetId) -> Self {
        id.0
    }
}

/// What an operator has applied to a queue: the value of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// `None` for the rule set in the queues file.
    pub rules: Option<RuleSetId>,
}

impl Applied {
    /// The subject of a queue's entry.
    pub fn subject(queue: &QueueName) -> String {
        format!("$KV.RULES.applied.{queue}")
    }

    /// The queue of an entry with this subject; `None` for any other subject.
    pub fn queue_of(subject: &str) -> Option<QueueName> {
        subject.strip_prefix("$KV.RULES.applied.")?.parse().ok()
    }
}

/// What the queues file says about a queue, as far as it matters for another rule set: the value of an entry that the
/// matchmaker writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The rule set in the queues file.
    pub rules: RuleSetId,
    pub attributes: BTreeMap<String, Source>,
    pub timeout_s: u64,
}

impl Configured {
    /// The subject of a queue's entry.
    pub fn subject(queue: &QueueName) -> String {
        format!("$KV.RULES.configured.{queue}")
    }

    /// The queue of an entry with this subject; `None` for any other subject.
    pub fn queue_of(subject: &str) -> Option<QueueName> {
        subject.strip_prefix("$KV.RULES.configured.")?.parse().ok()
    }

    /// Reads and checks a rule set for the queue.
    ///
    /// # Errors
    /// What is wrong with the text, or why the queue cannot use it.
    pub fn read(&self, text: &str) -> Result<Rules, String> {
        let rules = Rules::read(text, self.timeout_s)?;
        check_sources(&self.attributes, &rules)?;
        Ok(rules)
    }
}

/// A rule set with its text and id.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub id: RuleSetId,
    pub text: String,
    pub rule_set: RuleSet,
}

impl Rules {
    /// Reads and checks the text of a rule set. `timeout_s` is the time-out of its tickets, in seconds.
    ///
    /// # Errors
    /// What is wrong with the text, as `line:column: …`.
    pub fn read(text: &str, timeout_s: u64) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("the rule set has {} bytes; at most {MAX_TEXT} are allowed", text.len()));
        }
        let options = Options { timeout: Some(timeout_s), ..Options::default() };
        let Checked { rule_set, diagnostics } = check(text, options);
        let wrong = || {
            let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
            errors.map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let rule_set = rule_set.ok_or_else(wrong)?;
        Ok(Self { id: RuleSetId::of(text), text: text.into(), rule_set })
    }

    /// The built-in rule set: `players` teams of one player each, whose ranks differ by at most `rank_distance`. With each
    /// quarter of the time-out that the oldest ticket has waited, the distance doubles.
    ///
    /// # Errors
    /// What is wrong, if a value is out of range.
    pub fn built_in(players: usize, rank_distance: u32, timeout_s: u64) -> Result<Self, String> {
        let quarter = timeout_s / 4;
        let step =
            |number: u64| json!({"waitTimeSeconds": quarter * number, "value": u64::from(rank_distance) << number});
        let expansions = match quarter {
            // A ticket of a few seconds has no time to wait for a greater distance.
            0 => json!([]),
            _ => json!([{"target": "rules[RankDistance].maxDistance", "steps": [step(1), step(2), step(3)]}]),
        };
        let small = players <= usize::try_from(garage_rules::rule_set::MAX_SMALL_MATCH).unwrap_or(usize::MAX);
        let algorithm = match small {
            true => json!({"strategy": "exhaustiveSearch", "expansionAgeSelection": "oldest"}),
            false => json!({
                "strategy": "balanced", "balancedAttribute": RANK, "batchingPreference": "largestPopulation",
                "expansionAgeSelection": "oldest",
            }),
        };
        let text = json!({
            "name": "built-in",
            "ruleLanguageVersion": "1.0",
            "playerAttributes": [{"name": RANK, "type": "number"}],
            "algorithm": algorithm,
            "teams": [{"name": "player", "minPlayers": 1, "maxPlayers": 1, "quantity": players}],
            "rules": [{
                "name": "RankDistance", "type": "batchDistance", "batchAttribute": RANK, "maxDistance": rank_distance,
            }],
            "expansions": expansions,
        });
        Self::read(&text.to_string(), timeout_s)
    }

    /// The ticket that the events of its players make.
    ///
    /// # Errors
    /// [`Hopeless`], if the ticket cannot be matched by the rule set.
    pub fn ticket<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a PlayerId, &'a Queued)>,
    ) -> Result<Ticket, Hopeless> {
        let mut since = OffsetDateTime::UNIX_EPOCH;
        let players = members.into_iter().map(|(player, queued)| {
            since = queued.waiting_since;
            let attributes = queued.attributes.iter().map(|(name, value)| (name.clone(), value.clone()));
            let latencies = queued.latencies.iter().map(|(region, latency)| (region, *latency));
            self.player(player, queued.rank, attributes, latencies)
        });
        let players = players.collect();
        self.rule_set.ticket(players, millis(since))
    }

    /// A player of a ticket, with what their event says.
    pub fn player<'a>(
        &self,
        id: &PlayerId,
        rank: i32,
        attributes: impl IntoIterator<Item = (String, Value)>,
        latencies: impl IntoIterator<Item = (&'a Region, u32)>,
    ) -> PlayerRequest {
        let mut attributes: BTreeMap<String, Value> = attributes.into_iter().collect();
        let is_rank = |of: &Attribute| of.name == RANK && of.kind == AttributeType::Number;
        if self.rule_set.attributes.iter().any(is_rank) {
            attributes.entry(RANK.into()).or_insert(Value::Number(rank.into()));
        }
        let latencies = latencies.into_iter().map(|(region, latency)| (region.shared(), f64::from(latency)));
        PlayerRequest { id: id.shared(), attributes, latencies: latencies.collect() }
    }
}

/// The milliseconds since 1970, by which a rule set measures ages.
pub fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_rule_set_is_the_hash_of_its_text() {
        let id = RuleSetId::of("abc");
        // The test vector of FIPS 180-2, appendix B.1.
        assert_eq!(id.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(id.to_string().parse(), Ok(id));
        for other in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(63), "band-region-fifo/2"] {
            assert_eq!(other.parse::<RuleSetId>(), Err(NotAnId), "{other}");
        }
    }

    #[test]
    fn the_built_in_rule_set_is_valid_for_every_size_and_time_out() {
        for players in [1, 2, 4, 40, 41, 64] {
            for timeout_s in [1, 3, 4, 120, 3_600] {
                let rules = Rules::built_in(players, u32::MAX, timeout_s).unwrap();
                assert_eq!(rules.rule_set.match_size() as usize, players);
            }
        }
    }

    #[test]
    fn a_rule_set_with_an_error_says_where_it_is() {
        let error = Rules::read("{\n\"ruleLanguageVersion\": \"2.0\"}", 120).unwrap_err();
        assert!(error.contains("2:24: error: this version of the language is not known"), "{error}");
        assert!(Rules::read(&" ".repeat(MAX_TEXT + 1), 120).unwrap_err().contains("65536 bytes"));
    }

    #[test]
    fn any_bytes_are_an_entry_of_a_queue_that_survives_a_round_trip_or_an_error() {
        let id = RuleSetId::of("x");
        let applied = format!(r#"{{"rules":"{id}"}}"#);
        let configured =
            format!(r#"{{"rules":"{id}","attributes":{{"skill":"rating","clan":"claim:clan"}},"timeout_s":120}}"#);
        garage_fuzz::feed(&[&*applied, r#"{"rules":null}"#, &configured], |bytes| {
            let applied = serde_json::from_slice::<Applied>(bytes);
            if let Ok(applied) = &applied {
                assert_eq!(serde_json::from_slice::<Applied>(&serde_json::to_vec(applied).unwrap()).unwrap(), *applied);
                assert!(applied.rules.iter().all(|id| id.to_string().len() == 64));
            }
            if let Ok(configured) = serde_json::from_slice::<Configured>(bytes) {
                let written = serde_json::to_vec(&configured).unwrap();
                assert_eq!(serde_json::from_slice::<Configured>(&written).unwrap(), configured);
                assert!(configured.read("{}").is_err());
            }
            applied.is_ok()
        });
    }
}
