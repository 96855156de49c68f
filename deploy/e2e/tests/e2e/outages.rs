//! What is needed is gone for longer than the deliveries take after which a message is given up. All wait for it;
//! nothing is given up, and what was begun comes to its end.

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

/// Deliveries that are more than those after which a message that cannot be handled is given up.
const MANY: u64 = 25;

/// Has the server wait for an acknowledgement no longer than 200 ms, which no progress that is reported comes up to: what
/// is held is delivered again and again.
async fn shorten_ack_wait(garage: &Garage) {
    for consumer in CONSUMERS {
        let stream = garage.jetstream().get_stream_no_info(consumer.stream).await.unwrap();
        let config = stream.consumer_info(consumer.name).await.unwrap().config;
        let config = pull::Config::try_from_consumer_config(config).unwrap();
        let config = pull::Config { ack_wait: Duration::from_millis(200), ..config };
        stream.update_consumer(config).await.unwrap();
    }
}

/// Deliveries of a consumer, so far.
async fn deliveries(garage: &Garage, consumer: Consumer) -> Option<u64> {
    let stream = garage.jetstream().get_stream_no_info(consumer.stream).await.ok()?;
    Some(stream.consumer_info(consumer.name).await.ok()?.delivered.consumer_sequence)
}

/// Waits until a consumer has delivered many times more.
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
    garage.stack.mariadb.kill();
    for bot in garage.bots("player", 2) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Matched", 1).await;
    many_deliveries(&garage, SESSION).await;
    garage.stack.mariadb.restart().await.unwrap();
    assert_eq!(history::count(&garage.events().await, "PodRequested"), 0);
    garage.stack.redis.restart_empty().await.unwrap();
    garage.until_event("Opened", 1).await;
    garage.drained().await;
    assert_eq!(history::count(&garage.events().await, "PodRequested"), 1);
    let dead = garage.jetstream().get_stream(DEAD).await.unwrap().cached_info().state.messages;
    assert_eq!(dead, 0, "messages that a worker gave up");
}

#[tokio::test]
async fn a_payment_waits_for_mysql() {
    let mut garage = Setup::short().env("GARAGE_INVENTORY_REWARDS_CONCURRENCY", "64").start().await;
    shorten_ack_wait(&garage).await;
    let bots = garage.bots("player", 2);
    let outage = async {
        garage.until_event("Opened", 1).await;
        garage.stack.mariadb.kill();
        garage.until_event("Closed", 1).await;
        many_deliveries(&garage, INVENTORY).await;
        garage.stack.mariadb.restart().await.unwrap();
    };
    let (played, ()) = tokio::join!(play(&bots), outage);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
}

#[tokio::test]
async fn a_nats_that_stands_still_again_and_again_costs_no_message() {
    let mut garage = Setup::short().env("GARAGE_READY_S", "60").start().await;
    shorten_ack_wait(&garage).await;
    let bots = garage.bots("player", 4);
    let outages = async {
        garage.until_event("Matched", 1).await;
        for _ in 0..MANY {
            garage.stack.nats.node(0).unwrap().pause().unwrap();
            // Longer than it waits for an acknowledgement; and as long again in which it delivers anew.
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
