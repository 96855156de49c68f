//! Forwards the log to the sockets of this gateway. One ordered read serves all of them.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use garage_events::{
    env::{Env, System},
    id::PlayerId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    subject::{self, Aggregate},
};
use garage_worker::{Health, Shutdown, Stopped, keep_trying, lag};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{
    blocks::Blocks,
    frame::{Frame, Notice},
    wait_estimate::WaitEstimates,
};

/// How many frames can wait for one socket. The channel allocates memory only for frames that wait. The limit is higher
/// than the number of messages that one request to the log returns. Such a batch arrives at once after an interruption,
/// and must not close a socket whose client reads.
pub(crate) const MAX_QUEUED_FRAMES: usize = 1_024;

/// The sockets of this gateway, and the position up to which events were dispatched to them. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The sequence of the last message dispatched.
    position: u64,
    /// The newest socket of each player.
    players: HashMap<PlayerId, ConnectedPlayer>,
}

struct ConnectedPlayer {
    entry: SocketEntry,
    /// The highest revision seen of an entry of another socket of the player, while the revision of this socket's own
    /// entry is unknown; 0 if none was seen.
    other: u64,
    /// When the socket was registered, by this machine's clock.
    opened: OffsetDateTime,
    frames: mpsc::Sender<Frame>,
    /// Receives the reason if the hub closes the socket.
    end: oneshot::Sender<Closing>,
}

/// A socket's entry in the presence bucket, which orders all sockets of a player, on any gateway.
#[derive(Debug, Clone)]
pub(crate) struct SocketEntry {
    pub(crate) socket: Uuid,
    /// The revision of the entry; 0 until it is known.
    revision: Arc<AtomicU64>,
}

impl SocketEntry {
    /// The revision of the entry; `None` until it is known.
    pub(crate) fn revision(&self) -> Option<u64> {
        Some(self.revision.load(Ordering::Acquire)).filter(|revision| *revision > 0)
    }
}

/// Why the hub closes a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The client does not read its frames fast enough.
    TooSlow,
    /// The player has opened a newer socket.
    Replaced,
    /// An operator has blocked or kicked the player.
    Operator(Notice),
}

/// A socket's registration in the hub. Dropping it removes the socket.
pub(crate) struct Registration {
    pub(crate) frames: mpsc::Receiver<Frame>,
    pub(crate) end: oneshot::Receiver<Closing>,
    /// The last sequence dispatched before the registration. `frames` receives every later event of the player.
    pub(crate) position: u64,
    pub(crate) entry: SocketEntry,
    player: PlayerId,
    hub: Hub,
}

impl Hub {
    /// Registers a new socket of a player, and closes an older one on this gateway.
    pub(crate) fn register(&self, player: &PlayerId) -> Registration {
        let (frames, receive) = mpsc::channel(MAX_QUEUED_FRAMES);
        let (end, ended) = oneshot::channel();
        let entry = SocketEntry { socket: System.id(), revision: Arc::default() };
        let mut state = self.state();
        let position = state.position;
        let connected = ConnectedPlayer { entry: entry.clone(), other: 0, opened: System.now(), frames, end };
        if let Some(older) = state.players.insert(player.clone(), connected) {
            close(older, Closing::Replaced);
        }
        drop(state);
        metrics::gauge!("garage_gateway_sockets").increment(1);
        Registration { frames: receive, end: ended, position, entry, player: player.clone(), hub: self.clone() }
    }

    /// Closes the player's socket on this gateway. With `before`, only a socket that was opened before this time.
    /// Returns whether it closed one.
    pub(crate) fn close(&self, player: &PlayerId, before: Option<OffsetDateTime>, why: Closing) -> bool {
        let mut state = self.state();
        let Some(connected) = state.players.get(player) else { return false };
        if before.is_some_and(|before| connected.opened >= before) {
            return false;
        }
        state.players.remove(player).is_some_and(|connected| {
            close(connected, why);
            true
        })
    }

    /// Whether the player has a socket on this gateway.
    pub(crate) fn is_connected(&self, player: &PlayerId) -> bool {
        self.state().players.contains_key(player)
    }

    /// Whether this socket is the player's socket on this gateway.
    pub(crate) fn is_current(&self, player: &PlayerId, socket: Uuid) -> bool {
        self.state().players.get(player).is_some_and(|connected| connected.entry.socket == socket)
    }

    /// Call this when the entry of a socket of this gateway is stored. Closes the socket if the hub has already seen a
    /// newer entry of another socket.
    pub(crate) fn entry_stored(&self, player: &PlayerId, entry: &SocketEntry, revision: u64) {
        let mut state = self.state();
        entry.revision.fetch_max(revision, Ordering::AcqRel);
        if state
            .players
            .get(player)
            .is_some_and(|connected| connected.entry.socket == entry.socket && connected.other > revision)
            && let Some(older) = state.players.remove(player)
        {
            close(older, Closing::Replaced);
        }
    }

