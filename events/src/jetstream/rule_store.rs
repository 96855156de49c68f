//! Stores rule sets under their ids, forever: a match names the rule set that made it. Also stores which rule set each
//! queue uses.

use async_nats::jetstream::{
    Context,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use serde::Serialize;

use super::{found, publish, unavailable};
use crate::{
    crash::Point,
    id::QueueName,
    log::ReadError,
    rules::{self, Applied, Configured, RuleSetId},
};

/// Stores the text of a rule set. It may be stored already: then nothing changes, because the id is the hash of the text.
///
/// # Errors
/// If the server refuses the text or does not acknowledge it.
pub async fn store(context: &Context, text: &str) -> Result<(), PublishError> {
    let message = PublishMessage::build().payload(text.to_owned().into()).expected_last_subject_sequence(0);
    match publish(context, Point::RulesStored, RuleSetId::of(text).subject(), message).await {
        Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => Err(error),
        _ => Ok(()),
    }
}

/// Stores what the queues file says about a queue.
///
/// # Errors
/// If the server refuses the entry or does not acknowledge it.
pub async fn configure(context: &Context, queue: &QueueName, configured: &Configured) -> Result<(), PublishError> {
    put(context, Configured::subject(queue), configured).await
}

/// Applies a rule set to a queue. Its text must be stored already.
///
/// # Errors
/// If the server refuses the entry or does not acknowledge it.
pub async fn apply(context: &Context, queue: &QueueName, applied: &Applied) -> Result<(), PublishError> {
    put(context, Applied::subject(queue), applied).await
}

async fn put(context: &Context, subject: String, value: &impl Serialize) -> Result<(), PublishError> {
    // These values are maps with texts as keys, which JSON can always represent.
    let body = serde_json::to_vec(value).unwrap_or_default();
    publish(context, Point::RulesStored, subject, PublishMessage::build().payload(body.into())).await.map(drop)
}

/// The text of a rule set. `None` if it is not stored.
///
/// # Errors
/// [`ReadError::Unavailable`], also if the stored text is not that of the id.
pub async fn text(context: &Context, id: &RuleSetId) -> Result<Option<String>, ReadError> {
    let bucket = context.get_stream_no_info(rules::STREAM).await.map_err(unavailable)?;
    let Some(message) = found(bucket.get_last_raw_message_by_subject(&id.subject()).await)? else { return Ok(None) };
    let text = String::from_utf8(message.payload.to_vec()).map_err(unavailable)?;
    if RuleSetId::of(&text) != *id {
        return Err(unavailable(format!("the text that is stored for the rule set {id} is not its text")));
    }
    Ok(Some(text))
}
