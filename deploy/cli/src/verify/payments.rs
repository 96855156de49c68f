//! Payments: each player of a match that was finished is paid once.

use std::collections::{HashMap, hash_map::Entry};

use garage_events::{
    game::Placing,
    id::{PlayerId, SessionId},
    inventory::RewardGranted,
};

use super::{
    sessions::Standing,
    violation::{Rule, Violation},
};

/// What is owed and what was paid.
#[derive(Debug, Default)]
pub(crate) struct Payments {
    /// The results of each session that was finished, until all of it is paid.
    owed: HashMap<SessionId, (u64, Vec<Placing>)>,
    /// Where each player was paid for each session.
    paid: HashMap<(SessionId, PlayerId), u64>,
    /// How many payments there were.
    pub(crate) count: u64,
}

impl Payments {
    /// Notes the results of a session.
    pub(crate) fn owe(&mut self, session: SessionId, seq: u64, results: &[Placing]) {
        self.owed.insert(session, (seq, results.to_vec()));
    }

    /// Judges a payment for a session that stands so.
    pub(crate) fn pay(
        &mut self,
        player: &PlayerId,
        seq: u64,
        reward: &RewardGranted,
        standing: Option<&Standing>,
        found: &mut Vec<Violation>,
    ) {
        self.count += 1;
        let mut wrong = |seqs: [u64; 2], what: String| {
            found.push(Violation::new(Rule::Paid, seqs, what).player(player).session(reward.session));
        };
        match self.paid.entry((reward.session, player.clone())) {
            Entry::Occupied(before) => return wrong([*before.get(), seq], "paid twice".into()),
            Entry::Vacant(first) => drop(first.insert(seq)),
        }
        match (self.owed.get(&reward.session), standing) {
            (Some((finished, results)), _) => {
                match results.iter().find(|placing| placing.player == *player) {
                    Some(placing) if placing.place == reward.place => {}
                    Some(placing) => {
                        let what = format!("paid for place {} and came in at {}", reward.place, placing.place);
                        wrong([*finished, seq], what);
                    }
                    None => wrong([*finished, seq], "paid for a match that owes him nothing".into()),
                }
                let is_paid = |placing: &Placing| self.paid.contains_key(&(reward.session, placing.player.clone()));
                if results.iter().all(is_paid) {
                    self.owed.remove(&reward.session);
                }
            }
            // What came of it may be older than the log.
            (None, Some(Standing::Unknown)) => {}
            (None, Some(Standing::Open(_, last) | Standing::Closed { seq: last, .. })) => {
                wrong([*last, seq], "paid for a match that owes him nothing".into());
            }
            (None, None) => wrong([0, seq], "paid for a match that there never was".into()),
        }
    }

    /// The players who have not been paid, each with the end of his match.
    pub(crate) fn unpaid(&self) -> impl Iterator<Item = (&PlayerId, SessionId, u64)> {
        self.owed.iter().flat_map(|(session, (seq, results))| {
            let unpaid = |player: &&PlayerId| !self.paid.contains_key(&(*session, (*player).clone()));
            results.iter().map(|placing| &placing.player).filter(unpaid).map(|player| (player, *session, *seq))
        })
    }
}
