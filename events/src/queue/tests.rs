use super::*;

mod any_bytes;

const GOOD: &str = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\n[queues.ranked.regions]\neu = 120";

fn load(text: &str) -> Result<Queues, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queues.toml");
    fs::write(&path, text).unwrap();
    Queues::load(&path).map_err(|error| printed(&error))
}

/// An error as `anyhow` prints it with `{:#}`: with its sources.
fn printed(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", printed(source)));
    format!("{error}{}", source.unwrap_or_default())
}

#[test]
fn a_valid_file_is_read() {
    let queues = load(GOOD).unwrap();
    let queue = queues.get(&"ranked".parse().unwrap()).unwrap();
    assert_eq!((queue.players(), queue.timeout()), (2, Duration::minutes(2)));
    assert_eq!(*queue.rules(), Rules::built_in(2, 200, 120).unwrap());
    assert!(!queue.client_rank, "a client may only send a rank if the file allows it");
    assert!(queue.requeue, "players are requeued unless the file says otherwise");
    assert_eq!(queues.regions(), BTreeSet::from([&"eu".parse().unwrap()]));
}

#[test]
fn an_invalid_file_is_refused_and_the_error_names_it() {
    for (bad, why) in [
        ("[queues]", "no queue"),
        ("", "missing field `queues`"),
        (&GOOD.replace("eu = 120", ""), "no region"),
        (&GOOD.replace("eu = 120", "eu = 0"), "eu = 0 ms"),
        (&GOOD.replace("players = 2", "players = 0"), "players = 0"),
        (&GOOD.replace("players = 2", "players = 201"), "players = 201"),
        (&GOOD.replace("rank_band = 200", "rank_band = 0"), "rank_band = 0"),
        (&GOOD.replace("timeout_s = 120", "timeout_s = 0"), "timeout_s = 0"),
        (&GOOD.replace("timeout_s = 120", "timeout_s = 99999"), "timeout_s = 99999"),
        (&accepted("4"), "acceptance_s = 4; it must be 5 to 120"),
        (&accepted("121"), "acceptance_s = 121"),
        (&accepted("-1"), "acceptance_s"),
        (&accepted("0\nacceptance_names_decliner = true"), "without acceptance_s"),
        (&limited("ten"), "\"ten\" is not a rate limit"),
        (&GOOD.replace("eu =", "EU ="), "region \"EU\" is not valid"),
        (&GOOD.replace("players", "player"), "unknown field"),
        (&format!("x = 1\n{GOOD}"), "unknown field `x`"),
        (&format!("{GOOD}\n{}", (0..32).map(|n| format!("r{n} = 1\n")).collect::<String>()), "33 regions"),
        (&measured("us", "https://us.example.com"), "regions.us: no queue has this region"),
        (&measured("eu", "http://eu.example.com"), "begins with https://"),
        (&measured("eu", "https://"), "begins with https://"),
        (&measured("eu", "https:///ping"), "begins with https://"),
        (&measured("eu", "https://eu.example.com/a b"), "begins with https://"),
        (&measured("eu", &format!("https://{}", "x".repeat(MAX_URL))), "begins with https://"),
    ] {
        let error = load(bad).unwrap_err();
        assert!(error.contains(why) && error.contains("queues.toml"), "{bad}: {error}");
    }
}

fn accepted(seconds: &str) -> String {
    GOOD.replace("timeout_s = 120", &format!("timeout_s = 120\nacceptance_s = {seconds}"))
}

#[test]
fn a_queue_can_let_its_players_accept_a_match() {
    let acceptance = |text: &str| {
        let queue = load(text).unwrap().queues[&"ranked".parse().unwrap()].clone();
        (queue.acceptance(), queue.acceptance_names_decliner)
    };
    assert_eq!(acceptance(&accepted("5")), (Some(Duration::seconds(5)), false));
    assert_eq!(acceptance(&accepted("120\nacceptance_names_decliner = true")), (Some(Duration::minutes(2)), true));
    assert_eq!((acceptance(&accepted("0")), acceptance(GOOD)), ((None, false), (None, false)));
}

fn limited(limit: &str) -> String {
    GOOD.replace("timeout_s = 120", &format!("timeout_s = 120\nticket_limit = {limit:?}"))
}

#[test]
fn a_queue_can_limit_how_often_a_player_requests_a_ticket() {
    let limit = |text: &str| load(text).unwrap().queues[&"ranked".parse().unwrap()].ticket_limit;
    assert_eq!(limit(&limited("10/0.2")), "10/0.2".parse().unwrap());
    assert_eq!((limit(&limited("off")), limit(GOOD)), (RateLimit::Off, RateLimit::Off));
}

fn measured(region: &str, url: &str) -> String {
    format!("{GOOD}\n[regions.{region}]\nmeasure_url = {url:?}")
}

#[test]
fn a_region_can_have_a_url_to_measure_against() {
    for url in ["https://eu.example.com", "https://[2001:db8::7]:8443/ping?x=1"] {
        let queues = load(&measured("eu", url)).unwrap();
        assert_eq!(queues.measured_at[&"eu".parse().unwrap()].measure_url, url);
    }
    assert!(load(GOOD).unwrap().measured_at.is_empty());
}

