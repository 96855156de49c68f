//! The players whom an operator has blocked or kicked (see [`garage_events::block`]).
//!
//! The gateways cancel every waiting ticket of a blocked player. Each gateway checks the log at two times:
//!
//! - When it reads the block, it reads the player's last event from the stream's leader, and cancels the ticket.
//! - When it reads an event of a player who is blocked, it does the same.
//!
//! The first check finds a ticket whose event was stored before the gateway read the block. The event of a later ticket
//! reaches the gateway after the block, so the second check finds it. So no ticket remains of a request that was
//! accepted just before the block, or of a match that fails so that its players wait again. Every gateway does this,
//! and the first one cancels the ticket. A match continues.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use garage_events::{
    block::{self, Block, Key, Kick},
    env::{Env, System},
    id::PlayerId,
    jetstream::{JetStreamLog, follow::Message},
    log::{Load, ReadError},
    player::CancelReason,
    subject::Aggregate,
};
use garage_worker::{Shutdown, bucket::Entries};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::sleep};

use crate::{
    answers,
    frame::Notice,
    hub::{Closing, Hub},
    problem::Problem,
    ticket,
};

/// The maximum number of players whose tickets are checked at the same time. When a gateway starts, it checks all
/// blocked players.
const CONCURRENCY: usize = 16;

/// The delay before a ticket that could not be cancelled is cancelled again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The blocked players. Clones share them.
#[derive(Clone)]
pub(crate) struct Blocks(Arc<Inner>);

struct Inner {
    /// It can also contain blocks that have ended, until the next entry is read.
    blocked: Mutex<HashMap<PlayerId, Block>>,
    hub: Hub,
    log: JetStreamLog,
    slots: Semaphore,
    shutdown: Shutdown,
}

/// Which tickets of a player are cancelled.
#[derive(Debug, Clone, Copy)]
enum Tickets {
    /// All, as long as the player is blocked.
    WhileBlocked,
    /// Those that were requested up to this time, by the stream's clock.
    Until(OffsetDateTime),
}

impl Blocks {
    pub(crate) fn new(hub: Hub, log: JetStreamLog, shutdown: Shutdown) -> Self {
        let slots = Semaphore::new(CONCURRENCY);
        Self(Arc::new(Inner { blocked: Mutex::default(), hub, log, slots, shutdown }))
    }

    /// Checks that a player is not blocked. Counts a refused request.
    pub(crate) fn check(&self, player: &PlayerId) -> Result<(), Problem> {
        let Some(block) = self.of(player) else { return Ok(()) };
        metrics::counter!("garage_gateway_blocked_total").increment(1);
        Err(Problem::blocked(&block))
    }

