//! Identifiers. Each one is a newtype that checks its text when it is parsed. Each one is safe to use as a token of a
//! NATS subject and as a part of a Redis key.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::game::hex;

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
const PLAYER_RULE: &str = "1 to 128 of A-Z, a-z, 0-9, _ and -, any other byte as =XX; or == and a SHA-256 in hex";
const FOREIGN_RULE: &str = "1 to 255 characters";
const UUID_RULE: &str = "a UUID";

/// The maximum length of an escaped player id, in characters. A longer one is replaced by a hash.
const PLAYER_MAX: usize = 128;

/// The maximum length of an identity provider's name of a player, in characters: the limit that OpenID Connect sets for
/// the claim `sub`. UTF-8 needs up to 1,020 bytes for it.
pub const FOREIGN_MAX: usize = 255;

/// How the id of a player with a long name begins. The hash follows. An escaped name never contains it, because two hex
/// digits follow each `=`.
const HASHED: &str = "==";

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
uuid_id!(
    /// A party: players who queue together and stay together after the match.
    PartyId,
    "party"
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

/// A player. The id is the name that the studio's identity provider uses, escaped so that it is one part of a NATS
/// subject. If the escaped name is too long, the id is a hash of the name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlayerId(Arc<str>);

impl PlayerId {
    /// The id as text that can be shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Creates the id from the identity provider's name (the `sub` of a token). `A-Z`, `a-z`, `0-9`, `_` and `-` stay;
    /// every other byte of the UTF-8 text becomes `=XX`. If this has more than 128 characters, the id is instead `==`
    /// followed by the SHA-256 of the name in lower-case hex. Different names always have different ids.
    ///
    /// # Errors
    /// [`Invalid`] if the name is empty, or longer than [`FOREIGN_MAX`] characters.
    pub fn from_foreign(name: &str) -> Result<Self, Invalid> {
        use fmt::Write;
        if name.is_empty() || name.chars().nth(FOREIGN_MAX).is_some() {
            return Err(Invalid::new("player", name, FOREIGN_RULE));
        }
        let mut escaped = String::with_capacity(name.len());
        for byte in name.bytes() {
            if plain(byte) {
                escaped.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "={byte:02X}");
            }
        }
        if escaped.len() > PLAYER_MAX {
            escaped = format!("{HASHED}{}", hex(&Sha256::digest(name)));
        }
        Ok(Self(escaped.into()))
    }

    /// The identity provider's name of the player; `None` if the id is a hash of it.
    pub fn to_foreign(&self) -> Option<String> {
        unescape(&self.0)
    }

    /// The escaped form, which is one token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
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
        let escaped = !text.is_empty() && text.len() <= PLAYER_MAX && unescape(text).is_some();
        let fits = escaped || text.strip_prefix(HASHED).is_some_and(is_hash);
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
        let hash = "0123456789abcdef".repeat(4);
        for bad in [
            "",
            "a.b",
            "a*",
            "a>",
            "a b",
            "=",
            "=4",
            "=zz",
            "=41",
            "=c3=a9",
            "==",
            "==41",
            &format!("=={}", &hash[1..]),
            &format!("=={hash}0"),
            &format!("=={}", hash.to_uppercase()),
            &format!("a=={hash}"),
        ] {
            assert!(bad.parse::<PlayerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_of_up_to_255_characters_has_an_id_and_a_longer_one_has_none() {
        for character in ["a", "@", "é", "😀"] {
            assert!(PlayerId::from_foreign(&character.repeat(255)).is_ok(), "{character}");
            assert!(PlayerId::from_foreign(&character.repeat(256)).is_err(), "{character}");
        }
        assert!(PlayerId::from_foreign("").is_err());
    }

    #[test]
    fn a_name_that_fits_is_escaped_and_a_longer_one_is_hashed() {
        for (fits, longer) in [("a".repeat(128), "a".repeat(129)), ("@".repeat(42), "@".repeat(43))] {
            let id = PlayerId::from_foreign(&fits).unwrap();
            assert_eq!((id.as_str(), id.to_foreign()), (&*fits.replace('@', "=40"), Some(fits)));
            let id = PlayerId::from_foreign(&longer).unwrap();
            assert_eq!((id.as_str().len(), id.to_foreign()), (66, None));
            assert_eq!(id.as_str().parse::<PlayerId>().unwrap(), id);
        }
        let id = PlayerId::from_foreign(&"a".repeat(129)).unwrap();
        // printf 'a%.0s' $(seq 129) | sha256sum
        assert_eq!(id.as_str(), "==c12cb024a2e5551cca0e08fce8f1c5e314555cc3fef6329ee994a3db752166ae");
    }

    #[test]
    fn a_name_that_looks_like_the_id_of_a_long_name_is_another_player() {
        let long = PlayerId::from_foreign(&"a".repeat(129)).unwrap();
        let lookalike = PlayerId::from_foreign(long.as_str()).unwrap();
        assert_ne!(lookalike, long);
        assert_eq!(lookalike.to_foreign().as_deref(), Some(long.as_str()));
    }

    proptest! {
        // Ten characters always fit: a character has up to 4 bytes, and each byte becomes up to 3 characters.
        #[test]
        fn a_foreign_name_survives_escaping_and_unescaping(name in "\\PC{1,10}") {
            let id = PlayerId::from_foreign(&name).unwrap();
            prop_assert_eq!(id.to_foreign(), Some(name));
            prop_assert!(!id.as_str().contains(['.', '*', '>', ' ']));
            prop_assert_eq!(id.as_str().parse::<PlayerId>().unwrap(), id);
        }

        #[test]
        fn different_names_have_different_ids(one in "[ab@=é]{1,255}", other in "[ab@=é]{1,255}") {
            let id = |name: &str| PlayerId::from_foreign(name).unwrap();
            prop_assert_eq!(id(&one) == id(&other), one == other);
            prop_assert_eq!(id(&one).as_str().parse::<PlayerId>().unwrap(), id(&one));
        }
    }

    #[test]
    fn any_bytes_are_an_id_with_the_same_spelling_or_a_short_error() {
        fn is<T: FromStr<Err = Invalid> + fmt::Display>(text: &str, max: usize) -> bool {
            match text.parse::<T>() {
                Ok(id) => {
                    assert_eq!(id.to_string(), text);
                    assert!((1..=max).contains(&text.len()) && !text.contains(['.', '*', '>', ' ']));
                    true
                }
                Err(error) => {
                    assert!(error.to_string().len() <= 1_000);
                    false
                }
            }
        }
        let valid = ["ranked", "0198c5a0-7b1e-7c3d-8000-0123456789ab", "ann=40example=2Eorg"];
        let hashed = PlayerId::from_foreign(&"é".repeat(FOREIGN_MAX)).unwrap().to_string();
        garage_fuzz::feed(&[valid[0], valid[1], valid[2], &hashed], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            match PlayerId::from_foreign(&text) {
                Ok(id) => assert!(is::<PlayerId>(id.as_str(), PLAYER_MAX), "{id}"),
                Err(error) => assert!(error.to_string().len() <= 1_000),
            }
            let names = [is::<QueueName>, is::<Region>, is::<CarId>, is::<ItemId>, is::<Slot>].map(|is| is(&text, 32));
            let ids = [is::<TicketId>(&text, 36), is::<SessionId>(&text, 36), is::<PlayerId>(&text, PLAYER_MAX)];
            names.contains(&true) || ids.contains(&true)
        });
    }
}
