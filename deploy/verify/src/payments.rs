//! Checks that each player who joined a finished match is paid exactly once.

use std::collections::{HashMap, hash_map::Entry};

use garage_events::{
    game::Placing,
    id::{PlayerId, SessionId},
    inventory::RewardGranted,
    session::{Finished, results},
};

use crate::{
    sessions::SessionStatus,
    violation::{Rule, Violation},
};

/// The due payments, and the payments that were made.
#[derive(Debug, Default)]
pub(crate) struct Payments {
    /// For each finished session, the sequence and the results, until all its players are paid.
    owed: HashMap<SessionId, (u64, Finished)>,
    /// The sequence of each payment.
    paid: HashMap<(SessionId, PlayerId), u64>,
    /// Number of payments in the log.
    pub(crate) count: u64,
}

impl Payments {
    /// Adds the results of a finished session.
    pub(crate) fn add_results(&mut self, session: SessionId, seq: u64, finished: &Finished) {
        self.owed.insert(session, (seq, finished.clone()));
    }

    /// Checks a payment. `status` is the status of its session, `None` if the log has no such session.
    pub(crate) fn check(
        &mut self,
        player: &PlayerId,
        seq: u64,
        reward: &RewardGranted,
        status: Option<&SessionStatus>,
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
        match (self.owed.get(&reward.session), status) {
            (Some((finished, Finished { results, teams, .. })), _) => {
                match results.iter().find(|placing| placing.player == *player) {
                    Some(placing) if !placing.joined => {
                        wrong([*finished, seq], "paid, but did not join the match".into());
                    }
                    Some(placing) if results::place(placing, teams) == reward.place => {}
                    Some(placing) => {
                        let place = results::place(placing, teams);
                        let what = format!("paid for place {}, but was in place {place}", reward.place);
                        wrong([*finished, seq], what);
                    }
                    None => wrong([*finished, seq], "paid, but not in the results of the match".into()),
                }
                let is_paid = |placing: &Placing| self.paid.contains_key(&(reward.session, placing.player.clone()));
                if results.iter().all(|placing| !placing.joined || is_paid(placing)) {
                    self.owed.remove(&reward.session);
                }
            }
            // Its results may be older than the log.
            (None, Some(SessionStatus::Unknown)) => {}
            (None, Some(SessionStatus::Open(_, last) | SessionStatus::Closed { seq: last, .. })) => {
                wrong([*last, seq], "paid, but no payment for the match is due".into());
            }
            (None, None) => wrong([0, seq], "paid for a session that does not exist".into()),
        }
    }

    /// The players that are not paid yet, with the session, and the sequence of its results.
    pub(crate) fn unpaid(&self) -> impl Iterator<Item = (&PlayerId, SessionId, u64)> {
        self.owed.iter().flat_map(|(session, (seq, Finished { results, .. }))| {
            let unpaid = |player: &&PlayerId| !self.paid.contains_key(&(*session, (*player).clone()));
            let joined = results.iter().filter(|placing| placing.joined);
            joined.map(|placing| &placing.player).filter(unpaid).map(|player| (player, *session, *seq))
        })
    }
}
