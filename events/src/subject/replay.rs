//! How an operator selects events, and the prefix under which `garage replay` publishes them again.

use std::str::FromStr;

use super::BadSubject;

/// First tokens that Garage uses: for its streams, for requests and for inboxes. `$`, for the server's own subjects, is
/// checked separately.
const RESERVED: [&str; 7] = ["garage", "timer", "report", "dead", "retry", "svc", "_INBOX"];

/// A subject filter. Any token may be `*`, and the last one may be `>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// The filter in the form that NATS uses.
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

/// The prefix of the subjects of replayed events. A valid prefix never makes a subject that a stream of Garage would
/// store as a new event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The subject of a replayed message.
    pub fn of(&self, subject: &str) -> String {
        format!("{}.{subject}", self.0)
    }

    /// The filter that selects everything that is replayed under this prefix.
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
            Some(first) if RESERVED.contains(&first) || first.starts_with('$') => {
                Err(BadSubject::Reserved(first.into()))
            }
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
    fn a_filter_has_wildcards_only_where_the_server_accepts_them() {
        for good in ["garage.>", "garage.*.*.closed", ">", "*", "garage.player.p=401"] {
            assert_eq!(good.parse::<Filter>().unwrap().as_str(), good);
        }
        for bad in ["", "garage.", ".x", "garage..x", "garage.>.x", "gar*ge", "a b", "a.x>", "a\nb"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_replayed_message_never_lands_in_a_stream_of_garage() {
        for good in ["lab", "lab.monday", "garages", "replay.garage"] {
            let prefix: Prefix = good.parse().unwrap();
            assert_eq!(prefix.of("garage.player.anna"), format!("{good}.garage.player.anna"));
        }
        for taken in ["garage", "garage.x", "timer", "report.x", "dead.session", "retry", "svc", "$JS", "_INBOX.x"] {
            let first = taken.split('.').next().unwrap();
            assert_eq!(taken.parse::<Prefix>(), Err(BadSubject::Reserved(first.into())), "{taken}");
        }
        for bad in ["", "*", "lab.*", "lab.>", "lab.", "la b"] {
            assert!(matches!(bad.parse::<Prefix>(), Err(BadSubject::Shape(_))), "{bad:?}");
        }
    }
}
