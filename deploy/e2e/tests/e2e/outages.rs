//! Dependencies are down for longer than it takes to use up all delivery attempts. Messages wait for the dependency.
//! None becomes a dead letter, and all work is completed.

use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer, pull};
use garage_events::{
    jetstream::setup::{CONSUMERS, Consumer, INVENTORY, SESSION},
    subject::DEAD,
};

use crate::support::{
    Garage, Setup,
    history::{self, assert_notified, paid},
    play, until,
};

/// A number of deliveries above the limit of failed deliveries, after which a message becomes a dead letter.
const MANY: u64 = 25;

/// Reduces the acknowledgement time-out to 200 ms. The reactors report progress less often, so the server redelivers
/// held messages again and again.
async fn shorten_ack_wait(garage: &Garage) {
    for consumer in CONSUMERS {
        let stream = garage.jetstream().get_stream_no_info(consumer.stream).await.unwrap();
        let config = stream.consumer_info(consumer.name).await.unwrap().config;
        let config = pull::Config::try_from_consumer_config(config).unwrap();
        let config = pull::Config { ack_wait: Duration::from_millis(200), ..config };
        stream.update_consumer(config).await.unwrap();
    }
}

/// The number of deliveries of a consumer so far.
async fn deliveries(garage: &Garage, consumer: Consumer) -> Option<u64> {
    let stream = garage.jetstream().get_stream_no_info(consumer.stream).await.ok()?;
    Some(stream.consumer_info(consumer.name).await.ok()?.delivered.consumer_sequence)
}

/// Waits for more than [`MANY`] further deliveries of a consumer.
async fn many_deliveries(garage: &Garage, consumer: Consumer) {
    let before = until("the consumer answers", async || deliveries(garage, consumer).await).await;
    let many = async || deliveries(garage, consumer).await.filter(|now| *now > before + MANY);
    until("many deliveries", many).await;
}

#[tokio::test]
async fn a_match_waits_for_redis_and_mysql() {
    let mut garage = Setup::short().start().await;
    shorten_ack_wait(&garage).await;
    garage.stack.redis.kill();
    garage.stack.database.kill();
    for bot in garage.bots("player", 2) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Matched", 1).await;
    many_deliveries(&garage, SESSION).await;
    garage.stack.database.restart().await.unwrap();
    assert_eq!(history::count(&garage.events().await, "PodRequested"), 0);
    garage.stack.redis.restart_empty().await.unwrap();
    garage.until_event("Opened", 1).await;
    garage.drained().await;
    assert_eq!(history::count(&garage.events().await, "PodRequested"), 1);
    let dead = garage.jetstream().get_stream(DEAD).await.unwrap().cached_info().state.messages;
    assert_eq!(dead, 0, "dead letters");
}

#[tokio::test]
async fn a_payment_waits_for_mysql() {
    let mut garage = Setup::short().env("GARAGE_INVENTORY_REWARDS_CONCURRENCY", "64").start().await;
    shorten_ack_wait(&garage).await;
    let bots = garage.bots("player", 2);
    let outage = async {
        garage.until_event("Opened", 1).await;
        garage.stack.database.kill();
        garage.until_event("Closed", 1).await;
        many_deliveries(&garage, INVENTORY).await;
        garage.stack.database.restart().await.unwrap();
    };
    let (played, ()) = tokio::join!(play(&bots), outage);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
}

#[tokio::test]
async fn repeated_pauses_of_nats_lose_no_message() {
    let mut garage = Setup::short().start().await;
    shorten_ack_wait(&garage).await;
    let bots = garage.bots("player", 4);
    let outages = async {
        garage.until_event("Matched", 1).await;
        for _ in 0..MANY {
            garage.stack.nats.node(0).unwrap().pause().unwrap();
            // Longer than the acknowledgement time-out, and the same time again for redeliveries.
            tokio::time::sleep(Duration::from_millis(300)).await;
            garage.stack.nats.node(0).unwrap().resume().unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let (played, ()) = tokio::join!(play(&bots), outages);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    assert_eq!(history::count(&events, "Closed"), 2);
}
