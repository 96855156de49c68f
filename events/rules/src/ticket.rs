//! Tickets, as the rules see them.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use crate::rule_set::{AttributeType, Latency, MAX_TICKET, NumberAggregation, RuleKind, RuleSet, Stages, Value};

/// What a request says about a player.
#[derive(Debug, Clone, Default)]
pub struct PlayerRequest {
    pub id: Arc<str>,
    pub attributes: BTreeMap<String, Value>,
    pub latencies: Latencies,
}

/// A player with a value for each attribute of the rule set.
#[derive(Debug, Clone, PartialEq)]
pub struct Player {
    pub id: Arc<str>,
    /// In the order of [`RuleSet::attributes`].
    pub values: Box<[Value]>,
    pub latencies: Latencies,
}

/// Milliseconds by location. It takes less memory than a map, because very many tickets may wait, and tickets can share
/// the names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latencies(Box<[(Arc<str>, f64)]>);

impl Latencies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The locations, sorted.
    pub fn locations(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(location, _)| &**location)
    }

    /// The latency to a location.
    pub fn get(&self, location: &str) -> Option<f64> {
        // There are few, so this is faster than a binary search.
        self.0.iter().find(|(name, _)| &**name == location).map(|(_, latency)| *latency)
    }
}

/// If a location occurs twice, the last latency counts.
impl<N: Into<Arc<str>>> FromIterator<(N, f64)> for Latencies {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(latencies: I) -> Self {
        let latencies = latencies.into_iter().map(|(name, latency)| (name.into(), latency));
        let mut latencies: Vec<(Arc<str>, f64)> = latencies.collect();
        latencies.reverse();
        latencies.sort_by(|(one, _), (other, _)| one.cmp(other));
        latencies.dedup_by(|(one, _), (other, _)| one == other);
        Self(latencies.into())
    }
}

/// Players who play in one team. A ticket is matched as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticket {
    pub players: Vec<Player>,
    /// Since when it waits, in milliseconds of any clock.
    pub since_ms: i64,
}

impl Ticket {
    /// For how many whole seconds it has waited. `now_ms` is of the same clock as `since_ms`.
    pub fn age(&self, now_ms: i64) -> u64 {
        u64::try_from(now_ms.saturating_sub(self.since_ms) / 1_000).unwrap_or_default()
    }

    /// The ticket's latency to a location. `None` if a player has none.
    pub fn latency(&self, location: &str, party: NumberAggregation) -> Option<f64> {
        let latencies = self.players.iter().map(|player| player.latencies.get(location));
        aggregate(&latencies.collect::<Option<Vec<_>>>()?, party)
    }

    /// The locations for which each player has a latency.
    pub fn locations(&self) -> impl Iterator<Item = &str> {
        let first = self.players.first().into_iter().flat_map(|player| player.latencies.locations());
        first.filter(|location| self.players.iter().all(|player| player.latencies.get(location).is_some()))
    }
}

/// The aggregate of numbers. `None` if there are none.
pub(crate) fn aggregate(numbers: &[f64], party: NumberAggregation) -> Option<f64> {
    match party {
        NumberAggregation::Min => numbers.iter().copied().reduce(f64::min),
        NumberAggregation::Max => numbers.iter().copied().reduce(f64::max),
        NumberAggregation::Avg => {
            #[expect(clippy::cast_precision_loss, reason = "a match has at most 200 players")]
            let count = numbers.len() as f64;
            Some(sum(numbers) / count).filter(|_| count > 0.0)
        }
    }
}

/// The sum of numbers, added from the least to the greatest: rounding must not depend on the order of players or teams,
/// because the search does not try every order.
pub(crate) fn sum(numbers: &[f64]) -> f64 {
    // Two numbers have the same sum in both orders.
    if numbers.len() <= 2 {
        return numbers.iter().fold(0.0, |sum, number| sum + number);
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.iter().fold(0.0, |sum, number| sum + number)
}

/// Why a ticket cannot be matched, with any other tickets and at any age.
#[derive(Debug, Clone, PartialEq)]
pub enum Hopeless {
    NoPlayers,
    /// More than a ticket may have.
    TooManyPlayers {
        players: usize,
    },
    /// More than any team has.
    NoTeam {
        players: usize,
        max: usize,
    },
    NoValue {
        player: Arc<str>,
        attribute: String,
    },
    WrongType {
        player: Arc<str>,
        attribute: String,
        wants: AttributeType,
    },
    /// A ticket of one player has no location, or those of its players have none in common.
    NoLatencies {
        rule: String,
    },
    NoLocation {
        rule: String,
        max: f64,
    },
    /// The players of a ticket have latencies, but none to the same location.
    NoCommonLocation,
}

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlayers => f.write_str("the ticket has no players"),
            Self::NoCommonLocation => f.write_str("there is no region that all players of the ticket can use"),
            Self::TooManyPlayers { players } => {
                write!(f, "the ticket has {players} players; the maximum is {MAX_TICKET}")
            }
            Self::NoTeam { players, max } => {
                write!(f, "the ticket has {players} players, but they play in one team, which has at most {max}")
            }
            Self::NoValue { player, attribute } => {
                write!(f, "player {player:?} has no value for the attribute {attribute:?}, which has no default")
            }
            Self::WrongType { player, attribute, wants } => {
                let wants = match wants {
                    AttributeType::Text => "a text",
                    AttributeType::Number => "a number",
                    AttributeType::TextList => "a list of texts",
                    AttributeType::NumberMap => "a map of numbers",
                };
                write!(f, "the attribute {attribute:?} of player {player:?} is not {wants}")
            }
            Self::NoLocation { rule, max } => {
                write!(f, "no location has a latency of at most {max} ms, which the rule {rule:?} needs")
            }
            Self::NoLatencies { rule } => {
                write!(
                    f,
                    "there is no location to which all players of the ticket have a latency; the rule {rule:?} needs one"
                )
            }
        }
    }
}

