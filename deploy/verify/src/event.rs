//! Reads a message as an event of an aggregate.

use garage_events::{
    event::{Envelope, Event as _, Recorded},
    id::{PartyId, PlayerId, SessionId},
    inventory,
    jetstream::{
        follow::Message,
        written::{Expected, Written},
    },
    party, player, session,
    subject::Aggregate,
};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::violation::{Rule, Violation};

/// An event, with the data of how it was written.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) time: OffsetDateTime,
    pub(crate) aggregate: Aggregate,
    pub(crate) n: u64,
    pub(crate) decision: Decision,
    /// The last sequence that it expected of its aggregate, or why there is no valid expectation.
    pub(crate) expected: Result<u64, &'static str>,
    pub(crate) payload: Payload,
}

/// The fields that all events of one decision share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    at: OffsetDateTime,
    correlation: Uuid,
    cause: Option<Uuid>,
}

/// The typed data of an event.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Player(player::Event),
    Session(session::Event),
    Inventory(inventory::Event),
    Party(party::Event),
}

/// The player, session or party that the data of an event names.
#[derive(Debug, Deserialize)]
struct Owner {
    player: Option<PlayerId>,
    session: Option<SessionId>,
    party: Option<PartyId>,
}

impl Event {
    /// Reads a message.
    ///
    /// # Errors
    /// A violation with the reason, if the message is not a valid event.
    pub(crate) fn of(message: &Message) -> Result<Self, Violation> {
        let aggregate = Aggregate::of(&message.subject);
        let read =
            aggregate.as_ref().ok_or_else(|| "its subject belongs to no aggregate".into()).and_then(|aggregate| {
                let envelope = Envelope::from_slice(&message.body).map_err(|error| error.to_string())?;
                Self::read(message, aggregate, &envelope)
            });
        read.map_err(|reason| {
            let subject: String = message.subject.chars().take(256).collect();
            let violation = Violation::new(
                Rule::Readable,
                [message.seq],
                format!("the message on {subject} is not a valid event: {reason}"),
            );
            aggregate.iter().fold(violation, Violation::of)
        })
    }

    fn read(message: &Message, aggregate: &Aggregate, envelope: &Envelope) -> Result<Self, String> {
        let payload = match aggregate {
            Aggregate::Player(_) => envelope.event().map(Payload::Player),
            Aggregate::Session(_) => envelope.event().map(Payload::Session),
            Aggregate::Inventory(_) => envelope.event().map(Payload::Inventory),
            Aggregate::Party(_) => envelope.event().map(Payload::Party),
        };
        let payload = payload.map_err(|error| error.to_string())?;
        let expected_subject = match &payload {
            Payload::Player(event) => aggregate.subject(event),
            Payload::Session(event) => aggregate.subject(event),
            Payload::Inventory(event) => aggregate.subject(event),
            Payload::Party(event) => aggregate.subject(event),
        };
        if expected_subject != message.subject {
            return Err(format!("a {} belongs on {expected_subject}", envelope.type_name));
        }
        let owner: Owner = serde_json::from_str(envelope.data.get()).map_err(|error| error.to_string())?;
        let owns = match aggregate {
            Aggregate::Player(id) | Aggregate::Inventory(id) => owner.player.as_ref() == Some(id),
            Aggregate::Session(id) => owner.session.as_ref() == Some(id),
            Aggregate::Party(id) => owner.party.as_ref() == Some(id),
        };
        if !owns {
            return Err(format!("its data names another owner than {aggregate}"));
        }
        let written = Written::of(message.headers.as_ref());
        if written.type_name != Some(&envelope.type_name) {
            return Err(format!("its type header is not {}", envelope.type_name));
        }
        let expected = match written.expected {
            Some(Expected { seq, filter }) if filter == aggregate.filter() => Ok(seq),
            Some(_) => Err("it expects a sequence of another filter than that of its aggregate"),
            None => Err("it expects no sequence of its aggregate"),
        };
        let decision = Decision { at: envelope.at, correlation: envelope.correlation, cause: envelope.cause };
        let (aggregate, n) = (aggregate.clone(), envelope.n);
        Ok(Self { seq: message.seq, time: message.time, aggregate, n, decision, expected, payload })
    }

    /// When it was decided or stored, whichever is later: the two clocks differ.
    pub(crate) fn latest(&self) -> OffsetDateTime {
        self.decision.at.max(self.time)
    }

    /// The type, as in the envelope.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.payload {
            Payload::Player(event) => event.type_name(),
            Payload::Session(event) => event.type_name(),
            Payload::Inventory(event) => event.type_name(),
            Payload::Party(event) => event.type_name(),
        }
    }

    /// The event in the form that the session's fold takes. `None` if it is not an event of a session.
    pub(crate) fn of_session(&self) -> Option<Recorded<session::Event>> {
        let Payload::Session(event) = &self.payload else { return None };
        let Self { seq, time, n, decision: Decision { correlation, .. }, .. } = *self;
        Some(Recorded { seq, time, id: Uuid::nil(), n, correlation, event: event.clone() })
    }
}
