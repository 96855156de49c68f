//! What belongs into one commit: a session's events and those of its players.

use std::collections::BTreeMap;

use garage_events::{
    event::Event as _,
    id::{PlayerId, SessionId},
    player::{self, Address, Ending},
    session,
};

use super::violation::{Rule, Violation};

/// The events of one commit that belong together.
#[derive(Debug, Default)]
pub(crate) struct Together {
    matched: BTreeMap<SessionId, (u64, session::Matched)>,
    opened: BTreeMap<SessionId, Notice<Address>>,
    closed: BTreeMap<SessionId, Notice<Ending>>,
    players: BTreeMap<PlayerId, Vec<(u64, player::Event)>>,
}

/// What the players of a session are told.
#[derive(Debug)]
struct Notice<T> {
    seq: u64,
    what: T,
    /// Those of whom it is known that they are in the session; none when its beginning is not.
    players: Option<Vec<PlayerId>>,
}

impl Together {
    /// Notes an event of a session whose players are these, if they are known.
    pub(crate) fn session(&mut self, id: SessionId, seq: u64, event: &session::Event, players: Option<Vec<PlayerId>>) {
        match event {
            session::Event::Matched(matched) => drop(self.matched.insert(id, (seq, matched.clone()))),
            session::Event::Opened(opened) => {
                self.opened.insert(id, Notice { seq, what: opened.address.clone(), players });
            }
            session::Event::Closed(closed) => drop(self.closed.insert(id, Notice { seq, what: closed.why, players })),
            session::Event::PodRequested(_)
            | session::Event::PodScheduled(_)
            | session::Event::PodFailed(_)
            | session::Event::PodReady(_)
            | session::Event::Failed(_)
            | session::Event::Finished(_) => {}
        }
    }

    /// Notes an event of a player.
    pub(crate) fn player(&mut self, id: &PlayerId, seq: u64, event: &player::Event) {
        self.players.entry(id.clone()).or_default().push((seq, event.clone()));
    }

    /// Judges the commit.
    pub(crate) fn judge(&self, found: &mut Vec<Violation>) {
        for (session, (seq, matched)) in &self.matched {
            self.judge_matched(*session, *seq, matched, found);
        }
        for (session, notified) in &self.opened {
            let is_notified = |event: &player::Event| {
                matches!(event, player::Event::PlayerMatched(player::PlayerMatched { session: id, address, .. })
                if id == session && *address == notified.what)
            };
            self.judge_notified(*session, notified, "PlayerMatched with the server's address", is_notified, found);
        }
        for (session, notified) in &self.closed {
            let is_notified = |event: &player::Event| {
                matches!(event, player::Event::Released(player::Released { session: id, why, .. })
                if id == session && *why == notified.what)
            };
            self.judge_notified(*session, notified, "Released for the same reason", is_notified, found);
        }
        for (player, events) in &self.players {
            for (seq, event) in events {
                self.judge_player(player, *seq, event, found);
            }
        }
    }

    /// Every member of a session is matched with it.
    fn judge_matched(&self, id: SessionId, seq: u64, matched: &session::Matched, found: &mut Vec<Violation>) {
        for team in &matched.teams {
            for member in &team.players {
                let own = |event: &player::Event| {
                    matches!(event, player::Event::Matched(own)
                    if own.session == id && own.ticket == member.ticket && own.team == team.name && own.queue == matched.queue)
                };
                if !self.has(&member.player, own) {
                    let what = format!(
                        "the session is matched without the Matched of its player, of ticket {} and team {}",
                        member.ticket, team.name
                    );
                    found.push(Violation::new(Rule::Matched, [seq], what).player(&member.player).session(id));
                }
            }
        }
    }

    /// Every member of a session is told.
    fn judge_notified<T>(
        &self,
        session: SessionId,
        notified: &Notice<T>,
        how: &str,
        is_notified: impl Fn(&player::Event) -> bool,
        found: &mut Vec<Violation>,
    ) {
        for player in notified.players.iter().flatten().filter(|player| !self.has(player, &is_notified)) {
            let what = format!("a player of the session has no {how} beside this");
            found.push(Violation::new(Rule::Notified, [notified.seq], what).player(player).session(session));
        }
    }

    /// Nobody is matched, told or released but by his session.
    fn judge_player(&self, player: &PlayerId, seq: u64, event: &player::Event, found: &mut Vec<Violation>) {
        let is_of = |players: &Option<Vec<PlayerId>>| players.as_ref().is_none_or(|players| players.contains(player));
        let (rule, session, beside, is_beside) = match event {
            player::Event::Matched(player::Matched { session, .. }) => {
                let of =
                    self.matched.get(session).is_some_and(|(_, matched)| matched.players().any(|one| one == player));
                (Rule::Matched, session, "Matched", of)
            }
            player::Event::PlayerMatched(player::PlayerMatched { session, .. }) => (
                Rule::Notified,
                session,
                "Opened",
                self.opened.get(session).is_some_and(|notified| is_of(&notified.players)),
            ),
            player::Event::Released(player::Released { session, .. }) => (
                Rule::Notified,
                session,
                "Closed",
                self.closed.get(session).is_some_and(|notified| is_of(&notified.players)),
            ),
            player::Event::Queued(_) | player::Event::Cancelled(_) | player::Event::TimedOut(_) => return,
        };
        if !is_beside {
            let what = format!("{} without the session's {beside} with this player beside it", event.type_name());
            found.push(Violation::new(rule, [seq], what).player(player).session(*session));
        }
    }

    fn has(&self, player: &PlayerId, is_it: impl Fn(&player::Event) -> bool) -> bool {
        self.players.get(player).into_iter().flatten().any(|(_, event)| is_it(event))
    }
}
