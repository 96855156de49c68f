//! Any bytes as the body of a request for a ticket.

use hyper::header::CONTENT_TYPE;
use time::Duration;
use uuid::Uuid;

use super::*;

const RULE_SET: &str = r#"{"ruleLanguageVersion": "1.0",
"playerAttributes": [{"name": "skill", "type": "number"}, {"name": "map", "type": "string", "default": "a"},
  {"name": "modes", "type": "string_list", "default": []}, {"name": "wins", "type": "string_number_map", "default": {}}],
"teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 2}, {"name": "blue", "minPlayers": 1, "maxPlayers": 2}]}"#;

const QUEUES: &str = r#"[queues.ranked]
players = 2
rank_band = 200
timeout_s = 120
client_rank = true
regions = { eu = 120, us = 80 }

[queues.teams]
rule_set = "teams.json"
attributes = { skill = "client", map = "client", modes = "client", wins = "client" }
timeout_s = 60
regions = { us = 120 }
"#;

/// `ranked` accepts ranks. `teams` accepts an attribute of each type.
fn queues() -> Queues {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("teams.json"), RULE_SET).unwrap();
    Queues::parse(QUEUES, &folder.path().join("queues.toml")).unwrap()
}

fn headers() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())])
}

fn check_refusal(problem: &Problem) {
    assert!(problem.status().is_client_error(), "{problem:?}");
    assert!(problem.detail().chars().count() <= 1_000, "{problem:?}");
}

/// Checks an accepted request, and the ticket that it makes.
fn check(request: &PlayerRequest, name: &QueueName, queues: &Queues) {
    let queue = queues.get(name).unwrap();
    assert!(request.rank.is_none_or(|rank| RANKS.contains(&rank)), "{request:?}");
    assert!(!request.latencies.is_empty(), "{request:?}");
    assert!(request.latencies.len() + request.ignored_regions.len() <= MAX_REGIONS, "{request:?}");
    for (region, latency) in &request.latencies {
        assert!(queue.regions.get(region).is_some_and(|max| latency <= max), "{request:?}");
    }
    for (attribute, value) in &request.attributes {
        assert!(queue.attributes.contains_key(attribute) && value.to_string().len() <= MAX_ATTRIBUTE, "{request:?}");
    }
    let (ticket, now) = (TicketId::new(Uuid::nil()), OffsetDateTime::UNIX_EPOCH);
    match request.queued((name, queue), ticket, request.rank.unwrap_or_default(), &Map::new(), now) {
        Ok(queued) => {
            assert_eq!(queued.expires_at - now, Duration::seconds(queue.timeout_s.try_into().unwrap()));
            let written = serde_json::to_string(&queued).unwrap();
            assert_eq!(serde_json::from_str::<Queued>(&written).unwrap(), queued);
        }
        Err(problem) => check_refusal(&problem),
    }
}

#[test]
fn any_bytes_are_a_ticket_request_within_its_bounds_or_a_short_problem() {
    let (headers, queues) = (headers(), queues());
    let ranked = r#"{"queue": "ranked", "rank": 1200, "latencies": {"eu": 20.5, "us": null, "mars": 7}}"#;
    let teams = r#"{"queue": "teams", "latencies": {"us": 20}, "attributes":
        {"skill": 7.5, "map": "b", "modes": ["x", "y"], "wins": {"a": 1, "b": 2.5}}}"#;
    garage_fuzz::feed(&[ranked, teams], |bytes| {
        match TicketRequest::read(&headers, &Bytes::copy_from_slice(bytes), &queues) {
            Ok(TicketRequest { queue, player }) => {
                check(&player, &queue, &queues);
                true
            }
            Err(problem) => {
                check_refusal(&problem);
                false
            }
        }
    });
}

#[test]
fn any_bytes_are_a_group_request_within_its_bounds_or_a_short_problem() {
    let (headers, queues) = (headers(), queues());
    let group = r#"{"queue": "teams", "players": [
        {"player": "ann@example.org", "rank": -100000, "latencies": {"us": 20}, "attributes": {"map": "b"}},
        {"player": "bob", "latencies": {"us": 0}}]}"#;
    garage_fuzz::feed(&[group], |bytes| match GroupRequest::read(&headers, &Bytes::copy_from_slice(bytes), &queues) {
        Ok(GroupRequest { queue, players, subs }) => {
            assert!((1..=MAX_TICKET).contains(&players.len()) && players.len() == subs.len(), "{players:?}");
            assert_eq!(players.iter().map(|(player, _)| player).collect::<BTreeSet<_>>().len(), players.len());
            for ((player, request), sub) in players.iter().zip(&subs) {
                assert_eq!(PlayerId::from_foreign(sub).as_ref(), Ok(player));
                check(request, &queue, &queues);
            }
            true
        }
        Err(problem) => {
            check_refusal(&problem);
            false
        }
    });
}
