//! Events as the log holds them: one JSON object a message, readable with `nats stream view` and `jq`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::crash;

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

    /// Where a process that appends it can be made to die: the point of the decisions that it leads, or is a part of.
    fn point(&self) -> crash::Point;

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
    ($(#[$doc:meta])* $aggregate:literal {
        $($(#[$event_doc:meta])* $name:ident = $token:literal at $point:ident),* $(,)?
    }) => {
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

            fn point(&self) -> $crate::crash::Point {
                match self { $(Self::$name(_) => $crate::crash::Point::$point),* }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn any_data() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,6}", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    /// To the nanosecond, in the years 0 to 9999 that RFC 3339 can tell.
    fn any_time() -> impl Strategy<Value = OffsetDateTime> {
        (-62_167_219_200..=253_402_300_799i64, 0..1_000_000_000u32).prop_map(|(seconds, nanos)| {
            OffsetDateTime::from_unix_timestamp(seconds).unwrap().replace_nanosecond(nanos).unwrap()
        })
    }

    prop_compose! {
        fn any_envelope()(
            id in any::<u128>(),
            n in any::<u64>(),
            type_name in "\\PC{0,20}",
            v in any::<u32>(),
            at in any_time(),
            correlation in any::<u128>(),
            cause in any::<Option<u128>>(),
            data in any_data(),
        ) -> Envelope {
            Envelope {
                id: Uuid::from_u128(id),
                n,
                type_name,
                v,
                at,
                correlation: Uuid::from_u128(correlation),
                cause: cause.map(Uuid::from_u128),
                data: serde_json::value::to_raw_value(&data).unwrap(),
            }
        }
    }

    fn parts(envelope: &Envelope) -> (Uuid, u64, &str, u32, OffsetDateTime, Uuid, Option<Uuid>, &str) {
        let Envelope { id, n, type_name, v, at, correlation, cause, data } = envelope;
        (*id, *n, type_name, *v, *at, *correlation, *cause, data.get())
    }

    proptest! {
        #[test]
        fn an_envelope_comes_back(envelope in any_envelope()) {
            let body = serde_json::to_vec(&envelope).unwrap();
            let read = Envelope::from_slice(&body).unwrap();
            prop_assert_eq!(parts(&read), parts(&envelope));
        }

        #[test]
        fn what_a_newer_build_adds_to_an_envelope_is_ignored(envelope in any_envelope(), added in any_data()) {
            let mut body = serde_json::to_string(&envelope).unwrap();
            body.insert_str(1, &format!("\"later\":{added},"));
            let read = Envelope::from_slice(body.as_bytes()).unwrap();
            prop_assert_eq!(parts(&read), parts(&envelope));
        }

        #[test]
        fn no_body_makes_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Envelope::from_slice(&body);
        }
    }
}
