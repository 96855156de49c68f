//! Whether the books are right: nothing that a transaction left can be otherwise, and an operator may look.

use garage_events::id::PlayerId;
use sqlx::MySqlPool;

use crate::error::Error;

/// Something in the books that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A wallet does not hold the sum of its ledger.
    Sum {
        /// Whose.
        player: PlayerId,
        /// Coins in the wallet.
        balance: i64,
        /// Coins that its ledger comes to.
        sum: i64,
    },
    /// A player has more than one reward for a match.
    Twice {
        /// Who.
        player: PlayerId,
        /// The match, as the ledger has it.
        session: String,
        /// How many rewards.
        rewards: i64,
    },
}

/// Looks through all wallets and their ledgers, as of one moment.
///
/// # Errors
/// See [`Error`].
pub async fn audit(pool: &MySqlPool) -> Result<Vec<Wrong>, Error> {
    // The pool's isolation level gives both one snapshot.
    let mut transaction = pool.begin().await?;
    let sums: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT w.player, w.balance, CAST(COALESCE(SUM(l.amount), 0) AS SIGNED) AS entered
         FROM wallets w LEFT JOIN ledger l ON l.player = w.player
         GROUP BY w.player, w.balance HAVING w.balance <> entered ORDER BY w.player",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let twice: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT player, about, COUNT(*) FROM ledger WHERE reason = 'reward' AND about IS NOT NULL
         GROUP BY player, about HAVING COUNT(*) > 1 ORDER BY player, about",
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    let mut wrong = Vec::new();
    for (player, balance, sum) in sums {
        wrong.push(Wrong::Sum { player: player.parse()?, balance, sum });
    }
    for (player, session, rewards) in twice {
        wrong.push(Wrong::Twice { player: player.parse()?, session, rewards });
    }
    Ok(wrong)
}
