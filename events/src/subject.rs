//! The subjects of the log and of what surrounds it. They are built and parsed here only.

mod replay;

use std::{fmt, str::FromStr};

use crate::{
    event::Event,
    id::{Invalid, PlayerId, SessionId},
};

pub use replay::{Filter, Prefix};

/// The stream of events.
pub const STREAM: &str = "GARAGE";
/// Its mirror, kept longer, for replay and proof.
pub const HISTORY: &str = "GARAGE_HISTORY";
/// The stream of deadlines.
pub const TIMERS: &str = "TIMERS";
/// The stream of what game servers say.
pub const REPORTS: &str = "REPORTS";
/// The stream of messages that a worker could not handle.
pub const DEAD: &str = "DEAD";
/// The object store of what workers need for a quick start.
pub const SNAPSHOT_BUCKET: &str = "SNAPSHOTS";
/// The stream that it is made of.
pub const SNAPSHOTS: &str = "OBJ_SNAPSHOTS";

/// Every event.
pub const ALL: &str = "garage.>";
/// Every event of every player.
pub const PLAYERS: &str = "garage.player.*";
/// Every event of every session.
pub const SESSIONS: &str = "garage.session.*.*";
/// Every report.
pub const ALL_REPORTS: &str = "report.>";
/// Every timer that is due.
pub const ALL_DUE: &str = "timer.due.*";

/// Every snapshot: its pieces, and what is said of it.
pub const ALL_SNAPSHOTS: [&str; 2] = ["$O.SNAPSHOTS.C.>", "$O.SNAPSHOTS.M.>"];

/// Every dead letter.
pub const ALL_DEAD: &str = "dead.*";

/// The pieces of one version of a snapshot, by its NUID.
pub fn snapshot_pieces(nuid: &str) -> String {
    format!("$O.SNAPSHOTS.C.{nuid}")
}

/// The events of one type of every session: `garage.session.*.closed`.
pub fn sessions(token: &str) -> String {
    format!("garage.session.*.{token}")
}

/// The thing that events happen to, and that one decision is made on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aggregate {
    /// A player's matchmaking.
    Player(PlayerId),
    /// A session.
    Session(SessionId),
    /// A player's belongings.
    Inventory(PlayerId),
}

impl Aggregate {
    /// The filter that selects its events, and no others. Every append to it must name this very string in its
    /// expectation: with another one the server does not see all races.
    pub fn filter(&self) -> String {
        match self {
            // One literal subject for each player: the server then sees every race on it, inside a batch too.
            Self::Player(id) => format!("garage.player.{id}"),
            Self::Session(id) => format!("garage.session.{id}.>"),
            Self::Inventory(id) => format!("garage.inventory.{id}.>"),
        }
    }

    /// The subject of one of its events.
    pub fn subject<E: Event>(&self, event: &E) -> String {
        self.subject_of(event.token())
    }

    pub(crate) fn subject_of(&self, token: &str) -> String {
        match self {
            Self::Player(id) => format!("garage.player.{id}"),
            Self::Session(id) => format!("garage.session.{id}.{token}"),
            Self::Inventory(id) => format!("garage.inventory.{id}.{token}"),
        }
    }

    /// The aggregate that a subject of the log belongs to.
    pub fn of(subject: &str) -> Option<Self> {
        let mut tokens = subject.split('.');
        let (Some("garage"), Some(kind), Some(id)) = (tokens.next(), tokens.next(), tokens.next()) else {
            return None;
        };
        let rest = tokens.next();
        if tokens.next().is_some() {
            return None;
        }
        match (kind, rest) {
            ("player", None) => id.parse().ok().map(Self::Player),
            ("session", Some(_)) => id.parse().ok().map(Self::Session),
            ("inventory", Some(_)) => id.parse().ok().map(Self::Inventory),
            _ => None,
        }
    }

