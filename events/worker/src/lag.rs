//! Whether a reader of the log keeps up with it.

use std::time::Duration;

use garage_events::jetstream::JetStreamLog;

use crate::Health;

/// Between two looks. Each costs the stream's leader one read.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps /readyz right about a reader, as the dependency `name`: down while the log goes on and the reader stands still,
/// as when its consumer's server has died and another is being found. `position` tells the last sequence that it read
/// of those that `filter` selects.
pub async fn watch(
    name: &'static str,
    log: &JetStreamLog,
    filter: &str,
    position: impl Fn() -> u64,
    health: &Health,
) -> ! {
    let mut behind = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let position = position();
        match log.last_sequence(filter).await {
            Ok(last) if last <= position => {
                behind = None;
                health.up(name);
            }
            Ok(_) if behind == Some(position) => health.down(name, "it goes on, but nothing of it comes here"),
            Ok(_) => {
                behind = Some(position);
                health.up(name);
            }
            Err(error) => health.down(name, error.to_string()),
        }
    }
}
