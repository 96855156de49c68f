//! Parses and checks clients' requests: headers, queries and bodies.

mod body;
pub(crate) mod party;
mod ticket;

use bytes::Bytes;
use garage_events::{
    id::{CarId, ItemId, PartyId, PlayerId, TicketId},
    svc::{GetLedger, IdempotencyKey},
};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName},
};
use uuid::Uuid;

use crate::{
    problem::Problem,
    token::{Identity, Keys, Refused},
};
use body::Fields;
pub(crate) use ticket::{GroupRequest, PlayerRequest, TicketRequest};

/// The number of ledger entries if the request has no `limit`.
const DEFAULT_LIMIT: u32 = 50;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The namespace of ticket ids that are derived from a player and an idempotency key. A random UUID that must not
/// change.
const TICKETS: Uuid = Uuid::from_u128(0x5d0c_1a7e_8c1f_4b0e_9a53_2f6d_1c4b_77e1);

/// The identity in the request's bearer token.
pub(crate) async fn identity(keys: &Keys, headers: &HeaderMap) -> Result<Identity, Refused> {
    let header = headers.get(AUTHORIZATION).ok_or(Refused::Missing)?;
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refused::Signature)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refused::Missing);
    }
    keys.verify(token.trim()).await
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

/// The id of the party for a request with an `Idempotency-Key`. It depends only on the player and the key; `None` without
/// a key.
pub(crate) fn keyed_party(player: &PlayerId, headers: &HeaderMap) -> Result<Option<PartyId>, Problem> {
    let named = |ticket: TicketId| PartyId::new(Uuid::new_v5(&ticket.uuid(), b"party"));
    Ok(keyed_ticket(player, headers)?.map(named))
}

/// The same for a group of players. Another group gets another ticket, even with the same key.
pub(crate) fn keyed_group(
    backend: &PlayerId,
    headers: &HeaderMap,
    players: &[PlayerId],
) -> Result<Option<TicketId>, Problem> {
    // A comma is not part of a player id.
    let names = players.iter().map(PlayerId::as_str).collect::<Vec<_>>().join(",");
    let named = |ticket: TicketId| TicketId::new(Uuid::new_v5(&ticket.uuid(), names.as_bytes()));
    Ok(keyed_ticket(backend, headers)?.map(named))
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
pub(crate) fn car(headers: &HeaderMap, body: &Bytes) -> Result<CarId, Problem> {
    Fields::read(headers, body, &["car"])?.take_id("car")
}

/// The body of requests that name an item: `POST /v1/garage/items`, `PUT /v1/garage/cars/{car}/slots/{slot}`.
pub(crate) fn item(headers: &HeaderMap, body: &Bytes) -> Result<ItemId, Problem> {
    Fields::read(headers, body, &["item"])?.take_id("item")
}

#[cfg(test)]
mod tests {
    use hyper::header::{CONTENT_TYPE, HeaderValue};

    use super::*;

    fn refusal(result: Result<impl std::fmt::Debug, Problem>) -> (u16, String) {
        let problem = result.unwrap_err();
        (problem.status().as_u16(), format!("{problem:?}"))
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

    fn short(problem: &Problem) {
        assert!(problem.status().is_client_error() && problem.detail().chars().count() <= 1_000, "{problem:?}");
    }

    #[test]
    fn any_bytes_are_a_page_within_its_bounds_or_a_short_problem() {
        garage_fuzz::feed(&["before=7&limit=100", "limit=1", "before=18446744073709551615&", ""], |bytes| {
            match page(&String::from_utf8_lossy(bytes)) {
                Ok((before, limit)) => {
                    assert!((1..=GetLedger::MAX_LIMIT).contains(&limit));
                    let before_pair = before.map(|before| format!("before={before}&")).unwrap_or_default();
                    assert_eq!(page(&format!("{before_pair}limit={limit}")).unwrap(), (before, limit));
                    true
                }
                Err(problem) => {
                    short(&problem);
                    false
                }
            }
        });
    }

    #[test]
    fn any_bytes_are_a_command_of_the_inventory_or_a_short_problem() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        garage_fuzz::feed(&[r#"{"car": "gt-40"}"#, r#"{"item": "tyres-street"}"#], |bytes| {
            let body = Bytes::copy_from_slice(bytes);
            let (car, item) = (car(&headers, &body), item(&headers, &body));
            for problem in [car.as_ref().err(), item.as_ref().err()].into_iter().flatten() {
                short(problem);
            }
            let named = |field: &str, id: &str| serde_json::json!({ field: id }).to_string().into();
            assert!(
                car.iter().all(|car| super::car(&headers, &named("car", car.as_str())).is_ok_and(|read| read == *car))
            );
            assert!(
                item.iter()
                    .all(|item| super::item(&headers, &named("item", item.as_str())).is_ok_and(|read| read == *item))
            );
            assert!(car.is_err() || item.is_err(), "a body has one meaning");
            car.is_ok() || item.is_ok()
        });
    }

    #[test]
    fn any_bytes_in_a_header_are_a_content_type_and_a_key_or_a_short_problem() {
        let key = "k".repeat(IdempotencyKey::MAX_LENGTH);
        garage_fuzz::feed(&["application/json; charset=utf-8", "k1", &key], |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.clone()), (IDEMPOTENCY_KEY, value)]);
            let (read, key) = (car(&headers, &Bytes::from_static(b"{\"car\": \"gt\"}")), idempotency_key(&headers));
            for problem in [read.as_ref().err(), key.as_ref().err()].into_iter().flatten() {
                short(problem);
            }
            if let Ok(key) = &key {
                let text = key.as_ref().unwrap().as_str();
                assert!(text.as_bytes() == bytes && (1..=IdempotencyKey::MAX_LENGTH).contains(&text.len()));
                assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
            }
            read.is_ok() || key.is_ok()
        });
    }
}
