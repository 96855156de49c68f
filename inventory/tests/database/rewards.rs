use garage_events::{
    game::Placing,
    id::{PlayerId, SessionId},
    inventory::{Event, RewardGranted},
};
use garage_inventory::{mysql::garage, pay};
use uuid::Uuid;

use crate::support::{assert_ledger_balances, at_once, count, outbox, player, pool};

fn session(number: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(number))
}

fn placing(player: &PlayerId, place: u32, time_ms: Option<u64>) -> Placing {
    Placing { player: player.clone(), place, time_ms }
}

/// Four players, the last of whom did not finish.
fn results() -> Vec<Placing> {
    let players = ["anna", "bert", "carl", "dora"].map(player);
    let times = [Some(11_000), Some(11_500), Some(12_000), None];
    players.iter().zip(1..).zip(times).map(|((player, place), time)| placing(player, place, time)).collect()
}

async fn balances(pool: &sqlx::MySqlPool) -> Vec<u64> {
    let mut balances = Vec::new();
    for result in results() {
        balances.push(garage::garage(pool, &result.player).await.unwrap().balance);
    }
    balances
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_paid_by_place_and_told() {
    let pool = pool().await;
    pay(&pool, session(1), &results()).await.unwrap();
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_ledger_balances(&pool).await;

    let mut rows = outbox(&pool).await;
    rows.sort_by(|a, b| a.player.cmp(&b.player));
    let paid = rows.iter().filter(|row| matches!(row.event, Event::RewardGranted(_)));
    let published: Vec<_> = paid.map(|row| (row.player.as_str(), row.event.clone())).collect();
    let granted =
        |place, amount| Event::from(RewardGranted { session: session(1), place, amount, balance: 1_000 + amount });
    assert_eq!(
        published,
        [("anna", granted(1, 100)), ("bert", granted(2, 60)), ("carl", granted(3, 30)), ("dora", granted(4, 10))]
    );
    assert!(rows.iter().all(|row| row.correlation == session(1).uuid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_reward_pays_once() {
    let pool = pool().await;
    for _ in 0..3 {
        pay(&pool, session(1), &results()).await.unwrap();
    }
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, 8);
    pay(&pool, session(2), &results()).await.unwrap();
    assert_eq!(balances(&pool).await, [1_200, 1_120, 1_060, 1_020]);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_at_once_pay_once() {
    let pool = pool().await;
    let outcomes = at_once(16, |number| {
        let pool = pool.clone();
        async move {
            let mut results = results();
            results.rotate_left(number % 4);
            pay(&pool, session(1), &results).await
        }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger WHERE reason = 'reward'").await, 4);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, 8);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_of_the_same_players_at_once_all_count() {
    let pool = pool().await;
    let outcomes = at_once(32, |number| {
        let pool = pool.clone();
        async move { pay(&pool, session(number as u128), &results()).await }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    assert_eq!(balances(&pool).await, [4_200, 2_920, 1_960, 1_320]);
    assert_ledger_balances(&pool).await;
    // A player's rows stand in the order of his transactions: each tells a higher balance than the one before.
    let rows = outbox(&pool).await;
    assert_eq!(rows.len(), 256);
    for result in results() {
        let published: Vec<u64> = rows
            .iter()
            .filter(|row| row.player == result.player)
            .filter_map(|row| match &row.event {
                Event::RewardGranted(granted) => Some(granted.balance),
                _ => None,
            })
            .collect();
        assert!(published.is_sorted(), "{published:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_paid_before_is_left_out_and_the_others_are_not() {
    let pool = pool().await;
    let results = results();
    pay(&pool, session(1), &results[..2]).await.unwrap();
    pay(&pool, session(1), &results).await.unwrap();
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_player_named_twice_is_paid_for_his_first_place() {
    let pool = pool().await;
    let anna = player("anna");
    pay(&pool, session(1), &[placing(&anna, 1, Some(9)), placing(&anna, 2, Some(10))]).await.unwrap();
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().balance, 1_100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_results_pays_nobody() {
    let pool = pool().await;
    pay(&pool, session(1), &[]).await.unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger").await, 0);
}
