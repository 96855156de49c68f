//! The open parties by id, member, invited player and code. Pure.

use std::collections::{BTreeSet, HashMap};

use garage_events::{
    id::{PartyId, PlayerId},
    party::{Event, Party, State},
};
use time::OffsetDateTime;

/// The open parties. Between an event and the next removal, it can contain a party whose time is over; the methods with
/// a time do not return it.
#[derive(Debug, Default)]
pub(super) struct Index {
    parties: HashMap<PartyId, Party>,
    members: HashMap<PlayerId, PartyId>,
    invited: HashMap<PlayerId, BTreeSet<PartyId>>,
    /// By the SHA-256 of the code.
    codes: HashMap<String, PartyId>,
}

impl Index {
    /// Replaces a party with its state after an event. Returns its state before.
    pub(super) fn set(&mut self, id: PartyId, event: &Event, now: OffsetDateTime) -> Option<Party> {
        let before = self.remove(id);
        if let Some(party) = State::evolve(event).open(now) {
            self.members.extend(party.players().map(|player| (player.clone(), id)));
            self.codes.extend(party.code.iter().map(|code| (code.sha256.clone(), id)));
            for player in party.invited.keys() {
                self.invited.entry(player.clone()).or_default().insert(id);
            }
            self.parties.insert(id, party);
        }
        self.measure();
        before
    }

    /// Removes the parties whose time is over.
    pub(super) fn take_expired(&mut self, now: OffsetDateTime) -> Vec<(PartyId, Party)> {
        let expired = self.parties.iter().filter(|(_, party)| party.ends_at() <= now).map(|(id, _)| *id);
        let expired: Vec<_> = expired.collect();
        let removed = expired.into_iter().filter_map(|id| Some((id, self.remove(id)?))).collect();
        self.measure();
        removed
    }

    pub(super) fn get(&self, id: PartyId) -> Option<&Party> {
        self.parties.get(&id)
    }

    /// The party that a player is in.
    pub(super) fn of(&self, player: &PlayerId, now: OffsetDateTime) -> Option<(PartyId, &Party)> {
        let id = *self.members.get(player)?;
        self.parties.get(&id).filter(|party| now < party.ends_at()).map(|party| (id, party))
    }

