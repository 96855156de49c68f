//! Makes the matches of a log again, from what the log records of each decision.

use std::collections::{BTreeMap, HashSet};

use garage_events::{
    event::{Envelope, Recorded},
    log::Head,
    player,
    queue::SEARCH_STEPS,
    rules::{RuleSetId, Rules},
    session::Matched,
    subject::Aggregate,
};
use garage_matchmaker::domain::{Pool, Proposal, bounds, propose};
use time::OffsetDateTime;

/// The time-out of a rule set's tickets has no effect on its matches.
const TIMEOUT_S: u64 = 3_600;

/// Checks that each match is one of those that its rule set makes of its pool: the fold of the log up to `pool_seq`,
/// without the tickets that were left out. A message is its sequence, subject and body. Returns the number of matches.
pub(crate) fn check<'a>(
    messages: impl Iterator<Item = (u64, &'a str, &'a [u8])> + Clone,
    rule_sets: impl Iterator<Item = &'a String>,
) -> Result<usize, String> {
    let read = |text: &'a String| Ok((RuleSetId::of(text), Rules::read(text, TIMEOUT_S)?));
    let rule_sets = rule_sets.map(read).collect::<Result<BTreeMap<_, _>, String>>()?;
    let mut matches: Vec<(u64, Matched)> = Vec::new();
    for (seq, subject, body) in messages.clone() {
        if subject.ends_with(".matched") && matches!(Aggregate::of(subject), Some(Aggregate::Session(_))) {
            let envelope = Envelope::from_slice(body).map_err(|error| format!("event {seq}: {error}"))?;
            let matched = serde_json::from_str(envelope.data.get()).map_err(|error| format!("event {seq}: {error}"))?;
            matches.push((seq, matched));
        }
    }
    matches.sort_by_key(|(_, matched)| matched.pool_seq);
    let (mut pool, mut messages) = (Pool::default(), messages.peekable());
    for (seq, matched) in &matches {
        while let Some((at, subject, body)) = messages.next_if(|(at, ..)| *at <= matched.pool_seq) {
            if let Some(Aggregate::Player(player)) = Aggregate::of(subject) {
                let recorded = Recorded::<player::Event>::decode(at, OffsetDateTime::UNIX_EPOCH, body);
                let recorded = recorded.map_err(|error| format!("event {at}: {error}"))?;
                pool.fold(&player, Head { seq: at, n: recorded.n }, &recorded.event);
            }
        }
        let rules = matched.rules.parse().ok().and_then(|id: RuleSetId| rule_sets.get(&id));
        let rules = rules.ok_or_else(|| format!("event {seq}: its rule set {} is not known", matched.rules))?;
        let left_out: HashSet<u64> = matched.left_out.iter().map(|before| matched.pool_seq - before).collect();
        let tickets = pool.tickets(&matched.queue);
        let tickets = tickets.filter(|ticket| !ticket.iter().any(|player| left_out.contains(&player.head().seq)));
        let bounds = bounds(matched.search_steps.unwrap_or(SEARCH_STEPS));
        let made = propose(rules, bounds, tickets, matched.seed, matched.clock);
        let same = |proposal: &Proposal| {
            proposal.recorded_teams() == matched.teams
                && proposal.region == matched.region
                && proposal.latencies == matched.latencies
        };
        if !made.iter().any(same) {
            return Err(format!("event {seq}: the pool at {} does not make this match again", matched.pool_seq));
        }
    }
    Ok(matches.len())
}
