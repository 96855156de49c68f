//! Who a client is: a bearer token, JWT with HS256, made by the studio's identity provider with a key that the gateway
//! shares. Its `sub` is the player, whatever text that is; `exp` is required, `nbf` is honoured. It may say the player's
//! `rank`, a whole number; with one that is none of Garage's ranks the token is not valid, for whatever it is shown.
//!
//! While that key is rotated there are two. A token may say by its `kid` which it is of: the key's id, 16 hex digits
//! ([`key_id`] of the kind `jwt`). One that says nothing, or has a name of the provider's own, is tried with both.

use std::{fmt, path::Path, time::Duration};

use garage_events::{
    env::{Env, System},
    game::{Secret, hex, key_id},
    id::PlayerId,
    player::RANKS,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The shortest key: as long as what HS256 makes of it (RFC 7518, section 3.2).
const MIN_KEY: usize = 32;

/// How far the issuer's clock may be off, in seconds.
const LEEWAY: u64 = 5;

/// The longest token looked at; the header buffer bounds it too.
const MAX_TOKEN: usize = 4 << 10;

/// Signs and verifies players' tokens. `Debug` does not show it.
#[derive(Clone)]
pub struct Key {
    id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why there is no key or no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the tokens' key: {0:#}")]
    Read(anyhow::Error),
    /// The key can be guessed.
    #[error("the tokens' key is {0} bytes long; at least {MIN_KEY}, random ones")]
    Short(usize),
    /// The token cannot be made.
    #[error("cannot sign a token: {0}")]
    Sign(String),
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It shows no token.
    #[error("a bearer token is required")]
    Missing,
    /// Its token is past its end.
    #[error("the token has expired")]
    Expired,
    /// Its token is not of ours, or names nobody.
    #[error("the token is not valid")]
    Invalid,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who shows it.
    pub player: PlayerId,
    /// How good he is, if the identity provider knows.
    pub rank: Option<i32>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<i32>,
}

/// Whatever a token says of the rank: it is read before `exp` is judged, and who has an old token is to hear of that.
#[derive(Deserialize)]
struct Subject {
    sub: String,
    rank: Option<Value>,
}

impl Key {
    /// Reads a key from a file, without the line's end.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Short`]
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::new(&garage_worker::config::secret(path).map_err(Error::Read)?)
    }

    /// Makes a key of a secret.
    ///
    /// # Errors
    /// [`Error::Short`]
    pub fn new(secret: &Secret) -> Result<Self, Error> {
        let bytes = secret.expose().as_bytes();
        if bytes.len() < MIN_KEY {
            return Err(Error::Short(bytes.len()));
        }
        // HS256 alone: with a list that a token may choose from, `none` or a public key as secret would do.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        // The key is the studio's own; its tokens may name any audience.
        validation.validate_aud = false;
        Ok(Self {
            id: hex(&key_id("jwt", bytes)),
            signing: EncodingKey::from_secret(bytes),
            verifying: DecodingKey::from_secret(bytes),
            validation,
        })
    }

    /// What a token says.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn verify(&self, token: &str) -> Result<Identity, Refused> {
        if token.len() > MAX_TOKEN {
            return Err(Refused::Invalid);
        }
        let claims = jsonwebtoken::decode::<Subject>(token, &self.verifying, &self.validation);
        let claims = claims.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Refused::Expired,
            _ => Refused::Invalid,
        })?;
        let Subject { sub, rank } = claims.claims;
        let player = PlayerId::from_foreign(&sub).ok().ok_or(Refused::Invalid)?;
        let rank = rank.map(i32::deserialize).transpose().ok().ok_or(Refused::Invalid)?;
        let known = rank.is_none_or(|rank| RANKS.contains(&rank));
        if known { Ok(Identity { player, rank }) } else { Err(Refused::Invalid) }
    }
}

/// The keys that players' tokens are verified with: the one in use and, while it is rotated, another besides.
#[derive(Debug, Clone)]
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// Reads them from their files.
    pub(crate) fn load(key: &Path, also: Option<&Path>) -> Result<Self, Error> {
        [key].into_iter().chain(also).map(Key::load).collect::<Result<_, _>>().map(Self)
    }

    /// What a token of one of them says.
    pub(crate) fn verify(&self, token: &str) -> Result<Identity, Refused> {
        // What a token says of its key only chooses among ours.
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid);
        if let Some(key) = self.0.iter().find(|key| kid.as_ref() == Some(&key.id)) {
            return key.verify(token);
        }
        let tried = self.0.iter().map(|key| key.verify(token));
        let known = tried.reduce(|one, other| if one == Err(Refused::Invalid) { other } else { one });
        known.unwrap_or(Err(Refused::Invalid))
    }
}