    /// Call this when a player's entry is read: at this revision, it names `socket`. Closes an older socket of the
    /// player on this gateway. If `socket` itself is on this gateway, returns its entry.
    pub(crate) fn entry_seen(&self, player: &PlayerId, socket: Uuid, revision: u64) -> Option<SocketEntry> {
        let mut state = self.state();
        let connected = state.players.get_mut(player)?;
        if connected.entry.socket == socket {
            connected.entry.revision.fetch_max(revision, Ordering::AcqRel);
            return Some(connected.entry.clone());
        }
        match connected.entry.revision() {
            None => connected.other = connected.other.max(revision),
            Some(own) if own > revision => {}
            Some(_) => {
                let older = state.players.remove(player)?;
                close(older, Closing::Replaced);
            }
        }
        None
    }

    /// The last sequence dispatched.
    pub(crate) fn position(&self) -> u64 {
        self.state().position
    }

    /// Sends a message of the log to the socket of its player.
    pub(crate) fn dispatch(&self, message: &Message) {
        let mut state = self.state();
        // Registration takes the same lock. A socket is registered either before this message, and receives it, or
        // after it, and its position includes it.
        state.position = message.seq;
        let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { return };
        let Some(connected) = state.players.get(&player) else { return };
        let frame = match Frame::of(message.seq, &message.body) {
            Ok(frame) => frame,
            Err(error) => {
                metrics::counter!("garage_gateway_skipped_total").increment(1);
                tracing::warn!(%error, event.seq = message.seq, "cannot decode an event of a player; skipping it");
                return;
            }
        };
        if connected.frames.try_send(frame).is_err()
            && let Some(slow) = state.players.remove(&player)
        {
            close(slow, Closing::TooSlow);
        }
    }

    /// Sends a frame that is not an event to those of the players who have a socket on this gateway.
    pub(crate) fn send(&self, players: &[PlayerId], frame: &Frame) {
        let mut state = self.state();
        for player in players {
            if state.players.get(player).is_some_and(|connected| connected.frames.try_send(frame.clone()).is_err())
                && let Some(slow) = state.players.remove(player)
            {
                close(slow, Closing::TooSlow);
            }
        }
    }

