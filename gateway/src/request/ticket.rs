//! The bodies of `POST /v1/matchmaking/tickets` and `POST /v1/matchmaking/groups`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use garage_events::{
    id::{PlayerId, QueueName, Region, TicketId},
    party::Readiness,
    player::{Queued, RANKS},
    queue::{MAX_REGIONS, Queue, Queues, Source},
};
use garage_rules::rule_set::{self, MAX_TICKET};
use hyper::HeaderMap;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Fields, party::RANK};
use crate::{problem::Problem, token::find_claim};

/// The maximum latency that is accepted, in milliseconds.
const MAX_LATENCY_MS: f64 = 10_000.0;

/// The maximum size of an attribute's value in JSON, in bytes.
const MAX_ATTRIBUTE: usize = 2 << 10;

/// The maximum number of entries of an attribute that is a list or an object. Matching compares them with each other.
const MAX_ENTRIES: usize = 20;

/// What a request says about a player.
#[derive(Debug)]
pub(crate) struct PlayerRequest {
    /// The player's rank, which a player's own request can contain only if the queue has `client_rank`.
    pub(crate) rank: Option<i32>,
    /// The latencies that count, rounded up.
    latencies: BTreeMap<Region, u32>,
    /// The regions in the request that do not count, as the client wrote them: they do not exist, were not measured, or
    /// the queue does not use them for the player.
    pub(crate) ignored_regions: Vec<String>,
    /// The attributes in the request.
    attributes: BTreeMap<String, Value>,
}

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// A player. Only values that the queue takes from clients are accepted.
    Player,
    /// The studio's own backend. It may send every value.
    Backend,
}

impl PlayerRequest {
    fn read(
        fields: &mut Fields,
        sender: Sender,
        (name, queue): (&QueueName, &Queue),
        all: &Queues,
    ) -> Result<Self, Problem> {
        let rank = match fields.take_optional("rank") {
            Some(_) if sender == Sender::Player && !queue.client_rank => {
                let detail = format!("queue {name} accepts no rank from a client; leave it out");
                return Err(Problem::unprocessable(detail));
            }
            rank => rank.map(|rank| parse_rank(&rank)).transpose()?,
        };
        let Value::Object(latencies) = fields.take("latencies")? else {
            return Err(Problem::unprocessable("latencies must be an object of regions with their latencies"));
        };
        let (measured, mut ignored_regions) = measured(latencies, all)?;
        check_latencies(&measured, name, queue)?;
        let latencies: BTreeMap<Region, u32> =
            queue.usable(&measured).map(|(region, latency)| (region.clone(), latency)).collect();
        ignored_regions.extend(measured.keys().filter(|region| !latencies.contains_key(region)).map(Region::to_string));
        let attributes = match fields.take_optional("attributes") {
            None => BTreeMap::new(),
            Some(Value::Object(attributes)) => attributes.into_iter().collect(),
            Some(_) => return Err(Problem::unprocessable("attributes must be an object of names with their values")),
        };
        for (attribute, value) in &attributes {
            check_attribute(attribute, value, sender, (name, queue))?;
        }
        Ok(Self { rank, latencies, ignored_regions, attributes })
    }

    /// What a member of a party has sent, and the claims of their token, as a request for a ticket of this queue.
    ///
    /// # Errors
    /// A 422 if the queue accepts none of the latencies.
    pub(crate) fn of_member(ready: &Readiness, (name, queue): (&QueueName, &Queue)) -> Result<Self, Problem> {
        check_latencies(&ready.latencies, name, queue)?;
        let from = |(attribute, source): (&String, &Source)| {
            let value = match source {
                Source::Client => ready.attributes.get(attribute),
                Source::Claim(claim) => ready.claims.get(claim),
                Source::Rating => None,
            };
            Some((attribute.clone(), serde_json::to_value(value?).ok()?))
        };
        let claimed = match ready.claims.get(RANK) {
            Some(rule_set::Value::Number(rank)) => Some(*rank as i32),
            _ => None,
        };
        Ok(Self {
            rank: ready.rank.filter(|_| queue.client_rank).or(claimed),
            latencies: queue.usable(&ready.latencies).map(|(region, latency)| (region.clone(), latency)).collect(),
            ignored_regions: Vec::new(),
            attributes: queue.attributes.iter().filter_map(from).collect(),
        })
    }

