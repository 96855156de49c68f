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
    let (pool, filling) = Pool::start(2);
    let take = async || tokio::time::timeout(Duration::from_secs(30), pool.take()).await.unwrap().unwrap().fingerprint;
    let (one, two, three) = (take().await, take().await, take().await);
    assert!(one != two && two != three && one != three);
    drop(pool);
    tokio::time::timeout(Duration::from_secs(30), filling).await.unwrap().unwrap();
}

#[test]
fn a_connection_token_contains_player_session_and_audience_and_expires_with_the_session() {
    let signer = Signer::from_pem(&Secret::new(PRIVATE)).unwrap();
    let (player, session, now) = ("anna".parse().unwrap(), SessionId::new(System.id()), System.now());
    let ends_at = now + time::Duration::MINUTE;
    let signed = signer.sign(&player, session, now, ends_at).unwrap();
    assert_eq!(signed.expires_at, ends_at);
    let header = jsonwebtoken::decode_header(signed.token.expose()).unwrap();
    assert_eq!(header.kid.as_deref(), Some(KID), "the kid is the fingerprint of the public key");
    let public = ed25519_public();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[CONNECT_AUDIENCE]);
    let claims = decode::<ConnectClaims>(signed.token.expose(), &public, &validation).unwrap().claims;
    assert_eq!((claims.sub, claims.session), (player, session));
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
