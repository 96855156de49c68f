//! Tickets that end without a match.

use crate::support::{
    Setup,
    history::{assert_notified, of_player, types},
};

#[tokio::test]
async fn a_player_who_cancels_may_queue_again() {
    let garage = Setup::short().start().await;
    let bot = garage.bot("anna");
    let mut event_stream = bot.event_stream().await.unwrap();

    let first = bot.queue("ranked").await.unwrap();
    assert_eq!(bot.me().await.unwrap()["status"], "waiting");
    bot.cancel(&first).await.unwrap();
    let cancelled = event_stream.until("Cancelled").await.unwrap();
    assert_eq!(
        (cancelled.data["ticket"].as_str(), cancelled.data["reason"].as_str()),
        (Some(&*first.ticket), Some("player"))
    );
    assert_eq!(bot.me().await.unwrap()["status"], "idle");

    let second = bot.queue("ranked").await.unwrap();
    assert_ne!(first, second);
    // An old ticket cannot cancel the player's new ticket.
    bot.cancel(&first).await.unwrap_err();
    let queued = event_stream.until("Queued").await.unwrap();
    assert_eq!(queued.data["ticket"], second.ticket);
    assert_eq!(bot.me().await.unwrap()["status"], "waiting");
    let again = bot.queue("ranked").await.unwrap_err();
    assert_eq!((again.status.as_u16(), again.body["ticket"].as_str()), (409, Some(&*second.ticket)));
    assert_notified(&garage.settled().await, "anna", event_stream.frames());
}

#[tokio::test]
async fn a_player_whose_ticket_times_out_is_notified_and_may_queue_again() {
    let queues = "[queues.brief]\nplayers = 2\nrank_band = 200\ntimeout_s = 1\n[queues.brief.regions]\neu = 120\n";
    let garage = Setup::short().queues(queues).start().await;
    let bot = garage.bot("anna");
    let mut event_stream = bot.event_stream().await.unwrap();

    for _ in 0..2 {
        let ticket = bot.queue("brief").await.unwrap();
        let timed_out = event_stream.until("TimedOut").await.unwrap();
        assert_eq!(timed_out.data["ticket"], ticket.ticket);
        assert!(timed_out.data["waited_ms"].as_u64().unwrap() >= 1_000);
        let nobody = serde_json::json!({"count": 0, "eligible": 0, "excluded": {}});
        assert_eq!(timed_out.data["considered"], nobody);
        assert_eq!(bot.me().await.unwrap()["status"], "idle");
    }

    let events = garage.settled().await;
    assert_eq!(types(&of_player(&events, "anna")), ["Queued", "TimedOut", "Queued", "TimedOut"]);
    assert_notified(&events, "anna", event_stream.frames());
}
