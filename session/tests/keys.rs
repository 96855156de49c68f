//! Game keys and connection tokens.
#![cfg(test)]

use std::time::Duration;

use garage_events::{
    env::{Env, System},
    game::{CONNECT_AUDIENCE, ConnectClaims, Secret, fingerprint},
    id::SessionId,
};
use garage_session::{
    keys::{GameKey, Pool},
    token::Signer,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use rsa::{
    RsaPrivateKey,
    pkcs8::{DecodePrivateKey, EncodePublicKey},
};

// Made for this test with `openssl genpkey -algorithm ed25519`.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIGnfR8vz3HgdAhFvKxTn0hDG5A2oZt7gC0ndVpKXw1aM
-----END PRIVATE KEY-----
";
// The output of `openssl pkey -pubout -outform der | sha256sum` for this key.
const KID: &str = "cbd7834e888e501d6b7aa103a6bde5bf1738ee1754b423dcf91980b8431f7ace";

#[test]
fn a_key_has_the_fingerprint_of_its_public_half_and_debug_output_hides_it() {
    let key = GameKey::generate().unwrap();
    let private = RsaPrivateKey::from_pkcs8_pem(key.private_key.expose()).unwrap();
    let public = private.to_public_key().to_public_key_der().unwrap();
    assert_eq!(fingerprint(public.as_bytes()), key.fingerprint);
    assert!(!format!("{key:?}").contains("PRIVATE"));
}

#[tokio::test]
async fn the_pool_never_returns_a_key_twice() {
    let (pool, filling) = Pool::start(2).unwrap();
    let take = async || tokio::time::timeout(Duration::from_secs(30), pool.take()).await.unwrap().unwrap().fingerprint;
    let (one, two, three) = (take().await, take().await, take().await);
    assert!(one != two && two != three && one != three);
    drop(pool);
    tokio::time::timeout(Duration::from_secs(30), filling).await.unwrap().unwrap();
}

/// Waits until the pool has this many keys.
async fn level(pool: &Pool, level: usize) {
    let reached = async {
        while pool.level() != level {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
}

#[tokio::test]
async fn the_pool_is_filled_before_anybody_needs_a_key_and_again_afterwards() {
    let (pool, _filling) = Pool::start(3).unwrap();
    level(&pool, 3).await;
    pool.take().await.unwrap();
    level(&pool, 3).await;
}

#[tokio::test]
async fn many_waiters_get_a_key_each_although_the_pool_is_small() {
    let (pool, filling) = Pool::start(1).unwrap();
    let keys = futures::future::try_join_all((0..6).map(|_| pool.take())).await.unwrap();
    let different: std::collections::BTreeSet<_> = keys.iter().map(|key| &key.fingerprint).collect();
    assert_eq!(different.len(), 6);
    drop(pool);
    tokio::time::timeout(Duration::from_secs(30), filling).await.unwrap().unwrap();
}

#[tokio::test]
async fn keys_are_generated_on_threads_of_their_own_and_the_pool_is_filled_at_low_priority() {
    let (pool, _filling) = Pool::start(200).unwrap();
    pool.take().await.unwrap();
    let is_low = |nice: &i32| *nice == 19;
    let right = async {
        // A thread lowers its priority when it starts.
        while !niceness("key-pool").iter().all(is_low) || niceness("key-help").iter().any(is_low) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), right).await.unwrap();
}

/// The niceness of the threads of this name.
fn niceness(thread: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let found = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
        // The fields after the name begin with the third one; the niceness is the nineteenth.
        (name == thread).then(|| fields.split_whitespace().nth(16)?.parse().ok())?
    });
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "no thread {thread}");
    found
}

#[test]
fn a_connection_token_contains_player_session_and_audience_and_expires_with_the_session() {
    let signer = Signer::from_pem(&Secret::new(PRIVATE)).unwrap();
    let (player, session, now) = ("anna".parse().unwrap(), SessionId::new(System.id()), System.now());
    let ends_at = now + time::Duration::MINUTE;
    let signed = signer.sign(&player, Some("anna".into()), session, now, ends_at).unwrap();
    assert_eq!(signed.expires_at, ends_at);
    let header = jsonwebtoken::decode_header(signed.token.expose()).unwrap();
    assert_eq!(header.kid.as_deref(), Some(KID), "the kid is the fingerprint of the public key");
    let public = ed25519_public();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[CONNECT_AUDIENCE]);
    let claims = decode::<ConnectClaims>(signed.token.expose(), &public, &validation).unwrap().claims;
    assert_eq!((claims.sub, claims.session), (player, session));
    assert_eq!(claims.provider_sub.as_deref(), Some("anna"));
    assert!(!format!("{signer:?}{:?}", signed.token).contains(signed.token.expose()));
}

fn ed25519_public() -> DecodingKey {
    use ed25519_dalek::{
        SigningKey,
        pkcs8::{DecodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding},
    };
    let key = SigningKey::from_pkcs8_pem(PRIVATE).unwrap();
    let public = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    DecodingKey::from_ed_pem(public.as_bytes()).unwrap()
}

#[test]
fn a_text_that_is_not_an_ed25519_key_is_refused() {
    assert!(Signer::from_pem(&Secret::new("no key")).is_err());
}
