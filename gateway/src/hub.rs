//! The log, handed to the sockets that are here: one ordered read per gateway, whatever the number of sockets.

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
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{frame::Frame, wait_estimate::WaitEstimates};

/// Frames that may wait for a socket; the channel takes memory as they come. More than one request to the log brings,
/// which is handed out in one go when the log was out of reach for a while: a socket that is closed for its queue has
/// not read for longer than that.
pub(crate) const QUEUE: usize = 1_024;

/// Which sockets are here, and how far they have been told. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    position: u64,
    /// One socket a player: the newest.
    players: HashMap<PlayerId, ConnectedPlayer>,
}

struct ConnectedPlayer {
    entry: SocketEntry,
    /// The newest entry of another socket of the player, while it is not known what revision this one's has.
    other: u64,
    frames: mpsc::Sender<Frame>,
    /// Sent when the hub closes the socket; a place that is given up goes without it.
    end: oneshot::Sender<Closing>,
}

/// A socket's place among all of the player's, wherever they are.
#[derive(Debug, Clone)]
pub(crate) struct SocketEntry {
    /// Which socket.
    pub(crate) socket: Uuid,
    /// The revision of its entry in the presence bucket; 0 until it is known.
    revision: Arc<AtomicU64>,
}

impl SocketEntry {
    /// The revision of its entry, once it is known.
    pub(crate) fn revision(&self) -> Option<u64> {
        Some(self.revision.load(Ordering::Acquire)).filter(|revision| *revision > 0)
    }
}

/// Why the hub closes a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It does not read what it is told.
    TooSlow,
    /// The player has opened a newer one.
    Replaced,
}

/// A socket's place in the hub; dropping it gives the place up.
pub(crate) struct Registration {
    pub(crate) frames: mpsc::Receiver<Frame>,
    pub(crate) end: oneshot::Receiver<Closing>,
    /// The last sequence that was handed out before this place was taken. Everything after it comes through `frames`.
    pub(crate) position: u64,
    pub(crate) entry: SocketEntry,
    player: PlayerId,
    hub: Hub,
}

impl Hub {
    /// Takes a place for a socket of a player.
    pub(crate) fn register(&self, player: &PlayerId) -> Registration {
        let (frames, receive) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let entry = SocketEntry { socket: System.id(), revision: Arc::default() };
        let mut state = self.state();
        let position = state.position;
        let held = ConnectedPlayer { entry: entry.clone(), other: 0, frames, end };
        if let Some(older) = state.players.insert(player.clone(), held) {
            close(older, Closing::Replaced);
        }
        drop(state);
        metrics::gauge!("garage_gateway_sockets").increment(1);
        Registration { frames: receive, end: ended, position, entry, player: player.clone(), hub: self.clone() }
    }

    /// Whether a player has a socket here.
    pub(crate) fn is_here(&self, player: &PlayerId) -> bool {
        self.state().players.contains_key(player)
    }

    /// Whether a player's socket here is this one.
    pub(crate) fn holds(&self, player: &PlayerId, socket: Uuid) -> bool {
        self.state().players.get(player).is_some_and(|held| held.entry.socket == socket)
    }

    /// The entry of a player's socket here is stored, with this revision.
    pub(crate) fn entered(&self, player: &PlayerId, entry: &SocketEntry, revision: u64) {
        let mut state = self.state();
        entry.revision.fetch_max(revision, Ordering::AcqRel);
        if state.players.get(player).is_some_and(|held| held.entry.socket == entry.socket && held.other > revision)
            && let Some(older) = state.players.remove(player)
        {
            close(older, Closing::Replaced);
        }
    }

    /// A player's entry names this socket, as of a revision. It closes an older one that is here; if it is itself
    /// here, its place is returned.
    pub(crate) fn newest(&self, player: &PlayerId, socket: Uuid, revision: u64) -> Option<SocketEntry> {
        let mut state = self.state();
        let held = state.players.get_mut(player)?;
        if held.entry.socket == socket {
            held.entry.revision.fetch_max(revision, Ordering::AcqRel);
            return Some(held.entry.clone());
        }
        match held.entry.revision() {
            None => held.other = held.other.max(revision),
            Some(own) if own > revision => {}
            Some(_) => {
                let older = state.players.remove(player)?;
                close(older, Closing::Replaced);
            }
        }
        None
    }

    /// The last sequence handed out.
    pub(crate) fn position(&self) -> u64 {
        self.state().position
    }

