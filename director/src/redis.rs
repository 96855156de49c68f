//! Redis: the games' sealed keys, which session parks there. Without it a director can start nothing, but it can still
//! remove what is over.

use garage_events::projection::parked_key;
use garage_worker::redis::Redis;
use redis::{AsyncCommands, RedisError};

/// The sealed key parked under a fingerprint, if it is there.
///
/// # Errors
/// When Redis does not answer.
pub async fn parked(redis: &Redis, fingerprint: &str) -> Result<Option<Vec<u8>>, RedisError> {
    let mut connection = redis.connection().await?;
    redis.checked(connection.get(parked_key(fingerprint)).await).await
}
