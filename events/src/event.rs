//! Events as the log holds them: one JSON object a message, readable with `nats stream view` and `jq`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

/// The header that repeats an event's type, so that readers can skip by it without parsing.
pub const TYPE_HEADER: &str = "Garage-Type";

/// The events of one kind of aggregate.
pub trait Event: Sized + Clone + Send + Sync + 'static {
    /// Every type, as messages name them.
    const TYPES: &'static [&'static str];

    /// The type as messages name it: `PodReady`.
    fn type_name(&self) -> &'static str;

    /// The type as subjects name it: `pod-ready`.
    fn token(&self) -> &'static str;

    /// The version of the data's schema that this build writes.
    fn version(&self) -> u32 {
        1
    }

    /// The data as JSON, without the aggregate's own id.
    ///
    /// # Errors
    /// When a field cannot be written as JSON.
    fn data(&self) -> serde_json::Result<serde_json::Value>;

    /// Reads the data of a type.
    ///
    /// # Errors
    /// [`DecodeError`]
    fn decode(type_name: &str, version: u32, data: &str) -> Result<Self, DecodeError>;
}

/// A message that is no event this build can read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer build. A decider must stop; a projection may skip and count it.
    #[error("event type {type_name} v{version} is unknown to this build; run one at least as new as the writer's")]
    Unknown {
        /// As the message names it.
        type_name: String,
        /// Of the data's schema.
        version: u32,
    },
    /// Not what its type says.
    #[error("event cannot be read: {0}")]
    Corrupt(#[from] serde_json::Error),
}

/// The message's body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// UUID v7; two messages with one id are one event.
    pub id: Uuid,
    /// The event's number in its aggregate since the first retained one of it, from 1.
    pub n: u64,
    /// For example `Queued`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Version of the data's schema.
    pub v: u32,
    /// When it was decided, by the decider's clock. Deadlines go by the stream's timestamp instead.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Shared by all events of one matter: the ticket until a match is made, from then on the session.
    pub correlation: Uuid,
    /// The event that this one answers.
    pub cause: Option<Uuid>,
    /// The event itself, and its aggregate's id.
    pub data: Box<RawValue>,
}

impl Envelope {
    /// Reads a message's body.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`] when it is no envelope.
    pub fn from_slice(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(body)?)
    }

    /// Reads the event in it.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn event<E: Event>(&self) -> Result<E, DecodeError> {
        E::decode(&self.type_name, self.v, self.data.get())
    }
}

/// An event with its place in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<E> {
    /// Its sequence in the stream.
    pub seq: u64,
    /// The stream's timestamp of it: the one clock that all workers share.
    pub time: OffsetDateTime,
    /// Its id.
    pub id: Uuid,
    /// Its number in the aggregate.
    pub n: u64,
    /// See [`Envelope::correlation`].
    pub correlation: Uuid,
    /// What happened.
    pub event: E,
}

impl<E: Event> Recorded<E> {
    /// Reads the event of a message.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn decode(seq: u64, time: OffsetDateTime, body: &[u8]) -> Result<Self, DecodeError> {
        let envelope = Envelope::from_slice(body)?;
        let event = envelope.event()?;
        Ok(Self { seq, time, id: envelope.id, n: envelope.n, correlation: envelope.correlation, event })
    }
}

pub(crate) fn decode_data<T: DeserializeOwned>(data: &str) -> Result<T, DecodeError> {
    Ok(serde_json::from_str(data)?)
}

/// Declares an aggregate's events: an enum over structs of the same names, with the token of each in subjects.
macro_rules! events {
    ($(#[$doc:meta])* $aggregate:literal { $($(#[$event_doc:meta])* $name:ident = $token:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event {
            $($(#[$event_doc])* $name($name)),*
        }

        impl $crate::event::Event for Event {
            const TYPES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn type_name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),* }
            }

            fn token(&self) -> &'static str {
                match self { $(Self::$name(_) => $token),* }
            }

            fn data(&self) -> serde_json::Result<serde_json::Value> {
                match self { $(Self::$name(data) => serde_json::to_value(data)),* }
            }

            fn decode(type_name: &str, version: u32, data: &str) -> Result<Self, $crate::event::DecodeError> {
                match (type_name, version) {
                    $((stringify!($name), 1) => $crate::event::decode_data(data).map(Self::$name),)*
                    _ => Err($crate::event::DecodeError::Unknown { type_name: type_name.into(), version }),
                }
            }
        }

        $(impl From<$name> for Event {
            fn from(event: $name) -> Self {
                Self::$name(event)
            }
        })*
    };
}
pub(crate) use events;
