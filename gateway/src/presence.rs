//! Tracks which players have a socket, on any gateway (see [`garage_events::presence`]). A player's newest socket
//! closes the older ones. If a queued player's socket drops and they do not reconnect within the grace period, their
//! ticket is cancelled.
//!
//! If the bucket cannot be written, sockets work as usual. If the end of a player's socket cannot be recorded, the
//! player's ticket stays queued until it times out. A full bucket can be written: it drops its oldest entries.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    Context,
    context::PublishErrorKind,
    message::{PublishMessage, StreamMessage},
    stream::{LastRawMessageErrorKind, Stream},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use garage_events::{
    crash::Point,
    env::{Env, System},
    id::PlayerId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        publish,
    },
    log::{Load, ReadError},
    player::CancelReason,
    presence::{self, Connection, Key},
};
use garage_worker::Shutdown;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    answers, commands,
    hub::{Hub, SocketEntry},
    socket::End,
    ticket,
};

/// The interval of a gateway's heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// A gateway without a heartbeat for this long counts as dead. Allows three missing heartbeats and a late one.
const MAX_SILENCE: time::Duration = time::Duration::seconds(10);

/// The time-out of a request to NATS.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// If a gateway dies shortly after one of its sockets ended, the ticket of the socket's player may not be cancelled
/// yet. So another gateway checks the players whose grace period ended at most this long ago. It assumes that the dead
/// gateway has handled earlier ones.
const HANDLED_AFTER: Duration = Duration::from_secs(60);

/// How many players of a dead gateway are checked at the same time.
const CONCURRENCY: usize = 64;

/// The delay before a failed request is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Records this gateway's sockets in the bucket, and follows the sockets of other gateways. Clones share it.
#[derive(Clone)]
pub(crate) struct Presence(Arc<Inner>);

struct Inner {
    context: Context,
    bucket: Stream<()>,
    log: JetStreamLog,
    hub: Hub,
    gateway: Uuid,
    grace: Duration,
    tasks: TaskTracker,
    shutdown: Shutdown,
}

/// Why an entry was not written.
enum PutError {
    /// The entry has changed since it was read.
    Conflict,
    /// NATS did not answer, or rejected the write.
    Failed(String),
}

/// A player's entry in the bucket.
#[derive(Debug, Clone)]
struct PlayerEntry {
    player: PlayerId,
    connection: Connection,
    revision: u64,
    /// The stream's timestamp.
    time: OffsetDateTime,
}

impl PlayerEntry {
    fn of(message: &Message) -> Option<Self> {
        let Some(Key::Player(player)) = Key::of(&message.subject) else { return None };
        let connection = serde_json::from_slice(&message.body).ok()?;
        Some(Self { player, connection, revision: message.seq, time: message.time })
    }
}

impl Presence {
    /// Opens the bucket.
    pub(crate) async fn open(log: JetStreamLog, hub: Hub, grace: Duration, shutdown: Shutdown) -> anyhow::Result<Self> {
        let context = log.context().clone();
        let bucket = context.get_stream_no_info(presence::STREAM).await?;
        let (gateway, tasks) = (System.id(), TaskTracker::new());
        Ok(Self(Arc::new(Inner { context, bucket, log, hub, gateway, grace, tasks, shutdown })))
    }

    /// Stores the entry of a player's new socket. Call this before the client learns that it is connected. Then a
    /// socket that the client opens later, on any gateway, gets a newer entry.
    pub(crate) async fn enter(&self, player: PlayerId, entry: SocketEntry) -> PresenceGuard {
        let guard = PresenceGuard { presence: self.clone(), player, entry, vanished: true };
        if !self.store_entry(&guard.player, &guard.entry).await {
            // Retry, so that an older entry does not make the player count as gone.
            let (presence, player, entry) = (self.clone(), guard.player.clone(), guard.entry.clone());
            self.spawn(async move {
                while presence.0.hub.is_current(&player, entry.socket) && !presence.store_entry(&player, &entry).await {
                    sleep(RETRY_DELAY).await;
                }
            });
        }
        guard
    }

    async fn store_entry(&self, player: &PlayerId, entry: &SocketEntry) -> bool {
        let connection = Connection { gateway: self.0.gateway, socket: entry.socket, gone: false, left: None };
        match self.put(&Key::Player(player.clone()), &connection, None).await {
            Ok(revision) => {
                self.0.hub.entry_stored(player, entry, revision);
                true
            }
            Err(PutError::Conflict) => true,
            Err(PutError::Failed(reason)) => {
                tracing::warn!(player.id = %player, reason, "cannot store the presence entry of a socket; retrying");
                false
            }
        }
    }

