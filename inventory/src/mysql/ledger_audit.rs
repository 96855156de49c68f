//! The ledger audit, for operators. Committed transactions never leave a discrepancy; a bug or a manual change can.

use garage_events::id::PlayerId;
use sqlx::MySqlPool;

use crate::error::Error;

/// An error in the ledger or a wallet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discrepancy {
    /// A wallet's balance is not the sum of its ledger entries.
    Balance {
        player: PlayerId,
        /// Coins in the wallet.
        balance: i64,
        /// Sum of the player's ledger entries, in coins.
        sum: i64,
    },
    /// A player has more than one reward for a session.
    DuplicateReward {
        player: PlayerId,
        /// The session's id, as the ledger entry has it.
        session: String,
        /// Number of rewards, at least 2.
        rewards: i64,
    },
}

/// Checks all wallets and the whole ledger, in one snapshot.
///
/// # Errors
/// See [`Error`].
pub async fn audit(pool: &MySqlPool) -> Result<Vec<Discrepancy>, Error> {
    // The pool's isolation level gives both queries the same snapshot.
    let mut transaction = pool.begin().await?;
    let sums: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT w.player, w.balance, CAST(COALESCE(SUM(l.amount), 0) AS SIGNED) AS entered
         FROM wallets w LEFT JOIN ledger l ON l.player = w.player
         GROUP BY w.player, w.balance HAVING w.balance <> entered ORDER BY w.player",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let duplicates: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT player, about, COUNT(*) FROM ledger WHERE reason = 'reward' AND about IS NOT NULL
         GROUP BY player, about HAVING COUNT(*) > 1 ORDER BY player, about",
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    let mut discrepancies = Vec::new();
    for (player, balance, sum) in sums {
        discrepancies.push(Discrepancy::Balance { player: player.parse()?, balance, sum });
    }
    for (player, session, rewards) in duplicates {
        discrepancies.push(Discrepancy::DuplicateReward { player: player.parse()?, session, rewards });
    }
    Ok(discrepancies)
}
