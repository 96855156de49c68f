//! Checks that an event of a session and the matching events of its players are in the same commit.

use std::collections::BTreeMap;

use garage_events::{
    event::Event as _,
    id::{PlayerId, SessionId},
    player::{self, Address, Ending},
    session,
};

use crate::violation::{Rule, Violation};

/// The events of one commit that must have counterparts.
#[derive(Debug, Default)]
pub(crate) struct Counterparts {
    proposed: BTreeMap<SessionId, (u64, session::Proposed)>,
    matched: BTreeMap<SessionId, (u64, session::Matched)>,
    opened: BTreeMap<SessionId, Notice<Address>>,
    closed: BTreeMap<SessionId, Notice<Ending>>,
    players: BTreeMap<PlayerId, Vec<(u64, player::Event)>>,
}

/// A notice of a session to all its players.
#[derive(Debug)]
struct Notice<T> {
    seq: u64,
    what: T,
    /// The players of the session. `None` if they are unknown, because its first event has expired.
    players: Option<Vec<PlayerId>>,
}

impl Counterparts {
    /// Adds an event of a session. `players` are the players of the session, if they are known.
    pub(crate) fn session(&mut self, id: SessionId, seq: u64, event: &session::Event, players: Option<Vec<PlayerId>>) {
        match event {
            session::Event::Proposed(proposed) => drop(self.proposed.insert(id, (seq, proposed.clone()))),
            session::Event::Matched(matched) => drop(self.matched.insert(id, (seq, matched.clone()))),
            session::Event::Opened(opened) => {
                self.opened.insert(id, Notice { seq, what: opened.address.clone(), players });
            }
            session::Event::Closed(closed) => drop(self.closed.insert(id, Notice { seq, what: closed.why, players })),
            session::Event::Accepted(_)
            | session::Event::ProposalEnded(_)
            | session::Event::PodRequested(_)
            | session::Event::PodScheduled(_)
            | session::Event::PodFailed(_)
            | session::Event::PodReady(_)
            | session::Event::Failed(_)
            | session::Event::Finished(_) => {}
        }
    }

    /// Adds an event of a player.
    pub(crate) fn player(&mut self, id: &PlayerId, seq: u64, event: &player::Event) {
        self.players.entry(id.clone()).or_default().push((seq, event.clone()));
    }

    /// Checks the commit.
    pub(crate) fn check(&self, found: &mut Vec<Violation>) {
        for (session, (seq, matched)) in &self.matched {
            let own = |event: &player::Event, member: &session::Member, team: &session::Team| {
                matches!(event, player::Event::Matched(own)
                if own.session == *session && own.ticket == member.ticket
                    && own.team == team.name && own.queue == matched.queue)
            };
            self.check_joined(*session, *seq, matched, "Matched", own, found);
        }
        for (session, (seq, proposed)) in &self.proposed {
            let own = |event: &player::Event, member: &session::Member, team: &session::Team| {
                matches!(event, player::Event::MatchProposed(own)
                if own.session == *session && own.queued.ticket == member.ticket && own.accept_by == proposed.accept_by
                    && own.team == team.name && own.queued.queue == proposed.matched.queue)
            };
            self.check_joined(*session, *seq, &proposed.matched, "MatchProposed", own, found);
        }
        for (session, notice) in &self.opened {
            let is_notified = |event: &player::Event| {
                matches!(event, player::Event::PlayerMatched(player::PlayerMatched { session: id, address, .. })
                if id == session && *address == notice.what)
            };
            self.check_notified(*session, notice, "PlayerMatched with the server's address", is_notified, found);
        }
        for (session, notice) in &self.closed {
            let is_notified = |event: &player::Event| match event {
                player::Event::Released(player::Released { session: id, why, .. }) => {
                    id == session && *why == notice.what
                }
                player::Event::Requeued(player::Requeued { session: id, .. }) => {
                    id == session && notice.what != Ending::Finished
                }
                player::Event::MatchDeclined(player::MatchDeclined { session: id, .. }) => {
                    id == session && notice.what == Ending::NotAccepted
                }
                _ => false,
            };
            let missing = "Released for the same reason, or Requeued or MatchDeclined after a failure,";
            self.check_notified(*session, notice, missing, is_notified, found);
        }
        for (player, events) in &self.players {
            for (seq, event) in events {
                self.check_player(player, *seq, event, found);
            }
        }
    }

    /// Checks that every player of a match has their own event of it, which has the name `missing`.
    fn check_joined(
        &self,
        id: SessionId,
        seq: u64,
        matched: &session::Matched,
        missing: &str,
        own: impl Fn(&player::Event, &session::Member, &session::Team) -> bool,
        found: &mut Vec<Violation>,
    ) {
        for team in &matched.teams {
            for member in &team.players {
                if !self.has(&member.player, |event| own(event, member, team)) {
                    let what = format!(
                        "the commit has no {missing} of this player with ticket {} and team {}",
                        member.ticket, team.name
                    );
                    found.push(Violation::new(Rule::Matched, [seq], what).player(&member.player).session(id));
                }
            }
        }
    }

    /// Checks that every player of the session has the event that notifies them.
    fn check_notified<T>(
        &self,
        session: SessionId,
        notice: &Notice<T>,
        missing: &str,
        is_notified: impl Fn(&player::Event) -> bool,
        found: &mut Vec<Violation>,
    ) {
        for player in notice.players.iter().flatten().filter(|player| !self.has(player, &is_notified)) {
            let what = format!("the commit has no {missing} for this player of the session");
            found.push(Violation::new(Rule::Notified, [notice.seq], what).player(player).session(session));
        }
    }

    /// Checks that each event of a player about a session comes with the event of that session.
    fn check_player(&self, player: &PlayerId, seq: u64, event: &player::Event, found: &mut Vec<Violation>) {
        let is_of = |players: &Option<Vec<PlayerId>>| players.as_ref().is_none_or(|players| players.contains(player));
        let (rule, session, missing, is_present) = match event {
            player::Event::Matched(player::Matched { session, .. }) => {
                let of =
                    self.matched.get(session).is_some_and(|(_, matched)| matched.players().any(|one| one == player));
                (Rule::Matched, session, "Matched", of)
            }
            player::Event::MatchProposed(player::MatchProposed { session, .. }) => {
                let of = self.proposed.get(session);
                let of = of.is_some_and(|(_, proposed)| proposed.matched.players().any(|one| one == player));
                (Rule::Matched, session, "Proposed", of)
            }
            player::Event::PlayerMatched(player::PlayerMatched { session, .. }) => (
                Rule::Notified,
                session,
                "Opened",
                self.opened.get(session).is_some_and(|notice| is_of(&notice.players)),
            ),
            player::Event::Requeued(player::Requeued { session, .. })
            | player::Event::MatchDeclined(player::MatchDeclined { session, .. })
            | player::Event::Released(player::Released { session, .. }) => (
                Rule::Notified,
                session,
                "Closed",
                self.closed.get(session).is_some_and(|notice| is_of(&notice.players)),
            ),
            player::Event::Queued(_)
            | player::Event::Cancelled(_)
            | player::Event::TimedOut(_)
            | player::Event::PartyChanged(_) => return,
        };
        if !is_present {
            let what = format!("{} without {missing} of a session with this player", event.type_name());
            found.push(Violation::new(rule, [seq], what).player(player).session(*session));
        }
    }

    fn has(&self, player: &PlayerId, is_it: impl Fn(&player::Event) -> bool) -> bool {
        self.players.get(player).into_iter().flatten().any(|(_, event)| is_it(event))
    }
}
