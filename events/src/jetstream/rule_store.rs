//! Stores rule sets under their ids, for ever: a match names the rule set that made it.

use async_nats::jetstream::{Context, context::PublishError, message::PublishMessage};

use super::{found, publish, unavailable};
use crate::{
    crash::Point,
    log::ReadError,
    rules::{self, RuleSetId},
};

/// Stores the text of a rule set. It may be stored already: then nothing changes, because the id is the hash of the text.
///
/// # Errors
/// If the server refuses the text or does not acknowledge it.
pub async fn store(context: &Context, text: &str) -> Result<(), PublishError> {
    let message = PublishMessage::build().payload(text.to_owned().into());
    publish(context, Point::RulesStored, RuleSetId::of(text).subject(), message).await.map(drop)
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
