//! The log, handed to the sockets that are here: one ordered read per gateway, whatever the number of sockets.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use garage_events::{
    id::PlayerId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    log::ReadError,
    subject::{self, Aggregate},
};
use garage_worker::{Health, Shutdown, Stopped, lag, patiently};
use tokio::sync::{mpsc, oneshot};

use crate::frame::Frame;

/// Frames that may wait for a socket; the channel takes memory as they come. More than one request to the log brings,
/// which is handed out in one go when the log was out of reach for a while: a socket that is closed for its queue has
/// not read for longer than that.
pub(crate) const QUEUE: usize = 1_024;

/// Sockets of one player at a time; a further one closes the oldest. Who reconnects often on a bad line must not be
/// locked out by sockets whose end has not been noticed.
const SEATS: usize = 8;

/// Which sockets are here, and how far they have been told. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    position: u64,
    last_id: u64,
    players: HashMap<PlayerId, Vec<Place>>,
}

struct Place {
    id: u64,
    frames: mpsc::Sender<Frame>,
    /// Sent when the hub closes the socket; a place that is given up goes without it.
    end: oneshot::Sender<Closing>,
}

/// Why the hub closes a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It does not read what it is told.
    TooSlow,
    /// The player has opened too many newer ones.
    Replaced,
}

/// A socket's place in the hub; dropping it gives the place up.
pub(crate) struct Seat {
    pub(crate) frames: mpsc::Receiver<Frame>,
    pub(crate) end: oneshot::Receiver<Closing>,
    /// The last sequence that was handed out before this place was taken. Everything after it comes through `frames`.
    pub(crate) position: u64,
    id: u64,
    player: PlayerId,
    hub: Hub,
}

impl Hub {
    /// Takes a place for a socket of a player.
    pub(crate) fn register(&self, player: &PlayerId) -> Seat {
        let (frames, receive) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let mut state = self.state();
        state.last_id += 1;
        let (id, position) = (state.last_id, state.position);
        let places = state.players.entry(player.clone()).or_default();
        if places.len() >= SEATS {
            close(places.remove(0), Closing::Replaced);
        }
        places.push(Place { id, frames, end });
        drop(state);
        metrics::gauge!("garage_gateway_sockets").increment(1);
        Seat { frames: receive, end: ended, position, id, player: player.clone(), hub: self.clone() }
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
        let Some(places) = state.players.get_mut(&player) else { return };
        let frame = match Frame::of(message.seq, &message.body) {
            Ok(frame) => frame,
            Err(error) => {
                metrics::counter!("garage_gateway_skipped_total").increment(1);
                tracing::warn!(%error, event.seq = message.seq, "a player's message is no event; skipping it");
                return;
            }
        };
        for slow in places.extract_if(.., |place| place.frames.try_send(frame.clone()).is_err()) {
            close(slow, Closing::TooSlow);
        }
        if places.is_empty() {
            state.players.remove(&player);
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

fn close(place: Place, why: Closing) {
    // A socket that has gone needs no telling.
    let _ = place.end.send(why);
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics::gauge!("garage_gateway_sockets").decrement(1);
        let mut state = self.hub.state();
        let Some(places) = state.players.get_mut(&self.player) else { return };
        places.retain(|place| place.id != self.id);
        if places.is_empty() {
            state.players.remove(&self.player);
        }
    }
}

/// The last sequence of the log, told by the stream's leader.
pub(crate) async fn present(log: &JetStreamLog) -> Result<u64, ReadError> {
    let stream = log.context().get_stream(subject::STREAM).await;
    let stream = stream.map_err(|error| ReadError::Unavailable(error.to_string()))?;
    Ok(stream.cached_info().state.last_sequence)
}

/// Begins to read the log at the present; the task that is returned hands out what comes until `shutdown`.
///
/// # Errors
/// [`Stopped`]
pub(crate) async fn follow(
    hub: Hub,
    log: JetStreamLog,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let beginning = patiently("the log", || async {
        hub.start_at(present(&log).await?);
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
                () = hand_out_all(&hub, &mut follow) => {}
                never = lag::watch("log", &log, subject::PLAYERS, || hub.position(), &health) => never,
            }
        };
        shutdown.run_until_cancelled(hand_out).await;
        Ok(())
    })
}

async fn hand_out_all(hub: &Hub, follow: &mut Follow) {
    loop {
        hub.hand_out(&follow.next().await);
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn message(seq: u64, player: &str) -> Message {
        let body = r#"{"n":1,"type":"Queued","data":{}}"#.into();
        Message { seq, time: OffsetDateTime::UNIX_EPOCH, subject: format!("garage.player.{player}"), body, pending: 0 }
    }

    fn player(name: &str) -> PlayerId {
        name.parse().unwrap()
    }

    #[test]
    fn a_socket_gets_its_players_events_from_its_position_on() {
        let hub = Hub::default();
        hub.hand_out(&message(4, "ann"));
        let (mut one, mut two, mut other) =
            (hub.register(&player("ann")), hub.register(&player("ann")), hub.register(&player("bob")));
        assert_eq!(one.position, 4);
        hub.hand_out(&message(5, "ann"));
        hub.hand_out(&message(6, "bob"));
        for seat in [&mut one, &mut two] {
            assert_eq!(seat.frames.try_recv().unwrap().seq, 5);
            assert!(seat.frames.try_recv().is_err());
        }
        assert_eq!(other.frames.try_recv().unwrap().seq, 6);
        assert_eq!(hub.position(), 6);
    }

    #[test]
    fn what_the_log_brings_in_one_go_closes_nobody() {
        let hub = Hub::default();
        let mut seat = hub.register(&player("ann"));
        for seq in 1..=500 {
            hub.hand_out(&message(seq, "ann"));
        }
        assert!(seat.end.try_recv().is_err());
        assert_eq!(std::iter::from_fn(|| seat.frames.try_recv().ok()).count(), 500);
    }

    #[test]
    fn a_socket_that_does_not_read_loses_its_place_alone() {
        let hub = Hub::default();
        let (mut slow, mut quick) = (hub.register(&player("ann")), hub.register(&player("ann")));
        for seq in 1..=1 + QUEUE as u64 {
            hub.hand_out(&message(seq, "ann"));
            assert_eq!(quick.frames.try_recv().unwrap().seq, seq);
        }
        assert_eq!(slow.end.try_recv(), Ok(Closing::TooSlow));
        assert!(quick.end.try_recv().is_err());
    }

    #[test]
    fn the_oldest_socket_of_too_many_is_closed() {
        let hub = Hub::default();
        let mut seats: Vec<_> = (0..=SEATS).map(|_| hub.register(&player("ann"))).collect();
        assert_eq!(seats[0].end.try_recv(), Ok(Closing::Replaced));
        assert!(seats[1].end.try_recv().is_err());
    }

    #[test]
    fn nothing_is_left_of_a_socket_that_has_gone() {
        let hub = Hub::default();
        let (one, two) = (hub.register(&player("ann")), hub.register(&player("ann")));
        drop(one);
        assert_eq!(hub.state().players.len(), 1);
        drop(two);
        assert!(hub.state().players.is_empty());
    }
}
