use std::{collections::BTreeMap, path::Path};

use hyper::header::CONTENT_TYPE;
use serde_json::json;
use uuid::Uuid;

use super::*;

/// `ranked` has the regions `eu` up to 120 ms and `us` up to 80 ms, and accepts ranks. `quick` has only `us`.
fn queues() -> Queues {
    let queues = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nclient_rank = true\n\
        regions = { eu = 120, us = 80 }\n\
        [queues.quick]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions = { us = 120 }";
    Queues::parse(queues, Path::new("queues.toml")).unwrap()
}

fn read(body: impl ToString) -> Result<TicketRequest, Problem> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
    TicketRequest::read(&headers, &body.to_string().into(), &queues())
}

/// The latencies and the ignored regions of a valid request.
fn latencies(latencies: &str) -> (Vec<(String, u32)>, Vec<String>) {
    let TicketRequest { player: PlayerRequest { latencies, ignored_regions, .. }, .. } =
        read(format!("{{\"queue\": \"ranked\", \"latencies\": {latencies}}}")).unwrap();
    (latencies.into_iter().map(|(region, latency)| (region.to_string(), latency)).collect(), ignored_regions)
}

#[test]
fn a_valid_ticket_request_expires_after_its_queues_timeout() {
    for rank in [-100_000, 0, 100_000] {
        let request = read(json!({"queue": "ranked", "rank": rank, "latencies": {"eu": 0, "us": 10_000}})).unwrap();
        let queues = queues();
        let queue = (&request.queue, queues.get(&request.queue).unwrap());
        let (ticket, now) = (TicketId::new(Uuid::nil()), OffsetDateTime::UNIX_EPOCH);
        let queued = request.player.queued(queue, ticket, 7, &Map::new(), now).unwrap();
        assert_eq!((request.player.rank, queued.rank, queued.expires_at.unix_timestamp()), (Some(rank), 7, 120));
    }
    for body in [
        json!({"queue": "ranked", "latencies": {"eu": 1}}),
        json!({"queue": "ranked", "rank": null, "latencies": {"eu": 1}}),
        json!({"queue": "quick", "latencies": {"us": 1}}),
    ] {
        assert_eq!(read(&body).unwrap().player.rank, None, "{body}");
    }
    assert_eq!(
        read("{\"queue\": \"ranked\", \"rank\": 3.0, \"latencies\": {\"eu\": 1}}").unwrap().player.rank,
        Some(3)
    );
}

#[test]
fn a_fraction_of_a_millisecond_is_rounded_up() {
    let cases = [("0", 0), ("-0.0", 0), ("0.001", 1), ("20.0", 20), ("20.5", 21), ("119.01", 120), ("2e1", 20)];
    for (sent, latency) in cases {
        assert_eq!(latencies(&format!("{{\"eu\": {sent}}}")), (vec![("eu".into(), latency)], vec![]), "{sent}");
    }
}

