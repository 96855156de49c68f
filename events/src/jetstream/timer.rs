//! A session's timer: a scheduled message that the server publishes at the deadline of the session's current phase.

use async_nats::jetstream::{Context, message::PublishMessage};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{crash::Point, id::SessionId, log::ReadError, subject};

/// Sets a session's timer. It replaces the session's earlier timer. It may fire a few seconds late, and more than once.
///
/// # Errors
/// [`ReadError::Unavailable`] if the server does not confirm it.
pub async fn set(context: &Context, session: SessionId, at: OffsetDateTime) -> Result<(), ReadError> {
    let at = at.replace_nanosecond(0).map_or(at, |at| at + time::Duration::SECOND);
    let at = at.to_offset(time::UtcOffset::UTC).format(&Rfc3339).map_err(super::unavailable)?;
    let message = PublishMessage::build()
        .header("Nats-Schedule", format!("@at {at}").as_str())
        .header("Nats-Schedule-Target", subject::timer_due(session).as_str());
    publish(context, session, message).await
}

/// Cancels a session's timer.
///
/// # Errors
/// [`ReadError::Unavailable`] if the server does not confirm it.
pub async fn cancel(context: &Context, session: SessionId) -> Result<(), ReadError> {
    publish(context, session, PublishMessage::build().header("Nats-Rollup", "sub")).await
}

async fn publish(context: &Context, session: SessionId, message: PublishMessage) -> Result<(), ReadError> {
    let stored = super::publish(context, Point::TimerSet, subject::timer_set(session), message).await;
    stored.map(drop).map_err(super::unavailable)
}
