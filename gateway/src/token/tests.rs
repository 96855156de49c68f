//! Which tokens the keys from files accept, and which forged tokens they do not.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use garage_keys::GameKey;
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, Jwk},
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde_json::json;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn key(fill: &str) -> Key {
    Key::new(&Secret::new(fill.repeat(32))).unwrap()
}

fn shared(fills: &[&str]) -> Keys {
    Keys { files: fills.iter().map(|fill| key(fill).verifying).collect(), jwks: None, rules: Rules::default() }
}

fn claims() -> Value {
    json!({"sub": "ann", "exp": (System.now() + HOUR).unix_timestamp()})
}

fn hs256(kid: Option<&str>, secret: &[u8]) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap()
}

/// Keys of each type, with which an identity provider can sign: the algorithm, the public key in PEM, the private key.
pub(super) fn pairs() -> [(Algorithm, String, EncodingKey); 3] {
    let rsa = GameKey::generate().unwrap();
    let ec = rcgen::KeyPair::generate().unwrap();
    let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let private_rsa = EncodingKey::from_rsa_pem(rsa.private_key.expose().as_bytes()).unwrap();
    let private_ec = EncodingKey::from_ec_pem(ec.serialize_pem().as_bytes()).unwrap();
    let private_ed = EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap();
    [
        (Algorithm::RS256, rsa.public_key, private_rsa),
        (Algorithm::ES256, ec.public_key_pem(), private_ec),
        (Algorithm::EdDSA, ed.public_key_pem(), private_ed),
    ]
}

/// Keys from a PEM file with this content, through the gateway's configuration.
pub(super) fn load(pem: &str) -> anyhow::Result<Keys> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("provider.pem");
    std::fs::write(&file, pem)?;
    let flags = ["garage-gateway", "--queues", "q", "--jwt-public-key-file", file.to_str().unwrap()];
    Keys::load(&crate::Config::parse_from(flags).tokens)
}

#[tokio::test]
async fn a_token_identifies_its_player() {
    for rank in [None, Some(1_200), Some(-100_000), Some(100_000)] {
        let token = sign_token(&key("a"), "ann@example.org", rank, HOUR).unwrap();
        let identity = shared(&["a"]).verify(token.expose()).await.unwrap();
        assert_eq!((&*identity.sub, identity.rank), ("ann@example.org", rank));
        assert_eq!(identity.player, PlayerId::from_foreign("ann@example.org").unwrap());
    }
}

#[tokio::test]
async fn a_token_of_another_key_is_not_valid() {
    let token = sign_token(&key("b"), "ann", None, HOUR).unwrap();
    assert_eq!(shared(&["a"]).verify(token.expose()).await, Err(Refused::Signature));
}

#[tokio::test]
async fn during_a_rotation_tokens_of_both_keys_are_valid() {
    let keys = shared(&["a", "b"]);
    for fill in ["a", "b"] {
        let named = sign_token(&key(fill), "ann", None, HOUR).unwrap();
        assert_eq!(keys.verify(named.expose()).await.unwrap().sub, "ann");
        for kid in [None, Some("the provider's own")] {
            assert_eq!(keys.verify(&hs256(kid, fill.repeat(32).as_bytes())).await.unwrap().sub, "ann");
        }
    }
    let third = sign_token(&key("c"), "ann", None, HOUR).unwrap();
    assert_eq!(keys.verify(third.expose()).await, Err(Refused::Signature));
}

#[tokio::test]
async fn a_token_with_a_known_kid_must_be_signed_with_that_key() {
    let (keys, kid) = (shared(&["a", "b"]), key("b").verifying.kid);
    assert!(keys.verify(&hs256(kid.as_deref(), "b".repeat(32).as_bytes())).await.is_ok());
    assert_eq!(keys.verify(&hs256(kid.as_deref(), "a".repeat(32).as_bytes())).await, Err(Refused::Signature));
}

