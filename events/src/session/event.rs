//! The events of a session.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    event::events,
    failure,
    game::{Loadout, Placing, Ports, TeamPlacing},
    id::{PlayerId, QueueName, Region, TicketId},
    player::{Address, DeclineReason, Ending},
};

events! {
    /// The events of a session.
    "session" {
        /// The matchmaker proposed a match, which its players must accept. The queue decides whether this is so.
        Proposed = "proposed" at Proposed,
        /// A player accepted the proposed match. After the last player, `Matched` follows in the same commit.
        Accepted = "accepted" at Accepted,
        /// The proposed match was not accepted by all players. `Closed` follows in the same commit.
        ProposalEnded = "proposal-ended" at ProposalEnded,
        /// The matchmaker matched the players, and they have accepted if they had to.
        Matched = "matched" at Matched,
        /// The session worker requested a game server, which starts an attempt.
        PodRequested = "pod-requested" at PodRequested,
        /// The director placed the game server on a node.
        PodScheduled = "pod-scheduled" at PodScheduled,
        /// The game server could not be started, was not ready in time, or died.
        PodFailed = "pod-failed" at PodFailed,
        /// The game server reported that it listens.
        PodReady = "pod-ready" at PodReady,
        /// The players received the game server's address.
        Opened = "opened" at Opened,
        /// The session ends without results. `Closed` follows in the same commit.
        Failed = "failed" at Failed,
        /// The game server reported the results. `Closed` follows in the same commit.
        Finished = "finished" at Finished,
        /// The session has ended. It is the last event of every session.
        Closed = "closed" at Finished,
    }
}

/// See [`Event::Matched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// The queue in which the players waited.
    pub queue: QueueName,
    /// The region in which the game server must run.
    pub region: Region,
    pub teams: Vec<Team>,
    /// The latencies by which the region was chosen: for each region that all players can use, their round-trip times
    /// in milliseconds, in the order of `teams`. Empty in the events of older builds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latencies: BTreeMap<Region, Vec<u32>>,
    /// The id of the rule set that made the match ([`crate::rules::RuleSetId`]). Builds without rule sets wrote the
    /// version of their rule instead: `band-region-fifo/1` or `/2`.
    pub rules: String,
    /// Sequence of the last event that the matchmaker had read when it made the match. The fold of the log up to this
    /// sequence, without `left_out`, is the pool that the match was made from.
    pub pool_seq: u64,
    /// The matchmaker's current time when it made the match.
    #[serde(with = "time::serde::rfc3339")]
    pub clock: OffsetDateTime,
    /// If it is odd, it decided in which order tickets were tried. Otherwise, the oldest were tried first. In events of
    /// older builds, it decided how tickets were divided into batches.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seed: u32,
    /// Tickets that the matchmaker left out, in the events of older builds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<TicketId>,
    /// Tickets that the matchmaker left out, because a decision on one of their players was being committed, or the
    /// player had a later event. For each such ticket: `pool_seq` minus the sequence of the last event of one of its
    /// players.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<u64>,
    /// [`crate::queue::Queue::search_steps`], unless it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_steps: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(seed: &u32) -> bool {
    *seed == 0
}

impl Matched {
    /// The players of all teams.
    pub fn players(&self) -> impl Iterator<Item = &PlayerId> {
        self.teams.iter().flat_map(|team| &team.players).map(|member| &member.player)
    }
}

/// See [`Event::Proposed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposed {
    /// When the proposal ends unless all players have accepted: the matchmaker's time of the match and
    /// [`crate::queue::Queue::acceptance_s`]. The session's timer fires at this time of the stream's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub accept_by: OffsetDateTime,
    /// [`crate::queue::Queue::acceptance_names_decliner`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub names_decliner: bool,
    /// The content of the session's `Matched` once all players have accepted.
    #[serde(flatten)]
    pub matched: Matched,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// See [`Event::Accepted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub player: PlayerId,
    /// How many players have accepted, including this one.
    pub accepted: u32,
    /// How many players must accept.
    pub of: u32,
}

/// See [`Event::ProposalEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalEnded {
    pub why: NotAccepted,
    /// The player who declined, or those who had not answered at the deadline.
    pub players: Vec<PlayerId>,
}

/// Why a proposed match was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotAccepted {
    /// A player declined.
    Declined,
    /// A player who had not accepted lost their WebSocket, and did not reconnect within the grace period.
    Disconnected,
    /// Players did not answer before the deadline.
    Unanswered,
}

impl NotAccepted {
    /// The value of the label `outcome` in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Declined => "declined",
            Self::Disconnected => "disconnected",
            Self::Unanswered => "unanswered",
        }
    }
}

impl From<NotAccepted> for DeclineReason {
    fn from(why: NotAccepted) -> Self {
        match why {
            NotAccepted::Declined => Self::Declined,
            NotAccepted::Disconnected => Self::Disconnected,
            NotAccepted::Unanswered => Self::Unanswered,
        }
    }
}

/// A team of a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Unique within the session.
    pub name: String,
    pub players: Vec<Member>,
}

/// A member of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub player: PlayerId,
    /// The ticket with which the player waited.
    pub ticket: TicketId,
    /// The player's rank when they queued.
    pub rank: i32,
}

/// See [`Event::PodRequested`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRequested {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The region in which the game server must run.
    pub region: Region,
    /// The car and items of each player.
    pub loadouts: Vec<Loadout>,
    /// The game server's public key, as SubjectPublicKeyInfo PEM. The private key is never in the log. The session
    /// worker stores it in Redis for a short time, encrypted.
    pub public_key: String,
    /// The public key's fingerprint, under which Redis stores the private key; see [`crate::game::fingerprint`].
    pub fingerprint: String,
    /// The hard end of the session. The first request decides it, and the others repeat it. Absent in events of older
    /// builds.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<OffsetDateTime>,
}

/// See [`Event::PodScheduled`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodScheduled {
    pub attempt: u32,
    /// The name of the instance: `game-<session>-<attempt>`.
    pub pod: String,
    /// The name of the node on which it runs.
    pub node: String,
    /// The address at which clients reach that node.
    pub public_ip: std::net::IpAddr,
}

/// See [`Event::PodFailed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFailed {
    pub attempt: u32,
    /// The cause as a stable code, for example `not-ready`.
    pub reason: String,
    /// The cause in words, for operators. [`PodFailed::new`] makes it fit for the log.
    pub message: String,
}

impl PodFailed {
    /// Use this for every new event: it passes the message through [`failure::line`].
    pub fn new(attempt: u32, reason: &str, message: &str) -> Self {
        Self { attempt, reason: reason.into(), message: failure::line(message) }
    }
}

/// See [`Event::PodReady`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReady {
    pub attempt: u32,
    #[serde(flatten)]
    pub ports: Ports,
}

/// See [`Event::Opened`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The attempt that succeeded.
    pub attempt: u32,
    #[serde(flatten)]
    pub address: Address,
}

/// See [`Event::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The cause as a stable code: the reason of the last [`PodFailed`], or for example `hard-end`.
    pub reason: String,
}

/// See [`Event::Finished`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The attempt whose game server reported.
    pub attempt: u32,
    /// One entry per player of the session.
    pub results: Vec<Placing>,
    /// One entry per team of the session; empty if each player counts alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teams: Vec<TeamPlacing>,
}

/// See [`Event::Closed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub why: Ending,
    /// The same as in [`Finished`]; empty if the session ended in another way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<Placing>,
    /// The same as in [`Finished`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teams: Vec<TeamPlacing>,
}
