//! Projections beside the log that they are of.

use garage_events::projection::{PLAYERS, QUEUES};
use garage_session::{projector::Whole, redis::Copied};
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

/// A match that is over, and cleo, who waits.
fn story() -> Story {
    let mut story = Story::played(1);
    story.queue("cleo", 3);
    story
}

/// What a projector that has read all of it holds.
fn copied(story: &Story) -> Copied {
    let mut whole = Whole::default();
    whole.take(&story.messages);
    let seq = story.messages.last().unwrap().seq;
    Copied { log: Some(LOG.into()), seq, held: whole.held().unwrap() }
}

fn compare(copied: Copied, story: &Story) -> Vec<Violation> {
    let mut projections = Projections::new(copied);
    story.messages.iter().for_each(|message| projections.take(message));
    projections.finish(LOG, story.messages.last().unwrap().seq).unwrap()
}

#[test]
fn what_a_projector_holds_is_right_wherever_it_stands() {
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
fn what_is_wrong_is_named() {
    let story = story();
    let mut wrong = copied(&story);
    wrong.held.get_mut(PLAYERS).unwrap().remove("cleo");
    wrong.held.get_mut(PLAYERS).unwrap().insert("anna".into(), json!({ "status": "waiting" }));
    wrong.held.get_mut(QUEUES).unwrap().insert("ranked".into(), json!(2));
    let found = compare(wrong, &story);
    assert_is(&found[0], Rule::Projected, Some("anna"), None, &[18]);
    assert_is(&found[1], Rule::Projected, Some("cleo"), None, &[18]);
    assert_is(&found[2], Rule::Projected, None, None, &[18]);
    assert_eq!(found[2].what, "garage:queues ranked is 2 and the log makes it 1");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn projections_of_another_log_or_of_none_are_not_compared() {
    let story = story();
    for (wrong, words) in [
        (Copied::default(), "there are no projections"),
        (Copied { log: Some("that one".into()), ..copied(&story) }, "of another log"),
        (Copied { seq: 19, ..copied(&story) }, "beyond the log's end"),
    ] {
        let [violation] = compare(wrong, &story).try_into().unwrap();
        assert_eq!(violation.rule, Rule::Projected);
        assert!(violation.what.contains(words), "{violation}");
    }
}

#[test]
fn what_is_of_before_the_log_is_not_missed() {
    let story = story();
    for forgotten in 1..=17 {
        assert_eq!(compare(copied(&story), &story.forgetting(forgotten)), [], "without the first {forgotten}");
    }
}
