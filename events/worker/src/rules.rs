//! Follows which rule sets operators apply to the queues, so that they take effect without a restart.

use std::sync::Arc;

use anyhow::anyhow;
use async_nats::jetstream::Context;
use garage_events::{
    jetstream::{follow::Message, rule_store},
    queue::{Queue, Queues},
    rules::{self, Applied},
};

use crate::bucket::Entries;

/// The applied rule sets. Each is set in the queues when its entry is taken. A rule set that its queue cannot use changes
/// nothing: it is logged.
#[derive(Debug)]
pub struct AppliedRules {
    pub queues: Queues,
    /// For reading the texts.
    pub context: Context,
}

impl Entries for AppliedRules {
    const BUCKET: &'static str = rules::BUCKET;
    const STREAM: &'static str = rules::STREAM;
    const FILTER: &'static str = rules::APPLIED;
    const WHAT: &'static str = "the rule sets in use";

    async fn take(&self, entry: &Message) -> anyhow::Result<()> {
        let Some(name) = Applied::queue_of(&entry.subject) else { return Ok(()) };
        let Some(queue) = self.queues.get(&name) else { return Ok(()) };
        match find(queue, &self.context, &entry.body).await? {
            Ok(rules) => {
                tracing::info!(queue = %name, rules = %rules.id, "rule set in use");
                queue.use_rules(rules);
            }
            Err(reason) => {
                let rules = queue.rules().id.clone();
                tracing::error!(queue = %name, reason, %rules, "cannot use the applied rule set; keeping the one before");
            }
        }
        Ok(())
    }
}

/// The rule set that an entry names, or why the queue cannot use it.
///
/// # Errors
/// If the text of the rule set cannot be read. A retry may succeed.
async fn find(queue: &Queue, context: &Context, entry: &[u8]) -> anyhow::Result<Result<Arc<rules::Rules>, String>> {
    // An entry that was deleted with a KV client has no body.
    let applied = if entry.is_empty() { Ok(Applied { rules: None }) } else { serde_json::from_slice(entry) };
    let id = match applied {
        Ok(Applied { rules: Some(id) }) => id,
        Ok(Applied { rules: None }) => return Ok(Ok(Arc::clone(&queue.configured))),
        Err(error) => return Ok(Err(format!("the entry cannot be read: {error}"))),
    };
    let text = rule_store::text(context, &id).await?;
    let text = text.ok_or_else(|| anyhow!("the rule set {id} is not stored"))?;
    Ok(queue.configuration().read(&text).map(Arc::new))
}
