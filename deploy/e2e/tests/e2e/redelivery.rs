//! Every message may be redelivered at any time.

use futures::future::join_all;
use garage_events::{
    id::SessionId,
    jetstream::setup::CONSUMERS,
    subject::{self, TIMERS},
};
use garage_stack::workers::Worker;

use crate::support::{
    Garage, NO_REQUEUE, Setup,
    history::{self, Event, assert_notified, of_session, paid},
    play,
};

/// Resets every durable consumer, so that all messages of the streams are delivered again.
pub(crate) async fn redeliver(garage: &Garage) {
    let jetstream = garage.jetstream();
    for consumer in CONSUMERS {
        let stream = jetstream.get_stream_no_info(consumer.stream).await.unwrap();
        stream.reset_consumer(consumer.name, Some(1)).await.unwrap();
    }
}

#[tokio::test]
async fn matches_continue_when_their_consumers_are_deleted() {
    let mut garage = Setup::short().start().await;
    let bots = garage.bots("player", 8);
    let jetstream = garage.jetstream();
    let faults = async {
        for (type_name, count) in [("Matched", 1), ("PodRequested", 2), ("Opened", 1), ("Finished", 2), ("Closed", 3)] {
            garage.until_event(type_name, count).await;
            for consumer in CONSUMERS {
                // It may not have been created again since the last time.
                let _ = jetstream.delete_consumer_from_stream(consumer.name, consumer.stream).await;
            }
        }
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    for once in ["PodRequested", "PodScheduled", "PodReady", "Opened", "Finished", "Closed"] {
        assert_eq!(history::count(&events, once), 4, "{once}");
    }
    assert_eq!(started(&mut garage), 4);
}

/// How often the director has logged a message.
fn logged(garage: &mut Garage, message: &str) -> usize {
    let logs = garage.stack.instances(Worker::Director).map(|one| std::fs::read_to_string(one.process.log()).unwrap());
    logs.map(|log| log.matches(&format!("\"{message}\"")).count()).sum()
}

/// The number of game servers that the director has started.
fn started(garage: &mut Garage) -> usize {
    logged(garage, "instance started")
}

#[tokio::test]
async fn each_event_that_is_delivered_again_has_one_effect() {
    let mut garage = Setup::short().start().await;
    let bots = garage.bots("player", 8);

    let faults = async {
        for (type_name, count) in [("Matched", 1), ("PodRequested", 2), ("Opened", 1), ("Opened", 4), ("Closed", 1)] {
            garage.until_event(type_name, count).await;
            redeliver(&garage).await;
        }
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    assert_eq!(history::sessions(&events).len(), 4);
    for once in ["PodRequested", "PodScheduled", "PodReady", "Opened", "Finished", "Closed"] {
        assert_eq!(history::count(&events, once), 4, "{once}");
    }
    assert_eq!(started(&mut garage), 4);

    // Once more, after the end of all matches.
    redeliver(&garage).await;
    let repeated = garage.settled().await;
    assert_eq!(repeated, events);
    assert_eq!(started(&mut garage), 4);
    for (bot, played) in bots.iter().zip(&played) {
        assert_eq!(bot.balance().await.unwrap(), 1_000 + played.earned);
    }
}

/// A player's first session.
fn session_of(events: &[Event], player: &str) -> SessionId {
    let events = history::of_player(events, player);
    events.iter().find(|event| event.type_name == "Matched").unwrap().text("session").parse().unwrap()
}

/// The event types of a player's session, with the reason in place of `PodFailed`. Without `PodScheduled`: a server may
/// exit before its placement is recorded.
fn steps<'a>(events: &'a [Event], player: &str) -> Vec<&'a str> {
    let session = of_session(events, session_of(events, player)).into_iter();
    let received = session.filter(|event| event.type_name != "PodScheduled");
    received.map(|event| if event.type_name == "PodFailed" { event.text("reason") } else { &event.type_name }).collect()
}

#[tokio::test]
async fn a_failed_attempt_fails_once_despite_redeliveries() {
    // In one match the first server exits. In another it hangs until the session's timer fires. In the third all exit.
    let script = "first() { case $config in *-1/config.json) return 0;; esac; return 1; }
        if grep -q '\"fails-0\"' \"$config\"; then exit 7; fi
        if grep -q '\"dies-0\"' \"$config\" && first; then exit 7; fi
        if grep -q '\"hangs-0\"' \"$config\" && first; then hang; fi";
    let mut garage = Setup::short().queues(NO_REQUEUE).env("GARAGE_READY_S", "10").game_server(script).start().await;
    let bots: Vec<_> = [("dies-0", 0), ("dies-1", 0), ("hangs-0", 5_000), ("hangs-1", 5_000)]
        .map(|(name, rank)| garage.ranked(name, rank))
        .into();
    let fails = async |bot| {
        let bot = garage.ranked(bot, 10_000);
        let mut event_stream = bot.event_stream().await.unwrap();
        bot.queue("ranked").await.unwrap();
        while event_stream.next().await.unwrap().type_name != "Released" {}
        (bot, event_stream.close().await)
    };
    let faults = async {
        for (type_name, count) in
            [("PodFailed", 1), ("PodFailed", 2), ("Failed", 1), ("Opened", 1), ("PodFailed", 5), ("PodRequested", 7)]
        {
            garage.until_event(type_name, count).await;
            redeliver(&garage).await;
        }
    };
    let failed = join_all(["fails-0", "fails-1"].map(fails));
    let (played, failed, ()) = tokio::join!(play(&bots), failed, faults);

    let events = garage.settled().await;
    let continues = ["PodRequested", "PodReady", "Opened", "Finished", "Closed"];
    let expected = |begin: &[&'static str], end: &[&'static str]| [&["Matched"], begin, end].concat();
    assert_eq!(steps(&events, "dies-0"), expected(&["PodRequested", "exited"], &continues));
    assert_eq!(steps(&events, "hangs-0"), expected(&["PodRequested", "not-ready"], &continues));
    assert_eq!(steps(&events, "fails-0"), expected(&["PodRequested", "exited"].repeat(3), &["Failed", "Closed"]));
    let finished = bots.iter().zip(&played).map(|(bot, played)| (bot, &played.frames, 1));
    let failed = failed.iter().map(|(bot, frames)| (bot, frames, 0));
    for (bot, frames, times) in finished.chain(failed) {
        assert_notified(&events, &bot.player, frames);
        assert_eq!(paid(&events, &bot.player).len(), times, "{}", bot.player);
    }
    // The director may start a server while the failure of its attempt is recorded. It then removes the server at once.
    let servers_started = started(&mut garage);
    assert!(
        (7..=7 + logged(&mut garage, "instance is not needed any more")).contains(&servers_started),
        "{servers_started}"
    );

    // Once more, after the end of all matches, with the timer's message.
    let timers = garage.jetstream().get_stream(TIMERS).await.unwrap();
    timers.get_last_raw_message_by_subject(&subject::timer_due(session_of(&events, "hangs-0"))).await.unwrap();
    redeliver(&garage).await;
    assert_eq!(garage.settled().await, events);
    assert_eq!(started(&mut garage), servers_started);
}