    /// The event that queues a player with this ticket and rank from `now` on. `claims` are those of the player's token.
    ///
    /// # Errors
    /// A 422 if the value of an attribute has the wrong type.
    pub(crate) fn queued(
        &self,
        (name, queue): (&QueueName, &Queue),
        ticket: TicketId,
        rank: i32,
        claims: &Map<String, Value>,
        now: OffsetDateTime,
    ) -> Result<Queued, Problem> {
        let mut attributes = BTreeMap::new();
        for (attribute, source) in &queue.attributes {
            let claimed = match source {
                Source::Rating => Some(Value::from(rank)),
                Source::Claim(claim) => find_claim(claims, claim).cloned(),
                Source::Client => None,
            };
            // Without a value, the attribute has its default. The rule set knows whether there is one.
            let Some(value) = self.attributes.get(attribute).cloned().or(claimed).filter(|value| !value.is_null())
            else {
                continue;
            };
            attributes.insert(attribute.clone(), parse_attribute(attribute, value)?);
        }
        Ok(Queued {
            ticket,
            queue: name.clone(),
            rank,
            latencies: self.latencies.clone(),
            attributes,
            group: Vec::new(),
            waiting_since: now,
            expires_at: now + queue.timeout(),
            requeues: 0,
            absences: 0,
            party: None,
        })
    }
}

/// A player's request for a ticket.
#[derive(Debug)]
pub(crate) struct TicketRequest {
    pub(crate) queue: QueueName,
    pub(crate) player: PlayerRequest,
}

impl TicketRequest {
    /// Reads a request, and checks it against the queues' configuration.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes, queues: &Queues) -> Result<Self, Problem> {
        let mut fields = Fields::read(headers, body, &["queue", "rank", "latencies", "attributes"])?;
        let (queue, config) = find_queue(&mut fields, queues)?;
        let player = PlayerRequest::read(&mut fields, Sender::Player, (&queue, config), queues)?;
        Ok(Self { queue, player })
    }
}

/// A request for the ticket of a group.
#[derive(Debug)]
pub(crate) struct GroupRequest {
    pub(crate) queue: QueueName,
    /// At least one, each once.
    pub(crate) players: Vec<(PlayerId, PlayerRequest)>,
    /// The players as the request names them, in the same order: the `sub` of the token of each.
    pub(crate) subs: Vec<String>,
}

impl GroupRequest {
    /// Reads a request, and checks it against the queues' configuration.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes, queues: &Queues) -> Result<Self, Problem> {
        let mut fields = Fields::read(headers, body, &["queue", "players"])?;
        let (queue, config) = find_queue(&mut fields, queues)?;
        let listed = match fields.take("players")? {
            Value::Array(listed) if (1..=MAX_TICKET).contains(&listed.len()) => listed,
            _ => return Err(Problem::unprocessable(format!("players must be a list of 1 to {MAX_TICKET} players"))),
        };
        let (mut players, mut subs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for listed in listed {
            let Value::Object(listed) = listed else {
                return Err(Problem::unprocessable("each of the players must be an object"));
            };
            let mut fields = Fields::of(listed, &["player", "rank", "latencies", "attributes"])?;
            let text = fields.take("player")?;
            let named = text.as_str().and_then(|sub| Some((sub, PlayerId::from_foreign(sub).ok()?)));
            let (sub, player) =
                named.ok_or_else(|| Problem::unprocessable("player must be the sub of a player's token"))?;
            if !seen.insert(player.clone()) {
                return Err(Problem::unprocessable(format!("the player {sub} is listed twice")));
            }
            let request = PlayerRequest::read(&mut fields, Sender::Backend, (&queue, config), queues)
                .map_err(|problem| problem.about(&player).naming([(&player, sub)]))?;
            players.push((player, request));
            subs.push(sub.to_owned());
        }
        Ok(Self { queue, players, subs })
    }
}

fn find_queue<'a>(fields: &mut Fields, queues: &'a Queues) -> Result<(QueueName, &'a Queue), Problem> {
    let name: QueueName = fields.take_id("queue")?;
    let queue = queues.get(&name).ok_or_else(|| {
        let names = list(queues.queues.keys());
        Problem::unprocessable(format!("there is no queue {name}; the queues are: {names}"))
    })?;
    Ok((name, queue))
}