    /// Call this for each event of a player, after it was read from the log. Cancels the ticket of a blocked player.
    pub(crate) fn see_event(&self, message: &Message) {
        if self.blocked().is_empty() {
            return;
        }
        if let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject)
            && self.of(&player).is_some()
        {
            self.cancel(player, Tickets::WhileBlocked);
        }
    }

    /// The player's block; `None` if it has ended, or if there is none.
    fn of(&self, player: &PlayerId) -> Option<Block> {
        self.blocked().get(player).filter(|block| block.is_in_force(System.now())).cloned()
    }

    fn set(&self, player: PlayerId, block: Option<Block>) {
        let now = System.now();
        let block = block.filter(|block| block.is_in_force(now));
        {
            let mut blocked = self.blocked();
            match &block {
                Some(block) => drop(blocked.insert(player.clone(), block.clone())),
                None => drop(blocked.remove(&player)),
            }
        }
        let Some(block) = block else {
            tracing::info!(player.id = %player, "player is not blocked");
            return;
        };
        tracing::info!(player.id = %player, until = ?block.until, "player is blocked");
        // Only after the map has changed. A socket that is being opened is either registered already, so that it is
        // closed here, or it is checked after its registration.
        if self.0.hub.close(&player, None, Closing::Operator(Notice::Blocked(block))) {
            metrics::counter!("garage_gateway_closed_by_operator_total", "command" => "block").increment(1);
        }
        self.cancel(player, Tickets::WhileBlocked);
    }

    fn kick(&self, player: PlayerId, kick: Kick, at: OffsetDateTime) {
        if self.0.hub.close(&player, Some(at), Closing::Operator(Notice::Kicked(kick))) {
            metrics::counter!("garage_gateway_closed_by_operator_total", "command" => "kick").increment(1);
            tracing::info!(player.id = %player, "player is kicked");
        }
        self.cancel(player, Tickets::Until(at));
    }

    fn cancel(&self, player: PlayerId, tickets: Tickets) {
        let blocks = self.clone();
        tokio::spawn(async move {
            blocks.0.shutdown.run_until_cancelled(blocks.keep_cancelling(&player, tickets)).await;
        });
    }

    async fn keep_cancelling(&self, player: &PlayerId, tickets: Tickets) {
        loop {
            match self.try_cancel(player, tickets).await {
                Ok(()) => return,
                // A retry would not help. The ticket stays queued until it times out.
                Err(error) if matches!(error.downcast_ref(), Some(ReadError::Unreadable { .. })) => {
                    tracing::error!(player.id = %player, "cannot cancel the ticket of a blocked or kicked player: {error:#}");
                    return;
                }
                Err(error) => {
                    tracing::warn!(player.id = %player, "cannot cancel the ticket of a blocked or kicked player; retrying: {error:#}");
                }
            }
            sleep(RETRY_DELAY).await;
        }
    }

    async fn try_cancel(&self, player: &PlayerId, tickets: Tickets) -> anyhow::Result<()> {
        let _slot = self.0.slots.acquire().await?;
        let found = self.0.log.player(player).await?;
        let (Some(ticket), Some(requested)) = (found.state.ticket(), ticket::requested_at(&found)) else {
            return Ok(());
        };
        let applies = match tickets {
            Tickets::WhileBlocked => self.of(player).is_some(),
            Tickets::Until(at) => requested <= at,
        };
        if applies {
            // A reason that clients and workers of all versions know.
            let reason = CancelReason::Disconnected;
            let client = self.0.log.context().client();
            match answers::withdraw(&self.0.log, &System, &client, player, ticket, reason).await {
                Ok(()) => {
                    tracing::info!(player.id = %player, ticket.id = %ticket, "ticket ended: player is blocked or kicked");
                }
                // In the meantime, the player was matched, or another gateway has cancelled the ticket.
                Err(problem) => anyhow::ensure!(problem.is_clients(), "{problem:?}"),
            }
        }
        Ok(())
    }

    fn blocked(&self) -> MutexGuard<'_, HashMap<PlayerId, Block>> {
        // A panic under the lock cannot leave the map half changed: each change is one insert or one removal.
        self.0.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries for Blocks {
    const BUCKET: &'static str = block::BUCKET;
    const STREAM: &'static str = block::STREAM;
    const FILTER: &'static str = block::ALL;
    const WHAT: &'static str = "the blocked players";

    async fn take(&self, entry: &Message) -> anyhow::Result<()> {
        let key = Key::of(&entry.subject);
        let removed = entry.body.is_empty();
        match key {
            Some(Key::Block(player)) if removed => self.set(player, None),
            Some(Key::Block(player)) => {
                if let Some(block) = read(entry) {
                    self.set(player, Some(block));
                }
            }
            Some(Key::Kick(player)) if !removed => {
                if let Some(kick) = read(entry) {
                    self.kick(player, kick, entry.time);
                }
            }
            Some(Key::Kick(_)) | None => {}
        }
        // Only after the last of the entries that are read at the start.
        if entry.pending == 0 {
            let now = System.now();
            self.blocked().retain(|_, block| block.is_in_force(now));
        }
        Ok(())
    }
}

/// Parses the value of an entry; `None` if it is not valid. Then an earlier block of the player stays in force.
fn read<T: DeserializeOwned>(entry: &Message) -> Option<T> {
    let value = serde_json::from_slice(&entry.body);
    value.inspect_err(|error| tracing::warn!(%error, subject = entry.subject, "cannot read an entry; ignoring it")).ok()
}