    /// Hands a message of the log to the player's sockets.
    pub(crate) fn hand_out(&self, message: &Message) {
        let mut state = self.state();
        // Under the same lock as the sockets' registration: a place is taken either before this message, and gets it,
        // or after it, and has a position that counts it.
        state.position = message.seq;
        let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { return };
        let Some(held) = state.players.get(&player) else { return };
        let frame = match Frame::of(message.seq, &message.body) {
            Ok(frame) => frame,
            Err(error) => {
                metrics::counter!("garage_gateway_skipped_total").increment(1);
                tracing::warn!(%error, event.seq = message.seq, "a player's message is no event; skipping it");
                return;
            }
        };
        if held.frames.try_send(frame).is_err()
            && let Some(slow) = state.players.remove(&player)
        {
            close(slow, Closing::TooSlow);
        }
    }

    fn start_at(&self, position: u64) {
        self.state().position = position;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves nothing worse than a socket without its place.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(held: ConnectedPlayer, why: Closing) {
    // A socket that has gone needs no telling.
    let _ = held.end.send(why);
}

impl Drop for Registration {
    fn drop(&mut self) {
        metrics::gauge!("garage_gateway_sockets").decrement(1);
        let mut state = self.hub.state();
        if state.players.get(&self.player).is_some_and(|held| held.entry.socket == self.entry.socket) {
            state.players.remove(&self.player);
        }
    }
}

/// Begins to read the log at the present; the task that is returned hands out what comes until `shutdown`.
///
/// # Errors
/// [`Stopped`]
pub(crate) async fn follow(
    hub: Hub,
    wait_estimates: WaitEstimates,
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
        let hand_out = async {
            tokio::select! {
                () = hand_out_all(&hub, &wait_estimates, &mut follow) => {}
                never = lag::watch("log", &log, subject::PLAYERS, || hub.position(), &health) => never,
            }
        };
        shutdown.run_until_cancelled(hand_out).await;
        Ok(())
    })
}

async fn hand_out_all(hub: &Hub, wait_estimates: &WaitEstimates, follow: &mut Follow) {
    loop {
        let message = follow.next().await;
        wait_estimates.note(&message);
        hub.hand_out(&message);
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

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
    fn a_socket_gets_its_players_events_from_its_position_on() {
        let hub = Hub::default();
        hub.hand_out(&message(4, "ann"));
        let (mut ann, mut bob) = (hub.register(&player("ann")), hub.register(&player("bob")));
        assert_eq!(ann.position, 4);
        hub.hand_out(&message(5, "ann"));
        hub.hand_out(&message(6, "bob"));
        assert_eq!((ann.frames.try_recv().unwrap().seq, bob.frames.try_recv().unwrap().seq), (5, 6));
        assert!(ann.frames.try_recv().is_err());
        assert_eq!(hub.position(), 6);
    }

    #[test]
    fn what_the_log_brings_in_one_go_closes_nobody() {
        let hub = Hub::default();
        let mut connection = hub.register(&player("ann"));
        for seq in 1..=500 {
            hub.hand_out(&message(seq, "ann"));
        }
        assert!(connection.end.try_recv().is_err());
        assert_eq!(std::iter::from_fn(|| connection.frames.try_recv().ok()).count(), 500);
    }

    #[test]
    fn a_socket_that_does_not_read_loses_its_place_alone() {
        let hub = Hub::default();
        let (mut slow, mut other) = (hub.register(&player("ann")), hub.register(&player("bob")));
        for seq in 1..=1 + QUEUE as u64 {
            hub.hand_out(&message(seq, "ann"));
        }
        assert_eq!(slow.end.try_recv(), Ok(Closing::TooSlow));
        assert!(other.end.try_recv().is_err());
    }

    #[test]
    fn the_newer_socket_of_a_player_closes_the_older() {
        let hub = Hub::default();
        let (mut one, mut two) = (hub.register(&player("ann")), hub.register(&player("ann")));
        assert_eq!(one.end.try_recv(), Ok(Closing::Replaced));
        drop(one);
        hub.hand_out(&message(1, "ann"));
        assert_eq!(two.frames.try_recv().unwrap().seq, 1);
        drop(two);
        assert!(hub.state().players.is_empty());
    }

    #[test]
    fn of_sockets_on_two_gateways_the_one_entered_last_stays_in_whatever_order_that_is_seen() {
        let (ann, elsewhere) = (player("ann"), System.id());
        // The other's entry, ours, and whether ours is known before the other's is seen.
        for (other, own, known_first) in [(5, 6, true), (5, 6, false), (7, 6, true), (7, 6, false)] {
            let hub = Hub::default();
            let mut connection = hub.register(&ann);
            let entry = connection.entry.clone();
            if known_first {
                hub.entered(&ann, &entry, own);
                assert!(hub.newest(&ann, elsewhere, other).is_none());
            } else {
                assert!(hub.newest(&ann, elsewhere, other).is_none());
                hub.entered(&ann, &entry, own);
            }
            assert!(hub.newest(&ann, entry.socket, own).is_none_or(|found| found.socket == entry.socket));
            assert_eq!(connection.end.try_recv().is_ok(), other > own, "{other} {own} {known_first}");
        }
    }
}
