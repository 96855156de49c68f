//! Players' tokens: a bearer token is a JWT with HS256, signed by the studio's identity provider with a key that it
//! shares with the gateway. Its claims are:
//!
//! - `sub`, required: the player, as any text.
//! - `exp`, required, and `nbf`: when the token is valid.
//! - `rank`: the player's rank, a whole number. A token with a rank outside of [`RANKS`] is not valid for any request.
//! - `scope`: [`GROUPS`] for the studio's own backend. Its `sub` is not a player.
//! - any others: values for attributes of rule sets, if the queues file names them.
//!
//! During a rotation the gateway accepts two keys. The `kid` in a token's header can name one of them by its id: 16 hex
//! digits, [`key_id`] of the kind `jwt`. A token without `kid`, or with an unknown one, is tried with both keys.

use std::{fmt, path::Path, time::Duration};

use garage_events::{
    env::{Env, System},
    game::{Secret, hex, key_id},
    id::PlayerId,
    player::RANKS,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The minimum length of a key, in bytes: the length of an HS256 signature (RFC 7518, section 3.2).
const MIN_KEY: usize = 32;

/// The tolerated difference to the issuer's clock, in seconds.
const LEEWAY: u64 = 5;

/// The scope of tokens that queue groups of players.
pub const GROUPS: &str = "matchmaking:groups";

/// The maximum length of a token, in bytes.
const MAX_TOKEN: usize = 4 << 10;

/// A key that signs and verifies players' tokens. Its `Debug` output does not contain the secret.
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

/// Why a key cannot be loaded, or a token cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the key for players' tokens: {0:#}")]
    Read(anyhow::Error),
    /// The key has this many bytes, which are too few.
    #[error("the key for players' tokens has {0} bytes; use at least {MIN_KEY} random bytes")]
    Short(usize),
    #[error("cannot sign a token: {0}")]
    Sign(String),
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has no token.
    #[error("a bearer token is required; send it in the Authorization header")]
    Missing,
    #[error("the token has expired; get a new one from the identity provider")]
    Expired,
    /// The signature or a claim of its token is wrong.
    #[error("the token is not valid; check its signature, sub, exp, nbf and rank")]
    Invalid,
}

/// The content of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub player: PlayerId,
    /// Absent if the token has no `rank`.
    pub rank: Option<i32>,
    /// The claims that the gateway does not use itself.
    pub claims: Map<String, Value>,
}

impl Identity {
    /// Whether the token has a scope. A token can have several, with spaces between them (RFC 8693, section 4.2).
    pub fn has_scope(&self, scope: &str) -> bool {
        let scopes = self.claims.get("scope").and_then(Value::as_str).unwrap_or_default();
        scopes.split(' ').any(|one| one == scope)
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
}

/// The claims that are read. `rank` can be any JSON value here, because the claims are parsed before `exp` is checked:
/// an expired token with a wrong rank must be reported as expired.
#[derive(Deserialize)]
struct UncheckedClaims {
    sub: String,
    rank: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Key {
    /// Reads a key from a file. Ignores a newline at the end.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Short`]
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::new(&garage_worker::config::secret(path).map_err(Error::Read)?)
    }

    /// Makes a key from the secret's bytes.
    ///
    /// # Errors
    /// [`Error::Short`]
    pub fn new(secret: &Secret) -> Result<Self, Error> {
        let bytes = secret.expose().as_bytes();
        if bytes.len() < MIN_KEY {
            return Err(Error::Short(bytes.len()));
        }
        // Accept only HS256. If a token could choose the algorithm, it could choose `none`.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        // Any audience is accepted, because the key belongs to the studio.
        validation.validate_aud = false;
        Ok(Self {
            id: hex(&key_id("jwt", bytes)),
            signing: EncodingKey::from_secret(bytes),
            verifying: DecodingKey::from_secret(bytes),
            validation,
        })
    }