    /// Follows the bucket and writes heartbeats, until `shutdown`.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let shutdown = self.0.shutdown.clone();
        shutdown.run_until_cancelled(self.watch()).await;
        // Another gateway notices that this gateway is silent, and checks the players whose grace period has not ended.
        self.0.tasks.close();
        self.0.tasks.wait().await;
        Ok(())
    }

    async fn watch(&self) {
        // Read from the beginning, to find the entries of gateways that died before this one started.
        let mut follow = Follow::new(self.0.context.clone(), presence::STREAM, vec![presence::ALL.into()], 1);
        let mut gateways = GatewayHeartbeats::default();
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = follow.next() => match Key::of(&message.subject) {
                    Some(Key::Player(_)) => self.see_player(&message),
                    Some(Key::Gateway(id)) => gateways.see(id, message.time, message.body.is_empty()),
                    None => {}
                },
                _ = heartbeat.tick() => {
                    let presence = self.clone();
                    self.spawn(async move {
                        let key = Key::Gateway(presence.0.gateway);
                        if let Err(PutError::Failed(reason)) = presence.put(&key, &json!({}), None).await {
                            tracing::warn!(reason, "cannot store the gateway's heartbeat; retrying");
                        }
                    });
                    for dead in gateways.take_silent() {
                        let presence = self.clone();
                        self.spawn(async move { presence.sweep(dead).await });
                    }
                }
            }
        }
    }

    /// Handles a change of a player's entry.
    fn see_player(&self, message: &Message) {
        let Some(PlayerEntry { player, connection, revision, .. }) = PlayerEntry::of(message) else { return };
        let Some(entry) = self.0.hub.entry_seen(&player, connection.socket, revision) else { return };
        if connection.gone {
            // Another gateway assumed that this one is dead, and marked the socket as gone. Correct the entry, but only
            // if it has not changed since: the player may have a newer socket by now.
            let (presence, connection) =
                (self.clone(), Connection { gateway: self.0.gateway, gone: false, left: None, ..connection });
            self.spawn(async move {
                let key = Key::Player(player.clone());
                loop {
                    match presence.put(&key, &connection, Some(revision)).await {
                        Ok(revision) => return presence.0.hub.entry_stored(&player, &entry, revision),
                        Err(PutError::Conflict) => return,
                        Err(PutError::Failed(reason)) => {
                            tracing::warn!(player.id = %player, reason, "cannot store the presence entry of a socket; retrying");
                        }
                    }
                    sleep(RETRY_DELAY).await;
                }
            });
        }
    }

    /// Marks a player's socket as gone, unless the player has a newer one, and waits for the player to reconnect.
    async fn leave(&self, player: PlayerId, socket: Uuid, mut revision: u64) {
        let (key, connection) =
            (Key::Player(player.clone()), Connection { gateway: self.0.gateway, socket, gone: true, left: None });
        loop {
            match self.put(&key, &connection, Some(revision)).await {
                Ok(revision) => return self.cancel_after_grace(&player, revision).await,
                Err(PutError::Conflict) if revision > 0 => match self.last(&key.to_string()).await {
                    Ok(Some(_)) => return,
                    // The entry is gone: a full bucket drops its oldest entries. So the player has no newer socket.
                    Ok(None) => {
                        revision = 0;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(player.id = %player, "cannot mark a socket as gone; retrying: {error:#}");
                    }
                },
                Err(PutError::Conflict) => return,
                Err(PutError::Failed(reason)) => {
                    tracing::warn!(player.id = %player, reason, "cannot mark a socket as gone; retrying");
                }
            }
            sleep(RETRY_DELAY).await;
        }
    }

    /// Waits for the grace period, and then cancels the player's ticket if the entry still has this revision.
    async fn cancel_after_grace(&self, player: &PlayerId, revision: u64) {
        sleep(self.0.grace).await;
        self.cancel_ticket(player, revision).await;
    }

    async fn cancel_ticket(&self, player: &PlayerId, mut revision: u64) {
        loop {
            match self.try_cancel(player, &mut revision).await {
                Ok(()) => return,
                // A retry would not help. The ticket stays queued until it times out.
                Err(error) if matches!(error.downcast_ref(), Some(ReadError::Unreadable { .. })) => {
                    tracing::error!(player.id = %player, "cannot cancel a disconnected player's ticket: {error:#}");
                    return;
                }
                Err(error) => {
                    tracing::warn!(player.id = %player, "cannot cancel a disconnected player's ticket; retrying: {error:#}");
                }
            }
            sleep(RETRY_DELAY).await;
        }
    }

    /// Marks the player as left, and cancels the ticket if the player still waits or has not accepted a proposed match. If
    /// the player is matched or has accepted, the session worker reads the mark before it opens or requeues. `revision` is the
    /// revision of the player's entry.
    async fn try_cancel(&self, player: &PlayerId, revision: &mut u64) -> anyhow::Result<()> {
        let key = Key::Player(player.clone());
        let last = self.last(&key.to_string()).await?;
        let Some(last) = last.filter(|_| !self.0.hub.is_connected(player)) else { return Ok(()) };
        let connection: Connection = serde_json::from_slice(&last.payload)?;
        // A newer entry with a mark is our own whose acknowledgement was lost, or that of another gateway that does the
        // same. The ticket may still wait.
        if last.sequence != *revision && connection.left.is_none() {
            return Ok(());
        }
        let ended = connection.left.unwrap_or(last.time);
        let is_marked = connection.left.is_some();
        if !is_marked {
            match self.put(&key, &Connection { left: Some(ended), ..connection }, Some(*revision)).await {
                Ok(marked) => *revision = marked,
                Err(PutError::Conflict) => return Ok(()),
                Err(PutError::Failed(reason)) => anyhow::bail!(reason),
            }
        }
        let found = self.0.log.player(player).await?;
        // A ticket requested after the socket had ended does not need a socket.
        let requested = ticket::requested_at(&found);
        if requested.is_some_and(|requested| requested > ended) {
            // But the leader of a party requests the ticket for its members, who may have no socket any more. If the mark
            // is older, the member may have come back since without a socket.
            let by_leader = commands::party::is_led_by_another(&self.0.log, player, &found, System.now()).await?;
            if is_marked || !by_leader {
                return Ok(());
            }
        }
        // A member of a party is away. If the party waits, the same commit cancels its ticket.
        if commands::party::away(&self.0.log, &System, player, ended).await? {
            metrics::counter!("garage_gateway_vanished_total").increment(1);
            tracing::info!(player.id = %player, "ticket of a party cancelled: player did not reconnect");
            return Ok(());
        }
        if let (Some(ticket), Some(_)) = (found.state.ticket(), requested) {
            let client = self.0.context.client();
            let reason = CancelReason::Disconnected;
            let cancelled = answers::withdraw(&self.0.log, &System, &client, player, ticket, reason);
            match cancelled.await {
                Ok(()) => {
                    metrics::counter!("garage_gateway_vanished_total").increment(1);
                    tracing::info!(player.id = %player, ticket.id = %ticket, "ticket ended: player did not reconnect");
                }
                // In the meantime, the player was matched, accepted the proposed match or cancelled the ticket.
                Err(problem) => anyhow::ensure!(problem.is_clients(), "{problem:?}"),
            }
        }
        Ok(())
    }

    /// Marks the sockets of a dead gateway as gone, and cancels the tickets of players who do not reconnect. Several
    /// gateways may do this at the same time.
    async fn sweep(&self, dead: Uuid) {
        tracing::warn!(gateway = %dead, "a gateway sends no heartbeats; marking its sockets as gone");
        while let Err(error) = self.sweep_once(dead).await {
            tracing::warn!(gateway = %dead, "cannot mark the sockets of a dead gateway as gone; retrying: {error:#}");
            sleep(RETRY_DELAY).await;
        }
    }

    async fn sweep_once(&self, dead: Uuid) -> anyhow::Result<()> {
        let since = System.now() - self.0.grace - HANDLED_AFTER;
        let left = self.entries().await?.into_iter().filter(|entry| entry.connection.gateway == dead);
        let left = left.filter(|entry| !entry.connection.gone || entry.time > since);
        let marked = stream::iter(left.map(async |PlayerEntry { player, connection, revision, .. }| {
            if connection.gone {
                return Ok(Some((player, revision)));
            }
            match self.put(&Key::Player(player.clone()), &Connection { gone: true, ..connection }, Some(revision)).await
            {
                Ok(revision) => Ok(Some((player, revision))),
                Err(PutError::Conflict) => Ok(None),
                Err(PutError::Failed(reason)) => Err(anyhow::anyhow!(reason)),
            }
        }));
        let marked: Vec<_> = marked.buffer_unordered(CONCURRENCY).try_collect().await?;
        sleep(self.0.grace).await;
        let gone = marked.into_iter().flatten();
        stream::iter(gone.map(async |(player, revision)| self.cancel_ticket(&player, revision).await))
            .buffer_unordered(CONCURRENCY)
            .collect::<()>()
            .await;
        // An empty entry means that all players of the dead gateway were checked. It is written last: if this gateway
        // stops before, another gateway starts again.
        match self.send(&Key::Gateway(dead), Bytes::new(), None).await {
            Ok(_) | Err(PutError::Conflict) => Ok(()),
            Err(PutError::Failed(reason)) => anyhow::bail!(reason),
        }
    }

    /// The entries of all players.
    async fn entries(&self) -> anyhow::Result<Vec<PlayerEntry>> {
        let Some(last) = self.last(presence::PLAYERS).await? else { return Ok(Vec::new()) };
        let mut follow = Follow::new(self.0.context.clone(), presence::STREAM, vec![presence::PLAYERS.into()], 1);
        let mut entries = Vec::new();
        loop {
            let message = timeout(REQUEST_TIMEOUT, follow.next()).await?;
            entries.extend(PlayerEntry::of(&message));
            if message.seq >= last.sequence {
                return Ok(entries);
            }
        }
    }

    /// The last message with a subject that matches the filter, read from the bucket's leader.
    async fn last(&self, filter: &str) -> anyhow::Result<Option<StreamMessage>> {
        match timeout(REQUEST_TIMEOUT, self.0.bucket.get_last_raw_message_by_subject(filter)).await? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&self, key: &Key, value: &impl Serialize, expected: Option<u64>) -> Result<u64, PutError> {
        let value = serde_json::to_vec(value).map_err(|error| PutError::Failed(error.to_string()))?;
        self.send(key, value.into(), expected).await
    }

    async fn send(&self, key: &Key, value: Bytes, expected: Option<u64>) -> Result<u64, PutError> {
        let mut message = PublishMessage::build().payload(value);
        if let Some(expected) = expected {
            message = message.expected_last_subject_sequence(expected);
        }
        let sent = publish(&self.0.context, Point::PresenceNoted, key.to_string(), message);
        match timeout(REQUEST_TIMEOUT, sent).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Err(PutError::Conflict),
            Ok(Err(error)) => Err(PutError::Failed(error.to_string())),
            Err(_) => Err(PutError::Failed("no answer".into())),
        }
    }

    /// Runs a task that is dropped when this gateway stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            shutdown.run_until_cancelled(task).await;
        });
    }
}

