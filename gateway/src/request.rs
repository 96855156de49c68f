//! Parses and checks clients' requests: headers, queries and bodies.

use std::collections::BTreeMap;

use bytes::Bytes;
use garage_events::{
    id::{CarId, ItemId, PlayerId, QueueName, Region, TicketId},
    player::{Queued, RANKS},
    queue::Queues,
    svc::{GetLedger, IdempotencyKey},
};
use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName},
};
use serde::{Deserialize, de::DeserializeOwned};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    problem::Problem,
    token::{Identity, Keys, Refused},
};

/// The maximum number of regions in one request.
const MAX_REGIONS: usize = 32;
/// The maximum latency that is accepted, in milliseconds.
const MAX_LATENCY_MS: u32 = 10_000;
/// The number of ledger entries if the request has no `limit`.
const DEFAULT_LIMIT: u32 = 50;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The namespace of ticket ids that are derived from a player and an idempotency key. A random UUID that must not
/// change.
const TICKETS: Uuid = Uuid::from_u128(0x5d0c_1a7e_8c1f_4b0e_9a53_2f6d_1c4b_77e1);

/// The identity in the request's bearer token.
pub(crate) fn identity(keys: &Keys, headers: &HeaderMap) -> Result<Identity, Refused> {
    let header = headers.get(AUTHORIZATION).ok_or(Refused::Missing)?;
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refused::Invalid)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refused::Missing);
    }
    keys.verify(token.trim())
}

/// Reads a JSON body.
pub(crate) fn json<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Problem> {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = essence.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON, with Content-Type application/json",
        ));
    }
    if body.trim_ascii_start().starts_with(b"[") {
        // Serde would accept an array of the fields in their order.
        return Err(Problem::unprocessable("the body must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // The message quotes the body, which may be long.
        let detail: String = error.to_string().chars().take(300).collect();
        if error.is_data() { Problem::unprocessable(detail) } else { Problem::bad_request(detail) }
    })
}

/// The request's `Idempotency-Key`; `None` if it has none.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.to_str().ok().and_then(|key| key.parse().ok());
    if key.is_none() || keys.next().is_some() {
        let detail = format!(
            "send at most one Idempotency-Key, with 1 to {} visible ASCII characters",
            IdempotencyKey::MAX_LENGTH
        );
        return Err(Problem::bad_request(detail));
    }
    Ok(key)
}

/// The id of the ticket for a request with an `Idempotency-Key`. It depends only on the player and the key; `None`
/// without a key.
pub(crate) fn keyed_ticket(player: &PlayerId, headers: &HeaderMap) -> Result<Option<TicketId>, Problem> {
    let own = Uuid::new_v5(&TICKETS, player.as_str().as_bytes());
    let named = |key: IdempotencyKey| TicketId::new(Uuid::new_v5(&own, key.as_str().as_bytes()));
    Ok(idempotency_key(headers)?.map(named))
}

/// Reads the query of `GET /v1/wallet/ledger`: `before` and `limit`.
pub(crate) fn page(query: &str) -> Result<(Option<u64>, u32), Problem> {
    let (mut before, mut limit) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = value.parse::<u64>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
        let field = match name {
            "before" => &mut before,
            "limit" => &mut limit,
            _ => return Err(Problem::bad_request("the query can contain only before and limit")),
        };
        let number = number.ok_or_else(|| Problem::bad_request(format!("{name} must be a whole number, 0 or more")))?;
        if field.replace(number).is_some() {
            return Err(Problem::bad_request(format!("{name} must not appear twice in the query")));
        }
    }
    let limit = limit.map_or(Some(DEFAULT_LIMIT), |limit| u32::try_from(limit).ok());
    let limit = limit.filter(|limit| (1..=GetLedger::MAX_LIMIT).contains(limit));
    let beyond = || Problem::bad_request(format!("limit must be between 1 and {}", GetLedger::MAX_LIMIT));
    Ok((before, limit.ok_or_else(beyond)?))
}

/// The body of requests that name a car: `PUT /v1/garage/active-car`, `POST /v1/garage/cars`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneCar {
    pub(crate) car: CarId,
}

/// The body of requests that name an item: `POST /v1/garage/items`, `PUT /v1/garage/cars/{car}/slots/{slot}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneItem {
    pub(crate) item: ItemId,
}

