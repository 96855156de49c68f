//! The faults of a seed. Each seed leaves some kinds out: many faults together can hide a bug that a few faults reveal.

use rand::{Rng, RngExt};

use crate::games::MISBEHAVIORS;

/// The size of a run, and how often each fault occurs. Frequencies are percentages unless noted otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) players: u32,
    /// How many tickets each player requests.
    pub(crate) rounds: u32,
    /// Tickets that the player cancels.
    pub(crate) cancels: u32,
    /// The number of players in a match, which has two teams.
    pub(crate) match_size: usize,
    /// Pairs of players who queue as a group, if a team has two places.
    pub(crate) groups: u32,
    /// Of these pairs, those who form a party, which then queues.
    pub(crate) parties: u32,
    /// How long faults are injected, in seconds.
    pub(crate) faults_s: u64,
    /// How many of ten thousand waits of a worker end in a crash.
    pub(crate) crashes: u32,
    /// How many of ten thousand waits of a worker are prolonged by a pause of seconds.
    pub(crate) pauses: u32,
    pub(crate) slow_hops: u32,
    pub(crate) lost_answers: u32,
    pub(crate) lost_appends: u32,
    pub(crate) lost_reads: u32,
    /// Stale reads, as a share of the reads during an election.
    pub(crate) stale_reads: u32,
    pub(crate) unnamed_conflicts: u32,
    pub(crate) late_messages: u32,
    /// Appends that time out before they are stored.
    pub(crate) late_appends: u32,
    /// Messages that are delivered a second time while the first delivery is still being handled.
    pub(crate) duplicates: u32,
    pub(crate) lost_acks: u32,
    /// Requests that a dependency (inventory, Redis, the backend) refuses temporarily.
    pub(crate) down: u32,
    pub(crate) lost_keys: u32,
    pub(crate) lost_reports: u32,
    /// Instances whose creation takes up to a minute.
    pub(crate) slow_starts: u32,
    /// Game servers that misbehave.
    pub(crate) bad_games: u32,
    /// An index into [`MISBEHAVIORS`]: every bad game server misbehaves in this way. `None` draws one for each server.
    pub(crate) same_behavior: Option<usize>,
    /// Whether directors sweep: search for instances that no open session needs, and remove them.
    ///
    /// Sweeps are necessary, for this case: a director creates an instance so slowly that another one has handled the
    /// same request and the session's close before. It would notice when it reads the session again, and remove the
    /// instance. If it is killed before, no message is left that leads to the instance, and no server runs whose exit
    /// the watch could see.
    ///
    /// They are necessary for no other case, except for sessions that the log does not have. So in a run without
    /// sweeps, every instance must be removed, except one that a director claimed after its session had closed, and did
    /// not start because it was killed.
    pub(crate) sweeps: bool,
    /// Whether both matchmakers lead at the same time.
    pub(crate) two_leaders: bool,
    /// Whether players must accept their matches.
    pub(crate) acceptance: bool,
    /// Proposed matches that a player declines.
    pub(crate) declines: u32,
}

impl Plan {
    pub(crate) fn draw(rng: &mut impl Rng) -> Self {
        let mut some = |most: u32| if rng.random_range(0..5) < 2 { 0 } else { rng.random_range(1..=most) };
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
            players: rng.random_range(2..=8),
            rounds: rng.random_range(1..=3),
            groups: if rng.random_range(0..2) == 0 { 0 } else { rng.random_range(1..=100) },
            parties: if rng.random_range(0..2) == 0 { 0 } else { rng.random_range(1..=100) },
            match_size: rng.random_range(2..=4),
            faults_s: rng.random_range(20..=90),
            same_behavior: (rng.random_range(0..2) == 0).then(|| rng.random_range(0..MISBEHAVIORS.len())),
            sweeps: rng.random_range(0..2) == 0,
            two_leaders: rng.random_range(0..2) == 0,
            acceptance: rng.random_range(0..3) == 0,
            declines: rng.random_range(0..=20),
        }
    }
}
