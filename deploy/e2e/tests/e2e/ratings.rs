//! The source of a player's rank, and how matches change ratings.

use futures::future::join_all;
use garage_stack::bot::{Bot, Ticket};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    redelivery::redeliver,
    support::{Setup, history::of_player, play},
};

const TICKETS: &str = "/v1/matchmaking/tickets";

async fn profiles(bots: &[Bot]) -> Vec<Value> {
    let profiles = bots.iter().map(async |bot| bot.ask_with_retry(Method::GET, "/v1/profile", None).await.unwrap());
    join_all(profiles).await
}

#[tokio::test]
async fn a_race_changes_the_ratings_once_and_the_next_ticket_has_the_new_rank() {
    let garage = Setup::short().start().await;
    let bots = ["anna", "bert"].map(|name| garage.ranked(name, None));
    for profile in profiles(&bots).await {
        assert_eq!(
            (&profile["rank"], &profile["rating"], &profile["matches"]),
            (&json!(1_500), &json!(1_500.0), &json!(0))
        );
    }

    let played = play(&bots).await;
    let events = garage.settled().await;
    let changed = profiles(&bots).await;
    for ((bot, played), profile) in bots.iter().zip(&played).zip(&changed) {
        let (rank, rating) = (profile["rank"].as_i64().unwrap(), profile["rating"].as_f64().unwrap());
        assert_eq!(played.place == 1, rating > 1_500.0, "{profile} of place {}", played.place);
        assert!((rating - rank as f64).abs() <= 0.5 && rank != 1_500, "{profile}");
        assert_eq!(profile["matches"], 1);
        let changes: Vec<_> = events
            .iter()
            .filter(|event| event.type_name == "RatingChanged" && event.text("player") == bot.player)
            .collect();
        let [change] = changes[..] else { panic!("{changes:?}") };
        assert_eq!(
            change.data,
            json!({"player": bot.player, "session": played.session, "rating": rating, "before": 1_500.0})
        );
    }

    redeliver(&garage).await;
    assert_eq!(garage.settled().await, events);
    assert_eq!(profiles(&bots).await, changed);

    // Winner and loser are now too far apart to be matched again.
    for (bot, profile) in bots.iter().zip(&changed) {
        let first = bot.queue("ranked").await.unwrap();
        bot.cancel(&first).await.unwrap();
        let body = json!({"queue": "ranked", "rank": 1_500, "latencies": {"eu": 20}});
        let refused = bot.ask::<Value>(Method::POST, TICKETS, Some(body)).await.unwrap_err();
        assert_eq!(refused.status, 422, "{}", refused.body);
        let body = json!({"queue": "casual", "rank": 42, "latencies": {"eu": 20}});
        let second: Ticket = bot.ask(Method::POST, TICKETS, Some(body)).await.unwrap();
        bot.cancel(&second).await.unwrap();
        let events = garage.events().await;
        let queued = of_player(&events, &bot.player).into_iter().filter(|event| event.type_name == "Queued");
        let ranks: Vec<_> = queued.map(|event| event.data["rank"].clone()).collect();
        assert_eq!(ranks, [json!(1_500), profile["rank"].clone(), json!(42)]);
    }
}
