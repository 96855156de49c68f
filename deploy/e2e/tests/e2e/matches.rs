//! A match from end to end.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Setup,
    history::{self, assert_notified, of_player, of_session, paid, steps, types},
    play, play_in, until,
};

#[tokio::test]
async fn two_players_queue_race_and_are_paid() {
    let garage = Setup::short().start().await;
    // Names that an identity provider may allow. They are not valid tokens of a NATS subject.
    let names = ["anna@example.com", "bert b."];
    let bots = names.map(|name| garage.bot(name));

    let played = play(&bots).await;

    let mut earned: Vec<_> = played.iter().map(|played| (played.place, played.earned)).collect();
    earned.sort_unstable();
    assert_eq!(earned, [(1, 100), (2, 60)]);
    assert_eq!(played[0].session, played[1].session);
    for (bot, played) in bots.iter().zip(&played) {
        let frames: Vec<_> = played.frames.iter().map(|frame| (frame.n, &*frame.type_name)).collect();
        assert_eq!(frames, [(1, "Queued"), (2, "Matched"), (3, "PlayerMatched"), (4, "Released")]);
        let sequences: Vec<_> = played.frames.iter().map(|frame| frame.seq).collect();
        assert!(sequences.is_sorted(), "{sequences:?}");
        assert!(played.frames[1..].iter().all(|frame| frame.data["session"] == played.session));
        let me = bot.me().await.unwrap();
        assert_eq!((me["status"].as_str(), me["seq"].as_u64()), (Some("idle"), Some(played.frames[3].seq)));
    }

    // Afterwards no work is in progress, and the log has each event once.
    let events = garage.settled().await;
    let session = played[0].session.parse().unwrap();
    let expected = ["Matched", "PodRequested", "PodScheduled", "PodReady", "Opened", "Finished", "Closed"];
    assert_eq!(steps(&of_session(&events, session)), expected);
    for (name, played) in names.iter().zip(&played) {
        assert_notified(&events, name, &played.frames);
        assert_eq!(paid(&events, name).len(), 1);
    }
    assert_eq!(events.len(), 7 + 2 * (4 + 2));
    let players: Vec<_> = names.iter().flat_map(|name| of_player(&events, name)).collect();
    assert_eq!(players.len(), 8);
    assert_eq!(history::sessions(&events), [session]);
}

#[tokio::test]
async fn players_who_miss_two_matches_in_a_row_wait_before_they_can_queue_again() {
    let garage = Setup::short()
        .game_server("real --distance-m 20 --join-timeout-ms 500 --race-timeout-ms 5000")
        .env("GARAGE_ABSENCE_WAIT_S", "8")
        .start()
        .await;
    let bots = ["anna", "bert"].map(|name| garage.bot(name));
    let mut event_streams = Vec::new();
    for bot in &bots {
        event_streams.push(bot.event_stream().await.unwrap());
    }

    // The first missed match costs nothing. After the others, the wait is over when the next round begins.
    for missed in 1..=3 {
        for bot in &bots {
            until("the player may queue", async || bot.queue("ranked").await.ok()).await;
        }
        for (bot, event_stream) in bots.iter().zip(&mut event_streams) {
            // The players do not connect to the game server.
            let released = event_stream.until("Released").await.unwrap();
            assert_eq!((&released.data["why"], &released.data["absences"]), (&json!("finished"), &json!(missed)));
            if missed > 1 {
                let refused = bot.queue("ranked").await.unwrap_err();
                assert_eq!((refused.status.as_u16(), &refused.body["absences"]), (409, &json!(missed)));
                assert_eq!(refused.body["type"], "/problems/matches-missed");
            }
        }
    }

    let events = garage.settled().await;
    for bot in &bots {
        assert!(paid(&events, &bot.player).is_empty());
        let player = of_player(&events, &bot.player);
        let rounds: Vec<_> = player.chunks(4).collect();
        assert!(rounds.iter().all(|round| types(round) == ["Queued", "Matched", "PlayerMatched", "Released"]));
        let waits: Vec<_> = rounds.windows(2).map(|pair| pair[1][0].time - pair[0][3].time).collect();
        assert!(waits[1] >= Duration::from_secs(8), "{waits:?}");
    }
}

/// A large match, and the smallest one.
#[tokio::test]
async fn a_hundred_players_race_in_one_match_and_one_player_races_alone() {
    let garage = Setup::short()
        .queues(
            "[queues.crowd]\nplayers = 100\nrank_band = 100000\ntimeout_s = 120\n[queues.crowd.regions]\neu = 120\n\
             [queues.solo]\nplayers = 1\nrank_band = 200\ntimeout_s = 120\n[queues.solo.regions]\neu = 120\n",
        )
        .start()
        .await;
    let bots: Vec<_> = (0..100).map(|number| garage.bot(&format!("player-{number}"))).collect();

    let played = play_in("crowd", &bots).await;

    let mut places: Vec<_> = played.iter().map(|played| played.place).collect();
    places.sort_unstable();
    assert_eq!((places[0], places.len()), (1, 100));
    assert!(played.iter().all(|other| other.session == played[0].session));

    let alone = play_in("solo", &bots[..1]).await;
    assert_eq!(alone[0].place, 1);
    let events = garage.settled().await;
    assert_eq!(history::sessions(&events).len(), 2);
    assert_eq!(paid(&events, "player-0").len(), 2);
    assert_eq!(paid(&events, "player-99").len(), 1);
}
