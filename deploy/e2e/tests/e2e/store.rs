//! The store and the garage, as players use them.

use std::collections::BTreeSet;

use futures::future::join_all;
use garage_stack::{bot::Bot, workers::Worker};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Garage, Setup, history, play, until};

const ITEMS: &str = "/v1/garage/items";

/// What a player buys with one key, each purchase apart from the others: the garages that he was shown, without refusals.
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

/// The balances that the log tells of a player's purchases, once there are `count` of them.
async fn balances(garage: &Garage, player: &str, count: usize) -> Vec<u64> {
    garage
        .until_log(&format!("{count} purchases of {player}"), |events| {
            let received =
                events.iter().filter(|event| event.type_name == "ItemPurchased" && event.text("player") == player);
            let received: Vec<_> = received.map(|event| event.number("balance")).collect();
            (received.len() >= count).then_some(received)
        })
        .await
}

#[tokio::test]
async fn what_is_bought_and_mounted_is_raced_with() {
    let garage = Setup::short().start().await;
    let bots = garage.bots("player", 2);
    let buyer = &bots[0];
    let store: Value = buyer.insist(Method::GET, "/v1/store/items", None).await.unwrap();
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
    let mine = loadouts.iter().find(|loadout| loadout["player"] == "player-0").unwrap();
    assert_eq!(mine["items"]["tyres"]["id"], "tyres-sport", "{mine}");
    let other = loadouts.iter().find(|loadout| loadout["player"] == "player-1").unwrap();
    assert_eq!(other["items"]["tyres"]["id"], "tyres-street", "{other}");

    let wallet: Value = buyer.insist(Method::GET, "/v1/wallet", None).await.unwrap();
    assert_eq!(wallet["balance"], 1_050 - price + played[0].earned);
    let ledger: Value = buyer.insist(Method::GET, "/v1/wallet/ledger?limit=3", None).await.unwrap();
    let received: Vec<_> = ledger["entries"].as_array().unwrap().iter().map(|entry| entry["reason"].clone()).collect();
    assert_eq!(received, ["reward", "item-sold", "item-purchased"]);
    assert_eq!(ledger["entries"][0]["about"], *played[0].session);
    let received = events.iter().filter(|event| event.subject.starts_with("garage.inventory.player-0."));
    let types = history::types(&received.collect::<Vec<_>>());
    let expected = ["ItemPurchased", "ItemUnmounted", "ItemMounted", "ItemSold", "RatingChanged", "RewardGranted"];
    assert_eq!(types, expected);
}

#[tokio::test]
async fn sixty_four_purchases_at_once_take_what_there_is_and_no_more() {
    let garage = Setup::short().instances(2).start().await;
    let gateways = garage.stack.gateways();
    let (anna, bert) = (garage.bot_at("anna", &gateways[0]), garage.bot_at("bert", &gateways[1]));
    // Anna wants sixty-four pairs for her 1,000 coins; Bert one, sixty-four times.
    let (many, once) = tokio::join!(
        buy(&anna, "tyres-street", (0..64).map(|number| format!("key-{number}"))),
        buy(&bert, "tyres-street", (0..64).map(|_| "key".to_owned())),
    );
    let left: BTreeSet<_> = many.iter().map(|garage| garage["balance"].as_u64().unwrap()).collect();
    assert_eq!(left, (0..10).map(|hundreds| 100 * hundreds).collect(), "each saw the coins that it left");
    assert_eq!(many.len(), 10);
    assert_eq!(once.len(), 64);
    assert!(once.iter().all(|garage| *garage == once[0]));
    let now: Value = anna.insist(Method::GET, "/v1/garage", None).await.unwrap();
    assert_eq!((&now["balance"], &now["items"]["tyres-street"]), (&json!(0), &json!(11)));
    assert_eq!(bert.insist::<Value>(Method::GET, "/v1/garage", None).await.unwrap(), once[0]);
    assert_eq!((&once[0]["balance"], &once[0]["items"]["tyres-street"]), (&json!(900), &json!(2)));
    let other = bert.command::<Value>(Method::POST, ITEMS, Some(json!({"item": "paint-red"})), "key").await;
    assert_eq!(other.unwrap_err().status, 422);

    let expected: Vec<_> = (0..10).rev().map(|hundreds| 100 * hundreds).collect();
    assert_eq!(balances(&garage, "anna", 10).await, expected, "in the order in which they were made");
    assert_eq!(balances(&garage, "bert", 1).await, [900]);
    history::check(&garage.events().await);
}

#[tokio::test]
async fn a_crash_while_purchases_are_made_neither_loses_nor_doubles_one() {
    let mut garage = Setup::short().start().await;
    let anna = garage.bot("anna");
    let crash = async {
        until("a purchase was made", async || (anna.balance().await.ok()? < 1_000).then_some(())).await;
        garage.kill_and_restart(Worker::Inventory);
    };
    // Fifteen of 50 coins, which she can pay, with a repeat of each while the first is under way.
    let keys = (0..30).map(|number| format!("key-{}", number % 15));
    let (bought, ()) = tokio::join!(buy(&anna, "paint-midnight", keys), crash);
    assert_eq!(bought.len(), 30);
    assert_eq!(anna.balance().await.unwrap(), 250);
    let expected: Vec<_> = (0..15).map(|number| 950 - 50 * number).collect();
    assert_eq!(balances(&garage, "anna", 15).await, expected);
    history::check(&garage.events().await);
}
