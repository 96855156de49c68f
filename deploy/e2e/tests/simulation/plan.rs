//! What a seed has in store. Each seed leaves some faults out: many together hide what a few of them would show.

use rand::{Rng, RngExt};

use crate::games::BAD;

/// How much there is to do, and how often what goes wrong; of a hundred, unless it says otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) players: u32,
    /// Tickets of each player.
    pub(crate) rounds: u32,
    /// Of tickets, those that are cancelled sooner or later.
    pub(crate) cancels: u32,
    /// Players of a match.
    pub(crate) match_of: usize,
    /// For how long things go wrong, in seconds.
    pub(crate) trouble_s: u64,
    /// Of ten thousand times that a worker waits for something, those of which it never wakes.
    pub(crate) crashes: u32,
    /// The same, of which it wakes seconds later.
    pub(crate) pauses: u32,
    pub(crate) slow_hops: u32,
    pub(crate) lost_answers: u32,
    pub(crate) lost_appends: u32,
    pub(crate) lost_reads: u32,
    /// Of reads while a node answers that no longer leads.
    pub(crate) stale_reads: u32,
    pub(crate) unnamed_conflicts: u32,
    pub(crate) late_messages: u32,
    /// Appends that are given up before they are stored.
    pub(crate) late_appends: u32,
    /// Deliveries that come a second time while the first is at work.
    pub(crate) duplicates: u32,
    pub(crate) lost_acks: u32,
    /// Requests that a dependency (inventory, Redis, the backend) refuses for now.
    pub(crate) down: u32,
    pub(crate) lost_keys: u32,
    pub(crate) lost_reports: u32,
    /// Instances that take up to a minute to be made.
    pub(crate) slow_starts: u32,
    /// Game servers with which something is the matter.
    pub(crate) bad_games: u32,
    /// Whether that is the same with all of them: which, if so.
    pub(crate) one_behavior: Option<usize>,
    /// Whether directors sweep up what nobody asks for; where they do not, nothing may need it.
    pub(crate) sweeps: bool,
    /// Whether each matchmaker leads whatever the other does.
    pub(crate) rivals: bool,
}

impl Plan {
    pub(crate) fn draw(dice: &mut impl Rng) -> Self {
        let mut some = |most: u32| if dice.random_range(0..5) < 2 { 0 } else { dice.random_range(1..=most) };
        Self {
            crashes: some(60),
            pauses: some(40),
            slow_hops: some(20),
            lost_answers: some(10),
            lost_appends: some(10),
            lost_reads: some(10),
            stale_reads: some(70),
            unnamed_conflicts: some(100),
            late_messages: some(40),
            late_appends: some(5),
            duplicates: some(20),
            lost_acks: some(20),
            down: some(15),
            lost_keys: some(5),
            lost_reports: some(40),
            slow_starts: some(30),
            bad_games: some(100),
            cancels: some(60),
            players: dice.random_range(2..=8),
            rounds: dice.random_range(1..=3),
            match_of: dice.random_range(2..=3),
            trouble_s: dice.random_range(20..=90),
            one_behavior: (dice.random_range(0..2) == 0).then(|| dice.random_range(0..BAD.len())),
            sweeps: dice.random_range(0..2) == 0,
            rivals: dice.random_range(0..2) == 0,
        }
    }
}
