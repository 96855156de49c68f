//! Players whose identity provider gives them long names. Their ids are hashes.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::id::PlayerId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Setup,
    history::{self, paid},
    play, until,
};

#[tokio::test]
async fn players_with_the_longest_names_queue_race_buy_and_are_found_by_operators() {
    let garage = Setup::short().start().await;
    // Only the last character differs, and each takes four bytes.
    let names = ["😀", "🚗"].map(|last| format!("{}{last}", "😀".repeat(254)));
    let ids = names.clone().map(|name| PlayerId::from_foreign(&name).unwrap());
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.as_str().starts_with("==")), "{ids:?}");
    let bots = names.clone().map(|name| garage.bot(&name));
    assert_eq!(bots[0].me().await.unwrap()["player"], ids[0].as_str());

    let observe = async {
        garage.until_event("Opened", 1).await;
        let session = history::sessions(&garage.events().await)[0];
        let path = format!("/v1/sessions/{session}/connect-token");
        let token: Value = bots[0].ask_with_retry(Method::POST, &path, None).await.unwrap();
        let live =
            until("the session is in Redis", async || garage.projections().await?.sessions.remove(&session)).await;
        assert!(ids.iter().all(|id| live.players.contains(id)), "{:?}", live.players);
        token["token"].as_str().unwrap().to_owned()
    };
    let (played, token) = tokio::join!(play(&bots), observe);
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["sub"], &claims["provider_sub"]), (&json!(ids[0]), &json!(names[0])));
    let mut earned: Vec<_> = played.iter().map(|played| (played.place, played.earned)).collect();
    earned.sort_unstable();
    assert_eq!(earned, [(1, 100), (2, 60)]);

    // The database knows the players too.
    let bought: Value =
        bots[0].command(Method::POST, "/v1/garage/items", Some(json!({"item": "paint-midnight"})), "1").await.unwrap();
    assert_eq!(bought["balance"], 1_000 + played[0].earned - 50);
    assert_eq!(bots[1].balance().await.unwrap(), 1_000 + played[1].earned);

    let events = garage.settled().await;
    assert!(names.iter().all(|name| paid(&events, name).len() == 1));
    for name in [&*names[0], ids[0].as_str()] {
        let (success, text) = garage.cli(&["player", name]).await;
        assert!(success && text.contains("Released") && text.contains("ItemPurchased"), "{text}");
        assert!(text.contains(ids[0].as_str()) && !text.contains(ids[1].as_str()), "{text}");
    }
}
