//! Matches by rule sets: teams, groups, and players who can never be matched.

use std::sync::Arc;

use garage_events::id::SessionId;
use garage_stack::{
    bot::{Bot, BotError, Played},
    workers::Worker,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::Barrier, task::JoinSet};

use crate::support::{
    Garage, Setup,
    history::{self, Event, assert_notified, of_player, of_session, paid, types},
    players_runtime, until,
};

const QUEUES: &str = r#"
    [queues.duel]
    rule_set = "duel.json"
    attributes = { skill = "rating" }
    timeout_s = 120
    regions = { eu = 120 }
    [queues.pairs]
    rule_set = "pairs.json"
    attributes = { skill = "client", mode = "claim:mode" }
    timeout_s = 120
    regions = { eu = 120 }
    [queues.fives]
    rule_set = "fives.json"
    attributes = { skill = "rating" }
    timeout_s = 120
    regions = { eu = 120 }
    [queues.three]
    rule_set = "three.json"
    timeout_s = 120
    regions = { eu = 120 }
    [queues.hunt]
    rule_set = "hunt.json"
    attributes = { monster = "client" }
    timeout_s = 120
    regions = { eu = 120 }
    [queues.crowd]
    rule_set = "crowd.json"
    timeout_s = 120
    regions = { eu = 120 }
"#;

