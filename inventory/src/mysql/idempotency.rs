//! Commands that were carried out, by the keys that their clients named them by.

use garage_events::{
    crash::{self, Point},
    id::PlayerId,
    svc::{Command, Garage, IdempotencyKey},
};
use sqlx::{MySqlConnection, MySqlPool};

use crate::error::Error;

/// Keys forgotten at a time, so that none of the locks is held for long.
pub const BATCH: u64 = 500;

/// What was answered to a command of this key, if there was one. The caller holds the player's lock, so that none with
/// the same key is under way.
pub(super) async fn find(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    key: &IdempotencyKey,
    command: &Command,
) -> Result<Option<Garage>, Error> {
    let row: Option<(String, String)> =
        sqlx::query_as("SELECT command, answer FROM idempotency WHERE player = ? AND name = ?")
            .bind(player.as_str())
            .bind(key.as_str())
            .fetch_optional(connection)
            .await?;
    let Some((kept, answer)) = row else { return Ok(None) };
    // One that this build cannot read is of a newer one, and so another.
    if serde_json::from_str::<Command>(&kept).ok().as_ref() != Some(command) {
        return Err(Error::KeyReused);
    }
    serde_json::from_str(&answer).map(Some).map_err(|error| Error::Corrupt(format!("a kept answer: {error}")))
}

/// Keeps what is answered to a command.
pub(super) async fn keep(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    key: &IdempotencyKey,
    command: &Command,
    answer: &Garage,
) -> Result<(), Error> {
    let unwritable = |error: serde_json::Error| Error::Corrupt(format!("an answer to keep: {error}"));
    sqlx::query("INSERT INTO idempotency (player, name, command, answer) VALUES (?, ?, ?, ?)")
        .bind(player.as_str())
        .bind(key.as_str())
        .bind(serde_json::to_string(command).map_err(unwritable)?)
        .bind(serde_json::to_string(answer).map_err(unwritable)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets up to [`BATCH`] keys that are older than 24 hours, and tells how many.
///
/// # Errors
/// See [`Error`].
pub async fn forget(pool: &MySqlPool) -> Result<u64, Error> {
    let delete = "DELETE FROM idempotency WHERE created_at < CURRENT_TIMESTAMP(6) - INTERVAL 24 HOUR
         ORDER BY created_at LIMIT ?";
    let forgotten = sqlx::query(delete).bind(BATCH).execute(pool);
    Ok(crash::effect(Point::KeysForgotten, forgotten).await?.rows_affected())
}
