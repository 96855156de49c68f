//! Proposed matches in the session worker, with the simulated log: answers, the deadline, and what becomes of each ticket.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures::executor::block_on;
use garage_events::{
    env::{Env, Simulated},
    event::Event as _,
    failure,
    game::{Car, Loadout, Secret, Stats},
    id::{PlayerId, SessionId, TicketId},
    log::{Append, Decision, Head, Load},
    player::{self, DeclineReason, Ending, MatchDeclined, Queued},
    session::{Command, Event, Limits, Matched, Member, NotAccepted, Proposed, Team},
    sim::SimLog,
    subject::{Aggregate, timer_due},
};
use garage_session::{
    keys::GameKey,
    reaction::{App, Effects},
};
use garage_worker::{
    reactor::{Delivery, Failure},
    service::Refusal,
};
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
const ACCEPT_BY: OffsetDateTime = datetime!(2026-01-01 00:00:20 UTC);

/// Test doubles for the side effects: the session's timer, and the players who have left.
#[derive(Clone, Default)]
struct Doubles(Arc<Mutex<(Option<OffsetDateTime>, Vec<String>)>>);

impl Effects for Doubles {
    async fn loadouts(&self, players: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        let car = || Car {
            id: "pebble".parse().unwrap(),
            model: "pebble.glb".into(),
            texture: "pebble.png".into(),
            stats: Stats { power_kw: 80.0, mass_kg: 900.0, grip: 1.0, drag_m2: 0.6 },
        };
        Ok(players.into_iter().map(|player| Loadout { player, car: car(), items: BTreeMap::new() }).collect())
    }

    async fn park(&self, _: SessionId, _: u32, _: OffsetDateTime, _: std::time::Duration) -> Result<GameKey, Failure> {
        Ok(GameKey { public_key: "public".into(), fingerprint: "f".into(), private_key: Secret::new("private") })
    }

    async fn absent(&self, players: Vec<(PlayerId, OffsetDateTime)>) -> BTreeSet<PlayerId> {
        let left = &self.0.lock().unwrap().1;
        players.into_iter().map(|(player, _)| player).filter(|player| left.contains(&player.to_string())).collect()
    }

    async fn set_timer(&self, _: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        self.0.lock().unwrap().0 = at;
        Ok(())
    }
}

/// A proposed match of "anna" and "bert", who share a ticket, against "cleo", and of "dora".
struct Proposal {
    app: App<SimLog<Simulated>, Simulated, Doubles>,
    session: SessionId,
}

impl Proposal {
    fn new(names_decliner: bool) -> Self {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let app = App { log, env: env.clone(), effects: Doubles::default(), limits: Limits::default() };
        let session = SessionId::new(env.id());
        let mut begin = Decision::new(&env, session.uuid(), None);
        let (mut teams, mut players) = (Vec::new(), Vec::new());
        for (number, names) in [(1, &["anna", "bert"][..]), (2, &["cleo"]), (3, &["dora"])] {
            let ticket = TicketId::new(Uuid::from_u128(number));
            let team = format!("team-{number}");
            let group = names.iter().filter(|_| names.len() > 1).map(|name| name.parse().unwrap()).collect::<Vec<_>>();
            let mut members = Vec::new();
            for name in names {
                let player: PlayerId = name.parse().unwrap();
                let queued = Queued {
                    ticket,
                    queue: "ranked".parse().unwrap(),
                    rank: 0,
                    latencies: BTreeMap::new(),
                    attributes: BTreeMap::new(),
                    group: group.clone(),
                    waiting_since: BEGAN - Duration::MINUTE,
                    expires_at: BEGAN + Duration::MINUTE,
                    requeues: 0,
                    absences: 0,
                    party: None,
                };
                let queue = Decision::new(&env, ticket.uuid(), None);
                let event = [player::Event::from(queued)];
                let queue = queue.change(&env, Aggregate::Player(player.clone()), Head::default(), event);
                let seq = block_on(app.log.append(queue)).unwrap()[0];
                let state = block_on(app.log.player(&player)).unwrap().state;
                let (accept_by, team) = (ACCEPT_BY, team.clone());
                let command =
                    player::Command::Propose { ticket, session, team, accept_by, players: 4, may_requeue: true };
                players.push((player.clone(), Head { seq, n: 1 }, player::decide(&state, command).unwrap()));
                members.push(Member { player, ticket, rank: 0 });
            }
            teams.push(Team { name: team, players: members });
        }
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams,
            latencies: BTreeMap::new(),
            rules: "test".into(),
            pool_seq: 4,
            clock: BEGAN,
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let proposed = Event::from(Proposed { accept_by: ACCEPT_BY, names_decliner, matched });
        begin = begin.change(&env, Aggregate::Session(session), Head::default(), [proposed]);
        for (player, head, event) in players {
            begin = begin.change(&env, Aggregate::Player(player), head, [event]);
        }
        block_on(app.log.append(begin)).unwrap();
        let proposal = Self { app, session };
        proposal.deliver_last();
        proposal
    }

