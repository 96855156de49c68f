//! The rules, and their violations.

use std::fmt::{self, Write};

use garage_events::{
    id::{PartyId, PlayerId, SessionId},
    subject::Aggregate,
};
use serde::Serialize;

/// The rules of a log. The serialised names appear in JSON lines and must not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Each message is an event that this build can read, on its own subject, and none is missing.
    Readable,
    /// The events of an aggregate are numbered without a gap.
    Numbered,
    /// Each message expected the last sequence that its aggregate had.
    Expected,
    /// A batch is complete, and contains at most one decision per aggregate.
    Committed,
    /// Each event is one that the decider of its aggregate writes in that state.
    Decided,
    /// A ticket ends once. If its match fails, it may be requeued, and then ends once more.
    Ticket,
    /// A player is in at most one live session.
    OneSession,
    /// A session begins or is accepted in the same commit as the `MatchProposed` or `Matched` events of its players.
    Matched,
    /// A match satisfies the rule set that made it.
    Rules,
    /// All players of a session, and nobody else, are notified when it opens, and released or requeued when it closes.
    #[serde(rename = "told")]
    Notified,
    /// A player is paid once for each finished match.
    Paid,
    /// A player is in at most one party, and joins and leaves it together with the party's own event. A party queues with
    /// all its members, and the players of a ticket are requeued together.
    Party,
    /// Nothing is unfinished. Checked only with [`End::Settled`](crate::End::Settled).
    Settled,
    /// No secret is in the log.
    Secret,
    /// The projections match a fold of the log.
    Projected,
    /// A game server belongs to a live session.
    Instance,
    /// A wallet is the sum of its ledger, and the ledger has each match's reward once.
    Wallet,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The serialised name.
        let name = serde_json::to_value(self).ok();
        f.pad(name.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default())
    }
}

/// A violation of a rule. The field names appear in JSON lines and must not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule that is violated.
    pub rule: Rule,
    /// The player that it is about, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub player: Option<PlayerId>,
    /// The session that it is about, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The party that it is about, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
    /// The sequences of the messages that show it, in the log.
    pub seqs: Vec<u64>,
    /// A description of the violation, for people.
    pub what: String,
}

impl Violation {
    /// Creates a violation. Sequences of 0 mean "no message" and are left out.
    pub fn new(rule: Rule, seqs: impl IntoIterator<Item = u64>, what: impl Into<String>) -> Self {
        let seqs = seqs.into_iter().filter(|seq| *seq > 0).collect();
        Self { rule, player: None, session: None, party: None, seqs, what: what.into() }
    }

    /// Sets the player that it is about.
    pub fn player(mut self, player: &PlayerId) -> Self {
        self.player = Some(player.clone());
        self
    }

    /// Sets the session that it is about.
    pub fn session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets the party that it is about.
    pub fn party(mut self, party: PartyId) -> Self {
        self.party = Some(party);
        self
    }

    /// Sets the player, the session or the party that the aggregate belongs to.
    pub fn of(self, aggregate: &Aggregate) -> Self {
        match aggregate {
            Aggregate::Player(player) | Aggregate::Inventory(player) => self.player(player),
            Aggregate::Session(session) => self.session(*session),
            Aggregate::Party(party) => self.party(*party),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<11}", self.rule)?;
        let seqs: Vec<_> = self.seqs.iter().map(u64::to_string).collect();
        if !seqs.is_empty() {
            write!(f, " at {}", seqs.join(", "))?;
        }
        if let Some(player) = &self.player {
            write!(f, " player {player}")?;
        }
        if let Some(session) = &self.session {
            write!(f, " session {session}")?;
        }
        if let Some(party) = &self.party {
            write!(f, " party {party}")?;
        }
        f.write_str(": ")?;
        // The text may quote the log, which may contain control characters.
        for c in self.what.chars() {
            if c.is_control() { write!(f, "{}", c.escape_debug())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}
