//! The executed commands and their answers, by player and idempotency key.

use garage_events::{
    crash::{self, Point},
    id::PlayerId,
    svc::{Command, Garage, IdempotencyKey},
};
use sqlx::{MySqlConnection, MySqlPool};

use crate::error::Error;

/// Keys deleted per statement. A small batch holds its locks only briefly.
pub const BATCH: u64 = 500;

/// Returns the stored answer to the command with this key, if there is one. The caller holds the player's lock, so that
/// no concurrent command has the same key.
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
    let Some((stored, answer)) = row else { return Ok(None) };
    // A stored command that this build cannot parse was written by a newer build. It cannot equal `command`.
    if serde_json::from_str::<Command>(&stored).ok().as_ref() != Some(command) {
        return Err(Error::KeyReused);
    }
    serde_json::from_str(&answer).map(Some).map_err(|error| Error::Corrupt(format!("stored answer: {error}")))
}

/// Stores a command and its answer under the key.
pub(super) async fn store(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    key: &IdempotencyKey,
    command: &Command,
    answer: &Garage,
) -> Result<(), Error> {
    let unwritable = |error: serde_json::Error| Error::Corrupt(format!("storing an answer: {error}"));
    sqlx::query("INSERT INTO idempotency (player, name, command, answer) VALUES (?, ?, ?, ?)")
        .bind(player.as_str())
        .bind(key.as_str())
        .bind(serde_json::to_string(command).map_err(unwritable)?)
        .bind(serde_json::to_string(answer).map_err(unwritable)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes up to [`BATCH`] keys that are older than 24 hours. Returns how many it deleted.
///
/// # Errors
/// See [`Error`].
pub async fn delete_old(pool: &MySqlPool) -> Result<u64, Error> {
    let delete = "DELETE FROM idempotency WHERE created_at < CURRENT_TIMESTAMP(6) - INTERVAL 24 HOUR
         ORDER BY created_at LIMIT ?";
    let deleted = sqlx::query(delete).bind(BATCH).execute(pool);
    Ok(crash::effect(Point::KeysForgotten, deleted).await?.rows_affected())
}
