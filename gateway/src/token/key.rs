//! Keys that verify tokens. A key works with one algorithm only, which depends on the key. The token's header can only
//! select a key; it never selects the algorithm of a key. Otherwise anybody could sign a token with HS256 and a public
//! key as the secret, or choose `none`.

use std::{fmt, path::Path};

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::game::{Secret, hex, key_id};
use jsonwebtoken::{
    Algorithm, DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

/// The minimum length of a shared key, in bytes: the length of an HS256 signature (RFC 7518, section 3.2).
pub(super) const MIN_KEY: usize = 32;

/// The accepted lengths of RSA keys, in bits. Shorter ones are too weak (RFC 7518, section 3.3). The implementation of
/// RSA refuses longer ones, because verifying with them takes long.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// The maximum length of an RSA key's exponent, in bytes. It is 65537 in practice, and the time of a verification grows
/// with it.
const MAX_EXPONENT: usize = 4;

/// The length of an Ed25519 public key, in bytes.
const ED25519_LENGTH: usize = 32;

/// The maximum number of public keys in a file.
const MAX_KEYS_IN_FILE: usize = 8;

/// A key that verifies tokens.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    /// The key's id. A key from a PEM file has none.
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key itself, which is secret in the case of HS256.
        write!(f, "VerifyingKey({:?}, {:?})", self.algorithm, self.kid)
    }
}

/// Why a public key is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the key is not meant to verify RS256, ES256 or EdDSA signatures")]
    Other,
    #[error("the RSA key has {0} bits; only keys of 2048 to 4096 bits are accepted")]
    Length(usize),
    #[error("the key is malformed")]
    Malformed,
}

impl VerifyingKey {
    /// A key that the identity provider and the gateway share.
    pub(super) fn shared(secret: &Secret) -> Self {
        let bytes = secret.expose().as_bytes();
        let kid = Some(hex(&key_id("jwt", bytes)));
        Self { kid, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(bytes) }
    }

    /// A public key of a JWKS. Its type determines the algorithm: RSA means RS256, P-256 means ES256, and Ed25519
    /// means EdDSA. A key that names another algorithm or use is not usable.
    pub(super) fn public(jwk: &Jwk) -> Result<Self, Unusable> {
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return Err(Unusable::Other),
        };
        let common = &jwk.common;
        let signs = common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
        let verifies = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !signs || !verifies || common.key_algorithm.is_some_and(|of| of != name) {
            return Err(Unusable::Other);
        }
        if let AlgorithmParameters::RSA(rsa) = &jwk.algorithm {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok().ok_or(Unusable::Malformed)?;
            let leading = modulus.iter().take_while(|byte| **byte == 0).count();
            let unused = modulus.get(leading).map_or(0, |byte| byte.leading_zeros() as usize);
            let bits = (modulus.len() - leading) * 8 - unused;
            if !RSA_BITS.contains(&bits) {
                return Err(Unusable::Length(bits));
            }
            let exponent = URL_SAFE_NO_PAD.decode(&rsa.e).ok().ok_or(Unusable::Malformed)?;
            if exponent.len() > MAX_EXPONENT || exponent.last().is_none_or(|last| last % 2 == 0) {
                return Err(Unusable::Malformed);
            }
        }
        if let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm {
            // The implementation panics on a shorter key.
            let key = URL_SAFE_NO_PAD.decode(&pair.x).ok().ok_or(Unusable::Malformed)?;
            if key.len() != ED25519_LENGTH {
                return Err(Unusable::Malformed);
            }
        }
        let key = DecodingKey::from_jwk(jwk).ok().ok_or(Unusable::Malformed)?;
        // This parses a key of P-256 or Ed25519. A malformed one gives an error, a valid one says that the signature is
        // wrong.
        crypto::verify("", b"", &key, algorithm).ok().ok_or(Unusable::Malformed)?;
        Ok(Self { kid: common.key_id.clone(), algorithm, key })
    }

    /// Reads the public keys in a PEM file: RSA, P-256 or Ed25519.
    pub(super) fn load_public(path: &Path) -> anyhow::Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let keys = Self::parse_public(&text);
        keys.with_context(|| format!("the keys in {} (--jwt-public-key-file) are not usable", path.display()))
    }

    fn parse_public(text: &str) -> anyhow::Result<Vec<Self>> {
        ensure!(!text.contains("PRIVATE KEY"), "one of them is a private key; the gateway needs only the public key");
        let blocks = text.split_inclusive("-----END PUBLIC KEY-----");
        let blocks: Vec<_> = blocks.filter(|block| block.contains("-----BEGIN PUBLIC KEY-----")).collect();
        ensure!(!blocks.is_empty(), "there is no public key in PEM (-----BEGIN PUBLIC KEY-----)");
        ensure!(blocks.len() <= MAX_KEYS_IN_FILE, "there are {} keys; the limit is {MAX_KEYS_IN_FILE}", blocks.len());
        let key = |(index, pem): (usize, &&str)| {
            let pem = pem.as_bytes();
            let key = DecodingKey::from_rsa_pem(pem).or_else(|_| DecodingKey::from_ec_pem(pem));
            let key = key.or_else(|_| DecodingKey::from_ed_pem(pem)).context(Unusable::Malformed);
            let key = key.and_then(|key| Ok(Self::public(&Jwk::from_decoding_key(&key, None)?)?));
            key.with_context(|| format!("key {}", index + 1))
        };
        blocks.iter().enumerate().map(key).collect()
    }

    pub(super) fn is_named(&self, kid: &str) -> bool {
        self.kid.as_deref() == Some(kid)
    }

    /// Whether the key has signed the token, with the algorithm of the key.
    pub(super) fn has_signed(&self, token: &Unverified<'_>) -> bool {
        token.is_for(self.algorithm)
            && crypto::verify(token.signature, token.message.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }
}

/// A token whose signature is not verified yet.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    header: Header,
    /// The text that is signed.
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Names extensions that the gateway would have to understand (RFC 7515, section 4.1.11). It understands none.
    crit: Option<IgnoredAny>,
}

impl<'a> Unverified<'a> {
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        header.crit.is_none().then_some(Self { header, message, payload, signature })
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// Whether a public key can have signed the token.
    pub(super) fn may_be_public(&self) -> bool {
        [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].into_iter().any(|algorithm| self.is_for(algorithm))
    }

    /// Whether the token says that it is signed with this algorithm.
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.header.alg.parse() == Ok(algorithm)
    }

    /// The claims. Verify the signature before.
    pub(super) fn claims(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.payload).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::tests::pairs;

    #[test]
    fn any_bytes_are_public_keys_of_the_accepted_types_or_a_short_error() {
        let mut valid = pairs().map(|(_, public, _)| public).to_vec();
        valid.push(valid.concat());
        garage_fuzz::feed(&valid, |bytes| match VerifyingKey::parse_public(&String::from_utf8_lossy(bytes)) {
            Ok(keys) => {
                assert!((1..=MAX_KEYS_IN_FILE).contains(&keys.len()));
                for key in keys {
                    assert!(matches!(key.algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA), "{key:?}");
                    assert_eq!(key.kid, None);
                }
                true
            }
            Err(error) => {
                assert!(format!("{error:#}").len() <= 500, "{error:#}");
                false
            }
        });
    }
}
