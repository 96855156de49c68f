//! Players' tokens: a bearer token is a JWT that the studio's identity provider signs. The keys that verify it come
//! from the provider's JWKS (RS256, ES256 or EdDSA), from a PEM file (the same), or are shared with the provider
//! (HS256). Its claims are:
//!
//! - `sub`, required, or the configured claim: the player, as any text of 1 to 255 characters.
//! - `exp`, required, and `nbf`: when the token is valid.
//! - `iss` and `aud`: checked if the configuration names an issuer or an audience.
//! - `rank`, or the configured claim: the player's rank, a whole number. A token with a rank outside of [`RANKS`] is
//!   not valid for any request.
//! - `scope`: [`GROUPS`] for the studio's own backend. Its `sub` is not a player.
//! - any others: values for attributes of rule sets, if the queues file names them.
//!
//! `key` verifies signatures, `jwks` reads the provider's keys, `claims` checks the claims.
//!
//! [`RANKS`]: garage_events::player::RANKS

mod claims;
mod jwks;
mod key;

use std::{fmt, path::Path, time::Duration};

use anyhow::ensure;
use garage_events::{
    env::{Env, System},
    game::Secret,
    id::PlayerId,
};
use garage_worker::Runtime;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::config::Tokens;
pub(crate) use claims::{Rules, find as find_claim};
use jwks::Jwks;
use key::{MIN_KEY, Unverified, VerifyingKey};

/// The scope of tokens that queue groups of players.
pub const GROUPS: &str = "matchmaking:groups";

/// The maximum length of a token, in bytes. A `sub` of 255 characters takes up to 4 KiB of it, if the provider writes
/// each character as an escape sequence.
pub(crate) const MAX_TOKEN: usize = 8 << 10;

/// A key that signs and verifies players' tokens with HS256. Its `Debug` output does not contain the secret.
#[derive(Clone)]
pub struct Key {
    signing: EncodingKey,
    verifying: VerifyingKey,
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

/// Why a request is not authenticated. Before the signature is verified, the answer says nothing about the token,
/// except that it is too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has no token.
    #[error("a bearer token is required; send it in the Authorization header")]
    Missing,
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    Long,
    /// It is malformed, or no key has signed it.
    #[error("the token is not valid; check its signature")]
    Signature,
    #[error("the claim exp must be a number of seconds since 1970")]
    Expiry,
    #[error("the token has expired; get a new one from the identity provider")]
    Expired,
    #[error("the token is not valid yet; check its claim nbf")]
    NotYet,
    #[error("the token is from another issuer; check its claim iss")]
    Issuer,
    #[error("the token is for another audience; check its claim aud")]
    Audience,
    /// No valid `sub`, or other claim that names the player. The text says why.
    #[error("{0}")]
    Player(String),
    /// The rank is not valid. The text says why.
    #[error("{0}")]
    Rank(String),
    /// The token may be valid, but the keys of the identity provider could not be read yet.
    #[error("the keys of the identity provider could not be read yet; try again")]
    NoKeys,
}

impl Refused {
    /// The values of [`reason`](Self::reason).
    pub(crate) const REASONS: [&str; 11] = [
        "missing",
        "long",
        "signature",
        "expiry",
        "expired",
        "not-yet",
        "issuer",
        "audience",
        "player",
        "rank",
        "no-keys",
    ];

    /// The reason as a metric label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Long => "long",
            Self::Signature => "signature",
            Self::Expiry => "expiry",
            Self::Expired => "expired",
            Self::NotYet => "not-yet",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Player(_) => "player",
            Self::Rank(_) => "rank",
            Self::NoKeys => "no-keys",
        }
    }
}

/// The content of a valid token.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub player: PlayerId,
    /// The identity provider's name of the player: the text of the claim `sub`, or of the configured claim.
    pub sub: String,
    /// Absent if the token has no rank.
    pub rank: Option<i32>,
    /// When the token expires, without the tolerated difference of the clocks.
    pub expires_at: OffsetDateTime,
    /// All claims.
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
        Ok(Self { signing: EncodingKey::from_secret(bytes), verifying: VerifyingKey::shared(secret) })
    }
}