    /// Checks a token, and returns its content.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn verify(&self, token: &str) -> Result<Identity, Refused> {
        if token.len() > MAX_TOKEN {
            return Err(Refused::Invalid);
        }
        let claims = jsonwebtoken::decode::<UncheckedClaims>(token, &self.verifying, &self.validation);
        let claims = claims.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Refused::Expired,
            _ => Refused::Invalid,
        })?;
        let UncheckedClaims { sub, rank, others } = claims.claims;
        let player = PlayerId::from_foreign(&sub).ok().ok_or(Refused::Invalid)?;
        let rank = rank.map(i32::deserialize).transpose().ok().ok_or(Refused::Invalid)?;
        let in_range = rank.is_none_or(|rank| RANKS.contains(&rank));
        if in_range { Ok(Identity { player, rank, claims: others }) } else { Err(Refused::Invalid) }
    }
}

/// The keys that verify players' tokens: one, or two during a rotation.
#[derive(Debug, Clone)]
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// Reads the keys from their files.
    pub(crate) fn load(key: &Path, also: Option<&Path>) -> Result<Self, Error> {
        [key].into_iter().chain(also).map(Key::load).collect::<Result<_, _>>().map(Self)
    }

    /// Checks a token with the keys, and returns its content.
    pub(crate) fn verify(&self, token: &str) -> Result<Identity, Refused> {
        // The token's header is not verified yet. It only selects one of the keys.
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid);
        if let Some(key) = self.0.iter().find(|key| kid.as_ref() == Some(&key.id)) {
            return key.verify(token);
        }
        let tried = self.0.iter().map(|key| key.verify(token));
        let result = tried.reduce(|one, other| if one == Err(Refused::Invalid) { other } else { one });
        result.unwrap_or(Err(Refused::Invalid))
    }
}

/// Signs a player's token, like an identity provider. `player` is the `sub`. For tests, bots and `garage token`.
///
/// # Errors
/// [`Error::Sign`], for example if `player` is empty or too long.
pub fn sign_token(key: &Key, player: &str, rank: Option<i32>, ttl: Duration) -> Result<Secret, Error> {
    sign(key, player, rank, None, ttl)
}

/// Signs a token of the studio's own backend, with a scope. `name` is the `sub`.
///
/// # Errors
/// [`Error::Sign`], for example if `name` is empty or too long.
pub fn sign_service_token(key: &Key, name: &str, scope: &str, ttl: Duration) -> Result<Secret, Error> {
    sign(key, name, None, Some(scope), ttl)
}

fn sign(key: &Key, player: &str, rank: Option<i32>, scope: Option<&str>, ttl: Duration) -> Result<Secret, Error> {
    let failed = |error: &dyn fmt::Display| Error::Sign(error.to_string());
    PlayerId::from_foreign(player).map_err(|error| failed(&error))?;
    let exp = (System.now() + ttl).unix_timestamp();
    let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::HS256) };
    let token = jsonwebtoken::encode(&header, &Claims { sub: player, exp, rank, scope }, &key.signing);
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
    fn a_token_identifies_its_player() {
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
    fn during_a_rotation_tokens_of_both_keys_are_valid() {
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
                assert_eq!(keys.verify(&old), Err(Refused::Expired), "expired with either key");
            }
        }
        let third = sign_token(&key("c"), "ann", None, HOUR).unwrap();
        assert_eq!(keys.verify(third.expose()), Err(Refused::Invalid));
        assert_eq!(keys.verify("x"), Err(Refused::Invalid));
    }

    #[test]
    fn a_token_with_a_known_kid_must_be_signed_with_that_key() {
        let keys = Keys(vec![key("a"), key("b")]);
        let header = Header { kid: Some(key("b").id), ..Header::new(Algorithm::HS256) };
        let claims = json!({"sub": "ann", "exp": (System.now() + HOUR).unix_timestamp()});
        let sign = |fill| jsonwebtoken::encode(&header, &claims, &key(fill).signing).unwrap();
        assert!(keys.verify(&sign("b")).is_ok());
        assert_eq!(keys.verify(&sign("a")), Err(Refused::Invalid));
    }

    #[test]
    fn only_complete_claims_signed_with_hs256_are_valid() {
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
    fn a_short_key_is_refused_and_debug_output_hides_keys() {
        assert!(matches!(Key::new(&Secret::new("a".repeat(31))), Err(Error::Short(31))));
        assert_eq!(format!("{:?}", key("a")), "Key(…)");
    }
}