impl RuleSet {
    /// Makes a ticket from a request. Fills in the defaults.
    ///
    /// # Errors
    /// [`Hopeless`], if the ticket cannot be matched at any age.
    pub fn ticket(&self, players: Vec<PlayerRequest>, since_ms: i64) -> Result<Ticket, Hopeless> {
        let largest = self.definitions.iter().flat_map(|of| of.sizes.all()).map(|(_, sizes)| sizes.max).max();
        let max = usize::try_from(largest.unwrap_or_default()).unwrap_or(usize::MAX);
        if players.is_empty() {
            return Err(Hopeless::NoPlayers);
        }
        if players.len() > MAX_TICKET {
            return Err(Hopeless::TooManyPlayers { players: players.len() });
        }
        if players.len() > max {
            return Err(Hopeless::NoTeam { players: players.len(), max });
        }
        let mut players = players.into_iter().map(|player| self.player(player)).collect::<Result<Vec<_>, _>>()?;
        players.shrink_to_fit();
        let ticket = Ticket { players, since_ms };
        if ticket.players.iter().any(|player| !player.latencies.is_empty()) && ticket.locations().next().is_none() {
            return Err(Hopeless::NoCommonLocation);
        }
        for rule in self.rules.iter().filter(|rule| matches!(rule.kind.at(0), RuleKind::Latency(_))) {
            if ticket.locations().next().is_none() {
                return Err(Hopeless::NoLatencies { rule: rule.name.clone() });
            }
            if rule.in_compound {
                continue;
            }
            let accepts = |(_, kind): (u64, &RuleKind)| match kind {
                RuleKind::Latency(latency) => ticket.locations().any(|location| accepts(latency, &ticket, location)),
                _ => true,
            };
            if !rule.kind.all().any(accepts) {
                return Err(Hopeless::NoLocation { rule: rule.name.clone(), max: greatest(&rule.kind) });
            }
        }
        Ok(ticket)
    }

    fn player(&self, player: PlayerRequest) -> Result<Player, Hopeless> {
        let PlayerRequest { id, mut attributes, latencies } = player;
        let values = self.attributes.iter().map(|attribute| {
            match attributes.remove(&attribute.name).or_else(|| attribute.default.clone()) {
                Some(Value::TextList(list)) if attribute.kind == AttributeType::TextList => {
                    Ok(Value::TextList(without_repeats(list)))
                }
                Some(value) if value.kind() == attribute.kind => Ok(value),
                Some(_) => {
                    let (attribute, wants) = (attribute.name.clone(), attribute.kind);
                    Err(Hopeless::WrongType { player: id.clone(), attribute, wants })
                }
                None => Err(Hopeless::NoValue { player: id.clone(), attribute: attribute.name.clone() }),
            }
        });
        Ok(Player { values: values.collect::<Result<_, _>>()?, latencies, id })
    }
}

/// The texts of a list, each once. (GameLift API, `AttributeValue`: repeated texts are ignored.)
fn without_repeats(list: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    list.into_iter().filter(|text| seen.insert(text.clone())).collect()
}

/// Whether a ticket's latency to a location is within the rule's maximum.
pub(crate) fn accepts(rule: &Latency, ticket: &Ticket, location: &str) -> bool {
    ticket.latency(location, rule.party).is_some_and(|latency| rule.max.is_none_or(|max| latency <= max))
}

fn greatest(kind: &Stages<RuleKind>) -> f64 {
    let of = |(_, kind): (u64, &RuleKind)| match kind {
        RuleKind::Latency(latency) => latency.max,
        _ => None,
    };
    kind.all().filter_map(of).fold(0.0, f64::max)
}
