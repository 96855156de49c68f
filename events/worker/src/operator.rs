//! What NATS in operator mode goes by: JWTs, signed with nkeys. The operator vouches for accounts, an account for its
//! users, and a scoped signing key of the account for users with the rights of its scope and no other.
//!
//! The claims are those of version 2 of github.com/nats-io/jwt.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::{
    env::{Env, System},
    game::{Secret, fingerprint},
    id::SessionId,
};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// How long a game's user outlives the hard end of its session: what was reported at the last moment may have to be
/// repeated while NATS is away, and two clocks may differ.
const GAME_MARGIN: time::Duration = time::Duration::minutes(5);

/// How long who was asked may take to answer.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(60);

/// What a user may publish and subscribe to.
#[derive(Debug, Default, Clone)]
pub struct Rights {
    /// Subjects that it may publish.
    pub publish: Vec<&'static str>,
    /// Subjects that it may subscribe to.
    pub subscribe: Vec<&'static str>,
    /// Whether it may answer a request, once, to wherever the request asks.
    pub responds: bool,
}

/// Something cannot be signed, or is no such key.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The text is no seed, or the key cannot sign.
    #[error("not the seed of a key that signs")]
    Key(#[source] nkeys::error::Error),
    /// It is of another kind than is asked for.
    #[error("the seed of a key of another kind: {0:?}")]
    Kind(KeyPairType),
    /// Credentials hold no user's JWT that can be read.
    #[error("credentials without a user's JWT")]
    Credentials,
}

/// The key pair of a seed.
///
/// # Errors
/// When it is none, or of another kind; tells nothing of it.
pub fn key(seed: &Secret, kind: KeyPairType) -> Result<KeyPair, SignError> {
    let key = KeyPair::from_seed(seed.expose().trim()).map_err(SignError::Key)?;
    let found = key.key_pair_type();
    if found == kind { Ok(key) } else { Err(SignError::Kind(found)) }
}

/// The operator's JWT, which servers are configured with.
///
/// # Errors
/// [`SignError::Key`]
pub fn operator(operator: &KeyPair, system: &KeyPair) -> Result<String, SignError> {
    let nats = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
    sign(operator, &operator.public_key(), "garage", None, nats)
}

/// The JWT of the system account, which has no JetStream.
///
/// # Errors
/// [`SignError::Key`]
pub fn system_account(operator: &KeyPair, account: &KeyPair) -> Result<String, SignError> {
    let nats = json!({ "type": "account", "version": 2, "limits": unlimited(), "default_permissions": {} });
    sign(operator, &account.public_key(), "SYS", None, nats)
}

/// The JWT of the account that has JetStream, with a scoped key: whoever holds that one can sign users that have the
/// `scope`'s rights, and no other user.
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
        // An account without these has no JetStream.
        let storage = ["mem_storage", "disk_storage", "streams", "consumer"];
        limits.extend(storage.map(|name| (name.to_owned(), json!(-1))));
    }
    let key = json!({ "kind": "user_scope", "key": scoped.public_key(), "role": "game", "template": permissions(Some(scope)) });
    let nats = json!({
        "type": "account", "version": 2, "limits": limits, "default_permissions": {}, "signing_keys": [key],
    });
    sign(operator, &account.public_key(), name, None, nats)
}

/// Credentials of a new user of an account, signed by that itself. Without rights given he may do everything.
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

/// Makes users for games, with a scoped key: each for one attempt at one session.
#[derive(Debug, Clone)]
pub struct Mint {
    key: KeyPair,
    account: String,
}

impl Mint {
    /// With the key of this seed, in the account that a user's own credentials are of.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn new(seed: &Secret, own_credentials: &Secret) -> Result<Self, SignError> {
        Ok(Self { key: key(seed, KeyPairType::Account)?, account: account_of(own_credentials)? })
    }

    /// Credentials for the game server of an attempt at a session that ends hard at `ends_at`.
    ///
    /// # Errors
    /// [`SignError::Key`]
    pub fn game(&self, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Result<Secret, SignError> {
        // Its rights are the scope's. With any of its own the server would refuse it, limits too.
        let nats = json!({
            "type": "user",
            "version": 2,
            "issuer_account": self.account,
            "tags": [format!("session:{session}"), format!("attempt:{attempt}")],
        });
        credentials(&self.key, &format!("game-{session}-{attempt}"), Some(ends_at + GAME_MARGIN), nats)
    }
}

/// The account that credentials are of.
fn account_of(credentials: &Secret) -> Result<String, SignError> {
    let claims = || {
        let jwt = credentials.expose().lines().find(|line| line.starts_with("eyJ"))?;
        let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        // Absent where the account itself has signed.
        let account = claims.pointer("/nats/issuer_account").or_else(|| claims.get("iss"))?;
        account.as_str().map(ToOwned::to_owned)
    };
    claims().ok_or(SignError::Credentials)
}

/// -1 is without a limit, and what is absent is none at all.
fn unlimited() -> Value {
    json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    })
}

fn permissions(rights: Option<&Rights>) -> Value {
    let (mut publish, mut subscribe) = (json!({}), json!({}));
    let mut responds = None;
    if let Some(rights) = rights {
        publish = json!({ "allow": rights.publish });
        subscribe = json!({ "allow": rights.subscribe });
        // Nanoseconds.
        responds = rights.responds.then(|| json!({ "max": 1, "ttl": ANSWER.as_secs() * 1_000_000_000 }));
    }
    let mut permissions = json!({ "pub": publish, "sub": subscribe, "subs": -1, "data": -1, "payload": -1 });
    if let (Some(responds), Some(fields)) = (responds, permissions.as_object_mut()) {
        fields.insert("resp".to_owned(), responds);
    }
    permissions
}

/// Credentials in the form that NATS clients read from a file.
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
    // What names a token may be anything; this one is as unique as its claims.
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

    /// Who is signed for, with what claims, and by whom, if the signature is his.
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
    fn a_games_user_is_of_one_attempt_and_of_the_account_of_who_signs_and_outlives_the_end_by_five_minutes() {
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
    fn a_key_of_another_kind_or_none_is_refused_and_not_repeated() {
        let seed = KeyPair::new_user().seed().unwrap();
        for text in [seed.as_str(), "SAhunter2", ""] {
            let error = key(&Secret::new(text), KeyPairType::Account).unwrap_err();
            assert!(text.is_empty() || !format!("{error} {error:?}").contains(text));
        }
    }
}
