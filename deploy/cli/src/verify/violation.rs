//! What does not hold.

use std::fmt::{self, Write};

use garage_events::{
    id::{PlayerId, SessionId},
    subject::Aggregate,
};
use serde::Serialize;

/// What should hold. The names are those of a JSON line, and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// Each message is an event that this build can read, on its own subject, and none is missing.
    Readable,
    /// An aggregate's events are numbered without a hole.
    Numbered,
    /// Each message expected its aggregate where it was.
    Expected,
    /// A batch is whole, and holds at most one decision on each aggregate.
    Committed,
    /// An event is what its aggregate's decider writes in the state that it was in.
    Decided,
    /// A ticket ends once.
    Ticket,
    /// A player is in one live session at most.
    OneSession,
    /// A session is matched together with its players.
    Matched,
    /// Its players are told when it opens and released when it closes: they all, and nobody else.
    #[serde(rename = "told")]
    Notified,
    /// A player is paid once for each match that was finished.
    Paid,
    /// Nothing is under way any more.
    Settled,
    /// No secret is in the log.
    Secret,
    /// The projections are what a fold of the log makes.
    Projected,
    /// An instance of a game server belongs to a session that lives.
    Instance,
    /// A wallet is the sum of its ledger, and has each match's reward once.
    Wallet,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As serde names it.
        let name = serde_json::to_value(self).ok();
        f.pad(name.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default())
    }
}

/// One thing that does not hold. Its fields are those of a JSON line, and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) player: Option<PlayerId>,
    /// The session that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    /// The messages that show it.
    pub(crate) seqs: Vec<u64>,
    /// What is wrong, for a person.
    pub(crate) what: String,
}

impl Violation {
    /// Sequences of 0 are those of nothing, and left out.
    pub(crate) fn new(rule: Rule, seqs: impl IntoIterator<Item = u64>, what: impl Into<String>) -> Self {
        let seqs = seqs.into_iter().filter(|seq| *seq > 0).collect();
        Self { rule, player: None, session: None, seqs, what: what.into() }
    }

    /// It is about this player.
    pub(crate) fn player(mut self, player: &PlayerId) -> Self {
        self.player = Some(player.clone());
        self
    }

    /// It is about this session.
    pub(crate) fn session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// It is about this aggregate.
    pub(crate) fn of(self, aggregate: &Aggregate) -> Self {
        match aggregate {
            Aggregate::Player(player) | Aggregate::Inventory(player) => self.player(player),
            Aggregate::Session(session) => self.session(*session),
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
        f.write_str(": ")?;
        // It may quote what somebody wrote into the log.
        for c in self.what.chars() {
            if c.is_control() { write!(f, "{}", c.escape_debug())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}