#[tokio::test]
async fn public_keys_from_a_file_verify_tokens_of_their_own_algorithm_only() {
    let pairs = pairs();
    let all: String = pairs.iter().map(|(_, public, _)| public.as_str()).collect();
    let all = load(&all).unwrap();
    for (algorithm, public, private) in &pairs {
        let token = jsonwebtoken::encode(&Header::new(*algorithm), &claims(), private).unwrap();
        assert_eq!(load(public).unwrap().verify(&token).await.unwrap().sub, "ann", "{algorithm:?}");
        assert_eq!(all.verify(&token).await.unwrap().sub, "ann", "{algorithm:?}");
        for (other, public, _) in pairs.iter().filter(|(other, ..)| other != algorithm) {
            let refused = load(public).unwrap().verify(&token).await;
            assert_eq!(refused, Err(Refused::Signature), "{algorithm:?} with a key of {other:?}");
        }
    }
    let [(_, rsa, private), ..] = &pairs;
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let token = jsonwebtoken::encode(&Header::new(algorithm), &claims(), private).unwrap();
        assert_eq!(load(rsa).unwrap().verify(&token).await, Err(Refused::Signature), "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_signed_with_the_text_of_a_public_key_is_refused() {
    for (_, pem, _) in &pairs() {
        let keys = load(pem).unwrap();
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut secrets = vec![pem.as_bytes().to_vec(), pem.trim().as_bytes().to_vec(), der.to_vec()];
        let parsers = [DecodingKey::from_rsa_pem, DecodingKey::from_ec_pem, DecodingKey::from_ed_pem];
        let parsed = parsers.iter().find_map(|parse| parse(pem.as_bytes()).ok()).unwrap();
        secrets.push(parsed.try_get_as_bytes().unwrap().to_vec());
        if let Ok(rsa) = DecodingKey::from_rsa_pem(pem.as_bytes()) {
            let AlgorithmParameters::RSA(parts) = Jwk::from_decoding_key(&rsa, None).unwrap().algorithm else {
                panic!()
            };
            secrets.extend([URL_SAFE_NO_PAD.decode(&parts.n).unwrap(), parts.n.into_bytes()]);
        }
        for secret in secrets {
            assert_eq!(keys.verify(&hs256(None, &secret)).await, Err(Refused::Signature));
        }
    }
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused_whatever_its_header_says() {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for (_, pem, _) in &pairs() {
        let keys = [load(pem).unwrap(), shared(&["a"])];
        for alg in ["none", "None", "", "HS256", "RS256", "ES256", "EdDSA"] {
            let token = format!("{}.{}.", part(json!({"alg": alg})), part(claims()));
            for keys in &keys {
                assert_eq!(keys.verify(&token).await, Err(Refused::Signature), "{alg}");
                assert_eq!(keys.verify(token.trim_end_matches('.')).await, Err(Refused::Signature), "{alg}");
            }
        }
    }
}

#[tokio::test]
async fn a_malformed_token_is_refused_without_a_reason() {
    let good = hs256(None, "a".repeat(32).as_bytes());
    let keys = shared(&["a"]);
    assert!(keys.verify(&good).await.is_ok());
    for bad in ["", "x", "a.b.c", "..", &format!("{good}."), &format!("{good}.x"), &format!(".{good}")] {
        assert_eq!(keys.verify(bad).await, Err(Refused::Signature), "{bad}");
    }
    assert_eq!(keys.verify(&"a".repeat(MAX_TOKEN + 1)).await, Err(Refused::Long));
    // The gateway knows no extension that it would have to respect.
    let header = Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::HS256) };
    let critical = jsonwebtoken::encode(&header, &claims(), &key("a").signing).unwrap();
    assert_eq!(keys.verify(&critical).await, Err(Refused::Signature));
    // A signed text that is not an object.
    let list = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &json!(["ann"]), &key("a").signing).unwrap();
    assert_eq!(keys.verify(&list).await, Err(Refused::Signature));
}

#[tokio::test]
async fn only_the_answer_to_a_signed_token_names_the_wrong_claim() {
    let wrong = json!({"sub": "", "exp": 1, "rank": "x"});
    let token = |fill: &str| jsonwebtoken::encode(&Header::new(Algorithm::HS256), &wrong, &key(fill).signing).unwrap();
    assert_eq!(shared(&["a"]).verify(&token("a")).await, Err(Refused::Expired));
    assert_eq!(shared(&["a"]).verify(&token("b")).await, Err(Refused::Signature));
}

#[tokio::test]
async fn a_sub_of_255_characters_fits_into_a_token() {
    let sub = "😀".repeat(255);
    let token = sign_token(&key("a"), &sub, Some(1), HOUR).unwrap();
    assert_eq!(shared(&["a"]).verify(token.expose()).await.unwrap().sub, sub);
    // Some providers escape everything beyond ASCII.
    let escaped: String = sub.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let payload = format!(r#"{{"sub":"{escaped}","exp":{}}}"#, (System.now() + HOUR).unix_timestamp());
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key("a").signing, Algorithm::HS256).unwrap();
    assert_eq!(shared(&["a"]).verify(&format!("{message}.{signature}")).await.unwrap().sub, sub);
}

#[test]
fn a_file_without_usable_public_keys_is_refused_with_the_reason() {
    let weak = include_str!("testdata/rsa-1024.pub.pem");
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ec = rcgen::KeyPair::generate().unwrap();
    for (pem, why) in [
        (String::new(), "no public key in PEM"),
        ("ssh-ed25519 AAAA".into(), "no public key in PEM"),
        (ec.serialize_pem(), "private key"),
        (ec.public_key_pem().replacen("MF", "AA", 1), "key 1: the key is malformed"),
        (format!("{}{weak}", ec.public_key_pem()), "key 2: the RSA key has 1024 bits"),
        (p384.public_key_pem(), "not meant to verify RS256, ES256 or EdDSA"),
        (ec.public_key_pem().repeat(9), "there are 9 keys; the limit is 8"),
    ] {
        let error = format!("{:#}", load(&pem).unwrap_err());
        assert!(error.contains(why) && error.contains("--jwt-public-key-file"), "{why}: {error}");
    }
}

#[test]
fn a_short_key_is_refused_and_debug_output_hides_keys() {
    assert!(matches!(Key::new(&Secret::new("a".repeat(31))), Err(Error::Short(31))));
    assert_eq!(format!("{:?}", key("a")), "Key(…)");
    let kid = key("a").verifying.kid.unwrap();
    assert_eq!(format!("{:?}", key("a").verifying), format!("VerifyingKey(HS256, Some({kid:?}))"));
}
