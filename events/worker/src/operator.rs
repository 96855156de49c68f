//! Signs the JWTs of NATS operator mode with nkeys. The operator signs accounts, and an account signs its users. The
//! account also has a scoped signing key, which can only sign users with the rights of its scope.
//!
//! The claims follow version 2 of github.com/nats-io/jwt.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::{
    env::{Env, System},
    game::{Secret, fingerprint},
    id::SessionId,
};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// How long the user of a game server remains valid after the deadline of its session. If NATS is unavailable at the
/// deadline, the game server must be able to repeat its last report later. Clocks may also differ.
const GAME_MARGIN: time::Duration = time::Duration::minutes(5);

/// How long after receiving a request a user may send the response.
const RESPONSE_TTL: std::time::Duration = std::time::Duration::from_secs(60);

/// The rights and limits of a user.
#[derive(Debug, Default, Clone)]
pub struct Rights {
    /// Subjects to which it may publish; wildcards are allowed.
    pub publish: Vec<&'static str>,
    /// Subjects to which it may subscribe; wildcards are allowed.
    pub subscribe: Vec<&'static str>,
    /// Whether it may send one response to the reply subject of each request that it receives.
    pub responds: bool,
    /// The maximum number of subscriptions of each of its connections.
    pub max_subscriptions: Option<u32>,
    /// The maximum size of a message, with its headers, in bytes. The server closes a connection that sends a larger
    /// one.
    pub max_payload: Option<usize>,
}

/// Why a key cannot be loaded or a JWT cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The text is not a seed, or the key cannot sign.
    #[error("not a valid seed of a signing key")]
    Key(#[source] nkeys::error::Error),
    /// The key has this type instead of the expected one.
    #[error("the seed belongs to a key of the wrong type: {0:?}")]
    Kind(KeyPairType),
    /// The credentials contain no readable JWT of a user.
    #[error("the credentials contain no readable JWT of a user")]
    Credentials,
}

/// Loads the key pair of a seed.
///
/// # Errors
/// When the text is not a seed, or the key has another type. The error does not reveal the seed.
pub fn key(seed: &Secret, kind: KeyPairType) -> Result<KeyPair, SignError> {
    let key = KeyPair::from_seed(seed.expose().trim()).map_err(SignError::Key)?;
    let found = key.key_pair_type();
    if found == kind { Ok(key) } else { Err(SignError::Kind(found)) }
}

/// The operator's JWT, which is part of the configuration of each NATS server.
///
/// # Errors
/// [`SignError::Key`]
pub fn operator(operator: &KeyPair, system: &KeyPair) -> Result<String, SignError> {
    let nats = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
    sign(operator, &operator.public_key(), "garage", None, nats)
}

/// The JWT of the system account, without JetStream.
///
/// # Errors
/// [`SignError::Key`]
pub fn system_account(operator: &KeyPair, account: &KeyPair) -> Result<String, SignError> {
    let nats = json!({ "type": "account", "version": 2, "limits": unlimited(), "default_permissions": {} });
    sign(operator, &account.public_key(), "SYS", None, nats)
}

/// The JWT of the account with JetStream. It declares a scoped signing key: the key can only sign users with the rights
/// and limits of the `scope`.
///
/// # Errors
/// [`SignError::Key`]
pub fn account(
    operator: &KeyPair,
    account: &KeyPair,
    name: &str,
    scoped: &KeyPair,
    scope: &Rights,
) -> Result<String, SignError> {
    let mut limits = unlimited();
    if let Some(limits) = limits.as_object_mut() {
        // JetStream is off in an account without these limits.
        let storage = ["mem_storage", "disk_storage", "streams", "consumer"];
        limits.extend(storage.map(|name| (name.to_owned(), json!(-1))));
    }
    let key = json!({
        "kind": "user_scope", "key": scoped.public_key(), "role": "game", "template": permissions(Some(scope)),
    });
    let nats = json!({
        "type": "account", "version": 2, "limits": limits, "default_permissions": {}, "signing_keys": [key],
    });
    sign(operator, &account.public_key(), name, None, nats)
}

/// Creates a user and returns its credentials, signed by the account key. A user without `rights` has no restrictions
/// inside the account.
///
/// # Errors
/// [`SignError::Key`]
pub fn user(account: &KeyPair, name: &str, rights: Option<&Rights>) -> Result<Secret, SignError> {
    let mut nats = permissions(rights);
    if let Some(fields) = nats.as_object_mut() {
        fields.extend([("type".to_owned(), json!("user")), ("version".to_owned(), json!(2))]);
    }
    credentials(account, name, None, nats)
}

/// Creates NATS users for game servers with the scoped signing key. Each user is for one attempt of one session.
#[derive(Debug, Clone)]
pub struct Mint {
    key: KeyPair,
    account: String,
}

impl Mint {
    /// Takes the seed of the scoped key, and the credentials of the caller, whose account the new users join.
    ///
    /// # Errors
    /// When the seed or the credentials are invalid.
    pub fn new(seed: &Secret, own_credentials: &Secret) -> Result<Self, SignError> {
        Ok(Self { key: key(seed, KeyPairType::Account)?, account: account_of(own_credentials)? })
    }

