//! The NATS subjects and streams. Only this module builds and parses the subjects of events, reports, timers and
//! dead letters.

mod replay;

use std::{fmt, str::FromStr};

use crate::{
    event::Event,
    id::{Invalid, PartyId, PlayerId, SessionId},
};

pub use replay::{Filter, Prefix};

/// The log: the stream of all events.
pub const STREAM: &str = "GARAGE";
/// A mirror of the log that is kept for longer, for replays and verification.
pub const HISTORY: &str = "GARAGE_HISTORY";
/// The stream of the sessions' timers: messages that are scheduled, and messages that are due.
pub const TIMERS: &str = "TIMERS";
/// The stream of the reports of game servers.
pub const REPORTS: &str = "REPORTS";
/// The stream of messages that a worker could not handle.
pub const DEAD: &str = "DEAD";
/// The object store with the matchmaker's snapshots, which shorten its start.
pub const SNAPSHOT_BUCKET: &str = "SNAPSHOTS";
/// The stream that stores [`SNAPSHOT_BUCKET`].
pub const SNAPSHOTS: &str = "OBJ_SNAPSHOTS";

/// Selects every event.
pub const ALL: &str = "garage.>";
/// Selects every matchmaking event of every player.
pub const PLAYERS: &str = "garage.player.*";
/// Selects every event of every party.
pub const PARTIES: &str = "garage.party.*";
/// Selects every event of every session.
pub const SESSIONS: &str = "garage.session.*.*";
/// Selects every report of a game server.
pub const ALL_REPORTS: &str = "report.>";
/// The subjects that [`REPORTS`] stores: those that a game server may publish to.
pub const STORED_REPORTS: [&str; 2] = ["report.*.*.ready", "report.*.*.finished"];
/// Selects every timer that is due.
pub const ALL_DUE: &str = "timer.due.*";

/// Selects the chunks and the metadata of every snapshot.
pub const ALL_SNAPSHOTS: [&str; 2] = ["$O.SNAPSHOTS.C.>", "$O.SNAPSHOTS.M.>"];

/// Selects every dead letter.
pub const ALL_DEAD: &str = "dead.*";

/// The subject of the chunks of one version of a snapshot, which has this NUID.
pub fn snapshot_pieces(nuid: &str) -> String {
    format!("$O.SNAPSHOTS.C.{nuid}")
}

/// Selects one event type of every session, for example `garage.session.*.closed`.
pub fn sessions(token: &str) -> String {
    format!("garage.session.*.{token}")
}

/// The unit of consistency: a decision is based on one state of the aggregate, and its append fails if the aggregate
/// has changed since.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aggregate {
    /// A player's tickets and matches.
    Player(PlayerId),
    Session(SessionId),
    /// A player's cars, items, coins and rating.
    Inventory(PlayerId),
    /// The members of a party, its leader and its invitations.
    Party(PartyId),
}

impl Aggregate {
    /// The filter that selects the events of this aggregate and no others. Every append must use exactly this filter
    /// for its expected sequence. If two appends use different filters, the server can miss a conflict between them.
    pub fn filter(&self) -> String {
        match self {
            // Each player has one subject without wildcards, so the server also detects conflicts within one batch. The
            // same is true for each party.
            Self::Player(id) => format!("garage.player.{id}"),
            Self::Party(id) => format!("garage.party.{id}"),
            Self::Session(id) => format!("garage.session.{id}.>"),
            Self::Inventory(id) => format!("garage.inventory.{id}.>"),
        }
    }

    /// The subject of an event of this aggregate.
    pub fn subject<E: Event>(&self, event: &E) -> String {
        self.subject_of(event.token())
    }

    pub(crate) fn subject_of(&self, token: &str) -> String {
        match self {
            Self::Player(id) => format!("garage.player.{id}"),
            Self::Party(id) => format!("garage.party.{id}"),
            Self::Session(id) => format!("garage.session.{id}.{token}"),
            Self::Inventory(id) => format!("garage.inventory.{id}.{token}"),
        }
    }

    /// The aggregate that a subject of the log belongs to; `None` for any other subject.
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
            ("party", None) => id.parse().ok().map(Self::Party),
            ("session", Some(_)) => id.parse().ok().map(Self::Session),
            ("inventory", Some(_)) => id.parse().ok().map(Self::Inventory),
            _ => None,
        }
    }

    /// Whether all events of the aggregate have one subject. Each of them then carries the whole state, and only the last
    /// one counts.
    pub(crate) const fn has_one_subject(&self) -> bool {
        match self {
            Self::Player(_) | Self::Party(_) => true,
            Self::Session(_) | Self::Inventory(_) => false,
        }
    }

    /// `player`, `session`, `inventory` or `party`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Party(_) => "party",
            Self::Player(_) => "player",
            Self::Session(_) => "session",
            Self::Inventory(_) => "inventory",
        }
    }

    /// The field with the aggregate's id in an event's data.
    pub(crate) const fn id_field(&self) -> &'static str {
        match self {
            Self::Player(_) | Self::Inventory(_) => "player",
            Self::Session(_) => "session",
            Self::Party(_) => "party",
        }
    }

    pub(crate) fn id(&self) -> String {
        match self {
            Self::Player(id) | Self::Inventory(id) => id.to_string(),
            Self::Session(id) => id.to_string(),
            Self::Party(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.id())
    }
}

