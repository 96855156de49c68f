//! Why a match failed: the text for operators, and the code for players.

use serde::{Deserialize, Serialize};

/// The reason of a failed attempt when there was no room for the game server: a used-up quota, no node with enough
/// room, or no free port. Such an attempt does not count. The session tries again until its ready deadline.
pub const NO_CAPACITY: &str = "no-capacity";

/// The reason of a failed attempt whose game server sent a report that cannot be used.
pub const BAD_REPORT: &str = "bad-report";

/// The reason of a failed attempt whose game server broke the contract.
pub const MISBEHAVED: &str = "misbehaved";

/// The reason of a session that failed because a player had left before the game server was ready.
pub const PLAYER_LEFT: &str = "player-left";

/// The reason of a session that reached its hard end.
pub const HARD_END: &str = "hard-end";

/// Why a match failed, as a code for players and their clients. Operators find details in the session's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// There was no room for a game server in the region.
    NoCapacity,
    /// No game server could be started.
    ServerFailed,
    /// The game server was lost during the match.
    ServerLost,
    /// The game server sent results that cannot be used.
    BadResults,
    /// A player left before the game server was ready.
    PlayerLeft,
    /// A player of another ticket did not accept the proposed match.
    NotAccepted,
    /// The match did not end within its time limit.
    TimeLimit,
    /// A code of a newer build.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The code for a session that failed for this reason (see [`crate::session::Failed`]), before or after its players
    /// received the game server's address.
    pub fn of(reason: &str, opened: bool) -> Self {
        match reason {
            HARD_END => Self::TimeLimit,
            PLAYER_LEFT => Self::PlayerLeft,
            NO_CAPACITY if !opened => Self::NoCapacity,
            BAD_REPORT | MISBEHAVED if opened => Self::BadResults,
            _ if opened => Self::ServerLost,
            _ => Self::ServerFailed,
        }
    }
}

/// The maximum length of a line in the log, in characters.
const MAX_LINE: usize = 200;

/// The number of characters in a row that count as a key.
const KEY_LENGTH: usize = 40;

/// What replaces a text that may contain a secret.
const WITHHELD: &str = "(withheld: it may contain a secret)";

/// Turns a text from elsewhere, such as a program or a cluster, into a line that the log may contain: printable, short,
/// and without anything that looks like a key or a token.
pub fn line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if is_printable(c) { c } else { ' ' }).collect();
    let line = printable.split_whitespace().collect::<Vec<_>>().join(" ");
    if looks_secret(&line) {
        return WITHHELD.into();
    }
    match line.char_indices().nth(MAX_LINE) {
        None => line,
        Some(_) => line.chars().take(MAX_LINE - 1).chain(['…']).collect(),
    }
}

/// Whether a character can be shown on one line. Others can move the cursor, or reverse the direction of the text.
fn is_printable(c: char) -> bool {
    let reorders =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !reorders
}

fn looks_secret(text: &str) -> bool {
    // PEM, and a JWT: it begins with the base64 of `{"`.
    if text.contains("PRIVATE KEY") || text.contains("NKEY SEED") || text.contains("eyJ") {
        return true;
    }
    let is_key_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-');
    // The digest of an image is no secret.
    text.replace("sha256:", " sha256_").split(|c: char| !is_key_character(c)).any(is_key)
}

/// Whether a word is long and mixes characters as base64 and hex do. Paths and names are not like that.
fn is_key(word: &str) -> bool {
    let is_digest = word.strip_prefix("sha256_").is_some_and(|hex| hex.chars().all(|c| c.is_ascii_hexdigit()));
    let longest = word.split(['/', '-', '_']).map(str::len).max().unwrap_or_default();
    let has = |is: fn(&char) -> bool| word.chars().any(|c| is(&c));
    let (digits, upper, lower) =
        (has(char::is_ascii_digit), has(char::is_ascii_uppercase), has(char::is_ascii_lowercase));
    let mixes_all = word.len() >= 64 && digits && upper && lower && !word.starts_with('/');
    !is_digest && (mixes_all || (longest >= KEY_LENGTH && digits && (upper || lower)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_reason_has_a_code_for_players() {
        for (reason, opened, code) in [
            ("no-capacity", false, "no_capacity"),
            ("exited", false, "server_failed"),
            ("not-ready", false, "server_failed"),
            ("bad-report", false, "server_failed"),
            ("killed", true, "server_lost"),
            ("node-lost", true, "server_lost"),
            ("no-capacity", true, "server_lost"),
            ("bad-report", true, "bad_results"),
            ("misbehaved", true, "bad_results"),
            ("player-left", false, "player_left"),
            ("hard-end", false, "time_limit"),
            ("hard-end", true, "time_limit"),
        ] {
            assert_eq!(serde_json::to_value(Code::of(reason, opened)).unwrap(), code, "{reason} {opened}");
        }
        assert_eq!(serde_json::from_str::<Code>(r#""of_a_newer_build""#).unwrap(), Code::Unknown);
    }

    #[test]
    fn a_line_is_printable_and_short() {
        for (text, expected) in [
            ("exit code 7: no engine", "exit code 7: no engine"),
            ("two\nlines\r\tand  spaces ", "two lines and spaces"),
            ("\u{1b}[31mred\u{1b}[0m", "[31mred [0m"),
            ("a\u{202e}b", "a b"),
            ("", ""),
        ] {
            assert_eq!(line(text), expected, "{text:?}");
        }
        let long = line(&"word ".repeat(100));
        assert!(long.chars().count() == MAX_LINE && long.ends_with('…'), "{long}");
        assert_eq!(line(&"é ".repeat(100)).chars().count(), 199);
    }

    #[test]
    fn a_text_that_looks_like_a_key_or_a_token_is_withheld() {
        for secret in [
            "-----BEGIN PRIVATE KEY-----",
            "token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.c2ln",
            "seed SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4",
            "MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQC7VJTUt9Us8cKj",
            "password=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(line(secret), WITHHELD, "{secret}");
        }
        for harmless in [
            "pods \"game-0198c5a0-7b1e-7c3d-8000-0123456789ab-1\" is forbidden: exceeded quota: games, requested: pods=1",
            "0/12 nodes are available: 12 Insufficient cpu. preemption: 0/12 nodes are available.",
            "Back-off pulling image \"registry.example.org/studio/team/drag-race-game-server-linux:2026.11.30\"",
            "cannot pull registry.example.org/game@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "cannot open /home/games/garage/instances/game-0198c5a0-7b1e-7c3d-8000-0123456789ab-1/assets/engine-v2.pak",
        ] {
            assert_eq!(line(harmless), harmless);
        }
    }

    proptest! {
        #[test]
        fn a_line_of_a_line_is_the_same(text in "\\PC{0,300}") {
            let once = line(&text);
            prop_assert!(once.chars().count() <= MAX_LINE);
            prop_assert_eq!(line(&once), once);
        }
    }
}