    fn start_at(&self, position: u64) {
        self.state().position = position;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock can at worst leave a socket without its registration.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(connected: ConnectedPlayer, why: Closing) {
    // The send fails if the socket has already ended.
    let _ = connected.end.send(why);
}

impl Drop for Registration {
    fn drop(&mut self) {
        metrics::gauge!("garage_gateway_sockets").decrement(1);
        let mut state = self.hub.state();
        if state.players.get(&self.player).is_some_and(|connected| connected.entry.socket == self.entry.socket) {
            state.players.remove(&self.player);
        }
    }
}

/// Starts to read the log at its current end. The returned task dispatches new messages until `shutdown`.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the first read.
pub(crate) async fn follow(
    hub: Hub,
    wait_estimates: WaitEstimates,
    blocks: Blocks,
    log: JetStreamLog,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let beginning = keep_trying("the log", || async {
        hub.start_at(log.state().await?.last_sequence);
        let filters = vec![subject::PLAYERS.to_owned()];
        let mut follow = Follow::new(log.context().clone(), subject::STREAM, filters, hub.position() + 1);
        follow.connect().await.map_err(anyhow::Error::from_boxed)?;
        anyhow::Ok(follow)
    });
    let mut follow = shutdown.run_until_cancelled(beginning).await.ok_or(Stopped)?;
    health.up("log");
    Ok(async move {
        let dispatching = async {
            tokio::select! {
                () = dispatch_all(&hub, &wait_estimates, &blocks, &mut follow) => {}
                never = lag::watch("log", &log, subject::PLAYERS, || hub.position(), &health) => never,
            }
        };
        shutdown.run_until_cancelled(dispatching).await;
        Ok(())
    })
}

async fn dispatch_all(hub: &Hub, wait_estimates: &WaitEstimates, blocks: &Blocks, follow: &mut Follow) {
    loop {
        let message = follow.next().await;
        wait_estimates.record(&message);
        hub.dispatch(&message);
        blocks.see_event(&message);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(seq: u64, player: &str) -> Message {
        let body = r#"{"n":1,"type":"Queued","data":{}}"#.into();
        Message {
            seq,
            time: OffsetDateTime::UNIX_EPOCH,
            subject: format!("garage.player.{player}"),
            body,
            headers: None,
            pending: 0,
        }
    }

    fn player(name: &str) -> PlayerId {
        name.parse().unwrap()
    }

    #[test]
    fn a_socket_receives_its_players_events_after_its_position() {
        let hub = Hub::default();
        hub.dispatch(&message(4, "ann"));
        let (mut ann, mut bob) = (hub.register(&player("ann")), hub.register(&player("bob")));
        assert_eq!(ann.position, 4);
        hub.dispatch(&message(5, "ann"));
        hub.dispatch(&message(6, "bob"));
        assert_eq!(ann.frames.try_recv().unwrap().seq, Some(5));
        assert_eq!(bob.frames.try_recv().unwrap().seq, Some(6));
        assert!(ann.frames.try_recv().is_err());
        assert_eq!(hub.position(), 6);
    }

    #[test]
    fn a_full_batch_from_the_log_closes_no_socket() {
        let hub = Hub::default();
        let mut connection = hub.register(&player("ann"));
        for seq in 1..=500 {
            hub.dispatch(&message(seq, "ann"));
        }
        assert!(connection.end.try_recv().is_err());
        assert_eq!(std::iter::from_fn(|| connection.frames.try_recv().ok()).count(), 500);
    }

    #[test]
    fn only_the_socket_that_does_not_read_is_closed() {
        let hub = Hub::default();
        let (mut slow, mut other) = (hub.register(&player("ann")), hub.register(&player("bob")));
        for seq in 1..=1 + MAX_QUEUED_FRAMES as u64 {
            hub.dispatch(&message(seq, "ann"));
        }
        assert_eq!(slow.end.try_recv(), Ok(Closing::TooSlow));
        assert!(other.end.try_recv().is_err());
    }

    #[test]
    fn a_frame_that_is_not_an_event_reaches_only_its_players() {
        let hub = Hub::default();
        let (mut ann, mut bob) = (hub.register(&player("ann")), hub.register(&player("bob")));
        hub.send(&[player("ann"), player("carl")], &Frame::notice("party", &serde_json::json!({})));
        let frame = ann.frames.try_recv().unwrap();
        let content: serde_json::Value = serde_json::from_str(&frame.text).unwrap();
        assert_eq!((frame.seq, content), (None, serde_json::json!({"type": "party", "data": {}})));
        assert!(bob.frames.try_recv().is_err());
    }

    #[test]
    fn a_kick_closes_only_a_socket_that_was_opened_before_it() {
        let hub = Hub::default();
        let ann = player("ann");
        let kicked = || Closing::Operator(Notice::Kicked(garage_events::block::Kick { reason: None }));
        let before = System.now();
        let mut connection = hub.register(&ann);
        assert!(!hub.close(&ann, Some(before), kicked()), "the player has come back after the kick");
        assert!(connection.end.try_recv().is_err());
        assert!(hub.close(&ann, Some(System.now() + Duration::from_secs(1)), kicked()));
        assert_eq!(connection.end.try_recv(), Ok(kicked()));
        assert!(!hub.close(&ann, None, kicked()), "there is no socket any more");
    }

    #[test]
    fn a_newer_socket_of_a_player_closes_the_older_one() {
        let hub = Hub::default();
        let (mut one, mut two) = (hub.register(&player("ann")), hub.register(&player("ann")));
        assert_eq!(one.end.try_recv(), Ok(Closing::Replaced));
        drop(one);
        hub.dispatch(&message(1, "ann"));
        assert_eq!(two.frames.try_recv().unwrap().seq, Some(1));
        drop(two);
        assert!(hub.state().players.is_empty());
    }

    #[test]
    fn a_socket_closes_if_another_gateways_socket_has_a_newer_entry_in_whatever_order_the_entries_arrive() {
        let (ann, elsewhere) = (player("ann"), System.id());
        // In each case: the revision of the other socket's entry, the revision of this socket's entry, and whether the
        // hub learns this socket's revision first.
        for (other, own, known_first) in [(5, 6, true), (5, 6, false), (7, 6, true), (7, 6, false)] {
            let hub = Hub::default();
            let mut connection = hub.register(&ann);
            let entry = connection.entry.clone();
            if known_first {
                hub.entry_stored(&ann, &entry, own);
                assert!(hub.entry_seen(&ann, elsewhere, other).is_none());
            } else {
                assert!(hub.entry_seen(&ann, elsewhere, other).is_none());
                hub.entry_stored(&ann, &entry, own);
            }
            assert!(hub.entry_seen(&ann, entry.socket, own).is_none_or(|found| found.socket == entry.socket));
            assert_eq!(connection.end.try_recv().is_ok(), other > own, "{other} {own} {known_first}");
        }
    }
}
