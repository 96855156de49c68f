//! Reads the last line of an instance's output, for the event that says how it ended.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use garage_events::game;

/// The number of bytes that are read from the end of the output. A longer last line loses its beginning.
const TAIL: u64 = 4 << 10;

/// The maximum number of characters in the result.
const MAX_CHARS: usize = 200;

/// The shortest part of a secret that is treated as secret. A full line of PEM has 64 characters, a seed 58.
const PIECE: usize = 16;

const WITHHELD: &str = "(last line withheld: it contains a secret)";

/// The last line that is not empty. The event log must not contain secrets, so the line is withheld if it contains part
/// of a secret from the configuration, or any private key or token.
pub(super) fn last_line(log: &Path, config: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let kept: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect();
    Some(if contains_secret(line, &kept, config) { WITHHELD.into() } else { kept })
}

/// Whether `kept` contains part of a secret from the configuration, or `line` any private key or token.
fn contains_secret(line: &str, kept: &str, config: &Path) -> bool {
    // A JWT begins with the base64 of `{"`.
    if line.contains("PRIVATE KEY") || line.contains("eyJ") {
        return true;
    }
    // Without the configuration, the secrets are not known.
    let Some(config) = std::fs::read(config).ok().and_then(|text| serde_json::from_slice::<game::Config>(&text).ok())
    else {
        return true;
    };
    let secrets = [config.private_key.expose(), config.nats.credentials.expose()];
    let is_secret = |piece: &[u8]| secrets.iter().any(|text| text.as_bytes().windows(PIECE).any(|part| part == piece));
    kept.as_bytes().windows(PIECE).any(is_secret)
}
