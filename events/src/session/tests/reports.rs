//! Any bytes as the report of a game server.

use super::*;

const READY: &str = r#"{"tcp_port": 31000, "udp_port": 31001}"#;

const FINISHED: &str = r#"{"results": [{"player": "ann", "place": 1, "time_ms": 12000, "joined": true},
{"player": "bob", "place": 2}], "teams": [{"team": "red", "place": 1}, {"team": "blue", "place": 2}]}"#;

const ALONE: &str = r#"{"results": [{"player": "bob", "place": 1}, {"player": "ann", "place": 2, "joined": false}]}"#;

/// Why the report is refused, as the event that fails the attempt says it.
fn refused(why: &str) -> bool {
    let failed = PodFailed::new(1, crate::failure::MISBEHAVED, why);
    assert!(failed.message.chars().count() <= 200, "{}", failed.message);
    false
}

#[test]
fn any_bytes_are_the_ports_of_a_ready_report_or_a_short_error() {
    let starting = given([matched(), requested(1), scheduled(1)]);
    garage_fuzz::feed(&[READY], |bytes| match serde_json::from_slice::<game::Ready>(bytes) {
        Ok(report) => {
            let written = serde_json::to_vec(&report).unwrap();
            assert_eq!(serde_json::from_slice::<game::Ready>(&written).unwrap(), report);
            starting
                .when(Command::Ready { attempt: 1, report })
                .then([PodReady { attempt: 1, ports: report.ports }.into()]);
            true
        }
        Err(error) => refused(&error.to_string()),
    });
}

#[test]
fn any_bytes_are_results_of_each_player_or_a_short_error() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    garage_fuzz::feed(&[FINISHED, ALONE], |bytes| {
        let report = match serde_json::from_slice::<game::Finished>(bytes) {
            Ok(report) => report,
            Err(error) => return refused(&error.to_string()),
        };
        let written = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<game::Finished>(&written).unwrap(), report);
        let events = match running.when(Command::Finish { attempt: 1, report }).0 {
            Ok(events) => events,
            Err(rejection) => return refused(&rejection.to_string()),
        };
        let [Event::Finished(finished), Event::Closed(closed)] = &*events else { panic!("{events:?}") };
        let mut players: Vec<_> = finished.results.iter().map(|placing| placing.player.as_str()).collect();
        players.sort_unstable();
        assert_eq!(players, ["ann", "bob"]);
        assert!(finished.results.iter().all(|placing| (1..=2).contains(&placing.place)));
        assert!(finished.teams.is_empty() || finished.teams.len() == 2);
        assert_eq!((&closed.results, &closed.teams), (&finished.results, &finished.teams));
        true
    });
}
