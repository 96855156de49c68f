//! Reports whether a reader of the log keeps up.

use std::time::Duration;

use garage_events::jetstream::JetStreamLog;

use crate::Health;

/// Interval between checks. Each check costs the stream's leader one read.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Reports a reader of the log in /readyz, as the dependency `name`. The dependency is down while the log has newer
/// messages and the reader makes no progress, for example while the server of its consumer is being replaced.
/// `position` returns the sequence of the last message that the reader has read, among those that `filter` selects.
pub async fn watch(
    name: &'static str,
    log: &JetStreamLog,
    filter: &str,
    position: impl Fn() -> u64,
    health: &Health,
) -> ! {
    let mut behind = None;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let position = position();
        match log.last_sequence(filter).await {
            Ok(last) if last <= position => {
                behind = None;
                health.up(name);
            }
            Ok(_) if behind == Some(position) => health.down(name, "the log has new messages, but none arrive here"),
            Ok(_) => {
                behind = Some(position);
                health.up(name);
            }
            Err(error) => health.down(name, error.to_string()),
        }
    }
}
