//! Redis holds nothing that cannot be lost.

use std::collections::BTreeMap;

use garage_events::{
    id::PlayerId,
    projection::{Live, LivePlayer, LiveSession, Server},
    session,
    subject::Aggregate,
    svc::{self, ListSessions},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use garage_stack::workers::Worker;

use crate::support::{
    Garage, Setup,
    history::{self, Event, assert_notified, of_session, steps},
    play, until,
};

/// What the projections must hold, by a fold of the log that owes nothing to the projector's.
fn fold(events: &[Event]) -> Live {
    let mut live = Live { seq: 0, sessions: BTreeMap::new(), players: BTreeMap::new(), queues: BTreeMap::new() };
    let mut last: BTreeMap<&PlayerId, &Event> = BTreeMap::new();
    for event in events {
        match &event.aggregate {
            Aggregate::Player(player) => drop(last.insert(player, event)),
            Aggregate::Session(_) => {}
            Aggregate::Inventory(_) => continue,
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
                // Whoever lives while this is asked races.
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
async fn players_notice_nothing_when_redis_loses_all_in_the_midst_of_their_matches() {
    // Who is called long is waited for longer than the test takes.
    let script = "if grep -q '\"long-0\"' \"$config\"; then
        real --join-timeout-ms 600000; fi";
    let mut garage = Setup::short().game_server(script).start().await;
    // A session that lives and players who wait, so that there is something to be made again.
    let long = ["long-0", "long-1"].map(|name| garage.ranked(name, 10_000));
    let alone = (0..3).map(|number| garage.ranked(&format!("alone-{number}"), 20_000 + number * 200));
    for bot in long.iter().cloned().chain(alone) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 1).await;

    let bots = garage.bots("player", 8);
    let faults = async {
        // Some keys are parked and not fetched yet.
        garage.until_event("PodRequested", 2).await;
        flush(&garage).await;
        garage.until_event("Opened", 5).await;
        garage.stack.redis.restart_empty().await.unwrap();
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let expected = fold(&garage.events().await);
    assert_eq!((expected.sessions.len(), expected.players.len()), (1, 5));
    let live = until("the projections are at the log's end", async || {
        let live = svc::call(&garage.admin, &ListSessions {}).await.ok()?;
        (live.seq >= expected.seq).then_some(live)
    })
    .await;
    assert_eq!(live, expected);

    garage.until_event("RewardGranted", bots.len()).await;
    let events = garage.events().await;
    history::check(&events);
    assert_eq!(history::count(&events, "Finished"), 4);
    for session in history::sessions(&events) {
        let requested = of_session(&events, session).iter().filter(|event| event.type_name == "PodRequested").count();
        assert!(requested <= 2, "{session} took {requested} attempts");
    }
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(history::paid(&events, &bot.player).len(), 1);
    }
    // None of this needs Redis.
    for bot in &long {
        assert_eq!(bot.me().await.unwrap()["status"], "playing");
    }
}

#[tokio::test]
async fn a_key_that_is_lost_before_its_director_has_fetched_it_costs_one_attempt_and_no_more() {
    // The time in which the director stands still must not be taken for a server that does not get ready.
    let mut garage = Setup::short().env("GARAGE_READY_S", "60").start().await;
    garage.stack.instances(Worker::Director).next().unwrap().process.pause().unwrap();
    let bots = garage.bots("player", 2);
    let fault = async {
        // The key is parked by now, and nobody is there to fetch it.
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
    assert_ne!(fingerprint(session[1]), fingerprint(session[3]), "the second attempt has a key of its own");
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(history::paid(&events, &bot.player).len(), 1);
    }
}