#[test]
fn the_default_latency_of_a_region_is_accepted_by_every_queue_that_has_it() {
    let more = "[queues.casual]\nplayers = 2\nrank_band = 1\ntimeout_s = 1\nregions.eu = 80\nregions.us = 90";
    let queues = load(&format!("{GOOD}\n{more}")).unwrap();
    let default = |region: &str| queues.default_latency(&region.parse().unwrap());
    assert_eq!([default("eu"), default("us"), default("mars")], [Some(80), Some(90), None]);
}

#[test]
fn a_region_is_usable_up_to_the_queues_limit() {
    let queues = load(&format!("{GOOD}\nus = 90")).unwrap();
    let queue = queues.get(&"ranked".parse().unwrap()).unwrap();
    for (latencies, usable) in [
        (vec![("eu", 120), ("us", 90), ("mars", 1)], vec!["eu 120", "us 90"]),
        (vec![("eu", 121), ("us", 0)], vec!["us 0"]),
        (vec![("eu", 121)], vec![]),
        (vec![], vec![]),
    ] {
        let latencies = latencies.into_iter().map(|(region, latency)| (region.parse().unwrap(), latency)).collect();
        let found = queue.usable(&latencies).map(|(region, latency)| format!("{region} {latency}"));
        assert_eq!(found.collect::<Vec<_>>(), usable);
    }
}

#[test]
fn an_error_says_its_cause_once() {
    let missing = Queues::load(Path::new("/nowhere/queues.toml")).unwrap_err();
    assert_eq!(
        printed(&missing),
        "cannot read the queues in /nowhere/queues.toml: No such file or directory (os error 2)"
    );
    let malformed = load("x = 1").unwrap_err();
    assert_eq!(malformed.matches("unknown field `x`").count(), 1, "{malformed}");
}

#[test]
fn the_file_for_local_development_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/queues.toml");
    let queues = Queues::load(&path).unwrap();
    for (name, client_rank) in [("ranked", false), ("casual", true)] {
        assert_eq!(queues.get(&name.parse().unwrap()).unwrap().client_rank, client_rank, "{name}");
    }
}

const TEAMS: &str = r#"{
    // Rule sets may have comments.
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "skill", "type": "number"}, {"name": "mode", "type": "string", "default": "any"}],
    "teams": [{"name": "red", "minPlayers": 2, "maxPlayers": 2}, {"name": "blue", "minPlayers": 2, "maxPlayers": 2}]
}"#;

/// Loads a queue with this rule set and these lines.
fn load_teams(rule_set: &str, lines: &str) -> Result<Queues, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("teams.json"), rule_set).unwrap();
    let path = folder.path().join("queues.toml");
    let text = format!("[queues.teams]\nrule_set = \"teams.json\"\ntimeout_s = 120\nregions.eu = 120\n{lines}");
    fs::write(&path, text).unwrap();
    Queues::load(&path).map_err(|error| printed(&error))
}

#[test]
fn a_queue_can_name_a_rule_set_beside_the_file() {
    let sources = "attributes = { skill = \"rating\", mode = \"client\" }";
    let queues = load_teams(TEAMS, sources).unwrap();
    let queue = queues.get(&"teams".parse().unwrap()).unwrap();
    assert_eq!((queue.players(), &queue.rules().text[..]), (4, TEAMS));
    assert_eq!(queue.attributes["skill"], Source::Rating);
    let queues = load_teams(TEAMS, "attributes.skill = \"claim:elo\"").unwrap();
    assert_eq!(queues.queues[&"teams".parse().unwrap()].attributes["skill"], Source::Claim("elo".into()));
}

#[test]
fn a_rule_set_that_the_queue_cannot_use_is_refused_and_the_error_names_it() {
    let skill = "attributes.skill = \"rating\"";
    for (rule_set, lines, why) in [
        (TEAMS, "", "attribute skill of the rule set has no default"),
        (TEAMS, "attributes.skill = \"magic\"", "\"magic\" is not a source"),
        (TEAMS, "attributes.skill = \"claim:\"", "\"claim:\" is not a source"),
        (TEAMS, "attributes.skill = \"claim:rank\"", "for the rank, use \"rating\""),
        (TEAMS, "attributes = { skill = \"rating\", luck = \"client\" }", "the rule set has no attribute luck"),
        (TEAMS, "attributes = { skill = \"rating\", mode = \"rating\" }", "the rating is a number"),
        (TEAMS, &format!("{skill}\nplayers = 2"), "it cannot have players or rank_band"),
        ("{\n  \"teams\": []\n}", skill, "teams.json:1:1: error: "),
        (&TEAMS.replace("\"maxPlayers\": 2", "\"maxPlayers\": 120"), skill, "a match has up to 240 players"),
    ] {
        let error = load_teams(rule_set, lines).unwrap_err();
        assert!(error.contains(why), "{lines}: {error}");
    }
    let missing = GOOD.replace("players = 2\nrank_band = 200", "rule_set = \"none.json\"");
    assert!(load(&missing).unwrap_err().contains("none.json: No such file"), "{missing}");
    let error = load(&GOOD.replace("players = 2\n", "")).unwrap_err();
    assert!(error.contains("it needs a rule_set, or both players and rank_band"), "{error}");
}
