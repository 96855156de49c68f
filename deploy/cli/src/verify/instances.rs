//! Whether every instance of a game server belongs to a session that lives.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;
use garage_director::backend::Name;
use time::{Duration, OffsetDateTime};

use super::{
    checker::End,
    sessions::{Sessions, Standing},
    violation::{Rule, Violation},
};

/// How long an instance may outlive its session: until its director has heard of the end, and removed it.
const GRACE: Duration = Duration::minutes(1);

/// The instances that have a folder.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn list(folder: &Path) -> anyhow::Result<BTreeSet<Name>> {
    let failed = || format!("cannot read the instances in {}", folder.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        names.extend(entry.file_name().to_str().and_then(|name| name.parse::<Name>().ok()));
    }
    Ok(names)
}

/// Judges instances that were there before the log was read, and still were after it.
pub(crate) fn judge(instances: &BTreeSet<Name>, sessions: &Sessions, now: OffsetDateTime, end: End) -> Vec<Violation> {
    let wrong = |name: &Name| {
        let violation = |seq, what: &str| {
            Some(Violation::new(Rule::Instance, [seq], format!("{name} {what}")).session(name.session))
        };
        match sessions.get(name.session) {
            None => violation(0, "is of no session of the log"),
            Some(Standing::Closed { seq, time }) if end == End::Settled || *time + GRACE < now => {
                violation(*seq, "is there, and its session is closed")
            }
            Some(Standing::Closed { .. } | Standing::Open(..) | Standing::Unknown) => None,
        }
    };
    instances.iter().filter_map(wrong).collect()
}