/// The body of `POST /v1/matchmaking/tickets`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketRequest {
    pub(crate) queue: QueueName,
    /// The player's rank, which a request can contain only if the queue has `client_rank`.
    pub(crate) rank: Option<i32>,
    latencies: BTreeMap<Region, u32>,
}

impl TicketRequest {
    /// Checks the request against the queues' configuration. Returns the queue's time-out.
    pub(crate) fn check(&self, queues: &Queues) -> Result<Duration, Problem> {
        let wrong = |detail: String| Err(Problem::unprocessable(detail));
        let Self { queue: name, rank, latencies } = self;
        let Some(queue) = queues.get(name) else {
            return wrong(format!("there is no queue {name}; the queues are: {}", list(queues.queues.keys())));
        };
        if rank.is_some() && !queue.client_rank {
            return wrong(format!("queue {name} accepts no rank from a client; leave it out"));
        }
        if rank.is_some_and(|rank| !RANKS.contains(&rank)) {
            return wrong(format!("rank must be between {} and {}", RANKS.start(), RANKS.end()));
        }
        if !(1..=MAX_REGIONS).contains(&latencies.len()) {
            return wrong(format!("latencies must name 1 to {MAX_REGIONS} regions"));
        }
        let regions = queues.regions();
        if let Some(region) = latencies.keys().find(|region| !regions.contains(region)) {
            return wrong(format!("there is no region {region}; the regions are: {}", list(regions)));
        }
        if let Some((region, _)) = latencies.iter().find(|(_, latency)| **latency > MAX_LATENCY_MS) {
            return wrong(format!("the latency of {region} must be between 0 and {MAX_LATENCY_MS} ms"));
        }
        if !latencies.keys().any(|region| queue.regions.contains_key(region)) {
            return wrong(format!("latencies must name a region of queue {name}: {}", list(queue.regions.keys())));
        }
        Ok(queue.timeout())
    }

    /// The event that queues the player with this ticket and rank, from `now` until the time-out.
    pub(crate) fn queued(&self, ticket: TicketId, rank: i32, now: OffsetDateTime, timeout: Duration) -> Queued {
        let (queue, latencies) = (self.queue.clone(), self.latencies.clone());
        let (attributes, waiting_since, expires_at) = (BTreeMap::new(), now, now + timeout);
        Queued { ticket, queue, rank, latencies, attributes, waiting_since, expires_at, requeues: 0 }
    }
}

