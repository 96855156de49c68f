//! A match from end to end.

use crate::support::{
    Setup,
    history::{self, assert_notified, of_player, of_session, paid, steps},
    play,
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
