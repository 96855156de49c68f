//! Several instances of every worker.

use crate::support::{
    Setup,
    history::{self, assert_notified, paid},
    play,
};

#[tokio::test]
async fn with_two_instances_of_every_worker_each_player_is_matched_and_paid_once() {
    let garage = Setup::short().instances(2).start().await;
    let gateways = garage.stack.gateways();
    assert_eq!(gateways.len(), 2);
    let bot = |number: usize| garage.bot_at(&format!("player-{number}"), &gateways[number % 2]);
    let bots: Vec<_> = (0..20).map(bot).collect();

    let played = play(&bots).await;

    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), 10);
    assert_eq!(history::count(&events, "PodScheduled"), 10);
    for (bot, played) in bots.iter().zip(&played) {
        assert_eq!(played.frames.len(), 4);
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
}
