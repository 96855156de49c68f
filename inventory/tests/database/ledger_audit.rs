//! The ledger audit finds discrepancies.

use garage_events::{
    game::Placing,
    id::{PlayerId, SessionId},
};
use garage_inventory::{
    mysql::ledger_audit::{Discrepancy, audit},
    pay,
};
use sqlx::{AssertSqlSafe, MySqlPool};
use uuid::Uuid;

use crate::support::{player, pool};

const SESSION: SessionId = SessionId::new(Uuid::from_u128(1));

/// A database in which Anna and Bert have been paid for a match. They have 1,100 and 1,060 coins.
async fn paid() -> MySqlPool {
    let pool = pool().await;
    let placing = |name: &str, place| Placing { player: player(name), place, time_ms: Some(11_000), joined: true };
    pay(&pool, SESSION, &[placing("anna", 1), placing("bert", 2)], &[]).await.unwrap();
    pool
}

async fn tamper(pool: &MySqlPool, statement: String) {
    sqlx::query(AssertSqlSafe(statement)).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_discrepancy_after_transactions() {
    assert_eq!(audit(&pool().await).await.unwrap(), []);
    assert_eq!(audit(&paid().await).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_is_not_the_sum_of_its_ledger_is_reported() {
    let pool = paid().await;
    tamper(&pool, "UPDATE wallets SET balance = balance + 1 WHERE player = 'anna'".into()).await;
    let anna: PlayerId = player("anna");
    assert_eq!(
        audit(&pool).await.unwrap(),
        [Discrepancy::Balance { player: anna.clone(), balance: 1_101, sum: 1_100 }]
    );
    tamper(&pool, "DELETE FROM ledger WHERE player = 'anna'".into()).await;
    assert_eq!(audit(&pool).await.unwrap(), [Discrepancy::Balance { player: anna, balance: 1_101, sum: 0 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_reward_is_reported() {
    let pool = paid().await;
    let again = "INSERT INTO ledger (player, name, reason, about, amount, balance)
                 SELECT player, 'another', reason, about, 0, balance FROM ledger WHERE player = 'bert' AND reason = 'reward'";
    tamper(&pool, again.into()).await;
    let duplicate = Discrepancy::DuplicateReward { player: player("bert"), session: SESSION.to_string(), rewards: 2 };
    assert_eq!(audit(&pool).await.unwrap(), [duplicate]);
}
