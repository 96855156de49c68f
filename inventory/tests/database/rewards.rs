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
    Placing { player: player.clone(), place, time_ms, joined: true }
}

/// Results of four players. The last one did not finish.
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
async fn each_player_is_paid_by_place_and_gets_an_event() {
    let pool = pool().await;
    pay(&pool, session(1), &results(), &[]).await.unwrap();
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_ledger_balances(&pool).await;

    let mut rows = outbox(&pool).await;
    rows.sort_by(|a, b| a.player.cmp(&b.player));
    let paid = rows.iter().filter(|row| matches!(row.event, Event::RewardGranted(_)));
    let rewards: Vec<_> = paid.map(|row| (row.player.as_str(), row.event.clone())).collect();
    let granted =
        |place, amount| Event::from(RewardGranted { session: session(1), place, amount, balance: 1_000 + amount });
    assert_eq!(
        rewards,
        [("anna", granted(1, 100)), ("bert", granted(2, 60)), ("carl", granted(3, 30)), ("dora", granted(4, 10))]
    );
    assert!(rows.iter().all(|row| row.correlation == session(1).uuid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_of_one_player_has_no_first_prize() {
    let (pool, anna) = (pool().await, player("anna"));
    pay(&pool, session(1), &[placing(&anna, 1, Some(9_000))], &[]).await.unwrap();
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().balance, 1_030);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_payments_of_a_session_pay_once() {
    let pool = pool().await;
    for _ in 0..3 {
        pay(&pool, session(1), &results(), &[]).await.unwrap();
    }
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, 8);
    pay(&pool, session(2), &results(), &[]).await.unwrap();
    assert_eq!(balances(&pool).await, [1_200, 1_120, 1_060, 1_020]);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_concurrent_payments_of_a_session_pay_once() {
    let pool = pool().await;
    let outcomes = at_once(16, |number| {
        let pool = pool.clone();
        async move {
            let mut results = results();
            results.rotate_left(number % 4);
            pay(&pool, session(1), &results, &[]).await
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
async fn concurrent_payments_of_different_sessions_are_all_paid() {
    let pool = pool().await;
    let outcomes = at_once(32, |number| {
        let pool = pool.clone();
        async move { pay(&pool, session(number as u128), &results(), &[]).await }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    assert_eq!(balances(&pool).await, [4_200, 2_920, 1_960, 1_320]);
    assert_ledger_balances(&pool).await;
    // A player's rows are in the order of the player's transactions: each has a higher balance than the previous one.
    let rows = outbox(&pool).await;
    assert_eq!(rows.len(), 256);
    for result in results() {
        let balances: Vec<u64> = rows
            .iter()
            .filter(|row| row.player == result.player)
            .filter_map(|row| match &row.event {
                Event::RewardGranted(granted) => Some(granted.balance),
                _ => None,
            })
            .collect();
        assert!(balances.is_sorted(), "{balances:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_payment_pays_only_the_players_not_paid_before() {
    let pool = pool().await;
    let results = results();
    pay(&pool, session(1), &results[..2], &[]).await.unwrap();
    pay(&pool, session(1), &results, &[]).await.unwrap();
    assert_eq!(balances(&pool).await, [1_100, 1_060, 1_030, 1_010]);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_player_named_twice_is_paid_for_the_first_placing() {
    let pool = pool().await;
    let anna = player("anna");
    pay(&pool, session(1), &[placing(&anna, 1, Some(9)), placing(&anna, 2, Some(10))], &[]).await.unwrap();
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().balance, 1_100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_results_pays_nobody() {
    let pool = pool().await;
    pay(&pool, session(1), &[], &[]).await.unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn players_who_did_not_join_are_neither_paid_nor_rated() {
    let pool = pool().await;
    let absent = |name, place| Placing { joined: false, ..placing(&player(name), place, None) };
    pay(&pool, session(1), &[absent("anna", 1), absent("bert", 1)], &[]).await.unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, 0);
    pay(&pool, session(2), &[placing(&player("carl"), 1, Some(9)), absent("anna", 2)], &[]).await.unwrap();
    let rows = outbox(&pool).await;
    let paid: Vec<_> = rows.iter().map(|row| (row.player.as_str(), row.event.clone())).collect();
    let granted = RewardGranted { session: session(2), place: 1, amount: 100, balance: 1_100 };
    assert_eq!(paid, [("carl", granted.into())]);
}
