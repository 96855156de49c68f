//! Which players have a socket, across gateways (see [`garage_events::presence`]): the newest socket of a player closes
//! the older ones, and who vanishes while he waits is cancelled, unless he returns in time.
//!
//! Where the bucket cannot be written sockets are served as ever: a player whose end could not be noted waits until his
//! ticket times out.

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
    player::{CancelReason, State},
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
    commands,
    hub::{Hub, SocketEntry},
    socket::End,
};

/// How often a gateway says that it lives.
const BEAT: Duration = Duration::from_secs(3);

/// How long a gateway may be silent: three beats that are missing, and one that is late.
const SILENT: time::Duration = time::Duration::seconds(10);

/// How long the server has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long after its grace period the end of a socket is old news.
const STALE: Duration = Duration::from_secs(60);

/// Players of a dead gateway that are seen to at a time.
const AT_ONCE: usize = 64;

/// Before something is tried again that the server did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// What this gateway knows of all sockets. Clones share it.
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
enum NotPut {
    /// It has changed since it was read.
    Moved,
    /// The server did not take it.
    Failed(String),
}

/// A player's entry, as it was read.
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

    /// Notes a player's socket, before its client hears that it is connected: one that the client opens later, here or
    /// elsewhere, is noted later.
    pub(crate) async fn enter(&self, player: PlayerId, entry: SocketEntry) -> Noted {
        let noted = Noted { presence: self.clone(), player, entry, vanished: true };
        if !self.note(&noted.player, &noted.entry).await {
            // He must not be taken for gone because of an older entry.
            let (presence, player, entry) = (self.clone(), noted.player.clone(), noted.entry.clone());
            self.spawn(async move {
                while presence.0.hub.holds(&player, entry.socket) && !presence.note(&player, &entry).await {
                    sleep(AGAIN).await;
                }
            });
        }
        noted
    }

    async fn note(&self, player: &PlayerId, entry: &SocketEntry) -> bool {
        let connection = Connection { gateway: self.0.gateway, socket: entry.socket, gone: false };
        match self.put(&Key::Player(player.clone()), &connection, None).await {
            Ok(revision) => {
                self.0.hub.entered(player, entry, revision);
                true
            }
            Err(NotPut::Moved) => true,
            Err(NotPut::Failed(reason)) => {
                tracing::warn!(player.id = %player, reason, "socket not noted yet");
                false
            }
        }
    }

    /// Follows the bucket and says that this gateway lives, until `shutdown`.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let shutdown = self.0.shutdown.clone();
        shutdown.run_until_cancelled(self.watch()).await;
        // What waits for its grace is seen to by whoever finds this gateway silent.
        self.0.tasks.close();
        self.0.tasks.wait().await;
        Ok(())
    }

    async fn watch(&self) {
        // From the beginning: a gateway that died before this one started left its entry.
        let mut follow = Follow::new(self.0.context.clone(), presence::STREAM, vec![presence::ALL.into()], 1);
        let mut gateways = GatewayHeartbeats::default();
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = follow.next() => match Key::of(&message.subject) {
                    Some(Key::Player(_)) => self.see(&message),
                    Some(Key::Gateway(id)) => gateways.see(id, message.time, message.body.is_empty()),
                    None => {}
                },
                _ = beat.tick() => {
                    let presence = self.clone();
                    self.spawn(async move {
                        let key = Key::Gateway(presence.0.gateway);
                        if let Err(NotPut::Failed(reason)) = presence.put(&key, &json!({}), None).await {
                            tracing::warn!(reason, "gateway's beat not stored");
                        }
                    });
                    for dead in gateways.silent() {
                        let presence = self.clone();
                        self.spawn(async move { presence.sweep(dead).await });
                    }
                }
            }
        }
    }

    /// A player's entry has changed.
    fn see(&self, message: &Message) {
        let Some(PlayerEntry { player, connection, revision, .. }) = PlayerEntry::of(message) else { return };
        let Some(entry) = self.0.hub.newest(&player, connection.socket, revision) else { return };
        if connection.gone {
            // Somebody took this gateway for dead, and it is not. In the entry of that entry only: the player may have
            // a newer socket by now.
            let (presence, connection) =
                (self.clone(), Connection { gateway: self.0.gateway, gone: false, ..connection });
            self.spawn(async move {
                let key = Key::Player(player.clone());
                loop {
                    match presence.put(&key, &connection, Some(revision)).await {
                        Ok(revision) => return presence.0.hub.entered(&player, &entry, revision),
                        Err(NotPut::Moved) => return,
                        Err(NotPut::Failed(reason)) => {
                            tracing::warn!(player.id = %player, reason, "socket not noted again yet");
                        }
                    }
                    sleep(AGAIN).await;
                }
            });
        }
    }

    /// Marks a player's socket as gone, unless he has a newer one, and waits for him to return.
    async fn leave(&self, player: PlayerId, socket: Uuid, revision: u64) {
        let (key, connection) =
            (Key::Player(player.clone()), Connection { gateway: self.0.gateway, socket, gone: true });
        loop {
            match self.put(&key, &connection, Some(revision)).await {
                Ok(revision) => return self.wait_for(&player, revision).await,
                Err(NotPut::Moved) => return,
                Err(NotPut::Failed(reason)) => tracing::warn!(player.id = %player, reason, "end of a socket not noted"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Waits for the grace period, and ends what the player waits for if his entry is still the one of this revision.
    async fn wait_for(&self, player: &PlayerId, revision: u64) {
        sleep(self.0.grace).await;
        self.end_wait(player, revision).await;
    }

    async fn end_wait(&self, player: &PlayerId, revision: u64) {
        loop {
            match self.cancel(player, revision).await {
                Ok(()) => return,
                // Asking again would change nothing. His ticket times out.
                Err(error) if matches!(error.downcast_ref(), Some(ReadError::Unreadable { .. })) => {
                    tracing::error!(player.id = %player, "a vanished player is not cancelled: {error:#}");
                    return;
                }
                Err(error) => tracing::warn!(player.id = %player, "a vanished player is not cancelled yet: {error:#}"),
            }
            sleep(AGAIN).await;
        }
    }

    async fn cancel(&self, player: &PlayerId, revision: u64) -> anyhow::Result<()> {
        let last = self.last(&Key::Player(player.clone()).to_string()).await?;
        let Some(last) = last.filter(|last| last.sequence == revision && !self.0.hub.is_here(player)) else {
            return Ok(());
        };
        let found = self.0.log.player(player).await?;
        // A wish of after he went needs no socket.
        if let (State::Waiting(ticket_request), Some(queued)) = (&found.state, &found.last)
            && queued.time <= last.time
        {
            let cancelled =
                commands::cancel(&self.0.log, &System, player, ticket_request.ticket, CancelReason::Disconnected);
            match cancelled.await {
                Ok(()) => {
                    metrics::counter!("garage_gateway_vanished_total").increment(1);
                    tracing::info!(player.id = %player, ticket.id = %ticket_request.ticket, "cancelled: the player has vanished");
                }
                // Matched in the last moment, or cancelled by himself.
                Err(problem) => anyhow::ensure!(problem.is_clients(), "{problem:?}"),
            }
        }
        Ok(())
    }

    /// Sees to the players of a gateway that is dead. Several gateways may do so at a time.
    async fn sweep(&self, dead: Uuid) {
        tracing::warn!(gateway = %dead, "a gateway is silent; looking after its players");
        while let Err(error) = self.sweep_once(dead).await {
            tracing::warn!(gateway = %dead, "its players are not looked after yet: {error:#}");
            sleep(AGAIN).await;
        }
    }

    async fn sweep_once(&self, dead: Uuid) -> anyhow::Result<()> {
        // Those who went long since have been seen to.
        let since = System.now() - self.0.grace - STALE;
        let left = self.entries().await?.into_iter().filter(|entry| entry.connection.gateway == dead);
        let left = left.filter(|entry| !entry.connection.gone || entry.time > since);
        let marked = stream::iter(left.map(async |PlayerEntry { player, connection, revision, .. }| {
            if connection.gone {
                return Ok(Some((player, revision)));
            }
            match self.put(&Key::Player(player.clone()), &Connection { gone: true, ..connection }, Some(revision)).await
            {
                Ok(revision) => Ok(Some((player, revision))),
                Err(NotPut::Moved) => Ok(None),
                Err(NotPut::Failed(reason)) => Err(anyhow::anyhow!(reason)),
            }
        }));
        let marked: Vec<_> = marked.buffer_unordered(AT_ONCE).try_collect().await?;
        sleep(self.0.grace).await;
        let gone = marked.into_iter().flatten();
        stream::iter(gone.map(async |(player, revision)| self.end_wait(&player, revision).await))
            .buffer_unordered(AT_ONCE)
            .collect::<()>()
            .await;
        // Only now, so that another gateway goes on should this one end meanwhile. An empty entry: it was seen to.
        match self.send(&Key::Gateway(dead), Bytes::new(), None).await {
            Ok(_) | Err(NotPut::Moved) => Ok(()),
            Err(NotPut::Failed(reason)) => anyhow::bail!(reason),
        }
    }

    /// Every player's entry.
    async fn entries(&self) -> anyhow::Result<Vec<PlayerEntry>> {
        let Some(last) = self.last(presence::PLAYERS).await? else { return Ok(Vec::new()) };
        let mut follow = Follow::new(self.0.context.clone(), presence::STREAM, vec![presence::PLAYERS.into()], 1);
        let mut entries = Vec::new();
        loop {
            let message = timeout(ANSWER, follow.next()).await?;
            entries.extend(PlayerEntry::of(&message));
            if message.seq >= last.sequence {
                return Ok(entries);
            }
        }
    }

    /// The last message that a filter selects, told by the bucket's leader.
    async fn last(&self, filter: &str) -> anyhow::Result<Option<StreamMessage>> {
        match timeout(ANSWER, self.0.bucket.get_last_raw_message_by_subject(filter)).await? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&self, key: &Key, value: &impl Serialize, expected: Option<u64>) -> Result<u64, NotPut> {
        let value = serde_json::to_vec(value).map_err(|error| NotPut::Failed(error.to_string()))?;
        self.send(key, value.into(), expected).await
    }

    async fn send(&self, key: &Key, value: Bytes, expected: Option<u64>) -> Result<u64, NotPut> {
        let mut message = PublishMessage::build().payload(value);
        if let Some(expected) = expected {
            message = message.expected_last_subject_sequence(expected);
        }
        let sent = publish(&self.0.context, Point::PresenceNoted, key.to_string(), message);
        match timeout(ANSWER, sent).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Err(NotPut::Moved),
            Ok(Err(error)) => Err(NotPut::Failed(error.to_string())),
            Err(_) => Err(NotPut::Failed("no answer".into())),
        }
    }

    /// Runs something that ends with this gateway.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            shutdown.run_until_cancelled(task).await;
        });
    }
}

