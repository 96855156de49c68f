//! Checks that every game server belongs to a live session.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;
use garage_director::backend::Name;
use time::{Duration, OffsetDateTime};

use crate::{
    checker::End,
    sessions::{SessionStatus, Sessions},
    violation::{Rule, Violation},
};

/// How long a game server may outlive its session. The director needs some time to remove it.
const GRACE: Duration = Duration::minutes(1);

/// The game servers that have a folder in the director's folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> anyhow::Result<BTreeSet<Name>> {
    let failed = || format!("cannot read the instances in {}", folder.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        names.extend(entry.file_name().to_str().and_then(|name| name.parse::<Name>().ok()));
    }
    Ok(names)
}

/// Checks game servers that existed both before and after the log was read.
pub fn check(instances: &BTreeSet<Name>, sessions: &Sessions, now: OffsetDateTime, end: End) -> Vec<Violation> {
    let wrong = |name: &Name| {
        let violation = |seq, what: &str| {
            Some(Violation::new(Rule::Instance, [seq], format!("{name} {what}")).session(name.session))
        };
        match sessions.get(name.session) {
            None => violation(0, "belongs to no session of the log"),
            Some(SessionStatus::Closed { seq, time }) if end == End::Settled || *time + GRACE < now => {
                violation(*seq, "still exists, but its session is closed")
            }
            Some(SessionStatus::Closed { .. } | SessionStatus::Open(..) | SessionStatus::Unknown) => None,
        }
    };
    instances.iter().filter_map(wrong).collect()
}
