//! What an operator selects events by, and where he has them published once more.

use std::str::FromStr;

use super::BadSubject;

/// First tokens that are spoken for: the streams' own, requests, inboxes, and what belongs to the server.
const TAKEN: [&str; 7] = ["garage", "timer", "report", "dead", "retry", "svc", "_INBOX"];

/// Selects messages: a subject in which a token may be `*`, and the last one `>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// As the server takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Filter {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Self, BadSubject> {
        let last = text.split('.').count();
        let fits = |(at, token): (usize, &str)| token == "*" || (token == ">" && at == last) || is_literal(token);
        if (1..).zip(text.split('.')).all(fits) { Ok(Self(text.into())) } else { Err(shape(text)) }
    }
}

/// What stands before an event's own subject where it is published once more. It is never one under which a stream of
/// Garage would take it for news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The subject of a replayed message.
    pub fn of(&self, subject: &str) -> String {
        format!("{}.{subject}", self.0)
    }

    /// Selects all that is replayed under it.
    pub fn filter(&self) -> String {
        format!("{}.>", self.0)
    }
}

impl FromStr for Prefix {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Self, BadSubject> {
        if !text.split('.').all(is_literal) {
            return Err(shape(text));
        }
        match text.split('.').next() {
            Some(first) if TAKEN.contains(&first) || first.starts_with('$') => Err(BadSubject::Taken(first.into())),
            _ => Ok(Self(text.into())),
        }
    }
}

fn is_literal(token: &str) -> bool {
    !token.is_empty() && !token.contains(|c: char| c == '*' || c == '>' || c.is_whitespace() || c.is_control())
}

fn shape(text: &str) -> BadSubject {
    BadSubject::Shape(text.chars().take(128).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_wildcards_where_the_server_takes_them() {
        for good in ["garage.>", "garage.*.*.closed", ">", "*", "garage.player.p=401"] {
            assert_eq!(good.parse::<Filter>().unwrap().as_str(), good);
        }
        for bad in ["", "garage.", ".x", "garage..x", "garage.>.x", "gar*ge", "a b", "a.x>", "a\nb"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_replayed_never_lands_in_a_stream_of_ours() {
        for good in ["lab", "lab.monday", "garages", "replay.garage"] {
            let prefix: Prefix = good.parse().unwrap();
            assert_eq!(prefix.of("garage.player.anna"), format!("{good}.garage.player.anna"));
        }
        for taken in ["garage", "garage.x", "timer", "report.x", "dead.session", "retry", "svc", "$JS", "_INBOX.x"] {
            let first = taken.split('.').next().unwrap();
            assert_eq!(taken.parse::<Prefix>(), Err(BadSubject::Taken(first.into())), "{taken}");
        }
        for bad in ["", "*", "lab.*", "lab.>", "lab.", "la b"] {
            assert!(matches!(bad.parse::<Prefix>(), Err(BadSubject::Shape(_))), "{bad:?}");
        }
    }
}