/// The presence of a player's socket. Dropping it marks the player as gone, unless [`ended`](Self::ended) was called
/// with a reason for which the player has not left.
pub(crate) struct PresenceGuard {
    presence: Presence,
    player: PlayerId,
    entry: SocketEntry,
    vanished: bool,
}

impl PresenceGuard {
    /// Records how the socket ended.
    pub(crate) fn ended(mut self, end: End) {
        self.vanished = end.vanished();
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        if let (true, Some(revision)) = (self.vanished, self.entry.revision()) {
            let (presence, player, socket) = (self.presence.clone(), self.player.clone(), self.entry.socket);
            self.presence.spawn(async move { presence.leave(player, socket, revision).await });
        }
    }
}

/// The time of each gateway's last heartbeat, by the stream's clock.
#[derive(Debug, Default)]
struct GatewayHeartbeats {
    seen: HashMap<Uuid, OffsetDateTime>,
    /// The newest timestamp of the stream that was seen.
    now: Option<OffsetDateTime>,
}

impl GatewayHeartbeats {
    fn see(&mut self, id: Uuid, time: OffsetDateTime, handled: bool) {
        self.now = self.now.max(Some(time));
        if handled {
            self.seen.remove(&id);
        } else {
            self.seen.insert(id, time);
        }
    }

    /// The gateways that have become silent since the last call.
    fn take_silent(&mut self) -> Vec<Uuid> {
        let Some(now) = self.now else { return Vec::new() };
        self.seen.extract_if(|_, seen| now - *seen > MAX_SILENCE).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_dead_if_only_other_gateways_send_heartbeats() {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds);
        let (one, two, old) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let mut gateways = GatewayHeartbeats::default();
        assert!(gateways.take_silent().is_empty());
        gateways.see(old, at(0), false);
        gateways.see(one, at(100), false);
        gateways.see(two, at(101), false);
        assert_eq!(gateways.take_silent(), [old]);
        assert!(gateways.take_silent().is_empty(), "returned only once");
        gateways.see(one, at(110), false);
        assert!(gateways.take_silent().is_empty());
        gateways.see(one, at(112), false);
        assert_eq!(gateways.take_silent(), [two]);
        // It was paused, and continues.
        gateways.see(two, at(113), false);
        assert!(gateways.take_silent().is_empty());
        gateways.see(two, at(114), true);
        gateways.see(one, at(140), false);
        assert!(gateways.take_silent().is_empty(), "another gateway has handled it");
    }
}