#[test]
fn regions_that_do_not_count_are_ignored_and_named() {
    let eu = || vec![("eu".to_owned(), 20)];
    for (sent, ignored) in [
        (r#"{"eu": 20}"#, vec![]),
        (r#"{"eu": 20, "us": null}"#, vec!["us"]),
        (r#"{"eu": 20, "us": 81}"#, vec!["us"]),
        (r#"{"eu": 20, "mars": 7, "moon": null}"#, vec!["mars", "moon"]),
        (r#"{"eu": 20, "EU": 20, "": 1, "a b": 1}"#, vec!["", "EU", "a b"]),
    ] {
        assert_eq!(latencies(sent), (eu(), ignored.into_iter().map(ToOwned::to_owned).collect()), "{sent}");
    }
}

#[test]
fn an_invalid_ticket_request_is_refused_with_a_detail_that_says_why() {
    let many: BTreeMap<String, u32> = (0..33).map(|n| (format!("r{n}"), 1)).collect();
    let many = json!({"queue": "ranked", "latencies": many}).to_string();
    for (body, why) in [
        (r#"{"queue": "casual", "latencies": {"eu": 1}}"#, "quick, ranked"),
        (r#"{"queue": "Casual", "latencies": {"eu": 1}}"#, "is not valid"),
        (r#"{"queue": 7, "latencies": {"eu": 1}}"#, "queue must be a text"),
        (r#"{"queue": null, "latencies": {"eu": 1}}"#, "queue must be a text"),
        (r#"{"latencies": {"eu": 1}}"#, "`queue` is missing"),
        (r#"{"queue": "ranked", "rank": 100001, "latencies": {"eu": 1}}"#, "between -100000 and 100000"),
        (r#"{"queue": "ranked", "rank": -100001, "latencies": {"eu": 1}}"#, "between -100000 and 100000"),
        (r#"{"queue": "ranked", "rank": 99999999999, "latencies": {"eu": 1}}"#, "between -100000 and 100000"),
        (r#"{"queue": "ranked", "rank": 1.5, "latencies": {"eu": 1}}"#, "rank must be a whole number"),
        (r#"{"queue": "ranked", "rank": "1", "latencies": {"eu": 1}}"#, "rank must be a whole number"),
        (r#"{"queue": "quick", "rank": 1, "latencies": {"us": 1}}"#, "accepts no rank"),
        (r#"{"queue": "ranked"}"#, "`latencies` is missing"),
        (r#"{"queue": "ranked", "latencies": null}"#, "latencies must be an object"),
        (r#"{"queue": "ranked", "latencies": [20]}"#, "latencies must be an object"),
        (r#"{"queue": "ranked", "latencies": {}}"#, "1 to 32"),
        (&many, "1 to 32"),
        (r#"{"queue": "ranked", "latencies": {"mars": 1}}"#, "region of queue ranked: eu, us"),
        (r#"{"queue": "ranked", "latencies": {"eu": null}}"#, "default_latency_ms"),
        (r#"{"queue": "quick", "latencies": {"eu": 1}}"#, "region of queue quick: us"),
        (r#"{"queue": "ranked", "latencies": {"eu": 10000.5}}"#, "eu must be a number between 0 and 10000 ms, or null"),
        (r#"{"queue": "ranked", "latencies": {"eu": -0.5}}"#, "eu must be a number between 0 and 10000 ms, or null"),
        (r#"{"queue": "ranked", "latencies": {"eu": "20"}}"#, "eu must be a number between 0 and 10000 ms, or null"),
        (
            r#"{"queue": "ranked", "latencies": {"mars": true}}"#,
            "mars must be a number between 0 and 10000 ms, or null",
        ),
        (r#"{"queue": "ranked", "latencies": {"eu": 1, "mars": -1}}"#, "mars must be a number between 0 and 10000 ms"),
        (r#"{"queue": "ranked", "latencies": {"eu": 20, "eu": 900}}"#, "`eu` appears twice"),
        (r#"{"queue": "ranked", "latencies": {"eu": 20, "eu": null}}"#, "`eu` appears twice"),
        (r#"{"queue": "ranked", "latencies": {"eu": 1}, "vip": true}"#, "unknown field `vip`"),
    ] {
        let problem = read(body).unwrap_err();
        assert!(problem.status() == 422 && problem.detail().contains(why), "{body}: {problem:?}");
        for of_the_program in ["u32", "i32", "u64", "f64", "struct", "tuple", "map", "TicketRequest", "Option"] {
            let words = problem.detail().split(|c: char| !c.is_alphanumeric());
            assert!(!words.into_iter().any(|word| word == of_the_program), "{body}: {problem:?}");
        }
    }
}

#[test]
fn a_ticket_that_the_queue_can_never_match_is_refused_with_the_limits() {
    for (sent, detail) in [
        (json!({"eu": 121}), "eu has 121 ms, the limit is 120 ms"),
        (json!({"eu": 120.1}), "eu has 121 ms, the limit is 120 ms"),
        (json!({"eu": 121, "us": 90}), "eu has 121 ms, the limit is 120 ms, us has 90 ms, the limit is 80 ms"),
    ] {
        let problem = read(json!({"queue": "ranked", "latencies": sent})).unwrap_err();
        assert!(problem.status() == 422 && problem.detail().contains(detail), "{problem:?}");
        let problem = format!("{problem:?}");
        assert!(problem.contains("/problems/latency-too-high") && problem.contains("\"us\": Number(80)"), "{problem}");
    }
    for sent in [json!({"eu": 120}), json!({"eu": 121, "us": 80})] {
        read(json!({"queue": "ranked", "latencies": sent})).unwrap();
    }
}