    /// `player`, `session` or `inventory`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Player(_) => "player",
            Self::Session(_) => "session",
            Self::Inventory(_) => "inventory",
        }
    }

    /// What its id is called in an event's data.
    pub(crate) const fn id_field(&self) -> &'static str {
        match self {
            Self::Player(_) | Self::Inventory(_) => "player",
            Self::Session(_) => "session",
        }
    }

    pub(crate) fn id(&self) -> String {
        match self {
            Self::Player(id) | Self::Inventory(id) => id.to_string(),
            Self::Session(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.id())
    }
}

/// What a game server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReportKind {
    /// [`crate::game::Ready`]
    Ready,
    /// [`crate::game::Finished`]
    Finished,
}

/// Where a game server's report belongs: `report.<session>.<attempt>.ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Report {
    /// Whose server.
    pub session: SessionId,
    /// Which attempt.
    pub attempt: u32,
    /// What it says.
    pub kind: ReportKind,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ReportKind::Ready => "ready",
            ReportKind::Finished => "finished",
        };
        write!(f, "report.{}.{}.{kind}", self.session, self.attempt)
    }
}

/// The inbox prefix of the game server of an attempt at a session: what it asks is answered below it.
pub fn game_inbox(session: SessionId, attempt: u32) -> String {
    format!("_INBOX.{session}.{attempt}")
}

/// A subject that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSubject {
    /// It has another shape.
    #[error("{0:?} is not a subject of this kind")]
    Shape(String),
    /// Its first token is spoken for.
    #[error("subjects under {0:?} have a meaning in Garage; take another first token, as `lab`")]
    Taken(String),
    /// An id in it is no id.
    #[error(transparent)]
    Id(#[from] Invalid),
}

impl FromStr for Report {
    type Err = BadSubject;

    fn from_str(subject: &str) -> Result<Self, BadSubject> {
        let shape = || BadSubject::Shape(subject.chars().take(128).collect());
        let mut tokens = subject.split('.');
        let mut next = || tokens.next().ok_or_else(shape);
        if next()? != "report" {
            return Err(shape());
        }
        let session = next()?.parse()?;
        let token = next()?;
        // Only the form that is built: `01` and `+1` would be further subjects of the same report.
        let attempt: Option<u32> = token.parse().ok().filter(|n: &u32| *n > 0 && n.to_string() == token);
        let attempt = attempt.ok_or_else(shape)?;
        let kind = match next()? {
            "ready" => ReportKind::Ready,
            "finished" => ReportKind::Finished,
            _ => return Err(shape()),
        };
        if tokens.next().is_some() { Err(shape()) } else { Ok(Self { session, attempt, kind }) }
    }
}

/// The subject that sets a session's timer.
pub fn timer_set(session: SessionId) -> String {
    format!("timer.set.{session}")
}

/// The subject that a session's timer fires on.
pub fn timer_due(session: SessionId) -> String {
    format!("timer.due.{session}")
}

/// The session whose timer fired.
///
/// # Errors
/// [`BadSubject`]
pub fn timer_session(subject: &str) -> Result<SessionId, BadSubject> {
    let id = subject.strip_prefix("timer.due.");
    let id = id.ok_or_else(|| BadSubject::Shape(subject.chars().take(128).collect()))?;
    Ok(id.parse()?)
}

/// Where the messages go that a consumer's worker gave up.
pub fn dead(consumer: &str) -> String {
    format!("dead.{consumer}")
}

/// The consumer whose worker gave a message up.
pub fn dead_of(subject: &str) -> Option<&str> {
    subject.strip_prefix("dead.").filter(|consumer| !consumer.contains('.'))
}

