//! Game servers that still exist.

use garage_director::backend::Name;
use time::{Duration, OffsetDateTime};

use super::{
    super::{
        checker::End,
        instances::{check, list},
        violation::Rule,
    },
    story::{self, BEGAN, Story},
};

fn name(number: u128) -> Name {
    Name { session: story::session(number), attempt: 1 }
}

#[test]
fn an_instance_belongs_to_a_session_that_is_not_closed() {
    let mut story = Story::played(1);
    story.matched(2, &[("anna", 3)]);
    let checker = story.checker();
    let checked = |number: u128, now: OffsetDateTime, end| {
        let found = check(&[name(number)].into(), checker.sessions(), now, end);
        found.into_iter().map(|one| (one.rule, one.session, one.seqs)).collect::<Vec<_>>()
    };
    let wrong = |number: u128, seqs: &[u64]| vec![(Rule::Instance, Some(story::session(number)), seqs.to_vec())];
    let (soon, late) = (BEGAN + Duration::MINUTE, BEGAN + Duration::HOUR);
    assert_eq!(checked(2, late, End::Settled), []);
    // The director may still be about to remove it.
    assert_eq!(checked(1, soon, End::Open), []);
    assert_eq!(checked(1, late, End::Open), wrong(1, &[13]));
    assert_eq!(checked(1, soon, End::Settled), wrong(1, &[13]));
    assert_eq!(checked(3, soon, End::Open), wrong(3, &[]));
}

#[test]
fn instances_are_found_by_their_folder_names() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (name(1), name(2));
    for entry in [one.to_string(), format!(".gone-{other}"), "else".into()] {
        std::fs::create_dir(folder.path().join(entry)).unwrap();
    }
    assert_eq!(list(folder.path()).unwrap(), [one].into());
    assert!(list(&folder.path().join("nowhere")).is_err());
}
