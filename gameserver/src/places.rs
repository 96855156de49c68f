//! Who may be connected at once. Anybody may connect, so who has not joined yet gives way when there are too many of
//! them, and the session's players have places of their own, which nobody else takes.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
};

use tokio::task::AbortHandle;

/// Who may be on their way to join at once: twice the players beyond that, so that all can connect again.
const STRANGERS: usize = 64;

/// Connections of a player: the present one, and the one before it, which may be hearing why it ends.
const OF_A_PLAYER: usize = 2;

/// The connections that there are.
pub(crate) struct Places {
    most: usize,
    /// Who has not joined yet, the oldest first.
    strangers: VecDeque<Stranger>,
    /// Each player's, the oldest first.
    players: Vec<VecDeque<AbortHandle>>,
}

struct Stranger {
    connection: u64,
    origin: IpAddr,
    task: AbortHandle,
}

impl Places {
    pub(crate) fn new(players: usize) -> Self {
        let of_each = (0..players).map(|_| VecDeque::new()).collect();
        Self { most: STRANGERS.max(2 * players), strangers: VecDeque::new(), players: of_each }
    }

    /// Takes in a connection. If there are too many that have not joined, the oldest of the address with the most of
    /// them ends: who floods us is in his own way, and a player from elsewhere has time to join.
    pub(crate) fn enter(&mut self, connection: u64, from: IpAddr, task: AbortHandle) {
        self.strangers.retain(|stranger| !stranger.task.is_finished());
        self.strangers.push_back(Stranger { connection, origin: origin(from), task });
        if self.strangers.len() <= self.most {
            return;
        }
        let share = |one: &Stranger| self.strangers.iter().filter(|other| other.origin == one.origin).count();
        let largest = self.strangers.iter().map(share).max();
        let oldest = self.strangers.iter().position(|one| Some(share(one)) == largest);
        if let Some(stranger) = oldest.and_then(|at| self.strangers.remove(at)) {
            tracing::debug!(stranger.connection, "too many connections that have not joined, this one gives way");
            stranger.task.abort();
        }
    }

    /// Gives a connection its player's place.
    pub(crate) fn join(&mut self, connection: u64, player: usize) {
        let found = self.strangers.iter().position(|stranger| stranger.connection == connection);
        // One that is not there has given way this moment, and is ending.
        let Some(stranger) = found.and_then(|at| self.strangers.remove(at)) else { return };
        let Some(connections) = self.players.get_mut(player) else { return };
        connections.push_back(stranger.task);
        if connections.len() > OF_A_PLAYER
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
    }
}

/// What counts as one address: a host has 2^64 of IPv6 to choose from.
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

    /// Connections that last, by their numbers; which of them have ended is told by [`Crowd::ended`].
    struct Crowd {
        places: Places,
        tasks: Vec<tokio::task::JoinHandle<()>>,
    }

    impl Crowd {
        fn new(players: usize) -> Self {
            Self { places: Places::new(players), tasks: Vec::new() }
        }

        fn enter(&mut self, from: &str) -> u64 {
            let task = tokio::spawn(pending());
            let connection = self.tasks.len() as u64;
            self.places.enter(connection, from.parse().unwrap(), task.abort_handle());
            self.tasks.push(task);
            connection
        }

        async fn ended(&mut self) -> Vec<usize> {
            // Aborted tasks end when the runtime comes to them.
            tokio::task::yield_now().await;
            (0..).zip(&self.tasks).filter(|(_, task)| task.is_finished()).map(|(number, _)| number).collect()
        }
    }

    #[tokio::test]
    async fn the_oldest_gives_way_when_all_are_from_one_address_or_each_from_another() {
        for from in [|_| "192.0.2.1".to_owned(), |number: usize| format!("192.0.2.{number}")] {
            let mut crowd = Crowd::new(2);
            for number in 0..STRANGERS {
                crowd.enter(&from(number));
            }
            assert!(crowd.ended().await.is_empty());
            crowd.enter(&from(STRANGERS));
            assert_eq!(crowd.ended().await, [0]);
        }
    }

    #[tokio::test]
    async fn who_floods_gives_way_to_himself() {
        for (one, another) in [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::2:1")] {
            let mut crowd = Crowd::new(2);
            crowd.enter("203.0.113.1");
            for _ in 0..STRANGERS / 2 {
                crowd.enter(one);
                crowd.enter(another);
            }
            crowd.enter("203.0.113.2");
            assert_eq!(crowd.ended().await, [1, 2], "{one}");
        }
    }

    #[tokio::test]
    async fn who_has_joined_stays_until_he_connects_twice_more() {
        let mut crowd = Crowd::new(2);
        let first = crowd.enter("192.0.2.1");
        crowd.places.join(first, 1);
        for _ in 0..STRANGERS {
            crowd.enter("192.0.2.1");
        }
        assert!(crowd.ended().await.is_empty());
        for expected in [vec![1], vec![0, 1]] {
            let again = crowd.enter("192.0.2.1");
            crowd.places.join(again, 1);
            assert_eq!(crowd.ended().await, expected);
        }
    }

    #[tokio::test]
    async fn who_is_gone_takes_no_place() {
        let mut crowd = Crowd::new(2);
        for _ in 0..STRANGERS {
            crowd.enter("192.0.2.1");
        }
        crowd.tasks[7].abort();
        assert_eq!(crowd.ended().await, [7]);
        crowd.enter("192.0.2.1");
        assert_eq!(crowd.ended().await, [7]);
    }

    #[tokio::test]
    async fn all_players_can_connect_again_at_once() {
        let mut crowd = Crowd::new(100);
        for _ in 0..200 {
            crowd.enter("192.0.2.1");
        }
        assert!(crowd.ended().await.is_empty());
    }
}
