//! Limits the number of connections. Anybody can connect, so the number of pending connections, which have not joined
//! yet, is limited: a new one replaces an old one. Connections that have joined count per player and cannot be
//! displaced by pending ones.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
};

use tokio::task::AbortHandle;

/// Limit for pending connections. With more than 32 players, the limit is twice the number of players, so that all of
/// them can reconnect at once.
const MIN_PENDING_LIMIT: usize = 64;

/// Connections per player: the current one, and the previous one, which may still be closing.
const PER_PLAYER: usize = 2;

/// All open connections.
pub(crate) struct Connections {
    pending_limit: usize,
    /// Connections that have not joined yet, oldest first.
    pending: VecDeque<Pending>,
    /// Connections that have joined, by player index, oldest first.
    players: Vec<VecDeque<AbortHandle>>,
}

struct Pending {
    connection: u64,
    origin: IpAddr,
    task: AbortHandle,
}

impl Connections {
    pub(crate) fn new(players: usize) -> Self {
        let of_each = (0..players).map(|_| VecDeque::new()).collect();
        Self { pending_limit: MIN_PENDING_LIMIT.max(2 * players), pending: VecDeque::new(), players: of_each }
    }

    /// Adds a pending connection. If there are too many, it aborts the oldest one from the address that has the most.
    /// So an attacker who opens many connections displaces their own, and players from other addresses can join.
    pub(crate) fn add(&mut self, connection: u64, from: IpAddr, task: AbortHandle) {
        self.pending.retain(|pending| !pending.task.is_finished());
        self.pending.push_back(Pending { connection, origin: origin(from), task });
        if self.pending.len() <= self.pending_limit {
            return;
        }
        let share = |one: &Pending| self.pending.iter().filter(|other| other.origin == one.origin).count();
        let largest = self.pending.iter().map(share).max();
        let oldest = self.pending.iter().position(|one| Some(share(one)) == largest);
        if let Some(displaced) = oldest.and_then(|at| self.pending.remove(at)) {
            tracing::debug!(connection = displaced.connection, "too many pending connections, closing one");
            displaced.task.abort();
        }
    }

    /// Moves a pending connection to the connections of its player.
    pub(crate) fn join(&mut self, connection: u64, player: usize) {
        let found = self.pending.iter().position(|pending| pending.connection == connection);
        // A connection that is not found has just been aborted by `add`.
        let Some(pending) = found.and_then(|at| self.pending.remove(at)) else { return };
        let Some(connections) = self.players.get_mut(player) else { return };
        connections.push_back(pending.task);
        if connections.len() > PER_PLAYER
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
    }
}

/// The address to count by. For IPv6 it is the /64 network, because one host can use all 2^64 addresses of it.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Connections whose tasks never end by themselves. [`Fixture::aborted`] returns the numbers of the aborted ones.
    struct Fixture {
        connections: Connections,
        tasks: Vec<tokio::task::JoinHandle<()>>,
    }

    impl Fixture {
        fn new(players: usize) -> Self {
            Self { connections: Connections::new(players), tasks: Vec::new() }
        }

        fn add(&mut self, from: &str) -> u64 {
            let task = tokio::spawn(pending());
            let connection = self.tasks.len() as u64;
            self.connections.add(connection, from.parse().unwrap(), task.abort_handle());
            self.tasks.push(task);
            connection
        }

        async fn aborted(&mut self) -> Vec<usize> {
            // An aborted task finishes when the runtime polls it.
            tokio::task::yield_now().await;
            (0..).zip(&self.tasks).filter(|(_, task)| task.is_finished()).map(|(number, _)| number).collect()
        }
    }

    #[tokio::test]
    async fn the_oldest_is_aborted_if_all_addresses_are_equal_or_all_differ() {
        for from in [|_| "192.0.2.1".to_owned(), |number: usize| format!("192.0.2.{number}")] {
            let mut fixture = Fixture::new(2);
            for number in 0..MIN_PENDING_LIMIT {
                fixture.add(&from(number));
            }
            assert!(fixture.aborted().await.is_empty());
            fixture.add(&from(MIN_PENDING_LIMIT));
            assert_eq!(fixture.aborted().await, [0]);
        }
    }

    #[tokio::test]
    async fn an_address_with_many_connections_displaces_only_its_own() {
        for (one, another) in [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::2:1")] {
            let mut fixture = Fixture::new(2);
            fixture.add("203.0.113.1");
            for _ in 0..MIN_PENDING_LIMIT / 2 {
                fixture.add(one);
                fixture.add(another);
            }
            fixture.add("203.0.113.2");
            assert_eq!(fixture.aborted().await, [1, 2], "{one}");
        }
    }

    #[tokio::test]
    async fn a_joined_connection_stays_until_its_player_connects_twice_more() {
        let mut fixture = Fixture::new(2);
        let first = fixture.add("192.0.2.1");
        fixture.connections.join(first, 1);
        for _ in 0..MIN_PENDING_LIMIT {
            fixture.add("192.0.2.1");
        }
        assert!(fixture.aborted().await.is_empty());
        for expected in [vec![1], vec![0, 1]] {
            let again = fixture.add("192.0.2.1");
            fixture.connections.join(again, 1);
            assert_eq!(fixture.aborted().await, expected);
        }
    }

    #[tokio::test]
    async fn a_finished_connection_does_not_count() {
        let mut fixture = Fixture::new(2);
        for _ in 0..MIN_PENDING_LIMIT {
            fixture.add("192.0.2.1");
        }
        fixture.tasks[7].abort();
        assert_eq!(fixture.aborted().await, [7]);
        fixture.add("192.0.2.1");
        assert_eq!(fixture.aborted().await, [7]);
    }

    #[tokio::test]
    async fn all_players_can_reconnect_at_once() {
        let mut fixture = Fixture::new(100);
        for _ in 0..200 {
            fixture.add("192.0.2.1");
        }
        assert!(fixture.aborted().await.is_empty());
    }
}