    fn deliver_last(&self) {
        let filter = Aggregate::Session(self.session).filter();
        let seq = self.app.log.last_sequence(&filter).unwrap();
        let message = self.app.log.next(&filter, seq).unwrap().unwrap();
        let (time, subject, body) = (self.app.env.now(), message.subject, message.body);
        block_on(self.app.on_event(&Delivery { seq, time, subject, body, delivered: 1 })).unwrap();
    }

    fn accept(&self, name: &str) -> Result<(), u16> {
        let command = Command::Accept { player: name.parse().unwrap(), now: self.app.env.now() };
        block_on(self.app.answer(self.session, command)).map_err(|Refusal { code, .. }| code)
    }

    fn decline(&self, name: &str, why: NotAccepted) -> Result<(), u16> {
        let command = Command::Decline { player: name.parse().unwrap(), why };
        block_on(self.app.answer(self.session, command)).map_err(|Refusal { code, .. }| code)
    }

    fn timer(&self) -> Option<OffsetDateTime> {
        self.app.effects.0.lock().unwrap().0
    }

    fn timer_fires(&self) {
        let at = self.timer().expect("a timer is set");
        self.app.env.advance(at - self.app.env.now());
        let (time, subject) = (self.app.env.now(), timer_due(self.session));
        block_on(self.app.on_timer(&Delivery { seq: 1, time, subject, body: "".into(), delivered: 1 })).unwrap();
    }