/// A socket that was noted. Whatever becomes of it, its player counts as vanished when this is dropped, unless it was
/// ended otherwise.
pub(crate) struct Noted {
    presence: Presence,
    player: PlayerId,
    entry: SocketEntry,
    vanished: bool,
}

impl Noted {
    /// Notes how the socket ended.
    pub(crate) fn ended(mut self, end: End) {
        self.vanished = end.vanished();
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let (true, Some(revision)) = (self.vanished, self.entry.revision()) {
            let (presence, player, socket) = (self.presence.clone(), self.player.clone(), self.entry.socket);
            self.presence.spawn(async move { presence.leave(player, socket, revision).await });
        }
    }
}

/// When each gateway said last that it lives, by the stream's clock.
#[derive(Debug, Default)]
struct GatewayHeartbeats {
    seen: HashMap<Uuid, OffsetDateTime>,
    /// The stream's clock, as far as it is known.
    now: Option<OffsetDateTime>,
}

impl GatewayHeartbeats {
    fn see(&mut self, id: Uuid, time: OffsetDateTime, seen_to: bool) {
        self.now = self.now.max(Some(time));
        if seen_to {
            self.seen.remove(&id);
        } else {
            self.seen.insert(id, time);
        }
    }

    /// Those that have been silent too long; each is told once.
    fn silent(&mut self) -> Vec<Uuid> {
        let Some(now) = self.now else { return Vec::new() };
        self.seen.extract_if(|_, seen| now - *seen > SILENT).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_dead_when_others_beat_and_it_does_not() {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds);
        let (one, two, old) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let mut gateways = GatewayHeartbeats::default();
        assert!(gateways.silent().is_empty());
        gateways.see(old, at(0), false);
        gateways.see(one, at(100), false);
        gateways.see(two, at(101), false);
        assert_eq!(gateways.silent(), [old]);
        assert!(gateways.silent().is_empty(), "told once");
        gateways.see(one, at(110), false);
        assert!(gateways.silent().is_empty());
        gateways.see(one, at(112), false);
        assert_eq!(gateways.silent(), [two]);
        // It was paused, and lives.
        gateways.see(two, at(113), false);
        assert!(gateways.silent().is_empty());
        gateways.see(two, at(114), true);
        gateways.see(one, at(140), false);
        assert!(gateways.silent().is_empty(), "another has seen to it");
    }
}
