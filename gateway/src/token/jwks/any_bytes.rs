//! Any bytes as the JWKS of an identity provider.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::{tests::Signer, *};
use crate::token::key::Unverified;

#[test]
fn any_bytes_are_keys_of_the_accepted_types_or_a_short_error() {
    let keys: Vec<_> = Signer::each().into_iter().map(|signer| signer.jwk).collect();
    let each = keys.iter().map(|key| json!({"keys": [key]}).to_string());
    let valid: Vec<_> = each.chain([json!({"keys": keys, "more": 1}).to_string()]).collect();
    let signature = URL_SAFE_NO_PAD.encode([1; 64]);
    let token =
        |algorithm: &str| format!("{}.e30.{signature}", URL_SAFE_NO_PAD.encode(json!({"alg": algorithm}).to_string()));
    let tokens = ["RS256", "ES256", "EdDSA"].map(token);
    garage_fuzz::feed(&valid, |document| match parse(document) {
        Ok(keys) => {
            assert!((1..=MAX_KEYS).contains(&keys.len()));
            for key in &keys {
                assert!(matches!(key.algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA), "{key:?}");
                for token in &tokens {
                    assert!(!key.has_signed(&Unverified::parse(token).unwrap()), "{key:?}");
                }
            }
            true
        }
        Err(error) => {
            assert!(format!("{error:#}").len() <= 500, "{error:#}");
            false
        }
    });
}
