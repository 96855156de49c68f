//! The bodies and paths of the requests about parties.

use std::collections::BTreeMap;

use bytes::Bytes;
use garage_events::{
    id::PlayerId,
    party::Readiness,
    queue::{Queues, Source},
};
use garage_rules::rule_set;
use hyper::HeaderMap;
use serde_json::{Map, Value};

use super::{
    Fields,
    ticket::{check_size, measured, parse_attribute, parse_rank},
};
use crate::{
    party::{code, named},
    problem::Problem,
    token::{Identity, find_claim},
};

/// The maximum size of what a member who is ready sends and of the claims of their token that queues use, in bytes of
/// JSON. Each event of a party carries the values of all members, so a party of 10 has events of up to 20 KiB. An event
/// may have 832 KiB.
const MAX_READY: usize = 2 << 10;

/// The entry of [`Readiness::claims`] with the rank in the token. No queue takes an attribute from a claim with this name.
pub(super) const RANK: &str = "rank";

/// The player that a body names by their `sub`.
pub(crate) fn player(headers: &HeaderMap, body: &Bytes) -> Result<PlayerId, Problem> {
    let named = Fields::read(headers, body, &["player"])?.take("player")?.as_str().and_then(named);
    named.ok_or_else(|| Problem::unprocessable("player must be the sub of a player's token"))
}

/// The member that a path names by their `sub`, percent-encoded.
pub(crate) fn member(segment: &str) -> Result<PlayerId, Problem> {
    let member = decoded(segment).and_then(|sub| named(&sub));
    member.ok_or_else(|| Problem::bad_request("the last part of the path must be the sub of a player's token"))
}

/// The SHA-256 of the code in a body.
pub(crate) fn code(headers: &HeaderMap, body: &Bytes) -> Result<String, Problem> {
    let code = Fields::read(headers, body, &["code"])?.take("code")?.as_str().and_then(code::typed);
    let code = code.ok_or_else(|| Problem::unprocessable("code must be the 10 characters of a party's code"))?;
    Ok(code::sha256(&code))
}

/// What a member needs for the next ticket: the body, and from the token the rank and the claims that queues use.
pub(crate) fn ready(
    headers: &HeaderMap,
    body: &Bytes,
    identity: &Identity,
    queues: &Queues,
) -> Result<Readiness, Problem> {
    let mut fields = Fields::read(headers, body, &["rank", "latencies", "attributes"])?;
    let rank = match fields.take_optional("rank") {
        Some(_) if !queues.queues.values().any(|queue| queue.client_rank) => {
            return Err(Problem::unprocessable("no queue accepts a rank from a client; leave it out"));
        }
        rank => rank.map(|rank| parse_rank(&rank)).transpose()?,
    };
    let Value::Object(latencies) = fields.take("latencies")? else {
        return Err(Problem::unprocessable("latencies must be an object of regions with their latencies"));
    };
    let (latencies, _) = measured(latencies, queues)?;
    if latencies.is_empty() {
        return Err(Problem::unprocessable("latencies must have a number for at least one region of GET /v1/regions"));
    }
    let attributes = match fields.take_optional("attributes") {
        None => Map::new(),
        Some(Value::Object(attributes)) => attributes,
        Some(_) => return Err(Problem::unprocessable("attributes must be an object of names with their values")),
    };
    let attributes = attributes.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
        let is_taken = queues.queues.values().any(|queue| queue.attributes.get(&name) == Some(&Source::Client));
        if !is_taken {
            let shown: String = name.chars().take(64).collect();
            return Err(Problem::unprocessable(format!("no queue accepts the attribute {shown:?} from a client")));
        }
        check_size(&name, &value)?;
        let value = parse_attribute(&name, value)?;
        Ok((name, value))
    });
    let attributes = attributes.collect::<Result<BTreeMap<_, _>, Problem>>()?;
    let ready = Readiness { rank, latencies, attributes, claims: claims(identity, queues)? };
    let size = serde_json::to_vec(&ready).map_or(usize::MAX, |json| json.len());
    if size > MAX_READY {
        let detail = format!(
            "the latencies, the attributes and the claims of the token that queues use have {size} bytes; the limit is \
             {MAX_READY} bytes"
        );
        return Err(Problem::unprocessable(detail));
    }
    Ok(ready)
}

/// The claims that some queue uses as an attribute, and the rank.
fn claims(identity: &Identity, queues: &Queues) -> Result<BTreeMap<String, rule_set::Value>, Problem> {
    let sources = queues.queues.values().flat_map(|queue| queue.attributes.values());
    let names = sources.filter_map(|source| match source {
        Source::Claim(name) => Some(name),
        Source::Rating | Source::Client => None,
    });
    let mut claims = BTreeMap::new();
    for name in names {
        if let Some(value) = find_claim(&identity.claims, name).filter(|value| !value.is_null()) {
            claims.insert(name.clone(), parse_attribute(name, value.clone())?);
        }
    }
    claims.extend(identity.rank.map(|rank| (RANK.to_owned(), rule_set::Value::Number(rank.into()))));
    Ok(claims)
}