/// Makes a player's token, as an identity provider would: `player` is the foreign name. For tests, bots and
/// `garage token`.
///
/// # Errors
/// [`Error::Sign`], also when the name makes no player.
pub fn sign_token(key: &Key, player: &str, rank: Option<i32>, ttl: Duration) -> Result<Secret, Error> {
    let failed = |error: &dyn fmt::Display| Error::Sign(error.to_string());
    PlayerId::from_foreign(player).map_err(|error| failed(&error))?;
    let exp = (System.now() + ttl).unix_timestamp();
    let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::HS256) };
    let token = jsonwebtoken::encode(&header, &Claims { sub: player, exp, rank }, &key.signing);
    token.map(Secret::new).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn key(fill: &str) -> Key {
        Key::new(&Secret::new(fill.repeat(32))).unwrap()
    }

    fn signed(claims: &serde_json::Value, algorithm: Algorithm) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key("a").signing).unwrap()
    }

    #[test]
    fn a_token_names_its_player() {
        for rank in [None, Some(1_200), Some(-100_000), Some(100_000)] {
            let token = sign_token(&key("a"), "ann@example.org", rank, HOUR).unwrap();
            let identity = key("a").verify(token.expose()).unwrap();
            assert_eq!((&*identity.player.to_foreign(), identity.rank), ("ann@example.org", rank));
        }
    }

    #[test]
    fn a_token_of_another_key_is_not_valid() {
        let token = sign_token(&key("b"), "ann", None, HOUR).unwrap();
        assert_eq!(key("a").verify(token.expose()), Err(Refused::Invalid));
    }

    #[test]
    fn while_keys_are_rotated_a_token_of_either_names_its_player() {
        let keys = Keys(vec![key("a"), key("b")]);
        for fill in ["a", "b"] {
            let named = sign_token(&key(fill), "ann", None, HOUR).unwrap();
            assert_eq!(keys.verify(named.expose()).unwrap().player.as_str(), "ann");
            let exp = (System.now() + HOUR).unix_timestamp();
            for kid in [None, Some("the provider's own".to_owned())] {
                let header = Header { kid, ..Header::new(Algorithm::HS256) };
                let sign = |claims| jsonwebtoken::encode(&header, &claims, &key(fill).signing).unwrap();
                assert_eq!(keys.verify(&sign(json!({"sub": "ann", "exp": exp}))).unwrap().player.as_str(), "ann");
                let old = sign(json!({"sub": "ann", "exp": exp - 7_200}));
                assert_eq!(keys.verify(&old), Err(Refused::Expired), "it is known, whichever key it is of");
            }
        }
        let third = sign_token(&key("c"), "ann", None, HOUR).unwrap();
        assert_eq!(keys.verify(third.expose()), Err(Refused::Invalid));
        assert_eq!(keys.verify("x"), Err(Refused::Invalid));
    }

    #[test]
    fn a_token_that_names_a_key_is_of_that_key() {
        let keys = Keys(vec![key("a"), key("b")]);
        let header = Header { kid: Some(key("b").id), ..Header::new(Algorithm::HS256) };
        let claims = json!({"sub": "ann", "exp": (System.now() + HOUR).unix_timestamp()});
        let sign = |fill| jsonwebtoken::encode(&header, &claims, &key(fill).signing).unwrap();
        assert!(keys.verify(&sign("b")).is_ok());
        assert_eq!(keys.verify(&sign("a")), Err(Refused::Invalid));
    }

    #[test]
    fn only_whole_claims_under_hs256_count() {
        let exp = (System.now() + HOUR).unix_timestamp();
        let past = exp - 7_200;
        assert!(key("a").verify(&signed(&json!({"sub": "ann", "exp": exp, "aud": "x"}), Algorithm::HS256)).is_ok());
        let unknown = signed(&json!({"sub": "ann", "exp": exp, "rank": null}), Algorithm::HS256);
        assert_eq!(key("a").verify(&unknown).unwrap().rank, None);
        for (claims, algorithm, why) in [
            (json!({"sub": "ann", "exp": past}), Algorithm::HS256, Refused::Expired),
            (json!({"sub": "ann"}), Algorithm::HS256, Refused::Invalid),
            (json!({"exp": exp}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "", "exp": exp}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "a".repeat(129), "exp": exp}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp, "nbf": exp}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp}), Algorithm::HS512, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp, "rank": 100_001}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp, "rank": -100_001}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp, "rank": 1.5}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": exp, "rank": "1200"}), Algorithm::HS256, Refused::Invalid),
            (json!({"sub": "ann", "exp": past, "rank": "1200"}), Algorithm::HS256, Refused::Expired),
        ] {
            assert_eq!(key("a").verify(&signed(&claims, algorithm)), Err(why), "{claims} {algorithm:?}");
        }
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let none = format!("{}.{}.", part(json!({"alg": "none"})), part(json!({"sub": "ann", "exp": exp})));
        for bad in [none.as_str(), "", "x", "a.b.c", &"a".repeat(MAX_TOKEN + 1)] {
            assert_eq!(key("a").verify(bad), Err(Refused::Invalid));
        }
    }

    #[test]
    fn a_short_key_is_refused_and_no_key_is_shown() {
        assert!(matches!(Key::new(&Secret::new("a".repeat(31))), Err(Error::Short(31))));
        assert_eq!(format!("{:?}", key("a")), "Key(…)");
    }
}
