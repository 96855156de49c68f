//! A player's slot in the game: the player's connection, and the state of their datagrams.

use std::{net::SocketAddr, time::Duration};

use garage_events::id::PlayerId;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    socket::Outgoing,
    wire::{Key, close, datagram::Input},
};

/// The server forgets a client's UDP address after this time without a datagram. A client sends 20 per second, so after
/// 100 missing datagrams it is gone.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct PlayerSlot {
    player: PlayerId,
    connection: Option<Connection>,
    udp_id: u32,
    /// `None` until the player has joined. Without a key no datagram is accepted.
    key: Option<Key>,
    /// The highest counter of an accepted datagram of this connection.
    counter: u64,
    /// Address and time of the last accepted datagram of this connection.
    last_datagram: Option<(SocketAddr, Instant)>,
}

struct Connection {
    number: u64,
    out: mpsc::Sender<Outgoing>,
}

impl PlayerSlot {
    /// A slot without a connection. Its datagram id differs from the ids of the `others`.
    pub(crate) fn new(player: PlayerId, others: &[Self]) -> Self {
        Self { player, connection: None, udp_id: Self::unused_id(others), key: None, counter: 0, last_datagram: None }
    }

    /// A random datagram id that none of the slots has.
    pub(crate) fn unused_id(slots: &[Self]) -> u32 {
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

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(crate) fn is_connected_by(&self, number: u64) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.number == number)
    }

    /// Assigns a connection to the slot, with a new datagram key. Closes the previous connection and invalidates its
    /// key.
    pub(crate) fn connect(&mut self, number: u64, out: mpsc::Sender<Outgoing>, udp_id: u32) -> (Key, u32) {
        self.send(Outgoing::Close(close::REPLACED, "the player has connected again"));
        let key = Key::new(rand::random());
        self.connection = Some(Connection { number, out });
        self.udp_id = udp_id;
        self.key = Some(key.clone());
        self.counter = 0;
        self.last_datagram = None;
        (key, udp_id)
    }

    /// Removes the connection from the slot. Returns false if the slot has another connection or none.
    pub(crate) fn disconnect(&mut self, number: u64) -> bool {
        let connected = self.is_connected_by(number);
        if connected {
            self.connection = None;
        }
        connected
    }

    /// Queues a frame for the connection, if there is one. Drops a connection whose queue is full: the game never
    /// waits.
    pub(crate) fn send(&mut self, frame: Outgoing) {
        if let Some(connection) = &self.connection
            && connection.out.try_send(frame).is_err()
        {
            tracing::info!(
                player.id = %self.player,
                connection = connection.number,
                "connection is too slow or closed, dropping it"
            );
            self.connection = None;
        }
    }

    /// Returns the input in a datagram for this slot, if the datagram is authentic and newer than all before it.
    pub(crate) fn open(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Option<Input> {
        let input = Input::open(datagram, self.key.as_ref()?)?;
        if input.counter <= self.counter {
            return None;
        }
        self.counter = input.counter;
        self.last_datagram = Some((from, now));
        Some(input)
    }

    /// The address and key for datagrams to the player. `None` if the server has no recent address.
    pub(crate) fn datagram_target(&self, now: Instant) -> Option<(SocketAddr, &Key)> {
        let (address, at) = self.last_datagram?;
        let fresh = now.duration_since(at) < ADDRESS_TIMEOUT;
        self.key.as_ref().filter(|_| fresh).map(|key| (address, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> (PlayerSlot, Key, mpsc::Receiver<Outgoing>) {
        let mut slot = PlayerSlot::new("p".parse().unwrap(), &[]);
        let (out, frames) = mpsc::channel(2);
        let (key, _) = slot.connect(1, out, 7);
        (slot, key, frames)
    }

    fn from() -> SocketAddr {
        "127.0.0.1:9".parse().unwrap()
    }

    #[test]
    fn a_datagram_is_accepted_only_if_its_counter_is_higher_than_all_before() {
        let (mut slot, key, _frames) = slot();
        let now = Instant::now();
        let mut accepted = |counter| {
            let datagram = Input { id: 7, counter, throttle: 1.0 }.seal(&key);
            slot.open(&datagram, from(), now).is_some()
        };
        assert_eq!([1, 5, 5, 4, 6, 0].map(&mut accepted), [true, true, false, false, true, false]);
    }

    #[test]
    fn a_new_connection_closes_the_old_one_and_invalidates_its_key() {
        let (mut slot, old, mut frames) = slot();
        let (out, _new_frames) = mpsc::channel(2);
        slot.connect(2, out, 8);
        assert!(matches!(frames.try_recv(), Ok(Outgoing::Close(close::REPLACED, _))));
        let datagram = Input { id: 8, counter: 1, throttle: 1.0 }.seal(&old);
        assert_eq!(slot.open(&datagram, from(), Instant::now()), None);
        assert!(!slot.disconnect(1) && slot.is_connected());
    }

    #[test]
    fn a_slow_reader_is_dropped() {
        let (mut slot, _key, _frames) = slot();
        for _ in 0..3 {
            slot.send(Outgoing::Text("x".into()));
        }
        assert!(!slot.is_connected());
    }

    #[test]
    fn the_udp_address_times_out() {
        let (mut slot, key, _frames) = slot();
        let now = Instant::now();
        assert!(slot.datagram_target(now).is_none());
        slot.open(&Input { id: 7, counter: 1, throttle: 1.0 }.seal(&key), from(), now).unwrap();
        assert_eq!(slot.datagram_target(now).unwrap().0, from());
        assert!(slot.datagram_target(now + ADDRESS_TIMEOUT).is_none());
    }
}
