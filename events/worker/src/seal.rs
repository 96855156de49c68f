//! Seals (encrypts) a game server's secrets on their way from the session worker to the director: AES-256-GCM with a
//! key that only these two workers have. Redis stores only the sealed form.
//!
//! Format, version 2: `version (1 byte) ‖ id of the key (8 bytes) ‖ nonce (12 bytes) ‖ ciphertext and tag`. While keys
//! are rotated, the id selects the right key. Version 1 has no id, so each key is tried. The fingerprint is the
//! associated data: a sealed secret that is stored under another game server's fingerprint cannot be opened.

use std::{fmt, fs, path::Path};

use aes_gcm::{
    Aes256Gcm, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use garage_events::game::key_id;
use rand::RngExt;

/// The format version that this build writes.
const VERSION: u8 = 2;

/// The format version without a key id. An older session worker may still write it during an upgrade.
const VERSION_WITHOUT_ID: u8 = 1;

/// Length of a key's id in bytes.
const ID: usize = 8;

/// Length of the nonce in bytes: 96 bits, as NIST SP 800-38D recommends for AES-GCM (5.2.1.1). With random nonces, one
/// key may seal 2^32 times (8.3). At one game server per millisecond this takes 49 days; rotate the key before that.
const NONCE: usize = 12;

/// A 256-bit key that seals.
#[derive(Clone)]
pub struct SealKey {
    id: [u8; ID],
    cipher: Box<Aes256Gcm>,
}

impl SealKey {
    /// Uses these 32 bytes as the key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { id: key_id("seal", key), cipher: Box::new(Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))) }
    }

    /// Reads a key from a file that contains 32 bytes as base64 or as 64 hex digits. Create one with
    /// `openssl rand -base64 32`.
    ///
    /// # Errors
    /// When the file cannot be read or has other content. The error names the file and never repeats its content.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read the seal key in {}", path.display()))?;
        let key = parse(text.trim()).with_context(|| {
            format!("the seal key in {} is not 32 bytes in base64 or 64 hex digits", path.display())
        })?;
        Ok(Self::new(&key))
    }

    /// Seals a plaintext for the game server with this fingerprint.
    ///
    /// # Errors
    /// [`SealError::TooLong`]
    pub fn seal(&self, plaintext: &[u8], fingerprint: &str) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE] = rand::rng().random();
        let payload = Payload { msg: plaintext, aad: fingerprint.as_bytes() };
        let ciphertext =
            self.cipher.encrypt(&Nonce::from(nonce), payload).map_err(|aes_gcm::Error| SealError::TooLong)?;
        let mut sealed = Vec::with_capacity(1 + ID + NONCE + ciphertext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    fn open(&self, rest: &[u8], fingerprint: &str) -> Result<Vec<u8>, SealError> {
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>().ok_or(SealError::Truncated)?;
        let payload = Payload { msg: ciphertext, aad: fingerprint.as_bytes() };
        // The library's error has no details on purpose: they could help an attacker. So there is no source to keep.
        self.cipher.decrypt(&Nonce::from(*nonce), payload).map_err(|aes_gcm::Error| SealError::Forged)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// The keys that open sealed secrets: the current one and, during a rotation, a second one.
#[derive(Debug, Clone)]
pub struct SealKeys(Vec<SealKey>);

impl SealKeys {
    /// Takes the current key, and during a rotation `also` the next or the previous one.
    pub fn new(key: SealKey, also: Option<SealKey>) -> Self {
        Self([key].into_iter().chain(also).collect())
    }

    /// Opens a secret that one of the keys has sealed for the game server with this fingerprint.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn open(&self, sealed: &[u8], fingerprint: &str) -> Result<Vec<u8>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Truncated)?;
        match *version {
            VERSION => {
                let (id, rest) = rest.split_first_chunk::<ID>().ok_or(SealError::Truncated)?;
                let key = self.0.iter().find(|key| key.id == *id).ok_or(SealError::UnknownKey)?;
                key.open(rest, fingerprint)
            }
            VERSION_WITHOUT_ID => {
                let opened = self.0.iter().find_map(|key| key.open(rest, fingerprint).ok());
                opened.ok_or(SealError::Forged)
            }
            version => Err(SealError::Version(version)),
        }
    }
}

fn parse(text: &str) -> Option<[u8; 32]> {
    if text.len() == 64 {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, _) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? * 16 + digit(*low)?)).collect();
        return bytes?.try_into().ok();
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// AES-GCM accepts at most 64 GiB.
    #[error("the text is too long to be sealed")]
    TooLong,
    /// The sealed form ends too early.
    #[error("the sealed secret is truncated")]
    Truncated,
    /// The sealed form has this version, which this build does not know.
    #[error("the sealed secret has format version {0}, which this build does not know")]
    Version(u8),
    /// It was sealed with a key that this process does not have.
    #[error("the sealed secret needs a seal key that is not configured; pass that key with --seal-key-also-file")]
    UnknownKey,
    /// Authentication failed: another key, another fingerprint, or modified data.
    #[error("the sealed secret cannot be opened: wrong seal key, wrong fingerprint, or modified data")]
    Forged,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn key(fill: u8) -> SealKey {
        SealKey::new(&[fill; 32])
    }

    fn only(fill: u8) -> SealKeys {
        SealKeys::new(key(fill), None)
    }

    /// Converts version 2 to version 1.
    fn without_id(sealed: &[u8]) -> Vec<u8> {
        [&[VERSION_WITHOUT_ID], &sealed[1 + ID..]].concat()
    }

    #[test]
    fn a_sealed_secret_opens_with_its_key_and_fingerprint() {
        let sealed = key(7).seal(b"secret", "f1").unwrap();
        assert_eq!(only(7).open(&sealed, "f1").unwrap(), b"secret");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(sealed, key(7).seal(b"secret", "f1").unwrap(), "a nonce was used twice");
    }

    #[test]
    fn a_sealed_secret_does_not_open_with_another_fingerprint_or_key() {
        let sealed = key(7).seal(b"secret", "f1").unwrap();
        assert_eq!(only(7).open(&sealed, "f2"), Err(SealError::Forged));
        assert_eq!(only(8).open(&sealed, "f1"), Err(SealError::UnknownKey));
        assert_eq!(only(8).open(&without_id(&sealed), "f1"), Err(SealError::Forged));
    }

    #[test]
    fn during_a_rotation_both_keys_open() {
        let keys = SealKeys::new(key(7), Some(key(8)));
        for fill in [7, 8] {
            let sealed = key(fill).seal(b"secret", "f1").unwrap();
            assert_eq!(sealed[0], 2);
            assert_eq!(keys.open(&sealed, "f1").unwrap(), b"secret");
            assert_eq!(keys.open(&without_id(&sealed), "f1").unwrap(), b"secret");
            assert_eq!(keys.open(&sealed, "f2"), Err(SealError::Forged));
        }
        assert_eq!(keys.open(&key(9).seal(b"secret", "f1").unwrap(), "f1"), Err(SealError::UnknownKey));
    }

    #[test]
    fn the_id_of_one_key_does_not_open_what_another_sealed() {
        let keys = SealKeys::new(key(7), Some(key(8)));
        let mut sealed = key(7).seal(b"secret", "f1").unwrap();
        sealed[1..=ID].copy_from_slice(&key(8).id);
        assert_eq!(keys.open(&sealed, "f1"), Err(SealError::Forged));
    }

    #[test]
    fn the_id_of_a_key_does_not_reveal_the_key() {
        assert_ne!(key(7).id, key(8).id);
        assert!(!KEY.starts_with(&key(7).id));
        assert_ne!(key(7).id, key_id("jwt", &KEY), "the same bytes used as another kind of key have another id");
    }

    #[test]
    fn a_truncated_secret_does_not_open() {
        let sealed = key(7).seal(b"secret", "f1").unwrap();
        for length in 0..sealed.len() {
            assert!(only(7).open(&sealed[..length], "f1").is_err(), "{length}");
        }
        assert_eq!(only(7).open(&[], "f1"), Err(SealError::Truncated));
    }

    #[test]
    fn a_secret_with_a_flipped_bit_does_not_open() {
        let sealed = key(7).seal(b"secret", "f1").unwrap();
        for index in 0..sealed.len() {
            for bit in 0..8 {
                let mut forged = sealed.clone();
                forged[index] ^= 1 << bit;
                assert!(only(7).open(&forged, "f1").is_err(), "{index}");
            }
        }
        let mut newer = sealed;
        newer[0] = 3;
        assert_eq!(only(7).open(&newer, "f1"), Err(SealError::Version(3)));
    }

    #[test]
    fn a_key_file_contains_base64_or_hex_and_anything_else_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let sealed = key(7).seal(b"secret", "f1").unwrap();
        for text in [format!("{}\n", STANDARD.encode(KEY)), "07".repeat(32)] {
            std::fs::write(&file, text).unwrap();
            let read = SealKeys::new(SealKey::from_file(&file).unwrap(), None);
            assert_eq!(read.open(&sealed, "f1").unwrap(), b"secret");
        }
        for text in ["", "geheim", &"0".repeat(63), &"x".repeat(64), &STANDARD.encode([7; 16])] {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", SealKey::from_file(&file).unwrap_err());
            assert!(error.contains("32 bytes") && (text.is_empty() || !error.contains(text)), "{error}");
        }
    }

    #[test]
    fn debug_output_does_not_contain_the_key() {
        let keys = SealKeys::new(key(7), Some(key(8)));
        assert_eq!(format!("{keys:?}"), "SealKeys([SealKey(…), SealKey(…)])");
    }
}