/// Where a consumer's worker is asked to handle one of its dead letters again.
pub fn retry(consumer: &str) -> String {
    format!("retry.{consumer}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

    #[test]
    fn the_aggregate_of_a_subject_is_found_again() {
        let session = Aggregate::Session(SESSION.parse().unwrap());
        let player = Aggregate::Player("p=401".parse().unwrap());
        let inventory = Aggregate::Inventory("p1".parse().unwrap());
        for aggregate in [session, player, inventory] {
            assert_eq!(Aggregate::of(&aggregate.subject_of("some-event")), Some(aggregate));
        }
        for foreign in ["garage.player.a.b", "garage.session.x.matched", "garage", "timer.due.x", "garage.x.y"] {
            assert_eq!(Aggregate::of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_report_is_found_again() {
        for kind in [ReportKind::Ready, ReportKind::Finished] {
            let report = Report { session: SESSION.parse().unwrap(), attempt: 2, kind };
            assert_eq!(report.to_string().parse(), Ok(report));
        }
        for bad in
            ["report", "report.x.1.ready", &format!("report.{SESSION}.0.ready"), &format!("report.{SESSION}.1.up")]
        {
            assert!(bad.parse::<Report>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_has_one_spelling() {
        for attempt in ["01", "+1", "-1", " 1", "1 ", "", "4294967296"] {
            let subject = format!("report.{SESSION}.{attempt}.ready");
            assert!(subject.parse::<Report>().is_err(), "{subject}");
        }
    }

    #[test]
    fn a_timer_is_found_again() {
        let session = SESSION.parse().unwrap();
        assert_eq!(timer_session(&timer_due(session)), Ok(session));
        for bad in [&timer_set(session), "timer.due.x", "timer.due.", &format!("timer.due.{SESSION}.x")] {
            assert!(timer_session(bad).is_err(), "{bad}");
        }
    }

    fn any_session() -> impl Strategy<Value = SessionId> {
        any::<u128>().prop_map(|id| SessionId::new(Uuid::from_u128(id)))
    }

    fn any_player() -> impl Strategy<Value = PlayerId> {
        "\\PC{1,10}".prop_map(|name| PlayerId::from_foreign(&name).unwrap())
    }

    fn any_aggregate() -> impl Strategy<Value = Aggregate> {
        prop_oneof![
            any_player().prop_map(Aggregate::Player),
            any_session().prop_map(Aggregate::Session),
            any_player().prop_map(Aggregate::Inventory),
        ]
    }

    proptest! {
        #[test]
        fn any_aggregate_is_found_again_and_selected_by_its_filter(
            aggregate in any_aggregate(),
            token in "[a-z]{1,10}(-[a-z]{1,10})?",
        ) {
            let subject = aggregate.subject_of(&token);
            let filter = aggregate.filter();
            let selected = filter.strip_suffix('>').map_or(subject == filter, |start| subject.starts_with(start));
            prop_assert!(selected, "{filter} and {subject}");
            let illegal = subject.contains(['*', '>', ' ']);
            prop_assert!(!illegal, "{subject}");
            prop_assert_eq!(Aggregate::of(&subject), Some(aggregate));
        }

        #[test]
        fn any_report_is_found_again(session in any_session(), attempt in 1..=u32::MAX, is_ready in any::<bool>()) {
            let kind = if is_ready { ReportKind::Ready } else { ReportKind::Finished };
            let report = Report { session, attempt, kind };
            prop_assert_eq!(report.to_string().parse(), Ok(report));
        }

        #[test]
        fn a_subject_that_parses_is_the_one_that_is_built(
            subject in "(garage|report|timer)(\\.(player|session|inventory|due|[a-z0-9=+]{0,3}|0198c5a0-7b1e-7c3d-8000-0123456789ab)){0,4}",
        ) {
            if let Ok(report) = subject.parse::<Report>() {
                prop_assert_eq!(report.to_string(), subject.clone());
            }
            if let Ok(session) = timer_session(&subject) {
                prop_assert_eq!(timer_due(session), subject.clone());
            }
            if let Some(aggregate) = Aggregate::of(&subject) {
                let token = subject.split('.').nth(3).unwrap_or_default();
                prop_assert_eq!(aggregate.subject_of(token), subject);
            }
        }
    }
}
