//! Garage continues when Redis loses all its data.

use std::collections::BTreeMap;

use garage_events::{
    id::PlayerId,
    projection::{Live, LivePlayer, LiveSession, Server},
    session,
    subject::Aggregate,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use garage_stack::workers::Worker;

use crate::support::{
    Garage, Setup,
    history::{self, Event, assert_notified, of_session, steps},
    play, until,
};

/// The expected projections, folded from the log by code that is independent of the projector.
fn fold(events: &[Event]) -> Live {
    let mut live = Live { seq: 0, sessions: BTreeMap::new(), players: BTreeMap::new(), queues: BTreeMap::new() };
    let mut last: BTreeMap<&PlayerId, &Event> = BTreeMap::new();
    for event in events {
        match &event.aggregate {
            Aggregate::Player(player) => drop(last.insert(player, event)),
            Aggregate::Session(_) => {}
            Aggregate::Inventory(_) | Aggregate::Party(_) => continue,
        }
        live.seq = event.seq;
    }
    for (player, event) in last {
        let state = match &*event.type_name {
            "Queued" => LivePlayer::Waiting {
                queue: event.text("queue").parse().unwrap(),
                since: OffsetDateTime::parse(event.text("waiting_since"), &Rfc3339).unwrap(),
            },
            "Matched" | "PlayerMatched" => LivePlayer::InSession { session: event.text("session").parse().unwrap() },
            _ => continue,
        };
        if let LivePlayer::Waiting { queue, .. } = &state {
            *live.queues.entry(queue.clone()).or_default() += 1;
        }
        live.players.insert(player.clone(), state);
    }
    for id in history::sessions(events) {
        let history = of_session(events, id);
        let has = |name: &str| history.iter().any(|event| event.type_name == name);
        if has("Closed") {
            continue;
        }
        let matched: session::Matched = serde_json::from_value(history[0].data.clone()).unwrap();
        let attempt = history.iter().filter(|event| event.type_name == "PodRequested").count();
        live.sessions.insert(
            id,
            LiveSession {
                status: match (has("Opened"), attempt) {
                    (true, _) => session::Status::Open,
                    (false, 0) => session::Status::Matched,
                    (false, _) => session::Status::Starting,
                },
                // In these tests, the server of an open session always runs.
                server: has("Opened").then_some(Server::Running),
                players: matched.players().cloned().collect(),
                queue: matched.queue,
                region: matched.region,
                attempt: attempt.try_into().unwrap(),
                since: history[0].time,
            },
        );
    }
    live
}

async fn flush(garage: &Garage) {
    let mut connection = garage.redis().await;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
}

#[tokio::test]
async fn players_notice_nothing_when_redis_loses_its_data_during_matches() {
    // The match of the players long-0 and long-1 waits for them longer than the test takes.
    let script = "if grep -q '\"long-0\"' \"$config\"; then
        real --join-timeout-ms 600000; fi";
    let mut garage = Setup::short().game_server(script).start().await;
    // An open session and queued players, so that the projections have something to restore.
    let long = ["long-0", "long-1"].map(|name| garage.ranked(name, 10_000));
    let waiting = (0..3).map(|number| garage.ranked(&format!("alone-{number}"), 20_000 + number * 2_000));
    for bot in long.iter().cloned().chain(waiting) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 1).await;

    let bots = garage.bots("player", 8);
    let faults = async {
        // At this moment, Redis stores some keys that the director has not fetched yet.
        garage.until_event("PodRequested", 2).await;
        flush(&garage).await;
        garage.until_event("Opened", 5).await;
        garage.stack.redis.restart_empty().await.unwrap();
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let expected = fold(&garage.events().await);
    assert_eq!((expected.sessions.len(), expected.players.len()), (1, 5));
    let live = until("the projections have applied the whole log", async || {
        let live = garage.projections().await?;
        (live.seq >= expected.seq).then_some(live)
    })
    .await;
    assert_eq!(live, expected);

    garage.until_event("RewardGranted", bots.len()).await;
    let events = garage.events().await;
    garage.check(&events).await;
    assert_eq!(history::count(&events, "Finished"), 4);
    for session in history::sessions(&events) {
        let requested = of_session(&events, session).iter().filter(|event| event.type_name == "PodRequested").count();
        assert!(requested <= 2, "{session} took {requested} attempts");
    }
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(history::paid(&events, &bot.player).len(), 1);
    }
    // This answer does not need Redis.
    for bot in &long {
        assert_eq!(bot.me().await.unwrap()["status"], "playing");
    }
}

#[tokio::test]
async fn a_key_lost_before_the_director_fetches_it_costs_exactly_one_attempt() {
    // The time-out is long: the director's pause must not count as a server that does not become ready.
    let mut garage = Setup::short().start().await;
    garage.stack.instances(Worker::Director).next().unwrap().process.pause().unwrap();
    let bots = garage.bots("player", 2);
    let fault = async {
        // Redis stores the key by now, and the director is paused.
        garage.until_event("PodRequested", 1).await;
        flush(&garage).await;
        garage.stack.instances(Worker::Director).next().unwrap().process.resume().unwrap();
    };
    let (played, ()) = tokio::join!(play(&bots), fault);

    let events = garage.settled().await;
    let [session] = history::sessions(&events).try_into().unwrap();
    let session = of_session(&events, session);
    let expected = [
        "Matched",
        "PodRequested",
        "PodFailed",
        "PodRequested",
        "PodScheduled",
        "PodReady",
        "Opened",
        "Finished",
        "Closed",
    ];
    assert_eq!(steps(&session), expected);
    assert_eq!((session[2].number("attempt"), session[2].text("reason")), (1, "key-lost"));
    let fingerprint = |event: &Event| event.text("fingerprint").to_owned();
    assert_ne!(fingerprint(session[1]), fingerprint(session[3]), "the second attempt has the same key");
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(history::paid(&events, &bot.player).len(), 1);
    }
}