/// The keys that verify players' tokens, and what the claims must be.
#[derive(Debug)]
pub(crate) struct Keys {
    /// The keys from files: shared ones (one, or two during a rotation) and public ones.
    files: Vec<VerifyingKey>,
    jwks: Option<Jwks>,
    rules: Rules,
}

impl Keys {
    /// Reads the keys from their files. The keys of the identity provider are read later, by [`watch`](Self::watch).
    pub(crate) fn load(config: &Tokens) -> anyhow::Result<Self> {
        let shared = [&config.jwt_key_file, &config.jwt_key_also_file].into_iter().flatten();
        let mut files = shared.map(|path| Ok(Key::load(path)?.verifying)).collect::<Result<Vec<_>, Error>>()?;
        if let Some(path) = &config.jwt_public_key_file {
            files.extend(VerifyingKey::load_public(path)?);
        }
        let jwks = config.jwks_url.as_ref().map(Jwks::new).transpose()?;
        ensure!(
            !files.is_empty() || jwks.is_some(),
            "there is no key that verifies players' tokens; set --jwks-url to the JWKS of your identity provider, \
             --jwt-public-key-file to its public key, or --jwt-key-file to a key that you share with it"
        );
        Ok(Self { files, jwks, rules: config.rules() })
    }

    /// How long a token is valid after it has expired, because clocks differ.
    pub(crate) fn leeway(&self) -> Duration {
        self.rules.leeway
    }

    /// Reads the keys of the identity provider while the gateway runs, if it has a JWKS.
    pub(crate) fn watch(&self, runtime: &mut Runtime) {
        metrics::gauge!("garage_gateway_jwks_keys").set(0.0);
        if let Some(jwks) = self.jwks.clone() {
            if self.rules.audiences.is_empty() {
                tracing::warn!(
                    "--jwt-audience is not set: tokens of the identity provider for other services are valid too"
                );
            }
            jwks::not_read(&runtime.health);
            let (health, shutdown) = (runtime.health.clone(), runtime.shutdown.clone());
            runtime.spawn("jwks", jwks.run(health, shutdown));
        }
    }

    /// Checks a token with the keys, and returns its content.
    pub(crate) async fn verify(&self, token: &str) -> Result<Identity, Refused> {
        if token.len() > MAX_TOKEN {
            return Err(Refused::Long);
        }
        let token = Unverified::parse(token).ok_or(Refused::Signature)?;
        if !has_signed(&self.files, &token) && !self.provider_has_signed(&token).await? {
            return Err(Refused::Signature);
        }
        self.rules.check(token.claims().ok_or(Refused::Signature)?, System.now())
    }

    async fn provider_has_signed(&self, token: &Unverified<'_>) -> Result<bool, Refused> {
        let Some(jwks) = self.jwks.as_ref().filter(|_| token.may_be_public()) else { return Ok(false) };
        let keys = jwks.keys().await.ok_or(Refused::NoKeys)?;
        let Some(kid) = token.kid() else {
            // Only one key can be meant (OpenID Connect Core, section 10.1).
            let mut fitting = keys.iter().filter(|key| token.is_for(key.algorithm));
            let only = fitting.next().filter(|_| fitting.next().is_none());
            return Ok(only.is_some_and(|key| key.has_signed(token)));
        };
        let signed = |keys: &[VerifyingKey]| keys.iter().any(|key| key.is_named(kid) && key.has_signed(token));
        if keys.iter().any(|key| key.is_named(kid)) {
            return Ok(signed(&keys));
        }
        Ok(jwks.read_again().await.is_some_and(|keys| signed(&keys)))
    }
}

/// Whether one of the keys from files has signed the token. If the token names one of them, only this one is tried. The
/// header is not verified yet: it only selects the key.
fn has_signed(keys: &[VerifyingKey], token: &Unverified<'_>) -> bool {
    let named = keys.iter().find(|key| token.kid().is_some_and(|kid| key.is_named(kid)));
    match named {
        Some(key) => key.has_signed(token),
        None => keys.iter().any(|key| key.has_signed(token)),
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
    let header = Header { kid: key.verifying.kid.clone(), ..Header::new(Algorithm::HS256) };
    let token = jsonwebtoken::encode(&header, &Claims { sub: player, exp, rank, scope }, &key.signing);
    token.map(Secret::new).map_err(|error| failed(&error))
}

#[cfg(test)]
mod any_bytes;
#[cfg(test)]
mod tests;