/// The kind of a report. Each game server sends one report of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReportKind {
    /// [`crate::game::Ready`]
    Ready,
    /// [`crate::game::Finished`]
    Finished,
}

/// A report's subject, for example `report.<session>.<attempt>.ready`. `Display` and `FromStr` convert it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Report {
    pub session: SessionId,
    /// The attempt at starting a game server, from 1.
    pub attempt: u32,
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

/// Selects every report about a session.
pub fn reports_of(session: SessionId) -> String {
    format!("report.{session}.>")
}

/// The inbox prefix of a game server. Replies to its requests arrive on subjects below it.
pub fn game_inbox(session: SessionId, attempt: u32) -> String {
    format!("_INBOX.{session}.{attempt}")
}

/// Why a text is not a valid subject or filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSubject {
    /// It does not have the expected form.
    #[error("{0:?} is not a subject of this kind")]
    Shape(String),
    /// Garage uses its first token.
    #[error("subjects under {0:?} have a meaning in Garage; choose another first token, for example `lab`")]
    Reserved(String),
    /// An id in it is not valid.
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
        // Accept only the form that `Display` writes: `01` and `+1` would be other subjects of the same report.
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

/// The subject on which a session's timer is set.
pub fn timer_set(session: SessionId) -> String {
    format!("timer.set.{session}")
}

/// The subject on which a session's timer fires.
pub fn timer_due(session: SessionId) -> String {
    format!("timer.due.{session}")
}

/// Parses the subject of a timer that fired.
///
/// # Errors
/// [`BadSubject`] if it is not such a subject.
pub fn timer_session(subject: &str) -> Result<SessionId, BadSubject> {
    let id = subject.strip_prefix("timer.due.");
    let id = id.ok_or_else(|| BadSubject::Shape(subject.chars().take(128).collect()))?;
    Ok(id.parse()?)
}

/// The subject of a consumer's dead letters.
pub fn dead(consumer: &str) -> String {
    format!("dead.{consumer}")
}

/// The consumer of a dead letter with this subject; `None` for any other subject.
pub fn dead_of(subject: &str) -> Option<&str> {
    subject.strip_prefix("dead.").filter(|consumer| !consumer.contains('.'))
}

/// The subject for requests to retry a dead letter of a consumer. The consumer's worker answers.
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
    fn a_subject_parses_to_the_aggregate_that_it_was_built_from() {
        let session = Aggregate::Session(SESSION.parse().unwrap());
        let player = Aggregate::Player("p=401".parse().unwrap());
        let inventory = Aggregate::Inventory("p1".parse().unwrap());
        let party = Aggregate::Party(SESSION.parse().unwrap());
        for aggregate in [session, player, inventory, party] {
            assert_eq!(Aggregate::of(&aggregate.subject_of("some-event")), Some(aggregate));
        }
        for foreign in
            ["garage.player.a.b", "garage.session.x.matched", "garage.party.x", "garage", "timer.due.x", "garage.x.y"]
        {
            assert_eq!(Aggregate::of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_subject_parses_to_the_report_that_it_was_built_from() {
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
    fn a_subject_parses_to_the_timer_that_it_was_built_from() {
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
            any::<u128>().prop_map(|id| Aggregate::Party(PartyId::new(Uuid::from_u128(id)))),
        ]
    }

    proptest! {
        #[test]
        fn any_aggregate_survives_a_round_trip_and_is_selected_by_its_filter(
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
        fn any_report_survives_a_round_trip(
            session in any_session(), attempt in 1..=u32::MAX, is_ready in any::<bool>()) {
            let kind = if is_ready { ReportKind::Ready } else { ReportKind::Finished };
            let report = Report { session, attempt, kind };
            prop_assert_eq!(report.to_string().parse(), Ok(report));
        }

        #[test]
        fn a_subject_that_parses_is_built_again_identically(
            subject in "(garage|report|timer)(\\.(player|session|inventory|party|due|[a-z0-9=+]{0,3}|0198c5a0-7b1e-7c3d-8000-0123456789ab)){0,4}",
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