    /// Creates the credentials for the game server of one attempt. `ends_at` is the final deadline of the session.
    ///
    /// # Errors
    /// [`SignError::Key`]
    pub fn game(&self, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Result<Secret, SignError> {
        // The scope of the key defines the rights. The server rejects a scoped user with rights or limits of its own.
        let nats = json!({
            "type": "user",
            "version": 2,
            "issuer_account": self.account,
            "tags": [format!("session:{session}"), format!("attempt:{attempt}")],
        });
        credentials(&self.key, &format!("game-{session}-{attempt}"), Some(ends_at + GAME_MARGIN), nats)
    }
}

/// The public key of the account to which the credentials belong.
fn account_of(credentials: &Secret) -> Result<String, SignError> {
    let claims = || {
        let jwt = credentials.expose().lines().find(|line| line.starts_with("eyJ"))?;
        let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        // `issuer_account` is absent if the account key itself signed the user; then `iss` is the account.
        let account = claims.pointer("/nats/issuer_account").or_else(|| claims.get("iss"))?;
        account.as_str().map(ToOwned::to_owned)
    };
    claims().ok_or(SignError::Credentials)
}

/// Account limits that allow everything except JetStream. -1 means unlimited; an absent limit means zero.
fn unlimited() -> Value {
    json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    })
}

fn permissions(rights: Option<&Rights>) -> Value {
    let (mut publish, mut subscribe) = (json!({}), json!({}));
    let (mut responds, mut subscriptions, mut payload) = (None, json!(-1), json!(-1));
    if let Some(rights) = rights {
        publish = json!({ "allow": rights.publish });
        subscribe = json!({ "allow": rights.subscribe });
        subscriptions = rights.max_subscriptions.map_or(subscriptions, Value::from);
        payload = rights.max_payload.map_or(payload, Value::from);
        // The TTL is in nanoseconds.
        responds = rights.responds.then(|| json!({ "max": 1, "ttl": RESPONSE_TTL.as_secs() * 1_000_000_000 }));
    }
    let mut permissions = json!({
        "pub": publish, "sub": subscribe, "subs": subscriptions, "data": -1, "payload": payload,
    });
    if let (Some(responds), Some(fields)) = (responds, permissions.as_object_mut()) {
        fields.insert("resp".to_owned(), responds);
    }
    permissions
}

/// Creates a user and returns its credentials in the file format of NATS clients.
fn credentials(
    signer: &KeyPair,
    name: &str,
    expires: Option<OffsetDateTime>,
    nats: Value,
) -> Result<Secret, SignError> {
    let user = KeyPair::new_user();
    let jwt = sign(signer, &user.public_key(), name, expires, nats)?;
    let seed = user.seed().map_err(SignError::Key)?;
    Ok(Secret::new(format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )))
}

fn sign(
    signer: &KeyPair,
    subject: &str,
    name: &str,
    expires: Option<OffsetDateTime>,
    nats: Value,
) -> Result<String, SignError> {
    let mut claims = json!({
        "iat": System.now().unix_timestamp(), "iss": signer.public_key(), "sub": subject, "name": name, "nats": nats,
    });
    // The id of a token can be any unique text. A hash of the claims is unique enough.
    let id = fingerprint(claims.to_string().as_bytes());
    if let Some(fields) = claims.as_object_mut() {
        fields.insert("jti".to_owned(), id.into());
        fields.extend(expires.map(|at| ("exp".to_owned(), at.unix_timestamp().into())));
    }
    let part = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = signer.sign(signed.as_bytes()).map_err(SignError::Key)?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verifies the signature of the JWT in the credentials, and returns its claims.
    fn claims(credentials: &Secret) -> Value {
        let jwt = credentials.expose().lines().find(|line| line.starts_with("eyJ")).unwrap();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap()).unwrap();
        let issuer = KeyPair::from_public_key(claims["iss"].as_str().unwrap()).unwrap();
        issuer.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        claims
    }

    #[test]
    fn the_user_of_a_game_server_belongs_to_one_attempt_and_expires_five_minutes_after_the_session() {
        let (account, scoped) = (KeyPair::new_account(), KeyPair::new_account());
        let own = user(&account, "session", None).unwrap();
        let mint = Mint::new(&Secret::new(scoped.seed().unwrap()), &own).unwrap();
        let (session, ends_at) = (SessionId::new(System.id()), System.now());
        let [first, second] = [1, 2].map(|attempt| mint.game(session, attempt, ends_at).unwrap());
        let (one, two) = (claims(&first), claims(&second));
        assert_eq!(one["nats"]["issuer_account"], account.public_key());
        assert_eq!(one["iss"], scoped.public_key());
        assert_eq!(one["exp"], ends_at.unix_timestamp() + 300);
        assert_eq!(one["nats"]["tags"], json!([format!("session:{session}"), "attempt:1"]));
        assert_eq!(two["nats"]["tags"], json!([format!("session:{session}"), "attempt:2"]));
        assert_ne!(one["sub"], two["sub"]);
        assert!(!format!("{mint:?}{first:?}").contains(&scoped.seed().unwrap()));
    }

    #[test]
    fn an_invalid_seed_or_a_key_of_another_type_is_rejected_and_the_error_does_not_repeat_it() {
        let seed = KeyPair::new_user().seed().unwrap();
        for text in [seed.as_str(), "SAhunter2", ""] {
            let error = key(&Secret::new(text), KeyPairType::Account).unwrap_err();
            assert!(text.is_empty() || !format!("{error} {error:?}").contains(text));
        }
    }
}
