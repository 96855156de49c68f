//! Secrets that must not be in the log.

use std::{fs, path::Path};

use anyhow::{Context, ensure};

/// Minimum length of a line in bytes. A shorter line could match other text by chance.
const MIN_LENGTH: usize = 8;

/// Parts of private keys in base64 that every key contains: PKCS #8 of RSA after the length field, PKCS #8 of Ed25519,
/// and PKCS #1 after the length field.
const BASE64_KEYS: [&str; 3] = ["AIBADANBgkqhkiG9w0BAQEFAASC", "MC4CAQAwBQYDK2VwBCIEI", "AIBAAKCAQEA"];

/// The same parts of PKCS #8 keys, in DER.
const DER_KEYS: [&[u8]; 2] = [
    b"\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x04\x82",
    b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20",
];

/// Secrets that must not be in the log, in addition to private keys and tokens.
#[derive(Debug, Default)]
pub struct Secrets(Vec<Secret>);

struct Secret {
    file: String,
    line: String,
}

// The secret is never printed.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Adds every line of a file as a secret, because each line of a PEM file reveals a part of the key.
    ///
    /// # Errors
    /// If the file cannot be read, contains a public key, or has only short lines.
    pub fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the secret in {file}"))?;
        ensure!(!text.contains("PUBLIC KEY"), "{file} contains a public key, which is not a secret");
        let before = self.0.len();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("-----")) {
            // The last line of a key may be very short.
            if line.len() >= MIN_LENGTH {
                self.0.push(Secret { file: file.clone(), line: line.to_owned() });
            }
        }
        ensure!(self.0.len() > before, "{file} has no line of at least {MIN_LENGTH} characters");
        Ok(())
    }

    /// Describes the secret that the bytes contain, without repeating it. `None` if there is none.
    pub fn find(&self, bytes: &[u8]) -> Option<String> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            let is_key = DER_KEYS.iter().any(|key| bytes.windows(key.len()).any(|window| window == *key));
            return if is_key { Some("a private key".into()) } else { self.find_in(&String::from_utf8_lossy(bytes)) };
        };
        self.find_in(text)
    }

    fn find_in(&self, text: &str) -> Option<String> {
        if text.contains("PRIVATE KEY") || BASE64_KEYS.iter().any(|key| text.contains(key)) {
            return Some("a private key".into());
        }
        if holds_token(text) {
            return Some("a token".into());
        }
        let held = self.0.iter().find(|secret| text.contains(&secret.line))?;
        Some(format!("the secret in {}", held.file))
    }
}

/// Whether the text contains a JWT: base64 of `{"`, characters of base64url, a dot, and base64 of `{"` again.
fn holds_token(text: &str) -> bool {
    let is_base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices("eyJ").any(|(at, _)| {
        let tail = text.get(at..).unwrap_or_default();
        tail.trim_start_matches(is_base64url).starts_with(".eyJ")
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn private_keys_and_tokens_are_found() {
        let secrets = Secrets::default();
        for (text, expected) in [
            ("-----BEGIN PRIVATE KEY-----", Some("a private key")),
            ("-----BEGIN RSA PRIVATE KEY-----", Some("a private key")),
            ("MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQC", Some("a private key")),
            ("MIIEpAIBAAKCAQEAr", Some("a private key")),
            ("MC4CAQAwBQYDK2VwBCIEIDkL", Some("a private key")),
            ("Bearer eyJhbGciOi-_J9.eyJzdWIi.x", Some("a token")),
            ("eyJ eyJhbGci.eyJzdWIi", Some("a token")),
            ("eyJ and .eyJ", None),
            ("-----BEGIN PUBLIC KEY-----\\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEArUXn", None),
            ("all is well", None),
        ] {
            assert_eq!(secrets.find(text.as_bytes()).as_deref(), expected, "{text}");
        }
        let rsa = [&b"\x30\x82\x04\xbc"[..], DER_KEYS[0]].concat();
        for key in [&rsa, &DER_KEYS[1].to_vec()] {
            let body = [&b"\xff\xfe"[..], key, b"\x00\x01"].concat();
            assert_eq!(secrets.find(&body).as_deref(), Some("a private key"));
        }
        assert_eq!(secrets.find(b"\xff\xfe nothing"), None);
    }

    #[test]
    fn the_secret_of_a_file_is_found_and_not_repeated() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"-----BEGIN X-----\ncorrect-horse-battery\nab==\n-----END X-----\n").unwrap();
        let mut secrets = Secrets::default();
        secrets.add(file.path()).unwrap();
        let found = secrets.find(br#"{"data":"the password is correct-horse-battery!"}"#).unwrap();
        assert_eq!(found, format!("the secret in {}", file.path().display()));
        assert_eq!(secrets.find(b"ab== and -----BEGIN X-----"), None);
        assert!(!format!("{secrets:?}").contains("battery"));
    }

    #[test]
    fn a_file_without_a_secret_is_refused() {
        for text in ["", "short\n", "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n"] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert!(Secrets::default().add(file.path()).is_err(), "{text:?}");
        }
        assert!(Secrets::default().add(Path::new("/nonexistent")).is_err());
    }
}
