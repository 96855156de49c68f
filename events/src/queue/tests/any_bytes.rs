//! Any text as the queues file.

use super::*;

/// Has every field.
const FULL: &str = r#"[queues.ranked]
players = 2
rank_band = 200
timeout_s = 120
client_rank = true
requeue = false
search_steps = 500
ticket_limit = "10/0.2"
[queues.ranked.regions]
eu = 120
us = 80

[queues.teams]
rule_set = "teams.json"
attributes = { skill = "rating", mode = "client", clan = "claim:clan" }
timeout_s = 3600
regions = { eu = 120 }

[regions.eu]
measure_url = "https://eu.example.com/ping"
"#;

const RULE_SET: &str = r#"{"ruleLanguageVersion": "1.0",
"playerAttributes": [{"name": "skill", "type": "number"}, {"name": "mode", "type": "string"},
  {"name": "clan", "type": "string"}],
"teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 3}, {"name": "blue", "minPlayers": 1, "maxPlayers": 3}]}"#;

#[test]
fn any_bytes_are_queues_within_their_bounds_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("teams.json"), RULE_SET).unwrap();
    let path = folder.path().join("queues.toml");
    let small = "[queues.quick]\nplayers = 200\nrank_band = 1\ntimeout_s = 1\nregions.eu = 1";
    garage_fuzz::feed(&[FULL, small], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let files = Queues::rule_set_files(&text);
        assert!(files.iter().all(|file| file.is_relative()));
        match Queues::parse(&text, &path) {
            Ok(queues) => {
                check(&queues);
                true
            }
            Err(error) => {
                // An error may quote the line of the file, and a key twice. `Debug` writes a byte as up to 6 characters.
                let length = printed(&error).len();
                assert!(length <= 20 * text.len() + 2_000, "{length}");
                false
            }
        }
    });
}

fn check(queues: &Queues) {
    assert!(!queues.queues.is_empty());
    for queue in queues.queues.values() {
        assert!((1..=MAX_TIMEOUT_S).contains(&queue.timeout_s));
        assert_eq!(queue.timeout().whole_seconds().unsigned_abs(), queue.timeout_s);
        assert!((MIN_STEPS..=MAX_STEPS).contains(&queue.search_steps));
        assert!((MIN_PLAYERS..=MAX_PLAYERS).contains(&queue.players()));
        assert!((1..=MAX_REGIONS).contains(&queue.regions.len()) && !queue.regions.values().any(|max| *max == 0));
        assert_eq!(check_sources(&queue.attributes, &queue.rules()), Ok(()));
    }
    for region in queues.regions() {
        assert!(queues.default_latency(region).is_some_and(|latency| latency > 0));
    }
    for (region, MeasuredAt { measure_url }) in &queues.measured_at {
        assert!(queues.regions().contains(region));
        assert!(measure_url.starts_with("https://") && measure_url.len() <= MAX_URL);
    }
}