/// Checks that an attribute may be in a request.
fn check_attribute(
    attribute: &str,
    value: &Value,
    sender: Sender,
    (name, queue): (&QueueName, &Queue),
) -> Result<(), Problem> {
    let shown: String = attribute.chars().take(64).collect();
    let accepted = |source: &&Source| sender == Sender::Backend || **source == Source::Client;
    if queue.attributes.get(attribute).filter(accepted).is_none() {
        let accepted = queue.attributes.iter().filter(|(_, source)| accepted(source)).map(|(name, _)| name);
        let accepted = list(accepted);
        let accepted = if accepted.is_empty() { "none".into() } else { accepted };
        let detail = format!("queue {name} accepts no attribute {shown:?} in a request; it accepts: {accepted}");
        return Err(Problem::unprocessable(detail));
    }
    check_size(attribute, value)
}

/// Checks that the value of an attribute is not too long.
pub(super) fn check_size(attribute: &str, value: &Value) -> Result<(), Problem> {
    let entries = value.as_array().map(Vec::len).or_else(|| value.as_object().map(Map::len)).unwrap_or_default();
    if value.to_string().len() > MAX_ATTRIBUTE || entries > MAX_ENTRIES {
        let detail = format!(
            "the attribute {attribute} is too long; the limits are {MAX_ATTRIBUTE} bytes of JSON and {MAX_ENTRIES} entries"
        );
        return Err(Problem::unprocessable(detail));
    }
    Ok(())
}

pub(super) fn parse_attribute(attribute: &str, value: Value) -> Result<rule_set::Value, Problem> {
    let parsed = serde_json::from_value(value).ok();
    parsed.ok_or_else(|| {
        Problem::unprocessable(format!(
            "the attribute {attribute} must be a text, a number, a list of texts or an object of numbers"
        ))
    })
}

/// JSON does not distinguish 1 and 1.0, so both are whole numbers.
pub(super) fn parse_rank(rank: &Value) -> Result<i32, Problem> {
    let (min, max) = (f64::from(*RANKS.start()), f64::from(*RANKS.end()));
    let rank = rank.as_f64().filter(|rank| rank.fract() == 0.0 && (min..=max).contains(rank));
    let beyond = || format!("rank must be a whole number between {min} and {max}");
    rank.map(|rank| rank as i32).ok_or_else(|| Problem::unprocessable(beyond()))
}

/// The measured latencies of regions that exist, and the names of the other regions.
pub(super) fn measured(
    latencies: Map<String, Value>,
    queues: &Queues,
) -> Result<(BTreeMap<Region, u32>, Vec<String>), Problem> {
    if !(1..=MAX_REGIONS).contains(&latencies.len()) {
        return Err(Problem::unprocessable(format!("latencies must name 1 to {MAX_REGIONS} regions")));
    }
    let known = queues.regions();
    let (mut measured, mut ignored) = (BTreeMap::new(), Vec::new());
    for (name, latency) in latencies {
        let valid = latency.as_f64().filter(|latency| (0.0..=MAX_LATENCY_MS).contains(latency));
        if valid.is_none() && !latency.is_null() {
            let name: String = name.chars().take(64).collect();
            let detail = format!("the latency of {name} must be a number between 0 and {MAX_LATENCY_MS} ms, or null");
            return Err(Problem::unprocessable(detail));
        }
        match name.parse::<Region>().ok().filter(|region| known.contains(region)).zip(valid) {
            Some((region, latency)) => {
                measured.insert(region, latency.ceil() as u32);
            }
            None => ignored.push(name),
        }
    }
    Ok((measured, ignored))
}

/// Checks that at least one region of the queue has a latency that the queue accepts. The matchmaker could never match
/// the ticket otherwise.
fn check_latencies(latencies: &BTreeMap<Region, u32>, name: &QueueName, queue: &Queue) -> Result<(), Problem> {
    if queue.usable(latencies).next().is_some() {
        return Ok(());
    }
    let bounds = queue.regions.iter().filter_map(|(region, max)| Some((region, latencies.get(region)?, max)));
    let bounds = list(bounds.map(|(region, is, max)| format!("{region} has {is} ms, the limit is {max} ms")));
    if bounds.is_empty() {
        let regions = list(queue.regions.keys());
        return Err(Problem::unprocessable(format!(
            "latencies must have a number for at least one region of queue {name}: {regions}. If you cannot measure, \
             send the default_latency_ms of GET /v1/regions"
        )));
    }
    Err(Problem::latency_too_high(name, &queue.regions, &bounds))
}

fn list<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod any_bytes;
#[cfg(test)]
mod tests;
