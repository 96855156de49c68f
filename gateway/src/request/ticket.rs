//! The body of `POST /v1/matchmaking/tickets`.

use std::collections::BTreeMap;

use bytes::Bytes;
use garage_events::{
    id::{QueueName, Region, TicketId},
    player::{Queued, RANKS},
    queue::{MAX_REGIONS, Queue, Queues},
};
use hyper::HeaderMap;
use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::Fields;
use crate::problem::Problem;

/// The maximum latency that is accepted, in milliseconds.
const MAX_LATENCY_MS: f64 = 10_000.0;

/// A valid request: the queue can match the ticket, once suitable players wait too.
#[derive(Debug)]
pub(crate) struct TicketRequest {
    pub(crate) queue: QueueName,
    /// The player's rank, which a request can contain only if the queue has `client_rank`.
    pub(crate) rank: Option<i32>,
    /// The measured latencies, rounded up.
    latencies: BTreeMap<Region, u32>,
    /// The regions in the request that do not exist or were not measured, as the client wrote them.
    pub(crate) ignored_regions: Vec<String>,
    /// How long the ticket waits.
    timeout: Duration,
}

impl TicketRequest {
    /// Reads a request, and checks it against the queues' configuration.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes, queues: &Queues) -> Result<Self, Problem> {
        let mut fields = Fields::read(headers, body, &["queue", "rank", "latencies"])?;
        let name: QueueName = fields.take_id("queue")?;
        let queue = queues.get(&name).ok_or_else(|| {
            let names = list(queues.queues.keys());
            Problem::unprocessable(format!("there is no queue {name}; the queues are: {names}"))
        })?;
        let rank = match fields.take_optional("rank") {
            Some(_) if !queue.client_rank => {
                let detail = format!("queue {name} accepts no rank from a client; leave it out");
                return Err(Problem::unprocessable(detail));
            }
            rank => rank.map(|rank| parse_rank(&rank)).transpose()?,
        };
        let Value::Object(latencies) = fields.take("latencies")? else {
            return Err(Problem::unprocessable("latencies must be an object of regions with their latencies"));
        };
        let (latencies, ignored_regions) = measured(latencies, queues)?;
        check_latencies(&latencies, &name, queue)?;
        Ok(Self { queue: name, rank, latencies, ignored_regions, timeout: queue.timeout() })
    }

    /// The event that queues the player with this ticket and rank, from `now` until the time-out.
    pub(crate) fn queued(&self, ticket: TicketId, rank: i32, now: OffsetDateTime) -> Queued {
        let (queue, latencies) = (self.queue.clone(), self.latencies.clone());
        let (attributes, waiting_since, expires_at) = (BTreeMap::new(), now, now + self.timeout);
        Queued { ticket, queue, rank, latencies, attributes, waiting_since, expires_at, requeues: 0, absences: 0 }
    }
}

/// JSON does not distinguish 1 and 1.0, so both are whole numbers.
fn parse_rank(rank: &Value) -> Result<i32, Problem> {
    let (min, max) = (f64::from(*RANKS.start()), f64::from(*RANKS.end()));
    let rank = rank.as_f64().filter(|rank| rank.fract() == 0.0 && (min..=max).contains(rank));
    let beyond = || format!("rank must be a whole number between {min} and {max}");
    rank.map(|rank| rank as i32).ok_or_else(|| Problem::unprocessable(beyond()))
}

/// The measured latencies of regions that exist, and the names of the other regions.
fn measured(latencies: Map<String, Value>, queues: &Queues) -> Result<(BTreeMap<Region, u32>, Vec<String>), Problem> {
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
mod tests;