    fn types(&self) -> Vec<&'static str> {
        let session = block_on(self.app.log.session(self.session)).unwrap();
        session.history.iter().map(|recorded| recorded.event.type_name()).collect()
    }

    fn last_of(&self, name: &str) -> player::Event {
        block_on(self.app.log.player(&name.parse().unwrap())).unwrap().last.unwrap().event
    }

    /// How the player's ticket ended with the proposal.
    fn declined(&self, name: &str) -> MatchDeclined {
        match self.last_of(name) {
            player::Event::MatchDeclined(declined) => declined,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Checks that the player waits again since the same time.
    fn assert_requeued(&self, name: &str) {
        let player::Event::Requeued(requeued) = self.last_of(name) else { panic!("{name}: {:?}", self.last_of(name)) };
        assert_eq!((requeued.session, requeued.reason), (self.session, failure::Code::NotAccepted), "{name}");
        let Queued { waiting_since, requeues, absences, .. } = requeued.queued;
        assert_eq!((waiting_since, requeues, absences), (BEGAN - Duration::MINUTE, 0, 0), "{name}");
    }
}

#[test]
fn the_timer_of_a_proposed_match_is_its_deadline_and_an_acceptance_does_not_move_it() {
    let proposal = Proposal::new(false);
    assert_eq!(proposal.timer(), Some(ACCEPT_BY));
    proposal.app.env.advance(Duration::seconds(10));
    proposal.accept("anna").unwrap();
    proposal.deliver_last();
    assert_eq!(proposal.timer(), Some(ACCEPT_BY));
}

#[test]
fn when_all_players_have_accepted_they_are_matched_and_a_game_server_is_requested() {
    let proposal = Proposal::new(false);
    for name in ["dora", "anna", "cleo"] {
        proposal.accept(name).unwrap();
        assert!(matches!(proposal.last_of(name), player::Event::MatchProposed(_)));
    }
    proposal.accept("bert").unwrap();
    for name in ["anna", "bert", "cleo", "dora"] {
        let player::Event::Matched(matched) = proposal.last_of(name) else { panic!("{name} is not matched") };
        assert_eq!((matched.session, matched.waiting_since), (proposal.session, BEGAN - Duration::MINUTE));
    }
    proposal.deliver_last();
    let expected = ["Proposed", "Accepted", "Accepted", "Accepted", "Accepted", "Matched", "PodRequested"];
    assert_eq!(proposal.types(), expected);
    assert_eq!(proposal.accept("anna"), Ok(()), "the same answer again");
    assert_eq!(proposal.decline("anna", NotAccepted::Declined), Err(409));
    assert_eq!(proposal.types().len(), expected.len());
}

#[test]
fn if_a_player_declines_their_ticket_ends_and_the_others_wait_again() {
    for names_decliner in [false, true] {
        let proposal = Proposal::new(names_decliner);
        proposal.accept("anna").unwrap();
        proposal.accept("cleo").unwrap();
        proposal.decline("bert", NotAccepted::Declined).unwrap();
        let bert = proposal.declined("bert");
        assert_eq!((bert.reason, bert.players, bert.absences), (DeclineReason::Declined, vec![], 1));
        let anna = proposal.declined("anna");
        assert_eq!((anna.reason, anna.absences), (DeclineReason::Party, 0));
        let named: Vec<_> = anna.players.iter().map(PlayerId::as_str).collect();
        assert_eq!(named, if names_decliner { vec!["bert"] } else { vec![] });
        // Whether they had accepted or not.
        proposal.assert_requeued("cleo");
        proposal.assert_requeued("dora");
        assert_eq!(proposal.types(), ["Proposed", "Accepted", "Accepted", "ProposalEnded", "Closed"]);
        proposal.deliver_last();
        assert_eq!(proposal.timer(), None, "the timer is cancelled");
        assert_eq!(proposal.decline("bert", NotAccepted::Declined), Ok(()), "the same answer again");
        assert_eq!((proposal.accept("cleo"), proposal.decline("cleo", NotAccepted::Declined)), (Err(409), Err(409)));
        assert_eq!(proposal.types().len(), 5);
    }
}

#[test]
fn at_the_deadline_the_tickets_of_silent_players_end_and_the_others_wait_again() {
    let proposal = Proposal::new(true);
    for name in ["anna", "cleo"] {
        proposal.accept(name).unwrap();
    }
    proposal.timer_fires();
    for silent in ["bert", "dora"] {
        let declined = proposal.declined(silent);
        assert_eq!((declined.reason, declined.absences), (DeclineReason::Unanswered, 1), "{silent}");
    }
    let anna = proposal.declined("anna");
    assert_eq!((anna.reason, anna.players, anna.absences), (DeclineReason::Party, vec!["bert".parse().unwrap()], 0));
    proposal.assert_requeued("cleo");
    assert_eq!(proposal.accept("dora"), Err(409), "after the deadline");
}

#[test]
fn an_acceptance_after_the_deadline_is_refused_even_if_the_timer_has_not_fired() {
    let proposal = Proposal::new(false);
    proposal.app.env.advance(ACCEPT_BY - BEGAN);
    assert_eq!(proposal.accept("anna"), Err(409));
    assert_eq!(proposal.types(), ["Proposed"]);
}

#[test]
fn an_early_timer_changes_nothing_and_is_set_again() {
    let proposal = Proposal::new(false);
    let (time, subject) = (ACCEPT_BY - Duration::SECOND, timer_due(proposal.session));
    let early = Delivery { seq: 1, time, subject, body: "".into(), delivered: 1 };
    proposal.app.effects.0.lock().unwrap().0 = None;
    block_on(proposal.app.on_timer(&early)).unwrap();
    assert_eq!((proposal.types(), proposal.timer()), (vec!["Proposed"], Some(ACCEPT_BY)));
}

#[test]
fn other_players_and_unknown_sessions_get_the_same_refusal() {
    let proposal = Proposal::new(false);
    assert_eq!((proposal.accept("eve"), proposal.decline("eve", NotAccepted::Declined)), (Err(404), Err(404)));
    let unknown = SessionId::new(Uuid::from_u128(9));
    let command = || Command::Accept { player: "eve".parse().unwrap(), now: BEGAN };
    let refusal = block_on(proposal.app.answer(unknown, command())).unwrap_err();
    assert_eq!(refusal.code, 404);
    let of_others = block_on(proposal.app.answer(proposal.session, command())).unwrap_err();
    assert_eq!(
        refusal.message.replace(&unknown.to_string(), ""),
        of_others.message.replace(&proposal.session.to_string(), "")
    );
}

#[test]
fn a_disconnect_ends_the_proposal_only_if_the_player_has_not_accepted() {
    let proposal = Proposal::new(false);
    proposal.accept("cleo").unwrap();
    assert_eq!(proposal.decline("cleo", NotAccepted::Disconnected), Err(409));
    assert_eq!(proposal.types(), ["Proposed", "Accepted"]);
    proposal.decline("dora", NotAccepted::Disconnected).unwrap();
    assert_eq!(proposal.declined("dora").reason, DeclineReason::Disconnected);
    proposal.assert_requeued("cleo");
}

#[test]
fn a_ticket_whose_player_accepted_and_left_does_not_wait_again_and_has_no_penalty() {
    let proposal = Proposal::new(false);
    proposal.accept("anna").unwrap();
    proposal.app.effects.0.lock().unwrap().1.push("anna".into());
    proposal.decline("dora", NotAccepted::Declined).unwrap();
    for name in ["anna", "bert"] {
        let player::Event::Released(released) = proposal.last_of(name) else { panic!("{:?}", proposal.last_of(name)) };
        assert_eq!((released.why, released.reason), (Ending::NotAccepted, Some(failure::Code::PlayerLeft)));
        assert_eq!(released.absences, 0);
    }
    proposal.assert_requeued("cleo");
}
