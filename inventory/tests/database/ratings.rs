use garage_events::{
    game::Placing,
    id::SessionId,
    inventory::{Event, RatingChanged},
    svc::Profile,
};
use garage_inventory::{domain::rating::Rating, mysql::ratings::profile, pay};
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::support::{at_once, count, outbox, player, pool};

fn session(number: usize) -> SessionId {
    SessionId::new(Uuid::from_u128(number as u128))
}

/// Results of a race that all players finished, in the given order.
fn race(players: &[&str]) -> Vec<Placing> {
    let placing =
        |(place, name): (u32, &&str)| Placing { player: player(name), place, time_ms: Some(9_000), joined: true };
    (1..).zip(players).map(placing).collect()
}

async fn profiles(pool: &MySqlPool, players: &[&str]) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for name in players {
        profiles.push(profile(pool, &player(name)).await.unwrap());
    }
    profiles
}

/// The player's `RatingChanged` events in the outbox.
async fn rating_changes(pool: &MySqlPool, name: &str) -> Vec<RatingChanged> {
    let rows = outbox(pool).await;
    let rows = rows.into_iter().filter(|row| row.player == player(name));
    let changed = rows.filter_map(|row| match row.event {
        Event::RatingChanged(changed) => Some(changed),
        _ => None,
    });
    changed.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_player_has_the_default_rating() {
    let pool = pool().await;
    let anna = profile(&pool, &player("anna")).await.unwrap();
    let Rating { rating, deviation, .. } = Rating::new();
    assert_eq!(anna, Profile { player: player("anna"), rank: 1_500, rating, deviation, matches: 0 });
    let volatility: f64 = sqlx::query_scalar("SELECT volatility FROM players").fetch_one(&pool).await.unwrap();
    assert_eq!(volatility, Rating::new().volatility);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM wallets").await, 1, "reading the profile creates the player");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_changes_each_rating_once_and_writes_an_event() {
    let pool = pool().await;
    let players = ["anna", "bert", "carl"];
    let outcomes = at_once(16, |_| {
        let pool = pool.clone();
        async move { pay(&pool, session(1), &race(&players), &[]).await }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    let rated = profiles(&pool, &players).await;
    assert!(rated.is_sorted_by(|one, next| one.rating > next.rating && one.rank > next.rank), "{rated:?}");
    for profile in &rated {
        let expected = RatingChanged { session: session(1), rating: profile.rating, before: 1_500.0 };
        assert_eq!((rating_changes(&pool, profile.player.as_str()).await, profile.matches), (vec![expected], 1));
    }
    pay(&pool, session(1), &race(&["carl", "bert", "anna"]), &[]).await.unwrap();
    assert_eq!(profiles(&pool, &players).await, rated);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_matches_of_the_same_players_change_their_ratings_one_after_the_other() {
    let pool = pool().await;
    let players = ["anna", "bert"];
    let outcomes = at_once(16, |number| {
        let pool = pool.clone();
        async move { pay(&pool, session(number), &race(&players), &[]).await }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    for profile in profiles(&pool, &players).await {
        let changes = rating_changes(&pool, profile.player.as_str()).await;
        assert_eq!((changes.len(), profile.matches), (16, 16));
        let mut rating = 1_500.0;
        for changed in changes {
            assert_eq!(changed.before, rating);
            rating = changed.rating;
        }
        assert_eq!(profile.rating, rating);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_that_nobody_finishes_is_a_draw() {
    let pool = pool().await;
    let players = ["anna", "bert"];
    pay(&pool, session(1), &[], &[]).await.unwrap();
    let unfinished = race(&players).into_iter().map(|placing| Placing { time_ms: None, ..placing });
    pay(&pool, session(2), &unfinished.collect::<Vec<_>>(), &[]).await.unwrap();
    for profile in profiles(&pool, &players).await {
        assert_eq!((profile.rating, profile.matches), (1_500.0, 1));
        assert_eq!(rating_changes(&pool, profile.player.as_str()).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_of_64_players_rates_all_of_them() {
    let pool = pool().await;
    let names: Vec<_> = (0..64).map(|number| format!("p{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    pay(&pool, session(1), &race(&names), &[]).await.unwrap();
    let rated = profiles(&pool, &names).await;
    assert!(rated.is_sorted_by(|one, next| one.rating > next.rating));
    assert!(rated.iter().all(|profile| profile.matches == 1));
}