fn list<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use garage_events::queue::Queue;
    use serde_json::{Value, json};

    use super::*;

    fn queues() -> Queues {
        let queue = |region: &str| Queue {
            players: 2,
            rank_band: 200,
            timeout_s: 120,
            client_rank: region == "eu",
            requeue: true,
            regions: BTreeMap::from([(region.parse().unwrap(), 120)]),
        };
        let queues = [("ranked", "eu"), ("quick", "us")];
        Queues { queues: queues.map(|(name, region)| (name.parse().unwrap(), queue(region))).into() }
    }

    fn ticket_request(body: &Value) -> Result<Queued, Problem> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap())]);
        let ticket_request: TicketRequest = json(&headers, &body.to_string().into())?;
        let timeout = ticket_request.check(&queues())?;
        let rank = ticket_request.rank.unwrap_or(7);
        Ok(ticket_request.queued(TicketId::new(Uuid::nil()), rank, OffsetDateTime::UNIX_EPOCH, timeout))
    }

    fn refusal(result: Result<impl std::fmt::Debug, Problem>) -> (u16, String) {
        let problem = result.unwrap_err();
        (problem.status().as_u16(), format!("{problem:?}"))
    }

    #[test]
    fn a_valid_ticket_request_expires_after_its_queues_timeout() {
        for rank in [-100_000, 0, 100_000] {
            let queued =
                ticket_request(&json!({"queue": "ranked", "rank": rank, "latencies": {"eu": 0, "us": 10_000}}))
                    .unwrap();
            assert_eq!((queued.rank, queued.expires_at.unix_timestamp()), (rank, 120));
        }
        for body in [
            json!({"queue": "ranked", "latencies": {"eu": 1}}),
            json!({"queue": "ranked", "rank": null, "latencies": {"eu": 1}}),
            json!({"queue": "quick", "latencies": {"us": 1}}),
        ] {
            assert_eq!(ticket_request(&body).unwrap().rank, 7, "{body}: the client sends no rank");
        }
    }

    #[test]
    fn an_invalid_ticket_request_is_refused_with_a_detail_that_says_why() {
        let many: BTreeMap<String, u32> = (0..33).map(|n| (format!("r{n}"), 1)).collect();
        for (body, status, why) in [
            (json!({"queue": "casual", "rank": 1, "latencies": {"eu": 1}}), 422, "quick, ranked"),
            (json!({"queue": "Casual", "rank": 1, "latencies": {"eu": 1}}), 422, "is not valid"),
            (json!({"queue": "ranked", "rank": 100_001, "latencies": {"eu": 1}}), 422, "rank must"),
            (json!({"queue": "ranked", "rank": -100_001, "latencies": {"eu": 1}}), 422, "rank must"),
            (json!({"queue": "ranked", "rank": 1.5, "latencies": {"eu": 1}}), 422, "invalid type"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {}}), 422, "1 to 32"),
            (json!({"queue": "ranked", "rank": 1, "latencies": many}), 422, "1 to 32"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {"mars": 1}}), 422, "eu, us"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {"us": 1}}), 422, "region of queue ranked: eu"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {"eu": 10_001}}), 422, "10000 ms"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {"eu": -1}}), 422, "invalid value"),
            (json!({"queue": "ranked", "rank": 1, "latencies": {"eu": 1}, "vip": true}), 422, "unknown field `vip`"),
            (json!({"queue": "quick", "rank": 1, "latencies": {"us": 1}}), 422, "accepts no rank"),
        ] {
            let (found, problem) = refusal(ticket_request(&body));
            assert!(found == status && problem.contains(why), "{body}: {problem}");
        }
    }

    #[test]
    fn a_body_must_be_json_with_the_content_type_of_json() {
        let read = |kind: &'static str, body: &'static str| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
            refusal(json::<OneCar>(&headers, &body.into())).0
        };
        assert_eq!(read("text/plain", "{}"), 415);
        assert_eq!(read("application/json", ""), 400);
        assert_eq!(read("application/json", "{\"car\""), 400);
        assert_eq!(read("application/json", "{}"), 422);
        assert_eq!(refusal(json::<OneCar>(&HeaderMap::new(), &"{}".into())).0, 415);
    }

    #[test]
    fn the_limit_of_a_ledger_page_is_checked() {
        for (query, expected) in [
            ("", (None, 50)),
            ("limit=1", (None, 1)),
            ("before=7&limit=100", (Some(7), 100)),
            ("before=18446744073709551615&", (Some(u64::MAX), 50)),
        ] {
            assert_eq!(page(query).unwrap(), expected, "{query}");
        }
        for query in [
            "limit=0",
            "limit=101",
            "limit=4294967297",
            "limit=+1",
            "limit=x",
            "limit",
            "before=-1",
            "before=",
            "before=18446744073709551616",
            "limit=1&limit=2",
            "after=1",
            "&=",
        ] {
            assert_eq!(refusal(page(query)).0, 400, "{query}");
        }
    }

    #[test]
    fn an_idempotency_key_gives_each_player_another_ticket() {
        let named = |player: &str, key: &str| {
            let headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, key.parse().unwrap())]);
            keyed_ticket(&player.parse().unwrap(), &headers)
        };
        let ticket = named("ann", "k1").unwrap();
        assert!(ticket.is_some());
        assert_eq!(ticket, named("ann", "k1").unwrap());
        assert_ne!(ticket, named("ann", "k2").unwrap());
        assert_ne!(ticket, named("bob", "k1").unwrap());
        // Player and key must not simply be concatenated.
        assert_ne!(named("a", "nnk1").unwrap(), ticket);
        assert!(named("ann", &"k".repeat(128)).is_ok());
        for bad in ["", "a b", "é", &"k".repeat(129)] {
            assert_eq!(refusal(named("ann", bad)).0, 400, "{bad:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(IDEMPOTENCY_KEY, "a".parse().unwrap());
        twice.append(IDEMPOTENCY_KEY, "b".parse().unwrap());
        assert_eq!(refusal(keyed_ticket(&"ann".parse().unwrap(), &twice)).0, 400);
        assert_eq!(keyed_ticket(&"ann".parse().unwrap(), &HeaderMap::new()).unwrap(), None);
    }
}