/// Decodes `%XX` in a segment of a path. `None` if the result is not UTF-8.
fn decoded(segment: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(segment.len()), segment.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use garage_fuzz::feed;
    use hyper::header::CONTENT_TYPE;
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    fn queues() -> Queues {
        let folder = tempfile::tempdir().unwrap();
        let teams = json!({
            "ruleLanguageVersion": "1.0",
            "playerAttributes": [{"name": "mode", "type": "string"}, {"name": "role", "type": "string"}],
            "teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 2, "quantity": 2}],
        });
        std::fs::write(folder.path().join("teams.json"), teams.to_string()).unwrap();
        let path = folder.path().join("queues.toml");
        let text = "[queues.teams]\nrule_set = \"teams.json\"\n\
            attributes = { mode = \"claim:mode\", role = \"client\" }\ntimeout_s = 120\nclient_rank = true\n\
            regions = { eu = 120, us = 120 }\n";
        std::fs::write(&path, text).unwrap();
        Queues::load(&path).unwrap()
    }

    fn read(body: &str, claims: &Value) -> Result<Readiness, Problem> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        let identity = Identity {
            player: "ann".parse().unwrap(),
            sub: "ann".into(),
            rank: Some(7),
            expires_at: OffsetDateTime::UNIX_EPOCH,
            claims: claims.as_object().unwrap().clone(),
        };
        ready(&headers, &Bytes::copy_from_slice(body.as_bytes()), &identity, &queues())
    }

    #[test]
    fn a_member_is_ready_with_the_values_of_the_request_and_the_claims_that_queues_use() {
        let body = json!({"rank": 5, "latencies": {"eu": 20.1, "mars": 3}, "attributes": {"role": "medic"}});
        let ready = read(&body.to_string(), &json!({"mode": "capture", "other": "x"})).unwrap();
        assert_eq!(
            json!(ready),
            json!({"rank": 5, "latencies": {"eu": 21}, "attributes": {"role": "medic"},
                "claims": {"mode": "capture", "rank": 7.0}})
        );
    }

    #[test]
    fn a_client_cannot_send_the_value_of_a_claim() {
        let body = json!({"latencies": {"eu": 1}, "attributes": {"mode": "capture"}});
        let problem = read(&body.to_string(), &json!({})).unwrap_err();
        assert!(problem.detail().contains("mode"), "{problem:?}");
    }

    #[test]
    fn values_that_are_missing_or_too_long_are_refused() {
        let long = "x".repeat(2_000);
        for (body, claims) in [
            (json!({}), json!({})),
            (json!({"latencies": {"mars": 1}}), json!({})),
            (json!({"latencies": {"eu": 1}, "attributes": {"role": true}}), json!({})),
            (json!({"latencies": {"eu": 1}, "attributes": {"role": "x".repeat(3_000)}}), json!({})),
            (json!({"latencies": {"eu": 1}, "attributes": {"role": long}}), json!({"mode": long.repeat(2)})),
            (json!({"latencies": {"eu": 1}, "rank": 1.5}), json!({})),
            (json!({"latencies": {"eu": 1}, "queue": "teams"}), json!({})),
        ] {
            let problem = read(&body.to_string(), &claims).unwrap_err();
            assert_eq!(problem.status(), 422, "{body}");
        }
    }

    #[test]
    fn a_member_in_a_path_is_percent_encoded() {
        for (segment, sub) in [("ann", "ann"), ("ann%40x", "ann@x"), ("a%2Fb", "a/b"), ("%C3%A4", "ä"), ("a+b", "a+b")]
        {
            assert_eq!(member(segment).unwrap(), PlayerId::from_foreign(sub).unwrap(), "{segment}");
        }
        for bad in ["", "%", "%4", "%zz", "%ff", "a%+1"] {
            assert_eq!(member(bad).unwrap_err().status(), 400, "{bad}");
        }
    }

    #[test]
    fn any_bytes_are_readiness_within_its_bounds_or_a_short_problem() {
        let valid = [
            r#"{"rank": 5, "latencies": {"eu": 20.1}, "attributes": {"role": "medic"}}"#,
            r#"{"latencies": {"eu": 1, "us": null}}"#,
        ];
        feed(&valid, |bytes| match read(&String::from_utf8_lossy(bytes), &json!({})) {
            Ok(ready) => {
                assert!(!ready.latencies.is_empty() && serde_json::to_vec(&ready).unwrap().len() <= MAX_READY);
                true
            }
            Err(problem) => {
                assert!(problem.status().is_client_error() && problem.detail().chars().count() <= 1_000, "{problem:?}");
                false
            }
        });
    }

    #[test]
    fn any_bytes_are_a_member_a_code_a_player_or_a_short_problem() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        feed(&["ann%40x", r#"{"code": "ABCDE-FGHJK"}"#, r#"{"player": "ann@x"}"#], |bytes| {
            let body = Bytes::copy_from_slice(bytes);
            let read = [
                member(&String::from_utf8_lossy(bytes)).map(drop),
                code(&headers, &body).map(|sha256| assert_eq!(sha256.len(), 64)),
                player(&headers, &body).map(drop),
            ];
            for problem in read.iter().filter_map(|read| read.as_ref().err()) {
                assert!(problem.status().is_client_error() && problem.detail().chars().count() <= 1_000, "{problem:?}");
            }
            read.iter().any(Result::is_ok)
        });
    }
}
