//! Projections compared with their log.

use garage_events::projection::{PLAYERS, QUEUES};
use garage_session::{projector::InMemoryProjections, redis::ProjectionsCopy};
use serde_json::json;

use super::{
    super::{
        projections::Projections,
        violation::{Rule, Violation},
    },
    assert_is,
    story::Story,
};

const LOG: &str = "this one";

/// A finished match, and cleo, who waits.
fn story() -> Story {
    let mut story = Story::played(1);
    story.queue("cleo", 3);
    story
}

/// The projections of a projector that has read the whole log.
fn copied(story: &Story) -> ProjectionsCopy {
    let mut folded = InMemoryProjections::default();
    folded.fold_messages(&story.messages);
    let seq = story.messages.last().unwrap().seq;
    ProjectionsCopy { log: Some(LOG.into()), seq, contents: folded.contents().unwrap() }
}

fn compare(copied: ProjectionsCopy, story: &Story) -> Vec<Violation> {
    let mut projections = Projections::new(copied);
    story.messages.iter().for_each(|message| projections.take(message));
    projections.finish(LOG, story.messages.last().unwrap().seq).unwrap()
}

#[test]
fn projections_are_valid_at_every_sequence() {
    let story = story();
    assert_eq!(compare(copied(&story), &story), []);
    for end in 1..story.messages.len() {
        let mut part = story.clone();
        part.messages.truncate(end);
        let mut projections = Projections::new(copied(&part));
        story.messages.iter().for_each(|message| projections.take(message));
        let payments = story.messages[end..].iter().filter(|message| message.subject.contains("inventory")).count();
        assert_eq!(projections.behind(), (story.messages.len() - end - payments) as u64);
        assert_eq!(projections.finish(LOG, 18).unwrap(), []);
    }
}

#[test]
fn a_wrong_or_missing_value_is_reported() {
    let story = story();
    let mut wrong = copied(&story);
    wrong.contents.get_mut(PLAYERS).unwrap().remove("cleo");
    wrong.contents.get_mut(PLAYERS).unwrap().insert("anna".into(), json!({ "status": "waiting" }));
    wrong.contents.get_mut(QUEUES).unwrap().insert("ranked".into(), json!(2));
    let found = compare(wrong, &story);
    assert_is(&found[0], Rule::Projected, Some("anna"), None, &[18]);
    assert_is(&found[1], Rule::Projected, Some("cleo"), None, &[18]);
    assert_is(&found[2], Rule::Projected, None, None, &[18]);
    assert_eq!(found[2].what, "garage:queues ranked is 2, but should be 1");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn missing_projections_and_those_of_another_log_are_reported() {
    let story = story();
    for (wrong, words) in [
        (ProjectionsCopy::default(), "there are no projections"),
        (ProjectionsCopy { log: Some("that one".into()), ..copied(&story) }, "of another log"),
        (ProjectionsCopy { seq: 19, ..copied(&story) }, "beyond the log's end"),
    ] {
        let [violation] = compare(wrong, &story).try_into().unwrap();
        assert_eq!(violation.rule, Rule::Projected);
        assert!(violation.what.contains(words), "{violation}");
    }
}

#[test]
fn values_from_expired_events_are_not_reported() {
    let story = story();
    for forgotten in 1..=17 {
        assert_eq!(compare(copied(&story), &story.forgetting(forgotten)), [], "without the first {forgotten}");
    }
}
