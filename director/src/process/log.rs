//! The last words of an instance, fit for the log of events.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use garage_events::game;

/// As much of a log's end as is read; a last line that is longer is cut at its beginning.
const TAIL: u64 = 4 << 10;

/// Characters of a last line that are kept.
const LENGTH: usize = 200;

/// The shortest piece of a secret that counts as one; a full line of PEM has 64 characters, a seed 58.
const PIECE: usize = 16;

const WITHHELD: &str = "(last line withheld: it holds a secret)";

/// The last line that says something. The event log keeps no secrets, so that a line with a piece of the
/// configuration's, or of anybody's key or token, is withheld.
pub(super) fn last_line(log: &Path, config: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let kept: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LENGTH).collect();
    Some(if holds_secret(line, &kept, config) { WITHHELD.into() } else { kept })
}

/// Whether there is a piece of a secret in what is kept, or anybody's key or token in the whole line.
fn holds_secret(line: &str, kept: &str, config: &Path) -> bool {
    // A token begins with the base64 of `{"`.
    if line.contains("PRIVATE KEY") || line.contains("eyJ") {
        return true;
    }
    // Without the configuration it is unknown what is secret.
    let Some(config) = std::fs::read(config).ok().and_then(|text| serde_json::from_slice::<game::Config>(&text).ok())
    else {
        return true;
    };
    let secrets = [config.private_key.expose(), config.nats.credentials.expose()];
    let is_secret = |piece: &[u8]| secrets.iter().any(|text| text.as_bytes().windows(PIECE).any(|part| part == piece));
    kept.as_bytes().windows(PIECE).any(is_secret)
}