    /// The valid invitations of a player: the party, who invited them, and until when.
    pub(super) fn invitations<'a>(
        &'a self,
        player: &'a PlayerId,
        now: OffsetDateTime,
    ) -> impl Iterator<Item = (PartyId, &'a PlayerId, OffsetDateTime)> {
        let parties = self.invited.get(player).into_iter().flatten();
        parties.filter_map(move |id| {
            let party = self.parties.get(id).filter(|party| now < party.ends_at())?;
            let invitation = party.invited.get(player).filter(|invitation| now < invitation.expires_at)?;
            Some((*id, &invitation.by, invitation.expires_at))
        })
    }

    /// The party whose valid code has this SHA-256.
    pub(super) fn of_code(&self, sha256: &str, now: OffsetDateTime) -> Option<PartyId> {
        let id = *self.codes.get(sha256)?;
        let party = self.parties.get(&id).filter(|party| now < party.ends_at())?;
        party.code.as_ref().filter(|code| now < code.expires_at).map(|_| id)
    }

    fn remove(&mut self, id: PartyId) -> Option<Party> {
        let party = self.parties.remove(&id)?;
        for player in party.players() {
            // The player may have joined another party when the time of this one was over.
            if self.members.get(player) == Some(&id) {
                self.members.remove(player);
            }
        }
        if let Some(code) = &party.code {
            self.codes.remove(&code.sha256);
        }
        for player in party.invited.keys() {
            if let Some(parties) = self.invited.get_mut(player) {
                parties.remove(&id);
                if parties.is_empty() {
                    self.invited.remove(player);
                }
            }
        }
        Some(party)
    }

    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "there are far fewer parties than 2^52")]
        metrics::gauge!("garage_gateway_parties").set(self.parties.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_events::party::{
        CODE_LIFETIME, CodeChanged, Created, Disbanded, Disbanding, INVITATION_LIFETIME, Invitation, JoinCode,
        LIFETIME, Leaving, Member, MemberLeft,
    };
    use time::Duration;
    use uuid::Uuid;

    use super::*;

    const EPOCH: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn id(number: u128) -> PartyId {
        PartyId::new(Uuid::from_u128(number))
    }

    fn player(name: &str) -> PlayerId {
        name.parse().unwrap()
    }

    /// A party of these members, which ann leads, with an invitation for eve.
    fn party(members: &[&str], code: &str) -> Party {
        let member = |name: &&str| Member { player: player(name), joined_at: EPOCH, ready: None, away: false };
        let invitation = Invitation { by: player("ann"), expires_at: EPOCH + INVITATION_LIFETIME };
        Party {
            members: members.iter().map(member).collect(),
            leader: player("ann"),
            invited: BTreeMap::from([(player("eve"), invitation)]),
            code: Some(JoinCode { sha256: code.into(), expires_at: EPOCH + CODE_LIFETIME }),
            renewed_at: EPOCH,
            ticket: None,
        }
    }

    /// Whether ann, bob, the invitation and the code lead to the party with this number.
    fn found(index: &Index, number: u128, code: &str, at: OffsetDateTime) -> [bool; 4] {
        let is_in = |name: &str| index.of(&player(name), at).is_some_and(|(found, _)| found == id(number));
        [
            is_in("ann"),
            is_in("bob"),
            index.invitations(&player("eve"), at).any(|(found, by, _)| found == id(number) && by.as_str() == "ann"),
            index.of_code(code, at) == Some(id(number)),
        ]
    }

    #[test]
    fn a_party_is_found_by_its_members_its_invitations_and_its_code_until_they_expire() {
        let mut index = Index::default();
        index.set(id(1), &Created { state: party(&["ann", "bob"], "c1") }.into(), EPOCH);
        assert_eq!(found(&index, 1, "c1", EPOCH), [true; 4]);
        assert_eq!(found(&index, 1, "c1", EPOCH + Duration::HOUR), [true, true, false, false]);
        assert_eq!(found(&index, 1, "c1", EPOCH + LIFETIME), [false; 4]);
    }

    #[test]
    fn an_event_replaces_everything_that_is_known_about_its_party() {
        let mut index = Index::default();
        index.set(id(1), &Created { state: party(&["ann", "bob"], "c1") }.into(), EPOCH);
        let left = MemberLeft { player: player("bob"), why: Leaving::Left, state: party(&["ann"], "c1") };
        let before = index.set(id(1), &left.into(), EPOCH);
        assert_eq!(before, Some(party(&["ann", "bob"], "c1")));
        assert_eq!(found(&index, 1, "c1", EPOCH), [true, false, true, true]);
        index.set(id(1), &CodeChanged { state: party(&["ann"], "c2") }.into(), EPOCH);
        assert_eq!((index.of_code("c1", EPOCH), index.of_code("c2", EPOCH)), (None, Some(id(1))));
        let disbanded = Disbanded { why: Disbanding::Disbanded, state: party(&["ann"], "c2") };
        index.set(id(1), &disbanded.into(), EPOCH);
        assert!(index.parties.is_empty() && index.members.is_empty() && index.invited.is_empty());
        assert!(index.codes.is_empty());
    }

    #[test]
    fn a_party_whose_time_is_over_is_removed_but_its_members_next_party_stays() {
        let mut index = Index::default();
        index.set(id(1), &Created { state: party(&["ann", "bob"], "c1") }.into(), EPOCH);
        let later = EPOCH + LIFETIME;
        let mut next = party(&["ann"], "c2");
        next.renewed_at = later;
        index.set(id(2), &Created { state: next }.into(), later);
        assert_eq!(index.take_expired(later), [(id(1), party(&["ann", "bob"], "c1"))]);
        assert_eq!(index.of(&player("ann"), later).map(|(id, _)| id), Some(id(2)));
        assert!(index.of(&player("bob"), later).is_none());
        // A later read of an old event changes nothing.
        index.set(id(1), &Created { state: party(&["ann", "bob"], "c1") }.into(), later);
        assert_eq!(index.parties.len(), 1);
    }
}