/// A queue of each kind of match.
fn setup() -> Setup {
    let skill = r#"{"name": "skill", "type": "number", "default": 1000}"#;
    let rule_set = |attributes: &str, rest: &str| {
        format!("{{\"ruleLanguageVersion\": \"1.0\", \"playerAttributes\": [{attributes}], {rest}}}")
    };
    let two = |size: u32| {
        let team = |name| format!(r#"{{"name": "{name}", "minPlayers": {size}, "maxPlayers": {size}}}"#);
        format!(r#""teams": [{}, {}]"#, team("red"), team("blue"))
    };
    let equal = r#""rules": [{
        "name": "EqualTeams", "type": "distance", "maxDistance": 200,
        "measurements": ["avg(teams[red].players.attributes[skill])"],
        "referenceValue": "avg(teams[blue].players.attributes[skill])"
    }]"#;
    let same_mode = r#""rules": [{
        "name": "SameMode", "type": "comparison", "operation": "=",
        "measurements": ["flatten(teams[*].players.attributes[mode])"]
    }]"#;
    let mode = r#"{"name": "mode", "type": "string"}"#;
    let three = r#""teams": [
        {"name": "small", "minPlayers": 1, "maxPlayers": 1},
        {"name": "middle", "minPlayers": 2, "maxPlayers": 2},
        {"name": "large", "minPlayers": 3, "maxPlayers": 3}
    ]"#;
    let hunt = r#""teams": [
        {"name": "monster", "minPlayers": 1, "maxPlayers": 1},
        {"name": "hunters", "minPlayers": 4, "maxPlayers": 4}
    ], "rules": [
        {"name": "OneMonster", "type": "comparison", "operation": "=", "referenceValue": 1,
         "measurements": ["min(teams[monster].players.attributes[monster])"]},
        {"name": "NoMonsters", "type": "comparison", "operation": "=", "referenceValue": 0,
         "measurements": ["max(teams[hunters].players.attributes[monster])"]}
    ]"#;
    let crowd = r#""algorithm": {"strategy": "balanced", "balancedAttribute": "skill"},
        "teams": [{"name": "all", "minPlayers": 64, "maxPlayers": 64}],
        "expansions": [{"target": "teams[all].minPlayers", "steps": [{"waitTimeSeconds": 3, "value": 12}]}]"#;
    Setup::short()
        .queues(QUEUES)
        .rule_set("duel.json", rule_set(skill, &format!("{}, {equal}", two(1))))
        .rule_set("pairs.json", rule_set(&format!("{skill}, {mode}"), &format!("{}, {same_mode}", two(2))))
        .rule_set("fives.json", rule_set(skill, &format!("{}, {equal}", two(5))))
        .rule_set("three.json", rule_set("", three))
        .rule_set("hunt.json", rule_set(r#"{"name": "monster", "type": "number", "default": 0}"#, hunt))
        .rule_set("crowd.json", rule_set(skill, crowd))
}

/// Lets bots play one match. Each of them queues with its own request.
async fn play(bots: &[(Bot, Value)]) -> Vec<Played> {
    let mut playing = JoinSet::new();
    for (number, (bot, request)) in bots.iter().cloned().enumerate() {
        let played = async move {
            let queueing = async { bot.queue_with(request).await.map(drop) };
            (number, bot.play_after(queueing).await)
        };
        playing.spawn_on(played, players_runtime());
    }
    ended(playing).await
}

async fn ended(playing: JoinSet<(usize, Result<Played, BotError>)>) -> Vec<Played> {
    let mut played = playing.join_all().await;
    played.sort_by_key(|(number, _)| *number);
    played.into_iter().map(|(_, played)| played.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// Lets groups of bots play one match. The backend queues each group when all bots listen.
async fn play_in_groups(garage: &Garage, queue: &str, groups: &[&[Bot]]) -> Vec<Played> {
    let listening = Arc::new(Barrier::new(groups.iter().map(|group| group.len()).sum::<usize>() + 1));
    let mut playing = JoinSet::new();
    for (number, bot) in groups.iter().copied().flatten().cloned().enumerate() {
        let listening = Arc::clone(&listening);
        let played = async move {
            let queueing = async {
                listening.wait().await;
                Ok(())
            };
            (number, bot.play_after(queueing).await)
        };
        playing.spawn_on(played, players_runtime());
    }
    listening.wait().await;
    for group in groups {
        queue_group(garage, queue, group).await;
    }
    ended(playing).await
}

async fn queue_group(garage: &Garage, queue: &str, group: &[Bot]) -> Value {
    let player = |bot: &Bot| json!({"player": bot.player, "rank": 1_000, "latencies": {"eu": 20}});
    let request = json!({"queue": queue, "players": group.iter().map(player).collect::<Vec<_>>()});
    garage.backend().ask_with_retry(Method::POST, "/v1/matchmaking/groups", Some(request)).await.unwrap()
}

/// The teams of a session: name and players.
fn teams(events: &[Event], session: &str) -> Vec<(String, Vec<String>)> {
    let session: SessionId = session.parse().unwrap();
    let matched = &of_session(events, session)[0].data;
    let team = |team: &Value| {
        let players = team["players"].as_array().unwrap().iter();
        let players = players.map(|member| member["player"].as_str().unwrap().to_owned());
        (team["name"].as_str().unwrap().to_owned(), players.collect())
    };
    matched["teams"].as_array().unwrap().iter().map(team).collect()
}

/// The sizes of the teams of a session.
fn sizes(events: &[Event], session: &str) -> Vec<usize> {
    teams(events, session).iter().map(|(_, players)| players.len()).collect()
}

fn bots(garage: &Garage, prefix: &str, count: usize) -> Vec<Bot> {
    (0..count).map(|number| garage.ranked(&format!("{prefix}-{number}"), 1_000)).collect()
}

#[tokio::test]
async fn each_kind_of_match_is_made_by_its_rule_set_and_played() {
    let garage = setup().start().await;
    let request =
        |queue: &str, attributes: Value| json!({"queue": queue, "latencies": {"eu": 20}, "attributes": attributes});

    // One against one. The middle player is too far from both others.
    let duel = [("ann", 1_000), ("mid", 1_400), ("bob", 1_150)].map(|(name, rank)| garage.ranked(name, rank));
    let [ann, mid, bob] = &duel;
    mid.queue("duel").await.unwrap();
    let plain = |bot: &Bot, queue: &str| (bot.clone(), request(queue, json!({})));
    let duel = [plain(ann, "duel"), plain(bob, "duel")];

    // Two against two, of one mode. The mode is a claim, the skill comes from the client.
    let with_mode = |name: &str, mode: &str| garage.claiming(name, json!({"rank": 0, "mode": mode}));
    let pairs = ["p-0", "p-1", "p-2", "p-3"].map(|name| with_mode(name, "capture"));
    let other = with_mode("other", "deathmatch");
    other.queue_with(request("pairs", json!({"skill": 5}))).await.unwrap();
    let pairs = pairs.map(|bot| (bot, request("pairs", json!({"skill": 7.5}))));

    let three: Vec<_> = bots(&garage, "t", 6).iter().map(|bot| plain(bot, "three")).collect();
    let hunt = bots(&garage, "h", 5);
    let hunt: Vec<_> = (0..)
        .zip(&hunt)
        .map(|(number, bot)| (bot.clone(), request("hunt", json!({"monster": u8::from(number == 3)}))))
        .collect();
    // The minimum of 64 falls to 12.
    let crowd: Vec<_> = bots(&garage, "c", 12).iter().map(|bot| plain(bot, "crowd")).collect();
    let (duel, pairs) = tokio::join!(play(&duel), play(&pairs));
    let (three, hunt) = tokio::join!(play(&three), play(&hunt));
    let crowd = play(&crowd).await;

    for waiting in [mid, &other] {
        let me = waiting.me().await.unwrap();
        let path = format!("/v1/matchmaking/tickets/{}", me["ticket"].as_str().unwrap());
        let ticket: Value = waiting.ask_with_retry(Method::GET, &path, None).await.unwrap();
        assert_eq!(ticket["candidates"], json!({"count": 0, "eligible": 0, "excluded": {}}), "nobody else waits");
        waiting.ask_with_retry::<Option<Value>>(Method::DELETE, &path, None).await.unwrap();
    }
    let events = garage.settled().await;
    for (played, expected) in
        [(&duel, vec![1, 1]), (&pairs, vec![2, 2]), (&three, vec![1, 2, 3]), (&hunt, vec![1, 4]), (&crowd, vec![12])]
    {
        assert!(played.iter().all(|other| other.session == played[0].session));
        assert_eq!(sizes(&events, &played[0].session), expected);
    }
    assert_eq!(teams(&events, &hunt[0].session)[0], ("monster".to_owned(), vec!["h-3".to_owned()]));

    // The two players of the better pair get the first prize.
    let mut earned: Vec<_> = pairs.iter().map(|played| played.earned).collect();
    earned.sort_unstable();
    assert!(earned == [60, 60, 100, 100] || earned == [100; 4], "{earned:?}");
    // A match of one team is a free-for-all: each player has a place of their own.
    let mut earned: Vec<_> = crowd.iter().map(|played| played.earned).collect();
    earned.sort_unstable();
    assert!(earned.contains(&100) && earned.contains(&30), "{earned:?}");
}

#[tokio::test]
async fn groups_and_single_players_make_two_teams_of_five() {
    let garage = setup().start().await;
    let bots = bots(&garage, "player", 10);
    let groups: [&[Bot]; 5] = [&bots[..3], &bots[3..4], &bots[4..6], &bots[6..9], &bots[9..]];

    let played = play_in_groups(&garage, "fives", &groups).await;

    let events = garage.settled().await;
    assert_eq!(sizes(&events, &played[0].session), [5, 5]);
    let teams = teams(&events, &played[0].session);
    for group in groups {
        let of_group = |players: &Vec<String>| group.iter().filter(|bot| players.contains(&bot.player)).count();
        let together = teams.iter().map(|(_, players)| of_group(players)).max();
        assert_eq!(together, Some(group.len()), "a group is in one team: {teams:?}");
    }
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    // The events of a group are one commit, and one ticket.
    let queued = |bot: &Bot| of_player(&events, &bot.player)[0].clone();
    let [first, second, third] = [queued(&bots[0]), queued(&bots[1]), queued(&bots[2])];
    assert_eq!([second.seq, third.seq], [first.seq + 1, first.seq + 2]);
    assert_eq!(first.data["ticket"], third.data["ticket"]);
    assert_eq!(first.data["group"], json!(["player-0", "player-1", "player-2"]));
}

#[tokio::test]
async fn a_member_who_cancels_or_disconnects_cancels_for_the_whole_group() {
    let garage = setup().env("GARAGE_GATEWAY_GRACE_S", "1").start().await;
    let bots = bots(&garage, "player", 3);
    let mut streams = Vec::new();
    for bot in &bots {
        streams.push(bot.event_stream().await.unwrap());
    }

    let ticket = queue_group(&garage, "fives", &bots).await;
    let path = format!("/v1/matchmaking/tickets/{}", ticket["ticket"].as_str().unwrap());
    bots[1].ask_with_retry::<Option<Value>>(Method::DELETE, &path, None).await.unwrap();
    for (number, stream) in streams.iter_mut().enumerate() {
        let cancelled = stream.until("Cancelled").await.unwrap();
        assert_eq!(cancelled.data["reason"], if number == 1 { "player" } else { "party" });
    }

    queue_group(&garage, "fives", &bots).await;
    drop(streams.pop());
    for stream in &mut streams {
        let cancelled = stream.until("Cancelled").await.unwrap();
        assert_eq!(cancelled.data["reason"], "party");
    }
    let events = garage.settled().await;
    let all = of_player(&events, "player-2");
    assert_eq!(types(&all), ["Queued", "Cancelled", "Queued", "Cancelled"]);
    assert_eq!(all[3].data["reason"], "disconnected");
    assert_eq!(history::count(&events, "Cancelled"), 6);
}

#[tokio::test]
async fn a_group_whose_match_fails_waits_again_with_all_of_its_players() {
    // The game server of each match fails.
    let script = "exit 1";
    let garage =
        setup().game_server(script).env("GARAGE_ATTEMPTS", "1").env("GARAGE_GATEWAY_GRACE_S", "1").start().await;
    let bots = bots(&garage, "player", 10);
    let mut streams = Vec::new();
    for bot in &bots {
        streams.push(bot.event_stream().await.unwrap());
    }
    queue_group(&garage, "fives", &bots[..5]).await;
    queue_group(&garage, "fives", &bots[5..]).await;
    for stream in &mut streams {
        let requeued = stream.until("Requeued").await.unwrap();
        assert_eq!(requeued.data["group"].as_array().unwrap().len(), 5);
    }
    // The match fails until the tickets are not requeued any more. All members share the same end.
    for stream in &mut streams {
        stream.until("Released").await.unwrap();
    }
    let events = garage.settled().await;
    let own = types(&of_player(&events, "player-0"));
    assert!(bots.iter().all(|bot| types(&of_player(&events, &bot.player)) == own), "{own:?}");
}

#[tokio::test]
async fn a_ticket_that_can_never_be_matched_is_refused_at_once() {
    let garage = setup().start().await;
    let ask = async |bot: &Bot, path: &str, request: Value| {
        bot.ask::<Value>(Method::POST, path, Some(request)).await.unwrap_err()
    };
    let bot = garage.bot("ann");
    let tickets = "/v1/matchmaking/tickets";
    let eu = json!({"eu": 20});

    // The rule set needs a mode, and the token has none.
    let refused = ask(&bot, tickets, json!({"queue": "pairs", "latencies": eu})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["type"]), (422, &json!("/problems/hopeless-ticket")));
    assert!(refused.body["detail"].as_str().unwrap().contains("mode"), "{refused:?}");
    // A player cannot set what comes from elsewhere, or a value of the wrong type.
    for (queue, attributes, why) in [
        ("pairs", json!({"mode": "capture"}), "accepts no attribute"),
        ("duel", json!({"skill": 1}), "accepts no attribute"),
        ("hunt", json!({"monster": "yes"}), "monster"),
        ("hunt", json!({"monster": {"a": "b"}}), "must be a text, a number"),
        ("hunt", json!(7), "attributes must be an object"),
    ] {
        let refused = ask(&bot, tickets, json!({"queue": queue, "latencies": eu, "attributes": attributes})).await;
        assert!(refused.status == 422 && refused.body["detail"].as_str().unwrap().contains(why), "{refused:?}");
    }

    let player = |name: &str| json!({"player": name, "rank": 0, "latencies": eu});
    let group = |queue: &str, size: usize| {
        let players: Vec<_> = (0..size).map(|number| player(&format!("g-{number}"))).collect();
        json!({"queue": queue, "players": players})
    };
    let groups = "/v1/matchmaking/groups";
    let refused = ask(&bot, groups, group("fives", 2)).await;
    assert_eq!(refused.status.as_u16(), 403, "a player's token cannot queue a group");
    let backend = garage.backend();
    let refused = ask(&backend, groups, group("fives", 6)).await;
    assert_eq!((refused.status.as_u16(), &refused.body["type"]), (422, &json!("/problems/hopeless-ticket")));
    let twice = json!({"queue": "fives", "players": [player("ann"), player("ann")]});
    assert!(ask(&backend, groups, twice).await.body["detail"].as_str().unwrap().contains("listed twice"));

    // A player who waits already cannot be queued with a group, and nobody of the group is queued.
    bot.queue("fives").await.unwrap();
    let refused = ask(&backend, groups, json!({"queue": "fives", "players": [player("bob"), player("ann")]})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["player"]), (409, &json!("ann")));
    let bob = garage.bot("bob");
    until("bob does not wait", async || (bob.me().await.ok()?["status"] == "idle").then_some(())).await;
}

#[tokio::test]
async fn an_applied_rule_set_is_used_at_once_by_waiting_tickets_and_after_a_restart() {
    let mut garage = setup().start().await;
    let [ann, bob] = [("ann", 1_000), ("bob", 1_500)].map(|(name, rank)| garage.ranked(name, rank));
    ann.queue("duel").await.unwrap();
    bob.queue("duel").await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let (_, text) = garage.cli(&["rules", "show", "duel"]).await;
    let file = folder.path().join("wider.json");
    std::fs::write(&file, text.replace("200", "500")).unwrap();
    let (success, text) = garage.cli(&["rules", "apply", "duel", file.to_str().unwrap()]).await;
    assert!(success, "{text}");
    garage.until_event("Matched", 1).await;

    // The gateway refuses what the new rule set can never match, also after a restart.
    let (_, text) = garage.cli(&["rules", "show", "hunt"]).await;
    let file = folder.path().join("strict.json");
    std::fs::write(&file, text.replace(", \"default\": 0", "")).unwrap();
    let (success, text) = garage.cli(&["rules", "apply", "hunt", file.to_str().unwrap()]).await;
    assert!(success, "{text}");
    let carl = garage.bot("carl");
    let refused = async || {
        let refused = carl.queue("hunt").await.err()?;
        (refused.body["type"] == "/problems/hopeless-ticket").then_some(())
    };
    let cancel = async || {
        let me = carl.me().await.unwrap();
        if me["status"] == "waiting" {
            let path = format!("/v1/matchmaking/tickets/{}", me["ticket"].as_str().unwrap());
            carl.ask_with_retry::<Option<Value>>(Method::DELETE, &path, None).await.unwrap();
        }
    };
    until("the gateway uses the new rule set", async || {
        cancel().await;
        refused().await
    })
    .await;
    garage.kill_and_restart(Worker::Gateway);
    garage.stack.wait_ready().await.unwrap();
    until("the gateway still uses it", refused).await;
    let (success, text) = garage.cli(&["rules", "rollback", "hunt"]).await;
    assert!(success, "{text}");
    until("the gateway uses the rule set before", async || carl.queue("hunt").await.ok()).await;
    cancel().await;
}
