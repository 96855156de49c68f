//! A player's place in the game: his connection, and his datagrams.

use std::{net::SocketAddr, time::Duration};

use garage_events::id::PlayerId;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    socket::Outgoing,
    wire::{Key, close, datagram::Input},
};

/// After so long without a datagram its address counts as unknown: a hundred were expected, and snapshots must not go
/// to somebody who is long gone.
const ADDRESS_FOR: Duration = Duration::from_secs(5);

pub(crate) struct PlayerSlot {
    player: PlayerId,
    link: Option<Link>,
    udp_id: u32,
    /// None before the first join: without a key no datagram is authentic.
    key: Option<Key>,
    /// The greatest counter seen.
    counter: u64,
    heard: Option<(SocketAddr, Instant)>,
}

struct Link {
    connection: u64,
    out: mpsc::Sender<Outgoing>,
}

impl PlayerSlot {
    /// An empty seat, whose id differs from those of the others.
    pub(crate) fn new(player: PlayerId, others: &[Self]) -> Self {
        Self { player, link: None, udp_id: Self::fresh_id(others), key: None, counter: 0, heard: None }
    }

    /// A random id that none of the seats has.
    pub(crate) fn fresh_id(slots: &[Self]) -> u32 {
        loop {
            let id = rand::random();
            if slots.iter().all(|slot| slot.udp_id != id) {
                return id;
            }
        }
    }

    pub(crate) fn player(&self) -> &PlayerId {
        &self.player
    }

    pub(crate) fn udp_id(&self) -> u32 {
        self.udp_id
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    pub(crate) fn is_linked_by(&self, connection: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.connection == connection)
    }

    /// Seats a connection; an older one is closed, and what it signed counts no longer.
    pub(crate) fn link(&mut self, connection: u64, out: mpsc::Sender<Outgoing>, udp_id: u32) -> (Key, u32) {
        self.send(Outgoing::Close(close::REPLACED, "the player has connected again"));
        let key = Key::new(rand::random());
        self.link = Some(Link { connection, out });
        self.udp_id = udp_id;
        self.key = Some(key.clone());
        self.counter = 0;
        self.heard = None;
        (key, udp_id)
    }

    /// Empties the seat if this connection still holds it.
    pub(crate) fn unlink(&mut self, connection: u64) -> bool {
        let held = self.is_linked_by(connection);
        if held {
            self.link = None;
        }
        held
    }

    /// Hands a frame to the connection, if there is one. One that does not keep up is given up: the game never waits.
    pub(crate) fn send(&mut self, frame: Outgoing) {
        if let Some(link) = &self.link
            && link.out.try_send(frame).is_err()
        {
            tracing::info!(player.id = %self.player, link.connection, "connection too slow or gone, dropped");
            self.link = None;
        }
    }

    /// The input in a datagram of this seat, if it is authentic and new.
    pub(crate) fn admit(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Option<Input> {
        let input = Input::open(datagram, self.key.as_ref()?)?;
        if input.counter <= self.counter {
            return None;
        }
        self.counter = input.counter;
        self.heard = Some((from, now));
        Some(input)
    }

    /// Where and with which key datagrams reach the player.
    pub(crate) fn datagrams(&self, now: Instant) -> Option<(SocketAddr, &Key)> {
        let (address, at) = self.heard?;
        let fresh = now.duration_since(at) < ADDRESS_FOR;
        self.key.as_ref().filter(|_| fresh).map(|key| (address, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> (PlayerSlot, Key, mpsc::Receiver<Outgoing>) {
        let mut slot = PlayerSlot::new("p".parse().unwrap(), &[]);
        let (out, frames) = mpsc::channel(2);
        let (key, _) = slot.link(1, out, 7);
        (slot, key, frames)
    }

    fn from() -> SocketAddr {
        "127.0.0.1:9".parse().unwrap()
    }

    #[test]
    fn a_counter_is_taken_once_and_only_upwards() {
        let (mut slot, key, _frames) = slot();
        let now = Instant::now();
        let mut admitted = |counter| {
            let datagram = Input { id: 7, counter, throttle: 1.0 }.seal(&key);
            slot.admit(&datagram, from(), now).is_some()
        };
        assert_eq!([1, 5, 5, 4, 6, 0].map(&mut admitted), [true, true, false, false, true, false]);
    }

    #[test]
    fn a_new_connection_closes_the_old_one_and_its_key() {
        let (mut slot, old, mut frames) = slot();
        let (out, _new_frames) = mpsc::channel(2);
        slot.link(2, out, 8);
        assert!(matches!(frames.try_recv(), Ok(Outgoing::Close(close::REPLACED, _))));
        let datagram = Input { id: 8, counter: 1, throttle: 1.0 }.seal(&old);
        assert_eq!(slot.admit(&datagram, from(), Instant::now()), None);
        assert!(!slot.unlink(1) && slot.is_linked());
    }

    #[test]
    fn a_slow_reader_is_dropped() {
        let (mut slot, _key, _frames) = slot();
        for _ in 0..3 {
            slot.send(Outgoing::Text("x".into()));
        }
        assert!(!slot.is_linked());
    }

    #[test]
    fn an_address_is_forgotten() {
        let (mut slot, key, _frames) = slot();
        let now = Instant::now();
        assert!(slot.datagrams(now).is_none());
        slot.admit(&Input { id: 7, counter: 1, throttle: 1.0 }.seal(&key), from(), now).unwrap();
        assert_eq!(slot.datagrams(now).unwrap().0, from());
        assert!(slot.datagrams(now + ADDRESS_FOR).is_none());
    }
}
