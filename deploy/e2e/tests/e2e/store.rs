//! Players buy, sell and mount cars and items.

use std::collections::BTreeSet;

use futures::future::join_all;
use garage_stack::{bot::Bot, workers::Worker};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Garage, Setup, history, play, until};

const ITEMS: &str = "/v1/garage/items";

/// Sends one purchase per idempotency key, all at once. Returns the successful answers. Every refusal must be for a
/// lack of coins.
async fn buy(bot: &Bot, item: &str, keys: impl IntoIterator<Item = String>) -> Vec<Value> {
    let item = json!({ "item": item });
    let buying = keys.into_iter().map(async |key| {
        match bot.command::<Value>(Method::POST, ITEMS, Some(item.clone()), &key).await {
            Ok(garage) => Some(garage),
            Err(problem) => {
                let detail = problem.body["detail"].as_str().unwrap_or_default();
                assert!(problem.status == 409 && detail.starts_with("not enough coins"), "{problem:?}");
                None
            }
        }
    });
    join_all(buying).await.into_iter().flatten().collect()
}

/// The balances after a player's purchases, according to the log. Waits until there are `count` of them.
async fn balances(garage: &Garage, player: &str, count: usize) -> Vec<u64> {
    garage
        .until_log(&format!("{count} purchases of {player}"), |events| {
            let purchases =
                events.iter().filter(|event| event.type_name == "ItemPurchased" && event.text("player") == player);
            let purchases: Vec<_> = purchases.map(|event| event.number("balance")).collect();
            (purchases.len() >= count).then_some(purchases)
        })
        .await
}

#[tokio::test]
async fn a_match_uses_the_items_that_a_player_bought_and_mounted() {
    let garage = Setup::short().start().await;
    let bots = garage.bots("player", 2);
    let buyer = &bots[0];
    let store: Value = buyer.ask_with_retry(Method::GET, "/v1/store/items", None).await.unwrap();
    let items = store["items"].as_array().unwrap();
    let tyres = items.iter().find(|item| item["id"] == "tyres-sport").unwrap();
    let price = tyres["price"].as_u64().unwrap();

    let bought: Value = buyer.command(Method::POST, ITEMS, Some(json!({"item": "tyres-sport"})), "1").await.unwrap();
    assert_eq!(bought["balance"], 1_000 - price);
    let slot = "/v1/garage/cars/pebble/slots/tyres";
    let mounted: Value = buyer.command(Method::PUT, slot, Some(json!({"item": "tyres-sport"})), "2").await.unwrap();
    assert_eq!(mounted["cars"][0]["items"]["tyres"], "tyres-sport");
    let sold: Value = buyer.command(Method::DELETE, "/v1/garage/items/tyres-street", None, "3").await.unwrap();
    assert_eq!(sold["balance"], 1_050 - price);
    let refused = buyer.command::<Value>(Method::DELETE, "/v1/garage/cars/pebble", None, "4").await.unwrap_err();
    assert_eq!(refused.status, 409);

    let played = play(&bots).await;
    let events = garage.settled().await;
    let requested = events.iter().find(|event| event.type_name == "PodRequested").unwrap();
    let loadouts = requested.data["loadouts"].as_array().unwrap();
    let first = loadouts.iter().find(|loadout| loadout["player"] == "player-0").unwrap();
    assert_eq!(first["items"]["tyres"]["id"], "tyres-sport", "{first}");
    let second = loadouts.iter().find(|loadout| loadout["player"] == "player-1").unwrap();
    assert_eq!(second["items"]["tyres"]["id"], "tyres-street", "{second}");

    let wallet: Value = buyer.ask_with_retry(Method::GET, "/v1/wallet", None).await.unwrap();
    assert_eq!(wallet["balance"], 1_050 - price + played[0].earned);
    let ledger: Value = buyer.ask_with_retry(Method::GET, "/v1/wallet/ledger?limit=3", None).await.unwrap();
    let reasons: Vec<_> = ledger["entries"].as_array().unwrap().iter().map(|entry| entry["reason"].clone()).collect();
    assert_eq!(reasons, ["reward", "item-sold", "item-purchased"]);
    assert_eq!(ledger["entries"][0]["about"], *played[0].session);
    let belongings = events.iter().filter(|event| event.subject.starts_with("garage.inventory.player-0."));
    let types = history::types(&belongings.collect::<Vec<_>>());
    let expected = ["ItemPurchased", "ItemUnmounted", "ItemMounted", "ItemSold", "RatingChanged", "RewardGranted"];
    assert_eq!(types, expected);
}

#[tokio::test]
async fn sixty_four_concurrent_purchases_never_overdraw_a_wallet() {
    let garage = Setup::short().instances(2).start().await;
    let gateways = garage.stack.gateways();
    let (anna, bert) = (garage.bot_at("anna", &gateways[0]), garage.bot_at("bert", &gateways[1]));
    // Anna tries 64 purchases of 100 coins with her 1,000 coins. Bert sends one purchase 64 times.
    let (many, once) = tokio::join!(
        buy(&anna, "tyres-street", (0..64).map(|number| format!("key-{number}"))),
        buy(&bert, "tyres-street", (0..64).map(|_| "key".to_owned())),
    );
    let left: BTreeSet<_> = many.iter().map(|garage| garage["balance"].as_u64().unwrap()).collect();
    assert_eq!(
        left,
        (0..10).map(|hundreds| 100 * hundreds).collect(),
        "each answer has the balance after its purchase"
    );
    assert_eq!(many.len(), 10);
    assert_eq!(once.len(), 64);
    assert!(once.iter().all(|garage| *garage == once[0]));
    let now: Value = anna.ask_with_retry(Method::GET, "/v1/garage", None).await.unwrap();
    assert_eq!((&now["balance"], &now["items"]["tyres-street"]), (&json!(0), &json!(11)));
    assert_eq!(bert.ask_with_retry::<Value>(Method::GET, "/v1/garage", None).await.unwrap(), once[0]);
    assert_eq!((&once[0]["balance"], &once[0]["items"]["tyres-street"]), (&json!(900), &json!(2)));
    let refused = bert.command::<Value>(Method::POST, ITEMS, Some(json!({"item": "paint-red"})), "key").await;
    assert_eq!(refused.unwrap_err().status, 422);

    let expected: Vec<_> = (0..10).rev().map(|hundreds| 100 * hundreds).collect();
    assert_eq!(balances(&garage, "anna", 10).await, expected, "balances in the order of the purchases");
    assert_eq!(balances(&garage, "bert", 1).await, [900]);
    garage.check(&garage.events().await).await;
}

#[tokio::test]
async fn a_crash_during_purchases_neither_loses_nor_repeats_one() {
    let mut garage = Setup::short().start().await;
    let anna = garage.bot("anna");
    let crash = async {
        until("a purchase was made", async || (anna.balance().await.ok()? < 1_000).then_some(())).await;
        garage.kill_and_restart(Worker::Inventory);
    };
    // 15 purchases of 50 coins each, which she can pay, and a retry of each while the first request is in progress.
    let keys = (0..30).map(|number| format!("key-{}", number % 15));
    let (bought, ()) = tokio::join!(buy(&anna, "paint-midnight", keys), crash);
    assert_eq!(bought.len(), 30);
    assert_eq!(anna.balance().await.unwrap(), 250);
    let expected: Vec<_> = (0..15).map(|number| 950 - 50 * number).collect();
    assert_eq!(balances(&garage, "anna", 15).await, expected);
    garage.check(&garage.events().await).await;
}
