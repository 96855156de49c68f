//! What an operator is told of books that no transaction leaves.

use garage_events::{
    game::Placing,
    id::{PlayerId, SessionId},
};
use garage_inventory::{
    mysql::ledger_audit::{Wrong, audit},
    pay,
};
use sqlx::{AssertSqlSafe, MySqlPool};
use uuid::Uuid;

use crate::support::{player, pool};

const SESSION: SessionId = SessionId::new(Uuid::from_u128(1));

/// Anna and bert have been paid for a match: 1,100 coins and 1,060.
async fn paid() -> MySqlPool {
    let pool = pool().await;
    let placing = |name: &str, place| Placing { player: player(name), place, time_ms: Some(11_000) };
    pay(&pool, SESSION, &[placing("anna", 1), placing("bert", 2)]).await.unwrap();
    pool
}

async fn tamper(pool: &MySqlPool, statement: String) {
    sqlx::query(AssertSqlSafe(statement)).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_transactions_leave_is_right() {
    assert_eq!(audit(&pool().await).await.unwrap(), []);
    assert_eq!(audit(&paid().await).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_is_not_the_sum_of_its_ledger_is_named() {
    let pool = paid().await;
    tamper(&pool, "UPDATE wallets SET balance = balance + 1 WHERE player = 'anna'".into()).await;
    let anna: PlayerId = player("anna");
    assert_eq!(audit(&pool).await.unwrap(), [Wrong::Sum { player: anna.clone(), balance: 1_101, sum: 1_100 }]);
    tamper(&pool, "DELETE FROM ledger WHERE player = 'anna'".into()).await;
    assert_eq!(audit(&pool).await.unwrap(), [Wrong::Sum { player: anna, balance: 1_101, sum: 0 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_that_was_paid_twice_is_named() {
    let pool = paid().await;
    let again = "INSERT INTO ledger (player, name, reason, about, amount, balance)
                 SELECT player, 'another', reason, about, 0, balance FROM ledger WHERE player = 'bert' AND reason = 'reward'";
    tamper(&pool, again.into()).await;
    let twice = Wrong::Twice { player: player("bert"), session: SESSION.to_string(), rewards: 2 };
    assert_eq!(audit(&pool).await.unwrap(), [twice]);
}
