//! A message as an event of an aggregate.

use garage_events::{
    event::{Envelope, Event as _, Recorded},
    id::{PlayerId, SessionId},
    inventory,
    jetstream::{
        follow::Message,
        written::{Expected, Written},
    },
    player, session,
    subject::Aggregate,
};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::violation::{Rule, Violation};

/// An event, and how it was written.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) time: OffsetDateTime,
    pub(crate) aggregate: Aggregate,
    pub(crate) n: u64,
    pub(crate) decision: Decision,
    /// Where its aggregate had to be, if it is the aggregate's own filter that this was about.
    pub(crate) expected: Result<u64, &'static str>,
    pub(crate) what: What,
}

/// What the events of one decision share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    at: OffsetDateTime,
    correlation: Uuid,
    cause: Option<Uuid>,
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Player(player::Event),
    Session(session::Event),
    Inventory(inventory::Event),
}

/// Whose an event says it is.
#[derive(Debug, Deserialize)]
struct Owner {
    player: Option<PlayerId>,
    session: Option<SessionId>,
}

impl Event {
    /// Reads a message.
    ///
    /// # Errors
    /// Why it is no event of this log.
    pub(crate) fn of(message: &Message) -> Result<Self, Violation> {
        let aggregate = Aggregate::of(&message.subject);
        let read = aggregate.as_ref().ok_or_else(|| "it is no aggregate's".into()).and_then(|aggregate| {
            let envelope = Envelope::from_slice(&message.body).map_err(|error| error.to_string())?;
            Self::read(message, aggregate, &envelope)
        });
        read.map_err(|reason| {
            let subject: String = message.subject.chars().take(256).collect();
            let violation =
                Violation::new(Rule::Readable, [message.seq], format!("message on {subject} is no event: {reason}"));
            aggregate.iter().fold(violation, Violation::of)
        })
    }

    fn read(message: &Message, aggregate: &Aggregate, envelope: &Envelope) -> Result<Self, String> {
        let what = match aggregate {
            Aggregate::Player(_) => envelope.event().map(What::Player),
            Aggregate::Session(_) => envelope.event().map(What::Session),
            Aggregate::Inventory(_) => envelope.event().map(What::Inventory),
        };
        let what = what.map_err(|error| error.to_string())?;
        let own = match &what {
            What::Player(event) => aggregate.subject(event),
            What::Session(event) => aggregate.subject(event),
            What::Inventory(event) => aggregate.subject(event),
        };
        if own != message.subject {
            return Err(format!("a {} belongs on {own}", envelope.type_name));
        }
        let owner: Owner = serde_json::from_str(envelope.data.get()).map_err(|error| error.to_string())?;
        let owns = match aggregate {
            Aggregate::Player(id) | Aggregate::Inventory(id) => owner.player.as_ref() == Some(id),
            Aggregate::Session(id) => owner.session.as_ref() == Some(id),
        };
        if !owns {
            return Err(format!("its data is not of {aggregate}"));
        }
        let written = Written::of(message.headers.as_ref());
        if written.type_name != Some(&envelope.type_name) {
            return Err(format!("its header does not say that it is a {}", envelope.type_name));
        }
        let expected = match written.expected {
            Some(Expected { seq, filter }) if filter == aggregate.filter() => Ok(seq),
            Some(_) => Err("it expected something of another filter than its aggregate's"),
            None => Err("it expected nothing of its aggregate"),
        };
        let decision = Decision { at: envelope.at, correlation: envelope.correlation, cause: envelope.cause };
        let (aggregate, n) = (aggregate.clone(), envelope.n);
        Ok(Self { seq: message.seq, time: message.time, aggregate, n, decision, expected, what })
    }

    /// Its type, as messages name it.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.what {
            What::Player(event) => event.type_name(),
            What::Session(event) => event.type_name(),
            What::Inventory(event) => event.type_name(),
        }
    }

    /// The event of a session, as its fold takes it.
    pub(crate) fn of_session(&self) -> Option<Recorded<session::Event>> {
        let What::Session(event) = &self.what else { return None };
        let Self { seq, time, n, decision: Decision { correlation, .. }, .. } = *self;
        Some(Recorded { seq, time, id: Uuid::nil(), n, correlation, event: event.clone() })
    }
}
