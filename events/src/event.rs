//! The format of events in the log. Each message is one JSON object, which you can read with `nats stream view` and
//! `jq`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::crash;

/// The message header with the event's type. Readers can use it to skip messages without parsing them.
pub const TYPE_HEADER: &str = "Garage-Type";

/// The events of one kind of aggregate.
pub trait Event: Sized + Clone + Send + Sync + 'static {
    /// The names of all event types, as in [`Envelope::type_name`].
    const TYPES: &'static [&'static str];

    /// The type's name in messages, for example `PodReady`.
    fn type_name(&self) -> &'static str;

    /// The type's name in subjects, for example `pod-ready`.
    fn token(&self) -> &'static str;

    /// The crash point for appending this event. A decision uses the point of its first event.
    fn point(&self) -> crash::Point;

    /// The schema version of the data that this build writes.
    fn version(&self) -> u32 {
        1
    }

    /// The data as JSON, without the aggregate's id, which is added when the event is encoded.
    ///
    /// # Errors
    /// If a field cannot be represented in JSON.
    fn data(&self) -> serde_json::Result<serde_json::Value>;

    /// Parses the data of an event of the given type and schema version.
    ///
    /// # Errors
    /// [`DecodeError`]
    fn decode(type_name: &str, version: u32, data: &str) -> Result<Self, DecodeError>;
}

/// Why a message could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A newer build wrote the message. A decider must stop; a projection may skip and count it.
    #[error("event type {type_name} v{version} is unknown to this build; run one at least as new as the writer's")]
    Unknown {
        type_name: String,
        /// Schema version of the data.
        version: u32,
    },
    /// The message is not valid JSON, or does not have the fields of its type.
    #[error("event cannot be read: {0}")]
    Corrupt(#[from] serde_json::Error),
}

/// The body of a message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// UUID v7. Two messages with the same id are the same event.
    pub id: Uuid,
    /// The event's number within its aggregate, from 1. It starts again at 1 once the log has dropped all events of the
    /// aggregate.
    pub n: u64,
    /// The event's type, for example `Queued`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Schema version of `data`.
    pub v: u32,
    /// When the event was decided, by the clock of the deciding process. Deadlines use the stream's timestamp instead.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Connects related events: the ticket's id until a match is made, then the session's id.
    pub correlation: Uuid,
    /// The id of the event or report that led to this event, if there is one.
    pub cause: Option<Uuid>,
    /// The fields of the event, and its aggregate's id.
    pub data: Box<RawValue>,
}

impl Envelope {
    /// Parses the body of a message.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`] if it is not an envelope.
    pub fn from_slice(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(body)?)
    }

    /// Parses the event in `data`.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn event<E: Event>(&self) -> Result<E, DecodeError> {
        E::decode(&self.type_name, self.v, self.data.get())
    }
}

/// An event with its position in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<E> {
    /// Sequence in the stream.
    pub seq: u64,
    /// The timestamp that the stream gave to the message. It is the only clock that all workers share.
    pub time: OffsetDateTime,
    /// See [`Envelope::id`].
    pub id: Uuid,
    /// See [`Envelope::n`].
    pub n: u64,
    /// See [`Envelope::correlation`].
    pub correlation: Uuid,
    pub event: E,
}

impl<E: Event> Recorded<E> {
    /// Decodes a message: its sequence and timestamp in the stream, and its body.
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

/// Declares the events of an aggregate. It generates an enum with one variant per event struct of the same name. For
/// each event, give its name in subjects and its crash point.
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

    /// Nanosecond precision, within the years 0 to 9999 that RFC 3339 can represent.
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
        fn an_envelope_survives_a_round_trip_through_json(envelope in any_envelope()) {
            let body = serde_json::to_vec(&envelope).unwrap();
            let read = Envelope::from_slice(&body).unwrap();
            prop_assert_eq!(parts(&read), parts(&envelope));
        }

        #[test]
        fn an_unknown_field_of_an_envelope_is_ignored(envelope in any_envelope(), added in any_data()) {
            let mut body = serde_json::to_string(&envelope).unwrap();
            body.insert_str(1, &format!("\"later\":{added},"));
            let read = Envelope::from_slice(body.as_bytes()).unwrap();
            prop_assert_eq!(parts(&read), parts(&envelope));
        }

        #[test]
        fn no_body_makes_the_parser_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Envelope::from_slice(&body);
        }
    }
}
