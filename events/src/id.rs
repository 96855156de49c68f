//! Identifiers. Each one is a newtype that checks its text when it is parsed. Each one is safe to use as a token of a
//! NATS subject and as a part of a Redis key.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// The text is not a valid identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct Invalid {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

impl Invalid {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        // The text can have any length, so the message contains only its beginning.
        Self { kind, text: text.chars().take(64).collect(), rule }
    }
}

const NAME_RULE: &str = "1 to 32 of a-z, 0-9 and -, starting with a-z";
const PLAYER_RULE: &str = "1 to 128 of A-Z, a-z, 0-9, _ and -, any other byte as =XX";
const UUID_RULE: &str = "a UUID";

/// The maximum length of an escaped player id, in characters.
const PLAYER_MAX: usize = 128;

macro_rules! text_form {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// The id as a UUID.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                // Accept only the hyphenated lower-case form: two spellings of an id would be two subjects.
                let id = Uuid::try_parse(text).ok().filter(|id| {
                    id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text
                });
                id.map(Self).ok_or_else(|| Invalid::new($kind, text, UUID_RULE))
            }
        }

        text_form!($name);
    };
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as text that can be shared.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                let fits = text.len() <= 32
                    && text.bytes().all(legal)
                    && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
                if fits { Ok(Self(text.into())) } else { Err(Invalid::new($kind, text, NAME_RULE)) }
            }
        }

        text_form!($name);
    };
}

uuid_id!(
    /// A player's request to be matched, from entering the queue until it ends.
    TicketId,
    "ticket"
);
uuid_id!(
    /// A session: one match, from the matchmaker's decision until it is closed.
    SessionId,
    "session"
);
name_id!(
    /// A queue of the matchmaker, named in the queues file.
    QueueName,
    "queue"
);
name_id!(
    /// A region in which game servers run.
    Region,
    "region"
);
name_id!(
    /// A car of the catalogue.
    CarId,
    "car"
);
name_id!(
    /// An item of the catalogue.
    ItemId,
    "item"
);
name_id!(
    /// A place on a car for one item, for example `turbo`.
    Slot,
    "slot"
);

/// A player. It is the name that the studio's identity provider uses, escaped so that it is one token.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlayerId(Arc<str>);

impl PlayerId {
    /// The id as text that can be shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Creates the id from the identity provider's name (the `sub` of a token). `A-Z`, `a-z`, `0-9`, `_` and `-` stay;
    /// every other byte of the UTF-8 text becomes `=XX`. [`PlayerId::to_foreign`] reverses this.
    ///
    /// # Errors
    /// [`Invalid`] if the name is empty, or longer than 128 characters after escaping.
    pub fn from_foreign(name: &str) -> Result<Self, Invalid> {
        use fmt::Write;
        let mut escaped = String::with_capacity(name.len());
        for byte in name.bytes() {
            if plain(byte) {
                escaped.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "={byte:02X}");
            }
        }
        if escaped.is_empty() || escaped.len() > PLAYER_MAX {
            return Err(Invalid::new("player", name, PLAYER_RULE));
        }
        Ok(Self(escaped.into()))
    }

    /// The identity provider's name of the player.
    pub fn to_foreign(&self) -> String {
        // The default is never used: the constructors accept only texts that `unescape` can read.
        unescape(&self.0).unwrap_or_default()
    }

    /// The escaped form, which is one token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut name = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'=' {
            let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_lowercase());
            let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
            let value = u8::try_from(value).ok()?;
            // If a plain byte could also be escaped, a player would have two ids.
            if plain(value) {
                return None;
            }
            name.push(value);
        } else if plain(byte) {
            name.push(byte);
        } else {
            return None;
        }
    }
    String::from_utf8(name).ok()
}

impl fmt::Display for PlayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for PlayerId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = !text.is_empty() && text.len() <= PLAYER_MAX && unescape(text).is_some();
        if fits { Ok(Self(text.into())) } else { Err(Invalid::new("player", text, PLAYER_RULE)) }
    }
}

text_form!(PlayerId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_lower_case_and_short() {
        for good in ["ranked", "eu-west-1", "a"] {
            assert_eq!(good.parse::<QueueName>().unwrap().as_str(), good);
        }
        for bad in ["", "1st", "Ranked", "a.b", "a*", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<QueueName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_session_has_one_spelling() {
        let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        assert_eq!(id.parse::<SessionId>().unwrap().to_string(), id);
        for bad in ["0198C5A0-7B1E-7C3D-8000-0123456789AB", "0198c5a07b1e7c3d80000123456789ab", "x", ""] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_player_id_refuses_a_text_that_is_not_one_token() {
        for bad in ["", "a.b", "a*", "a>", "a b", "=", "=4", "=zz", "=41", "=c3=a9"] {
            assert!(bad.parse::<PlayerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_foreign_name_that_is_too_long_after_escaping_is_refused() {
        for (longest, longer) in [("a".repeat(128), "a".repeat(129)), ("@".repeat(42), "@".repeat(43))] {
            assert!(PlayerId::from_foreign(&longest).is_ok(), "{longest}");
            assert!(PlayerId::from_foreign(&longer).is_err(), "{longer}");
        }
        assert!(PlayerId::from_foreign("").is_err());
    }

    proptest! {
        // Ten characters always fit: a character has up to 4 bytes, and each byte becomes up to 3 characters.
        #[test]
        fn a_foreign_name_survives_escaping_and_unescaping(name in "\\PC{1,10}") {
            let id = PlayerId::from_foreign(&name).unwrap();
            prop_assert_eq!(id.to_foreign(), name);
            prop_assert!(!id.as_str().contains(['.', '*', '>', ' ']));
            prop_assert_eq!(id.as_str().parse::<PlayerId>().unwrap(), id);
        }
    }
}
