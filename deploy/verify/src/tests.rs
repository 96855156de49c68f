//! Valid logs, and forged ones: each test breaks one invariant.

mod instances;
mod legal;
mod parties;
mod payments;
mod projections;
mod proposals;
mod reported;
mod rules;
mod sessions;
mod story;
mod tickets;
mod truncated;
mod written;

use garage_events::{
    inventory::RewardGranted,
    player::{self, CancelReason, Cancelled, Ending, Released, TimedOut},
    session::{self, Closed, Failed, Finished, PodFailed},
    subject::Aggregate,
};
use serde_json::json;

use self::story::{Story, address, placing, queued, session, ticket};
use super::{
    checker::{End, Summary},
    violation::{Rule, Violation},
};

/// The only violation in a log.
#[track_caller]
fn only(story: &Story) -> Violation {
    let (found, _) = story.check(End::Open);
    let [violation] = found.try_into().unwrap_or_else(|found: Vec<_>| panic!("{found:#?}"));
    violation
}

/// Asserts the rule, the player, the session and the sequences of a violation.
#[track_caller]
fn assert_is(found: &Violation, rule: Rule, player: Option<&str>, session: Option<u128>, seqs: &[u64]) {
    let subject = (found.player.as_ref().map(|player| player.as_str()), found.session);
    assert_eq!((found.rule, subject), (rule, (player, session.map(story::session))), "{found}");
    assert_eq!(found.seqs, seqs, "{found}");
}

/// The violations of one rule.
fn of_rule(story: &Story, rule: Rule) -> Vec<Violation> {
    let (mut found, _) = story.check(End::Open);
    found.retain(|violation| violation.rule == rule);
    found
}

#[test]
fn a_match_that_is_played_and_paid_is_valid() {
    let story = Story::played(1);
    let (found, summary) = story.check(End::Settled);
    assert_eq!(found, []);
    let expected = Summary { events: 17, players: 2, sessions: 1, tickets: 2, paid: 2, open: 0, truncated: 0 };
    assert_eq!(summary, expected);
}

#[test]
fn unfinished_sessions_and_tickets_are_violations_only_when_the_log_must_be_settled() {
    let mut story = Story::played(1);
    story.queue("cleo", 3);
    story.matched(2, &[("dora", 4), ("emil", 5)]);
    let (found, summary) = story.check(End::Open);
    assert_eq!((found, summary.open), (vec![], 2));
    let (found, _) = story.check(End::Settled);
    assert_is(&found[0], Rule::Settled, Some("cleo"), None, &[18]);
    assert_is(&found[1], Rule::Settled, None, Some(2), &[21]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn an_unpaid_player_is_a_violation_only_when_the_log_must_be_settled() {
    let mut story = Story::played(1);
    story.messages.pop();
    let (found, summary) = story.check(End::Open);
    assert_eq!((found, summary.open, summary.paid), (vec![], 1, 1));
    let (found, _) = story.check(End::Settled);
    assert_is(&found[0], Rule::Settled, Some("bert"), Some(1), &[12]);
    assert_eq!(found.len(), 1, "{found:?}");
}
