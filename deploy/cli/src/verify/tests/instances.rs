//! Game servers that are there.

use garage_director::backend::Name;
use time::{Duration, OffsetDateTime};

use super::{
    super::{
        checker::End,
        instances::{judge, list},
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
    let judged = |number: u128, now: OffsetDateTime, end| {
        let found = judge(&[name(number)].into(), checker.sessions(), now, end);
        found.into_iter().map(|one| (one.rule, one.session, one.seqs)).collect::<Vec<_>>()
    };
    let wrong = |number: u128, seqs: &[u64]| vec![(Rule::Instance, Some(story::session(number)), seqs.to_vec())];
    let (soon, late) = (BEGAN + Duration::MINUTE, BEGAN + Duration::HOUR);
    assert_eq!(judged(2, late, End::Settled), []);
    // Its director may not have removed it yet.
    assert_eq!(judged(1, soon, End::Open), []);
    assert_eq!(judged(1, late, End::Open), wrong(1, &[13]));
    assert_eq!(judged(1, soon, End::Settled), wrong(1, &[13]));
    assert_eq!(judged(3, soon, End::Open), wrong(3, &[]));
}

#[test]
fn an_instance_is_known_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (name(1), name(2));
    for entry in [one.to_string(), format!(".gone-{other}"), "else".into()] {
        std::fs::create_dir(folder.path().join(entry)).unwrap();
    }
    assert_eq!(list(folder.path()).unwrap(), [one].into());
    assert!(list(&folder.path().join("nowhere")).is_err());
}
